// 32 bytes: AVX2, FMA, F16C.
#pragma once

#include <immintrin.h>

#include "deltaproduct/cpu/transpose_avx2.h"
#include "deltaproduct/deltaproduct_math.h"

namespace nnkernels::deltaproduct {
namespace {

template <class Real>
struct Vec;

// Lanes below `count`, for maskload.
NNK_VEC __m256i first_words(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

template <>
struct Vec<float> : Blocks<float> {
  static constexpr int lanes = 8;
  static constexpr int panel_vectors = 2, tile_rows = 6, tile_vectors = 2;
  using Reg = __m256;

  static NNK_VEC Reg zero() { return _mm256_setzero_ps(); }
  static NNK_VEC Reg set(float x) { return _mm256_set1_ps(x); }
  static NNK_VEC Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static NNK_VEC void store(float* p, Reg x) { _mm256_storeu_ps(p, x); }
  // The first `count` < lanes numbers, then zeros.
  static NNK_VEC Reg load_first(const float* p, int64_t count) {
    return _mm256_maskload_ps(p, first_words(count));
  }
  static NNK_VEC Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static NNK_VEC Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  // a * b + c and c - a * b.
  static NNK_VEC Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static NNK_VEC Reg fnma(Reg a, Reg b, Reg c) { return _mm256_fnmadd_ps(a, b, c); }
  static NNK_VEC float sum(Reg a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  static NNK_VEC Reg widen(Type type, const void* p, int64_t index) {
    const char* at = static_cast<const char*>(p) + bytes_of(type, index);
    const auto halves = [at] { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); };
    switch (type) {
      case Type::float32: return _mm256_loadu_ps(reinterpret_cast<const float*>(at));
      case Type::bfloat16:
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves()), 16));
      case Type::float16: return _mm256_cvtph_ps(halves());
      default: {
        const auto* numbers = reinterpret_cast<const double*>(at);
        return _mm256_set_m128(_mm256_cvtpd_ps(_mm256_loadu_pd(numbers + 4)),
                               _mm256_cvtpd_ps(_mm256_loadu_pd(numbers)));
      }
    }
  }
  static NNK_VEC void narrow(Type type, void* p, int64_t index, Reg x) {
    char* at = static_cast<char*>(p) + bytes_of(type, index);
    switch (type) {
      case Type::float32: _mm256_storeu_ps(reinterpret_cast<float*>(at), x); break;
      case Type::bfloat16: {
        const __m256i word = _mm256_castps_si256(x);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(word, 16), _mm256_set1_epi32(1));
        const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
        const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(word, half), 16);
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        const __m256i codes = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC0), nan);
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(codes, codes), 0x08);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm256_castsi256_si128(packed));
        break;
      }
      case Type::float16:
        _mm_storeu_si128(reinterpret_cast<__m128i*>(at),
                         _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
        break;
      default: {
        auto* numbers = reinterpret_cast<double*>(at);
        _mm256_storeu_pd(numbers, _mm256_cvtps_pd(_mm256_castps256_ps128(x)));
        _mm256_storeu_pd(numbers + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
      }
    }
  }
};

template <>
struct Vec<double> : Blocks<double> {
  static constexpr int lanes = 4;
  static constexpr int panel_vectors = 2, tile_rows = 6, tile_vectors = 2;
  using Reg = __m256d;

  static NNK_VEC Reg zero() { return _mm256_setzero_pd(); }
  static NNK_VEC Reg set(double x) { return _mm256_set1_pd(x); }
  static NNK_VEC Reg load(const double* p) { return _mm256_loadu_pd(p); }
  static NNK_VEC void store(double* p, Reg x) { _mm256_storeu_pd(p, x); }
  static NNK_VEC Reg load_first(const double* p, int64_t count) {
    const __m256i mask =
        _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
    return _mm256_maskload_pd(p, mask);
  }
  static NNK_VEC Reg mul(Reg a, Reg b) { return _mm256_mul_pd(a, b); }
  static NNK_VEC Reg add(Reg a, Reg b) { return _mm256_add_pd(a, b); }
  static NNK_VEC Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_pd(a, b, c); }
  static NNK_VEC Reg fnma(Reg a, Reg b, Reg c) { return _mm256_fnmadd_pd(a, b, c); }
  static NNK_VEC double sum(Reg a) {
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }

  static NNK_VEC Reg widen(Type type, const void* p, int64_t index) {
    if (type == Type::float64) return load(static_cast<const double*>(p) + index);
    double x[lanes];
    for (int i = 0; i < lanes; ++i) x[i] = load_number<double>(type, p, index + i);
    return load(x);
  }
  static NNK_VEC void narrow(Type type, void* p, int64_t index, Reg x) {
    if (type == Type::float64) return store(static_cast<double*>(p) + index, x);
    double numbers[lanes];
    store(numbers, x);
    for (int i = 0; i < lanes; ++i) store_number<double>(type, p, index + i, numbers[i]);
  }
};

}  // namespace
}  // namespace nnkernels::deltaproduct
