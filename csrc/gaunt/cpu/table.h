// The kernels of one instruction set, gathered; included last by the file that chose the vectors.
#pragma once

#include "gaunt/cpu/blocks.h"
#include "gaunt/cpu/rings.h"

namespace nnkernels::gaunt {
namespace {

template <class V>
constexpr Kernels make_kernels(const DegreeKernels* const* degrees) {
  return {
      .lanes = V::lanes,
      .vector_bytes = V::lanes * static_cast<int64_t>(sizeof(typename V::T)),
      .load = load_block<V>,
      .store = store_block<V>,
      .synthesis = AnyRings<V>::synthesis,
      .analysis = AnyRings<V>::analysis,
      .convolve = AnyRings<V>::convolve,
      .degrees = degrees,
      .weigh = weigh<V>,
      .dot = dot<V>,
      .scale = scale<V>,
      .contract = contract<V>,
      .transform = transform<V>,
  };
}

}  // namespace
}  // namespace nnkernels::gaunt
