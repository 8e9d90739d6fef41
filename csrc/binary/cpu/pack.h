// Packing: 32 elements at a time to a word of bits. Included by one file per instruction set.
#pragma once

#include "binary/cpu/engine.h"

namespace nnkernels::binary {
namespace {

// A test on the bit pattern of an element: lowest < (code & clear) <= last, or its opposite.
// Integers rather than numbers, so that subnormals keep their sign whatever the mode of the FPU.
template <class Int>
struct Test {
  Int clear, lowest, last;
  bool opposite = false;

  uint32_t operator()(const void* p) const {
    const uint32_t mask = Vec::mask32<Int>(p, clear, lowest, last);
    return opposite ? ~mask : mask;
  }
};

template <class Int>
Test<Int> float_test(Plane plane, Int infinity, Int one) {
  constexpr Int lowest = std::numeric_limits<Int>::min(), last = std::numeric_limits<Int>::max();
  switch (plane) {
    // Negative numbers are the codes from min + 1 to min + infinity: -0 lies below, NaN above.
    case Plane::negative: return {Int(-1), lowest, Int(lowest + infinity)};
    case Plane::inside: return {last, Int(-1), one};
    default: return {last, Int(0), last};
  }
}

inline Test<int8_t> int8_test(Plane plane) {
  switch (plane) {
    case Plane::negative: return {-1, -1, 127, true};
    case Plane::inside: return {-1, -2, 1};
    default: return {-1, -1, 0, true};
  }
}

// Calls f with the test for elements of this type.
template <class F>
void with_test(Type type, Plane plane, F&& f) {
  switch (type) {
    case Type::float32: return f(float_test<int32_t>(plane, 0x7F800000, 0x3F800000));
    case Type::bfloat16: return f(float_test<int16_t>(plane, 0x7F80, 0x3F80));
    case Type::float16: return f(float_test<int16_t>(plane, 0x7C00, 0x3C00));
    default: return f(int8_test(plane));
  }
}

// Bit i: the result of word(x + i), for a row of K elements and its padding.
template <class Item, class Word>
void pack_words(const Item* x, int64_t K, uint32_t* bits, Word&& word) {
  int64_t k = 0;
  for (; k + 32 <= K; k += 32) bits[k / 32] = word(x + k);
  if (k < K) {
    Item tail[32] = {};
    memcpy(tail, x + k, static_cast<size_t>(K - k) * sizeof(Item));
    bits[k / 32] = word(tail) & ((1u << (K - k)) - 1);
    k += 32;
  }
  for (; k < row_words(K) * 32; k += 32) bits[k / 32] = 0;
}

void pack_row(Type type, Plane plane, const void* x, int64_t K, uint32_t* bits) {
  with_test(type, plane, [&]<class Int>(const Test<Int>& test) {
    pack_words(static_cast<const Int*>(x), K, bits, test);
  });
}

// Exchanges rows and columns of a 32 x 32 matrix of bits.
void transpose_bits(uint32_t (&x)[32]) {
  uint32_t mask = 0x0000FFFFu;
  for (int step = 16; step > 0; step >>= 1, mask ^= mask << step) {
    for (int i = 0; i < 32; i += 2 * step) {
      for (int j = i; j < i + step; ++j) {
        const uint32_t swap = ((x[j] >> step) ^ x[j + step]) & mask;
        x[j] ^= swap << step;
        x[j + step] ^= swap;
      }
    }
  }
}

void pack_columns(Type type, Plane plane, const void* x, int64_t column_stride, int64_t rows,
                  int64_t K, uint32_t* bits, int64_t pitch) {
  with_test(type, plane, [&]<class Int>(const Test<Int>& test) {
    const auto* at = static_cast<const Int*>(x);
    const uint32_t keep = rows < 32 ? (1u << rows) - 1 : ~0u;
    for (int64_t word = 0; word < row_words(K); ++word) {
      uint32_t masks[32] = {};
      for (int64_t k = 32 * word; k < K && k < 32 * word + 32; ++k) {
        const Int* column = at + k * column_stride;
        Int tail[32] = {};
        if (rows < 32) {
          memcpy(tail, column, static_cast<size_t>(rows) * sizeof(Int));
          column = tail;
        }
        masks[k % 32] = test(column) & keep;
      }
      if (32 * word < K) transpose_bits(masks);
      for (int64_t r = 0; r < rows; ++r) bits[r * pitch + word] = masks[r];
    }
  });
}

// Bits of the square wave for 32 elements.
//
// One addition of 192 to p / pi leaves a sum in [128, 256), a fixed-point number in units of 2^-16:
// bit 16 is the parity of the half turns, the bits below their fraction. For |p / pi| < 64 it is
// less than one unit off, so the parity is right wherever the fraction is not 0. The rest goes by
// the definition.
uint32_t wave32(const float* x, float omega) {
  constexpr float inverse_pi = 0.318309886f;
  const Test<int32_t> odd = {-1, INT32_MIN, -1};
  float p[32];
  uint32_t phase[32];
  for (int i = 0; i < 32; ++i) p[i] = omega * x[i];
  for (int i = 0; i < 32; ++i) phase[i] = word_of(p[i] * inverse_pi + 192.0f);
  uint32_t unsure = 0;
  for (int i = 0; i < 32; ++i) {
    unsure |= ((phase[i] >> 23) ^ 0x86u) | static_cast<uint32_t>((phase[i] & 0xFFFFu) == 0);
  }
  if (unsure == 0) {
    for (int i = 0; i < 32; ++i) phase[i] = phase[i] << 15 | 1;
  } else {
    for (int i = 0; i < 32; ++i) phase[i] = 0u - wave_bit(p[i]);
  }
  return odd(phase);
}

void pack_wave(const float* x, int64_t K, float omega, uint32_t* bits) {
  pack_words(x, K, bits, [omega](const float* at) { return wave32(at, omega); });
}

}  // namespace
}  // namespace nnkernels::binary
