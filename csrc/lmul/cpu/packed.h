// The memory of a packed matrix B: K blocks one after the other, each of all column groups, and the
// range of each group. The same for every instruction set.
#pragma once

#include "lmul/cpu/engine.h"

namespace nnkernels::lmul {

struct PackedMatrix {
  int64_t K = 0, N = 0;
  const uint32_t* words = nullptr;
  const Range* ranges = nullptr;

  static int64_t blocks(int64_t K) { return (K + kSumBlock - 1) / kSumBlock; }
  static int64_t word_count(int64_t K, int64_t N) { return K * Columns::groups(N) * kGroup; }
  static int64_t range_count(int64_t K, int64_t N) { return blocks(K) * Columns::groups(N); }

  // The K block from k on, which is a multiple of kSumBlock.
  Columns block(int64_t k) const {
    const int64_t groups = Columns::groups(N);
    const int64_t kc = K - k < kSumBlock ? K - k : kSumBlock;
    return {words + k * groups * kGroup, ranges + k / kSumBlock * groups, kc, N, kc};
  }
};

// Packs the K x N matrix b into memory for word_count words and range_count ranges.
void pack_matrix(const Plan& plan, const Matrix& b, int64_t K, int64_t N, uint32_t* words,
                 Range* ranges, const Parallel& parallel);

// The matrix in the bytes of pack().
PackedMatrix packed_matrix(const uint8_t* packed);

// Element (row, column) of a matrix, as the start of another.
Matrix submatrix(const Matrix& matrix, int64_t batch, int64_t row, int64_t column);
Matrix transposed(const Matrix& matrix);

}  // namespace nnkernels::lmul
