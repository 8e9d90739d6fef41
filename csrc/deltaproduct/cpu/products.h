// Products and triangular solves of the backward pass, see engine.h.
#pragma once

#include "deltaproduct/cpu/engine.h"

namespace nnkernels::deltaproduct {
namespace {

// `rows` x `vectors` of a product, from row m and column n on.
template <class Real, int rows, int vectors>
NNK_VEC void tile(const Product<Real>& p, int64_t m, int64_t n) {
  using V = Vec<Real>;
  typename V::Reg sums[rows][vectors];
  if (p.init != nullptr) {
    const auto scale = V::set(p.scale);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int w = 0; w < vectors; ++w) {
        sums[r][w] = V::mul(scale, V::load(p.init + (m + r) * p.c_row + n + w * V::lanes));
      }
    }
  } else {
    for (int r = 0; r < rows; ++r) {
      for (int w = 0; w < vectors; ++w) sums[r][w] = V::zero();
    }
  }
  const Real* a = p.a + m * p.a_row;
  const Real* b = p.b + n;
  for (int64_t k = 0; k < p.K; ++k, a += p.a_step, b += p.b_row) {
    typename V::Reg column[vectors];
#pragma GCC unroll 4
    for (int w = 0; w < vectors; ++w) column[w] = V::load(b + w * V::lanes);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const auto factor = V::set(a[r * p.a_row]);
#pragma GCC unroll 4
      for (int w = 0; w < vectors; ++w) sums[r][w] = V::fma(factor, column[w], sums[r][w]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int w = 0; w < vectors; ++w) {
      V::store(p.c + (m + r) * p.c_row + n + w * V::lanes, sums[r][w]);
    }
  }
}

template <class Real, int vectors, int rows>
NNK_VEC void last_rows(const Product<Real>& p, int64_t m, int64_t n, int64_t left) {
  if constexpr (rows > 0) {
    if (left == rows) return tile<Real, rows, vectors>(p, m, n);
    last_rows<Real, vectors, rows - 1>(p, m, n, left);
  }
}

template <class Real, int vectors>
void column_of_tiles(const Product<Real>& p, int64_t n) {
  constexpr int rows = Vec<Real>::tile_rows;
  int64_t m = 0;
  for (; m + rows <= p.M; m += rows) tile<Real, rows, vectors>(p, m, n);
  last_rows<Real, vectors, rows - 1>(p, m, n, p.M - m);
}

template <class Real>
void multiply(const Product<Real>& p) {
  using V = Vec<Real>;
  constexpr int64_t width = V::tile_vectors * V::lanes;
  int64_t n = 0;
  for (; n + width - V::lanes < p.N; n += width) column_of_tiles<Real, V::tile_vectors>(p, n);
  for (; n < p.N; n += V::lanes) column_of_tiles<Real, 1>(p, n);
}

template <class Real>
void substitute(const Real* a, int64_t a_row, int64_t a_column, const Real* factor,
                int64_t factor_step, Real* x, Real* y, int64_t row, int64_t rows, int64_t columns) {
  using V = Vec<Real>;
  for (int64_t c = 0; c < columns; c += V::lanes) {
    for (int64_t i = 0; i < rows; ++i) {
      auto sum = V::load(x + i * row + c);
      for (int64_t j = 0; j < i; ++j) {
        sum = V::fnma(V::set(a[i * a_row + j * a_column]), V::load(y + j * row + c), sum);
      }
      V::store(x + i * row + c, sum);
      V::store(y + i * row + c, V::mul(V::set(factor[i * factor_step]), sum));
    }
  }
}

}  // namespace
}  // namespace nnkernels::deltaproduct
