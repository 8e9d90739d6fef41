#include <bit>
#include <climits>
#include <utility>

#include "lmul/cpu/attention_query.h"

namespace nnkernels::lmul {
namespace {

// Bytes of packed keys and values that exist at a time, unless every thread's head has more.
constexpr int64_t kPackedBytes = int64_t{16} << 20;
constexpr int kNoWeight = INT_MAX;

// The output of one tile of queries after another.
class Forward {
 public:
  Forward(const AttentionArgs& args, const Plan& plan)
      : args_(args), plan_(plan), query_(args, plan) {}

  void operator()(int64_t batch, int64_t head, int64_t row, int64_t rows, const PackedMatrix& keys,
                  const PackedMatrix& values) {
    query_.begin(batch, head, row, rows, keys);
    values_ = values;
    look_at_values();
    if (args_.normalize == Normalize::before) {
      query_.sweep(0, [](bool) {}, [](int64_t, float, float) {});
      query_.normalize();
    }
    sweep();
    // Once more, with the final M in every block.
    if (inexact_) sweep();
    store();
  }

 private:
  void look_at_values() {
    Range range;
    for (int64_t key = 0; key < args_.S; key += kSumBlock) range.add(range_of(values_.block(key)));
    value_low_ = std::min(0, range.low - 127);
    // A product is below 2^(exponents of weight and value + 2), a weight at most 2.
    const int sum_bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(args_.S)));
    large_values_ = range.high - 127 + 3 + sum_bits > 127;
  }

  void sweep() {
    std::fill_n(lowest_, kTileRows, kNoWeight);
    inexact_ = false;
    query_.sweep(
        (args_.Dv + kGroup - 1) / kGroup * kGroup, [&](bool first) { add_block(first); },
        [&](int64_t row, float shift, float factor) { look_at_shift(row, shift, factor); });
  }

  void add_block(bool first) {
    const ScoreTile& tile = query_.tile();
    const Matrix values = head_of(args_.v, tile.batch, tile.head / (args_.H / args_.Hk));
    multiply_live({plan_, plan_}, {query_.weights(), DType::float32, 0, kScoreStride, 1}, tile.rows,
                  submatrix(values, 0, tile.column, 0),
                  values_.block(tile.column).rows(0, tile.columns), weights_, query_.sums(),
                  query_.width(), first);
    for (int64_t r = 0; r < tile.rows; ++r) {
      const Range& range = weights_.ranges[r / kernels().tile_rows];
      if (range.low <= range.high) lowest_[r] = std::min(lowest_[r], range.low - 127);
    }
  }

  // Multiplying by a power of two commutes with L and with sums unless something leaves the range
  // of normal numbers. So the sums formed with a lower M are those of the new M, scaled, if
  // - no product or sum can have overflowed (large_values_),
  // - with the new M every nonzero product is at least 2^-126: then it is not flushed, and being a
  //   multiple of 2^-149 it leaves all partial sums exact,
  // - or the new M makes all these weights 0.
  void look_at_shift(int64_t row, float shift, float factor) {
    if (lowest_[row] == kNoWeight) return;
    lowest_[row] = factor == 0.0f ? kNoWeight : lowest_[row] - static_cast<int>(shift);
    inexact_ |= large_values_ || (factor != 0.0f && lowest_[row] + value_low_ < -126);
  }

  void store() {
    const ScoreTile& tile = query_.tile();
    const int64_t width = query_.width();
    float* sums = query_.sums();
    if (args_.normalize == Normalize::after) {
      for (int64_t r = 0; r < tile.rows; ++r) {
        const float total = query_.total(r), divisor = total == 0.0f ? 1.0f : total;
        for (int64_t i = 0; i < args_.Dv; ++i) sums[r * width + i] /= divisor;
      }
    }
    const int64_t at = ((tile.batch * args_.H + tile.head) * args_.T + tile.row) * args_.Dv;
    kernels().store(sums, width, tile.rows, args_.Dv, nullptr, output_at(args_.out, at), args_.Dv);
  }

  const AttentionArgs& args_;
  const Plan& plan_;
  QueryTile query_;
  PackedMatrix values_;
  RowBlock weights_;
  // The exponent of the smallest weight in a row's sums; of the lowest value, at most 0.
  int lowest_[kTileRows];
  int value_low_ = 0;
  bool large_values_ = false, inexact_ = false;
};

}  // namespace

void attention(const AttentionArgs& given, const Parallel& parallel) {
  if (given.B == 0 || given.H == 0 || given.T == 0 || given.Dv == 0) return;
  const AttentionArgs args = with_terms(given);
  const Plan plan = make_plan(args.options, args.algo);
  const int64_t per_key = args.H / args.Hk, heads = args.B * args.Hk;
  const int64_t head_bytes = 4 * args.S * (args.D + args.Dv);
  const int64_t at_once = std::min<int64_t>(
      heads, std::max<int64_t>(parallel.threads, kPackedBytes / std::max<int64_t>(1, head_bytes)));
  const int64_t tiles = (args.T + kTileRows - 1) / kTileRows;
  PackedHeads keys, values;
  for (int64_t begin = 0; begin < heads; begin += at_once) {
    const int64_t count = std::min(at_once, heads - begin);
    const auto place = [&](int64_t i) {
      return std::pair((begin + i) / args.Hk, (begin + i) % args.Hk);
    };
    const auto head = [&](const Tensor4& tensor, int64_t i) {
      return head_of(tensor, place(i).first, place(i).second);
    };
    keys.pack(
        plan, count, args.D, args.S, [&](int64_t i) { return transposed(head(args.k, i)); },
        parallel);
    values.pack(plan, count, args.S, args.Dv, [&](int64_t i) { return head(args.v, i); }, parallel);
    parallel_for(parallel, count * per_key * tiles, 1, [&](int64_t first, int64_t last) {
      Forward forward(args, plan);
      for (int64_t task = first; task < last; ++task) {
        const int64_t i = task / (per_key * tiles);
        const auto [batch, key_head] = place(i);
        const int64_t row = balanced(task % tiles, tiles) * kTileRows;
        forward(batch, key_head * per_key + task / tiles % per_key, row,
                std::min(kTileRows, args.T - row), keys[i], values[i]);
      }
    });
  }
}

}  // namespace nnkernels::lmul
