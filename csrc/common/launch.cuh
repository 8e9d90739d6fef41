// Launching kernels, with nvcc on a device and with g++ on the CPU (testing/cuda_on_cpu.h).
//
//   template <int width>
//   __global__ void scale_kernel(float* x, int64_t n) {
//     NNK_DYNAMIC_SHARED(float, tile);
//     ...
//   }
//   NNK_LAUNCH(scale_kernel<4>, grid, block, shared_bytes, stream, x, n);
//
// A kernel name with a comma needs parentheses: NNK_LAUNCH((kernel<a, b>), ...).
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(__CUDACC__)

#include <cuda_runtime.h>

// The launch's dynamic shared memory, 16-byte aligned, as a pointer to Type.
#define NNK_DYNAMIC_SHARED(Type, name)                                \
  extern __shared__ __align__(16) unsigned char nnk_dynamic_shared[]; \
  Type* const name = reinterpret_cast<Type*>(nnk_dynamic_shared)

namespace nnkernels::cuda {

inline void check(const char* kernel, cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(kernel) + ": " + cudaGetErrorString(error));
  }
}

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  constexpr size_t unasked_shared_bytes = 48 * 1024;
  if (shared_bytes > unasked_shared_bytes) {
    check(name, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(shared_bytes)));
  }
  kernel<<<grid, block, shared_bytes, stream>>>(std::forward<Arguments>(arguments)...);
  check(name, cudaGetLastError());
}

}  // namespace nnkernels::cuda

#else

#include "testing/cuda_on_cpu.h"

#define NNK_DYNAMIC_SHARED(Type, name) \
  Type* const name = static_cast<Type*>(::nnkernels::cuda_on_cpu::machine.dynamic_shared())

namespace nnkernels::cuda {

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, cudaStream_t, Arguments&&... arguments) {
  cuda_on_cpu::machine.launch(name, grid, block, shared_bytes, [&] { kernel(arguments...); });
}

}  // namespace nnkernels::cuda

#endif

#define NNK_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)      \
  ::nnkernels::cuda::launch(#kernel, kernel, grid, block, shared_bytes, \
                            stream __VA_OPT__(, ) __VA_ARGS__)
