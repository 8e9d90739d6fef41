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

inline void transpose_8x8(const uint32_t* x, int64_t pitch, uint32_t* out, int64_t stride) {
  __m256i row[8], pair[8], quad[8];
  for (int i = 0; i < 8; ++i) {
    row[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i * pitch));
  }
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm256_unpacklo_epi32(row[i], row[i + 1]);
    pair[i + 1] = _mm256_unpackhi_epi32(row[i], row[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      quad[i + 2 * j] = _mm256_unpacklo_epi64(pair[i + j], pair[i + j + 2]);
      quad[i + 2 * j + 1] = _mm256_unpackhi_epi64(pair[i + j], pair[i + j + 2]);
    }
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i * stride),
                        _mm256_permute2x128_si256(quad[i], quad[i + 4], 0x20));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + (i + 4) * stride),
                        _mm256_permute2x128_si256(quad[i], quad[i + 4], 0x31));
  }
}

// Copies every x[row][column] (rows of `pitch` items) to out[column * stride + row].
template <class T>
void transpose_tiles(const T* x, int64_t rows, int64_t columns, int64_t pitch, T* out,
                     int64_t stride) {
  const int64_t whole_rows = sizeof(T) == 4 ? rows / 8 * 8 : 0;
  const int64_t whole_columns = columns / 8 * 8;
  for (int64_t j = 0; j < columns; ++j) {
    int64_t i = 0;
    if (j < whole_columns) {
      if constexpr (sizeof(T) == 4) {
        for (; j % 8 == 0 && i < whole_rows; i += 8) {
          transpose_8x8(x + i * pitch + j, pitch, out + j * stride + i, stride);
        }
      }
      i = whole_rows;
    }
    for (; i < rows; ++i) out[j * stride + i] = x[i * pitch + j];
  }
}

}  // namespace
}  // namespace nnkernels::binary
