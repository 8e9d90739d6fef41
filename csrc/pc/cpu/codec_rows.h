// Rows of states: products, rescaling, columns of B; for one instruction set.
#pragma once

#include <algorithm>
#include <cstring>

#include "pc/codec_math.h"
#include "pc/cpu/codec_engine.h"
#include "pc/cpu/shuffle.h"

namespace nnkernels::pc {
namespace {

using F = Vec<float>;
using Reg = F::Reg;
using Words = F::Words;

// Rows that a product finishes before they leave the first cache.
constexpr int64_t kCodecChunk = 48;

// Rows of a tile of `columns` vectors: no more sums than there are registers.
template <int columns>
constexpr int kSums = (kVecBytes == 64   ? 24
                       : kVecBytes == 32 ? 12
                                         : 8) /
                      columns;

template <int vectors>
NNK_VEC int64_t row_width(int64_t width) {
  return vectors > 0 ? vectors * F::lanes : width;
}

// out[r] = sum_k in[r, k] w[k], k ascending, for a tile of rows and columns.
template <int rows, int columns>
NNK_VEC void codec_tile(const float* in, int64_t in_row, const float* w, int64_t w_row, int64_t K,
                        float* out, int64_t out_row) {
  Reg sums[rows][columns];
#pragma GCC unroll 24
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) sums[r][c] = F::zero();
  }
  for (int64_t k = 0; k < K; ++k, w += w_row) {
    Reg weights[columns];
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) weights[c] = F::load(w + c * F::lanes);
#pragma GCC unroll 24
    for (int r = 0; r < rows; ++r) {
      const Reg x = F::set(in[r * in_row + k]);
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) sums[r][c] = F::fma(x, weights[c], sums[r][c]);
    }
  }
#pragma GCC unroll 24
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) F::store(out + r * out_row + c * F::lanes, sums[r][c]);
  }
}

template <int columns>
NNK_VEC void codec_columns(const float* in, int64_t in_row, const float* w, int64_t w_row,
                           int64_t K, int64_t rows, float* out, int64_t out_row) {
  constexpr int most = kSums<columns>, half = (most + 1) / 2;
  int64_t r = 0;
  for (; r + most <= rows; r += most) {
    codec_tile<most, columns>(in + r * in_row, in_row, w, w_row, K, out + r * out_row, out_row);
  }
  for (; r + half <= rows; r += half) {
    codec_tile<half, columns>(in + r * in_row, in_row, w, w_row, K, out + r * out_row, out_row);
  }
  for (; r < rows; ++r) {
    codec_tile<1, columns>(in + r * in_row, in_row, w, w_row, K, out + r * out_row, out_row);
  }
}

// out[r] = sum_{k < K} in[r, k] w[k] for rows of `width` numbers.
template <int vectors>
NNK_VEC void codec_multiply(const float* in, const float* w, int64_t K, int64_t rows, int64_t row,
                            float* out) {
  const int64_t width = row_width<vectors>(row);
  if constexpr (vectors == 1 || vectors == 2 || vectors == 4) {
    codec_columns<vectors>(in, width, w, width, K, rows, out, width);
  } else {
    int64_t column = 0;
    for (; column + 2 * F::lanes <= width; column += 2 * F::lanes) {
      codec_columns<2>(in, width, w + column, width, K, rows, out + column, width);
    }
    if (column < width)
      codec_columns<1>(in, width, w + column, width, K, rows, out + column, width);
  }
}

// Sums are of numbers >= 0: their order is that of their bits.
NNK_VEC Words larger(Words a, Words b) { return a > b ? a : b; }

NNK_VEC Reg scale_of(Words most) {
  const Reg maximum = F::set(Shuffle<float>::largest(F::reals(most)));
  return F::reals(static_cast<int32_t>(kUnitBits) -
                  (F::words(maximum) & static_cast<int32_t>(kExponentBits)));
}

NNK_VEC Reg scaled(Reg x, Reg scale) {
  x = x * scale;
  return x >= kLeast ? x : F::zero();
}

// to[i] = product(i), rescaled; i counts vectors.
template <int vectors, class Product>
NNK_VEC void write_row(int64_t row, float* to, Product&& product) {
  if constexpr (vectors > 0) {
    Reg x[vectors];
    Words most{};
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) {
      x[i] = product(i);
      most = larger(most, F::words(x[i]));
    }
    const Reg scale = scale_of(most);
#pragma GCC unroll 8
    for (int i = 0; i < vectors; ++i) F::store(to + i * F::lanes, scaled(x[i], scale));
  } else {
    const int64_t count = row / F::lanes;
    Words most{};
    for (int64_t i = 0; i < count; ++i) {
      const Reg x = product(i);
      F::store(to + i * F::lanes, x);
      most = larger(most, F::words(x));
    }
    const Reg scale = scale_of(most);
    for (int64_t i = 0; i < count; ++i) {
      F::store(to + i * F::lanes, scaled(F::load(to + i * F::lanes), scale));
    }
  }
}

