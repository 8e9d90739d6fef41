// The popcount kernels: mismatches of rows, by counting the ones of their differences. Included by
// one file per instruction set.
#pragma once

#include "binary/cpu/engine.h"

namespace nnkernels::binary {
namespace {

// A rectangle of R x C pairs, whose counters stay in registers.
template <int R, int C>
void count_tile(const Rows& a, const Rows& b, int32_t* counts, int64_t stride) {
  using Counter = Vec::Counter;
  Counter counters[R][C];
  const uint8_t* a_rows[R];
  const uint8_t* b_rows[C];
  for (int i = 0; i < R; ++i) a_rows[i] = a[i];
  for (int j = 0; j < C; ++j) b_rows[j] = b[j];

  const int64_t end = a.bytes / Counter::block * Counter::block;
  for (int64_t at = 0; at < end;) {
    int64_t stop = at + Counter::flush_blocks * Counter::block;
    if (stop > end) stop = end;
    for (; at < stop; at += Counter::block) {
      for (int i = 0; i < R; ++i) {
        for (int j = 0; j < C; ++j) counters[i][j].add_difference(a_rows[i] + at, b_rows[j] + at);
      }
    }
    for (int i = 0; i < R; ++i) {
      for (int j = 0; j < C; ++j) counters[i][j].flush();
    }
  }
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < C; ++j) {
      int64_t count = counters[i][j].count();
      for (int64_t k = end; k < a.bytes; k += 8) {
        uint64_t x, y;
        memcpy(&x, a_rows[i] + k, 8);
        memcpy(&y, b_rows[j] + k, 8);
        count += Vec::ones(x ^ y);
      }
      counts[i * stride + j] = static_cast<int32_t>(count);
    }
  }
}

template <int R>
void count_rows(const Rows& a, const Rows& b, int64_t n, int32_t* counts, int64_t stride) {
  constexpr int C = Vec::count_columns;
  int64_t j = 0;
  for (; j + C <= n; j += C) count_tile<R, C>(a, b.from(j), counts + j, stride);
  for (; j < n; ++j) count_tile<R, 1>(a, b.from(j), counts + j, stride);
}

void popcount(const Rows& a, int64_t m, const Rows& b, int64_t n, int32_t* counts, int64_t stride) {
  constexpr int R = Vec::count_rows;
  int64_t i = 0;
  for (; i + R <= m; i += R) count_rows<R>(a.from(i), b, n, counts + i * stride, stride);
  for (; i < m; ++i) count_rows<1>(a.from(i), b, n, counts + i * stride, stride);
}

}  // namespace
}  // namespace nnkernels::binary
