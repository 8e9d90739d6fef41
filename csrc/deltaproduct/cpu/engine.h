// What the drivers (scan.cpp, scan_grad.cpp) ask of the kernels of one instruction set.
//
// Forward, a panel of columns of S stays in the first cache while groups of a few micro-steps pass
// over it. With k_j, v_j, beta_j of a group's micro-steps, the state S before it and D_j the decay
// from S to after the gate of micro-step j (D_ij: from micro-step i on),
//
//   d_j = beta_j (v_j - D_j S^T k_j - sum_{i < j} D_ij (k_j . k_i) d_i)
//   o_t = scale (D_t S^T q_t + sum_{i <= t} D_it (q_t . k_i) d_i)
//   S  <- D_end S + sum_i k_i (D_iend d_i)^T
//
// One pass over the panel updates S and projects it on the k and q of the next group.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <type_traits>

#include "deltaproduct/deltaproduct.h"

// The kernel headers are compiled once per instruction set. What they share must be inlined or have
// internal linkage: a file compiled for AVX must not lend its copy to the scalar build.
#define NNK_VEC inline __attribute__((always_inline))

namespace nnkernels::deltaproduct {

// Memory aligned to a cache line, not initialised.
template <class Real>
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // At least this many numbers; what was in the buffer is lost when it grows.
  Real* get(int64_t count) {
    if (count > count_) {
      std::free(data_);
      count_ = 0;
      const int64_t size = sizeof(Real);
      const int64_t bytes = (count * size + 63) / 64 * 64;
      data_ = static_cast<Real*>(std::aligned_alloc(64, static_cast<size_t>(bytes)));
      if (data_ == nullptr) throw std::bad_alloc();
      count_ = bytes / size;
    }
    return data_;
  }

 private:
  Real* data_ = nullptr;
  int64_t count_ = 0;
};

// Micro-steps and outputs of a group. Two outputs: one after each of two micro-steps. One: after
// the last.
struct Shape {
  int steps, outputs;
};
constexpr int kMaxSteps = 3, kMaxOutputs = 2;
constexpr Shape kShapes[] = {{1, 0}, {1, 1}, {2, 0}, {2, 1}, {2, 2}, {3, 1}};
constexpr int kShapeCount = 6;

template <class Real>
struct Group {
  int shape = 0;            // index of kShapes
  int64_t step = 0;         // of its first micro-step in the block, and
  int64_t token = 0;        // of its first output
  int64_t gate[kMaxSteps];  // before each micro-step: of which token of the block, or -1
  const Real* k[kMaxSteps];
  const Real* q[kMaxOutputs];
  Real decay;  // D_end
  // d_j = v_factor[j] v_j - s_factor[j] S^T k_j - sum_i d_factor[j][i] d_i
  Real v_factor[kMaxSteps], s_factor[kMaxSteps], d_factor[kMaxSteps][kMaxSteps];
  Real to_end[kMaxSteps];  // D_jend
  // o_t = o_state[t] S^T q_t + sum_i o_step[t][i] d_i
  Real o_state[kMaxOutputs], o_step[kMaxOutputs][kMaxSteps];
};

// k_j . k_i for i < j, and q_t . k_i.
template <class Real>
struct Products {
  Real kk[kMaxSteps][kMaxSteps], qk[kMaxOutputs][kMaxSteps];
};

// Panels that a block of groups runs over, side by side.
template <class Real>
struct Panels {
  int64_t K = 0, count = 0;
  Real* state = nullptr;  // [count][K][panel]
  // Row i of panel p starts at v + i * v_stride + p * v_panel; likewise o.
  const Real* v = nullptr;
  Real* o = nullptr;
  int64_t v_stride = 0, v_panel = 0, o_stride = 0, o_panel = 0;
};
constexpr int64_t kMaxPanels = 8;

// c[m, n] = scale init[m, n] + sum_k a[m, k] b[k, n], where a[m, k] is a[m * a_row + k * a_step].
// n runs over whole vectors: up to kPad - 1 numbers after the last column are written and read.
template <class Real>
struct Product {
  int64_t M = 0, N = 0, K = 0;
  const Real* a = nullptr;
  int64_t a_row = 0, a_step = 1;
  const Real* b = nullptr;
  int64_t b_row = 0;
  Real* c = nullptr;
  int64_t c_row = 0;
  const Real* init = nullptr;  // with rows as those of c; nullptr: zeros
  Real scale = 1;
};

constexpr int64_t kPad = 16;
constexpr int64_t padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }

template <class Real>
struct Kernels {
  int64_t panel;  // columns

  // rows x columns numbers, followed by zeros up to `to_row` columns.
  void (*load)(Type type, const void* from, int64_t from_row, int64_t rows, int64_t columns,
               Real* to, int64_t to_row);
  void (*store)(const Real* from, int64_t from_row, int64_t rows, int64_t columns, Type type,
                void* to, int64_t to_row);
  // The same between rows of a state and its panels, [K][panel] each.
  void (*load_panels)(Type type, const void* from, int64_t from_row, int64_t K, int64_t columns,
                      Real* to);
  void (*store_panels)(const Real* from, int64_t K, int64_t columns, Type type, void* to,
                       int64_t to_row);
  Real (*dot)(const Real* a, const Real* b, int64_t n);
  // to[r][c] = sign * factor[r] * from[r][c]; rows of `row` numbers.
  void (*scale_rows)(const Real* from, const Real* factor, Real sign, int64_t rows, int64_t columns,
                     int64_t row, Real* to);
  // to[i] += from[i].
  void (*add)(const Real* from, int64_t n, Real* to);
  void (*group_products)(const Group<Real>& group, int64_t K, Products<Real>& products);
  void (*run)(const Group<Real>* groups, int64_t count, const Panels<Real>& panels);

  void (*multiply)(const Product<Real>& product);
  // Solves for x in place, row by row: x[i] -= sum_{j < i} a[i, j] y[j], y[i] = factor[i] x[i],
  // with rows of `columns` numbers, rounded up to whole vectors. Strides may be negative.
  void (*substitute)(const Real* a, int64_t a_row, int64_t a_column, const Real* factor,
                     int64_t factor_step, Real* x, Real* y, int64_t row, int64_t rows,
                     int64_t columns);
  // to[c][r] = from[r][c].
  void (*transpose)(const Real* from, int64_t from_row, int64_t rows, int64_t columns, Real* to,
                    int64_t to_row);
};

// The kernels of active_isa().
template <class Real>
const Kernels<Real>& kernels();

}  // namespace nnkernels::deltaproduct
