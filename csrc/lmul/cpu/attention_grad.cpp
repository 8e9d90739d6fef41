// Attention, backward. With W the weights, G' the gradient of their products with the values, and
// C_ij = sum over d of the gradient of L(W_ij, v_jd) with respect to W_ij for g'_id from upstream,
//
//   dS = W (C - delta)     dV = W^T * G'     dQ = scale dS * K     dK = scale dS^T * Q
//
// where * follows the `grad` rule. Normalize::before: W is the softmax, G' = g and
// delta_i = sum_j W_ij C_ij. Normalize::after: W are the powers of two, whose sum is Z, G' = g / Z
// and delta_i = sum_d g'_id o_id.
//
// Sweep 1 goes over tiles of queries: M and Z of the weights, delta and dQ. Sweep 2 goes over tiles
// of keys: dK and dV. Both form the weights again, tile by tile.
#include <utility>

#include "lmul/cpu/attention_query.h"

namespace nnkernels::lmul {
namespace {

// Bytes of packed operands that exist at a time, unless every thread's head has more.
constexpr int64_t kPackedBytes = int64_t{32} << 20;
// Keys in a tile of sweep 2, and floats from one row of its weights to the next.
constexpr int64_t kTileKeys = 96;
constexpr int64_t kKeyStride = kTileKeys + 16;

// What all threads share: the operands of the heads at hand.
struct Job {
  AttentionArgs args;
  const AttentionGradArgs& given;
  bool need_q, need_k, need_v;
  Tensor4 out;  // the forward result in fp32, for Normalize::after
  Plan scores;
  // Rows from upstream (G', dS) and columns of operands (V^T, K, Q).
  ProductPlan upstream;
  // Rows of weights and columns of G'.
  ProductPlan weights;
  // The terms of `upstream` are slopes of mode bits, which depend on the result's place.
  bool slopes = false;

  int64_t begin = 0;  // first of the key heads at hand
  PackedHeads keys, values_transposed, key_rows, query_rows, gradient_rows;
  // By query: of the heads at hand.
  std::vector<float> M, divisor, delta;
  std::vector<float> gradient;  // G'

  explicit Job(const AttentionGradArgs& call);
  int64_t per_key() const { return args.H / args.Hk; }
  bool need_scores() const { return need_q || need_k; }
};

Job::Job(const AttentionGradArgs& call)
    : args(with_terms(call.forward)),
      given(call),
      need_q(call.grad_q.data != nullptr && call.forward.D != 0),
      need_k(call.grad_k.data != nullptr && call.forward.D != 0),
      need_v(call.grad_v.data != nullptr),
      out(call.out),
      scores(make_plan(args.options, Algo::automatic)) {
  Plan from_above = scores, of_weights = scores;
  if (call.grad != Grad::lmul) {
    // What comes from upstream keeps its bits.
    from_above.term = of_weights.term = Term::exact;
    from_above.a_bits = of_weights.b_bits = 23;
  }
  if (call.grad == Grad::exact && args.options.mode == Mode::formula) {
    from_above.b_power = of_weights.a_power = true;
  }
  upstream = {from_above, from_above};
  weights = {of_weights, of_weights};
  slopes = call.grad == Grad::exact && args.options.mode == Mode::bits;
  if (slopes) upstream.columns.term = Term::formula;
}

struct Head {
  int64_t batch, key_head, head;
  int64_t key_place, place;  // among the heads at hand
};

Head head_at(const Job& job, int64_t key_place, int64_t i) {
  const int64_t at = job.begin + key_place, key_head = at % job.args.Hk;
  return {at / job.args.Hk, key_head, key_head * job.per_key() + i, key_place,
          key_place * job.per_key() + i};
}

Matrix plain(const float* data, int64_t stride) { return {data, DType::float32, 0, stride, 1}; }

class Backward {
 public:
  explicit Backward(Job& job) : job_(job), a_(job.args), query_(job.args, job.scores) {}

