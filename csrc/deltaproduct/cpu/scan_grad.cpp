// The backward scan. A chunk of C tokens has N = C n micro-steps; rows q_t, k_i, v_i, decays
// E(a, b) = exp(g_{a+1} + .. + g_b) between the gates of two tokens, G0 from before the chunk and
// Ge to its end. With S the state before the chunk and X = [scale dO; dV] stacked:
//
//   Lh_ij = E(j, i) k_i . k_j for j < i          P_tj = E(j, t) q_t . k_j for tokens j <= t
//   delta = V - G0 K S - Lh D,  D = beta delta   S' = Ge S + (Ge K)^T D
//   E = P^T scale dO + Ge K dS' - Lh^T dV,       dV = beta E,  dbeta_i = E_i . delta_i
//   F = X D^T, decayed and masked like [P; -Lh]
//   [dQ; dK_row] = [G0; -G0] X S^T + F K         dK_col = F^T [Q; K] + Ge D dS'^T
//   dS = Ge dS' + [G0 Q; -G0 K]^T X
//
// dK is dK_row + dK_col, and a gate's gradient sums over the later tokens of its chunk
// q . dQ + k . (dK_row - dK_col), with dS' . S' for the last one.
//
// Segments of kSpacing tokens go in reverse: their states and D are computed again from the
// checkpoint, then their chunks go in reverse. A thread takes a key head with its value heads, so
// that dq and dk are summed in one order.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "deltaproduct/cpu/items.h"

namespace nnkernels::deltaproduct {
namespace {

// Calls of fewer key heads than this are divided into parts, by sizes alone: parts have partial
// sums of dq and dk of their own, which are then added in order.
constexpr int64_t kWantedItems = 4;
constexpr int64_t kMinPartColumns = 32;

// Parts of a key head: value heads times column blocks.
struct Parts {
  int64_t heads = 1, columns = 1;
  int64_t count() const { return heads * columns; }
};

Parts divide(const ScanArgs& args) {
  const int64_t items = std::max<int64_t>(args.sequences.count() * args.Hk, 1);
  const int64_t wanted = (kWantedItems + items - 1) / items;
  Parts parts;
  parts.heads = std::min(wanted, args.H / args.Hk);
  parts.columns = std::clamp<int64_t>((wanted + parts.heads - 1) / parts.heads, 1,
                                      std::max<int64_t>(args.V / kMinPartColumns, 1));
  return parts;
}

// Where gradients go: the results, or partial sums shaped like them.
struct Gradients {
  Output dq, dk, dg, dbeta;
};

struct Item {
  int64_t sequence, key_head, head_part, column_part;
};

// Short chunks have less to do inside, long ones fewer products with the state.
constexpr int64_t kChunkTokens = 16, kChunkSteps = 24;

int64_t chunk_tokens(int64_t n) {
  int64_t tokens = kChunkTokens;
  while (tokens > 1 && tokens * n > kChunkSteps) tokens /= 2;
  return tokens;
}

template <class Real>
class Worker {
 public:
  Worker(const ScanGradArgs& args, const Parts& parts, const std::vector<Item>& items,
         const std::vector<Gradients>& gradients)
      : args_(args),
        a_(args.forward),
        parts_(parts),
        items_(items),
        gradients_(gradients),
        kernels_(kernels<Real>()),
        n_(a_.n),
        tokens_(chunk_tokens(a_.n)),
        chunks_(kSpacing / tokens_),
        steps_(tokens_ * n_),
        rows_(tokens_ + steps_),
        row_(padded(a_.K)),
        step_row_(padded(steps_)),
        stack_row_(padded(rows_)),
        column_row_(padded((a_.V + parts.columns - 1) / parts.columns)) {
    const int64_t segment = chunks_ * rows_ * row_, state = a_.K * column_row_;
    stack_ = buffers_[0].get(segment);
    decayed_ = buffers_[1].get(segment);
    to_end_ = buffers_[2].get(segment);
    sums_ = buffers_[3].get(segment);
    products_ = buffers_[4].get(chunks_ * rows_ * step_row_);
    masked_ = buffers_[5].get(chunks_ * rows_ * step_row_);
    states_ = buffers_[6].get((chunks_ + 1) * state);
    grad_states_ = buffers_[7].get((a_.H / a_.Hk + parts.heads - 1) / parts.heads * state);
    d_ = buffers_[8].get(chunks_ * steps_ * column_row_);
    delta_ = buffers_[9].get(chunks_ * steps_ * column_row_);
    x_ = buffers_[10].get(rows_ * column_row_);
    e_ = buffers_[11].get(steps_ * column_row_);
    factors_ = buffers_[12].get(rows_ * step_row_);
    by_row_ = buffers_[13].get(rows_ * row_);
    by_column_ = buffers_[14].get(steps_ * row_);
    // What lies beyond the last column of these is read, though never used.
    turned_ = zeros(15, std::max(column_row_, row_) * stack_row_);
    turned_d_ = zeros(16, std::max(column_row_, row_) * step_row_);
    turned_rows_ = zeros(17, a_.K * stack_row_);
    turned_columns_ = zeros(18, a_.K * step_row_);
    numbers_ = buffers_[19].get(kSpacing * (5 * n_ + 4 + steps_));
    gate_ = numbers_;
    from_start_ = gate_ + kSpacing;
    start_factor_ = from_start_ + kSpacing;
    to_end_factor_ = start_factor_ + kSpacing * n_;
    between_ = to_end_factor_ + kSpacing * n_;
    beta_ = between_ + kSpacing * steps_;
    grad_beta_ = beta_ + kSpacing * n_;
    grad_gate_ = grad_beta_ + kSpacing * n_;
    norms_ = grad_gate_ + kSpacing;
  }

