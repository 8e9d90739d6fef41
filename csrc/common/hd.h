// Marks arithmetic that the CPU kernels and the CUDA kernels share.
#pragma once

#if defined(__CUDACC__)
#define NNK_HD __host__ __device__ __forceinline__
#else
#define NNK_HD inline
#endif
