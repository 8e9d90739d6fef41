// Sixteen floats or eight doubles: AVX-512 F, BW, DQ, VL.
#pragma once

#include <immintrin.h>

#include "gaunt/cpu/engine.h"

namespace nnkernels::gaunt {
namespace {

struct Vec32 {
  using T = float;
  static constexpr int lanes = 16;
  static constexpr int piece = 4;
  using Value = __m512;

  static NNK_VEC Value load(const T* p) { return _mm512_load_ps(p); }
  static NNK_VEC void store(T* p, Value a) { _mm512_store_ps(p, a); }
  static NNK_VEC Value set(T x) { return _mm512_set1_ps(x); }
  static NNK_VEC Value add(Value a, Value b) { return _mm512_add_ps(a, b); }
  static NNK_VEC Value sub(Value a, Value b) { return _mm512_sub_ps(a, b); }
  static NNK_VEC Value mul(Value a, Value b) { return _mm512_mul_ps(a, b); }
  static NNK_VEC Value fma(Value a, Value b, Value c) { return _mm512_fmadd_ps(a, b, c); }
  static NNK_VEC Value fnma(Value a, Value b, Value c) { return _mm512_fnmadd_ps(a, b, c); }

  // 16-byte pieces of rows i, i + 4, i + 8 and i + 12 share a vector, so that the transposition
  // stays inside the quarters of a vector.
  template <Type type>
  static NNK_VEC void load_columns(const Element<type>* const* rows, int64_t at,
                                   Value (&columns)[piece]) {
    for (int i = 0; i < piece; ++i) columns[i] = join<type>(rows + i, at);
    transpose(columns);
  }
  template <Type type>
  static NNK_VEC void store_columns(Element<type>* const* rows, int64_t at,
                                    Value (&columns)[piece]) {
    transpose(columns);
    for (int i = 0; i < piece; ++i) split<type>(columns[i], rows + i, at);
  }

  template <Type type>
  static NNK_VEC Value load_as(const Element<type>* p) {
    if constexpr (type == Type::float32)
      return _mm512_loadu_ps(p);
    else
      return widen<type>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  template <Type type>
  static NNK_VEC void store_as(Element<type>* p, Value a) {
    if constexpr (type == Type::float32)
      _mm512_storeu_ps(p, a);
    else
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow<type>(a));
  }

 private:
  static NNK_VEC void transpose(Value (&v)[piece]) {
    const Value a = _mm512_unpacklo_ps(v[0], v[1]), b = _mm512_unpackhi_ps(v[0], v[1]);
    const Value c = _mm512_unpacklo_ps(v[2], v[3]), d = _mm512_unpackhi_ps(v[2], v[3]);
    v[0] = _mm512_shuffle_ps(a, c, 0x44);
    v[1] = _mm512_shuffle_ps(a, c, 0xEE);
    v[2] = _mm512_shuffle_ps(b, d, 0x44);
    v[3] = _mm512_shuffle_ps(b, d, 0xEE);
  }

  template <Type type>
  static NNK_VEC Value widen(__m256i codes) {
    if constexpr (type == Type::float16)
      return _mm512_cvtph_ps(codes);
    else
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(codes), 16));
  }

