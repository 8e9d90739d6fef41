// Sixteen lanes: AVX-512 F, BW, DQ, VL.
#pragma once

#include <immintrin.h>

#include "common/convert.h"

namespace nnkernels::lmul {
namespace {

struct Vec {
  static constexpr int lanes = 16;
  // 12 x 32: 24 of the 32 registers accumulate.
  static constexpr int registers = 32, tile_rows = 12, few_rows = 12;
  static constexpr int tile_groups = 2;

  using Int = __m512i;
  using Float = __m512;
  using Mask = __mmask16;

  static NNK_VEC Int set(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static NNK_VEC Float set(float x) { return _mm512_set1_ps(x); }
  static NNK_VEC Int broadcast(const uint32_t* p) { return set(*p); }
  static NNK_VEC Float broadcast(const float* p) { return set(*p); }
  static NNK_VEC Int load(const void* p) { return _mm512_loadu_si512(p); }
  static NNK_VEC void store(void* p, Int x) { _mm512_storeu_si512(p, x); }

  static NNK_VEC Float as_float(Int x) { return _mm512_castsi512_ps(x); }
  static NNK_VEC Int as_int(Float x) { return _mm512_castps_si512(x); }

  static NNK_VEC Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static NNK_VEC Int sub(Int a, Int b) { return _mm512_sub_epi32(a, b); }
  static NNK_VEC Int bit_and(Int a, Int b) { return _mm512_and_si512(a, b); }
  static NNK_VEC Int bit_or(Int a, Int b) { return _mm512_or_si512(a, b); }
  static NNK_VEC Int bit_xor(Int a, Int b) { return _mm512_xor_si512(a, b); }
  static NNK_VEC Int shift_left(Int a, int n) { return _mm512_slli_epi32(a, n); }
  static NNK_VEC Int shift_right(Int a, int n) { return _mm512_srli_epi32(a, n); }
  static NNK_VEC Int min(Int a, Int b) { return _mm512_min_epu32(a, b); }
  static NNK_VEC Int max(Int a, Int b) { return _mm512_max_epu32(a, b); }

  // Signed comparison.
  static NNK_VEC Mask greater(Int a, Int b) { return _mm512_cmpgt_epi32_mask(a, b); }
  static NNK_VEC Mask equal(Int a, Int b) { return _mm512_cmpeq_epi32_mask(a, b); }
  static NNK_VEC Mask not_equal(Int a, Int b) { return _mm512_cmpneq_epi32_mask(a, b); }
  static NNK_VEC bool any(Mask m) { return m != 0; }
  static NNK_VEC Mask mask_or(Mask a, Mask b) { return a | b; }
  static NNK_VEC Mask mask_and(Mask a, Mask b) { return a & b; }
  static NNK_VEC Int select(Mask m, Int yes, Int no) { return _mm512_mask_mov_epi32(no, m, yes); }
  static NNK_VEC Int where(Mask m, Int yes) { return _mm512_maskz_mov_epi32(m, yes); }

  // On pairs of 16-bit numbers: unsigned, but for the signed comparison.
  static NNK_VEC Int min16(Int a, Int b) { return _mm512_min_epu16(a, b); }
  static NNK_VEC Int max16(Int a, Int b) { return _mm512_max_epu16(a, b); }
  static NNK_VEC Int add16(Int a, Int b) { return _mm512_add_epi16(a, b); }
  static NNK_VEC Int sub16(Int a, Int b) { return _mm512_sub_epi16(a, b); }
  // x where a > b, else 0.
  static NNK_VEC Int where_greater16(Int a, Int b, Int x) {
    return _mm512_maskz_mov_epi16(_mm512_cmpgt_epi16_mask(a, b), x);
  }

  static NNK_VEC Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static NNK_VEC Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static NNK_VEC Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static NNK_VEC Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  // b where a or b is NaN.
  static NNK_VEC Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  static NNK_VEC Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
  static NNK_VEC Float floor(Float a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF); }
  // Toward zero. Any number where `a` is NaN.
  static NNK_VEC Int truncate(Float a) { return _mm512_cvttps_epi32(a); }
  // c + a where m.
  static NNK_VEC Float add_where(Mask m, Float a, Float c) {
    return _mm512_mask_add_ps(c, m, c, a);
  }
  // c + a * b where m, for b in {-1, 0, 1}.
  static NNK_VEC Float add_signed(Mask m, Float a, Float b, Float c) {
    return _mm512_mask3_fmadd_ps(a, b, c, m);
  }
  static NNK_VEC Float fma_where(Mask m, Float a, Float b, Float c) {
    return _mm512_mask3_fmadd_ps(a, b, c, m);
  }

