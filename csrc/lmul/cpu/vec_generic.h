// Four lanes of plain C++ (GNU vector types): the scalar build, for every machine.
#pragma once

#include <cstring>

#include "common/convert.h"

namespace nnkernels::lmul {
namespace {

struct Vec {
  static constexpr int lanes = 4;
  // 2 x 16: 8 of 16 registers accumulate.
  static constexpr int registers = 16, tile_rows = 2, few_rows = 2;
  static constexpr int tile_groups = 1;

  using Int = uint32_t __attribute__((vector_size(16)));
  using Signed = int32_t __attribute__((vector_size(16)));
  using Float = float __attribute__((vector_size(16)));
  using Mask = Signed;

  static NNK_VEC Int set(uint32_t x) { return Int{x, x, x, x}; }
  static NNK_VEC Float set(float x) { return Float{x, x, x, x}; }
  static NNK_VEC Int broadcast(const uint32_t* p) { return set(*p); }
  static NNK_VEC Float broadcast(const float* p) { return set(*p); }
  static NNK_VEC Int load(const void* p) {
    Int x;
    memcpy(&x, p, sizeof x);
    return x;
  }
  static NNK_VEC void store(void* p, Int x) { memcpy(p, &x, sizeof x); }

  static NNK_VEC Float as_float(Int x) { return reinterpret_cast<Float>(x); }
  static NNK_VEC Int as_int(Float x) { return reinterpret_cast<Int>(x); }

  static NNK_VEC Int add(Int a, Int b) { return a + b; }
  static NNK_VEC Int sub(Int a, Int b) { return a - b; }
  static NNK_VEC Int bit_and(Int a, Int b) { return a & b; }
  static NNK_VEC Int bit_or(Int a, Int b) { return a | b; }
  static NNK_VEC Int bit_xor(Int a, Int b) { return a ^ b; }
  static NNK_VEC Int shift_left(Int a, int n) { return a << static_cast<uint32_t>(n); }
  static NNK_VEC Int shift_right(Int a, int n) { return a >> static_cast<uint32_t>(n); }
  static NNK_VEC Int min(Int a, Int b) { return a < b ? a : b; }
  static NNK_VEC Int max(Int a, Int b) { return a > b ? a : b; }

  // Signed comparison.
  static NNK_VEC Mask greater(Int a, Int b) {
    return reinterpret_cast<Signed>(a) > reinterpret_cast<Signed>(b);
  }
  static NNK_VEC Mask equal(Int a, Int b) { return a == b; }
  static NNK_VEC Mask not_equal(Int a, Int b) { return a != b; }
  static NNK_VEC bool any(Mask m) { return (m[0] | m[1] | m[2] | m[3]) != 0; }
  static NNK_VEC Mask mask_or(Mask a, Mask b) { return a | b; }
  static NNK_VEC Mask mask_and(Mask a, Mask b) { return a & b; }
  static NNK_VEC Int select(Mask m, Int yes, Int no) { return m ? yes : no; }
  static NNK_VEC Int where(Mask m, Int yes) { return reinterpret_cast<Int>(m) & yes; }

  // On pairs of 16-bit numbers: unsigned, but for the signed comparison.
  static NNK_VEC Int min16(Int a, Int b) {
    return from16(pairs(a) < pairs(b) ? pairs(a) : pairs(b));
  }
  static NNK_VEC Int max16(Int a, Int b) {
    return from16(pairs(a) > pairs(b) ? pairs(a) : pairs(b));
  }
  static NNK_VEC Int add16(Int a, Int b) { return from16(pairs(a) + pairs(b)); }
  static NNK_VEC Int sub16(Int a, Int b) { return from16(pairs(a) - pairs(b)); }
  // x where a > b, else 0.
  static NNK_VEC Int where_greater16(Int a, Int b, Int x) {
    using Signed16 = int16_t __attribute__((vector_size(16)));
    const auto greater = reinterpret_cast<Signed16>(a) > reinterpret_cast<Signed16>(b);
    return reinterpret_cast<Int>(greater) & x;
  }

  static NNK_VEC Float add(Float a, Float b) { return a + b; }
  static NNK_VEC Float sub(Float a, Float b) { return a - b; }
  static NNK_VEC Float mul(Float a, Float b) { return a * b; }
  static NNK_VEC Float fma(Float a, Float b, Float c) {
    Float r;
    for (int i = 0; i < lanes; ++i) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return r;
  }
  // b where a or b is NaN.
  static NNK_VEC Float max(Float a, Float b) { return a > b ? a : b; }
  static NNK_VEC Float min(Float a, Float b) { return a < b ? a : b; }
  static NNK_VEC Float floor(Float a) {
    for (int i = 0; i < lanes; ++i) a[i] = __builtin_floorf(a[i]);
    return a;
  }
  // Toward zero. Any number where `a` is NaN.
  static NNK_VEC Int truncate(Float a) {
    Int x;
    for (int i = 0; i < lanes; ++i)
      x[i] = a[i] == a[i] ? static_cast<uint32_t>(static_cast<int32_t>(a[i])) : 0u;
    return x;
  }
  // c + a where m; the caller's `a` is finite where not m.
  static NNK_VEC Float add_where(Mask m, Float a, Float c) {
    return c + as_float(where(m, as_int(a)));
  }
  // c + a * b where m, for b in {-1, 0, 1}.
  static NNK_VEC Float add_signed(Mask m, Float a, Float b, Float c) {
    return c + as_float(where(m, as_int(a))) * b;
  }
  static NNK_VEC Float fma_where(Mask m, Float a, Float b, Float c) {
    return as_float(m ? as_int(fma(a, b, c)) : as_int(c));
  }

  template <DType dtype>
  static NNK_VEC Int load_as(const void* p, int64_t index) {
    Int x;
    for (int i = 0; i < lanes; ++i) x[i] = load_word(dtype, p, index + i);
    return x;
  }
  template <DType dtype>
  static NNK_VEC void store_as(void* p, int64_t index, Int x) {
    for (int i = 0; i < lanes; ++i) store_word(dtype, p, index + i, x[i]);
  }

  static NNK_VEC void transpose(Int (&x)[lanes]) {
    for (int i = 0; i < lanes; ++i) {
      for (int j = i + 1; j < lanes; ++j) {
        const uint32_t t = x[i][j];
        x[i][j] = x[j][i];
        x[j][i] = t;
      }
    }
  }

 private:
  using Pairs = uint16_t __attribute__((vector_size(16)));
  static NNK_VEC Pairs pairs(Int x) { return reinterpret_cast<Pairs>(x); }
  static NNK_VEC Int from16(Pairs x) { return reinterpret_cast<Int>(x); }
};

}  // namespace
}  // namespace nnkernels::lmul
