// Eight lanes: AVX2, FMA, F16C.
#pragma once

#include <immintrin.h>

#include "common/convert.h"

namespace nnkernels::lmul {
namespace {

struct Vec {
  static constexpr int lanes = 8;
  // 6 x 16 accumulators, 2 column registers, a row and a product fill the 16 registers. Kernels
  // that need more for each product have fewer rows.
  static constexpr int registers = 16, tile_rows = 6, few_rows = 3;
  static constexpr int tile_groups = 1;

  using Int = __m256i;
  using Float = __m256;
  using Mask = __m256i;

  static NNK_VEC Int set(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  static NNK_VEC Float set(float x) { return _mm256_set1_ps(x); }
  static NNK_VEC Int broadcast(const uint32_t* p) { return set(*p); }
  static NNK_VEC Float broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static NNK_VEC Int load(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static NNK_VEC void store(void* p, Int x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }

  static NNK_VEC Float as_float(Int x) { return _mm256_castsi256_ps(x); }
  static NNK_VEC Int as_int(Float x) { return _mm256_castps_si256(x); }

  static NNK_VEC Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static NNK_VEC Int sub(Int a, Int b) { return _mm256_sub_epi32(a, b); }
  static NNK_VEC Int bit_and(Int a, Int b) { return _mm256_and_si256(a, b); }
  static NNK_VEC Int bit_or(Int a, Int b) { return _mm256_or_si256(a, b); }
  static NNK_VEC Int bit_xor(Int a, Int b) { return _mm256_xor_si256(a, b); }
  static NNK_VEC Int shift_left(Int a, int n) { return _mm256_slli_epi32(a, n); }
  static NNK_VEC Int shift_right(Int a, int n) { return _mm256_srli_epi32(a, n); }
  static NNK_VEC Int min(Int a, Int b) { return _mm256_min_epu32(a, b); }
  static NNK_VEC Int max(Int a, Int b) { return _mm256_max_epu32(a, b); }

  // Signed comparison.
  static NNK_VEC Mask greater(Int a, Int b) { return _mm256_cmpgt_epi32(a, b); }
  static NNK_VEC Mask equal(Int a, Int b) { return _mm256_cmpeq_epi32(a, b); }
  static NNK_VEC Mask not_equal(Int a, Int b) { return bit_xor(equal(a, b), set(~0u)); }
  static NNK_VEC bool any(Mask m) { return !_mm256_testz_si256(m, m); }
  static NNK_VEC Mask mask_or(Mask a, Mask b) { return bit_or(a, b); }
  static NNK_VEC Mask mask_and(Mask a, Mask b) { return bit_and(a, b); }
  static NNK_VEC Int select(Mask m, Int yes, Int no) { return _mm256_blendv_epi8(no, yes, m); }
  static NNK_VEC Int where(Mask m, Int yes) { return bit_and(m, yes); }

  // On pairs of 16-bit numbers: unsigned, but for the signed comparison.
  static NNK_VEC Int min16(Int a, Int b) { return _mm256_min_epu16(a, b); }
  static NNK_VEC Int max16(Int a, Int b) { return _mm256_max_epu16(a, b); }
  static NNK_VEC Int add16(Int a, Int b) { return _mm256_add_epi16(a, b); }
  static NNK_VEC Int sub16(Int a, Int b) { return _mm256_sub_epi16(a, b); }
  // x where a > b, else 0.
  static NNK_VEC Int where_greater16(Int a, Int b, Int x) {
    return bit_and(_mm256_cmpgt_epi16(a, b), x);
  }

  static NNK_VEC Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static NNK_VEC Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static NNK_VEC Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static NNK_VEC Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  // b where a or b is NaN.
  static NNK_VEC Float max(Float a, Float b) { return _mm256_max_ps(a, b); }
  static NNK_VEC Float min(Float a, Float b) { return _mm256_min_ps(a, b); }
  static NNK_VEC Float floor(Float a) { return _mm256_floor_ps(a); }
  // Toward zero. Any number where `a` is NaN.
  static NNK_VEC Int truncate(Float a) { return _mm256_cvttps_epi32(a); }
  // c + a where m.
  static NNK_VEC Float add_where(Mask m, Float a, Float c) {
    return add(c, as_float(where(m, as_int(a))));
  }
  // c + a * b where m, for b in {-1, 0, 1}.
  static NNK_VEC Float add_signed(Mask m, Float a, Float b, Float c) {
    return fma(as_float(where(m, as_int(a))), b, c);
  }
  static NNK_VEC Float fma_where(Mask m, Float a, Float b, Float c) {
    return as_float(select(m, as_int(fma(a, b, c)), as_int(c)));
  }

  template <DType dtype>
  static NNK_VEC Int load_as(const void* p, int64_t index) {
    const char* at = static_cast<const char*>(p) + index * element_size(dtype);
    if constexpr (dtype == DType::float32) {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    } else if constexpr (dtype == DType::bfloat16) {
      return _mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(at)), 16);
    } else if constexpr (dtype == DType::float16) {
      return as_int(_mm256_cvtph_ps(load128(at)));
    } else {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
      const __m128i codes = _mm_cvtepu8_epi16(bytes);
      // e5m2 is the upper half of fp16.
      if constexpr (dtype == DType::float8_e5m2) {
        return as_int(_mm256_cvtph_ps(_mm_slli_epi16(codes, 8)));
      }
      // e4m3fn has one exponent bit less than fp16: the fp16 number is 2^8 times too small.
      const __m128i magnitude = _mm_and_si128(codes, _mm_set1_epi16(0x7F));
      const __m128i sign = _mm_slli_epi16(_mm_andnot_si128(_mm_set1_epi16(0x7F), codes), 8);
      const __m128i nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7F));
      const __m128i half = _mm_or_si128(_mm_slli_epi16(magnitude, 7), sign);
      const __m128i quiet = _mm_and_si128(nan, _mm_set1_epi16(0x7E00));
      return as_int(mul(_mm256_cvtph_ps(_mm_or_si128(half, quiet)), set(256.0f)));
    }
  }

