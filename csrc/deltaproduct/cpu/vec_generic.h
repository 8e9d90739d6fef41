// Vectors of plain C++ (GNU vector types), 16 bytes: the scalar build, for every machine.
#pragma once

#include <cstring>

#include "deltaproduct/deltaproduct_math.h"

namespace nnkernels::deltaproduct {
namespace {

template <class Real>
struct Vec {
  static constexpr int lanes = 16 / sizeof(Real);
  // Vectors in a row of a panel; rows and vectors of a tile of a product.
  static constexpr int panel_vectors = 2, tile_rows = 2, tile_vectors = 4;
  typedef Real Reg __attribute__((vector_size(16)));

  static NNK_VEC Reg zero() { return Reg{}; }
  static NNK_VEC Reg set(Real x) { return Reg{} + x; }
  static NNK_VEC Reg load(const Real* p) {
    Reg x;
    memcpy(&x, p, sizeof x);
    return x;
  }
  static NNK_VEC void store(Real* p, Reg x) { memcpy(p, &x, sizeof x); }
  // The first `count` < lanes numbers, then zeros.
  static NNK_VEC Reg load_first(const Real* p, int64_t count) {
    Reg x{};
    for (int64_t i = 0; i < count; ++i) x[i] = p[i];
    return x;
  }
  static NNK_VEC Reg mul(Reg a, Reg b) { return a * b; }
  static NNK_VEC Reg add(Reg a, Reg b) { return a + b; }
  // a * b + c and c - a * b.
  static NNK_VEC Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
  static NNK_VEC Reg fnma(Reg a, Reg b, Reg c) { return c - a * b; }
  static NNK_VEC Real sum(Reg a) {
    Real total = a[0];
    for (int i = 1; i < lanes; ++i) total += a[i];
    return total;
  }

  static NNK_VEC Reg widen(Type type, const void* p, int64_t index) {
    Reg x;
    for (int i = 0; i < lanes; ++i) x[i] = load_number<Real>(type, p, index + i);
    return x;
  }
  static NNK_VEC void narrow(Type type, void* p, int64_t index, Reg x) {
    for (int i = 0; i < lanes; ++i) store_number<Real>(type, p, index + i, x[i]);
  }

  // block x block numbers.
  static constexpr int block = 4;
  static NNK_VEC void transpose_block(const Real* from, int64_t from_row, Real* to,
                                      int64_t to_row) {
    for (int r = 0; r < block; ++r) {
      for (int c = 0; c < block; ++c) to[c * to_row + r] = from[r * from_row + c];
    }
  }
};

}  // namespace
}  // namespace nnkernels::deltaproduct