template <int vectors>
NNK_VEC void rescale_row(int64_t row, float* x) {
  write_row<vectors>(row, x, [&](int64_t i) { return F::load(x + i * F::lanes); });
}

template <int vectors>
NNK_VEC void multiply_row(int64_t row, float* x, const float* by) {
  write_row<vectors>(
      row, x, [&](int64_t i) { return F::load(x + i * F::lanes) * F::load(by + i * F::lanes); });
}

// to [columns, width] from from [rows, columns]: rows become columns, padded with zeros.
NNK_VEC void transposed(const float* from, int64_t rows, int64_t columns, int64_t width,
                        float* to) {
  for (int64_t a = 0; a < width; a += F::lanes) {
    int64_t v = 0;
    for (; v + F::lanes <= columns; v += F::lanes) {
      Reg block[F::lanes];
#pragma GCC unroll 16
      for (int i = 0; i < F::lanes; ++i) {
        block[i] = a + i < rows ? F::load(from + (a + i) * columns + v) : F::zero();
      }
      Shuffle<float>::transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < F::lanes; ++i) F::store(to + (v + i) * width + a, block[i]);
    }
    for (; v < columns; ++v) {
      for (int64_t i = a; i < a + F::lanes; ++i) {
        to[v * width + i] = i < rows ? from[i * columns + v] : 0.0f;
      }
    }
  }
}

template <int vectors>
void descend_rows(const float* alpha, const float* A, int64_t h, int64_t rows, int64_t row,
                  float* out, CodecScratch& scratch) {
  const int64_t width = row_width<vectors>(row);
  const float* w = A;
  if (width != h) {
    float* padded = scratch.weights.get(h * width);
    for (int64_t a = 0; a < h; ++a) {
      std::copy(A + a * h, A + (a + 1) * h, padded + a * width);
      std::fill(padded + a * width + h, padded + (a + 1) * width, 0.0f);
    }
    w = padded;
  }
  for (int64_t first = 0; first < rows; first += kCodecChunk) {
    const int64_t end = std::min(rows, first + kCodecChunk);
    codec_multiply<vectors>(alpha + first * width, w, h, end - first, width, out + first * width);
    for (int64_t r = first; r < end; ++r) rescale_row<vectors>(width, out + r * width);
  }
}

template <int vectors>
void absorb_rows(const float* below, const float* A, int64_t h, int64_t rows, int64_t row,
                 float* alpha, float* u, CodecScratch& scratch) {
  const int64_t width = row_width<vectors>(row);
  float* w = scratch.weights.get(h * width);
  transposed(A, h, h, width, w);
  float* beta = scratch.rows.get(kCodecChunk * width);
  for (int64_t first = 0; first < rows; first += kCodecChunk) {
    const int64_t end = std::min(rows, first + kCodecChunk);
    codec_multiply<vectors>(below + first * width, w, h, end - first, width, beta);
    for (int64_t r = first; r < end; ++r) {
      float* factor = beta + (r - first) * width;
      rescale_row<vectors>(width, factor);
      if (alpha != nullptr) multiply_row<vectors>(width, alpha + r * width, factor);
      if (u != nullptr) multiply_row<vectors>(width, u + r * width, factor);
    }
  }
}

template <int vectors>
void observe_rows(const float* B, int64_t h, int64_t K, const uint16_t* symbols, int64_t rows,
                  int64_t row, float* alpha, float* u, CodecScratch& scratch) {
  const int64_t width = row_width<vectors>(row);
  // Turning all columns costs as much as picking about K / 4 of them one by one.
  const bool all = 4 * rows >= K;
  float* leaf = scratch.leaf.get((all ? K : 1) * width);
  if (all) {
    transposed(B, h, K, width, leaf);
  } else {
    std::fill(leaf + h, leaf + width, 0.0f);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t v = symbols[r];
    const float* column = all ? leaf + v * width : leaf;
    if (!all) {
      for (int64_t a = 0; a < h; ++a) leaf[a] = B[a * K + v];
    }
    if (u != nullptr)
      std::memcpy(u + r * width, column, static_cast<size_t>(width) * sizeof(float));
    if (alpha != nullptr) multiply_row<vectors>(width, alpha + r * width, column);
  }
}

}  // namespace
}  // namespace nnkernels::pc
