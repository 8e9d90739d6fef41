// What the drivers (forward.cpp, flows.cpp) ask of the kernels of one instruction set.
//
// Rows are padded with zeros to `width` numbers, whole vectors. e_i is normalised per value v by a
// power of two, factor[v], before anything else; what is upwards of it follows. With the children c
// of node i in reverse coding order, a row of i being above row below_c of c,
//
//   P_0 = e_i, P_c = (P_before * beta_c) f_c with f_c a power of two, u_i = P_last, beta_i = A_i
//   u_i
//
// and downwards, from t_i = d(sum of log p) / d u_i,
//
//   R_last = t_i, R_before = R_c * beta_c f_c, q_c = sum over rows of P_before * R_c f_c,
//   dB_i[:, v] += R_0, t_c = q_c A_c, dA_c += q_c^T u_c,
//
// where nothing is divided, so a parameter may be 0.
#pragma once

#include <cstdint>

#include "pc/cpu/buffer.h"
#include "pc/cpu/rows.h"

namespace nnkernels::pc {

// Rows that kernels work on at a time, in the first cache.
constexpr int64_t kChunk = 48;
// Buffers of rows end with room for so many more: kernels compute rows in groups.
constexpr int64_t kSpareRows = 16;

template <class Real>
struct Child {
  const Real* beta = nullptr;
  const uint16_t* below = nullptr;    // nullptr: the same row
  const int32_t* exponent = nullptr;  // of its rows
  Real* scale = nullptr;              // f_c, by rows of the parent
  Real* q = nullptr;                  // added to by q_below; where that is nullptr written, and
  const uint16_t* q_below = nullptr;  // where below is nullptr too, may be beta
};

template <class Real>
struct Node {
  int64_t h = 0, K = 0;
  const Real* A = nullptr;  // [h, h]; nullptr at the root
  const Real* B = nullptr;  // [h, K]
  // The values that occur, by which e_i is a row of `leaf`, already normalised by `factor`; which
  // of them each row has.
  const uint16_t* distinct = nullptr;
  int64_t distinct_count = 0;
  Real* leaf = nullptr;    // [distinct_count, width]
  Real* factor = nullptr;  // [distinct_count]
  const uint16_t* values = nullptr;
  int64_t rows = 0;                       // all of the node's
  int64_t begin = 0, end = 0;             // those to work on
  const Child<Real>* children = nullptr;  // the last in coding order first
  int64_t child_count = 0;
};

template <class Real>
struct Upward {
  Node<Real> node;
  int32_t* exponent = nullptr;  // [rows]
  Real* beta = nullptr;         // [rows, width]; at the root u
  Real* u = nullptr;            // [rows, width]; nullptr: not wanted
};

template <class Real>
struct Downward {
  Node<Real> node;
  const Real* q = nullptr;  // [rows, width]; at the root t
  bool spread = true;       // computes u, R_0 and the children's q
  bool count = true;        // adds to dA and dB
  Real* u = nullptr;     // [rows, width] each, kept from the one to the other; nullptr where both
  Real* ends = nullptr;  // are done at once
  bool times = false;    // by the parameters
  bool add = false;      // to the results, else written
  bool stream = false;   // dB past the caches
  Real* dA = nullptr;    // [h, h]
  Real* dB = nullptr;    // [h, K]
};

// Scratch of one thread.
template <class Real>
struct Scratch {
  Buffer<Real> leaf, factor, weights, u, t, ends, prefix, dA, dB, q, rows;
  Buffer<int32_t> slots;
  std::vector<Child<Real>> children;
  Classifier classifier;
};

template <class Real>
struct Kernels {
  int64_t lanes;
  // Writes the node's `leaf` and `factor`.
  void (*read_leaf)(const Node<Real>& node, Scratch<Real>& scratch);
  void (*up)(const Upward<Real>& work, Scratch<Real>& scratch);
  void (*down)(const Downward<Real>& work, Scratch<Real>& scratch);
  // to[below[r]] += from[r], rows of `width` numbers; below nullptr: the same row.
  void (*gather)(const Real* from, const uint16_t* below, int64_t rows, int64_t width, Real* to);
  // p[r] = pi . u[r].
  void (*root)(const Real* pi, const Real* u, int64_t rows, int64_t h, int64_t width, Real* p);
  // t[r] = weight[r] pi and dpi += sum over rows of weight[r] u[r]; padding of t becomes 0.
  void (*root_down)(const Real* pi, const Real* u, const Real* weight, int64_t rows, int64_t h,
                    int64_t width, Real* t, Real* dpi);
  // The step of update() on `rows` rows.
  void (*update)(const Real* counts, int64_t rows, int64_t width, Real pseudo_count, Real step,
                 Real* theta);
};

// The kernels of active_isa() for rows of h numbers.
template <class Real>
const Kernels<Real>& kernels(int64_t h);

}  // namespace nnkernels::pc
