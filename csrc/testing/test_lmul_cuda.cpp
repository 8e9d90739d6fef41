// The CUDA kernels of lmul, run on the CPU, against the scalar definition in lmul_math.h.
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "lmul/cuda/lmul_mul.cu"
#include "testing/check.h"

namespace nnkernels::lmul {
namespace {

using cuda_on_cpu::DeviceBuffer;
using cuda_on_cpu::Flush;

constexpr DType kDTypes[] = {DType::float32, DType::bfloat16, DType::float16, DType::float8_e4m3fn,
                             DType::float8_e5m2};
constexpr DType kOutDTypes[] = {DType::float32, DType::bfloat16, DType::float16};
constexpr Mode kModes[] = {Mode::bits, Mode::formula};
constexpr Round kRounds[] = {Round::trunc, Round::rne};

// Options from m, the mode and the rounding, with the offset of the paper.
Options options(int m, Mode mode, Round round) {
  return {m, mode, round, 1u << (23 - (m <= 3 ? m : m == 4 ? 3 : 4))};
}

using Bytes = DeviceBuffer<unsigned char>;

void store_code(DType dtype, void* data, int64_t i, uint32_t code) {
  switch (element_size(dtype)) {
    case 1: static_cast<uint8_t*>(data)[i] = static_cast<uint8_t>(code); break;
    case 2: static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>(code); break;
    default: static_cast<uint32_t*>(data)[i] = code;
  }
}

// Runs mul_cuda and compares every element of its contiguous result, bit for bit.
void check_mul(MulArgs args, size_t alignment = 16) {
  int64_t size = 1;
  for (int d = 0; d < args.ndim; ++d) size *= args.sizes[d];
  const DType dtype = args.out.dtype;
  Bytes out("out", size * element_size(dtype), Flush::end, alignment);
  args.out.data = out.data();
  mul_cuda(args, nullptr);
  CHECK(out.intact());
  for (int64_t i = 0; i < size; ++i) {
    int64_t rest = i, x_index = 0, y_index = 0;
    for (int d = args.ndim - 1; d >= 0; --d) {
      x_index += rest % args.sizes[d] * args.x_strides[d];
      y_index += rest % args.sizes[d] * args.y_strides[d];
      rest /= args.sizes[d];
    }
    const auto operand = [&](DType type, const void* data, int64_t index) {
      return reduce(load_word(type, data, index), args.options.mantissa_bits, args.options.round);
    };
    uint32_t expected = 0;
    store_word(dtype, &expected, 0,
               mul(args.options.mode, operand(args.x_dtype, args.x, x_index),
                   operand(args.y_dtype, args.y, y_index), args.options.offset));
    uint32_t actual = 0;
    memcpy(&actual, out.data() + i * element_size(dtype), element_size(dtype));
    CHECK_EQ(actual, expected);
  }
}

// One-dimensional operands that the contiguous kernel takes.
MulArgs contiguous_args(const Bytes& x, const Bytes& y, DType dtype, const Options& options) {
  MulArgs args;
  args.ndim = 1;
  args.sizes[0] = static_cast<int64_t>(x.size()) / element_size(dtype);
  args.x = x.data();
  args.y = y.data();
  args.x_dtype = args.y_dtype = dtype;
  args.x_strides[0] = args.y_strides[0] = 1;
  args.out.dtype = default_output(dtype);
  args.options = options;
  return args;
}

// Operands whose exponents meet: random signs, mantissas and an exponent near the middle, with
// every special value in between.
std::vector<unsigned char> random_codes(DType dtype, int64_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<unsigned char> bytes(size * element_size(dtype));
  const int bits = static_cast<int>(8 * element_size(dtype));
  const uint32_t sign = 1u << (bits - 1);
  const uint32_t exponent_of_one = dtype == DType::float32         ? 0x3F800000u
                                   : dtype == DType::bfloat16      ? 0x3F80u
                                   : dtype == DType::float16       ? 0x3C00u
                                   : dtype == DType::float8_e4m3fn ? 0x38u
                                                                   : 0x3Cu;
  for (int64_t i = 0; i < size; ++i) {
    auto code = static_cast<uint32_t>(random());
    // Half of the elements are within a few powers of two of one, an eighth are zeros.
    if (code % 2) code = exponent_of_one - exponent_of_one / 16 + code % (exponent_of_one / 8);
    if (random() % 8 == 0) code = 0;
    store_code(dtype, bytes.data(), i, code ^ (random() % 2 ? sign : 0));
  }
  return bytes;
}

TEST(contiguous_ragged_sizes) {
  for (DType dtype : kDTypes) {
    for (Mode mode : kModes) {
      for (Round round : kRounds) {
        for (int64_t size : {1, 3, 4, 7, 8, 9, 33, 255, 4096, 4109}) {
          const Bytes x("x", random_codes(dtype, size, 1), Flush::end, 16);
          const Bytes y("y", random_codes(dtype, size, 2), Flush::end, 16);
          for (int m : {1, 2, 4, 7}) {
            const MulArgs args = contiguous_args(x, y, dtype, options(m, mode, round));
            CHECK(is_contiguous(collapsed(args)));
            check_mul(args);
          }
        }
      }
    }
  }
}

TEST(contiguous_every_mantissa_width_and_offset) {
  const Bytes x("x", random_codes(DType::float32, 2000, 3), Flush::end, 16);
  const Bytes y("y", random_codes(DType::float32, 2000, 4), Flush::end, 16);
  for (Mode mode : kModes) {
    for (Round round : kRounds) {
      for (int m = 1; m <= 23; ++m) {
        for (uint32_t offset : {0u, 1u, options(m, mode, round).offset, 0x7FFFFFu}) {
          check_mul(contiguous_args(x, y, DType::float32, {m, mode, round, offset}));
        }
      }
    }
  }
}

// Words around every threshold of the definition, in both signs.
std::vector<uint32_t> special_words() {
  std::vector<uint32_t> words;
  for (uint32_t magnitude :
       {0u,          1u,          0x7FFFFFu,   0x800000u,   0x800001u,   0x1000000u,
        0x1FFFFFFFu, 0x20000000u, 0x20400000u, 0x3F780000u, 0x3F800000u, 0x3F800001u,
        0x3FFFFFFFu, 0x40000000u, 0x5F000000u, 0x5FFFFFFFu, 0x7F000000u, 0x7F7FFFFFu,
        0x7F7F0000u, 0x7F800000u, 0x7F800001u, 0x7FC00000u, 0x7FFFFFFFu}) {
    words.push_back(magnitude);
    words.push_back(magnitude | kSignBit);
  }
  return words;
}

TEST(contiguous_special_fp32_pairs) {
  const std::vector<uint32_t> words = special_words();
  const auto count = static_cast<int64_t>(words.size());
  Bytes x("x", count * count * 4, Flush::end, 16), y("y", count * count * 4, Flush::end, 16);
  for (int64_t i = 0; i < count * count; ++i) {
    store_code(DType::float32, x.data(), i, words[i / count]);
    store_code(DType::float32, y.data(), i, words[i % count]);
  }
  for (Mode mode : kModes) {
    for (Round round : kRounds) {
      for (int m : {1, 7, 23}) {
        check_mul(contiguous_args(x, y, DType::float32, options(m, mode, round)));
      }
    }
  }
}

TEST(contiguous_every_bfloat16_with_special_ones) {
  // One special value apiece, so that finite vectors lie beside special ones.
  Bytes x("x", 2 * 65536, Flush::end, 16), y("y", 2 * 65536, Flush::end, 16);
  for (int i = 0; i < 65536; ++i) store_code(DType::bfloat16, x.data(), i, i);
  for (uint32_t code : {0x0000u, 0x8001u, 0x0080u, 0xBF80u, 0x3FC1u, 0x7F7Fu, 0xFF80u, 0x7FC1u}) {
    for (int i = 0; i < 65536; ++i) store_code(DType::bfloat16, y.data(), i, code);
    for (Mode mode : kModes) {
      for (Round round : kRounds) {
        check_mul(contiguous_args(x, y, DType::bfloat16, options(4, mode, round)));
      }
    }
  }
}

TEST(contiguous_every_pair_of_float8) {
  for (DType dtype : {DType::float8_e4m3fn, DType::float8_e5m2}) {
    Bytes x("x", 65536, Flush::end, 16), y("y", 65536, Flush::end, 16);
    for (int i = 0; i < 65536; ++i) {
      store_code(dtype, x.data(), i, i / 256);
      store_code(dtype, y.data(), i, i % 256);
    }
    for (Mode mode : kModes) {
      for (Round round : kRounds) {
        check_mul(contiguous_args(x, y, dtype, options(2, mode, round)));
      }
    }
  }
}

struct Strided {
  std::vector<int64_t> sizes, x_strides, y_strides;
};

TEST(strided_broadcasts_and_views) {
  const Strided cases[] = {
      {{}, {}, {}},                        // 0-dimensional
      {{0}, {1}, {1}},                     // empty
      {{5, 0, 3}, {0, 3, 1}, {3, 3, 1}},   // empty
      {{257}, {1}, {0}},                   // y is a scalar
      {{33, 17}, {17, 1}, {0, 1}},         // y is a row
      {{33, 17}, {1, 33}, {1, 0}},         // x transposed, y a column
      {{7, 1, 9}, {9, 9, 1}, {0, 1, 0}},   // middle dimension of size 1
      {{4, 5, 6}, {30, 6, 1}, {0, 1, 5}},  // mixed
      {{3, 40}, {100, 2}, {40, 1}},        // every second column
      {{2, 1, 2, 3, 2, 2, 2, 2}, {96, 0, 48, 16, 8, 4, 2, 1}, {0, 7, 1, 2, 6, 0, 12, 24}},
  };
  for (const Strided& shape : cases) {
    MulArgs args;
    args.ndim = static_cast<int>(shape.sizes.size());
    int64_t x_size = 1, y_size = 1;
    for (int d = 0; d < args.ndim; ++d) {
      args.sizes[d] = shape.sizes[d];
      args.x_strides[d] = shape.x_strides[d];
      args.y_strides[d] = shape.y_strides[d];
      x_size += (shape.sizes[d] - 1) * shape.x_strides[d];
      y_size += (shape.sizes[d] - 1) * shape.y_strides[d];
    }
    // An operand of exactly the elements that the strides reach.
    x_size = std::max<int64_t>(x_size, 0);
    y_size = std::max<int64_t>(y_size, 0);
    for (DType x_dtype : kDTypes) {
      for (DType y_dtype : kDTypes) {
        const Bytes x("x", random_codes(x_dtype, x_size, 5), Flush::end, 1);
        const Bytes y("y", random_codes(y_dtype, y_size, 6), Flush::end, 1);
        args.x = x.data();
        args.y = y.data();
        args.x_dtype = x_dtype;
        args.y_dtype = y_dtype;
        for (DType out_dtype : kOutDTypes) {
          args.out.dtype = out_dtype;
          args.options = options(3, Mode::bits, Round::rne);
          check_mul(args, 1);
        }
      }
    }
  }
}

TEST(misaligned_operands_take_the_strided_kernel) {
  for (DType dtype : kDTypes) {
    const Bytes x("x", random_codes(dtype, 100, 7), Flush::end, 16);
    const Bytes y("y", random_codes(dtype, 100, 8), Flush::end, 16);
    MulArgs args = contiguous_args(x, y, dtype, options(7, Mode::bits, Round::trunc));
    args.x = x.data() + element_size(dtype);
    args.sizes[0] = 99;
    CHECK(!is_contiguous(args));
    check_mul(args);
  }
}

TEST(wide_indices) {
  const Bytes x("x", random_codes(DType::bfloat16, 1200, 9), Flush::end, 2);
  const Bytes y("y", random_codes(DType::bfloat16, 1200, 10), Flush::end, 2);
  MulArgs args = contiguous_args(x, y, DType::bfloat16, options(7, Mode::bits, Round::trunc));
  Bytes narrow("narrow", 2400), wide("wide", 2400);
  args.out.data = narrow.data();
  NNK_LAUNCH(mul_strided_kernel<uint32_t>, 5, kThreads, 0, nullptr, args, int64_t{1200});
  args.out.data = wide.data();
  NNK_LAUNCH(mul_strided_kernel<int64_t>, 5, kThreads, 0, nullptr, args, int64_t{1200});
  CHECK(narrow.values() == wide.values());
}

TEST(one_times_one_is_one_plus_the_offset) {
  for (int m = 1; m <= 23; ++m) {
    DeviceBuffer<float> one("one", std::vector<float>{1.0f}), out("out", 1);
    MulArgs args;
    args.x = args.y = one.data();
    args.out.data = out.data();
    args.options = options(m, Mode::bits, Round::trunc);
    mul_cuda(args, nullptr);
    CHECK_EQ(out[0], 1.0f + 1.0f / static_cast<float>(m <= 3 ? 1 << m : m == 4 ? 8 : 16));
  }
}

}  // namespace
}  // namespace nnkernels::lmul
