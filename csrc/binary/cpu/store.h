// The epilogues: from counts to outputs, a vector at a time. Included by one file per instruction
// set.
#pragma once

#include <algorithm>

#include "binary/cpu/values.h"

namespace nnkernels::binary {
namespace {

// Columns of a tile at most.
constexpr int64_t kTileColumns = 2 * kPanel;

// Outputs of this size are written past the caches: rows of a tile lie far apart, so that ordinary
// stores would each wait for their line to be read first.
constexpr int64_t kStreamBytes = 1 << 20;

// Rows of a tile that are turned round together.
constexpr int64_t kPlaneRows = 64;

// From counts to dots; by value, so that a loop keeps it in registers.
struct Dots {
  Words base, scale, corr_scale;
  int32_t shift;

  explicit Dots(const Store& store)
      : base(Words{} + store.base),
        scale(Words{} + store.scale),
        corr_scale(Words{} + store.corr_scale),
        shift(store.shift) {}

  // Of the first n of a row's counts from `counts` on, and corrections, if there are any.
  Words operator()(const int32_t* counts, const int32_t* corr, int64_t n) const {
    const Words v = base + ((scale * load_some<Words>(counts, n)) >> shift);
    return corr == nullptr ? v : v - corr_scale * load_some<Words>(corr, n);
  }
};

const int32_t* counts_of(const Tile& tile, int64_t row) { return tile.counts + row * tile.stride; }
// nullptr: none.
const int32_t* corr_of(const Store& store, const Tile& tile, int64_t row) {
  const int32_t* corr = store.corr != nullptr ? store.corr[tile.m0 + row] : nullptr;
  return corr != nullptr ? corr + tile.n0 : nullptr;
}
const int32_t* advance(const int32_t* p, int64_t by) { return p != nullptr ? p + by : nullptr; }

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

// Writes whole cache lines: past the caches, or not.
void write_lines(const void* from, int64_t bytes, void* to, bool past) {
  if (past) return Vec::stream(from, bytes, to);
  const auto* at = static_cast<const char*>(from);
  for (int64_t i = 0; i < bytes; i += sizeof(Words)) {
    memcpy(static_cast<char*>(to) + i, at + i, sizeof(Words));
  }
}

template <Type type>
void store_rows(const Store& store, const Tile& tile) {
  alignas(64) Item<type> values[kTileColumns];
  const Epilogue e = store.epilogue;
  const Dots dots(store);
  const int64_t columns = tile.columns, bytes = columns * type_size(type);
  const bool large = is_large(store);
  for (int64_t i = 0; i < tile.rows; ++i) {
    const int64_t m = store.first_row + tile.m0 + i;
    const int32_t* counts = counts_of(tile, i);
    const int32_t* corr = corr_of(store, tile, i);
    for (int64_t j = 0; j < columns; j += kLanes) {
      const int64_t n = tile.n0 + j, left = columns - j;
      Value<type> y = value_of<type>(dots(counts + j, advance(corr, j), left));
      // In the order of operations that binary.h promises.
      if constexpr (is_float(type)) {
        if (e.row_scale != nullptr) y *= e.row_scale[m];
        if (e.column_scale != nullptr) y *= load_some<Floats>(e.column_scale + n, left);
        if (e.bias != nullptr) y += load_some<Floats>(e.bias + n, left);
      }
      put<type>(y, values + j);
    }
    char* out = row_address(store, m, tile.n0);
    if (bytes % 64 == 0) {
      write_lines(values, bytes, out, large && reinterpret_cast<uintptr_t>(out) % 64 == 0);
    } else {
      memcpy(out, values, static_cast<size_t>(bytes));
    }
  }
}

// For outputs whose columns are planes: a few columns of many rows at a time, so that each plane
// gets several cache lines on end. They have no row scale.
template <Type type>
void store_planes(const Store& store, const Tile& tile) {
  constexpr int64_t line = 64 / sizeof(Item<type>);
  alignas(64) Item<type> turned[kLanes][kPlaneRows];
  const Epilogue e = store.epilogue;
  const Dots dots(store);
  const bool large = is_large(store);
  for (int64_t i = 0; i < tile.rows;) {
    const int64_t m = store.first_row + tile.m0 + i;
    // A block stays within an image.
    const int64_t count =
        std::min(std::min(kPlaneRows, tile.rows - i), store.plane - m % store.plane);
    const int64_t whole = count / line * line;
    auto* out = reinterpret_cast<Item<type>*>(row_address(store, m, tile.n0));
    const bool past = large && in_lines(out, store.column_stride * sizeof *out);
    for (int64_t j = 0; j < tile.columns; j += kLanes) {
      const int64_t n = tile.n0 + j, columns = std::min(kLanes, tile.columns - j);
      for (int64_t r = 0; r < count; r += kLanes) {
        Words x[kLanes];
        for (int64_t l = 0; l < kLanes; ++l) {
          const int64_t row = i + std::min(r + l, count - 1);
          x[l] = dots(counts_of(tile, row) + j, advance(corr_of(store, tile, row), j), columns);
        }
        Vec::turn(x);
        for (int64_t l = 0; l < columns; ++l) {
          Value<type> y = value_of<type>(x[l]);
          if constexpr (is_float(type)) {
            if (e.column_scale != nullptr) y *= e.column_scale[n + l];
            if (e.bias != nullptr) y += e.bias[n + l];
          }
          put<type>(y, turned[l] + r);
        }
      }
      for (int64_t l = 0; l < columns; ++l, out += store.column_stride) {
        write_lines(turned[l], whole * type_size(type), out, past);
        memcpy(out + whole, turned[l] + whole, static_cast<size_t>(count - whole) * sizeof *out);
      }
    }
    i += count;
  }
}

void store_values(const Store& store, const Tile& tile) {
  with_type(store.epilogue.type, [&]<Type type>() {
    if (store.column_stride == 1) {
      store_rows<type>(store, tile);
    } else {
      store_planes<type>(store, tile);
    }
  });
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
  const Dots dots(store);
  for (int64_t i = 0; i < tile.rows; ++i) {
    int32_t below[kTileColumns];
    const int32_t* counts = counts_of(tile, i);
    const int32_t* corr = corr_of(store, tile, i);
    for (int64_t j = 0; j < tile.columns; j += kLanes) {
      const Words v = dots(counts + j, advance(corr, j), tile.columns - j);
      memcpy(below + j, &v, sizeof v);
    }
    for (int64_t j = 0; j < tile.columns; ++j) below[j] = dirs[j] * below[j] < limits[j];
    for (int64_t j = tile.columns; j < words * 32; ++j) below[j] = 0;
    auto* out = static_cast<uint32_t*>(store.epilogue.out) +
                (store.first_row + tile.m0 + i) * store.row_stride;
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
