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
#pragma GCC unroll 24
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
#pragma GCC unroll 24
    for (int r = 0; r < rows; ++r) {
      const auto factor = V::set(a[r * p.a_row]);
#pragma GCC unroll 4
      for (int w = 0; w < vectors; ++w) sums[r][w] = V::fma(factor, column[w], sums[r][w]);
    }
  }
#pragma GCC unroll 24
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int w = 0; w < vectors; ++w) {
      V::store(p.c + (m + r) * p.c_row + n + w * V::lanes, sums[r][w]);
    }
  }
}

template <class Real, int vectors, int rows>
NNK_VEC void tile_of(const Product<Real>& p, int64_t m, int64_t n, int64_t count) {
  if constexpr (rows > 0) {
    if (count == rows) return tile<Real, rows, vectors>(p, m, n);
    tile_of<Real, vectors, rows - 1>(p, m, n, count);
  }
}

// Tiles as even as can be: one of few rows would wait for its sums.
template <class Real, int vectors>
void column_of_tiles(const Product<Real>& p, int64_t n) {
  constexpr int rows = Vec<Real>::tile_rows * (vectors == 1 ? 2 : 1);
  const int64_t tiles = (p.M + rows - 1) / rows;
  const int64_t size = p.M / tiles, larger = p.M % tiles;
  int64_t m = 0;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t count = size + (i < larger ? 1 : 0);
    tile_of<Real, vectors, rows>(p, m, n, count);
    m += count;
  }
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
struct System {
  const Real* a;
  int64_t a_row, a_column;
  const Real* factor;
  int64_t factor_step;
  Real *x, *y;
  int64_t row, rows;
};

template <class Real, int vectors>
void substitute_columns(const System<Real>& s, int64_t c) {
  using V = Vec<Real>;
  Real *x = s.x + c, *y = s.y + c;
  for (int64_t i = 0; i < s.rows; ++i) {
    typename V::Reg sums[vectors];
#pragma GCC unroll 4
    for (int w = 0; w < vectors; ++w) sums[w] = V::load(x + i * s.row + w * V::lanes);
    const Real* a = s.a + i * s.a_row;
    const Real* from = y;
    for (int64_t j = 0; j < i; ++j, a += s.a_column, from += s.row) {
      const auto factor = V::set(*a);
#pragma GCC unroll 4
      for (int w = 0; w < vectors; ++w) {
        sums[w] = V::fnma(factor, V::load(from + w * V::lanes), sums[w]);
      }
    }
    const auto factor = V::set(s.factor[i * s.factor_step]);
#pragma GCC unroll 4
    for (int w = 0; w < vectors; ++w) {
      V::store(x + i * s.row + w * V::lanes, sums[w]);
      V::store(y + i * s.row + w * V::lanes, V::mul(factor, sums[w]));
    }
  }
}

template <class Real>
void substitute(const Real* a, int64_t a_row, int64_t a_column, const Real* factor,
                int64_t factor_step, Real* x, Real* y, int64_t row, int64_t rows, int64_t columns) {
  using V = Vec<Real>;
  const System<Real> system{a, a_row, a_column, factor, factor_step, x, y, row, rows};
  int64_t c = 0;
  for (; c + 4 * V::lanes <= columns; c += 4 * V::lanes) substitute_columns<Real, 4>(system, c);
  for (; c < columns; c += V::lanes) substitute_columns<Real, 1>(system, c);
}

}  // namespace
}  // namespace nnkernels::deltaproduct
