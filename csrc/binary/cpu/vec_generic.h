// Plain C++: what every instruction set must provide to the shared kernels, one item at a time.
#pragma once

#include <type_traits>

#include "binary/cpu/engine.h"

namespace nnkernels::binary {
namespace {

struct Vec {
  // Bit i of the result: (p[i] & clear) + offset > limit, for 32 integers; the sum wraps.
  template <class Int>
  static uint32_t mask32(const Int* p, Int clear, Int offset, Int limit) {
    using Unsigned = std::make_unsigned_t<Int>;
    uint32_t mask = 0;
    for (int i = 0; i < 32; ++i) {
      const Int code = Int(Unsigned(p[i] & clear) + Unsigned(offset));
      mask |= static_cast<uint32_t>(code > limit) << i;
    }
    return mask;
  }

  // Exchanges rows and columns of a 32 x 32 matrix of bits.
  static void transpose_bits(uint32_t (&x)[32]) {
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

  // Bit i of mask: bit 16 of the fixed-point number omega * x[i] * factor + shift. False if one of
  // the sums is outside [128, 256) or has no fraction.
  static bool wave32(const float* x, float omega, float factor, float shift, uint32_t& mask) {
    mask = 0;
    bool sure = true;
    for (int i = 0; i < 32; ++i) {
      const uint32_t phase = word_of(omega * x[i] * factor + shift);
      sure &= phase >> 23 == 0x86 && (phase & 0xFFFF) != 0;
      mask |= (phase >> 16 & 1) << i;
    }
    return sure;
  }

  // Vectors of 32-bit words, and the exchange of rows and columns of a square of them.
  static constexpr int word_lanes = 4;
  template <class Words>
  static void turn(Words (&x)[word_lanes]) {
    for (int i = 0; i < word_lanes; ++i) {
      for (int j = 0; j < i; ++j) {
        const auto other = x[i][j];
        x[i][j] = x[j][i];
        x[j][i] = other;
      }
    }
  }

  // Sums ones of 32-byte blocks.
  struct Counter {
    static constexpr int64_t block = 32, flush_blocks = INT32_MAX;
    int64_t total = 0;
    void add_difference(const uint8_t* a, const uint8_t* b) {
      uint64_t x[4], y[4];
      memcpy(x, a, sizeof x);
      memcpy(y, b, sizeof y);
      for (int i = 0; i < 4; ++i) total += ones(x[i] ^ y[i]);
    }
    void flush() {}
    int64_t count() const { return total; }
  };
  static constexpr int count_rows = 1, count_columns = 1;
  static int64_t ones(uint64_t x) { return count_ones(x); }

  static void finish_streams() {}
  static void stream(const void* from, int64_t bytes, void* to) {
    memcpy(to, from, static_cast<size_t>(bytes));
  }

  // ---- int8: lanes of four products, summed in 16 bits, then in 32
  static constexpr int int8_lanes = 4;
  struct Bytes {
    uint8_t v[16];
  };
  struct Halves {
    int16_t v[8] = {};
  };
  static Bytes load_bytes(const uint8_t* p) {
    Bytes x;
    memcpy(&x, p, 16);
    return x;
  }
  static Bytes broadcast4(const int8_t* p) {
    Bytes x;
    for (int i = 0; i < 16; ++i) x.v[i] = static_cast<uint8_t>(p[i % 4]);
    return x;
  }
  static Halves multiply_add(Halves sum, const Bytes& t, const Bytes& x) {
    for (int i = 0; i < 8; ++i) {
      sum.v[i] = static_cast<int16_t>(sum.v[i] + t.v[2 * i] * static_cast<int8_t>(x.v[2 * i]) +
                                      t.v[2 * i + 1] * static_cast<int8_t>(x.v[2 * i + 1]));
    }
    return sum;
  }
  static void add_pairs(const Halves& sum, int32_t* p) {
    for (int i = 0; i < 4; ++i) p[i] += sum.v[2 * i] + sum.v[2 * i + 1];
  }

  // ---- float
  static constexpr int float_lanes = 1, grad_rows = 4, grad_vectors = 4;
  using Float = float;
  static Float load_float(const float* p) { return *p; }
  static Float broadcast(const float* p) { return *p; }
  static void store_float(float* p, Float x) { *p = x; }
  static Float multiply_add(Float a, Float b, Float c) { return a * b + c; }
  // +1 where the bit is 0, -1 where it is 1; for float_lanes bits from `bit` on.
  static Float signs(const uint8_t* row, int64_t bit) {
    return row[bit / 8] >> (bit % 8) & 1 ? -1.0f : 1.0f;
  }
};

}  // namespace
}  // namespace nnkernels::binary
