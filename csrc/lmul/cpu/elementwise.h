// The elementwise product and its gradients along lines of elements.
#pragma once

#include "lmul/cpu/pack.h"

namespace nnkernels::lmul {
namespace {

// L of reduced words: mul_bits and mul_formula, lane by lane.
struct Product {
  using Int = Vec::Int;
  Int offset, off;
  bool bits;

  NNK_VEC explicit Product(const Plan& plan)
      : offset(Vec::set(plan.offset)),
        off(Vec::set(word_offset(plan.offset))),
        bits(plan.term == Term::bits) {}

  NNK_VEC Int operator()(Int x, Int y) const {
    const Int x_magnitude = Vec::bit_and(x, Vec::set(kMagnitudeMask));
    const Int y_magnitude = Vec::bit_and(y, Vec::set(kMagnitudeMask));
    const Int smaller = Vec::min(x_magnitude, y_magnitude);
    const Int larger = Vec::max(x_magnitude, y_magnitude);
    const Int sign = Vec::bit_and(Vec::bit_xor(x, y), Vec::set(kSignBit));
    Int magnitude = bits ? bits_magnitude(x_magnitude, y_magnitude)
                         : formula_magnitude(x_magnitude, y_magnitude);
    const auto nonzero = Vec::greater(smaller, Vec::set(kSmallest - 1u));
    magnitude = Vec::where(nonzero, magnitude);
    const auto special = Vec::greater(larger, Vec::set(kInfinity - 1u));
    if (!Vec::any(special)) return Vec::bit_or(magnitude, sign);
    const auto number = Vec::mask_and(nonzero, Vec::greater(Vec::set(kInfinity + 1u), larger));
    magnitude = Vec::bit_or(Vec::select(special, Vec::set(kInfinity), magnitude), sign);
    const Int of_special = Vec::select(number, magnitude, Vec::set(kNaN));
    return Vec::select(special, of_special, magnitude);
  }

 private:
  NNK_VEC Int bits_magnitude(Int x, Int y) const {
    // Unsigned: below OFF the difference would wrap; from infinity on it saturates.
    const Int sum = Vec::max(Vec::add(x, y), off);
    const Int word = Vec::min(Vec::sub(sum, off), Vec::set(kInfinity));
    return Vec::where(Vec::greater(word, Vec::set(kSmallest - 1u)), word);
  }

