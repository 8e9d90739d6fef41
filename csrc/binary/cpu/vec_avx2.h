// AVX2, FMA, F16C.
#pragma once

#include <immintrin.h>

#include "binary/cpu/transpose.h"

namespace nnkernels::binary {
namespace {

struct Vec {
  template <class Int>
  static uint32_t mask32(const Int* p, Int clear, Int offset, Int limit) {
    const auto* at = reinterpret_cast<const __m256i*>(p);
    if constexpr (sizeof(Int) == 4) {
      const __m256i c = _mm256_set1_epi32(clear), o = _mm256_set1_epi32(offset);
      const __m256i l = _mm256_set1_epi32(limit);
      uint32_t mask = 0;
      for (int i = 0; i < 4; ++i) {
        const __m256i x = _mm256_and_si256(_mm256_loadu_si256(at + i), c);
        const __m256i above = _mm256_cmpgt_epi32(_mm256_add_epi32(x, o), l);
        mask |= movemask(above) << (8 * i);
      }
      return mask;
    } else if constexpr (sizeof(Int) == 2) {
      const __m256i c = _mm256_set1_epi16(clear), o = _mm256_set1_epi16(offset);
      const __m256i l = _mm256_set1_epi16(limit);
      __m256i above[2];
      for (int i = 0; i < 2; ++i) {
        const __m256i x = _mm256_and_si256(_mm256_loadu_si256(at + i), c);
        above[i] = _mm256_cmpgt_epi16(_mm256_add_epi16(x, o), l);
      }
      const __m256i bytes = _mm256_packs_epi16(above[0], above[1]);
      return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_permute4x64_epi64(bytes, 0xD8)));
    } else {
      const __m256i x = _mm256_and_si256(_mm256_loadu_si256(at), _mm256_set1_epi8(clear));
      const __m256i moved = _mm256_add_epi8(x, _mm256_set1_epi8(offset));
      return static_cast<uint32_t>(
          _mm256_movemask_epi8(_mm256_cmpgt_epi8(moved, _mm256_set1_epi8(limit))));
    }
  }