  void operator()(int64_t index) {
    item_ = items_[static_cast<size_t>(index)];
    out_ = gradients_[static_cast<size_t>(item_.head_part * parts_.columns + item_.column_part)];
    const Sequences& sequences = a_.sequences;
    batch_ = sequences.batch(item_.sequence);
    const int64_t group = a_.H / a_.Hk;
    first_head_ = item_.key_head * group + item_.head_part * group / parts_.heads;
    last_head_ = item_.key_head * group + (item_.head_part + 1) * group / parts_.heads;
    column_ = item_.column_part * a_.V / parts_.columns;
    columns_ = (item_.column_part + 1) * a_.V / parts_.columns - column_;
    const int64_t first = sequences.first(item_.sequence);
    const int64_t length = sequences.length(item_.sequence);
    for (int64_t head = first_head_; head < last_head_; ++head) load_grad_final(head);
    for (int64_t token = (length - 1) / kSpacing * kSpacing; token >= 0 && length > 0;
         token -= kSpacing) {
      const int64_t checkpoint = sequences.checkpoint(item_.sequence) + token / kSpacing;
      segment(first + token, std::min(kSpacing, length - token), checkpoint);
    }
    if (args_.dinitial.data == nullptr) return;
    for (int64_t head = first_head_; head < last_head_; ++head) {
      const int64_t at = state_index(item_.sequence, head);
      kernels_.store(grad_state(head), column_row_, a_.K, columns_, args_.dinitial.type,
                     element_at(args_.dinitial, at), a_.V);
    }
  }

 private:
  // The chunk c of a segment.
  struct Chunk {
    int64_t c, tokens, steps;  // of which the last chunk may have fewer
    int64_t rows() const { return tokens + steps; }
  };

  Real* zeros(int buffer, int64_t count) {
    Real* data = buffers_[buffer].get(count);
    std::fill_n(data, count, Real(0));
    return data;
  }

