// Lets g++ compile CUDA sources and run their kernels on the CPU, for tests of logic and indexing.
//
// common/launch.cuh includes this header where nvcc does not compile. A kernel is then an ordinary
// function, run block by block with one fiber per thread (block.h); a test program includes the .cu
// files it tests. Buffers that it passes to kernels should be DeviceBuffers (memory.h), so that an
// access outside them is an error. A thread costs about 0.6 us, a barrier 0.5 us per thread.
//
// What it does not show: speed, races other than those that machine.order brings out, accesses
// outside static shared memory (unless UBSan checks the array bounds) and reads of static shared
// memory that this block has not written.
#pragma once

// Before the redefinitions below, which these headers would undo or trip over.
#include <algorithm>
#include <cstddef>
#include <functional>
#include <utility>

// The CUDA headers are optional: without them kernels have the vector types but not __half and
// __nv_bfloat16.
#if !defined(NNK_NO_CUDA_HEADERS) && __has_include(<cuda_bf16.h>)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define NNK_HAS_CUDA_HEADERS 1
#else
#include "testing/cuda_on_cpu/vector_types.h"
#define NNK_HAS_CUDA_HEADERS 0
#endif

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __forceinline__
#undef __align__
#define __global__
#define __device__
#define __host__
// One instance for all threads: blocks run one after another.
#define __shared__ static
#define __constant__ static
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __align__(bytes) alignas(bytes)

typedef struct CUstream_st* cudaStream_t;

#include "testing/cuda_on_cpu/block.h"
#include "testing/cuda_on_cpu/device_functions.h"
#include "testing/cuda_on_cpu/memory.h"
