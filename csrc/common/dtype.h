// Element types that kernels read and write, without torch.
#pragma once

#include <cstdint>

namespace nnkernels {

enum class DType : int { float32, bfloat16, float16, float8_e4m3fn, float8_e5m2 };

static constexpr int64_t element_size(DType dtype) {
  switch (dtype) {
    case DType::float32: return 4;
    case DType::bfloat16:
    case DType::float16: return 2;
    default: return 1;
  }
}

}  // namespace nnkernels