  int64_t state_size() const { return a_.K * column_row_; }
  Real* grad_state(int64_t head) const {
    return grad_states_ + (head - first_head_) * state_size();
  }
  // Of column `column_` in contiguous states.
  int64_t state_index(int64_t place, int64_t head) const {
    return (place * a_.H + head) * a_.K * a_.V + column_;
  }
  Type own_type() const { return a_.float64 ? Type::float64 : Type::float32; }

  void load_grad_final(int64_t head) {
    Real* to = grad_state(head);
    if (args_.grad_final.data == nullptr) return void(std::fill_n(to, state_size(), Real(0)));
    kernels_.load(args_.grad_final.type,
                  state_at(args_.grad_final, item_.sequence, head, 0, column_),
                  args_.grad_final.row_stride, a_.K, columns_, to, column_row_);
  }

  template <class F>
  void each_chunk(int64_t tokens, F&& f) const {
    for (int64_t c = 0; c * tokens_ < tokens; ++c) {
      const int64_t count = std::min(tokens_, tokens - c * tokens_);
      f(Chunk{c, count, count * n_});
    }
  }

  // Rows of a chunk: [q; k] as given, as they enter the decayed products, and their gradients.
  Real* stack(const Chunk& chunk) const { return stack_ + chunk.c * rows_ * row_; }
  Real* decayed(const Chunk& chunk) const { return decayed_ + chunk.c * rows_ * row_; }
  Real* to_end(const Chunk& chunk) const {
    return a_.g.data ? to_end_ + chunk.c * rows_ * row_ : stack(chunk) + chunk.tokens * row_;
  }
  Real* sums(const Chunk& chunk) const { return sums_ + chunk.c * rows_ * row_; }
  Real* products(const Chunk& chunk) const { return products_ + chunk.c * rows_ * step_row_; }
  Real* masked(const Chunk& chunk) const { return masked_ + chunk.c * rows_ * step_row_; }
  Real* d(const Chunk& chunk) const { return d_ + chunk.c * steps_ * column_row_; }
  Real* delta(const Chunk& chunk) const { return delta_ + chunk.c * steps_ * column_row_; }
  Real* state(const Chunk& chunk) const { return states_ + chunk.c * state_size(); }
  Real* end_state(const Chunk& chunk) const { return state(chunk) + state_size(); }
  Real* beta(const Chunk& chunk) const { return beta_ + chunk.c * steps_; }
  // At [t * steps_ + j]: E(s, t) for the token s of micro-step j.
  Real* between(const Chunk& chunk) const { return between_ + chunk.c * tokens_ * steps_; }
  Real chunk_gate(const Chunk& chunk) const {
    return from_start_[chunk.c * tokens_ + chunk.tokens - 1];
  }

  void segment(int64_t token, int64_t tokens, int64_t checkpoint) {
    each_chunk(tokens, [&](const Chunk& chunk) { load_rows(token, chunk); });
    for (int64_t head = first_head_; head < last_head_; ++head) {
      load_numbers(token, tokens, head);
      kernels_.load(own_type(),
                    static_cast<const Real*>(a_.checkpoints) + state_index(checkpoint, head), a_.V,
                    a_.K, columns_, states_, column_row_);
      each_chunk(tokens, [&](const Chunk& chunk) {
        decay_rows(chunk);
        advance(token, head, chunk, (chunk.c + 1) * tokens_ < tokens);
      });
      std::fill_n(grad_gate_, kSpacing, Real(0));
      for (int64_t c = (tokens - 1) / tokens_; c >= 0; --c) {
        const int64_t count = std::min(tokens_, tokens - c * tokens_);
        reverse(token, head, Chunk{c, count, count * n_});
      }
      store_numbers(token, tokens, head);
    }
    each_chunk(tokens, [&](const Chunk& chunk) { store_rows(token, chunk); });
  }

  // The row's number in column `column_`.
  const char* first_column(const Rows& rows, int64_t row, int64_t head) const {
    return static_cast<const char*>(row_at(rows, batch_, row, head)) + bytes_of(rows.type, column_);
  }
  void prefetch(const Rows& rows, int64_t row, int64_t head, int64_t count) const {
    prefetch_rows<0>(first_column(rows, row, head), bytes_of(rows.type, rows.row_stride), count,
                     bytes_of(rows.type, columns_));
  }

