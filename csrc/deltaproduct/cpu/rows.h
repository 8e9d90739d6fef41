// Rows of numbers: conversion, dot products, transposition.
#pragma once

#include "deltaproduct/cpu/engine.h"

namespace nnkernels::deltaproduct {
namespace {

// Calls f with the type as a constant.
template <class F>
NNK_VEC void with_type(Type type, const F& f) {
  switch (type) {
    case Type::float32: return f(std::integral_constant<Type, Type::float32>{});
    case Type::bfloat16: return f(std::integral_constant<Type, Type::bfloat16>{});
    case Type::float16: return f(std::integral_constant<Type, Type::float16>{});
    default: return f(std::integral_constant<Type, Type::float64>{});
  }
}

template <class Real>
void load(Type any, const void* from, int64_t from_row, int64_t rows, int64_t columns, Real* to,
          int64_t to_row) {
  using V = Vec<Real>;
  with_type(any, [&](auto type) {
    for (int64_t r = 0; r < rows; ++r, to += to_row) {
      int64_t c = 0;
      for (; c + V::lanes <= columns; c += V::lanes) {
        V::store(to + c, V::widen(type, from, r * from_row + c));
      }
      for (; c < columns; ++c) to[c] = load_number<Real>(type, from, r * from_row + c);
      for (; c < to_row; ++c) to[c] = 0;
    }
  });
}

template <class Real>
void store(const Real* from, int64_t from_row, int64_t rows, int64_t columns, Type any, void* to,
           int64_t to_row) {
  using V = Vec<Real>;
  with_type(any, [&](auto type) {
    for (int64_t r = 0; r < rows; ++r, from += from_row) {
      int64_t c = 0;
      for (; c + V::lanes <= columns; c += V::lanes) {
        V::narrow(type, to, r * to_row + c, V::load(from + c));
      }
      for (; c < columns; ++c) store_number<Real>(type, to, r * to_row + c, from[c]);
    }
  });
}

template <class Real>
constexpr int kPanel = Vec<Real>::panel_vectors * Vec<Real>::lanes;

template <class Real>
void load_panels(Type any, const void* from, int64_t from_row, int64_t K, int64_t columns,
                 Real* to) {
  using V = Vec<Real>;
  constexpr int64_t panel = kPanel<Real>;
  with_type(any, [&](auto type) {
    for (int64_t r = 0; r < K; ++r, to += panel) {
      Real* row = to;
      int64_t c = 0;
      for (; c + panel <= columns; c += panel, row += K * panel) {
#pragma GCC unroll 4
        for (int w = 0; w < V::panel_vectors; ++w) {
          V::store(row + w * V::lanes, V::widen(type, from, r * from_row + c + w * V::lanes));
        }
      }
      if (c == columns) continue;
      for (int64_t i = 0; i < panel; ++i) {
        row[i] = c + i < columns ? load_number<Real>(type, from, r * from_row + c + i) : Real(0);
      }
    }
  });
}

template <class Real>
void store_panels(const Real* from, int64_t K, int64_t columns, Type any, void* to,
                  int64_t to_row) {
  using V = Vec<Real>;
  constexpr int64_t panel = kPanel<Real>;
  with_type(any, [&](auto type) {
    for (int64_t r = 0; r < K; ++r, from += panel) {
      const Real* row = from;
      int64_t c = 0;
      for (; c + panel <= columns; c += panel, row += K * panel) {
#pragma GCC unroll 4
        for (int w = 0; w < V::panel_vectors; ++w) {
          V::narrow(type, to, r * to_row + c + w * V::lanes, V::load(row + w * V::lanes));
        }
      }
      for (int64_t i = 0; c + i < columns; ++i) {
        store_number<Real>(type, to, r * to_row + c + i, row[i]);
      }
    }
  });
}

template <class Real>
Real dot(const Real* a, const Real* b, int64_t n) {
  using V = Vec<Real>;
  // Four sums hide the latency of an addition.
  typename V::Reg sums[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  int64_t at = 0;
  for (; at + 4 * V::lanes <= n; at += 4 * V::lanes) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int64_t place = at + i * V::lanes;
      sums[i] = V::fma(V::load(a + place), V::load(b + place), sums[i]);
    }
  }
  for (; at + V::lanes <= n; at += V::lanes) {
    sums[0] = V::fma(V::load(a + at), V::load(b + at), sums[0]);
  }
  if (at < n) {
    sums[1] = V::fma(V::load_first(a + at, n - at), V::load_first(b + at, n - at), sums[1]);
  }
  return V::sum(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])));
}

