// A tile of queries on its way over the keys.
#pragma once

#include <algorithm>

#include "lmul/cpu/attention.h"

namespace nnkernels::lmul {

// Rows of a query tile, a multiple of every panel height, and floats from one row of its scores to
// the next.
constexpr int64_t kTileRows = 48;
constexpr int64_t kScoreStride = kRowStride;
// Blocks of keys whose scores stay from one sweep to the next: 0.4 MB a thread, whatever S is.
constexpr int64_t kKeptBlocks = 8;

// sweep() goes over the keys in blocks of kSumBlock. The scores of a block, their weights and what
// the caller sums of them live in a few tiles of the thread.
class QueryTile {
 public:
  explicit QueryTile(const AttentionArgs& args, const Plan& plan) : args_(args), plan_(plan) {}

  // Queries [row, row + rows) of a head, whose keys are packed as [D, S].
  void begin(int64_t batch, int64_t head, int64_t row, int64_t rows, const PackedMatrix& keys) {
    tile_ = {batch, head, row, rows, 0, 0};
    keys_ = keys;
    swept_ = false;
    const Matrix q = submatrix(head_of(args_.q, batch, head), 0, row, 0);
    kernels().pack_rows(plan_, q, rows, args_.D, queries_);
    std::fill_n(M_, rows, kNoMaximum);
    std::fill_n(divisor_, rows, 1.0f);
  }

  // Calls add(first) for each block of keys, to add what the weights of tile() give to the rows of
  // sums(), `width` floats each, or to set them if `first`. As M rises to the largest integer part
  // of the scores, the sums so far are multiplied by powers of two: shifted(row, shift, factor).
  // Afterwards total(row) is the sum of the weights.
  template <class Add, class Shifted>
  void sweep(int64_t width, Add&& add, Shifted&& shifted) {
    width_ = width;
    float* sums = sums_memory_.floats(kTileRows * width);
    float* weights = weights_memory_.floats(kTileSize);
    const int64_t blocks = (args_.S + kSumBlock - 1) / kSumBlock;
    float* scores = scores_memory_.floats(std::min(blocks, kKeptBlocks + 1) * kTileSize);
    std::fill_n(lanes_, kTileRows * kLanes, 0.0f);
    const int64_t visible = args_.causal ? std::min(tile_.row + tile_.rows, args_.S) : args_.S;
    if (visible == 0) std::fill_n(sums, kTileRows * width, 0.0f);
    for (int64_t key = 0; key < visible; key += kSumBlock) {
      tile_.column = key;
      tile_.columns = std::min(kSumBlock, visible - key);
      const int64_t slot = std::min(key / kSumBlock, kKeptBlocks);
      float* x = scores + slot * kTileSize;
      if (!swept_ || slot == kKeptBlocks) {
        kernels().multiply(plan_, queries_, keys_.block(0).slice(key, tile_.columns), x,
                           kScoreStride, true);
        float largest[kTileRows];
        finish_scores(args_, tile_, x, kScoreStride, largest);
        for (int64_t r = 0; r < tile_.rows; ++r) {
          const float M = integer_maximum(largest[r]);
          if (!(M > M_[r])) continue;
          const float shift = M - M_[r], factor = power_of_two(shift);
          M_[r] = M;
          for (int64_t i = 0; i < kLanes; ++i) lanes_[r * kLanes + i] *= factor;
          if (key == 0) continue;
          for (int64_t i = 0; i < width; ++i) sums[r * width + i] *= factor;
          shifted(r, shift, factor);
        }
      }
      for (int64_t r = 0; r < tile_.rows; ++r) {
        const int64_t at = r * kScoreStride;
        attention_kernels().weights(args_.normalize, x + at, tile_.columns, M_[r], divisor_[r],
                                    weights + at, lanes_ + r * kLanes);
      }
      add(key == 0);
    }
    swept_ = true;
  }

  // Normalize::before: from now on weights are divided by total().
  void normalize() {
    for (int64_t r = 0; r < tile_.rows; ++r) divisor_[r] = total(r);
  }

  const ScoreTile& tile() const { return tile_; }
  float* weights() { return weights_memory_.floats(0); }
  float* sums() { return sums_memory_.floats(0); }
  int64_t width() const { return width_; }
  float total(int64_t row) const { return sum_of_lanes(lanes_ + row * kLanes); }
  float M(int64_t row) const { return M_[row]; }
  float divisor(int64_t row) const { return divisor_[row]; }

 private:
  static constexpr int64_t kTileSize = kTileRows * kScoreStride;

  const AttentionArgs& args_;
  const Plan& plan_;
  ScoreTile tile_{};
  PackedMatrix keys_;
  RowBlock queries_;
  int64_t width_ = 0;
  // M_ is final, and the scores of the first kKeptBlocks are there.
  bool swept_ = false;
  Buffer scores_memory_, weights_memory_, sums_memory_;
  float M_[kTileRows], divisor_[kTileRows], lanes_[kTileRows * kLanes];
};

}  // namespace nnkernels::lmul