  // q and k of a chunk, and their products; the gradients become 0.
  void load_rows(int64_t token, const Chunk& chunk) {
    token += chunk.c * tokens_;
    Real* q = stack(chunk);
    Real* k = q + chunk.tokens * row_;
    kernels_.load(a_.q.type, row_at(a_.q, batch_, token, item_.key_head), a_.q.row_stride,
                  chunk.tokens, a_.K, q, row_);
    kernels_.load(a_.k.type, row_at(a_.k, batch_, token * n_, item_.key_head), a_.k.row_stride,
                  chunk.steps, a_.K, k, row_);
    if (a_.l2norm) {
      for (int64_t r = 0; r < chunk.rows(); ++r) {
        Real* row = q + r * row_;
        const Real square = kernels_.dot(row, row, a_.K);
        const Real factor = 1 / std::sqrt(square + static_cast<Real>(kNormEpsilon));
        norms_[chunk.c * rows_ + r] = factor;
        for (int64_t i = 0; i < a_.K; ++i) row[i] *= factor;
      }
    }
    kernels_.transpose(k, row_, chunk.steps, a_.K, turned_d_, step_row_);
    multiply(chunk.rows(), chunk.steps, a_.K, {q, row_, 1}, {turned_d_, step_row_},
             {products(chunk), step_row_});
    std::fill_n(sums(chunk), chunk.rows() * row_, Real(0));
  }

  // Gates and beta of a segment.
  void load_numbers(int64_t token, int64_t tokens, int64_t head) {
    for (int64_t i = 0; i < tokens * n_; ++i) {
      beta_[i] = load_number<Real>(a_.beta.type, row_at(a_.beta, batch_, token * n_ + i, head), 0);
    }
    for (int64_t t = 0; t < tokens; ++t) {
      gate_[t] =
          a_.g.data
              ? std::exp(load_number<Real>(a_.g.type, row_at(a_.g, batch_, token + t, head), 0))
              : Real(1);
    }
    each_chunk(tokens, [&](const Chunk& chunk) {
      const int64_t first = chunk.c * tokens_;
      Real* table = between(chunk);
      Real since_start = 1;
      for (int64_t t = 0; t < chunk.tokens; ++t) {
        const Real gate = gate_[first + t];
        since_start *= gate;
        from_start_[first + t] = since_start;
        Real* row = table + t * steps_;
        for (int64_t j = 0; j < t * n_; ++j) row[j] = row[j - steps_] * gate;
        for (int64_t j = t * n_; j < (t + 1) * n_; ++j) row[j] = 1;
      }
      const Real* last = table + (chunk.tokens - 1) * steps_;
      for (int64_t j = 0; j < chunk.steps; ++j) {
        to_end_factor_[chunk.c * steps_ + j] = last[j];
        start_factor_[chunk.c * steps_ + j] = from_start_[first + j / n_];
      }
    });
  }

  // f(r, token, steps): the rows [q; k] of a chunk, the token they belong to, and how many
  // micro-steps of the chunk they see.
  template <class F>
  void each_row(const Chunk& chunk, F&& f) const {
    for (int64_t t = 0; t < chunk.tokens; ++t) f(t, t, (t + 1) * n_);
    for (int64_t i = 0; i < chunk.steps; ++i) f(chunk.tokens + i, i / n_, i);
  }

  // [q; k] rows times [G0; -G0].
  void scale_by_start(const Chunk& chunk, const Real* from, int64_t columns, Real* to) const {
    const int64_t keys = chunk.tokens * row_;
    kernels_.scale_rows(from, from_start_ + chunk.c * tokens_, 1, chunk.tokens, columns, row_, to);
    kernels_.scale_rows(from + keys, start_factor_ + chunk.c * steps_, -1, chunk.steps, columns,
                        row_, to + keys);
  }
  void scale_to_end(const Chunk& chunk, const Real* from, int64_t columns, Real* to) const {
    kernels_.scale_rows(from, to_end_factor_ + chunk.c * steps_, 1, chunk.steps, columns, row_, to);
  }

