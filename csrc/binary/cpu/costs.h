// Measured costs of the kernels' inner steps, in nanoseconds. Made by bench/binary_tune.cpp,
// do not edit. Only their ratios matter: product() takes the cheapest algorithm for a shape.
#pragma once

namespace nnkernels::binary {

struct Costs {
  double popcount_pair, popcount_block;   // a pair of rows, and 256 bits of it
  double nibble_row, nibble_spread;       // 192 bits: one row with 64, and preparing the 64
  double lookup_row[2], lookup_table[2];  // 120 bits: a row with 64 or 128, their table
  double slice, index;                    // 120 bits: slicing 64 rows, indexing one
  double transpose;                       // one element of the result
};

inline constexpr Costs kScalarCosts = {
    .popcount_pair = 0.82,
    .popcount_block = 4.46,
    .nibble_row = 0.0,
    .nibble_spread = 0.0,
    .lookup_row = {0.0, 0.0},
    .lookup_table = {0, 0},
    .slice = 0,
    .index = 0.00,
    .transpose = 0.30,
};
inline constexpr Costs kAvx2Costs = {
    .popcount_pair = 1.67,
    .popcount_block = 0.74,
    .nibble_row = 29.2,
    .nibble_spread = 164.3,
    .lookup_row = {8.0, 0.0},
    .lookup_table = {344, 0},
    .slice = 222,
    .index = 2.28,
    .transpose = 0.44,
};
inline constexpr Costs kAvx512Costs = {
    .popcount_pair = 1.66,
    .popcount_block = 0.53,
    .nibble_row = 24.4,
    .nibble_spread = 15.8,
    .lookup_row = {8.0, 12.9},
    .lookup_table = {299, 628},
    .slice = 208,
    .index = 2.25,
    .transpose = 0.38,
};
inline constexpr Costs kVpopcntCosts = {
    .popcount_pair = 1.70,
    .popcount_block = 0.17,
    .nibble_row = 25.9,
    .nibble_spread = 10.7,
    .lookup_row = {7.6, 12.7},
    .lookup_table = {342, 612},
    .slice = 185,
    .index = 2.32,
    .transpose = 0.41,
};

}  // namespace nnkernels::binary
