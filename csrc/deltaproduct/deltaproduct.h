// The chunked (Gated) DeltaProduct scan (arXiv 2502.10297) on the CPU: entry points without torch.
//
// One sequence and head, state S [K, V], n micro-steps a token:
//
//   for each token t:
//     S <- exp(g_t) S
//     for j < n: S <- S + beta_tj k_tj (v_tj - S^T k_tj)^T
//     o_t = scale S^T q_t
//
// Everything is computed in float32, or in float64 where q, k and v are float64; the state is never
// rounded below that but for a narrower `final_state` of the caller. Columns of S do not meet: no
// result depends on the thread count.
#pragma once

#include <cstdint>
#include <vector>

#include "common/parallel.h"

namespace nnkernels::deltaproduct {

enum class Type : int { float32, bfloat16, float16, float64 };

constexpr int64_t type_size(Type type) {
  return type == Type::float64 ? 8 : type == Type::float32 ? 4 : 2;
}

// Tokens from one checkpointed state to the next.
constexpr int64_t kSpacing = 64;

// Element [batch, row, head, i] is at data + batch * batch_stride + row * row_stride +
// head * head_stride + i, counted in elements. beta and g have i = 0 alone.
struct Rows {
  const void* data = nullptr;  // nullptr: absent
  Type type = Type::float32;
  int64_t batch_stride = 0, row_stride = 0, head_stride = 0;
};

// Element [sequence, head, r, c] is at data + sequence * sequence_stride + head * head_stride +
// r * row_stride + c.
struct States {
  void* data = nullptr;  // nullptr: absent
  Type type = Type::float32;
  int64_t sequence_stride = 0, head_stride = 0, row_stride = 0;
};

// Contiguous; nullptr: not wanted.
struct Output {
  void* data = nullptr;
  Type type = Type::float32;
};

// The sequences of a call. Without `bounds` there are B of T tokens each, else B = 1 and sequence s
// has the tokens [bounds[s], bounds[s + 1]).
struct Sequences {
  int64_t B = 0, T = 0;
  std::vector<int64_t> bounds;

  int64_t count() const { return bounds.empty() ? B : static_cast<int64_t>(bounds.size()) - 1; }
  int64_t batch(int64_t s) const { return bounds.empty() ? s : 0; }
  int64_t first(int64_t s) const { return bounds.empty() ? 0 : bounds[static_cast<size_t>(s)]; }
  int64_t length(int64_t s) const {
    return bounds.empty() ? T : bounds[static_cast<size_t>(s) + 1] - first(s);
  }
  // Checkpoint i of sequence s, the state before its token i * kSpacing, is number checkpoint(s) +
  // i of checkpoints().
  int64_t checkpoint(int64_t s) const {
    return bounds.empty() ? s * ((T + kSpacing - 1) / kSpacing) : first(s) / kSpacing + s;
  }
  int64_t checkpoints() const { return bounds.empty() ? checkpoint(B) : T / kSpacing + count(); }
};

struct ScanArgs {
  Sequences sequences;
  int64_t Hk = 0, H = 0, K = 0, V = 0;
  int64_t n = 1;         // micro-steps a token
  Rows q, k, v;          // [B, T, Hk, K], [B, T n, Hk, K], [B, T n, H, V]; q and v may be absent
  Rows beta, g;          // [B, T n, H], [B, T, H]; g may be absent
  bool float64 = false;  // the dtype computed in
  bool l2norm = false;   // of the rows of q and k
  double scale = 1.0;
  States initial;         // absent: zero, or
  bool identity = false;  // the first columns of the unit matrix
  // Of `initial` and `final`: the state of sequence s is number slots[s], where not nullptr; the
  // output of one with slot -1 is 0.
  const int64_t* slots = nullptr;

  Output o;      // [B, T, H, V]
  States final;  // may be `initial`
  // [checkpoints(), H, K, V], of the dtype computed in; nullptr: not wanted.
  void* checkpoints = nullptr;
};
void scan(const ScanArgs& args, const Parallel& parallel);

struct ScanGradArgs {
  ScanArgs forward;   // `o` and `final` unused, `checkpoints` read
  Rows grad_o;        // [B, T, H, V]
  States grad_final;  // may be absent
  Output dq, dk, dv;  // shaped as q, k, v
  Output dg, dbeta;   // shaped as g, beta
  Output dinitial;    // [sequences, H, K, V]
};
void scan_grad(const ScanGradArgs& args, const Parallel& parallel);

}  // namespace nnkernels::deltaproduct
