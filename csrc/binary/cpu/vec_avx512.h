// AVX-512 F, BW, DQ, VL.
#pragma once

#include <immintrin.h>

#include "binary/cpu/transpose.h"

namespace nnkernels::binary {
namespace {

struct Vec {
  template <class Int>
  static uint32_t mask32(const Int* p, Int clear, Int offset, Int limit) {
    if constexpr (sizeof(Int) == 4) {
      uint32_t mask = 0;
      for (int i = 0; i < 2; ++i) {
        const __m512i x =
            _mm512_and_si512(_mm512_loadu_si512(p + 16 * i), _mm512_set1_epi32(clear));
        const __m512i moved = _mm512_add_epi32(x, _mm512_set1_epi32(offset));
        const __mmask16 above = _mm512_cmpgt_epi32_mask(moved, _mm512_set1_epi32(limit));
        mask |= static_cast<uint32_t>(above) << (16 * i);
      }
      return mask;
    } else if constexpr (sizeof(Int) == 2) {
      const __m512i x = _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi16(clear));
      return _mm512_cmpgt_epi16_mask(_mm512_add_epi16(x, _mm512_set1_epi16(offset)),
                                     _mm512_set1_epi16(limit));
    } else {
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
      const __m256i x = _mm256_and_si256(bytes, _mm256_set1_epi8(clear));
      return _mm256_cmpgt_epi8_mask(_mm256_add_epi8(x, _mm256_set1_epi8(offset)),
                                    _mm256_set1_epi8(limit));
    }
  }

  static void transpose_bits(uint32_t (&x)[32]) { transpose_bits32(x); }

  static bool wave32(const float* x, float omega, float factor, float shift, uint32_t& mask) {
    // Halves of the words: the fraction, and the sign and exponent with the top of the mantissa.
    const __m512i low = _mm512_set1_epi32(0x43000001), high = _mm512_set1_epi32(0x437FFFFF);
    __mmask32 unsure = 0;
    mask = 0;
    for (int i = 0; i < 2; ++i) {
      const __m512 p = _mm512_mul_ps(_mm512_loadu_ps(x + 16 * i), _mm512_set1_ps(omega));
      const __m512i phase =
          _mm512_castps_si512(_mm512_fmadd_ps(p, _mm512_set1_ps(factor), _mm512_set1_ps(shift)));
      unsure |= _mm512_cmplt_epu16_mask(phase, low) | _mm512_cmpgt_epu16_mask(phase, high);
      mask |= static_cast<uint32_t>(_mm512_movepi32_mask(_mm512_slli_epi32(phase, 15))) << (16 * i);
    }
    return unsure == 0;
  }

  static constexpr int word_lanes = 16;
  template <class Words>
  static void turn(Words (&x)[word_lanes]) {
    __m512i pair[16], quad[16];
    for (int i = 0; i < 16; i += 2) {
      pair[i] = _mm512_unpacklo_epi32((__m512i)x[i], (__m512i)x[i + 1]);
      pair[i + 1] = _mm512_unpackhi_epi32((__m512i)x[i], (__m512i)x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      for (int j = 0; j < 2; ++j) {
        quad[i + 2 * j] = _mm512_unpacklo_epi64(pair[i + j], pair[i + j + 2]);
        quad[i + 2 * j + 1] = _mm512_unpackhi_epi64(pair[i + j], pair[i + j + 2]);
      }
    }
    // 128-bit lane q of quad[4 * r + c] is column 4 * q + c of rows 4 * r to 4 * r + 3.
    for (int c = 0; c < 4; ++c) {
      const __m512i even01 = _mm512_shuffle_i32x4(quad[c], quad[4 + c], 0x88);
      const __m512i odd01 = _mm512_shuffle_i32x4(quad[c], quad[4 + c], 0xDD);
      const __m512i even23 = _mm512_shuffle_i32x4(quad[8 + c], quad[12 + c], 0x88);
      const __m512i odd23 = _mm512_shuffle_i32x4(quad[8 + c], quad[12 + c], 0xDD);
      x[c] = (Words)_mm512_shuffle_i32x4(even01, even23, 0x88);
      x[4 + c] = (Words)_mm512_shuffle_i32x4(odd01, odd23, 0x88);
      x[8 + c] = (Words)_mm512_shuffle_i32x4(even01, even23, 0xDD);
      x[12 + c] = (Words)_mm512_shuffle_i32x4(odd01, odd23, 0xDD);
    }
  }

  static __m512i byte_counts(__m512i x) {
    const __m512i table =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i low = _mm512_shuffle_epi8(table, _mm512_and_si512(x, nibble));
    const __m512i high =
        _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(x, 4), nibble));
    return _mm512_add_epi8(low, high);
  }

  struct Counter {
    static constexpr int64_t block = 64, flush_blocks = 31;  // 31 * 8 fits a byte
    __m512i bytes = _mm512_setzero_si512();
    __m512i totals = _mm512_setzero_si512();

    void add_difference(const uint8_t* a, const uint8_t* b) {
      const __m512i x = _mm512_xor_si512(_mm512_loadu_si512(a), _mm512_loadu_si512(b));
      bytes = _mm512_add_epi8(bytes, byte_counts(x));
    }
    void flush() {
      totals = _mm512_add_epi64(totals, _mm512_sad_epu8(bytes, _mm512_setzero_si512()));
      bytes = _mm512_setzero_si512();
    }
    int64_t count() const { return _mm512_reduce_add_epi64(totals); }
  };
  static constexpr int count_rows = 4, count_columns = 2;

  static int64_t ones(uint64_t x) { return __builtin_popcountll(x); }

  // Streamed writes are seen by other threads before what follows.
  static void finish_streams() { _mm_sfence(); }
  // Both aligned to 64 bytes, which divide the size.
  static void stream(const void* from, int64_t bytes, void* to) {
    for (int64_t i = 0; i < bytes / 64; ++i) {
      _mm512_stream_si512(static_cast<__m512i*>(to) + i,
                          _mm512_load_si512(static_cast<const __m512i*>(from) + i));
    }
  }

  // ---- int8
  static constexpr int int8_lanes = 16;
  using Bytes = __m512i;
  using Halves = __m512i;
  static Bytes load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static Bytes broadcast4(const int8_t* p) {
    int32_t four;
    memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
  }
  static Halves multiply_add(Halves sum, Bytes t, Bytes x) {
    return _mm512_add_epi16(sum, _mm512_maddubs_epi16(t, x));
  }
  static void add_pairs(Halves sum, int32_t* p) {
    const __m512i pairs = _mm512_madd_epi16(sum, _mm512_set1_epi16(1));
    _mm512_storeu_si512(p, _mm512_add_epi32(_mm512_loadu_si512(p), pairs));
  }

  // ---- float
  static constexpr int float_lanes = 16, grad_rows = 12, grad_vectors = 2;
  using Float = __m512;
  static Float load_float(const float* p) { return _mm512_loadu_ps(p); }
  static Float broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static void store_float(float* p, Float x) { _mm512_storeu_ps(p, x); }
  static Float multiply_add(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float signs(const uint8_t* row, int64_t bit) {
    uint16_t bits;
    memcpy(&bits, row + bit / 8, 2);
    return _mm512_mask_blend_ps(bits, _mm512_set1_ps(1.0f), _mm512_set1_ps(-1.0f));
  }
};

}  // namespace
}  // namespace nnkernels::binary
