// Exchanges of rows and columns, for AVX2 and up; included by one file per instruction set.
#pragma once

#include <immintrin.h>

#include "binary/cpu/engine.h"

namespace nnkernels::binary {
namespace {

// bytes[k] byte r = byte k of rows[r], for 8 bytes of 32 rows.
inline void transpose_bytes(const uint8_t* const* rows, __m256i* bytes) {
  __m256i x[8];
  const auto pair = [rows](int r) {
    int64_t first, second;
    memcpy(&first, rows[r], 8);
    memcpy(&second, rows[r + 1], 8);
    return _mm_set_epi64x(second, first);
  };
  for (int i = 0; i < 8; ++i) x[i] = _mm256_set_m128i(pair(16 + 2 * i), pair(2 * i));
  // Four perfect shuffles turn (row, byte) into (byte, row) in either 128-bit half.
  for (int stage = 0; stage < 4; ++stage) {
    for (int i = 0; i < 4; ++i) {
      bytes[2 * i] = _mm256_unpacklo_epi8(x[i], x[i + 4]);
      bytes[2 * i + 1] = _mm256_unpackhi_epi8(x[i], x[i + 4]);
    }
    for (int i = 0; i < 8; ++i) x[i] = bytes[i];
  }
}

}  // namespace
}  // namespace nnkernels::binary