  // Sweep 1: M, divisor, delta and G' of the queries [row, row + rows), and their dQ.
  void queries(const Head& head, int64_t row, int64_t rows) {
    const auto ignore_shift = [](int64_t, float, float) {};
    query_.begin(head.batch, head.head, row, rows, job_.keys[head.key_place]);
    query_.sweep(0, [](bool) {}, ignore_shift);
    const int64_t at = head.place * a_.T + row;
    set_gradient(head, row, rows);
    if (a_.normalize == Normalize::before) query_.normalize();
    for (int64_t r = 0; r < rows; ++r) {
      job_.M[at + r] = query_.M(r);
      job_.divisor[at + r] = query_.divisor(r);
    }
    if (!job_.need_scores()) return;

    float* slopes = slopes_.floats(kTileRows * kScoreStride);
    kernels().pack_rows(job_.upstream.rows, gradient(head, row), rows, a_.Dv, gradient_block_);
    if (a_.normalize == Normalize::before) {
      const auto add_delta = [&](bool first) {
        const ScoreTile& tile = query_.tile();
        weight_slopes(head, query_.weights(), kScoreStride, tile.rows, tile.column, tile.columns);
        for (int64_t r = 0; r < rows; ++r) {
          float* lanes = query_.sums() + r * kLanes;
          if (first) std::fill_n(lanes, kLanes, 0.0f);
          attention_kernels().add_products(query_.weights() + r * kScoreStride,
                                           slopes + r * kScoreStride, tile.columns, lanes);
        }
      };
      query_.sweep(kLanes, add_delta, ignore_shift);
      for (int64_t r = 0; r < rows; ++r) {
        job_.delta[at + r] = sum_of_lanes(query_.sums() + r * kLanes);
      }
    }
    if (!job_.need_q) return;

    ProductPlan plan = job_.upstream;
    set_fractions(plan, submatrix(head_of(a_.q, head.batch, head.head), 0, row, 0), rows, a_.D,
                  fractions_);
    const Matrix keys = head_of(a_.k, head.batch, head.key_head);
    const auto add_query_grads = [&](bool first) {
      const ScoreTile& tile = query_.tile();
      weight_slopes(head, query_.weights(), kScoreStride, tile.rows, tile.column, tile.columns);
      for (int64_t r = 0; r < rows; ++r) {
        attention_kernels().score_grads(query_.weights() + r * kScoreStride,
                                        slopes + r * kScoreStride, tile.columns, job_.delta[at + r],
                                        a_.scale);
      }
      multiply_live(plan, plain(slopes, kScoreStride), rows, submatrix(keys, 0, tile.column, 0),
                    job_.key_rows[head.key_place].block(tile.column).rows(0, tile.columns), block_,
                    query_.sums(), query_.width(), first);
    };
    query_.sweep(a_.D, add_query_grads, ignore_shift);
    const int64_t out = ((head.batch * a_.H + head.head) * a_.T + row) * a_.D;
    kernels().store(query_.sums(), a_.D, rows, a_.D, nullptr, output_at(job_.given.grad_q, out),
                    a_.D);
  }

