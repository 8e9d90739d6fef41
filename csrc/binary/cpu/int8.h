// int8 times binary or ternary weights. Included by one file per instruction set.
//
// A weight w in {-1, 0, 1} is packed as the byte w + 1, so that sum x * w = sum x * (w + 1) - sum x
// and the unsigned-times-signed byte products fit: two of them are at most 512 in magnitude, and 64
// such pairs fit 16 bits.
#pragma once

#include "binary/cpu/engine.h"

namespace nnkernels::binary {
namespace {

constexpr int64_t kInt8Columns = 2 * Vec::int8_lanes;
constexpr int64_t kInt8Flush = 64;

// The four low bits of a nibble as bytes 0 or 1.
inline uint32_t spread_bits(uint32_t nibble) { return (nibble * 0x00204081u) & 0x01010101u; }

// t[quad][column][4]: bytes w + 1 of four successive k. Columns past `columns` are zeros.
void expand(const Rows& sign, const Rows* mask, int64_t columns, int64_t quads, uint8_t* t) {
  for (int64_t column = 0; column < kInt8Columns; ++column) {
    const bool real = column < columns;
    for (int64_t quad = 0; quad < quads; ++quad) {
      uint32_t bytes = 0;
      if (real) {
        const int shift = quad % 2 * 4;
        const uint32_t negative = sign[column][quad / 2] >> shift & 15;
        const uint32_t present = mask != nullptr ? (*mask)[column][quad / 2] >> shift & 15u : 15u;
        bytes = 0x01010101u + spread_bits(present) - 2 * spread_bits(negative & present);
      }
      memcpy(t + (quad * kInt8Columns + column) * 4, &bytes, 4);
    }
  }
}

template <int R>
void int8_tile(const int8_t* x, int64_t x_pitch, const uint8_t* t, int64_t quads, int32_t* sums,
               int64_t stride) {
  constexpr int64_t step = kInt8Columns * 4;
  for (int r = 0; r < R; ++r) memset(sums + r * stride, 0, kInt8Columns * sizeof(int32_t));
  for (int64_t begin = 0; begin < quads; begin += kInt8Flush) {
    const int64_t end = begin + kInt8Flush < quads ? begin + kInt8Flush : quads;
    Vec::Halves acc[R][2] = {};
    for (int64_t quad = begin; quad < end; ++quad) {
      const Vec::Bytes first = Vec::load_bytes(t + quad * step);
      const Vec::Bytes second = Vec::load_bytes(t + quad * step + step / 2);
      for (int r = 0; r < R; ++r) {
        const Vec::Bytes four = Vec::broadcast4(x + r * x_pitch + 4 * quad);
        acc[r][0] = Vec::multiply_add(acc[r][0], first, four);
        acc[r][1] = Vec::multiply_add(acc[r][1], second, four);
      }
    }
    for (int r = 0; r < R; ++r) {
      Vec::add_pairs(acc[r][0], sums + r * stride);
      Vec::add_pairs(acc[r][1], sums + r * stride + Vec::int8_lanes);
    }
  }
}

void int8_product(const int8_t* x, int64_t x_pitch, int64_t rows, const uint8_t* t, int64_t quads,
                  int32_t* sums, int64_t stride) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    int8_tile<4>(x + r * x_pitch, x_pitch, t, quads, sums + r * stride, stride);
  }
  for (; r < rows; ++r) {
    int8_tile<1>(x + r * x_pitch, x_pitch, t, quads, sums + r * stride, stride);
  }
}

}  // namespace
}  // namespace nnkernels::binary