  // The signs of 8 words.
  static uint32_t movemask(__m256i x) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(x)));
  }

  static void transpose_bits(uint32_t (&x)[32]) { transpose_bits32(x); }

  static bool wave32(const float* x, float omega, float factor, float shift, uint32_t& mask) {
    // Halves of the words: the fraction, and the sign and exponent with the top of the mantissa.
    __m256i least = _mm256_set1_epi32(-1), most = _mm256_setzero_si256();
    mask = 0;
    for (int i = 0; i < 4; ++i) {
      const __m256 p = _mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(omega));
      const __m256i phase =
          _mm256_castps_si256(_mm256_fmadd_ps(p, _mm256_set1_ps(factor), _mm256_set1_ps(shift)));
      least = _mm256_min_epu16(least, phase);
      most = _mm256_max_epu16(most, phase);
      mask |= movemask(_mm256_slli_epi32(phase, 15)) << (8 * i);
    }
    const __m256i low = _mm256_set1_epi32(0x43000001), high = _mm256_set1_epi32(0x437FFFFF);
    const __m256i sure = _mm256_and_si256(_mm256_cmpeq_epi16(_mm256_min_epu16(least, low), low),
                                          _mm256_cmpeq_epi16(_mm256_max_epu16(most, high), high));
    return _mm256_movemask_epi8(sure) == -1;
  }

  static constexpr int word_lanes = 8;
  template <class Words>
  static void turn(Words (&x)[word_lanes]) {
    __m256i pair[8], quad[8];
    for (int i = 0; i < 8; i += 2) {
      pair[i] = _mm256_unpacklo_epi32((__m256i)x[i], (__m256i)x[i + 1]);
      pair[i + 1] = _mm256_unpackhi_epi32((__m256i)x[i], (__m256i)x[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      for (int j = 0; j < 2; ++j) {
        quad[i + 2 * j] = _mm256_unpacklo_epi64(pair[i + j], pair[i + j + 2]);
        quad[i + 2 * j + 1] = _mm256_unpackhi_epi64(pair[i + j], pair[i + j + 2]);
      }
    }
    for (int i = 0; i < 4; ++i) {
      x[i] = (Words)_mm256_permute2x128_si256(quad[i], quad[i + 4], 0x20);
      x[i + 4] = (Words)_mm256_permute2x128_si256(quad[i], quad[i + 4], 0x31);
    }
  }

  // Ones of each byte by two look-ups in a table of nibbles.
  static __m256i byte_counts(__m256i x) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                           0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(x, nibble));
    const __m256i high =
        _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble));
    return _mm256_add_epi8(low, high);
  }

  struct Counter {
    static constexpr int64_t block = 32, flush_blocks = 31;  // 31 * 8 fits a byte
    __m256i bytes = _mm256_setzero_si256();
    __m256i totals = _mm256_setzero_si256();

    void add_difference(const uint8_t* a, const uint8_t* b) {
      const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
      const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
      bytes = _mm256_add_epi8(bytes, byte_counts(_mm256_xor_si256(x, y)));
    }
    void flush() {
      totals = _mm256_add_epi64(totals, _mm256_sad_epu8(bytes, _mm256_setzero_si256()));
      bytes = _mm256_setzero_si256();
    }
    int64_t count() const {
      const __m128i two =
          _mm_add_epi64(_mm256_castsi256_si128(totals), _mm256_extracti128_si256(totals, 1));
      return _mm_cvtsi128_si64(two) + _mm_extract_epi64(two, 1);
    }
  };
  static constexpr int count_rows = 2, count_columns = 2;

  static int64_t ones(uint64_t x) { return __builtin_popcountll(x); }

  // Streamed writes are seen by other threads before what follows.
  static void finish_streams() { _mm_sfence(); }
  // Both aligned to 64 bytes, which divide the size.
  static void stream(const void* from, int64_t bytes, void* to) {
    for (int64_t i = 0; i < bytes / 32; ++i) {
      _mm256_stream_si256(static_cast<__m256i*>(to) + i,
                          _mm256_load_si256(static_cast<const __m256i*>(from) + i));
    }
  }

  // ---- int8
  static constexpr int int8_lanes = 8;
  using Bytes = __m256i;
  using Halves = __m256i;
  static Bytes load_bytes(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Bytes broadcast4(const int8_t* p) {
    int32_t four;
    memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
  }
  static Halves multiply_add(Halves sum, Bytes t, Bytes x) {
    return _mm256_add_epi16(sum, _mm256_maddubs_epi16(t, x));
  }
  static void add_pairs(Halves sum, int32_t* p) {
    const __m256i pairs = _mm256_madd_epi16(sum, _mm256_set1_epi16(1));
    auto* at = reinterpret_cast<__m256i*>(p);
    _mm256_storeu_si256(at, _mm256_add_epi32(_mm256_loadu_si256(at), pairs));
  }

  // ---- float
  static constexpr int float_lanes = 8, grad_rows = 6, grad_vectors = 2;
  using Float = __m256;
  static Float load_float(const float* p) { return _mm256_loadu_ps(p); }
  static Float broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static void store_float(float* p, Float x) { _mm256_storeu_ps(p, x); }
  static Float multiply_add(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float signs(const uint8_t* row, int64_t bit) {
    const __m256i byte = _mm256_set1_epi32(row[bit / 8]);
    const __m256i up = _mm256_sllv_epi32(byte, _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24));
    const __m256i sign = _mm256_and_si256(up, _mm256_set1_epi32(INT32_MIN));
    return _mm256_or_ps(_mm256_castsi256_ps(sign), _mm256_set1_ps(1.0f));
  }
};

}  // namespace
}  // namespace nnkernels::binary
