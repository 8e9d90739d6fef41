// Measured costs of the kernels' inner steps, in nanoseconds; written by bench/binary_tune.py.
// Only their ratios matter: product() takes the cheapest algorithm for a shape.
#pragma once

namespace nnkernels::binary {

struct Costs {
  double popcount_pair, popcount_block;   // a pair of rows, and 256 bits of it
  double nibble_row, nibble_spread;       // 192 bits: one row with 64, and preparing the 64
  double lookup_row[2], lookup_table[2];  // 120 bits: one row with 64 or 128, and the table of them
  double slice, index;                    // 120 bits: slicing 64 rows, indexing one
  double transpose;                       // an element of the result
};

constexpr Costs kScalarCosts = {5.0, 20.0, 0, 0, {0, 0}, {0, 0}, 0, 0, 1.0};
constexpr Costs kAvx2Costs = {2.0, 1.5, 30.0, 60.0, {8.0, 0}, {350.0, 0}, 120.0, 3.0, 0.3};
constexpr Costs kAvx512Costs = {3.0, 0.5, 30.0, 60.0, {8.0, 12.0}, {350.0, 350.0}, 120.0, 3.0, 0.3};

}  // namespace nnkernels::binary
