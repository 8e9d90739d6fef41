// The panel interface of the CPU kernels: what matmul and attention are built from.
//
// A product of an [M, K] and a [K, N] matrix runs block by block: a block of at most kSumBlock k of
// B is packed once into column groups (pack_columns), a block of rows of A into a RowBlock
// (pack_rows), and multiply() adds their product to a float32 result. Per tile of rows and columns
// it chooses the fastest kernel whose result is exact, by the ranges recorded in packing.
//
// Every element is summed in the order that lmul.h promises, whichever kernel computed it.
#pragma once

#include <cstdint>

#include "lmul/lmul.h"
#include "lmul/lmul_math.h"

// The kernel headers are compiled once per instruction set. What they share must be inlined or have
// internal linkage: a file compiled for AVX must not lend its copy to the scalar build.
#define NNK_VEC inline __attribute__((always_inline))

namespace nnkernels::lmul {

// Columns that a group of packed B holds side by side, whatever the vector length.
constexpr int64_t kGroup = 16;
// Rows that a RowBlock holds at most: every panel height divides it.
constexpr int64_t kMaxRows = 96;
// Words from one packed row to the next; the 16 spare ones spread the rows over the cache sets.
constexpr int64_t kRowStride = kSumBlock + 16;

// Memory aligned to a cache line, not initialised.
class Buffer {
 public:
  Buffer() = default;
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // At least this many words; what was in the buffer is lost when it grows.
  uint32_t* words(int64_t count);
  float* floats(int64_t count) { return reinterpret_cast<float*>(words(count)); }

 private:
  void* data_ = nullptr;
  int64_t count_ = 0;
};

// What is summed over k.
enum class Term : int {
  bits,     // L(x, y) in mode bits
  formula,  // L(x, y) in mode formula
  exact,    // the ordinary product x * y
};

// Everything the kernels need to know about a call.
struct Plan {
  Term term = Term::bits;
  Algo algo = Algo::automatic;
  Round round = Round::trunc;
  // Mantissa bits that packing keeps of either operand.
  int a_bits = 23, b_bits = 23;
  // Packs P(x), P(y) in place of the operand: the formula's slope, with Term::exact.
  bool a_power = false, b_power = false;
  uint32_t offset = 0;  // c * 2^23
  // Products are multiples of 2^(xe + ye - product_bits).
  int product_bits = 23;
};

Plan make_plan(const Options& options, Algo algo);

// What a set of packed words holds: the biased exponents of its nonzero finite words, and whether
// there are others. An empty range has low > high.
struct Range {
  int16_t low = 255, high = 0;
  uint8_t zero = 0;       // zeros or subnormals
  uint8_t nonfinite = 0;  // infinities or NaN

  NNK_VEC void add(const Range& other) {
    if (other.low < low) low = other.low;
    if (other.high > high) high = other.high;
    zero |= other.zero;
    nonfinite |= other.nonfinite;
  }
};

// At most kSumBlock rows of B, packed: group g of 16 columns is words[g][packed_kc][16], of which
// the first kc rows are meant, with the range of all of them in ranges[g]. A last group of fewer
// columns repeats its last one.
struct Columns {
  const uint32_t* words = nullptr;
  const Range* ranges = nullptr;
  int64_t kc = 0;
  int64_t count = 0;
  int64_t packed_kc = 0;

