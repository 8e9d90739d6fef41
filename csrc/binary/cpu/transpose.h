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

// Exchanges rows and columns of a 32 x 32 matrix of bits.
inline void transpose_bits32(uint32_t (&x)[32]) {
  // Byte b of all 32 words, in order: from words of four rows to dwords of equal bytes, then those
  // gathered by twos.
  const __m256i quads = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,  //
                                         0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  __m256i rows[4];  // [8 rows]: byte b of them in 64-bit lane b
  for (int i = 0; i < 4; ++i) {
    const auto* at = reinterpret_cast<const __m256i*>(x) + i;
    rows[i] = _mm256_shuffle_epi8(_mm256_loadu_si256(at), quads);
    rows[i] = _mm256_permutevar8x32_epi32(rows[i], order);
  }
  const __m256i even01 = _mm256_unpacklo_epi64(rows[0], rows[1]);
  const __m256i odd01 = _mm256_unpackhi_epi64(rows[0], rows[1]);
  const __m256i even23 = _mm256_unpacklo_epi64(rows[2], rows[3]);
  const __m256i odd23 = _mm256_unpackhi_epi64(rows[2], rows[3]);
  __m256i bytes[4] = {_mm256_permute2x128_si256(even01, even23, 0x20),
                      _mm256_permute2x128_si256(odd01, odd23, 0x20),
                      _mm256_permute2x128_si256(even01, even23, 0x31),
                      _mm256_permute2x128_si256(odd01, odd23, 0x31)};
  for (int b = 0; b < 4; ++b) {
    for (int bit = 7; bit >= 0; --bit) {
      x[8 * b + bit] = static_cast<uint32_t>(_mm256_movemask_epi8(bytes[b]));
      bytes[b] = _mm256_add_epi8(bytes[b], bytes[b]);
    }
  }
}

}  // namespace
}  // namespace nnkernels::binary
