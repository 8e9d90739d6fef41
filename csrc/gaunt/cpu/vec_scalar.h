// Vectors as plain arrays, for machines without AVX2. The arithmetic is that of the other vector
// files, fused multiply-adds included, so results agree bit for bit.
#pragma once

#include <cmath>

#include "gaunt/cpu/engine.h"

namespace nnkernels::gaunt {
namespace {

template <class Number>
struct ArrayVec {
  using T = Number;
  static constexpr int lanes = 4;
  // Rows are transposed in blocks of so many columns.
  static constexpr int piece = 4;
  struct Value {
    T v[lanes];
  };

  static NNK_VEC Value load(const T* p) {
    return map([=](int i) { return p[i]; });
  }
  static NNK_VEC void store(T* p, Value a) {
    for (int i = 0; i < lanes; ++i) p[i] = a.v[i];
  }
  static NNK_VEC Value set(T x) {
    return map([=](int) { return x; });
  }
  static NNK_VEC Value add(Value a, Value b) {
    return map([&](int i) { return a.v[i] + b.v[i]; });
  }
  static NNK_VEC Value sub(Value a, Value b) {
    return map([&](int i) { return a.v[i] - b.v[i]; });
  }
  static NNK_VEC Value mul(Value a, Value b) {
    return map([&](int i) { return a.v[i] * b.v[i]; });
  }
  // a * b + c and c - a * b, rounded once.
  static NNK_VEC Value fma(Value a, Value b, Value c) {
    return map([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
  }
  static NNK_VEC Value fnma(Value a, Value b, Value c) {
    return map([&](int i) { return std::fma(-a.v[i], b.v[i], c.v[i]); });
  }

  // Columns [at, at + piece) of `lanes` rows, and back.
  template <Type type>
  static NNK_VEC void load_columns(const Element<type>* const* rows, int64_t at,
                                   Value (&columns)[piece]) {
    for (int c = 0; c < piece; ++c) {
      columns[c] = map([&](int i) { return static_cast<T>(read<type>(rows[i] + at + c)); });
    }
  }
  template <Type type>
  static NNK_VEC void store_columns(Element<type>* const* rows, int64_t at,
                                    Value (&columns)[piece]) {
    for (int c = 0; c < piece; ++c) {
      for (int i = 0; i < lanes; ++i) write<type>(rows[i] + at + c, columns[c].v[i]);
    }
  }
  // `lanes` neighbours.
  template <Type type>
  static NNK_VEC Value load_as(const Element<type>* p) {
    return map([&](int i) { return static_cast<T>(read<type>(p + i)); });
  }
  template <Type type>
  static NNK_VEC void store_as(Element<type>* p, Value a) {
    for (int i = 0; i < lanes; ++i) write<type>(p + i, a.v[i]);
  }

 private:
  template <class F>
  static NNK_VEC Value map(F f) {
    Value result;
    for (int i = 0; i < lanes; ++i) result.v[i] = f(i);
    return result;
  }
};

using Vec32 = ArrayVec<float>;
using Vec64 = ArrayVec<double>;

}  // namespace
}  // namespace nnkernels::gaunt