  static NNK_VEC int64_t groups(int64_t count) { return (count + kGroup - 1) / kGroup; }
  NNK_VEC int64_t groups() const { return groups(count); }
  // The columns [first, first + n); first is a multiple of kGroup.
  NNK_VEC Columns slice(int64_t first, int64_t n) const {
    return {words + first * packed_kc, ranges + first / kGroup, kc, n, packed_kc};
  }
  // The rows [first, first + n). The ranges stay those of all.
  NNK_VEC Columns rows(int64_t first, int64_t n) const {
    return {words + first * kGroup, ranges, n, count, packed_kc};
  }
};

// What the kernels read of a packed row: the words, or a form of them that is made from the words
// when a kernel first needs it.
enum Form : int {
  kWords,      // x, zeros as +0
  kSoft,       // x, zeros as a number too small to change any sum ("soft zero", choose.cpp)
  kNonzero,    // is x nonzero: 1.0f or 0.0f
  kMagnitude,  // |x|
  kSign,       // sign of x: 1.0f, -1.0f, or 0.0f
  kPower,      // P(x)
  kCentred,    // Xc
  kForms
};

// A block of packed rows of A, and the memory of the thread that works on it, used again from block
// to block.
class RowBlock {
 public:
  int64_t rows = 0, kc = 0;
  // Of panels of Kernels::tile_rows rows.
  Range ranges[kMaxRows];
  // Bit f is set when form f of the panel is made.
  uint32_t made[kMaxRows] = {};
  // Exponent (biased, possibly negative) of the zeros in kSoft.
  int soft_exponent = 0;

  // Row-major with kRowStride words a row.
  uint32_t* form(Form form);

 private:
  Buffer forms_[kForms];
};

// The loops of attention.h.
struct AttentionKernels;

// Elements data[i * stride].
struct Line {
  const void* data;
  DType dtype;
  int64_t stride;

  // The line from memory element `offset`, or from its own element `index`, on.
  NNK_VEC Line from(int64_t offset) const {
    return {static_cast<const char*>(data) + offset * element_size(dtype), dtype, stride};
  }
  NNK_VEC Line at(int64_t index) const { return from(index * stride); }
};
// Elements of a line that gradients compute at a time.
constexpr int64_t kPiece = 512;

// One instruction set's kernels. All agree bit for bit.
struct Kernels {
  // Rows and columns of a register tile; panels in RowBlock have this many rows.
  int64_t tile_rows, tile_columns;

  // Packs the kc x n matrix b (batch_stride unused), kc <= kSumBlock, to groups(n) * kc * kGroup
  // words and groups(n) ranges.
  void (*pack_columns)(const Plan& plan, const Matrix& b, int64_t kc, int64_t n, uint32_t* words,
                       Range* ranges);
  // Packs the rows x kc matrix a, rows <= kMaxRows, kc <= kSumBlock.
  void (*pack_rows)(const Plan& plan, const Matrix& a, int64_t rows, int64_t kc, RowBlock& block);
  // c[m, n] = (first ? 0 : c[m, n]) + sum_k term(block[m, k], columns[k, n]), for a.kc == b.kc.
  // Throws std::runtime_error where plan.algo cannot be exact.
  void (*multiply)(const Plan& plan, RowBlock& block, const Columns& columns, float* c,
                   int64_t c_stride, bool first);
  // c[m, n] = (first ? 0 : c[m, n]) + sum_k block[m, k] slope(x[m, n], columns[k, n]), the gradient
  // of mode bits. The block is packed for Term::exact, the columns for Term::formula; of x it takes
  // fractions[m * fraction_stride + n] = xm + c in units of 2^-23, xm = 0 unless x is normal.
  void (*multiply_slopes)(RowBlock& block, const Columns& columns, const uint32_t* fractions,
                          int64_t fraction_stride, float* c, int64_t c_stride, bool first);
  // out[m, n] = c[m, n] + bias[n], rounded to out.dtype. `out` and `bias` (fp32 or nullptr) point
  // at element (0, 0); c may be out.data when that is float32.
  void (*store)(const float* c, int64_t c_stride, int64_t rows, int64_t columns, const float* bias,
                const Output& out, int64_t out_stride);

  // out[i] = L(x[i], y[i]).
  void (*mul_line)(const Plan& plan, const Line& x, const Line& y, int64_t n, const Output& out);
  // out[i] = g[i] times the derivative of L(x[i], y[i]) with respect to x, n <= kPiece.
  void (*mul_grad_line)(const Plan& plan, Grad grad, const Line& g, const Line& x, const Line& y,
                        int64_t n, float* out);

  const AttentionKernels* attention;
};

// The kernels of active_isa().
const Kernels& kernels();

}  // namespace nnkernels::lmul