  // Sweep 2: dK and dV of the keys [key, key + keys) of a key head.
  void keys(int64_t key_place, int64_t key, int64_t keys) {
    const Head first_head = head_at(job_, key_place, 0);
    const Matrix k = submatrix(head_of(a_.k, first_head.batch, first_head.key_head), 0, key, 0);
    const Matrix v = submatrix(head_of(a_.v, first_head.batch, first_head.key_head), 0, key, 0);
    float* grad_k = grad_k_.floats(kTileKeys * a_.D);
    float* grad_v = grad_v_.floats(kTileKeys * a_.Dv);
    std::fill_n(grad_k, kTileKeys * a_.D, 0.0f);
    std::fill_n(grad_v, kTileKeys * a_.Dv, 0.0f);
    ProductPlan key_plan = job_.upstream;
    if (job_.need_k) set_fractions(key_plan, k, keys, a_.D, fractions_);
    bool first = true;
    for (int64_t i = 0; i < job_.per_key(); ++i) {
      const Head head = head_at(job_, key_place, i);
      const Matrix q = head_of(a_.q, head.batch, head.head);
      for (int64_t query = 0; query < a_.T; query += kSumBlock) {
        const int64_t end = std::min(query + kSumBlock, a_.T);
        const int64_t begin = a_.causal ? std::max(query, key) : query;
        if (begin >= end) continue;
        for (int64_t row = begin; row < end; row += kMaxRows) {
          weights_again(head, row, std::min(kMaxRows, end - row), key, keys, row - begin);
        }
        const Matrix weights = transposed(plain(weights_.floats(0), kKeyStride));
        const Matrix score_grads = transposed(plain(slopes_.floats(0), kKeyStride));
        const int64_t offset = begin - query, count = end - begin;
        if (job_.need_v && job_.slopes) {
          add_value_slopes(head, v, begin, count, keys, grad_v, first);
        } else if (job_.need_v) {
          multiply_live(job_.weights, weights, keys, gradient(head, begin),
                        job_.gradient_rows[head.place].block(query).rows(offset, count), block_,
                        grad_v, a_.Dv, first);
        }
        if (job_.need_k) {
          multiply_live(key_plan, score_grads, keys, submatrix(q, 0, begin, 0),
                        job_.query_rows[head.place].block(query).rows(offset, count), block_,
                        grad_k, a_.D, first);
        }
        first = false;
      }
    }
    const int64_t out = (first_head.batch * a_.Hk + first_head.key_head) * a_.S + key;
    if (job_.need_k) {
      kernels().store(grad_k, a_.D, keys, a_.D, nullptr, output_at(job_.given.grad_k, out * a_.D),
                      a_.D);
    }
    if (job_.need_v) {
      kernels().store(grad_v, a_.Dv, keys, a_.Dv, nullptr,
                      output_at(job_.given.grad_v, out * a_.Dv), a_.Dv);
    }
  }

 private:
  // G' of a head from this row on.
  Matrix gradient(const Head& head, int64_t row) const {
    return plain(job_.gradient.data() + (head.place * a_.T + row) * a_.Dv, a_.Dv);
  }

  // G' and, for Normalize::after, delta.
  void set_gradient(const Head& head, int64_t row, int64_t rows) {
    const Matrix g = head_of(job_.given.g, head.batch, head.head);
    const Matrix o = head_of(job_.out, head.batch, head.head);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t at = head.place * a_.T + row + r;
      const float total = query_.total(r);
      float delta = 0.0f;
      for (int64_t d = 0; d < a_.Dv; ++d) {
        const Matrix g_at = submatrix(g, 0, row + r, d);
        float x = float_of(load_word(g_at.dtype, g_at.data, 0));
        if (a_.normalize == Normalize::after) {
          if (total != 0.0f) x /= total;
          const Matrix o_at = submatrix(o, 0, row + r, d);
          delta += x * float_of(load_word(o_at.dtype, o_at.data, 0));
        }
        job_.gradient[at * a_.Dv + d] = x;
      }
      job_.delta[at] = delta;
    }
  }

