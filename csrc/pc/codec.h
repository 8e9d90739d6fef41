// The deterministic codec, arith=1: entry points without torch.
//
// Variables are coded in the tree's order. Beside every sample goes alpha_i(a), proportional to
// p(z_i = a, all coded before): it gives the cumulative frequencies of x_i, and the next variable's
// alpha follows from it. Encoder and decoder compute the same bits on every instruction set, for
// every number of threads and any division into lanes and blocks.
#pragma once

#include <cstdint>

#include "common/parallel.h"
#include "pc/cpu/tree.h"
#include "pc/pc.h"
#include "pc/rans.h"

namespace nnkernels::pc {

// Contiguous tables: pi [h], A [D, h, h] with A[root] unused, B [D, h, K], C [D, h, K + 1] with
// C[i, a, v] = sum_{w < v} B[i, a, w].
struct FrozenModel {
  int64_t h = 0, K = 0;
  const float* pi = nullptr;
  const float* A = nullptr;
  const float* B = nullptr;
  const float* C = nullptr;
  Tree tree;

  int64_t D() const { return tree.D; }
};

// Throws std::invalid_argument where parent and order [D] are no tree or h, K, precision are out of
// range.
FrozenModel frozen_model(const float* pi, const float* A, const float* B, const float* C,
                         const int64_t* parent, const int64_t* order, int64_t D, int64_t h,
                         int64_t K, int64_t precision);

// x [N, D], contiguous.
struct Samples {
  const void* x = nullptr;
  Symbol type = Symbol::uint8;
  int64_t N = 0;
};

// All of these throw std::invalid_argument for a symbol that is not below K, and CorruptStream
// where the tables are no model.

// low, width [N, D], columns in coding order.
void intervals(const FrozenModel& model, const Samples& samples, int precision, int32_t* low,
               int32_t* width, const Parallel& parallel);

// cdf [N, K + 1] of a variable, given those coded before it; others are not read.
void conditional_cdf(const FrozenModel& model, const Samples& samples, int64_t variable,
                     int precision, int32_t* cdf, const Parallel& parallel);

// words [lanes, rans_capacity(N, D, lanes)], counts [lanes].
void encode(const FrozenModel& model, const Samples& samples, int64_t lanes, int precision,
            int32_t* words, int32_t* counts, const Parallel& parallel);

struct DecodeArgs {
  const int32_t* words = nullptr;  // [lanes, row]
  int64_t lanes = 0, row = 0;
  const int32_t* counts = nullptr;  // [lanes]
  int64_t N = 0;
  int precision = 0;
  Symbol type = Symbol::uint8;
  void* x = nullptr;  // [N, D]
};
// Throws CorruptStream where the words are not what the encoder wrote for this model.
void decode(const FrozenModel& model, const DecodeArgs& args, const Parallel& parallel);

}  // namespace nnkernels::pc
