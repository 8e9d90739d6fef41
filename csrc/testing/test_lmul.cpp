// The CPU kernels of L-Mul against plain loops over lmul_math.h: bit for bit, on every instruction
// set of this machine.
#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <thread>

#include "common/isa.h"
#include "lmul/cpu/engine.h"
#include "lmul/lmul.h"
#include "lmul/lmul_math.h"
#include "testing/check.h"

namespace nnkernels::lmul {
namespace {

constexpr DType kDTypes[] = {DType::float32, DType::bfloat16, DType::float16, DType::float8_e4m3fn,
                             DType::float8_e5m2};

Parallel threads(int count) {
  static int asked;
  asked = count;
  Parallel parallel;
  parallel.threads = count;
  parallel.run = [](int64_t begin, int64_t end, int64_t grain, Parallel::Body body, void* context) {
    const int64_t parts = std::min<int64_t>(asked, (end - begin + grain - 1) / grain);
    const int64_t size = (end - begin + parts - 1) / parts;
    std::vector<std::thread> pool;
    for (int64_t from = begin; from < end; from += size) {
      pool.emplace_back([=] { body(context, from, std::min(from + size, end)); });
    }
    for (std::thread& thread : pool) thread.join();
  };
  return parallel;
}

// Runs `f` on every instruction set that this machine has.
void each_isa(const std::function<void(const std::string&)>& f) {
  const Isa before = active_isa();
  for (const std::string& name : isa_names()) {
    set_isa(name);
    f(name);
  }
  set_isa(isa_name(before));
}

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

Operand random_operand(int64_t batch, int64_t rows, int64_t columns, DType dtype, Layout layout,
                       const Values& values, unsigned seed) {
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

// One product added to a sum, in the kernels' way: formula products in their two exact parts.
float add_product(float sum, uint32_t x, uint32_t y, const Options& options) {
  const uint32_t product = mul(options.mode, x, y, options.offset);
  if (options.mode == Mode::bits || is_zero(product) || !is_finite(product)) {
    return sum + float_of(product);
  }
  sum = std::fma(centred(x, options.offset), float_of(power(y)), sum);
  return std::fma(float_of(power(x)), float_of(y), sum);
}

// The promised order of sums, over any way to add term k to a sum.
float sum_in_blocks(int64_t K, const std::function<float(float, int64_t)>& add) {
  float total = 0.0f;
  for (int64_t block = 0; block < K; block += kSumBlock) {
    float sum = 0.0f;
    for (int64_t k = block; k < std::min(block + kSumBlock, K); ++k) sum = add(sum, k);
    total = block == 0 ? sum : total + sum;
  }
  return total;
}

std::vector<uint32_t> plain_matmul(const MatmulArgs& args, const Operand& a, const Operand& b) {
  const Options& o = args.options;
  std::vector<uint32_t> out;
  for (int64_t batch = 0; batch < args.batch; ++batch) {
    for (int64_t m = 0; m < args.M; ++m) {
      for (int64_t n = 0; n < args.N; ++n) {
        float total = sum_in_blocks(args.K, [&](float sum, int64_t k) {
          return add_product(sum, reduce(a.word(batch, m, k), o.mantissa_bits, o.round),
                             reduce(b.word(batch, k, n), o.mantissa_bits, o.round), o);
        });
        if (args.bias) total += float_of(load_word(args.bias_dtype, args.bias, n));
        out.push_back(word_of(total));
      }
    }
  }
  return out;
}

std::vector<uint32_t> run_matmul(MatmulArgs args, const Parallel& parallel) {
  const int64_t count = args.batch * args.M * args.N;
  std::vector<uint8_t> bytes(static_cast<size_t>(count * element_size(args.out.dtype)), 0xA5);
  args.out.data = bytes.data();
  matmul(args, parallel);
  std::vector<uint32_t> out;
  for (int64_t i = 0; i < count; ++i) out.push_back(load_word(args.out.dtype, bytes.data(), i));
  return out;
}

void check_same(const std::vector<uint32_t>& got, std::vector<uint32_t> expected, DType dtype,
                const std::string& what) {
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

MatmulArgs matmul_args(const Operand& a, const Operand& b, int64_t batch, int64_t M, int64_t N,
                       int64_t K, int mantissa_bits, Mode mode = Mode::bits) {
  MatmulArgs args;
  args.batch = batch;
  args.M = M;
  args.N = N;
  args.K = K;
  args.a = a.matrix;
  args.b = b.matrix;
  args.options.mantissa_bits = mantissa_bits;
  args.options.mode = mode;
  args.options.offset = 1u << (23 - (mantissa_bits <= 3   ? mantissa_bits
                                     : mantissa_bits == 4 ? 3
                                                          : 4));
  return args;
}

// Both operands random, every instruction set, several threads.
void check_matmul(int64_t batch, int64_t M, int64_t N, int64_t K, const Operand& a,
                  const Operand& b, MatmulArgs args, const std::string& what) {
  const std::vector<uint32_t> expected = plain_matmul(args, a, b);
  each_isa([&](const std::string& isa) {
    for (int count : {1, 3}) {
      std::ostringstream name;
      name << what << " " << isa << " " << batch << "x" << M << "x" << N << "x" << K << " threads "
           << count;
      check_same(run_matmul(args, threads(count)), expected, args.out.dtype, name.str());
    }
  });
}

TEST(matmul_shapes) {
  const int64_t sizes[] = {1, 7, 16, 33, 128, 257};
  unsigned seed = 1;
  for (int64_t M : sizes) {
    for (int64_t N : sizes) {
      for (int64_t K : sizes) {
        if (M * N * K > 257 * 128 * 33) continue;
        const Operand a = random_operand(1, M, K, DType::float32, Layout::rows, {}, ++seed);
        const Operand b = random_operand(1, K, N, DType::float32, Layout::rows, {}, ++seed);
        check_matmul(1, M, N, K, a, b, matmul_args(a, b, 1, M, N, K, 7), "bits");
        check_matmul(1, M, N, K, a, b, matmul_args(a, b, 1, M, N, K, 23, Mode::formula), "formula");
      }
    }
  }
}

TEST(matmul_long) {
  const Operand a = random_operand(1, 97, 1030, DType::float32, Layout::rows, {}, 5);
  const Operand b = random_operand(1, 1030, 65, DType::float32, Layout::columns, {}, 6);
  check_matmul(1, 97, 65, 1030, a, b, matmul_args(a, b, 1, 97, 65, 1030, 10), "long");
}

TEST(matmul_values) {
  const Values normal, zeros{-4, 3, 0.3, 0.0}, only_zeros{0, 0, 1.0, 0.0};
  const Values tiny{-100, -20, 0.0, 0.0}, tiny_zeros{-126, -20, 0.2, 0.0};
  const Values huge{40, 100, 0.0, 0.0}, wide{-126, 127, 0.1, 0.0}, special{-4, 3, 0.1, 0.02};
  const std::pair<Values, Values> cases[] = {
      {zeros, normal},
      {normal, zeros},
      {zeros, zeros},
      {only_zeros, normal},
      {normal, only_zeros},
      {only_zeros, zeros},
      {tiny, tiny},
      {tiny_zeros, tiny},
      {tiny, tiny_zeros},
      {huge, huge},
      {wide, wide},
      {special, normal},
      {normal, special},
      {special, special},
      {tiny_zeros, zeros},
      {wide, zeros},
      {zeros, wide},
      {tiny_zeros, huge},
      {{-80, -80, 0.5}, {-40, -3}},
      // Just inside and outside of the exponents that a product can have.
      {{-63, -63}, {-63, -63}},
      {{-63, -63}, {-64, -64}},
      {{62, 62}, {63, 63}},
      {{63, 63}, {63, 63}},
      {{0, 0, 0.3}, {-126, 125, 0.1}},
  };
  unsigned seed = 100;
  int index = 0;
  for (const auto& [va, vb] : cases) {
    for (Mode mode : {Mode::bits, Mode::formula}) {
      for (Round round : {Round::trunc, Round::rne}) {
        const int64_t M = 29, N = 50, K = 300;
        const Operand a = random_operand(1, M, K, DType::float32, Layout::rows, va, ++seed);
        const Operand b = random_operand(1, K, N, DType::float32, Layout::rows, vb, ++seed);
        MatmulArgs args = matmul_args(a, b, 1, M, N, K, round == Round::rne ? 4 : 23, mode);
        args.options.round = round;
        const std::string what = "case " + std::to_string(index);
        check_matmul(1, M, N, K, a, b, args, what);
        args.algo = Algo::guarded;
        check_matmul(1, M, N, K, a, b, args, what + " guarded");
        args.algo = Algo::automatic;
        args.options.offset = 0x7FFFFF;
        check_matmul(1, M, N, K, a, b, args, what + " offset");
      }
    }
    ++index;
  }
}

// The sums that soft zeros could spoil: two products cancel up to a last place or all of it, and
// 254 zeros meet numbers that are 2^spread times as large. Soft zeros must stop at some spread.
TEST(matmul_soft_zeros) {
  const int64_t M = 3, N = 17, K = 256;
  int refused = 0, accepted = 0;
  for (int mantissa_bits : {3, 7, 23}) {
    for (int spread = 0; spread < 90; ++spread) {
      for (const bool zeros_in_a : {true, false}) {
        Operand a = random_operand(1, M, K, DType::float32, Layout::rows, {-40, -40}, 3);
        Operand b = random_operand(1, K, N, DType::float32, Layout::columns, {-20, -20}, 4);
        auto* dense = reinterpret_cast<uint32_t*>((zeros_in_a ? b : a).bytes.data());
        auto* sparse = reinterpret_cast<uint32_t*>((zeros_in_a ? a : b).bytes.data());
        const auto large = static_cast<uint32_t>(spread) << 23;
        for (int64_t line = 0; line < (zeros_in_a ? N : M); ++line, dense += K) {
          dense[1] = dense[0];
          for (int64_t k = 2; k < K; ++k) dense[k] = (dense[k] & kMagnitudeMask) + large;
        }
        for (int64_t line = 0; line < (zeros_in_a ? M : N); ++line, sparse += K) {
          sparse[0] &= kPowerMask;
          sparse[1] = (sparse[0] ^ kSignBit) | (line % 2 ? 1u << (23 - mantissa_bits) : 0u);
          std::fill(sparse + 2, sparse + K, 0u);
        }
        MatmulArgs args = matmul_args(a, b, 1, M, N, K, mantissa_bits);
        check_matmul(1, M, N, K, a, b, args, "soft zeros");
        args.algo = Algo::word;
        try {
          run_matmul(args, threads(1));
          ++accepted;
        } catch (const std::exception&) {
          ++refused;
        }
      }
    }
  }
  CHECK(accepted > 30 && refused > 30);
}

// Soft zeros made for the smallest columns of all must still be numbers beside the largest.
TEST(matmul_columns_far_apart) {
  const int64_t M = 13, N = 64, K = 40;
  const Operand a = random_operand(1, M, K, DType::float32, Layout::rows, {-2, -2, 0.3}, 3);
  Operand b = random_operand(1, K, N, DType::float32, Layout::columns, {127, 127, 0.3}, 4);
  const Operand small = random_operand(1, K, 1, DType::float32, Layout::columns, {-126, -126}, 5);
  std::copy(small.bytes.begin(), small.bytes.end(), b.bytes.end() - 4 * K);
  check_matmul(1, M, N, K, a, b, matmul_args(a, b, 1, M, N, K, 7), "far apart");
}

TEST(matmul_dtypes_and_layouts) {
  unsigned seed = 1000;
  for (DType dtype : kDTypes) {
    for (Layout la : {Layout::rows, Layout::columns, Layout::strided, Layout::broadcast}) {
      for (Layout lb : {Layout::rows, Layout::columns, Layout::strided, Layout::broadcast}) {
        const int64_t batch = 2, M = 19, N = 37, K = 70;
        const Values values = seed % 3 ? Values{-4, 3, 0.1, 0.0} : Values{-126, 127, 0.1, 0.01};
        const Operand a = random_operand(batch, M, K, dtype, la, values, ++seed);
        const Operand b = random_operand(batch, K, N, dtype, lb, values, ++seed);
        for (DType out : {DType::float32, DType::bfloat16, DType::float16}) {
          MatmulArgs args = matmul_args(a, b, batch, M, N, K, out == DType::float32 ? 3 : 7);
          args.out.dtype = out;
          check_matmul(batch, M, N, K, a, b, args, "layout");
        }
      }
    }
  }
}

TEST(matmul_bias_and_empty) {
  const int64_t M = 20, N = 35, K = 300;
  const Operand a = random_operand(1, M, K, DType::bfloat16, Layout::rows, {}, 7);
  const Operand b = random_operand(1, K, N, DType::bfloat16, Layout::columns, {}, 8);
  const Operand bias = random_operand(1, 1, N, DType::bfloat16, Layout::rows, {}, 9);
  for (int64_t k : {K, int64_t{0}}) {
    for (DType out : {DType::float32, DType::bfloat16}) {
      MatmulArgs args = matmul_args(a, b, 1, M, N, k, 7);
      args.bias = bias.bytes.data();
      args.bias_dtype = DType::bfloat16;
      args.out.dtype = out;
      check_matmul(1, M, N, k, a, b, args, "bias");
    }
  }
  for (auto [m, n] : {std::pair<int64_t, int64_t>{0, N}, {M, 0}}) {
    run_matmul(matmul_args(a, b, 1, m, n, K, 7), threads(2));
  }
}

TEST(matmul_packed) {
  const int64_t M = 21, N = 43, K = 300;
  for (const Values& values : {Values{}, Values{-4, 3, 0.2, 0.0}, Values{-126, 0, 0.1, 0.01}}) {
    const Operand a = random_operand(1, M, K, DType::float32, Layout::rows, {}, 17);
    const Operand w = random_operand(1, N, K, DType::bfloat16, Layout::rows, values, 18);
    Operand b = w;
    b.matrix = {b.bytes.data(), DType::bfloat16, 0, 1, K};
    for (Mode mode : {Mode::bits, Mode::formula}) {
      MatmulArgs args = matmul_args(a, b, 1, M, N, K, 5, mode);
      const std::vector<uint32_t> expected = plain_matmul(args, a, b);
      std::vector<uint8_t> first;
      each_isa([&](const std::string& isa) {
        std::vector<uint8_t> packed(static_cast<size_t>(packed_size(N, K)));
        pack(w.matrix, N, K, args.options, packed.data(), threads(2));
        if (first.empty()) first = packed;
        CHECK(packed == first);
        const PackedInfo info = packed_info(packed.data(), packed_size(N, K));
        CHECK(info.valid && info.N == N && info.K == K && info.options.mantissa_bits == 5);
        CHECK(!packed_info(packed.data(), packed_size(N, K) - 1).valid);
        args.b_packed = packed.data();
        check_same(run_matmul(args, threads(2)), expected, DType::float32, "packed " + isa);
      });
    }
  }
}

TEST(matmul_refuses) {
  const int64_t M = 5, N = 6, K = 7;
  const auto operand = [&](const Values& values, unsigned seed) {
    return random_operand(1, M, K, DType::float32, Layout::rows, values, seed);
  };
  const auto run = [&](const Values& va, const Values& vb, Algo algo, Mode mode) {
    const Operand a = operand(va, 1);
    const Operand b = random_operand(1, K, N, DType::float32, Layout::rows, vb, 2);
    MatmulArgs args = matmul_args(a, b, 1, M, N, K, 7, mode);
    args.algo = algo;
    run_matmul(args, threads(1));
  };
  const Values normal, zeros{0, 0, 0.5, 0.0}, small{-90, -80}, large{80, 90}, special{0, 0, 0, 0.5};
  CHECK_THROWS(run(zeros, zeros, Algo::word, Mode::bits), "zeros in both operands");
  CHECK_THROWS(run(small, small, Algo::word, Mode::bits), "underflow");
  CHECK_THROWS(run(large, large, Algo::word, Mode::bits), "overflow");
  CHECK_THROWS(run(special, normal, Algo::word, Mode::bits), "non-finite");
  CHECK_THROWS(run(small, small, Algo::gemm2, Mode::formula), "underflow");
  CHECK_THROWS(run(normal, normal, Algo::gemm2, Mode::bits), "mode='formula' only");
  CHECK_THROWS(run(normal, normal, Algo::word, Mode::formula), "mode='bits' only");
}

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
        args.options = matmul_args(a, b, batch, M, N, K, 7, mode).options;
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
