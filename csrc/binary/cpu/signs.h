// Products of floats with +-1 from bits, for the gradients. Included by one file per instruction
// set. Every product is exact and the order of the sums is fixed, so all agree bit for bit.
#pragma once

#include "binary/cpu/engine.h"

namespace nnkernels::binary {
namespace {

constexpr int kStrip = Vec::grad_vectors * Vec::float_lanes;  // columns of a register tile

// c[i][strip] += the sum over j, ascending, of a[j][i] * signs[j].
template <int R>
void sign_tile(const float* a, const float* signs, int64_t depth, float* c, int64_t c_stride) {
  constexpr int V = Vec::grad_vectors;
  Vec::Float sums[R][V] = {};
  for (int64_t j = 0; j < depth; ++j, a += kGradRows, signs += kStrip) {
    Vec::Float s[V];
    for (int v = 0; v < V; ++v) s[v] = Vec::load_float(signs + v * Vec::float_lanes);
    for (int i = 0; i < R; ++i) {
      const Vec::Float x = Vec::broadcast(a + i);
      for (int v = 0; v < V; ++v) sums[i][v] = Vec::multiply_add(x, s[v], sums[i][v]);
    }
  }
  for (int i = 0; i < R; ++i) {
    for (int v = 0; v < V; ++v) {
      float* at = c + i * c_stride + v * Vec::float_lanes;
      Vec::store_float(at, Vec::load_float(at) + sums[i][v]);
    }
  }
}

void float_bits(const float* a, int64_t m, const uint8_t* const* rows, int64_t depth,
                int64_t first_bit, int64_t columns, float* c, int64_t c_stride) {
  alignas(64) float signs[kGradDepth * kStrip];
  for (int64_t k = 0; k < columns; k += kStrip) {
    for (int64_t j = 0; j < depth; ++j) {
      float* at = signs + j * kStrip;
      if (rows[j] == nullptr) {
        memset(at, 0, kStrip * sizeof(float));
        continue;
      }
      for (int v = 0; v < kStrip; v += Vec::float_lanes) {
        Vec::store_float(at + v, Vec::signs(rows[j], first_bit + k + v));
      }
    }
    int64_t i = 0;
    for (; i + Vec::grad_rows <= m; i += Vec::grad_rows) {
      sign_tile<Vec::grad_rows>(a + i, signs, depth, c + i * c_stride + k, c_stride);
    }
    for (; i < m; ++i) sign_tile<1>(a + i, signs, depth, c + i * c_stride + k, c_stride);
  }
}

}  // namespace
}  // namespace nnkernels::binary
