// Products of rows with a matrix, in register tiles; for one instruction set.
#pragma once

#include <algorithm>

#include "pc/cpu/engine.h"
#include "pc/cpu/vec.h"

namespace nnkernels::pc {
namespace {

// Rows of a tile of `columns` vectors: enough sums to hide the latency of an fma, and no more than
// the registers hold.
template <class Real, int columns>
constexpr int kTileRows = kVecBytes == 64 ? 16 / columns : (kVecBytes == 32 ? 12 : 8) / columns;

// The width of a row is `vectors` vectors, 0: known at run time only.
template <class Real, int vectors>
NNK_VEC int64_t width_of(int64_t width) {
  return vectors > 0 ? vectors * Vec<Real>::lanes : width;
}

// out[r] = sum_k in[r, k] w[k], a tile of rows and columns.
template <class Real, int vectors, int columns>
NNK_VEC void multiply_tile(const Real* in, const Real* w, int64_t K, int64_t row, Real* out) {
  using V = Vec<Real>;
  constexpr int rows = kTileRows<Real, columns>;
  const int64_t width = width_of<Real, vectors>(row);
  typename V::Reg sums[rows][columns];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int c = 0; c < columns; ++c) sums[r][c] = V::zero();
  }
  for (int64_t k = 0; k < K; ++k, w += width) {
    typename V::Reg weights[columns];
#pragma GCC unroll 2
    for (int c = 0; c < columns; ++c) weights[c] = V::load(w + c * V::lanes);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const typename V::Reg x = V::set(in[r * width + k]);
#pragma GCC unroll 2
      for (int c = 0; c < columns; ++c) sums[r][c] = V::mul_add(x, weights[c], sums[r][c]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
    for (int c = 0; c < columns; ++c) V::store(out + r * width + c * V::lanes, sums[r][c]);
  }
}

// out[r] = sum_{k < K} in[r, k] w[k] for whole rows; computes up to kSpareRows - 1 more of them.
template <class Real, int vectors>
NNK_VEC void multiply(const Real* in, const Real* w, int64_t rows, int64_t K, int64_t row,
                      Real* out) {
  constexpr int lanes = Vec<Real>::lanes;
  const int64_t width = width_of<Real, vectors>(row);
  int64_t column = 0;
  if constexpr (vectors != 1) {
    for (; column + 2 * lanes <= width; column += 2 * lanes) {
      for (int64_t r = 0; r < rows; r += kTileRows<Real, 2>) {
        multiply_tile<Real, vectors, 2>(in + r * width, w + column, K, width,
                                        out + r * width + column);
      }
    }
  }
  for (; column < width; column += lanes) {
    for (int64_t r = 0; r < rows; r += kTileRows<Real, 1>) {
      multiply_tile<Real, vectors, 1>(in + r * width, w + column, K, width,
                                      out + r * width + column);
    }
  }
}

// A divisor of every width.
template <class Real>
constexpr int kSumRows = kVecBytes == 64         ? 8
                         : Vec<Real>::lanes >= 4 ? 4
                                                 : 2;

// sums[a] += sum_r q[r, a] u[r] for a tile of a.
template <class Real, int vectors, int columns>
NNK_VEC void accumulate_tile(const Real* q, const Real* u, int64_t count, int64_t row, Real* to) {
  using V = Vec<Real>;
  constexpr int rows = kSumRows<Real>;
  const int64_t width = width_of<Real, vectors>(row);
  typename V::Reg sums[rows][columns];
#pragma GCC unroll 16
  for (int a = 0; a < rows; ++a) {
#pragma GCC unroll 2
    for (int c = 0; c < columns; ++c) sums[a][c] = V::load(to + a * width + c * V::lanes);
  }
  for (int64_t r = 0; r < count; ++r, q += width, u += width) {
    typename V::Reg x[columns];
#pragma GCC unroll 2
    for (int c = 0; c < columns; ++c) x[c] = V::load(u + c * V::lanes);
#pragma GCC unroll 16
    for (int a = 0; a < rows; ++a) {
      const typename V::Reg y = V::set(q[a]);
#pragma GCC unroll 2
      for (int c = 0; c < columns; ++c) sums[a][c] = V::mul_add(y, x[c], sums[a][c]);
    }
  }
#pragma GCC unroll 16
  for (int a = 0; a < rows; ++a) {
#pragma GCC unroll 2
    for (int c = 0; c < columns; ++c) V::store(to + a * width + c * V::lanes, sums[a][c]);
  }
}

// to[a] += sum_r q[r, a] u[r], [width, width].
template <class Real, int vectors>
NNK_VEC void accumulate(const Real* q, const Real* u, int64_t rows, int64_t row, Real* to) {
  constexpr int lanes = Vec<Real>::lanes;
  constexpr int tile = kSumRows<Real>;
  const int64_t width = width_of<Real, vectors>(row);
  for (int64_t a = 0; a + tile <= width; a += tile) {
    int64_t column = 0;
    if constexpr (vectors != 1) {
      for (; column + 2 * lanes <= width; column += 2 * lanes) {
        accumulate_tile<Real, vectors, 2>(q + a, u + column, rows, width, to + a * width + column);
      }
    }
    for (; column < width; column += lanes) {
      accumulate_tile<Real, vectors, 1>(q + a, u + column, rows, width, to + a * width + column);
    }
  }
}

}  // namespace
}  // namespace nnkernels::pc
