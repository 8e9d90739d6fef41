// What the C++ tests of L-Mul share: random operands, plain sums, comparison by bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>

#include "lmul/lmul.h"
#include "lmul/lmul_math.h"
#include "testing/check.h"
#include "testing/machine.h"

namespace nnkernels::lmul {
namespace {

[[maybe_unused]] constexpr DType kDTypes[] = {DType::float32, DType::bfloat16, DType::float16,
                                              DType::float8_e4m3fn, DType::float8_e5m2};

// What the elements of an operand are.
struct Values {
  int low = -4, high = 3;  // exponents
  double zeros = 0.0;      // share of zeros (both signs) and subnormals
  double special = 0.0;    // share of infinities and NaN
};

// A matrix in exactly as much heap memory as it needs, so that a sanitizer sees reads beyond it.
struct Operand {
  std::vector<uint8_t> bytes;
  Matrix matrix;

  uint32_t word(int64_t batch, int64_t row, int64_t column) const {
    return load_word(
        matrix.dtype, matrix.data,
        batch * matrix.batch_stride + row * matrix.row_stride + column * matrix.column_stride);
  }
};

uint32_t random_word(std::mt19937& random, const Values& values) {
  const double kind = std::uniform_real_distribution<>(0, 1)(random);
  const uint32_t sign = (random() & 1) << 31;
  if (kind < values.zeros) return sign | (random() % 4 == 0 ? random() & kMantissaMask : 0u);
  if (kind < values.zeros + values.special) return random() & 1 ? sign | kInfinity : kNaN;
  const int exponent = std::uniform_int_distribution<>(values.low, values.high)(random);
  return sign | static_cast<uint32_t>(exponent + 127) << 23 | (random() & kMantissaMask);
}

void put(DType dtype, void* data, int64_t index, uint32_t word, std::mt19937& random) {
  if (dtype != DType::float8_e4m3fn && dtype != DType::float8_e5m2) {
    return store_word(dtype, data, index, word);
  }
  // Any code but NaN and infinities; zeros only where asked for.
  const uint8_t magnitude = dtype == DType::float8_e4m3fn ? 0x7E : 0x7B;
  uint8_t code = is_zero(word) ? 0 : 1 + random() % magnitude;
  if (!is_finite(word)) code = 0x7F;
  static_cast<uint8_t*>(data)[index] = static_cast<uint8_t>(code | (word >> 24 & 0x80));
}

enum class Layout { rows, columns, strided, broadcast };

[[maybe_unused]] Operand random_operand(int64_t batch, int64_t rows, int64_t columns, DType dtype,
                                        Layout layout, const Values& values, unsigned seed) {
  Operand operand;
  Matrix& m = operand.matrix;
  m.dtype = dtype;
  m.row_stride = layout == Layout::columns ? 1 : columns;
  m.column_stride = layout == Layout::columns ? rows : 1;
  m.batch_stride = rows * columns;
  if (layout == Layout::strided) {
    m.column_stride = 3;
    m.row_stride = 3 * columns + 1;
    m.batch_stride = rows * m.row_stride;
  }
  if (layout == Layout::broadcast) m.batch_stride = m.row_stride = 0;
  const int64_t last =
      (batch - 1) * m.batch_stride + (rows - 1) * m.row_stride + (columns - 1) * m.column_stride;
  const int64_t count = batch * rows * columns == 0 ? 0 : last + 1;
  operand.bytes.resize(static_cast<size_t>(count * element_size(dtype)));
  m.data = operand.bytes.data();
  std::mt19937 random(seed);
  for (int64_t i = 0; i < count; ++i) {
    put(dtype, operand.bytes.data(), i, random_word(random, values), random);
  }
  return operand;
}

uint32_t canonical(uint32_t word) { return is_nan(word) ? kNaN : word; }

// The options of mantissa_bits m with the default c.
[[maybe_unused]] Options options_for(int mantissa_bits, Mode mode = Mode::bits) {
  Options options;
  options.mantissa_bits = mantissa_bits;
  options.mode = mode;
  const int offset_bits = mantissa_bits <= 3 ? mantissa_bits : mantissa_bits == 4 ? 3 : 4;
  options.offset = 1u << (23 - offset_bits);
  return options;
}

// One product added to a sum, in the kernels' way: formula products in their two exact parts.
[[maybe_unused]] float add_product(float sum, uint32_t x, uint32_t y, const Options& options) {
  const uint32_t product = mul(options.mode, x, y, options.offset);
  if (options.mode == Mode::bits || is_zero(product) || !is_finite(product)) {
    return sum + float_of(product);
  }
  sum = std::fma(centred(x, options.offset), float_of(power(y)), sum);
  return std::fma(float_of(power(x)), float_of(y), sum);
}

// The promised order of sums, over any way to add term k to a sum.
[[maybe_unused]] float sum_in_blocks(int64_t K, const std::function<float(float, int64_t)>& add) {
  float total = 0.0f;
  for (int64_t block = 0; block < K; block += kSumBlock) {
    float sum = 0.0f;
    for (int64_t k = block; k < std::min(block + kSumBlock, K); ++k) sum = add(sum, k);
    total = block == 0 ? sum : total + sum;
  }
  return total;
}

[[maybe_unused]] void check_same(const std::vector<uint32_t>& got, std::vector<uint32_t> expected,
                                 DType dtype, const std::string& what) {
  int64_t wrong = 0, first = -1;
  for (size_t i = 0; i < expected.size(); ++i) {
    uint32_t rounded[1];
    store_word(dtype, rounded, 0, expected[i]);
    expected[i] = load_word(dtype, rounded, 0);
    if (canonical(got[i]) != canonical(expected[i]) && ++wrong == 1)
      first = static_cast<int64_t>(i);
  }
  if (wrong == 0) return;
  std::ostringstream text;
  const auto i = static_cast<size_t>(first);
  text << what << ": " << wrong << " of " << expected.size() << " differ, first at " << first
       << ": " << float_of(got[i]) << " != " << float_of(expected[i]);
  testing::report_failure(__FILE__, __LINE__, text.str());
}

}  // namespace
}  // namespace nnkernels::lmul
