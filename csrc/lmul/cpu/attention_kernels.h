// The softmax loops of attention.h on the vectors of one instruction set. All instruction sets do
// the same operations in the same order on every element: their results agree bit for bit.
#pragma once

#include "lmul/cpu/attention.h"

namespace nnkernels::lmul {
namespace {

constexpr uint32_t kMinusInfinity = kSignBit | kInfinity;

NNK_VEC Vec::Float load_float(const float* p) {
  return Vec::as_float(Vec::load(reinterpret_cast<const uint32_t*>(p)));
}
NNK_VEC void store_float(float* p, Vec::Float x) {
  Vec::store(reinterpret_cast<uint32_t*>(p), Vec::as_int(x));
}

// 2^f, 0 <= f < 1, with a relative error below 2^-23; exactly 1 for f = 0. The polynomial
// 1 + f q(f) has the least largest relative error, 2.0e-9, before its coefficients are rounded.
NNK_VEC Vec::Float exp2_fraction(Vec::Float f) {
  Vec::Float q = Vec::set(0x1.c54174p-13f);
  q = Vec::fma(q, f, Vec::set(0x1.46d64ep-10f));
  q = Vec::fma(q, f, Vec::set(0x1.3d0b92p-7f));
  q = Vec::fma(q, f, Vec::set(0x1.c68912p-5f));
  q = Vec::fma(q, f, Vec::set(0x1.ebfd58p-3f));
  q = Vec::fma(q, f, Vec::set(0x1.62e42cp-1f));
  return Vec::fma(q, f, Vec::set(1.0f));
}

template <Normalize normalize>
NNK_VEC Vec::Float weight_of(Vec::Float x, Vec::Float M, Vec::Float divisor, Vec::Float inverse) {
  // log2(e) = kHigh + kLow.
  constexpr float kHigh = 0x1.715476p+0f, kLow = 0x1.4ae0cp-26f;
  // The lower bound keeps the most negative scores from becoming -inf; NaN passes.
  const auto t =
      Vec::max(Vec::set(-std::numeric_limits<float>::max()), Vec::mul(x, Vec::set(kHigh)));
  const auto i = Vec::floor(t);
  auto f = Vec::sub(t, i);
  if constexpr (normalize == Normalize::before) {
    const auto error = Vec::fma(x, Vec::set(kHigh), Vec::sub(Vec::set(0.0f), t));
    f = Vec::add(f, Vec::fma(x, Vec::set(kLow), error));
    // The error leaves this range where neighbouring scores are powers of e apart.
    f = Vec::min(Vec::set(1.5f), Vec::max(Vec::set(-0.5f), f));
  }
  // The word of 2^shift, which is that of 0 for -127.
  const auto shift = Vec::max(Vec::set(-127.0f), Vec::sub(i, M));
  const auto power = Vec::shift_left(Vec::add(Vec::truncate(shift), Vec::set(127u)), 23);
  auto weight = Vec::mul(exp2_fraction(f), Vec::as_float(power));
  if constexpr (normalize == Normalize::before) {
    // The quotient, corrected by the remainder: rounded to nearest, and 1 for equal numbers.
    const auto quotient = Vec::mul(weight, inverse);
    const auto negated = Vec::sub(Vec::set(0.0f), quotient);
    weight = Vec::fma(Vec::fma(negated, divisor, weight), inverse, quotient);
  }
  const auto masked = Vec::equal(Vec::as_int(x), Vec::set(kMinusInfinity));
  return Vec::as_float(Vec::select(masked, Vec::set(kMasked), Vec::as_int(weight)));
}

float scores(float* x, int64_t end, int64_t columns, float scale, const float* bias) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  auto largest = Vec::set(-kInf);
  const auto factor = Vec::set(scale);
  for (int64_t j = 0; j < columns; j += Vec::lanes) {
    auto score = Vec::mul(load_float(x + j), factor);
    if (bias != nullptr) score = Vec::add(score, load_float(bias + j));
    if (j + Vec::lanes > end) {
      store_float(x + j, score);
      for (int64_t i = j < end ? end : j; i < j + Vec::lanes; ++i) x[i] = -kInf;
      score = load_float(x + j);
    }
    store_float(x + j, score);
    // NaN passes over.
    largest = Vec::max(score, largest);
  }
  // The kernels that follow go in steps of kLanes.
  for (int64_t i = (columns + Vec::lanes - 1) / Vec::lanes * Vec::lanes; i % kLanes != 0; ++i) {
    x[i] = -kInf;
  }
  float lanes[Vec::lanes];
  store_float(lanes, largest);
  for (int i = 1; i < Vec::lanes; ++i) lanes[0] = lanes[i] > lanes[0] ? lanes[i] : lanes[0];
  return lanes[0];
}

template <Normalize normalize>
void weights_of(const float* x, int64_t columns, float M, float divisor, float* weight,
                float* lanes) {
  constexpr int kVectors = kLanes / Vec::lanes;
  const auto maximum = Vec::set(M);
  const auto total = Vec::set(divisor), inverse = Vec::set(1.0f / divisor);
  Vec::Float sums[kVectors];
  for (int v = 0; v < kVectors; ++v) sums[v] = load_float(lanes + v * Vec::lanes);
  for (int64_t j = 0; j < columns; j += kLanes) {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = j + v * Vec::lanes;
      const auto w = weight_of<normalize>(load_float(x + at), maximum, total, inverse);
      store_float(weight + at, w);
      sums[v] = Vec::add(sums[v], w);
    }
  }
  for (int v = 0; v < kVectors; ++v) store_float(lanes + v * Vec::lanes, sums[v]);
}

void weights(Normalize normalize, const float* x, int64_t columns, float M, float divisor,
             float* weight, float* lanes) {
  if (normalize == Normalize::before) {
    return weights_of<Normalize::before>(x, columns, M, divisor, weight, lanes);
  }
  weights_of<Normalize::after>(x, columns, M, divisor, weight, lanes);
}

void add_products(const float* weight, const float* slope, int64_t columns, float* lanes) {
  for (int64_t j = 0; j < columns; j += kLanes) {
    for (int64_t v = 0; v < kLanes; v += Vec::lanes) {
      const auto w = load_float(weight + j + v);
      const auto live = Vec::not_equal(Vec::as_int(w), Vec::set(kMasked));
      const auto product = Vec::mul(w, load_float(slope + j + v));
      const auto term = Vec::as_float(Vec::where(live, Vec::as_int(product)));
      store_float(lanes + v, Vec::add(load_float(lanes + v), term));
    }
  }
}

void score_grads(const float* weight, float* slope, int64_t columns, float delta, float scale) {
  for (int64_t j = 0; j < columns; j += Vec::lanes) {
    const auto w = load_float(weight + j);
    const auto centred = Vec::sub(load_float(slope + j), Vec::set(delta));
    // Adding +0 makes -0 positive.
    const auto grad = Vec::add(Vec::mul(Vec::mul(w, centred), Vec::set(scale)), Vec::set(0.0f));
    const auto live = Vec::not_equal(Vec::as_int(w), Vec::set(kMasked));
    store_float(slope + j, Vec::as_float(Vec::select(live, Vec::as_int(grad), Vec::set(kMasked))));
  }
}

constexpr AttentionKernels kAttentionKernels = {
    .scores = scores,
    .weights = weights,
    .add_products = add_products,
    .score_grads = score_grads,
};

}  // namespace
}  // namespace nnkernels::lmul
