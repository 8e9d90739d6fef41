// Exact conversions between fp32 words and the narrow formats, shared by the CPU and CUDA kernels.
//
// Widening is exact for every value: fp16 and fp8 subnormals become normal fp32 numbers, bf16
// subnormals stay fp32 subnormals. Narrowing to bf16 and fp16 is one round-to-nearest-even, as in
// torch. Narrowing to fp8 is left to torch, whose overflow rule depends on its version.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/dtype.h"
#include "common/hd.h"

namespace nnkernels {

NNK_HD uint32_t word_of(float value) {
  uint32_t word;
  memcpy(&word, &value, sizeof word);
  return word;
}

NNK_HD float float_of(uint32_t word) {
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}

// The word of a format with `exponent` and `mantissa` bits, widened to fp32. `has_inf` tells
// whether the top exponent holds infinities (IEEE) or, but for the last code, numbers (e4m3fn).
template <int exponent_bits, int mantissa_bits, bool has_inf>
NNK_HD uint32_t widen(uint32_t code) {
  constexpr uint32_t exponent_mask = (1u << exponent_bits) - 1;
  constexpr uint32_t mantissa_mask = (1u << mantissa_bits) - 1;
  constexpr uint32_t bias = exponent_mask >> 1;
  const uint32_t sign = (code >> (exponent_bits + mantissa_bits)) << 31;
  const uint32_t exponent = (code >> mantissa_bits) & exponent_mask;
  const uint32_t mantissa = code & mantissa_mask;
  if (has_inf && exponent == exponent_mask) {
    return sign | 0x7F800000u | (mantissa << (23 - mantissa_bits));
  }
  if (!has_inf && exponent == exponent_mask && mantissa == mantissa_mask) return sign | 0x7FC00000u;
  if (exponent == 0) {
    // mantissa * 2^(1 - bias - mantissa_bits): both factors and the product are fp32 numbers.
    const float unit = float_of((127u + 1u - bias - mantissa_bits) << 23);
    return sign | word_of(static_cast<float>(mantissa) * unit);
  }
  return sign | ((exponent + 127u - bias) << 23) | (mantissa << (23 - mantissa_bits));
}

NNK_HD uint32_t bfloat16_to_word(uint16_t code) { return static_cast<uint32_t>(code) << 16; }
NNK_HD uint32_t float16_to_word(uint16_t code) { return widen<5, 10, true>(code); }
NNK_HD uint32_t float8_e4m3fn_to_word(uint8_t code) { return widen<4, 3, false>(code); }
NNK_HD uint32_t float8_e5m2_to_word(uint8_t code) { return widen<5, 2, true>(code); }

NNK_HD uint16_t word_to_bfloat16(uint32_t word) {
  if ((word & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FC0u;
  return static_cast<uint16_t>((word + 0x7FFFu + ((word >> 16) & 1u)) >> 16);
}

NNK_HD uint16_t word_to_float16(uint32_t word) {
  const uint16_t sign = static_cast<uint16_t>((word >> 16) & 0x8000u);
  const uint32_t magnitude = word & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return sign | 0x7E00u;
  // 65520 is the midpoint between the largest fp16 and 2^16: it and all above round to infinity.
  if (magnitude >= 0x477FF000u) return sign | 0x7C00u;
  if (magnitude < 0x38800000u) {
    // Below 2^-14 fp16 counts in units of 2^-24: adding 0.5 (ulp 2^-24) rounds to that unit.
    return sign | static_cast<uint16_t>(word_of(float_of(magnitude) + 0.5f) - 0x3F000000u);
  }
  const uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u);
  return sign | static_cast<uint16_t>((rounded - 0x38000000u) >> 13);
}

// Element `index` of a buffer, as the word of the fp32 number it equals.
NNK_HD uint32_t load_word(DType dtype, const void* data, int64_t index) {
  switch (dtype) {
    case DType::bfloat16: return bfloat16_to_word(static_cast<const uint16_t*>(data)[index]);
    case DType::float16: return float16_to_word(static_cast<const uint16_t*>(data)[index]);
    case DType::float8_e4m3fn:
      return float8_e4m3fn_to_word(static_cast<const uint8_t*>(data)[index]);
    case DType::float8_e5m2: return float8_e5m2_to_word(static_cast<const uint8_t*>(data)[index]);
    default: return static_cast<const uint32_t*>(data)[index];
  }
}

// Writes an fp32 number to a float32, bfloat16 or float16 buffer, rounded once to nearest even.
NNK_HD void store_word(DType dtype, void* data, int64_t index, uint32_t word) {
  switch (dtype) {
    case DType::bfloat16: static_cast<uint16_t*>(data)[index] = word_to_bfloat16(word); break;
    case DType::float16: static_cast<uint16_t*>(data)[index] = word_to_float16(word); break;
    default: static_cast<uint32_t*>(data)[index] = word;
  }
}

}  // namespace nnkernels