  template <DType dtype>
  static NNK_VEC Int load_as(const void* p, int64_t index) {
    const char* at = static_cast<const char*>(p) + index * element_size(dtype);
    if constexpr (dtype == DType::float32) {
      return _mm512_loadu_si512(at);
    } else if constexpr (dtype == DType::bfloat16) {
      return _mm512_slli_epi32(_mm512_cvtepu16_epi32(load256(at)), 16);
    } else if constexpr (dtype == DType::float16) {
      return as_int(_mm512_cvtph_ps(load256(at)));
    } else {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
      const __m256i codes = _mm256_cvtepu8_epi16(bytes);
      // e5m2 is the upper half of fp16.
      if constexpr (dtype == DType::float8_e5m2) {
        return as_int(_mm512_cvtph_ps(_mm256_slli_epi16(codes, 8)));
      }
      // e4m3fn has one exponent bit less than fp16: the fp16 number is 2^8 times too small.
      const __m256i magnitude = _mm256_and_si256(codes, _mm256_set1_epi16(0x7F));
      const __m256i sign =
          _mm256_slli_epi16(_mm256_andnot_si256(_mm256_set1_epi16(0x7F), codes), 8);
      const __m256i nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x7F));
      const __m256i half = _mm256_or_si256(_mm256_slli_epi16(magnitude, 7), sign);
      const __m256i quiet = _mm256_and_si256(nan, _mm256_set1_epi16(0x7E00));
      return as_int(mul(_mm512_cvtph_ps(_mm256_or_si256(half, quiet)), set(256.0f)));
    }
  }

  // Rounds to nearest even.
  template <DType dtype>
  static NNK_VEC void store_as(void* p, int64_t index, Int x) {
    char* at = static_cast<char*>(p) + index * element_size(dtype);
    if constexpr (dtype == DType::bfloat16) {
      const Int odd = bit_and(_mm512_srli_epi32(x, 16), set(1u));
      const Int rounded = _mm512_srli_epi32(add(x, add(odd, set(0x7FFFu))), 16);
      const Mask nan = greater(bit_and(x, set(0x7FFFFFFFu)), set(0x7F800000u));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(at),
                          _mm512_cvtepi32_epi16(select(nan, set(0x7FC0u), rounded)));
    } else if constexpr (dtype == DType::float16) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(at),
                          _mm512_cvtps_ph(as_float(x), _MM_FROUND_TO_NEAREST_INT));
    } else {
      _mm512_storeu_si512(at, x);
    }
  }

  static NNK_VEC void transpose(Int (&x)[lanes]) {
    Int pairs[lanes], quads[lanes];
    for (int i = 0; i < lanes; i += 2) {
      pairs[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
      pairs[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < lanes; i += 4) {
      for (int j = 0; j < 2; ++j) {
        quads[i + 2 * j] = _mm512_unpacklo_epi64(pairs[i + j], pairs[i + j + 2]);
        quads[i + 2 * j + 1] = _mm512_unpackhi_epi64(pairs[i + j], pairs[i + j + 2]);
      }
    }
    // quads[4 q + j] holds column 4 p + j of rows 4 q .. 4 q + 3 in its quarter p: transpose the
    // quarters over q.
    for (int j = 0; j < 4; ++j) {
      const Int a = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0x44);
      const Int b = _mm512_shuffle_i32x4(quads[j], quads[4 + j], 0xEE);
      const Int c = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0x44);
      const Int d = _mm512_shuffle_i32x4(quads[8 + j], quads[12 + j], 0xEE);
      x[j] = _mm512_shuffle_i32x4(a, c, 0x88);
      x[4 + j] = _mm512_shuffle_i32x4(a, c, 0xDD);
      x[8 + j] = _mm512_shuffle_i32x4(b, d, 0x88);
      x[12 + j] = _mm512_shuffle_i32x4(b, d, 0xDD);
    }
  }

 private:
  static NNK_VEC __m256i load256(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
};

}  // namespace
}  // namespace nnkernels::lmul
