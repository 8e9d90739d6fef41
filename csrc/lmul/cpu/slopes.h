// The gradient of mode bits, grad="exact": sums of g * slope(x, y), where the slope depends on both
// operands of the product. P(y) 2^floor(s) is the word of y with the fraction of x and c added to
// its mantissa, less the mantissa: an addition, a mask and an FMA.
#pragma once

#include "lmul/cpu/multiply.h"

namespace nnkernels::lmul {
namespace {

// R rows of g, G column groups of y and as many fractions, rows `fraction_stride` apart.
template <int R, int G>
void slope_tile(const uint32_t* g, const Columns& y, const uint32_t* fractions,
                int64_t fraction_stride, float* sums) {
  constexpr int V = G * kVectors;
  Float sum[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) sum[r][v] = Vec::set(0.0f);
  }
  for (int64_t k = 0; k < y.kc; ++k) {
    Int words[V], masks[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const int64_t group = v / kVectors, lane = v % kVectors * Vec::lanes;
      words[v] = Vec::load(y.words + (group * y.packed_kc + k) * kGroup + lane);
      // A zero y has slope 0, whatever the fraction.
      masks[v] = Vec::where(Vec::not_equal(words[v], Vec::set(0u)), Vec::set(kPowerMask));
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Float upstream = Vec::as_float(Vec::broadcast(g + r * kRowStride + k));
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const Int fraction = Vec::load(fractions + r * fraction_stride + v * Vec::lanes);
        const Int slope = Vec::bit_and(Vec::add(words[v], fraction), masks[v]);
        sum[r][v] = Vec::fma(upstream, Vec::as_float(slope), sum[r][v]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      Vec::store(sums + r * kTileColumns + v * Vec::lanes, Vec::as_int(sum[r][v]));
    }
  }
}

// The same for infinite, NaN and very large y.
void slope_oracle(const uint32_t* g, const Columns& y, const uint32_t* fractions,
                  int64_t fraction_stride, int64_t rows, float* sums) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < y.count; ++column) {
      const uint32_t* at = y.words + column / kGroup * y.packed_kc * kGroup + column % kGroup;
      // slope() takes x and c apart; their sum is all that counts.
      const uint32_t fraction = fractions[row * fraction_stride + column];
      const uint32_t x = kOne | (fraction & kMantissaMask);
      float sum = 0.0f;
      for (int64_t k = 0; k < y.kc; ++k) {
        const uint32_t word = at[k * kGroup];
        const float upstream = float_of(g[row * kRowStride + k]) * slope_factor(Mode::bits, word);
        const uint32_t steepness = slope(Mode::bits, x, word, fraction & ~kMantissaMask);
        sum = __builtin_fmaf(upstream, float_of(steepness), sum);
      }
      sums[row * kTileColumns + column] = sum;
    }
  }
}

template <int R, int G>
void slope_tiles(const uint32_t* g, const Columns& y, const uint32_t* fractions,
                 int64_t fraction_stride, int64_t rows, float* sums) {
  if (rows == R) return slope_tile<R, G>(g, y, fractions, fraction_stride, sums);
  for (int64_t row = 0; row < rows; ++row) {
    slope_tile<1, G>(g + row * kRowStride, y, fractions + row * fraction_stride, fraction_stride,
                     sums + row * kTileColumns);
  }
}

void multiply_slopes(RowBlock& block, const Columns& columns, const uint32_t* fractions,
                     int64_t fraction_stride, float* c, int64_t c_stride, bool first) {
  constexpr int R = Vec::few_rows;
  alignas(64) float sums[Vec::tile_rows * kTileColumns];
  for (int64_t column = 0; column < columns.count; column += kTileColumns) {
    const int64_t left = columns.count - column;
    const Columns panel = columns.slice(column, left < kTileColumns ? left : kTileColumns);
    Range range;
    for (int64_t group = 0; group < panel.groups(); ++group) range.add(panel.ranges[group]);
    // Two more could overflow the exponent.
    const bool oracle = range.nonfinite || range.high >= static_cast<int>(kLargeSlope >> 23);
    for (int64_t row = 0; row < block.rows; row += R) {
      const int64_t rows = block.rows - row < R ? block.rows - row : R;
      const uint32_t* g = block.form(kWords) + row * kRowStride;
      const uint32_t* x = fractions + row * fraction_stride + column;
      if (oracle) {
        slope_oracle(g, panel, x, fraction_stride, rows, sums);
      } else if (Vec::tile_groups == 2 && panel.groups() == 2) {
        slope_tiles<R, Vec::tile_groups>(g, panel, x, fraction_stride, rows, sums);
      } else {
        slope_tiles<R, 1>(g, panel, x, fraction_stride, rows, sums);
      }
      add_tile(sums, rows, panel.count, 0.0f, c + row * c_stride + column, c_stride, first);
    }
  }
}

}  // namespace
}  // namespace nnkernels::lmul
