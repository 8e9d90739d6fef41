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

// Outputs of this size are written past the caches: rows of a tile lie far apart, so that ordinary
// stores would each wait for their line to be read first.
constexpr int64_t kStreamBytes = 1 << 20;

// One row of a tile: output row m, columns n0 to n0 + n.
struct Row {
  const Store& store;
  const int32_t* counts;
  const int32_t* corr;  // nullptr: none
  int64_t m, n0, n;

  template <class T>
  void dots(T* out) const {
    const int32_t base = store.base, scale = store.scale, shift = store.shift;
    if (corr == nullptr) {
      for (int64_t j = 0; j < n; ++j)
        out[j] = static_cast<T>(base + ((scale * counts[j]) >> shift));
      return;
    }
    const int32_t corr_scale = store.corr_scale;
    for (int64_t j = 0; j < n; ++j) {
      out[j] = static_cast<T>(base + ((scale * counts[j]) >> shift) - corr_scale * corr[j]);
    }
  }
};

Row row_of(const Store& store, const Tile& tile, int64_t row) {
  const int32_t* corr = store.corr != nullptr ? store.corr[tile.m0 + row] : nullptr;
  return {store,
          tile.counts + row * tile.stride,
          corr != nullptr ? corr + tile.n0 : nullptr,
          store.first_row + tile.m0 + row,
          tile.n0,
          tile.columns};
}

void to_float16(const float* x, int64_t n, uint16_t* out) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  for (; i < n; ++i) out[i] = word_to_float16(word_of(x[i]));
}

typedef float Floats __attribute__((vector_size(32)));

// Scales and shifts a row in the order of operations that binary.h promises.
void affine_row(const Row& row, float* y) {
  const Epilogue& e = row.store.epilogue;
  const float* row_scale = e.row_scale != nullptr ? e.row_scale + row.m : nullptr;
  const float* column_scale = e.column_scale != nullptr ? e.column_scale + row.n0 : nullptr;
  const float* bias = e.bias != nullptr ? e.bias + row.n0 : nullptr;
  if (row_scale == nullptr && column_scale == nullptr && bias == nullptr) return;
  int64_t j = 0;
  for (; j + 8 <= row.n; j += 8) {
    Floats value, other;
    memcpy(&value, y + j, sizeof value);
    if (row_scale != nullptr) value *= *row_scale;
    if (column_scale != nullptr) {
      memcpy(&other, column_scale + j, sizeof other);
      value *= other;
    }
    if (bias != nullptr) {
      memcpy(&other, bias + j, sizeof other);
      value += other;
    }
    memcpy(y + j, &value, sizeof value);
  }
  for (; j < row.n; ++j) {
    if (row_scale != nullptr) y[j] *= *row_scale;
    if (column_scale != nullptr) y[j] *= column_scale[j];
    if (bias != nullptr) y[j] += bias[j];
  }
}

void store_row(const Row& row, void* out) {
  const Type type = row.store.epilogue.type;
  const int64_t n = row.n;
  if (type == Type::int32) return row.dots(static_cast<int32_t*>(out));
  if (type == Type::int16) return row.dots(static_cast<int16_t*>(out));
  float buffer[kTileColumns];
  float* y = type == Type::float32 ? static_cast<float*>(out) : buffer;
  row.dots(y);
  affine_row(row, y);
  auto* narrow = static_cast<uint16_t*>(out);
  if (type == Type::bfloat16) {
    for (int64_t j = 0; j < n; ++j) narrow[j] = word_to_bfloat16(word_of(y[j]));
  } else if (type == Type::float16) {
    to_float16(y, n, narrow);
  }
}

void store_values(const Store& store, const Tile& tile) {
  // Rows collected before they are scattered.
  constexpr int64_t block = 16;
  const int64_t size = type_size(store.epilogue.type);
  const auto address = [&](int64_t m) {
    return static_cast<char*>(store.epilogue.out) +
           (m / store.plane * store.plane_stride + m % store.plane * store.row_stride +
            tile.n0 * store.column_stride) *
               size;
  };
  alignas(64) char rows[block * kTileColumns * 4];
  if (store.column_stride == 1) {
    const int64_t bytes = tile.columns * size;
    const bool streamed = store.M * store.N * size >= kStreamBytes && bytes % 64 == 0 &&
                          store.row_stride * size % 64 == 0 &&
                          reinterpret_cast<uintptr_t>(address(store.first_row)) % 64 == 0;
    for (int64_t i = 0; i < tile.rows; ++i) {
      const Row row = row_of(store, tile, i);
      store_row(row, streamed ? rows : address(row.m));
      if (streamed) Vec::stream(rows, bytes, address(row.m));
    }
    return;
  }
  for (int64_t i = 0; i < tile.rows;) {
    const int64_t m = store.first_row + tile.m0 + i;
    // A block stays within a plane.
    int64_t count = store.plane - m % store.plane;
    if (count > block) count = block;
    if (count > tile.rows - i) count = tile.rows - i;
    for (int64_t r = 0; r < count; ++r) {
      store_row(row_of(store, tile, i + r), rows + r * tile.columns * size);
    }
    if (size == 4) {
      Vec::transpose_to(reinterpret_cast<const uint32_t*>(rows), count, tile.columns, tile.columns,
                        reinterpret_cast<uint32_t*>(address(m)), store.column_stride);
    } else {
      Vec::transpose_to(reinterpret_cast<const uint16_t*>(rows), count, tile.columns, tile.columns,
                        reinterpret_cast<uint16_t*>(address(m)), store.column_stride);
    }
    i += count;
  }
}

void store_bits(const Store& store, const Tile& tile) {
  // dir * dot < limit stands for all three rules.
  int32_t limits[kTileColumns], dirs[kTileColumns];
  for (int64_t j = 0; j < tile.columns; ++j) {
    const int32_t thresh = store.epilogue.thresh[tile.n0 + j];
    dirs[j] = store.epilogue.dir[tile.n0 + j];
    // Dots are above INT32_MIN, so its negative may be rounded down.
    limits[j] = dirs[j] > 0   ? thresh
                : dirs[j] < 0 ? -(thresh == INT32_MIN ? thresh + 1 : thresh)
                              : thresh != 0;
  }
  const int64_t words = ceil_div(tile.columns, 32);
  const bool last = tile.n0 + tile.columns == store.N;
  for (int64_t i = 0; i < tile.rows; ++i) {
    int32_t below[kTileColumns];
    const Row row = row_of(store, tile, i);
    row.dots(below);
    for (int64_t j = 0; j < tile.columns; ++j) below[j] = dirs[j] * below[j] < limits[j];
    for (int64_t j = tile.columns; j < words * 32; ++j) below[j] = 0;
    auto* out = static_cast<uint32_t*>(store.epilogue.out) + row.m * store.row_stride;
    for (int64_t word = 0; word < words; ++word) {
      out[tile.n0 / 32 + word] = Vec::mask32<int32_t>(below + 32 * word, -1, 0, 0);
    }
    // The words after the last column are pad.
    for (int64_t word = tile.n0 / 32 + words; last && word < store.row_stride; ++word)
      out[word] = 0;
  }
}

void store_tile(const Store& store, const Tile& tile) {
  if (store.epilogue.dir != nullptr) {
    store_bits(store, tile);
  } else {
    store_values(store, tile);
  }
}

}  // namespace
}  // namespace nnkernels::binary
