// 64 bytes: AVX-512 F, BW, DQ, VL.
#pragma once

#include <immintrin.h>

#include "deltaproduct/cpu/transpose_avx2.h"
#include "deltaproduct/deltaproduct_math.h"

namespace nnkernels::deltaproduct {
namespace {

template <class Real>
struct Vec;

template <>
struct Vec<float> : Blocks<float> {
  static constexpr int lanes = 16;
  static constexpr int panel_vectors = 2, tile_rows = 12, tile_vectors = 2;
  using Reg = __m512;

  static NNK_VEC Reg zero() { return _mm512_setzero_ps(); }
  static NNK_VEC Reg set(float x) { return _mm512_set1_ps(x); }
  static NNK_VEC Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static NNK_VEC void store(float* p, Reg x) { _mm512_storeu_ps(p, x); }
  // The first `count` < lanes numbers, then zeros.
  static NNK_VEC Reg load_first(const float* p, int64_t count) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
  }
  static NNK_VEC Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static NNK_VEC Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  // a * b + c and c - a * b.
  static NNK_VEC Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static NNK_VEC Reg fnma(Reg a, Reg b, Reg c) { return _mm512_fnmadd_ps(a, b, c); }
  static NNK_VEC float sum(Reg a) {
    const __m256 eight = _mm256_add_ps(half<0>(a), half<1>(a));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  static NNK_VEC Reg widen(Type type, const void* p, int64_t index) {
    const char* at = static_cast<const char*>(p) + bytes_of(type, index);
    const auto halves = [at] { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); };
    switch (type) {
      case Type::float32: return _mm512_loadu_ps(at);
      case Type::bfloat16:
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves()), 16));
      case Type::float16: return _mm512_cvtph_ps(halves());
      default:
        return _mm512_castpd_ps(_mm512_insertf64x4(
            _mm512_castps_pd(_mm512_castps256_ps512(_mm512_cvtpd_ps(_mm512_loadu_pd(at)))),
            _mm256_castps_pd(_mm512_cvtpd_ps(_mm512_loadu_pd(at + 64))), 1));
    }
  }
  static NNK_VEC void narrow(Type type, void* p, int64_t index, Reg x) {
    char* at = static_cast<char*>(p) + bytes_of(type, index);
    switch (type) {
      case Type::float32: _mm512_storeu_ps(at, x); break;
      case Type::bfloat16: {
        const __m512i word = _mm512_castps_si512(x);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(word, 16), _mm512_set1_epi32(1));
        const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
        const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(word, half), 16);
        const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        const __m512i codes = _mm512_mask_set1_epi32(rounded, nan, 0x7FC0);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm512_cvtepi32_epi16(codes));
        break;
      }
      case Type::float16:
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(at),
                            _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
        break;
      default:
        _mm512_storeu_pd(at, _mm512_cvtps_pd(half<0>(x)));
        _mm512_storeu_pd(at + 64, _mm512_cvtps_pd(half<1>(x)));
    }
  }

 private:
  // Masked: gcc 12 takes the undefined lanes inside the plain intrinsics for a mistake.
  template <int which>
  static NNK_VEC __m256 half(Reg a) {
    return _mm512_maskz_extractf32x8_ps(0xFF, a, which);
  }
};

template <>
struct Vec<double> : Blocks<double> {
  static constexpr int lanes = 8;
  static constexpr int panel_vectors = 2, tile_rows = 12, tile_vectors = 2;
  using Reg = __m512d;

  static NNK_VEC Reg zero() { return _mm512_setzero_pd(); }
  static NNK_VEC Reg set(double x) { return _mm512_set1_pd(x); }
  static NNK_VEC Reg load(const double* p) { return _mm512_loadu_pd(p); }
  static NNK_VEC void store(double* p, Reg x) { _mm512_storeu_pd(p, x); }
  static NNK_VEC Reg load_first(const double* p, int64_t count) {
    return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), p);
  }
  static NNK_VEC Reg mul(Reg a, Reg b) { return _mm512_mul_pd(a, b); }
  static NNK_VEC Reg add(Reg a, Reg b) { return _mm512_add_pd(a, b); }
  static NNK_VEC Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_pd(a, b, c); }
  static NNK_VEC Reg fnma(Reg a, Reg b, Reg c) { return _mm512_fnmadd_pd(a, b, c); }
  static NNK_VEC double sum(Reg a) {
    const __m256d four = _mm256_add_pd(half<0>(a), half<1>(a));
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
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

 private:
  template <int which>
  static NNK_VEC __m256d half(Reg a) {
    return _mm512_maskz_extractf64x4_pd(0xF, a, which);
  }
};

}  // namespace
}  // namespace nnkernels::deltaproduct
