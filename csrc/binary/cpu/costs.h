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
  double matrix_row, matrix_spread;       // 64 bits: a row with 64, and making bytes of a row
};

inline constexpr Costs kScalarCosts = {
    .popcount_pair = 1.16,
    .popcount_block = 3.84,
    .nibble_row = 0.0,
    .nibble_spread = 0.0,
    .lookup_row = {0.0, 0.0},
    .lookup_table = {0, 0},
    .slice = 0,
    .index = 0.00,
    .transpose = 0.30,
    .matrix_row = 0.00,
    .matrix_spread = 0.00,
};
inline constexpr Costs kAvx2Costs = {
    .popcount_pair = 0.10,
    .popcount_block = 0.74,
    .nibble_row = 27.8,
    .nibble_spread = 143.2,
    .lookup_row = {7.1, 0.0},
    .lookup_table = {243, 0},
    .slice = 168,
    .index = 2.05,
    .transpose = 0.38,
    .matrix_row = 0.00,
    .matrix_spread = 0.00,
};
inline constexpr Costs kAvx512Costs = {
    .popcount_pair = 1.06,
    .popcount_block = 0.51,
    .nibble_row = 20.2,
    .nibble_spread = 137.6,
    .lookup_row = {7.1, 10.5},
    .lookup_table = {27, 418},
    .slice = 74,
    .index = 1.86,
    .transpose = 0.33,
    .matrix_row = 0.00,
    .matrix_spread = 0.00,
};
inline constexpr Costs kVpopcntCosts = {
    .popcount_pair = 1.61,
    .popcount_block = 0.09,
    .nibble_row = 19.0,
    .nibble_spread = 142.9,
    .lookup_row = {7.1, 11.2},
    .lookup_table = {98, 354},
    .slice = 199,
    .index = 1.86,
    .transpose = 0.35,
    .matrix_row = 1.74,
    .matrix_spread = 1.10,
};

}  // namespace nnkernels::binary