  // Completes a plan whose terms are slopes by what they take from x, the operand in the result's
  // place: xm + c, with x reduced to m bits. multiply_slopes() reads whole tiles of columns.
  void set_fractions(ProductPlan& plan, const Matrix& x, int64_t rows, int64_t columns,
                     Buffer& memory) {
    if (!job_.slopes) return;
    uint32_t* fractions = memory.words(kMaxRows * kScoreStride);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        const Matrix at = submatrix(x, 0, r, c);
        const uint32_t word =
            reduce(load_word(at.dtype, at.data, 0), a_.options.mantissa_bits, a_.options.round);
        const bool normal = is_finite(word) && !is_zero(word);
        fractions[r * kScoreStride + c] = (normal ? word & kMantissaMask : 0u) + a_.options.offset;
      }
    }
    plan.fractions = fractions;
    plan.fraction_stride = kScoreStride;
  }

  // slopes_ = C of the rows in gradient_block_ and `columns` keys, with these weights.
  void weight_slopes(const Head& head, const float* weights, int64_t stride, int64_t rows,
                     int64_t key, int64_t columns, int64_t at = 0) {
    ProductPlan plan = job_.upstream;
    set_fractions(plan, plain(weights, stride), rows, columns, tile_fractions_);
    multiply(plan, gradient_block_,
             job_.values_transposed[head.key_place].block(0).slice(key, columns),
             slopes_.floats(0) + at * stride, stride, true);
  }

  // The weights and score gradients of a tile, from row `at` of weights_ and slopes_ on.
  void weights_again(const Head& head, int64_t row, int64_t rows, int64_t key, int64_t keys,
                     int64_t at) {
    float* x = weights_.floats(kSumBlock * kKeyStride) + at * kKeyStride;
    float* slopes = slopes_.floats(kSumBlock * kKeyStride) + at * kKeyStride;
    kernels().pack_rows(job_.scores, submatrix(head_of(a_.q, head.batch, head.head), 0, row, 0),
                        rows, a_.D, block_);
    kernels().multiply(job_.scores, block_, job_.keys[head.key_place].block(0).slice(key, keys), x,
                       kKeyStride, true);
    float largest[kMaxRows], lanes[kLanes] = {};
    finish_scores(a_, {head.batch, head.head, row, rows, key, keys}, x, kKeyStride, largest);
    const int64_t query = head.place * a_.T + row;
    for (int64_t r = 0; r < rows; ++r) {
      attention_kernels().weights(a_.normalize, x + r * kKeyStride, keys, job_.M[query + r],
                                  job_.divisor[query + r], x + r * kKeyStride, lanes);
    }
    if (!job_.need_k) return;
    kernels().pack_rows(job_.upstream.rows, gradient(head, row), rows, a_.Dv, gradient_block_);
    weight_slopes(head, x, kKeyStride, rows, key, keys, at);
    for (int64_t r = 0; r < rows; ++r) {
      attention_kernels().score_grads(x + r * kKeyStride, slopes + r * kKeyStride, keys,
                                      job_.delta[query + r], a_.scale);
    }
  }

  // grad_v[j, d] += sum_i g'_id slope(v_jd, W_ij). multiply_slopes has upstream gradients in its
  // rows, so this forms the transposed sums.
  void add_value_slopes(const Head& head, const Matrix& v, int64_t query, int64_t queries,
                        int64_t keys, float* grad_v, bool first) {
    uint32_t* words = packed_weights_.words(PackedMatrix::word_count(kSumBlock, kTileKeys));
    Range ranges[kTileKeys / kGroup];
    kernels().pack_columns(job_.upstream.columns, plain(weights_.floats(0), kKeyStride), queries,
                           keys, words, ranges);
    const Columns columns = PackedMatrix{queries, keys, words, ranges}.block(0);
    const Matrix g = transposed(gradient(head, query)), x = transposed(v);
    std::vector<float> sums(kMaxRows * kTileKeys);
    for (int64_t d = 0; d < a_.Dv; d += kMaxRows) {
      const int64_t rows = std::min(kMaxRows, a_.Dv - d);
      ProductPlan plan = job_.upstream;
      set_fractions(plan, submatrix(x, 0, d, 0), rows, keys, tile_fractions_);
      kernels().pack_rows(plan.rows, submatrix(g, 0, d, 0), rows, queries, block_);
      multiply(plan, block_, columns, sums.data(), kTileKeys, true);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t j = 0; j < keys; ++j) {
          float& sum = grad_v[j * a_.Dv + d + r];
          sum = first ? sums[r * kTileKeys + j] : sum + sums[r * kTileKeys + j];
        }
      }
    }
  }

  Job& job_;
  const AttentionArgs& a_;
  QueryTile query_;
  RowBlock block_, gradient_block_;
  Buffer weights_, slopes_;            // tiles
  Buffer grad_k_, grad_v_;             // [kTileKeys, D], [kTileKeys, Dv]
  Buffer fractions_, tile_fractions_;  // [kMaxRows, kScoreStride]
  Buffer packed_weights_;
};

void store_zeros(const Output& out, int64_t count) {
  if (out.data == nullptr) return;
  std::fill_n(static_cast<char*>(out.data), count * element_size(out.dtype), char{0});
}

