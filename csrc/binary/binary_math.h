// The arithmetic of single values, shared by the CPU and CUDA kernels.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/convert.h"
#include "common/hd.h"

namespace nnkernels::binary {

// Is the number below zero? `code` is the bit pattern, sign-extended; `infinity` that of its
// format. Comparing integers keeps subnormals, whatever the mode of the FPU; -0 and NaN are not
// negative.
template <class Int>
NNK_HD bool is_negative(Int code, Int infinity) {
  // Negative numbers are the codes from min + 1 to min + infinity.
  constexpr Int lowest = Int(Int(1) << (8 * sizeof(Int) - 1));
  return code > lowest && code <= Int(lowest + infinity);
}

// |x| <= 1, false for NaN.
template <class Int>
NNK_HD bool is_inside(Int code, Int one) {
  return Int(code & ~(Int(1) << (8 * sizeof(Int) - 1))) <= one;
}

// Square wave of period 2 pi: 1 where sin(p) < 0, by the exact parity rule in double.
NNK_HD uint32_t wave_bit(float p) {
  const double half_turns = floor(static_cast<double>(p) / 3.14159265358979323846);
  return half_turns != 2.0 * floor(half_turns * 0.5);
}

NNK_HD int64_t count_ones(uint64_t x) {
  x -= (x >> 1) & 0x5555555555555555u;
  x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
  x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0Fu;
  return static_cast<int64_t>((x * 0x0101010101010101u) >> 56);
}

// The folded batch-norm and sign: one threshold per channel.
NNK_HD uint32_t threshold_bit(int32_t dot, int32_t thresh, int dir) {
  return dir > 0 ? dot < thresh : dir < 0 ? dot > thresh : thresh != 0;
}

}  // namespace nnkernels::binary