template <class Real>
void scale_rows(const Real* from, const Real* factor, Real sign, int64_t rows, int64_t columns,
                int64_t row, Real* to) {
  using V = Vec<Real>;
  for (int64_t r = 0; r < rows; ++r, from += row, to += row) {
    const Real scalar = sign * factor[r];
    const auto scale = V::set(scalar);
    int64_t c = 0;
    for (; c + V::lanes <= columns; c += V::lanes) {
      V::store(to + c, V::mul(scale, V::load(from + c)));
    }
    for (; c < columns; ++c) to[c] = scalar * from[c];
  }
}

template <class Real>
void add(const Real* from, int64_t n, Real* to) {
  using V = Vec<Real>;
  int64_t i = 0;
  for (; i + V::lanes <= n; i += V::lanes)
    V::store(to + i, V::add(V::load(from + i), V::load(to + i)));
  for (; i < n; ++i) to[i] += from[i];
}

template <class Real, int steps, int outputs>
NNK_VEC void products_of(const Group<Real>& group, int64_t K, Products<Real>& products) {
  using V = Vec<Real>;
  using Reg = typename V::Reg;
  Reg kk[kMaxSteps][kMaxSteps], qk[kMaxOutputs][kMaxSteps];
#pragma GCC unroll 4
  for (int i = 0; i < steps; ++i) {
#pragma GCC unroll 4
    for (int j = i + 1; j < steps; ++j) kk[j][i] = V::zero();
#pragma GCC unroll 2
    for (int t = 0; t < outputs; ++t) qk[t][i] = V::zero();
  }
  const auto add = [&](const auto& load) __attribute__((always_inline)) {
    Reg k[steps];
#pragma GCC unroll 4
    for (int j = 0; j < steps; ++j) {
      k[j] = load(group.k[j]);
#pragma GCC unroll 4
      for (int i = 0; i < j; ++i) kk[j][i] = V::fma(k[j], k[i], kk[j][i]);
    }
#pragma GCC unroll 2
    for (int t = 0; t < outputs; ++t) {
      const Reg q = load(group.q[t]);
      // Of two outputs the first sees one micro-step.
#pragma GCC unroll 4
      for (int i = 0; i < (outputs == 2 ? t + 1 : steps); ++i) {
        qk[t][i] = V::fma(q, k[i], qk[t][i]);
      }
    }
  };
  int64_t at = 0;
  for (; at + V::lanes <= K; at += V::lanes) {
    add([at](const Real* row) __attribute__((always_inline)) { return V::load(row + at); });
  }
  if (at < K) {
    add([at, K](const Real* row)
            __attribute__((always_inline)) { return V::load_first(row + at, K - at); });
  }
#pragma GCC unroll 4
  for (int i = 0; i < steps; ++i) {
#pragma GCC unroll 4
    for (int j = i + 1; j < steps; ++j) products.kk[j][i] = V::sum(kk[j][i]);
#pragma GCC unroll 2
    for (int t = 0; t < outputs; ++t) products.qk[t][i] = V::sum(qk[t][i]);
  }
}

template <class Real>
void group_products(const Group<Real>& group, int64_t K, Products<Real>& products) {
  switch (group.shape) {
    case 1: return products_of<Real, 1, 1>(group, K, products);
    case 2: return products_of<Real, 2, 0>(group, K, products);
    case 3: return products_of<Real, 2, 1>(group, K, products);
    case 4: return products_of<Real, 2, 2>(group, K, products);
    case 5: return products_of<Real, 3, 1>(group, K, products);
    default: return;
  }
}

template <class Real>
void transpose(const Real* from, int64_t from_row, int64_t rows, int64_t columns, Real* to,
               int64_t to_row) {
  constexpr int64_t block = Vec<Real>::block;
  const int64_t whole_rows = rows / block * block, whole_columns = columns / block * block;
  for (int64_t r = 0; r < whole_rows; r += block) {
    for (int64_t c = 0; c < whole_columns; c += block) {
      Vec<Real>::transpose_block(from + r * from_row + c, from_row, to + c * to_row + r, to_row);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c) {
      to[c * to_row + r] = from[r * from_row + c];
    }
  }
}

}  // namespace
}  // namespace nnkernels::deltaproduct
