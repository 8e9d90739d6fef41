// Rows of numbers: conversion, dot products, transposition.
#pragma once

#include "deltaproduct/cpu/engine.h"

namespace nnkernels::deltaproduct {
namespace {

template <class Real>
void load(Type type, const void* from, int64_t from_row, int64_t rows, int64_t columns, Real* to,
          int64_t to_row) {
  using V = Vec<Real>;
  for (int64_t r = 0; r < rows; ++r, to += to_row) {
    int64_t c = 0;
    for (; c + V::lanes <= columns; c += V::lanes) {
      V::store(to + c, V::widen(type, from, r * from_row + c));
    }
    for (; c < columns; ++c) to[c] = load_number<Real>(type, from, r * from_row + c);
    for (; c < to_row; ++c) to[c] = 0;
  }
}

template <class Real>
void store(const Real* from, int64_t from_row, int64_t rows, int64_t columns, Type type, void* to,
           int64_t to_row) {
  using V = Vec<Real>;
  for (int64_t r = 0; r < rows; ++r, from += from_row) {
    int64_t c = 0;
    for (; c + V::lanes <= columns; c += V::lanes) {
      V::narrow(type, to, r * to_row + c, V::load(from + c));
    }
    for (; c < columns; ++c) store_number<Real>(type, to, r * to_row + c, from[c]);
  }
}

// Sums of a[i] . b[i], `count` at a time.
template <class Real, int count>
NNK_VEC void dots(const Real* const (&a)[count], const Real* const (&b)[count], int64_t n,
                  Real (&sums)[count]) {
  using V = Vec<Real>;
  typename V::Reg lanes[count];
  for (int i = 0; i < count; ++i) lanes[i] = V::zero();
  int64_t at = 0;
  for (; at + V::lanes <= n; at += V::lanes) {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
      lanes[i] = V::fma(V::load(a[i] + at), V::load(b[i] + at), lanes[i]);
    }
  }
  if (at < n) {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
      lanes[i] =
          V::fma(V::load_first(a[i] + at, n - at), V::load_first(b[i] + at, n - at), lanes[i]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) sums[i] = V::sum(lanes[i]);
}

template <class Real>
Real dot(const Real* a, const Real* b, int64_t n) {
  Real sums[1];
  dots<Real, 1>({a}, {b}, n, sums);
  return sums[0];
}

template <class Real, int steps, int outputs>
NNK_VEC void products_of(const Group<Real>& group, int64_t K, Products<Real>& products) {
  constexpr int pairs = steps * (steps - 1) / 2 + (outputs == 2 ? 3 : steps * outputs);
  if constexpr (pairs > 0) {
    const Real* a[pairs];
    const Real* b[pairs];
    Real* results[pairs];
    int count = 0;
    for (int j = 1; j < steps; ++j) {
      for (int i = 0; i < j; ++i) {
        a[count] = group.k[j];
        b[count] = group.k[i];
        results[count++] = &products.kk[j][i];
      }
    }
    for (int t = 0; t < outputs; ++t) {
      for (int i = 0; i < (outputs == 2 ? t + 1 : steps); ++i) {
        a[count] = group.q[t];
        b[count] = group.k[i];
        results[count++] = &products.qk[t][i];
      }
    }
    Real sums[pairs];
    dots<Real, pairs>(a, b, K, sums);
    for (int i = 0; i < pairs; ++i) *results[i] = sums[i];
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
  for (int64_t r = 0; r < rows; r += 8) {
    for (int64_t c = 0; c < columns; ++c) {
      for (int64_t i = r; i < (r + 8 < rows ? r + 8 : rows); ++i) {
        to[c * to_row + i] = from[i * from_row + c];
      }
    }
  }
}

}  // namespace
}  // namespace nnkernels::deltaproduct
