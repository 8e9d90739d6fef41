// Inference in hidden Chow-Liu trees on the CPU: entry points without torch.
//
// A rooted tree on D variables x_i < K; each has a hidden state z_i < h, and
//
//   p(x) = sum_z pi(z_root) prod_{i != root} A_i[z_parent(i), z_i] prod_i B_i[z_i, x_i].
//
// Upward messages u_i = e_i * prod_children beta_c, with e_i = B_i[:, x_i] and beta_i = A_i u_i,
// are rescaled by exact powers of two. Samples that agree on all variables below a node share its
// messages, upward and downward: each is computed once. No result depends on the thread count.
#pragma once

#include <cstdint>

#include "common/parallel.h"

namespace nnkernels::pc {

constexpr int64_t kMaxStates = 256;
constexpr int64_t kMaxValues = 4096;

enum class Type : int { float32, float64 };
enum class Symbol : int { uint8, int16 };

// x[n, i] is at x + n * row + i, counted in elements; mask[n, i] = true: x[n, i] is missing.
struct Evidence {
  const void* x = nullptr;
  Symbol type = Symbol::uint8;
  int64_t N = 0, row = 0;
  const bool* mask = nullptr;  // nullptr: nothing is missing
  int64_t mask_row = 0;
};

// Contiguous tables: pi [h], A [D, h, h] with A[root] unused, B [D, h, K].
struct Model {
  Type type = Type::float32;
  int64_t D = 0, h = 0, K = 0;
  const void* pi = nullptr;
  const void* A = nullptr;
  const void* B = nullptr;
  const int64_t* parent = nullptr;  // [D], -1 at the root
  const int64_t* order = nullptr;   // [D], a depth-first preorder
};

// All numbers are of the model's type. Throws std::invalid_argument where parent and order are no
// tree or a symbol is not below K.
struct ForwardArgs {
  Model model;
  Evidence evidence;
  void* ll = nullptr;  // [N], natural logarithm; -inf where p(x) = 0
  // [D, N, h], rescaled to maxima in [0.5, 1); nullptr: not wanted.
  void* u = nullptr;
};
void forward(const ForwardArgs& args, const Parallel& parallel);

// d/d theta of sum_n weights[n] ll[n] for theta = pi, A, B, without dividing by theta, so right
// where theta is 0; `counts`: times theta, which are the expected counts (flows). Samples with
// p(x) = 0 add nothing.
struct FlowsArgs {
  Model model;
  Evidence evidence;
  const void* weights = nullptr;  // [N]; nullptr: all 1
  bool counts = true;
  void* ll = nullptr;  // [N]; nullptr: not wanted
  void* pi = nullptr;  // results, shaped as the tables; that of A[root] is 0
  void* A = nullptr;
  void* B = nullptr;
};
void flows(const FlowsArgs& args, const Parallel& parallel);

// A step of EM on rows of contiguous numbers, with c = counts and w = width:
//
//   theta <- (1 - step) theta + step (c + pseudo_count / w) / (sum c + pseudo_count)
//
// Rows whose sum is not positive stay as they are.
struct UpdateArgs {
  Type type = Type::float32;
  int64_t rows = 0, width = 0;
  const void* counts = nullptr;
  double pseudo_count = 0, step = 1;
  void* theta = nullptr;
};
void update(const UpdateArgs& args, const Parallel& parallel);

}  // namespace nnkernels::pc
