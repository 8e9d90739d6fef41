// A matrix unit for bytes, where the processor has one.
#pragma once

#include "binary/cpu/engine.h"

namespace nnkernels::binary {

// Rows of a block are a multiple of this.
constexpr int64_t kMatrixRows = 32;

// Bits as bytes +1 and -1, 64 for 8 bytes of a row (a step), in an order that both sides share.
struct MatrixKernels {
  // Writes whole tiles of 16 rows, of which the last may be partly left as it was.
  void (*spread_rows)(const Rows& rows, int64_t n, int8_t* out);
  // Up to 16 rows, of which it writes all: steps * 1024 bytes.
  void (*spread_columns)(const Rows& rows, int64_t n, int8_t* out);
  // counts[row][kPanel] = mismatches of n rows (a multiple of kMatrixRows) with kPanel columns.
  void (*multiply)(const int8_t* rows, int64_t n, const int8_t* columns, int64_t steps,
                   int32_t* counts);
};

// nullptr where this machine or its operating system has none.
const MatrixKernels* amx_kernels();

}  // namespace nnkernels::binary
