// Packing: 32 elements at a time to a word of bits. Included by one file per instruction set.
#pragma once

#include <limits>
#include <type_traits>

#include "binary/cpu/engine.h"

namespace nnkernels::binary {
namespace {

// A test on the bit pattern of an element: (code & clear) + offset > limit, wrapping, or its
// opposite. Integers rather than numbers, so that subnormals keep their sign whatever the mode of
// the FPU.
template <class Int>
struct Test {
  Int clear, offset, limit;
  bool opposite = false;

  uint32_t operator()(const Int* p) const {
    const uint32_t mask = Vec::mask32(p, clear, offset, limit);
    return opposite ? ~mask : mask;
  }
};

// lowest < (code & clear) <= last: the offset moves that interval to the top of the integers.
template <class Int>
Test<Int> interval(Int clear, Int lowest, Int last, bool opposite = false) {
  constexpr Int top = std::numeric_limits<Int>::max();
  using Unsigned = std::make_unsigned_t<Int>;
  const Int offset = Int(Unsigned(top) - Unsigned(last));
  return {clear, offset, Int(Unsigned(lowest) + Unsigned(offset)), opposite};
}

template <class Int>
Test<Int> float_test(Plane plane, Int infinity, Int one) {
  constexpr Int lowest = std::numeric_limits<Int>::min(), top = std::numeric_limits<Int>::max();
  switch (plane) {
    // Negative numbers are the codes from min + 1 to min + infinity: -0 lies below, NaN above.
    case Plane::negative: return interval<Int>(-1, lowest, Int(lowest + infinity));
    case Plane::inside: return interval<Int>(top, -1, one);
    default: return interval<Int>(top, 0, top);
  }
}

inline Test<int8_t> int8_test(Plane plane) {
  switch (plane) {
    case Plane::negative: return interval<int8_t>(-1, -1, 127, true);
    case Plane::inside: return interval<int8_t>(-1, -2, 1);
    default: return interval<int8_t>(-1, -1, 0, true);
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

// The bits of up to 32 rows at one column.
template <class Int>
uint32_t column_mask(const Test<Int>& test, const Int* column, int64_t rows) {
  if (rows >= 32) return test(column);
  Int tail[32] = {};
  memcpy(tail, column, static_cast<size_t>(rows) * sizeof(Int));
  return test(tail) & ((1u << rows) - 1);
}

// Asks for 32 elements that are soon wanted: planes lie too far apart for the processor to foresee.
template <class Int>
void prefetch(const Int* p) {
  for (size_t i = 0; i < 32; i += 64 / sizeof(Int)) __builtin_prefetch(p + i);
}

void pack_columns(Type type, Plane plane, const void* x, int64_t column_stride, int64_t rows,
                  int64_t K, uint32_t* bits, int64_t pitch) {
  constexpr int64_t ahead = 8;  // columns
  with_test(type, plane, [&]<class Int>(const Test<Int>& test) {
    const auto* at = static_cast<const Int*>(x);
    for (int64_t word = 0; word < row_words(K); ++word) {
      uint32_t masks[kColumnRows / 32][32] = {};
      for (int64_t k = 32 * word; k < K && k < 32 * word + 32; ++k) {
        for (int64_t r = 0; r < rows; r += 32) {
          prefetch(at + (k + ahead) * column_stride + r);
          masks[r / 32][k % 32] = column_mask(test, at + k * column_stride + r, rows - r);
        }
      }
      for (int64_t r = 0; r < rows; ++r) {
        uint32_t (&block)[32] = masks[r / 32];
        if (r % 32 == 0 && 32 * word < K) Vec::transpose_bits(block);
        bits[r * pitch + word] = block[r % 32];
      }
    }
  });
}

// Bits of the square wave for 32 elements.
//
// One addition of 192 to p / pi leaves a sum in [128, 256), a fixed-point number in units of 2^-16:
// bit 16 is the parity of the half turns, the bits below their fraction. For |p / pi| < 64 it is
// less than one unit off, so the parity is right wherever the fraction is not 0. Vec::wave32 tells
// whether that holds for all 32; if not, they go by the definition.
inline uint32_t wave32(const float* x, float omega) {
  uint32_t mask;
  if (Vec::wave32(x, omega, 0.318309886f, 192.0f, mask)) return mask;
  mask = 0;
  for (int i = 0; i < 32; ++i) mask |= wave_bit(omega * x[i]) << i;
  return mask;
}

void pack_wave(const float* x, int64_t K, float omega, uint32_t* bits) {
  pack_words(x, K, bits, [omega](const float* at) { return wave32(at, omega); });
}

}  // namespace
}  // namespace nnkernels::binary
