// What the products are built from: kernels that count mismatches, and product(), which runs them
// block by block and hands the counts to a sink.
//
// A lookup (packed four-Russians) product has two sides. The table side is sliced: 64 of its rows
// become, per bit of K, one 64-bit word (a column of bits). The index side becomes, per chunk of
// 120 bits, 24 bytes that each choose one of the 32 patterns of 5 bits. For 64 rows of the table
// side and one chunk, a table holds for each of 24 groups and 32 patterns the mismatches of every
// row; a row of the index side then costs 24 loads for 64 * 120 products.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "binary/binary.h"
#include "binary/binary_math.h"

namespace nnkernels::binary {

constexpr int64_t kPanel = 64;       // rows that are sliced together
constexpr int64_t kChunkBits = 120;  // bits of a lookup chunk: 15 whole bytes
constexpr int64_t kGroupBits = 5;
constexpr int64_t kGroups = 24;  // per chunk
constexpr int64_t kPatterns = 32;
// Rows that are packed together when they, not the columns, lie next to each other: enough of each
// column to be read in whole cache lines.
constexpr int64_t kColumnRows = 512;
// A block of a gradient product: rows of the result, and terms of a sum.
constexpr int64_t kGradRows = 96;
constexpr int64_t kGradDepth = 256;
// Chunks whose counts fit 16 bits.
constexpr int64_t kSegment = 65535 / kChunkBits;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t chunk_count(int64_t bits) { return ceil_div(bits, kChunkBits); }

// Memory aligned to a cache line, not initialised.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count = 0) { reserve(count); }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // Grows to hold this many items. Growing drops the contents.
  T* reserve(int64_t count) {
    const int64_t bytes = (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    if (bytes > bytes_) {
      std::free(data_);
      bytes_ = 0;
      data_ = static_cast<T*>(std::aligned_alloc(64, static_cast<size_t>(bytes)));
      if (data_ == nullptr) throw std::bad_alloc();
      bytes_ = bytes;
    }
    return data_;
  }
  T* data() { return data_; }

 private:
  T* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Rows of bits, `bytes` long and `pitch` bytes apart. Bits from K on are 0.
struct Rows {
  const uint8_t* data = nullptr;
  int64_t pitch = 0;
  int64_t bytes = 0;  // a multiple of 8

  const uint8_t* operator[](int64_t row) const { return data + row * pitch; }
  Rows from(int64_t row) const { return {data + row * pitch, pitch, bytes}; }
};

inline Rows rows_of(const Bits& bits, int64_t K, int64_t batch = 0) {
  return {reinterpret_cast<const uint8_t*>(bits.data + batch * bits.batch_stride),
          bits.row_stride * 4, row_words(K) * 4};
}

// What a bit tells about an element.
enum class Plane : int { negative, inside, nonzero };

// How counts become outputs: value = base + ((scale * count) >> shift) - corr, then the epilogue.
struct Store {
  Epilogue epilogue;  // vectors and `out` of this batch
  int64_t M = 0, N = 0;
  int32_t base = 0, scale = 1, shift = 0;
  // For a convolution: per row of the product a vector over N to subtract, or nullptr.
  const int32_t* const* corr = nullptr;
  int32_t corr_scale = 1;
  // Row 0 of the product is row `first_row` of the output, whose element (m, n) is at
  // (m / plane) * plane_stride + (m % plane) * row_stride + n * column_stride; for bits, row_stride
  // counts words.
  int64_t first_row = 0;
  int64_t plane = INT64_MAX, plane_stride = 0, row_stride = 0, column_stride = 1;
};

// Receives counts[m - m0][n - n0] for a tile. n0 is a multiple of kPanel.
struct Tile {
  int64_t m0 = 0, rows = 0, n0 = 0, columns = 0;
  const int32_t* counts = nullptr;
  int64_t stride = 0;
};

struct Costs;          // costs.h
struct MatrixKernels;  // amx.h

// One instruction set's kernels. All agree bit for bit. A nullptr is a kernel it lacks.
struct Kernels {
  const Costs* costs;

  // ---- packing: writes whole rows of row_words(K)
  void (*pack_row)(Type type, Plane plane, const void* x, int64_t K, uint32_t* bits);
  // Up to kColumnRows rows at once, of x[row + k * column_stride], to bits[row * pitch].
  void (*pack_columns)(Type type, Plane plane, const void* x, int64_t column_stride, int64_t rows,
                       int64_t K, uint32_t* bits, int64_t pitch);
  void (*pack_wave)(const float* x, int64_t K, float omega, uint32_t* bits);

  // ---- counting: counts[i * stride + j] = mismatches of a[i] and b[j]
  void (*popcount)(const Rows& a, int64_t m, const Rows& b, int64_t n, int32_t* counts,
                   int64_t stride);
  // n <= kPanel.
  void (*nibble)(const Rows& a, int64_t m, const Rows& b, int64_t n, int32_t* counts,
                 int64_t stride);

  // ---- lookup
  // slices[k] bit j = bit k of row j, for n <= kPanel rows and chunk_count * kChunkBits bits.
  void (*slice)(const Rows& rows, int64_t n, int64_t chunks, uint64_t* slices);
  // index[chunk][row][kGroups] = 8 * pattern.
  void (*index)(const Rows& rows, int64_t n, int64_t chunks, uint8_t* index);
  // sums[row][columns] += mismatches over `chunks` chunks, for one panel ([0]) or two ([1]) that
  // are `panel_stride` words apart. A chunk of the index has `rows` rows. The order of the columns
  // is known to widen.
  using Lookup = void (*)(const uint64_t* slices, int64_t panel_stride, const uint8_t* index,
                          int64_t rows, int64_t chunks, uint16_t* sums);
  Lookup lookup[2];
  // counts[row * stride + column] = (add ? counts : 0) + sums, for all columns of the panels.
  using Widen = void (*)(const uint16_t* sums, int64_t rows, bool add, int32_t* counts,
                         int64_t stride);
  Widen widen[2];

  const MatrixKernels* matrix;

  void (*store)(const Store& store, const Tile& tile);

  // ---- int8: sums[i * stride + j] = sum_k x[i][k] * t[j][k], t = weights in {0, 1, 2} packed by
  // expand(). x rows are padded with zeros to a multiple of 4.
  int64_t int8_columns;  // of a packed block
  void (*expand)(const Rows& sign, const Rows* mask, int64_t columns, int64_t quads, uint8_t* t);
  void (*int8)(const int8_t* x, int64_t x_pitch, int64_t rows, const uint8_t* t, int64_t quads,
               int32_t* sums, int64_t stride);

  // ---- gradients: c[i * c_stride + k] += sum_j a[j][i] * value(bit first_bit + k of rows[j]) for
  // i < m, k < columns (a multiple of 32), j < depth; a is [depth][kGradRows]. A nullptr row is a
  // row of zeros.
  void (*float_bits)(const float* a, int64_t m, const uint8_t* const* rows, int64_t depth,
                     int64_t first_bit, int64_t columns, float* c, int64_t c_stride);
};

// The kernels of active_isa().
const Kernels& kernels();

// One side of a product: rows, and the slices where they exist ([panels][chunks * kChunkBits]).
struct Operand {
  Rows rows;
  int64_t count = 0;
  const uint64_t* slices = nullptr;
};

constexpr int64_t slice_panel_words(int64_t chunks) { return chunks * kChunkBits; }
constexpr int64_t slice_words(int64_t count, int64_t chunks) {
  return ceil_div(count, kPanel) * slice_panel_words(chunks);
}
// Slices all rows of an operand, in parallel.
void slice_operand(const Operand& operand, int64_t chunks, uint64_t* slices,
                   const Parallel& parallel);

// Counts the mismatches of every row of a with every row of b over `bits` bits. The sink is called
// from several threads, on tiles that cover a.count x b.count once.
using Sink = void (*)(void* context, const Tile& tile);
void product(const Operand& a, const Operand& b, int64_t bits, Algo algo, Sink sink, void* context,
             const Parallel& parallel);
// The same with kernels().store as the sink.
void product(const Operand& a, const Operand& b, int64_t bits, Algo algo, const Store& store,
             const Parallel& parallel);

}  // namespace nnkernels::binary
