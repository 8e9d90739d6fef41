// The product of two matrices of any kind of term: what matmul and its gradients run.
#pragma once

#include "lmul/cpu/packed.h"

namespace nnkernels::lmul {

struct Product {
  int64_t batch = 1, M = 0, N = 0, K = 0;
  Matrix a, b;
  Output out;
  const uint8_t* b_packed = nullptr;
  const void* bias = nullptr;
  DType bias_dtype = DType::float32;
};
void run_product(const Plan& plan, const Product& product, const Parallel& parallel);

}  // namespace nnkernels::lmul
