// Arithmetic of single numbers: rescaling by exact powers of two.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/hd.h"

namespace nnkernels::pc {

// The power of two that brings a positive number to [0.5, 1), 1 for zero. It is a normal number:
// one below the smallest normal number comes as near as that allows.
NNK_HD float to_unit(float x) {
  uint32_t word;
  memcpy(&word, &x, sizeof word);
  if (word == 0) return 1.0f;
  const int32_t field = 253 - static_cast<int32_t>(word >> 23 & 255);
  word = static_cast<uint32_t>(field < 1 ? 1 : field) << 23;
  memcpy(&x, &word, sizeof x);
  return x;
}
NNK_HD double to_unit(double x) {
  uint64_t word;
  memcpy(&word, &x, sizeof word);
  if (word == 0) return 1.0;
  const int64_t field = 2045 - static_cast<int64_t>(word >> 52 & 2047);
  word = static_cast<uint64_t>(field < 1 ? 1 : field) << 52;
  memcpy(&x, &word, sizeof x);
  return x;
}

// e of the power of two 2^-e.
NNK_HD int32_t exponent_of(float power) {
  uint32_t word;
  memcpy(&word, &power, sizeof word);
  return 127 - static_cast<int32_t>(word >> 23);
}
NNK_HD int32_t exponent_of(double power) {
  uint64_t word;
  memcpy(&word, &power, sizeof word);
  return static_cast<int32_t>(1023 - static_cast<int64_t>(word >> 52));
}

}  // namespace nnkernels::pc