  NNK_VEC Int formula_magnitude(Int x, Int y) const {
    const Int mantissa = Vec::set(kMantissaMask), one = Vec::set(1u);
    const Int fractions = Vec::add(Vec::bit_and(x, mantissa), Vec::bit_and(y, mantissa));
    Int significand = Vec::add(Vec::add(fractions, offset), Vec::set(1u << 23));
    const auto carries = Vec::greater(significand, Vec::set((1u << 24) - 1u));
    // A tie goes to even; rounding up to 2^24 raises the exponent.
    const Int half = Vec::shift_right(significand, 1);
    const Int rounded = Vec::shift_right(Vec::add(significand, Vec::bit_and(half, one)), 1);
    significand = Vec::select(carries, rounded, significand);
    Int exponent = Vec::add(Vec::shift_right(x, 23), Vec::shift_right(y, 23));
    exponent = Vec::sub(Vec::add(exponent, Vec::where(carries, one)), Vec::set(127u));
    const Int scaled = Vec::shift_left(Vec::sub(exponent, one), 23);
    const Int word =
        Vec::where(Vec::greater(exponent, Vec::set(0u)), Vec::add(scaled, significand));
    return Vec::select(Vec::greater(exponent, Vec::set(254u)), Vec::set(kInfinity), word);
  }
};

// g times the derivative of grad="exact", of reduced words: slope_factor() and slope() lane by
// lane.
NNK_VEC Vec::Float times_slope(const Plan& plan, Vec::Float g, Vec::Int x, Vec::Int y) {
  const auto infinity = Vec::set(kInfinity), mantissa = Vec::set(kMantissaMask);
  const auto x_magnitude = Vec::bit_and(x, Vec::set(kMagnitudeMask));
  const auto y_magnitude = Vec::bit_and(y, Vec::set(kMagnitudeMask));
  auto magnitude = Vec::bit_and(y_magnitude, infinity);
  if (plan.term == Term::bits) {
    // Zero and infinite x have no fraction by themselves; of subnormals and NaN it is not taken.
    const auto normal = Vec::mask_and(Vec::greater(x_magnitude, Vec::set(kSmallest - 1u)),
                                      Vec::greater(infinity, x_magnitude));
    const auto fraction = Vec::where(normal, Vec::bit_and(x, mantissa));
    const auto s = Vec::add(Vec::add(fraction, Vec::bit_and(y, mantissa)), Vec::set(plan.offset));
    const auto large = Vec::greater(y_magnitude, Vec::set(kLargeSlope - 1u));
    magnitude = Vec::add(magnitude, Vec::bit_and(s, Vec::set(~kMantissaMask)));
    magnitude = Vec::sub(magnitude, Vec::where(large, Vec::set(2u << 23)));
    const auto four = Vec::as_int(Vec::set(4.0f)), one = Vec::as_int(Vec::set(1.0f));
    g = Vec::mul(g, Vec::as_float(Vec::select(large, four, one)));
  }
  magnitude = Vec::where(Vec::greater(y_magnitude, Vec::set(kSmallest - 1u)), magnitude);
  magnitude = Vec::select(Vec::greater(infinity, y_magnitude), magnitude, infinity);
  auto slope = Vec::bit_or(magnitude, Vec::bit_and(y, Vec::set(kSignBit)));
  slope = Vec::select(Vec::greater(y_magnitude, infinity), Vec::set(kNaN), slope);
  return Vec::mul(g, Vec::as_float(slope));
}

template <DType dtype>
void widen_line_as(const Line& line, int64_t n, uint32_t* words) {
  int64_t i = 0;
  if (line.stride == 0 && n > 0) {
    const auto x = Vec::set(load_word(dtype, line.data, 0));
    for (; i + Vec::lanes <= n; i += Vec::lanes) Vec::store(words + i, x);
  } else if (line.stride == 1) {
    for (; i + Vec::lanes <= n; i += Vec::lanes) {
      Vec::store(words + i, Vec::load_as<dtype>(line.data, i));
    }
  }
  for (; i < n; ++i) words[i] = load_word(dtype, line.data, i * line.stride);
}

void widen_line(const Line& line, int64_t n, uint32_t* words) {
  switch (line.dtype) {
    case DType::float32: return widen_line_as<DType::float32>(line, n, words);
    case DType::bfloat16: return widen_line_as<DType::bfloat16>(line, n, words);
    case DType::float16: return widen_line_as<DType::float16>(line, n, words);
    case DType::float8_e4m3fn: return widen_line_as<DType::float8_e4m3fn>(line, n, words);
    case DType::float8_e5m2: return widen_line_as<DType::float8_e5m2>(line, n, words);
  }
}

// bfloat16 in mode bits, two elements a lane: their products have no more bits than bfloat16.
// Returns how many of the n elements are done; the vectors left have infinities or NaN, or are not
// whole.
NNK_VEC int64_t mul_pairs(const Plan& plan, const void* x, const void* y, int64_t first, int64_t n,
                          void* products) {
  const auto twice = [](uint32_t word) { return Vec::set(word >> 16 | (word & 0xFFFF0000u)); };
  const int kept = plan.a_bits < 7 ? plan.a_bits : 7;
  const auto magnitude_mask = twice(kMagnitudeMask & ~0u << (23 - kept));
  const auto sign_mask = twice(kSignBit), infinity = twice(kInfinity), zeros = twice(0x007F0000u);
  const auto largest = Vec::sub16(infinity, Vec::set(0x00010001u));
  const auto off = twice(word_offset(plan.offset));
  int64_t i = first;
  for (; i + 2 * Vec::lanes <= n; i += 2 * Vec::lanes) {
    const auto a = Vec::load(static_cast<const uint16_t*>(x) + i);
    const auto b = Vec::load(static_cast<const uint16_t*>(y) + i);
    const auto a_magnitude = Vec::bit_and(a, magnitude_mask);
    const auto b_magnitude = Vec::bit_and(b, magnitude_mask);
    const auto larger = Vec::max16(a_magnitude, b_magnitude);
    const auto special = Vec::where_greater16(larger, largest, larger);
    if (Vec::any(Vec::not_equal(special, Vec::set(0u)))) break;
    // Unsigned: below OFF the difference would wrap; from infinity on it saturates.
    const auto sum = Vec::max16(Vec::add16(a_magnitude, b_magnitude), off);
    const auto word = Vec::min16(Vec::sub16(sum, off), infinity);
    const auto smallest = Vec::min16(word, Vec::min16(a_magnitude, b_magnitude));
    const auto sign = Vec::bit_and(Vec::bit_xor(a, b), sign_mask);
    Vec::store(static_cast<uint16_t*>(products) + i,
               Vec::bit_or(Vec::where_greater16(smallest, zeros, word), sign));
  }
  return i;
}

// Both lines contiguous.
template <DType in, DType out>
void mul_contiguous(const Plan& plan, const void* x, const void* y, int64_t n, void* products) {
  const Reduce<in> reduce(plan.a_bits, plan.round, false, false);
  const Product product(plan);
  const bool pairs = in == DType::bfloat16 && out == DType::bfloat16 && plan.term == Term::bits &&
                     (plan.round == Round::trunc || plan.a_bits >= 7) && plan.offset % 65536 == 0;
  int64_t i = 0;
  while (true) {
    if (pairs) i = mul_pairs(plan, x, y, i, n, products);
    if (i + Vec::lanes > n) break;
    const auto word = product(reduce(Vec::load_as<in>(x, i)), reduce(Vec::load_as<in>(y, i)));
    Vec::store_as<out>(products, i, word);
    i += Vec::lanes;
  }
  if (i == n) return;
  uint32_t words[Vec::lanes];
  Vec::store(words, product(reduce(load_line<in>(x, i, 1, n)), reduce(load_line<in>(y, i, 1, n))));
  for (int64_t j = i; j < n; ++j) store_word(out, products, j, words[j - i]);
}

template <DType in>
void mul_contiguous_to(const Plan& plan, const void* x, const void* y, int64_t n,
                       const Output& out) {
  switch (out.dtype) {
    case DType::bfloat16: return mul_contiguous<in, DType::bfloat16>(plan, x, y, n, out.data);
    case DType::float16: return mul_contiguous<in, DType::float16>(plan, x, y, n, out.data);
    default: return mul_contiguous<in, DType::float32>(plan, x, y, n, out.data);
  }
}

// Both lines contiguous and of one dtype in one step; others in pieces, widened first.
void mul_line(const Plan& plan, const Line& x, const Line& y, int64_t n, const Output& out) {
  if (x.stride == 1 && y.stride == 1 && x.dtype == y.dtype) {
    switch (x.dtype) {
      case DType::float32: return mul_contiguous_to<DType::float32>(plan, x.data, y.data, n, out);
      case DType::bfloat16: return mul_contiguous_to<DType::bfloat16>(plan, x.data, y.data, n, out);
      case DType::float16: return mul_contiguous_to<DType::float16>(plan, x.data, y.data, n, out);
      case DType::float8_e4m3fn:
        return mul_contiguous_to<DType::float8_e4m3fn>(plan, x.data, y.data, n, out);
      case DType::float8_e5m2:
        return mul_contiguous_to<DType::float8_e5m2>(plan, x.data, y.data, n, out);
    }
  }
  uint32_t x_words[kPiece], y_words[kPiece];
  for (int64_t i = 0; i < n; i += kPiece) {
    const int64_t count = n - i < kPiece ? n - i : kPiece;
    widen_line(x.at(i), count, x_words);
    widen_line(y.at(i), count, y_words);
    const Output piece{static_cast<char*>(out.data) + i * element_size(out.dtype), out.dtype};
    mul_contiguous_to<DType::float32>(plan, x_words, y_words, count, piece);
  }
}

// out[i] = g[i] times the derivative of L(x[i], y[i]) with respect to x, n <= kPiece.
void mul_grad_line(const Plan& plan, Grad grad, const Line& g, const Line& x, const Line& y,
                   int64_t n, float* out) {
  uint32_t g_words[kPiece], x_words[kPiece], y_words[kPiece];
  widen_line(g, n, g_words);
  widen_line(y, n, y_words);
  const Reduce<DType::float32> reduce(plan.a_bits, plan.round, false, false);
  const Product product(plan);
  if (grad == Grad::exact) widen_line(x, n, x_words);
  // The last vector may reach beyond n, inside the pieces.
  for (int64_t i = n; i % Vec::lanes != 0; ++i) g_words[i] = x_words[i] = y_words[i] = 0;
  for (int64_t i = 0; i < n; i += Vec::lanes) {
    const auto upstream = Vec::load(g_words + i), other = Vec::load(y_words + i);
    Vec::Float gradient;
    if (grad == Grad::lmul) {
      gradient = Vec::as_float(product(reduce(upstream), reduce(other)));
    } else if (grad == Grad::ste) {
      gradient = Vec::mul(Vec::as_float(upstream), Vec::as_float(reduce(other)));
    } else {
      gradient =
          times_slope(plan, Vec::as_float(upstream), reduce(Vec::load(x_words + i)), reduce(other));
    }
    Vec::store(g_words + i, Vec::as_int(gradient));
  }
  for (int64_t i = 0; i < n; ++i) out[i] = float_of(g_words[i]);
}

}  // namespace
}  // namespace nnkernels::lmul
