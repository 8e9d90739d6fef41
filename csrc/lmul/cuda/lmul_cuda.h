// L-Mul on a CUDA device: entry points without torch. Pointers are device pointers, work is queued
// on `stream` of the current device. Every product is the bit pattern of lmul_math.h.
#pragma once

#include "lmul/lmul.h"

typedef struct CUstream_st* cudaStream_t;

namespace nnkernels::lmul {

void mul_cuda(const MulArgs& args, cudaStream_t stream);

}  // namespace nnkernels::lmul
