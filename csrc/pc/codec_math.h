// The arithmetic `arith=1` of single numbers: what every codec, on any device, computes alike.
//
// IEEE binary32, round to nearest, no flush to zero. A dot product over the states a is acc = 0,
// then acc = fma(x[a], w[a], acc) for a = 0 .. h-1.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/hd.h"

namespace nnkernels::pc {

// What a row's entries become after it was brought to a maximum in [0.5, 1).
constexpr float kLeast = 0x1p-40f;
constexpr uint32_t kExponentBits = 0x7F800000;

// Bits of the power of two that brings the row's maximum, a normal number, to [0.5, 1).
constexpr uint32_t kUnitBits = 253u << 23;
NNK_HD float row_scale(float maximum) {
  uint32_t word;
  memcpy(&word, &maximum, sizeof word);
  word = kUnitBits - (word & kExponentBits);
  float scale;
  memcpy(&scale, &word, sizeof scale);
  return scale;
}

NNK_HD float scaled_entry(float entry, float scale) {
  const float scaled = entry * scale;
  return scaled >= kLeast ? scaled : 0.0f;
}

// 2^precision - K, what is shared out by probability: every symbol has 1 beforehand.
NNK_HD float shared_total(int precision, int64_t K) {
  return static_cast<float>((int64_t{1} << precision) - K);
}

// Whether S(K) is what a valid model can give.
NNK_HD bool is_valid_sum(float sum) { return sum > 0.0f && sum <= 0x1p126f; }

// F(v) of S(v) for v < K, with ratio = total / S(K) rounded once. F(K) is 2^precision.
NNK_HD uint32_t frequency_below(float sum, float ratio, float total, uint32_t v) {
  float share = sum * ratio;
  share = share < total ? share : total;
  share = share > 0.0f ? share : 0.0f;
  return static_cast<uint32_t>(static_cast<int32_t>(share)) + v;
}

}  // namespace nnkernels::pc
