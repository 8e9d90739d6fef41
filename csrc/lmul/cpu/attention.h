// What attention is made of besides the panel products of engine.h: the softmax loops of one
// instruction set, and the steps that forward and backward share.
//
// Scores are fp32 numbers x, scaled and masked; a masked one is -inf. Their weights are 2^t,
// t = x log2(e), taken apart as i = floor(t) and f = t - i:
//
//   weight = 2^f * 2^(i - M) / divisor
//
// with an integer M >= i. Dividing by a power of two is exact, so a running maximum M gives the
// weights that the final one gives. Normalize::after rounds t to fp32 (that is its definition) and
// has divisor 1. Normalize::before carries the rounding error of t into f, which makes 2^t accurate
// to an ulp; its divisor is 1 and then, once it is known, the sum of the weights.
//
// A weight below 2^-126 is 0. A masked key has the weight -0: kernels that must leave it out can
// tell it from a weight that underflowed.
#pragma once

#include <limits>
#include <vector>

#include "lmul/cpu/packed.h"

namespace nnkernels::lmul {

constexpr uint32_t kMasked = kSignBit;
// A sum over a row of scores has this many lanes: lane l takes the columns l, l + 16, ...
// ascending. The lanes are then added in halves. No instruction set and no tile changes the result.
constexpr int64_t kLanes = 16;

// Loops over the first `columns` floats of a row; they touch up to kLanes - 1 more.
struct AttentionKernels {
  // x = x * scale, plus bias (unless nullptr); -inf from `end` on. Returns the largest number.
  float (*scores)(float* x, int64_t end, int64_t columns, float scale, const float* bias);
  // weight = the weight of x; they may be the same memory. Adds the weights to `lanes`.
  void (*weights)(Normalize normalize, const float* x, int64_t columns, float M, float divisor,
                  float* weight, float* lanes);
  // lanes += weight * slope, where not masked.
  void (*add_products)(const float* weight, const float* slope, int64_t columns, float* lanes);
  // slope = weight * (slope - delta) * scale; kMasked where masked, never -0 elsewhere.
  void (*score_grads)(const float* weight, float* slope, int64_t columns, float delta, float scale);
};

// Those of active_isa().
const AttentionKernels& attention_kernels();

float sum_of_lanes(const float* lanes);

// The largest floor(t) of a row whose largest score is x.
float integer_maximum(float x);
// The M of a row without scores.
constexpr float kNoMaximum = -std::numeric_limits<float>::max();
// 2^-shift, the factor of weights whose M rises by `shift`. From 127 on they are 0.
float power_of_two(float shift);

// The same call with D > 0: one product of zeros is as good as none.
AttentionArgs with_terms(AttentionArgs args);

// The matrix of one head of a [batch, heads, rows, columns] tensor.
Matrix head_of(const Tensor4& tensor, int64_t batch, int64_t head);
Output output_at(const Output& out, int64_t index);
Range range_of(const Columns& columns);

// Several packed matrices of one shape, [K, N] each.
class PackedHeads {
 public:
  // matrix(i) is matrix i of `count`.
  template <class F>
  void pack(const Plan& plan, int64_t count, int64_t K, int64_t N, F&& matrix,
            const Parallel& parallel) {
    K_ = K;
    N_ = N;
    words_per_head_ = PackedMatrix::word_count(K, N);
    ranges_per_head_ = PackedMatrix::range_count(K, N);
    words_ = memory_.words(count * words_per_head_);
    ranges_.resize(static_cast<size_t>(count * ranges_per_head_));
    const auto one = [&](int64_t i, const Parallel& inside) {
      pack_matrix(plan, matrix(i), K, N, words_ + i * words_per_head_,
                  ranges_.data() + i * ranges_per_head_, inside);
    };
    // Few heads: the threads share each. Many: each thread packs its own.
    if (count < parallel.threads) {
      for (int64_t i = 0; i < count; ++i) one(i, parallel);
    } else {
      parallel_for(parallel, count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) one(i, Parallel{});
      });
    }
  }

  PackedMatrix operator[](int64_t i) const {
    return {K_, N_, words_ + i * words_per_head_, ranges_.data() + i * ranges_per_head_};
  }

 private:
  int64_t K_ = 0, N_ = 0, words_per_head_ = 0, ranges_per_head_ = 0;
  Buffer memory_;
  uint32_t* words_ = nullptr;
  std::vector<Range> ranges_;
};

// Scores of queries [row, row + rows) and keys [column, column + columns) of one head.
struct ScoreTile {
  int64_t batch, head;
  int64_t row, rows, column, columns;
};

// From the sums of products x to the scores of the tile: scaled, masked, -inf where masked. Writes
// the largest number of each row.
void finish_scores(const AttentionArgs& args, const ScoreTile& tile, float* x, int64_t x_stride,
                   float* largest);

// How the rows and the columns of a product are packed. With fractions (see multiply_slopes) its
// terms are slopes.
struct ProductPlan {
  Plan rows, columns;
  const uint32_t* fractions = nullptr;
  int64_t fraction_stride = 0;
};

// c = (first ? 0 : c) + a * b for a packed block of a.
void multiply(const ProductPlan& plan, RowBlock& a, const Columns& b, float* c, int64_t c_stride,
              bool first);

// c = (first ? 0 : c) + a * b for weights a [rows, kc] in fp32; `columns` is b [kc, n] packed.
// Where b has infinities or NaN, masked weights take no part (elsewhere their products are zeros).
void multiply_live(const ProductPlan& plan, const Matrix& a, int64_t rows, const Matrix& b,
                   const Columns& columns, RowBlock& block, float* c, int64_t c_stride, bool first);

// Causal tiles of queries cost the more the later they are: tile number `task` of `tiles`, such
// that equal ranges of tasks get early and late ones.
int64_t balanced(int64_t task, int64_t tiles);

}  // namespace nnkernels::lmul
