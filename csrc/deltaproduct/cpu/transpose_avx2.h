// Transposes of small blocks, for the vectors of AVX2 and AVX-512.
#pragma once

#include <immintrin.h>

#include "deltaproduct/cpu/engine.h"

namespace nnkernels::deltaproduct {
namespace {

template <class Real>
struct Blocks;

template <>
struct Blocks<float> {
  // Numbers on a side.
  static constexpr int block = 8;
  static NNK_VEC void transpose_block(const float* from, int64_t from_row, float* to,
                                      int64_t to_row) {
    __m256 pairs[block], quads[block];
#pragma GCC unroll 4
    for (int i = 0; i < block; i += 2) {
      const __m256 even = _mm256_loadu_ps(from + i * from_row);
      const __m256 odd = _mm256_loadu_ps(from + (i + 1) * from_row);
      pairs[i] = _mm256_unpacklo_ps(even, odd);
      pairs[i + 1] = _mm256_unpackhi_ps(even, odd);
    }
#pragma GCC unroll 2
    for (int i = 0; i < block; i += 4) {
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        quads[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
        quads[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xEE);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      _mm256_storeu_ps(to + i * to_row, _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20));
      _mm256_storeu_ps(to + (i + 4) * to_row, _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31));
    }
  }
};

template <>
struct Blocks<double> {
  static constexpr int block = 4;
  static NNK_VEC void transpose_block(const double* from, int64_t from_row, double* to,
                                      int64_t to_row) {
    __m256d pairs[block];
#pragma GCC unroll 2
    for (int i = 0; i < block; i += 2) {
      const __m256d even = _mm256_loadu_pd(from + i * from_row);
      const __m256d odd = _mm256_loadu_pd(from + (i + 1) * from_row);
      pairs[i] = _mm256_unpacklo_pd(even, odd);
      pairs[i + 1] = _mm256_unpackhi_pd(even, odd);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      _mm256_storeu_pd(to + i * to_row, _mm256_permute2f128_pd(pairs[i], pairs[i + 2], 0x20));
      _mm256_storeu_pd(to + (i + 2) * to_row, _mm256_permute2f128_pd(pairs[i], pairs[i + 2], 0x31));
    }
  }
};

}  // namespace
}  // namespace nnkernels::deltaproduct
