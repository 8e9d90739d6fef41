// Which kernel computes a tile.
#pragma once

#include "lmul/cpu/engine.h"

namespace nnkernels::lmul {

enum class Kernel : int {
  word,             // bits: no zeros (or soft ones), nothing out of range
  zeros,            // bits: zeros anywhere, no underflow
  guarded,          // bits: zeros and underflow
  formula,          // formula: no underflow
  formula_guarded,  // formula: underflow
  exact,            // ordinary products of any values
  oracle,           // any values: mul() of every pair
};

struct Choice {
  Kernel kernel;
  // For word: which operand's zeros are soft.
  bool soft_rows = false, soft_columns = false;
  // With soft zeros: sums below this are zero.
  float flush = 0.0f;
};

// The biased exponents of soft zeros in rows and in columns, for operands with these ranges.
struct SoftExponents {
  int rows, columns;
};
SoftExponents soft_exponents(const Plan& plan, const Range& rows, const Range& columns);

// The word of a soft zero. Its exponent may be out of range; only its sum with a word of the other
// operand need be a word.
NNK_VEC uint32_t soft_word(int exponent) { return static_cast<uint32_t>(exponent) << 23; }

// For a tile of rows and columns with these ranges.
Choice choose(const Plan& plan, const Range& rows, const Range& columns, const SoftExponents& soft);

}  // namespace nnkernels::lmul