  // [G0 Q; -G0 K], Ge K, and [P; Lh].
  void decay_rows(const Chunk& chunk) {
    scale_by_start(chunk, stack(chunk), row_, decayed(chunk));
    if (a_.g.data) scale_to_end(chunk, stack(chunk) + chunk.tokens * row_, row_, to_end(chunk));
    each_row(chunk, [&](int64_t r, int64_t t, int64_t steps) {
      mask_row(chunk, t, steps, 1, products(chunk) + r * step_row_, masked(chunk) + r * step_row_);
    });
  }

  // factor * decay * from for the micro-steps that token t sees, else 0.
  void mask_row(const Chunk& chunk, int64_t t, int64_t steps, Real factor, const Real* from,
                Real* to) const {
    const Real* decays = between(chunk) + t * steps_;
    for (int64_t j = 0; j < steps; ++j) to[j] = factor * decays[j] * from[j];
    for (int64_t j = steps; j < chunk.steps; ++j) to[j] = 0;
  }

  // delta and D of a chunk, and the state after it if that is wanted.
  void advance(int64_t token, int64_t head, const Chunk& chunk, bool more) {
    token += chunk.c * tokens_;
    const char* v = first_column(a_.v, token * n_, head);
    if (more) prefetch(a_.v, (token + chunk.tokens) * n_, head, chunk.steps);
    kernels_.load(a_.v.type, v, a_.v.row_stride, chunk.steps, columns_, delta(chunk), column_row_);
    // The zeros after the last column stay zeros: whole rows of states are multiplied later.
    multiply(chunk.steps, column_row_, a_.K, {decayed(chunk) + chunk.tokens * row_, row_, 1},
             {state(chunk), column_row_}, {delta(chunk), column_row_}, delta(chunk));
    const Real* lh = masked(chunk) + chunk.tokens * step_row_;
    kernels_.substitute(lh, step_row_, 1, beta(chunk), 1, delta(chunk), d(chunk), column_row_,
                        chunk.steps, column_row_);
    if (!more && a_.g.data == nullptr) return;
    multiply(a_.K, column_row_, chunk.steps, {to_end(chunk), 1, row_}, {d(chunk), column_row_},
             {end_state(chunk), column_row_}, state(chunk), chunk_gate(chunk));
  }

