// Arithmetic of single numbers: element types and the gate.
#pragma once

#include <cmath>

#include "common/convert.h"
#include "deltaproduct/deltaproduct.h"

namespace nnkernels::deltaproduct {

// Under the root of a row's norm.
static constexpr double kNormEpsilon = 1e-6;

NNK_HD int64_t bytes_of(Type type, int64_t elements) {
  return (type == Type::float64 ? 8 : type == Type::float32 ? 4 : 2) * elements;
}

template <class Real>
NNK_HD Real load_number(Type type, const void* data, int64_t index) {
  switch (type) {
    case Type::float64: return static_cast<Real>(static_cast<const double*>(data)[index]);
    case Type::float32: return static_cast<Real>(static_cast<const float*>(data)[index]);
    case Type::bfloat16:
      return static_cast<Real>(
          float_of(bfloat16_to_word(static_cast<const uint16_t*>(data)[index])));
    default:
      return static_cast<Real>(
          float_of(float16_to_word(static_cast<const uint16_t*>(data)[index])));
  }
}

// Rounds once, to nearest even; a float64 number first to float32 where the type is 16 bits wide.
template <class Real>
NNK_HD void store_number(Type type, void* data, int64_t index, Real value) {
  const uint32_t word = word_of(static_cast<float>(value));
  switch (type) {
    case Type::float64: static_cast<double*>(data)[index] = static_cast<double>(value); break;
    case Type::float32: static_cast<float*>(data)[index] = static_cast<float>(value); break;
    case Type::bfloat16: static_cast<uint16_t*>(data)[index] = word_to_bfloat16(word); break;
    default: static_cast<uint16_t*>(data)[index] = word_to_float16(word); break;
  }
}

}  // namespace nnkernels::deltaproduct
