// The conversions of convert.h with the device's own instructions, for kernels bound by them.
// On the CPU they are convert.h's.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/convert.h"
#include "common/launch.cuh"

namespace nnkernels::cuda {

// The integer that holds an element.
template <DType dtype>
using CodeOf = std::conditional_t<element_size(dtype) == 4, uint32_t,
                                  std::conditional_t<element_size(dtype) == 2, uint16_t, uint8_t>>;

__device__ __forceinline__ uint32_t widen_float16(uint16_t code) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(code));
  return word_of(value);
#else
  return float16_to_word(code);
#endif
}

// The fp32 word equal to an element; some NaN for a NaN.
template <DType dtype>
__device__ __forceinline__ uint32_t widen_code(CodeOf<dtype> code) {
  if constexpr (dtype == DType::bfloat16) return bfloat16_to_word(code);
  if constexpr (dtype == DType::float16) return widen_float16(code);
  if constexpr (dtype == DType::float8_e5m2) {
    // The upper half of an fp16 number.
    return widen_float16(static_cast<uint16_t>(code << 8));
  }
  if constexpr (dtype == DType::float8_e4m3fn) {
    // Shifted to the exponent field of fp16 the number is 2^8 too small, subnormals included.
    const auto shifted = static_cast<uint16_t>((code & 0x80) << 8 | (code & 0x7F) << 7);
    const uint32_t word = word_of(float_of(widen_float16(shifted)) * 256.0f);
    return (code & 0x7F) == 0x7F ? 0x7FC00000u : word;
  }
  return code;
}

// The element nearest to a finite fp32 number, ties to even; float32, bfloat16 and float16.
template <DType dtype>
__device__ __forceinline__ CodeOf<dtype> narrow_finite(uint32_t word) {
  if constexpr (dtype == DType::float32) {
    return word;
  } else {
    static_assert(sizeof(CodeOf<dtype>) == 2);
#if defined(__CUDA_ARCH__)
    uint16_t code;
    if constexpr (dtype == DType::bfloat16) {
      asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(code) : "f"(float_of(word)));
    } else {
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(code) : "f"(float_of(word)));
    }
    return code;
#else
    return dtype == DType::bfloat16 ? word_to_bfloat16(word) : word_to_float16(word);
#endif
  }
}

}  // namespace nnkernels::cuda