  void reverse(int64_t token, int64_t head, const Chunk& chunk) {
    token += chunk.c * tokens_;
    const int64_t tokens = chunk.tokens, steps = chunk.steps;
    Real* grad_v = x_ + tokens * column_row_;
    Real* grad_s = grad_state(head);

    const int64_t at = ((batch_ * a_.sequences.T + token) * n_ * a_.H + head) * a_.V + column_;
    prefetch_rows<1>(element_at(args_.dv, at), bytes_of(args_.dv.type, a_.H * a_.V), steps,
                     bytes_of(args_.dv.type, columns_));
    if (chunk.c > 0) prefetch(args_.grad_o, token - tokens_, head, tokens_);
    kernels_.load(args_.grad_o.type, first_column(args_.grad_o, token, head),
                  args_.grad_o.row_stride, tokens, columns_, x_, column_row_);
    const Real one = 1;
    kernels_.scale_rows(x_, &one, static_cast<Real>(a_.scale), 1, tokens * column_row_, 0, x_);

    multiply(steps, columns_, tokens, {masked(chunk), 1, step_row_}, {x_, column_row_},
             {e_, column_row_});
    multiply(steps, columns_, a_.K, {to_end(chunk), row_, 1}, {grad_s, column_row_},
             {e_, column_row_}, e_);
    const int64_t last = steps - 1;
    kernels_.substitute(masked(chunk) + (tokens + last) * step_row_ + last, -1, -step_row_,
                        beta(chunk) + last, -1, e_ + last * column_row_,
                        grad_v + last * column_row_, -column_row_, steps, columns_);
    kernels_.store(grad_v, column_row_, steps, columns_, args_.dv.type, element_at(args_.dv, at),
                   a_.H * a_.V);
    for (int64_t i = 0; i < steps; ++i) {
      grad_beta_[chunk.c * steps_ + i] =
          kernels_.dot(e_ + i * column_row_, delta(chunk) + i * column_row_, columns_);
    }

    kernels_.transpose(x_, column_row_, chunk.rows(), columns_, turned_, stack_row_);
    kernels_.transpose(d(chunk), column_row_, steps, columns_, turned_d_, step_row_);
    multiply(chunk.rows(), steps, columns_, {x_, column_row_, 1}, {turned_d_, step_row_},
             {factors_, step_row_});
    each_row(chunk, [&](int64_t r, int64_t t, int64_t seen) {
      Real* row = factors_ + r * step_row_;
      mask_row(chunk, t, seen, r < tokens ? 1 : -1, row, row);
    });
    grad_rows(chunk, grad_s);
    if (a_.g.data) add_grad_gates(chunk, grad_s);

    multiply(a_.K, columns_, chunk.rows(), {decayed(chunk), 1, row_}, {x_, column_row_},
             {grad_s, column_row_}, grad_s, chunk_gate(chunk));
  }

  // [dQ; dK_row] and dK_col.
  void grad_rows(const Chunk& chunk, const Real* grad_s) {
    const int64_t tokens = chunk.tokens, steps = chunk.steps;
    multiply(a_.K, chunk.rows(), columns_, {state(chunk), column_row_, 1}, {turned_, stack_row_},
             {turned_rows_, stack_row_});
    multiply(a_.K, steps, columns_, {grad_s, column_row_, 1}, {turned_d_, step_row_},
             {turned_columns_, step_row_});
    kernels_.transpose(turned_rows_, stack_row_, a_.K, chunk.rows(), by_row_, row_);
    kernels_.transpose(turned_columns_, step_row_, a_.K, steps, by_column_, row_);
    if (a_.g.data) scale_to_end(chunk, by_column_, a_.K, by_column_);
    scale_by_start(chunk, by_row_, a_.K, by_row_);
    const Real* k = stack(chunk) + tokens * row_;
    multiply(chunk.rows(), a_.K, steps, {factors_, step_row_, 1}, {k, row_}, {by_row_, row_},
             by_row_);
    multiply(steps, a_.K, chunk.rows(), {factors_, 1, step_row_}, {stack(chunk), row_},
             {by_column_, row_}, by_column_);
    kernels_.add(by_row_, chunk.rows() * row_, sums(chunk));
    kernels_.add(by_column_, steps * row_, sums(chunk) + tokens * row_);
  }

  void add_grad_gates(const Chunk& chunk, const Real* grad_s) {
    Real* sum = grad_gate_ + chunk.c * tokens_;
    each_row(chunk, [&](int64_t r, int64_t t, int64_t) {
      const Real* row = stack(chunk) + r * row_;
      sum[t] += kernels_.dot(row, by_row_ + r * row_, a_.K);
      if (r < chunk.tokens) return;
      sum[t] -= kernels_.dot(row, by_column_ + (r - chunk.tokens) * row_, a_.K);
    });
    sum[chunk.tokens - 1] += kernels_.dot(grad_s, end_state(chunk), state_size());
    for (int64_t t = chunk.tokens - 2; t >= 0; --t) sum[t] += sum[t + 1];
  }

