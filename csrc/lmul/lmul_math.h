// The arithmetic of L-Mul on fp32 words, shared by the CPU and CUDA kernels. mul() is the
// definition that every kernel must reproduce bit for bit.
#pragma once

#include <cstdint>

#include "common/convert.h"
#include "common/hd.h"
#include "lmul/lmul.h"

namespace nnkernels::lmul {

constexpr uint32_t kSignBit = 0x80000000u;
constexpr uint32_t kMagnitudeMask = 0x7FFFFFFFu;
constexpr uint32_t kMantissaMask = 0x007FFFFFu;
constexpr uint32_t kOne = 0x3F800000u;
constexpr uint32_t kInfinity = 0x7F800000u;
constexpr uint32_t kNaN = 0x7FC00000u;
// Sign and exponent: of a nonzero finite word, the word of its power of two.
constexpr uint32_t kPowerMask = 0xFF800000u;
// The smallest normal magnitude; operands and products below it count as zero.
constexpr uint32_t kSmallest = 0x00800000u;
// The word of 2^126, from which on two more in the exponent overflow.
constexpr uint32_t kLargeSlope = 253u << 23;

// Every output is summed in blocks of this many k (lmul.h states the order).
constexpr int64_t kSumBlock = 256;

// OFF: what the sum of two magnitude words has too much to be the word of their product.
NNK_HD uint32_t word_offset(uint32_t offset) { return kOne - offset; }

NNK_HD bool is_nan(uint32_t word) { return (word & kMagnitudeMask) > kInfinity; }
NNK_HD bool is_infinite(uint32_t word) { return (word & kMagnitudeMask) == kInfinity; }
NNK_HD bool is_finite(uint32_t word) { return (word & kMagnitudeMask) < kInfinity; }
// Zeros and fp32 subnormals.
NNK_HD bool is_zero(uint32_t word) { return (word & kMagnitudeMask) < kSmallest; }

// Keeps m bits of the mantissa. Under rne a carry may raise the exponent, up to infinity.
NNK_HD uint32_t reduce(uint32_t word, int mantissa_bits, Round round) {
  if (is_nan(word)) return word;
  const int dropped = 23 - mantissa_bits;
  const uint32_t keep = ~((1u << dropped) - 1u);
  // Half a unit less one, plus the lowest kept bit: ties go to even. Zero when nothing is dropped.
  if (round == Round::rne) word += ((1u << dropped) - 1u + ((word >> dropped) & 1u)) >> 1;
  return word & keep;
}

// What mode does not decide: products with a NaN, an infinity or a zero. Returns false for a pair
// of nonzero finite operands.
NNK_HD bool special_product(uint32_t x, uint32_t y, uint32_t* product) {
  const uint32_t sign = (x ^ y) & kSignBit;
  const bool zero = is_zero(x) || is_zero(y);
  if (is_finite(x) && is_finite(y)) {
    *product = sign;
    return zero;
  }
  *product = is_nan(x) || is_nan(y) || zero ? kNaN : sign | kInfinity;
  return true;
}

// 2^(xe+ye+floor(s)) (1 + s - floor(s)): one integer addition, signs aside.
NNK_HD uint32_t mul_bits(uint32_t x, uint32_t y, uint32_t offset) {
  uint32_t product;
  if (special_product(x, y, &product)) return product;
  const uint32_t sign = product;
  // Two magnitudes fit in 32 bits; compared before OFF is taken off, nothing wraps.
  const uint32_t sum = (x & kMagnitudeMask) + (y & kMagnitudeMask);
  const uint32_t off = word_offset(offset);
  if (sum < off + kSmallest) return sign;
  return sign | (sum - off >= kInfinity ? kInfinity : sum - off);
}

// 2^(xe+ye) (1 + s), rounded once to nearest even; the thresholds see the exact value.
NNK_HD uint32_t mul_formula(uint32_t x, uint32_t y, uint32_t offset) {
  uint32_t product;
  if (special_product(x, y, &product)) return product;
  const uint32_t sign = product;
  // 1 + s in units of 2^-23: at least 2^23 and less than 2^25.
  uint32_t significand = (1u << 23) + (x & kMantissaMask) + (y & kMantissaMask) + offset;
  const uint32_t carry = significand >> 24;
  const int exponent = static_cast<int>((x & kMagnitudeMask) >> 23) +
                       static_cast<int>((y & kMagnitudeMask) >> 23) - 127 + static_cast<int>(carry);
  if (exponent < 1) return sign;
  if (exponent > 254) return sign | kInfinity;
  // With a carry the lowest bit goes, a tie to even. Rounding up to 2^24 raises the exponent.
  significand = (significand + (carry & (significand >> 1))) >> carry;
  return sign | ((static_cast<uint32_t>(exponent - 1) << 23) + significand);
}

NNK_HD uint32_t mul(Mode mode, uint32_t x, uint32_t y, uint32_t offset) {
  return mode == Mode::bits ? mul_bits(x, y, offset) : mul_formula(x, y, offset);
}

// P(x): sign and power of two, +0 for zeros. Only for finite words.
NNK_HD uint32_t power(uint32_t x) { return is_zero(x) ? 0u : x & kPowerMask; }

// Xc = X - (1 - c) P(x) = sign 2^xe (xm + c), for finite words. Both operations are exact: either
// result is an integer below 2^24 in units of 2^(xe-23), and that unit is at least 2^-149.
NNK_HD float centred(uint32_t x, uint32_t offset) {
  const float one_minus_c = static_cast<float>((1u << 23) - offset) * (1.0f / 8388608.0f);
  return is_zero(x) ? 0.0f : float_of(x) - one_minus_c * float_of(power(x));
}

// dL/dx for grad="exact" is the slope of the affine piece: P(y), in bits mode times 2^floor(s).
// Here P is inf for inf and NaN for NaN, and xm is 0 for every x that is not a normal number.
//
// P(y) 2^floor(s) may exceed the largest float32 although its product with g does not. So g times
// the derivative is computed as (g slope_factor) slope, of which the first product is exact.
NNK_HD bool has_large_slope(Mode mode, uint32_t y) {
  return mode == Mode::bits && (y & kInfinity) >= kLargeSlope;
}
NNK_HD float slope_factor(Mode mode, uint32_t y) { return has_large_slope(mode, y) ? 4.0f : 1.0f; }
NNK_HD uint32_t slope(Mode mode, uint32_t x, uint32_t y, uint32_t offset) {
  if (is_zero(y) || !is_finite(y)) return is_nan(y) ? kNaN : y & kPowerMask;
  uint32_t magnitude = y & kInfinity;
  if (mode == Mode::bits) {
    const bool normal = is_finite(x) && !is_zero(x);
    const uint32_t s = (normal ? x & kMantissaMask : 0u) + (y & kMantissaMask) + offset;
    magnitude += s & ~kMantissaMask;
    if (has_large_slope(mode, y)) magnitude -= 2u << 23;
  }
  return (y & kSignBit) | magnitude;
}

}  // namespace nnkernels::lmul
