// Vectors of the instruction set that the including file is compiled for: one source for all.
// Arithmetic is GNU vector code; intrinsics stand only where that has no word for an instruction.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstring>

// The kernel headers are compiled once per instruction set. What they share must be inlined or have
// internal linkage: a file compiled for AVX must not lend its copy to the scalar build.
#define NNK_VEC inline __attribute__((always_inline))

namespace nnkernels::pc {
namespace {

#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif

template <class Real>
struct WordOf;
template <>
struct WordOf<float> {
  using Type = int32_t;
};
template <>
struct WordOf<double> {
  using Type = int64_t;
};

template <class Real>
struct Vec {
  using Word = typename WordOf<Real>::Type;
  static constexpr int lanes = kVecBytes / sizeof(Real);
  typedef Real Reg __attribute__((vector_size(kVecBytes)));
  // Lane by lane the bits of a Reg, or all ones and all zeros: the result of a comparison.
  typedef Word Words __attribute__((vector_size(kVecBytes)));

  static NNK_VEC Reg zero() { return Reg{}; }
  static NNK_VEC Reg set(Real x) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Real) == 4)
      return reinterpret_cast<Reg>(_mm512_set1_ps(x));
    else
      return reinterpret_cast<Reg>(_mm512_set1_pd(x));
#elif defined(__AVX2__)
    if constexpr (sizeof(Real) == 4)
      return reinterpret_cast<Reg>(_mm256_set1_ps(x));
    else
      return reinterpret_cast<Reg>(_mm256_set1_pd(x));
#else
    Reg r;
    for (int i = 0; i < lanes; ++i) r[i] = x;
    return r;
#endif
  }
  static NNK_VEC Reg load(const Real* p) {
    Reg x;
    memcpy(&x, p, sizeof x);
    return x;
  }
  static NNK_VEC void store(Real* p, Reg x) { memcpy(p, &x, sizeof x); }
  // Past the caches where the machine can; p must be aligned to the vector.
  static NNK_VEC void stream(Real* p, Reg x) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(x));
#elif defined(__AVX2__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(x));
#else
    store(p, x);
#endif
  }
  // Before other threads may read what was streamed.
  static NNK_VEC void end_stream() {
#if defined(__AVX2__)
    _mm_sfence();
#endif
  }
  static NNK_VEC Words words(Reg x) { return reinterpret_cast<Words>(x); }
  static NNK_VEC Reg reals(Words x) { return reinterpret_cast<Reg>(x); }
  // a where `mask`, else 0.
  static NNK_VEC Reg where(Words mask, Reg a) { return reals(mask & words(a)); }

  // a * b + c, rounded once on every machine.
  static NNK_VEC Reg fma(Reg a, Reg b, Reg c) {
#if defined(__AVX2__)
    return fused(a, b, c);
#else
    Reg r;
    for (int i = 0; i < lanes; ++i) r[i] = std::fma(a[i], b[i], c[i]);
    return r;
#endif
  }
  // The same, rounded twice where the machine has no fused multiply-add.
  static NNK_VEC Reg mul_add(Reg a, Reg b, Reg c) {
#if defined(__AVX2__)
    return fused(a, b, c);
#else
    return a * b + c;
#endif
  }
  // The larger of each pair; b where one of them is NaN.
  static NNK_VEC Reg max(Reg a, Reg b) { return a > b ? a : b; }
  static NNK_VEC Reg min(Reg a, Reg b) { return a < b ? a : b; }

 private:
#if defined(__AVX512F__)
  static NNK_VEC Reg fused(Reg a, Reg b, Reg c) {
    if constexpr (sizeof(Real) == 4)
      return reinterpret_cast<Reg>(_mm512_fmadd_ps(a, b, c));
    else
      return reinterpret_cast<Reg>(_mm512_fmadd_pd(a, b, c));
  }
#elif defined(__AVX2__)
  static NNK_VEC Reg fused(Reg a, Reg b, Reg c) {
    if constexpr (sizeof(Real) == 4)
      return reinterpret_cast<Reg>(_mm256_fmadd_ps(a, b, c));
    else
      return reinterpret_cast<Reg>(_mm256_fmadd_pd(a, b, c));
  }
#endif
};

}  // namespace
}  // namespace nnkernels::pc
