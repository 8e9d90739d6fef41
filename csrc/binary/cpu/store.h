// The epilogues: from counts to outputs. Plain loops that the compiler vectorises; included by one
// file per instruction set.
#pragma once

#include "binary/cpu/engine.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace nnkernels::binary {
namespace {

// Columns of a tile at most.
constexpr int64_t kTileColumns = 2 * kPanel;

inline void to_float16(const float* x, int64_t n, uint16_t* out) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  for (; i < n; ++i) out[i] = word_to_float16(word_of(x[i]));
}

// One row of `n` dots to outputs of one type.
void store_row(const Store& store, const int32_t* dots, int64_t m, int64_t n0, int64_t n,
               void* out) {
  const Epilogue& e = store.epilogue;
  if (e.type == Type::int32) {
    memcpy(out, dots, static_cast<size_t>(n) * sizeof(int32_t));
    return;
  }
  if (e.type == Type::int16) {
    for (int64_t j = 0; j < n; ++j) static_cast<int16_t*>(out)[j] = static_cast<int16_t>(dots[j]);
    return;
  }
  float buffer[kTileColumns];
  float* y = e.type == Type::float32 ? static_cast<float*>(out) : buffer;
  for (int64_t j = 0; j < n; ++j) y[j] = static_cast<float>(dots[j]);
  if (e.row_scale != nullptr) {
    for (int64_t j = 0; j < n; ++j) y[j] *= e.row_scale[m];
  }
  if (e.column_scale != nullptr) {
    for (int64_t j = 0; j < n; ++j) y[j] *= e.column_scale[n0 + j];
  }
  if (e.bias != nullptr) {
    for (int64_t j = 0; j < n; ++j) y[j] += e.bias[n0 + j];
  }
  auto* narrow = static_cast<uint16_t*>(out);
  if (e.type == Type::bfloat16) {
    for (int64_t j = 0; j < n; ++j) narrow[j] = word_to_bfloat16(word_of(y[j]));
  } else if (e.type == Type::float16) {
    to_float16(y, n, narrow);
  }
}

// One row of `n` dots to whole words of bits.
void store_bits(const Epilogue& e, const int32_t* dots, int64_t n0, int64_t n, uint32_t* words) {
  for (int64_t j0 = 0; j0 < n; j0 += 32) {
    const int64_t count = n - j0 < 32 ? n - j0 : 32;
    uint32_t word = 0;
    for (int64_t j = 0; j < count; ++j) {
      const int64_t column = n0 + j0 + j;
      word |= threshold_bit(dots[j0 + j], e.thresh[column], e.dir[column]) << j;
    }
    words[j0 / 32] = word;
  }
}

void row_dots(const Store& store, const Tile& tile, int64_t row, int32_t* dots) {
  const int32_t* counts = tile.counts + row * tile.stride;
  for (int64_t j = 0; j < tile.columns; ++j) {
    dots[j] = store.base + ((store.scale * counts[j]) >> store.shift);
  }
  if (store.corr == nullptr) return;
  const int32_t* corr = store.corr[tile.m0 + row];
  if (corr == nullptr) return;
  for (int64_t j = 0; j < tile.columns; ++j) dots[j] -= store.corr_scale * corr[tile.n0 + j];
}

// Copies x [rows][columns] to out[row * row_stride + column * column_stride].
template <class T>
void scatter(const void* x, int64_t rows, int64_t columns, void* out, int64_t row_stride,
             int64_t column_stride) {
  const auto* from = static_cast<const T*>(x);
  auto* to = static_cast<T*>(out);
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t i = 0; i < rows; ++i) to[i * row_stride + j * column_stride] = from[i * columns + j];
  }
}

void store_tile(const Store& store, const Tile& tile) {
  const Epilogue& e = store.epilogue;
  const bool to_bits = e.dir != nullptr;
  const int64_t size = to_bits ? 4 : type_size(e.type);
  // Rows collected before they are scattered.
  constexpr int64_t block = 16;
  alignas(64) char rows[block * kTileColumns * 4];
  int32_t dots[kTileColumns];
  const auto address = [&](int64_t m, int64_t n) {
    return static_cast<char*>(e.out) +
           (m / store.plane * store.plane_stride + m % store.plane * store.row_stride +
            n * store.column_stride) *
               size;
  };
  for (int64_t i = 0; i < tile.rows;) {
    const int64_t m = store.first_row + tile.m0 + i;
    row_dots(store, tile, i, dots);
    if (to_bits) {
      auto* words = reinterpret_cast<uint32_t*>(address(m, 0)) + tile.n0 / 32;
      store_bits(e, dots, tile.n0, tile.columns, words);
      // The row's last words are pad.
      if (tile.n0 + tile.columns == store.N) {
        const int64_t first = ceil_div(store.N, 32), last = row_words(store.N);
        memset(reinterpret_cast<uint32_t*>(address(m, 0)) + first, 0, (last - first) * 4);
      }
      ++i;
    } else if (store.column_stride == 1) {
      store_row(store, dots, m, tile.n0, tile.columns, address(m, tile.n0));
      ++i;
    } else {
      int64_t count = store.plane - m % store.plane;
      if (count > block) count = block;
      if (count > tile.rows - i) count = tile.rows - i;
      for (int64_t r = 0; r < count; ++r) {
        if (r > 0) row_dots(store, tile, i + r, dots);
        store_row(store, dots, m + r, tile.n0, tile.columns, rows + r * tile.columns * size);
      }
      if (size == 4) {
        scatter<uint32_t>(rows, count, tile.columns, address(m, tile.n0), store.row_stride,
                          store.column_stride);
      } else {
        scatter<uint16_t>(rows, count, tile.columns, address(m, tile.n0), store.row_stride,
                          store.column_stride);
      }
      i += count;
    }
  }
}

}  // namespace
}  // namespace nnkernels::binary
