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

bool is_large(const Store& store) {
  return store.M * store.N * type_size(store.epilogue.type) >= kStreamBytes;
}

bool in_lines(const void* p, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % 64 == 0 && bytes % 64 == 0;
}

// Output row m, from column n0 on.
char* row_address(const Store& store, int64_t m, int64_t n0) {
  const int64_t at = m / store.plane * store.plane_stride + m % store.plane * store.row_stride +
                     n0 * store.column_stride;
  return static_cast<char*>(store.epilogue.out) + at * type_size(store.epilogue.type);
}

void store_rows(const Store& store, const Tile& tile) {
  alignas(64) char values[kTileColumns * 4];
  const int64_t bytes = tile.columns * type_size(store.epilogue.type);
  const bool large = is_large(store);
  for (int64_t i = 0; i < tile.rows; ++i) {
    const Row row = row_of(store, tile, i);
    char* out = row_address(store, row.m, row.n0);
    if (large && in_lines(out, bytes)) {
      store_row(row, values);
      Vec::stream(values, bytes, out);
    } else {
      store_row(row, out);
    }
  }
}

// For outputs whose columns are planes: a cache line's worth of rows at a time.
template <class T>
void store_planes(const Store& store, const Tile& tile) {
  constexpr int64_t block = 64 / sizeof(T);
  alignas(64) T values[block * kTileColumns], turned[kTileColumns * block];
  const bool large = is_large(store);
  for (int64_t i = 0; i < tile.rows;) {
    const int64_t m = store.first_row + tile.m0 + i;
    // A block stays within an image.
    int64_t count = store.plane - m % store.plane;
    if (count > block) count = block;
    if (count > tile.rows - i) count = tile.rows - i;
    for (int64_t r = 0; r < count; ++r) {
      store_row(row_of(store, tile, i + r), values + r * tile.columns);
    }
    auto* out = reinterpret_cast<T*>(row_address(store, m, tile.n0));
    if (large && count == block && in_lines(out, store.column_stride * sizeof(T))) {
      Vec::transpose_to(values, count, tile.columns, tile.columns, turned, block);
      for (int64_t j = 0; j < tile.columns; ++j) {
        Vec::stream(turned + j * block, 64, out + j * store.column_stride);
      }
    } else {
      Vec::transpose_to(values, count, tile.columns, tile.columns, out, store.column_stride);
    }
    i += count;
  }
}

void store_values(const Store& store, const Tile& tile) {
  if (store.column_stride == 1) {
    store_rows(store, tile);
  } else if (type_size(store.epilogue.type) == 4) {
    store_planes<uint32_t>(store, tile);
  } else {
    store_planes<uint16_t>(store, tile);
  }
  if (is_large(store)) Vec::finish_streams();
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