  // Rounds to nearest even.
  template <DType dtype>
  static NNK_VEC void store_as(void* p, int64_t index, Int x) {
    char* at = static_cast<char*>(p) + index * element_size(dtype);
    if constexpr (dtype == DType::bfloat16) {
      const Int odd = bit_and(_mm256_srli_epi32(x, 16), set(1u));
      const Int rounded = _mm256_srli_epi32(add(x, add(odd, set(0x7FFFu))), 16);
      const Mask nan = greater(bit_and(x, set(0x7FFFFFFFu)), set(0x7F800000u));
      const Int words = select(nan, set(0x7FC0u), rounded);
      const Int packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm256_castsi256_si128(packed));
    } else if constexpr (dtype == DType::float16) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(at),
                       _mm256_cvtps_ph(as_float(x), _MM_FROUND_TO_NEAREST_INT));
    } else {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), x);
    }
  }

  static NNK_VEC void transpose(Int (&x)[lanes]) {
    Int pairs[lanes], quads[lanes];
    for (int i = 0; i < lanes; i += 2) {
      pairs[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
      pairs[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < lanes; i += 4) {
      for (int j = 0; j < 2; ++j) {
        quads[i + 2 * j] = _mm256_unpacklo_epi64(pairs[i + j], pairs[i + j + 2]);
        quads[i + 2 * j + 1] = _mm256_unpackhi_epi64(pairs[i + j], pairs[i + j + 2]);
      }
    }
    for (int i = 0; i < 4; ++i) {
      x[i] = _mm256_permute2x128_si256(quads[i], quads[i + 4], 0x20);
      x[i + 4] = _mm256_permute2x128_si256(quads[i], quads[i + 4], 0x31);
    }
  }

 private:
  static NNK_VEC __m128i load128(const void* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
};

}  // namespace
}  // namespace nnkernels::lmul