  void store_numbers(int64_t token, int64_t tokens, int64_t head) {
    const int64_t at = (batch_ * a_.sequences.T + token) * a_.H + head;
    for (int64_t i = 0; i < tokens * n_; ++i) {
      const int64_t place = ((batch_ * a_.sequences.T + token) * n_ + i) * a_.H + head;
      store_number<Real>(out_.dbeta.type, out_.dbeta.data, place, grad_beta_[i]);
    }
    if (out_.dg.data == nullptr) return;
    for (int64_t t = 0; t < tokens; ++t) {
      store_number<Real>(out_.dg.type, out_.dg.data, at + t * a_.H,
                         gate_[t] == 0 ? Real(0) : grad_gate_[t]);
    }
  }

  void store_rows(int64_t token, const Chunk& chunk) {
    token += chunk.c * tokens_;
    Real* sum = sums(chunk);
    if (a_.l2norm) {
      for (int64_t r = 0; r < chunk.rows(); ++r) {
        const Real* row = stack(chunk) + r * row_;
        const Real factor = norms_[chunk.c * rows_ + r];
        const Real along = kernels_.dot(row, sum + r * row_, a_.K);
        for (int64_t i = 0; i < a_.K; ++i) {
          sum[r * row_ + i] = factor * (sum[r * row_ + i] - row[i] * along);
        }
      }
    }
    const int64_t at = (batch_ * a_.sequences.T + token) * a_.Hk;
    kernels_.store(sum, row_, chunk.tokens, a_.K, out_.dq.type,
                   element_at(out_.dq, (at + item_.key_head) * a_.K), a_.Hk * a_.K);
    kernels_.store(sum + chunk.tokens * row_, row_, chunk.steps, a_.K, out_.dk.type,
                   element_at(out_.dk, (at * n_ + item_.key_head) * a_.K), a_.Hk * a_.K);
  }

  struct Left {
    const Real* data;
    int64_t row, step;
  };
  struct Right {
    const Real* data;
    int64_t row;
  };
  struct Result {
    Real* data;
    int64_t row;
  };
  void multiply(int64_t M, int64_t N, int64_t K, const Left& a, const Right& b, const Result& c,
                const Real* init = nullptr, Real scale = 1) const {
    kernels_.multiply({M, N, K, a.data, a.row, a.step, b.data, b.row, c.data, c.row, init, scale});
  }

  const ScanGradArgs& args_;
  const ScanArgs& a_;
  const Parts& parts_;
  const std::vector<Item>& items_;
  const std::vector<Gradients>& gradients_;
  const Kernels<Real>& kernels_;
  // Sizes of a full chunk and, in numbers from one row to the next, of its matrices.
  const int64_t n_, tokens_, chunks_, steps_, rows_, row_, step_row_, stack_row_, column_row_;

  Item item_;
  Gradients out_;
  int64_t batch_ = 0, first_head_ = 0, last_head_ = 0, column_ = 0, columns_ = 0;

  Buffer<Real> buffers_[20];
  // Of a segment, chunk by chunk.
  Real *stack_, *decayed_, *to_end_, *sums_;  // rows of K numbers
  Real *products_, *masked_;                  // [Q; K] K^T, and [P; Lh]
  Real *states_, *d_, *delta_;
  Real *gate_, *from_start_, *start_factor_, *to_end_factor_, *between_, *beta_, *grad_beta_,
      *grad_gate_, *norms_;
  Real* numbers_;
  Real* grad_states_;  // of each value head
  // Of a chunk.
  Real *x_, *e_, *factors_, *by_row_, *by_column_;
  Real *turned_, *turned_d_, *turned_rows_, *turned_columns_;  // transposes
};

// Partial sums, one set for each part but where the results themselves serve.
template <class Real>
class Partials {
 public:
  Partials(const ScanGradArgs& args, const Parts& parts) {
    const ScanArgs& a = args.forward;
    const Sequences& sequences = a.sequences;
    const int64_t end =
        sequences.bounds.empty() ? sequences.B * sequences.T : sequences.bounds.back();
    const Gradients results{args.dq, args.dk, args.dg, args.dbeta};
    const Output all[] = {args.dq, args.dk, args.dg, args.dbeta};
    const int64_t counts[] = {end * a.Hk * a.K, end * a.n * a.Hk * a.K, end * a.H, end * a.n * a.H};
    const int64_t copies[] = {parts.count(), parts.count(), parts.columns, parts.columns};
    gradients_.assign(static_cast<size_t>(parts.count()), results);
    for (int i = 0; i < 4; ++i) {
      if (copies[i] == 1 || all[i].data == nullptr) continue;
      Real* data = buffers_[i].get(copies[i] * counts[i]);
      sums_.push_back({data, counts[i], copies[i], all[i]});
      for (int64_t part = 0; part < parts.count(); ++part) {
        const int64_t copy = i < 2 ? part : part % parts.columns;
        Gradients& gradients = gradients_[static_cast<size_t>(part)];
        Output* outputs[] = {&gradients.dq, &gradients.dk, &gradients.dg, &gradients.dbeta};
        *outputs[i] = {data + copy * counts[i], a.float64 ? Type::float64 : Type::float32};
      }
    }
  }

