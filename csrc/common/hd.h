// Marks arithmetic that the CPU kernels and the CUDA kernels share.
#pragma once

#if defined(__CUDACC__)
#define NNK_HD __host__ __device__ __forceinline__
#else
// Internal linkage: a file compiled for AVX must not lend its copy to the scalar build.
#define NNK_HD static inline
#endif
