// The elementwise product of L-Mul and the gradients of both products against plain loops over
// lmul_math.h: bit for bit, on every instruction set of this machine.
#include "testing/lmul_random.h"

namespace nnkernels::lmul {
namespace {

float plain_grad_term(Grad grad, uint32_t g, uint32_t x, uint32_t y, const Options& o) {
  const uint32_t reduced = reduce(y, o.mantissa_bits, o.round);
  if (grad == Grad::ste) return float_of(g) * float_of(reduced);
  if (grad == Grad::lmul) {
    return float_of(mul(o.mode, reduce(g, o.mantissa_bits, o.round), reduced, o.offset));
  }
  const uint32_t steepness = slope(o.mode, reduce(x, o.mantissa_bits, o.round), reduced, o.offset);
  return float_of(g) * slope_factor(o.mode, reduced) * float_of(steepness);
}

float add_grad_term(float sum, Grad grad, uint32_t g, uint32_t x, uint32_t y, const Options& o) {
  const uint32_t reduced = reduce(y, o.mantissa_bits, o.round);
  if (grad == Grad::lmul) return add_product(sum, reduce(g, o.mantissa_bits, o.round), reduced, o);
  if (grad == Grad::ste) return std::fma(float_of(g), float_of(reduced), sum);
  const uint32_t steepness = slope(o.mode, reduce(x, o.mantissa_bits, o.round), reduced, o.offset);
  return std::fma(float_of(g) * slope_factor(o.mode, reduced), float_of(steepness), sum);
}

TEST(matmul_gradients) {
  const Values ordinary, zeros{-4, 3, 0.2, 0.0}, any{-126, 127, 0.1, 0.01};
  unsigned seed = 50;
  for (const Values& values : {ordinary, zeros, any}) {
    for (Grad grad : {Grad::ste, Grad::lmul, Grad::exact}) {
      for (Mode mode : {Mode::bits, Mode::formula}) {
        const int64_t batch = 2, M = 41, N = 70, K = 35;
        const Operand g = random_operand(batch, M, N, DType::float32, Layout::rows, values, ++seed);
        const Operand a =
            random_operand(batch, M, K, DType::bfloat16, Layout::rows, values, ++seed);
        const Operand b =
            random_operand(batch, K, N, DType::float32, Layout::columns, values, ++seed);
        MatmulGradArgs args{batch, M, N, K, g.matrix, a.matrix, b.matrix, {}, {}, {}, grad};
        args.options = options_for(7, mode);
        std::vector<uint32_t> grad_a, grad_b;
        for (int64_t i = 0; i < batch; ++i) {
          for (int64_t m = 0; m < M; ++m) {
            for (int64_t k = 0; k < K; ++k) {
              grad_a.push_back(word_of(sum_in_blocks(N, [&](float sum, int64_t n) {
                return add_grad_term(sum, grad, g.word(i, m, n), a.word(i, m, k), b.word(i, k, n),
                                     args.options);
              })));
            }
          }
          for (int64_t k = 0; k < K; ++k) {
            for (int64_t n = 0; n < N; ++n) {
              grad_b.push_back(word_of(sum_in_blocks(M, [&](float sum, int64_t m) {
                // The two parts of a formula product are rounded in the order L(a, g).
                uint32_t upstream = g.word(i, m, n), other = a.word(i, m, k);
                if (grad == Grad::lmul) std::swap(upstream, other);
                return add_grad_term(sum, grad, upstream, b.word(i, k, n), other, args.options);
              })));
            }
          }
        }
        each_isa([&](const std::string& isa) {
          std::vector<uint32_t> got_a(grad_a.size()), got_b(grad_b.size());
          args.grad_a = {got_a.data(), DType::float32};
          args.grad_b = {got_b.data(), DType::float32};
          matmul_grad(args, threads(2));
          const std::string what = "grad " + std::to_string(static_cast<int>(grad)) + " mode " +
                                   std::to_string(static_cast<int>(mode)) + " " + isa;
          check_same(got_a, grad_a, DType::float32, what + " a");
          check_same(got_b, grad_b, DType::float32, what + " b");
        });
      }
    }
  }
}

// An elementwise operand and the strides of its broadcast to sizes {rows, columns}.
MulArgs mul_args(const Operand& x, const Operand& y, int64_t rows, int64_t columns,
                 const Options& options) {
  MulArgs args;
  args.ndim = 3;
  args.sizes[0] = 1;
  args.sizes[1] = rows;
  args.sizes[2] = columns;
  const auto set = [](const Operand& operand, const void*& data, DType& dtype, int64_t* strides) {
    data = operand.bytes.data();
    dtype = operand.matrix.dtype;
    strides[1] = operand.matrix.row_stride;
    strides[2] = operand.matrix.column_stride;
  };
  set(x, args.x, args.x_dtype, args.x_strides);
  set(y, args.y, args.y_dtype, args.y_strides);
  args.options = options;
  return args;
}

std::vector<uint32_t> run_mul(MulArgs args, DType out, int64_t count) {
  std::vector<uint8_t> bytes(static_cast<size_t>(count * element_size(out)));
  args.out = {bytes.data(), out};
  mul(args, threads(3));
  std::vector<uint32_t> words;
  for (int64_t i = 0; i < count; ++i) words.push_back(load_word(out, bytes.data(), i));
  return words;
}

TEST(mul_every_bfloat16) {
  std::vector<uint32_t> others = {0u,          0x80000000u, 0x00010000u, 0x00800000u, 0x3F800000u,
                                  0xBFC00000u, 0x7F7F0000u, 0x7F800000u, 0xFF800000u, 0x7FC00000u,
                                  0x007F0000u, 0x20120000u, 0x5F7F0000u};
  Operand x = random_operand(1, 1, 1 << 16, DType::bfloat16, Layout::rows, {}, 1);
  for (int i = 0; i < 1 << 16; ++i) store_word(DType::bfloat16, x.bytes.data(), i, i << 16);
  Operand y = x;
  y.matrix.data = y.bytes.data();
  for (uint32_t other : others) {
    for (int i = 0; i < 1 << 16; ++i) store_word(DType::bfloat16, y.bytes.data(), i, other);
    for (Mode mode : {Mode::bits, Mode::formula}) {
      for (int bits : {3, 7}) {
        Options options;
        options.mantissa_bits = bits;
        options.mode = mode;
        std::vector<uint32_t> expected;
        for (uint32_t i = 0; i < 1u << 16; ++i) {
          expected.push_back(mul(mode, reduce(i << 16, bits, Round::trunc),
                                 reduce(other, bits, Round::trunc), options.offset));
        }
        each_isa([&](const std::string& isa) {
          for (DType out : {DType::float32, DType::bfloat16}) {
            const auto got = run_mul(mul_args(x, y, 1, 1 << 16, options), out, 1 << 16);
            check_same(got, expected, out, "mul " + isa);
          }
        });
      }
    }
  }
}

TEST(mul_dtypes_and_layouts) {
  const Values values{-126, 127, 0.1, 0.02};
  unsigned seed = 70;
  const int64_t rows = 23, columns = 41;
  for (DType x_dtype : kDTypes) {
    for (DType y_dtype : kDTypes) {
      for (Layout layout : {Layout::rows, Layout::columns, Layout::strided, Layout::broadcast}) {
        const Operand x = random_operand(1, rows, columns, x_dtype, Layout::rows, values, ++seed);
        const Operand y = random_operand(1, rows, columns, y_dtype, layout, values, ++seed);
        for (Round round : {Round::trunc, Round::rne}) {
          for (Mode mode : {Mode::bits, Mode::formula}) {
            Options options;
            options.mantissa_bits = seed % 2 ? 23 : 5;
            options.mode = mode;
            options.round = round;
            std::vector<uint32_t> expected;
            for (int64_t i = 0; i < rows * columns; ++i) {
              const auto word = [&](const Operand& operand) {
                return reduce(operand.word(0, i / columns, i % columns), options.mantissa_bits,
                              round);
              };
              expected.push_back(mul(mode, word(x), word(y), options.offset));
            }
            each_isa([&](const std::string& isa) {
              for (DType out : {DType::float32, DType::bfloat16, DType::float16}) {
                check_same(run_mul(mul_args(x, y, rows, columns, options), out, rows * columns),
                           expected, out, "mul " + isa);
              }
            });
          }
        }
      }
    }
  }
}

TEST(mul_gradients) {
  const Values values{-126, 127, 0.1, 0.02};
  const int64_t rows = 37, columns = 600;
  unsigned seed = 90;
  for (Grad grad : {Grad::ste, Grad::lmul, Grad::exact}) {
    for (Mode mode : {Mode::bits, Mode::formula}) {
      // y is whole, one row, one column or one number.
      for (int kind = 0; kind < 4; ++kind) {
        const bool sum_rows = kind & 1, sum_columns = kind & 2;
        const Operand g =
            random_operand(1, rows, columns, DType::float32, Layout::columns, {}, ++seed);
        const Operand x =
            random_operand(1, rows, columns, DType::bfloat16, Layout::rows, values, ++seed);
        Operand y = random_operand(1, sum_rows ? 1 : rows, sum_columns ? 1 : columns,
                                   DType::float32, Layout::rows, kind ? Values{} : values, ++seed);
        if (sum_rows) y.matrix.row_stride = 0;
        if (sum_columns) y.matrix.column_stride = 0;
        Options options;
        options.mantissa_bits = 6;
        options.mode = mode;
        MulGradArgs args;
        args.forward = mul_args(x, y, rows, columns, options);
        args.grad = grad;
        args.g = g.bytes.data();
        args.g_strides[1] = g.matrix.row_stride;
        args.g_strides[2] = g.matrix.column_stride;
        args.y_broadcast[1] = sum_rows;
        args.y_broadcast[2] = sum_columns;
        const int64_t y_columns = sum_columns ? 1 : columns;
        std::vector<uint32_t> grad_x;
        // A sum of several starts from +0.
        std::vector<double> sums(static_cast<size_t>((sum_rows ? 1 : rows) * y_columns),
                                 kind ? 0.0 : -0.0);
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t j = 0; j < columns; ++j) {
            const uint32_t gw = g.word(0, i, j), xw = x.word(0, i, j), yw = y.word(0, i, j);
            grad_x.push_back(word_of(plain_grad_term(grad, gw, xw, yw, options)));
            sums[static_cast<size_t>((sum_rows ? 0 : i) * y_columns + (sum_columns ? 0 : j))] +=
                double{plain_grad_term(grad, gw, yw, xw, options)};
          }
        }
        std::vector<uint32_t> grad_y;
        for (double sum : sums) grad_y.push_back(word_of(static_cast<float>(sum)));
        each_isa([&](const std::string& isa) {
          std::vector<uint32_t> got_x(grad_x.size()), got_y(grad_y.size());
          args.grad_x = {got_x.data(), DType::float32};
          args.grad_y = {got_y.data(), DType::float32};
          mul_grad(args, threads(2));
          const std::string what = "grad " + std::to_string(static_cast<int>(grad)) + " kind " +
                                   std::to_string(kind) + " " + isa;
          check_same(got_x, grad_x, DType::float32, what + " x");
          check_same(got_y, grad_y, DType::float32, what + " y");
        });
      }
    }
  }
}

}  // namespace
}  // namespace nnkernels::lmul