  const std::vector<Gradients>& gradients() const { return gradients_; }

  void add(const Parallel& parallel) const {
    for (const Sum& sum : sums_) {
      parallel_for(parallel, sum.count, 1 << 14, [&](int64_t begin, int64_t end) {
        for (int64_t copy = 1; copy < sum.copies; ++copy) {
          const Real* from = sum.data + copy * sum.count;
          for (int64_t i = begin; i < end; ++i) sum.data[i] += from[i];
        }
        kernels<Real>().store(sum.data + begin, 0, 1, end - begin, sum.result.type,
                              element_at(sum.result, begin), 0);
      });
    }
  }

 private:
  struct Sum {
    Real* data;
    int64_t count, copies;
    Output result;
  };
  Buffer<Real> buffers_[4];
  std::vector<Sum> sums_;
  std::vector<Gradients> gradients_;
};

template <class Real>
void scan_grad_as(const ScanGradArgs& args, const Parallel& parallel) {
  const ScanArgs& a = args.forward;
  const Parts parts = divide(a);
  const Partials<Real> partials(args, parts);
  std::vector<int64_t> order(static_cast<size_t>(a.sequences.count()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) {
    return a.sequences.length(x) > a.sequences.length(y);
  });
  std::vector<Item> items;
  for (const int64_t s : order) {
    for (int64_t head = 0; head < a.Hk; ++head) {
      for (int64_t part = 0; part < parts.count(); ++part) {
        items.push_back({s, head, part / parts.columns, part % parts.columns});
      }
    }
  }
  for_each_item(parallel, static_cast<int64_t>(items.size()),
                [&] { return Worker<Real>(args, parts, items, partials.gradients()); });
  partials.add(parallel);
}

// Rows beyond the last sequence.
void clear_unused(const ScanGradArgs& args) {
  const ScanArgs& a = args.forward;
  const Sequences& sequences = a.sequences;
  if (sequences.bounds.empty()) return;
  const auto clear = [&](const Output& output, int64_t row) {
    if (output.data == nullptr) return;
    const int64_t first = sequences.bounds.back();
    std::memset(element_at(output, first * row), 0,
                static_cast<size_t>(bytes_of(output.type, (sequences.T - first) * row)));
  };
  clear(args.dq, a.Hk * a.K);
  clear(args.dk, a.n * a.Hk * a.K);
  clear(args.dv, a.n * a.H * a.V);
  clear(args.dbeta, a.n * a.H);
  clear(args.dg, a.H);
}

}  // namespace

void scan_grad(const ScanGradArgs& args, const Parallel& parallel) {
  clear_unused(args);
  const ScanArgs& a = args.forward;
  if (a.H == 0 || a.sequences.count() == 0) return;
  a.float64 ? scan_grad_as<double>(args, parallel) : scan_grad_as<float>(args, parallel);
}

}  // namespace nnkernels::deltaproduct