  // Rounds to nearest even.
  template <Type type>
  static NNK_VEC __m256i narrow(Value a) {
    if constexpr (type == Type::float16) {
      return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT);
    } else {
      const __m512i x = _mm512_castps_si512(a);
      const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
      const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
      const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(x, bias), 16);
      const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
      return _mm512_cvtepi32_epi16(_mm512_mask_set1_epi32(rounded, nan, 0x7FC0));
    }
  }

  template <Type type>
  static NNK_VEC Value join(const Element<type>* const* rows, int64_t at) {
    if constexpr (type == Type::float32) {
      Value v = _mm512_castps128_ps512(_mm_loadu_ps(rows[0] + at));
      v = _mm512_insertf32x4(v, _mm_loadu_ps(rows[4] + at), 1);
      v = _mm512_insertf32x4(v, _mm_loadu_ps(rows[8] + at), 2);
      return _mm512_insertf32x4(v, _mm_loadu_ps(rows[12] + at), 3);
    } else {
      const __m128i low = pair(rows[0] + at, rows[4] + at);
      return widen<type>(_mm256_inserti128_si256(_mm256_castsi128_si256(low),
                                                 pair(rows[8] + at, rows[12] + at), 1));
    }
  }

  template <Type type>
  static NNK_VEC void split(Value a, Element<type>* const* rows, int64_t at) {
    if constexpr (type == Type::float32) {
      _mm_storeu_ps(rows[0] + at, _mm512_castps512_ps128(a));
      _mm_storeu_ps(rows[4] + at, _mm512_extractf32x4_ps(a, 1));
      _mm_storeu_ps(rows[8] + at, _mm512_extractf32x4_ps(a, 2));
      _mm_storeu_ps(rows[12] + at, _mm512_extractf32x4_ps(a, 3));
    } else {
      const __m256i codes = narrow<type>(a);
      store_pair(_mm256_castsi256_si128(codes), rows[0] + at, rows[4] + at);
      store_pair(_mm256_extracti128_si256(codes, 1), rows[8] + at, rows[12] + at);
    }
  }

  static NNK_VEC __m128i pair(const uint16_t* low, const uint16_t* high) {
    return _mm_unpacklo_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(low)),
                              _mm_loadl_epi64(reinterpret_cast<const __m128i*>(high)));
  }
  static NNK_VEC void store_pair(__m128i codes, uint16_t* low, uint16_t* high) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(low), codes);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(high), _mm_unpackhi_epi64(codes, codes));
  }
};

struct Vec64 {
  using T = double;
  static constexpr int lanes = 8;
  static constexpr int piece = 2;
  using Value = __m512d;

  static NNK_VEC Value load(const T* p) { return _mm512_load_pd(p); }
  static NNK_VEC void store(T* p, Value a) { _mm512_store_pd(p, a); }
  static NNK_VEC Value set(T x) { return _mm512_set1_pd(x); }
  static NNK_VEC Value add(Value a, Value b) { return _mm512_add_pd(a, b); }
  static NNK_VEC Value sub(Value a, Value b) { return _mm512_sub_pd(a, b); }
  static NNK_VEC Value mul(Value a, Value b) { return _mm512_mul_pd(a, b); }
  static NNK_VEC Value fma(Value a, Value b, Value c) { return _mm512_fmadd_pd(a, b, c); }
  static NNK_VEC Value fnma(Value a, Value b, Value c) { return _mm512_fnmadd_pd(a, b, c); }

  template <Type type>
  static NNK_VEC void load_columns(const T* const* rows, int64_t at, Value (&columns)[piece]) {
    for (int i = 0; i < piece; ++i) {
      Value v = _mm512_castpd128_pd512(_mm_loadu_pd(rows[i] + at));
      v = _mm512_insertf64x2(v, _mm_loadu_pd(rows[i + 2] + at), 1);
      v = _mm512_insertf64x2(v, _mm_loadu_pd(rows[i + 4] + at), 2);
      columns[i] = _mm512_insertf64x2(v, _mm_loadu_pd(rows[i + 6] + at), 3);
    }
    transpose(columns);
  }
  template <Type type>
  static NNK_VEC void store_columns(T* const* rows, int64_t at, Value (&columns)[piece]) {
    transpose(columns);
    for (int i = 0; i < piece; ++i) {
      _mm_storeu_pd(rows[i] + at, _mm512_castpd512_pd128(columns[i]));
      _mm_storeu_pd(rows[i + 2] + at, _mm512_extractf64x2_pd(columns[i], 1));
      _mm_storeu_pd(rows[i + 4] + at, _mm512_extractf64x2_pd(columns[i], 2));
      _mm_storeu_pd(rows[i + 6] + at, _mm512_extractf64x2_pd(columns[i], 3));
    }
  }

  template <Type type>
  static NNK_VEC Value load_as(const T* p) {
    return _mm512_loadu_pd(p);
  }
  template <Type type>
  static NNK_VEC void store_as(T* p, Value a) {
    _mm512_storeu_pd(p, a);
  }

 private:
  static NNK_VEC void transpose(Value (&v)[piece]) {
    const Value low = _mm512_unpacklo_pd(v[0], v[1]);
    v[1] = _mm512_unpackhi_pd(v[0], v[1]);
    v[0] = low;
  }
};

}  // namespace
}  // namespace nnkernels::gaunt
