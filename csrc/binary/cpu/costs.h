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
    .popcount_pair = 1.25,
    .popcount_block = 4.14,
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
    .popcount_pair = 1.58,
    .popcount_block = 0.68,
    .nibble_row = 27.3,
    .nibble_spread = 149.1,
    .lookup_row = {7.5, 0.0},
    .lookup_table = {351, 0},
    .slice = 205,
    .index = 2.09,
    .transpose = 0.38,
    .matrix_row = 0.00,
    .matrix_spread = 0.00,
};
inline constexpr Costs kAvx512Costs = {
    .popcount_pair = 1.85,
    .popcount_block = 0.54,
    .nibble_row = 22.8,
    .nibble_spread = 135.6,
    .lookup_row = {7.2, 11.5},
    .lookup_table = {329, 596},
    .slice = 207,
    .index = 2.11,
    .transpose = 0.38,
    .matrix_row = 0.00,
    .matrix_spread = 0.00,
};
inline constexpr Costs kVpopcntCosts = {
    .popcount_pair = 1.46,
    .popcount_block = 0.19,
    .nibble_row = 22.5,
    .nibble_spread = 154.9,
    .lookup_row = {7.3, 11.5},
    .lookup_table = {337, 640},
    .slice = 195,
    .index = 2.10,
    .transpose = 0.35,
    .matrix_row = 2.10,
    .matrix_spread = 1.13,
};

}  // namespace nnkernels::binary