// Heads [job.begin, job.begin + count) of keys and their queries.
void run_heads(Job& job, int64_t count, const Parallel& parallel) {
  const AttentionArgs& a = job.args;
  const int64_t per_key = job.per_key(), queries = count * per_key;
  const auto key_head = [&](const Tensor4& tensor, int64_t i) {
    const Head head = head_at(job, i, 0);
    return head_of(tensor, head.batch, head.key_head);
  };
  for (std::vector<float>* values : {&job.M, &job.divisor, &job.delta}) {
    values->resize(static_cast<size_t>(queries * a.T));
  }
  job.gradient.resize(static_cast<size_t>(queries * a.T * a.Dv));
  const Plan& operand = job.upstream.columns;
  const auto pack_keys = [&](PackedHeads& packed, const Plan& plan, int64_t K, int64_t N,
                             const auto& matrix) {
    packed.pack(plan, count, K, N, matrix, parallel);
  };
  pack_keys(job.keys, job.scores, a.D, a.S,
            [&](int64_t i) { return transposed(key_head(a.k, i)); });
  if (job.need_scores()) {
    pack_keys(job.values_transposed, operand, a.Dv, a.S,
              [&](int64_t i) { return transposed(key_head(a.v, i)); });
  }
  if (job.need_q) {
    pack_keys(job.key_rows, operand, a.S, a.D, [&](int64_t i) { return key_head(a.k, i); });
  }
  const int64_t tiles = (a.T + kTileRows - 1) / kTileRows;
  parallel_for(parallel, queries * tiles, 1, [&](int64_t first, int64_t last) {
    Backward backward(job);
    for (int64_t task = first; task < last; ++task) {
      const int64_t place = task / tiles, row = balanced(task % tiles, tiles) * kTileRows;
      backward.queries(head_at(job, place / per_key, place % per_key), row,
                       std::min(kTileRows, a.T - row));
    }
  });

  if (!job.need_k && !job.need_v) return;
  if (job.need_k) {
    job.query_rows.pack(
        operand, queries, a.T, a.D,
        [&](int64_t i) {
          const Head head = head_at(job, i / per_key, i % per_key);
          return head_of(a.q, head.batch, head.head);
        },
        parallel);
  }
  if (job.need_v && !job.slopes) {
    job.gradient_rows.pack(
        job.weights.columns, queries, a.T, a.Dv,
        [&](int64_t i) { return plain(job.gradient.data() + i * a.T * a.Dv, a.Dv); }, parallel);
  }
  const int64_t key_tiles = (a.S + kTileKeys - 1) / kTileKeys;
  parallel_for(parallel, count * key_tiles, 1, [&](int64_t first, int64_t last) {
    Backward backward(job);
    for (int64_t task = first; task < last; ++task) {
      const int64_t key = balanced(task % key_tiles, key_tiles) * kTileKeys;
      backward.keys(task / key_tiles, key, std::min(kTileKeys, a.S - key));
    }
  });
}

}  // namespace

void attention_grad(const AttentionGradArgs& given, const Parallel& parallel) {
  const AttentionArgs& forward = given.forward;
  const int64_t queries = forward.B * forward.H * forward.T;
  if (queries == 0 || forward.S == 0 || forward.Dv == 0) {
    store_zeros(given.grad_q, queries * forward.D);
    store_zeros(given.grad_k, forward.B * forward.Hk * forward.S * forward.D);
    store_zeros(given.grad_v, forward.B * forward.Hk * forward.S * forward.Dv);
    return;
  }
  Job job(given);

  // delta needs the result in fp32: a rounded one would shift all score gradients of a row.
  std::vector<float> out;
  if (forward.normalize == Normalize::after && given.out.dtype != DType::float32) {
    out.resize(static_cast<size_t>(queries * forward.Dv));
    AttentionArgs again = forward;
    again.out = {out.data(), DType::float32};
    attention(again, parallel);
    job.out = {out.data(),
               DType::float32,
               {forward.H * forward.T * forward.Dv, forward.T * forward.Dv, forward.Dv, 1}};
  }

  const int64_t heads = forward.B * forward.Hk;
  const int64_t head_bytes =
      4 * (job.args.D + job.args.Dv) * (2 * forward.S + 2 * job.per_key() * forward.T);
  const int64_t at_once =
      std::min(heads, std::max<int64_t>(parallel.threads, kPackedBytes / head_bytes));
  for (; job.begin < heads; job.begin += at_once) {
    run_heads(job, std::min(at_once, heads - job.begin), parallel);
  }
}

}  // namespace nnkernels::lmul
