// Vectors turned into columns, and the largest lane; for one instruction set.
#pragma once

#include <utility>

#include "pc/cpu/vec.h"

namespace nnkernels::pc {
namespace {

template <class Real>
struct Shuffle {
  using V = Vec<Real>;
  using Reg = typename V::Reg;
  static constexpr int lanes = V::lanes;

  // rows[r][c] becomes rows[c][r].
  static NNK_VEC void transpose(Reg (&rows)[lanes]) {
    // Each round moves the highest bit of (row, lane) to the end.
#pragma GCC unroll 4
    for (int round = 1; round < lanes; round *= 2) {
      Reg next[lanes];
#pragma GCC unroll 8
      for (int i = 0; i < lanes / 2; ++i) {
        next[2 * i] = zip<0>(rows[i], rows[i + lanes / 2], Lanes{});
        next[2 * i + 1] = zip<lanes / 2>(rows[i], rows[i + lanes / 2], Lanes{});
      }
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) rows[i] = next[i];
    }
  }

  static NNK_VEC Real largest(Reg x) {
    return across(x, [](Reg a, Reg b) { return V::max(a, b); });
  }
  static NNK_VEC Real sum(Reg x) {
    return across(x, [](Reg a, Reg b) { return a + b; });
  }

 private:
  using Lanes = std::make_integer_sequence<int, lanes>;

  template <class F>
  static NNK_VEC Real across(Reg x, F f) {
    if constexpr (lanes >= 16) x = f(x, swap<8>(x, Lanes{}));
    if constexpr (lanes >= 8) x = f(x, swap<4>(x, Lanes{}));
    if constexpr (lanes >= 4) x = f(x, swap<2>(x, Lanes{}));
    return f(x, swap<1>(x, Lanes{}))[0];
  }

  // a[first], b[first], a[first + 1], ...
  template <int first, int... lane>
  static NNK_VEC Reg zip(Reg a, Reg b, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(a, b, (first + lane / 2 + (lane % 2) * lanes)...);
  }
  template <int distance, int... lane>
  static NNK_VEC Reg swap(Reg a, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(a, a, (lane ^ distance)...);
  }
};

}  // namespace
}  // namespace nnkernels::pc
