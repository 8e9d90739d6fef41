// Eight floats or four doubles: AVX2, FMA, F16C.
#pragma once

#include <immintrin.h>

#include "gaunt/cpu/engine.h"

namespace nnkernels::gaunt {
namespace {

struct Vec32 {
  using T = float;
  static constexpr int lanes = 8;
  static constexpr int piece = 4;
  using Value = __m256;

  static NNK_VEC Value load(const T* p) { return _mm256_load_ps(p); }
  static NNK_VEC void store(T* p, Value a) { _mm256_store_ps(p, a); }
  static NNK_VEC Value set(T x) { return _mm256_set1_ps(x); }
  static NNK_VEC Value add(Value a, Value b) { return _mm256_add_ps(a, b); }
  static NNK_VEC Value sub(Value a, Value b) { return _mm256_sub_ps(a, b); }
  static NNK_VEC Value mul(Value a, Value b) { return _mm256_mul_ps(a, b); }
  static NNK_VEC Value fma(Value a, Value b, Value c) { return _mm256_fmadd_ps(a, b, c); }
  static NNK_VEC Value fnma(Value a, Value b, Value c) { return _mm256_fnmadd_ps(a, b, c); }

  // 16-byte pieces of rows i and i + 4 share a vector, so that the transposition stays inside the
  // halves of a vector.
  template <Type type>
  static NNK_VEC void load_columns(const Element<type>* const* rows, int64_t at,
                                   Value (&columns)[piece]) {
    for (int i = 0; i < piece; ++i) columns[i] = join<type>(rows[i] + at, rows[i + 4] + at);
    transpose(columns);
  }
  template <Type type>
  static NNK_VEC void store_columns(Element<type>* const* rows, int64_t at,
                                    Value (&columns)[piece]) {
    transpose(columns);
    for (int i = 0; i < piece; ++i) split<type>(columns[i], rows[i] + at, rows[i + 4] + at);
  }

  template <Type type>
  static NNK_VEC Value load_as(const Element<type>* p) {
    if constexpr (type == Type::float32)
      return _mm256_loadu_ps(p);
    else
      return widen<type>(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  template <Type type>
  static NNK_VEC void store_as(Element<type>* p, Value a) {
    if constexpr (type == Type::float32)
      _mm256_storeu_ps(p, a);
    else
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow<type>(a));
  }

 private:
  static NNK_VEC void transpose(Value (&v)[piece]) {
    const Value a = _mm256_unpacklo_ps(v[0], v[1]), b = _mm256_unpackhi_ps(v[0], v[1]);
    const Value c = _mm256_unpacklo_ps(v[2], v[3]), d = _mm256_unpackhi_ps(v[2], v[3]);
    v[0] = _mm256_shuffle_ps(a, c, 0x44);
    v[1] = _mm256_shuffle_ps(a, c, 0xEE);
    v[2] = _mm256_shuffle_ps(b, d, 0x44);
    v[3] = _mm256_shuffle_ps(b, d, 0xEE);
  }

  template <Type type>
  static NNK_VEC Value widen(__m128i codes) {
    if constexpr (type == Type::float16)
      return _mm256_cvtph_ps(codes);
    else
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(codes), 16));
  }

  // Rounds to nearest even.
  template <Type type>
  static NNK_VEC __m128i narrow(Value a) {
    if constexpr (type == Type::float16) {
      return _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT);
    } else {
      const __m256i x = _mm256_castps_si256(a);
      const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
      const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
      const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(x, bias), 16);
      const __m256 nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
      const __m256i words =
          _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC0), _mm256_castps_si256(nan));
      const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
      return _mm256_castsi256_si128(packed);
    }
  }

  template <Type type>
  static NNK_VEC Value join(const Element<type>* low, const Element<type>* high) {
    if constexpr (type == Type::float32) {
      return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
    } else {
      return widen<type>(
          _mm_unpacklo_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(low)),
                             _mm_loadl_epi64(reinterpret_cast<const __m128i*>(high))));
    }
  }

  template <Type type>
  static NNK_VEC void split(Value a, Element<type>* low, Element<type>* high) {
    if constexpr (type == Type::float32) {
      _mm_storeu_ps(low, _mm256_castps256_ps128(a));
      _mm_storeu_ps(high, _mm256_extractf128_ps(a, 1));
    } else {
      const __m128i codes = narrow<type>(a);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(low), codes);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(high), _mm_unpackhi_epi64(codes, codes));
    }
  }
};

struct Vec64 {
  using T = double;
  static constexpr int lanes = 4;
  static constexpr int piece = 2;
  using Value = __m256d;

  static NNK_VEC Value load(const T* p) { return _mm256_load_pd(p); }
  static NNK_VEC void store(T* p, Value a) { _mm256_store_pd(p, a); }
  static NNK_VEC Value set(T x) { return _mm256_set1_pd(x); }
  static NNK_VEC Value add(Value a, Value b) { return _mm256_add_pd(a, b); }
  static NNK_VEC Value sub(Value a, Value b) { return _mm256_sub_pd(a, b); }
  static NNK_VEC Value mul(Value a, Value b) { return _mm256_mul_pd(a, b); }
  static NNK_VEC Value fma(Value a, Value b, Value c) { return _mm256_fmadd_pd(a, b, c); }
  static NNK_VEC Value fnma(Value a, Value b, Value c) { return _mm256_fnmadd_pd(a, b, c); }

  template <Type type>
  static NNK_VEC void load_columns(const T* const* rows, int64_t at, Value (&columns)[piece]) {
    for (int i = 0; i < piece; ++i) {
      const __m256d low = _mm256_castpd128_pd256(_mm_loadu_pd(rows[i] + at));
      columns[i] = _mm256_insertf128_pd(low, _mm_loadu_pd(rows[i + 2] + at), 1);
    }
    transpose(columns);
  }
  template <Type type>
  static NNK_VEC void store_columns(T* const* rows, int64_t at, Value (&columns)[piece]) {
    transpose(columns);
    for (int i = 0; i < piece; ++i) {
      _mm_storeu_pd(rows[i] + at, _mm256_castpd256_pd128(columns[i]));
      _mm_storeu_pd(rows[i + 2] + at, _mm256_extractf128_pd(columns[i], 1));
    }
  }

  template <Type type>
  static NNK_VEC Value load_as(const T* p) {
    return _mm256_loadu_pd(p);
  }
  template <Type type>
  static NNK_VEC void store_as(T* p, Value a) {
    _mm256_storeu_pd(p, a);
  }

 private:
  static NNK_VEC void transpose(Value (&v)[piece]) {
    const Value low = _mm256_unpacklo_pd(v[0], v[1]);
    v[1] = _mm256_unpackhi_pd(v[0], v[1]);
    v[0] = low;
  }
};

}  // namespace
}  // namespace nnkernels::gaunt
