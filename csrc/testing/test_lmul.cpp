// The CPU matmul of L-Mul against plain loops over lmul_math.h: bit for bit, on every instruction
// set of this machine.
#include "testing/lmul_random.h"

namespace nnkernels::lmul {
namespace {

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

MatmulArgs matmul_args(const Operand& a, const Operand& b, int64_t batch, int64_t M, int64_t N,
                       int64_t K, int mantissa_bits, Mode mode = Mode::bits) {
  MatmulArgs args;
  args.batch = batch;
  args.M = M;
  args.N = N;
  args.K = K;
  args.a = a.matrix;
  args.b = b.matrix;
  args.options = options_for(mantissa_bits, mode);
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
// 254 zeros meet numbers that are 2^spread times as large, or zeros. Soft zeros must stop at some
// spread.
TEST(matmul_soft_zeros) {
  const int64_t M = 3, N = 17, K = 256;
  enum Zeros { in_a, in_b, in_both };
  for (int mantissa_bits : {3, 7, 23}) {
    for (const Zeros zeros : {in_a, in_b, in_both}) {
      int refused = 0, accepted = 0;
      for (int spread = 0; spread < 90; ++spread) {
        const int a_exponent = zeros == in_both ? 2 : -40, b_exponent = zeros == in_both ? 3 : -20;
        const Values a_values{a_exponent, a_exponent}, b_values{b_exponent, b_exponent};
        Operand a = random_operand(1, M, K, DType::float32, Layout::rows, a_values, 3);
        Operand b = random_operand(1, K, N, DType::float32, Layout::columns, b_values, 4);
        auto* dense = reinterpret_cast<uint32_t*>((zeros == in_b ? a : b).bytes.data());
        auto* sparse = reinterpret_cast<uint32_t*>((zeros == in_b ? b : a).bytes.data());
        const auto large = static_cast<uint32_t>(spread) << 23;
        for (int64_t line = 0; line < (zeros == in_b ? M : N); ++line, dense += K) {
          dense[1] = dense[0];
          for (int64_t k = 2; k < K; ++k) dense[k] = (dense[k] & kMagnitudeMask) + large;
          if (zeros == in_both) std::fill(dense + 64, dense + K, 0u);
        }
        for (int64_t line = 0; line < (zeros == in_b ? N : M); ++line, sparse += K) {
          sparse[0] &= kPowerMask;
          sparse[1] = (sparse[0] ^ kSignBit) | (line % 2 ? 1u << (23 - mantissa_bits) : 0u);
          std::fill(sparse + 2, sparse + 128, 0u);
          if (zeros != in_both) std::fill(sparse + 128, sparse + K, 0u);
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
      CHECK(accepted > 0 || (zeros == in_both && mantissa_bits == 23));
      CHECK(refused > 0);
    }
  }
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
  const Values normal, zeros{-20, 3, 0.5, 0.0}, small{-90, -80}, large{80, 90},
      special{0, 0, 0, 0.5};
  CHECK_THROWS(run(zeros, zeros, Algo::word, Mode::bits), "zeros in both operands");
  CHECK_THROWS(run(small, small, Algo::word, Mode::bits), "underflow");
  CHECK_THROWS(run(large, large, Algo::word, Mode::bits), "overflow");
  CHECK_THROWS(run(special, normal, Algo::word, Mode::bits), "non-finite");
  CHECK_THROWS(run(small, small, Algo::gemm2, Mode::formula), "underflow");
  CHECK_THROWS(run(normal, normal, Algo::gemm2, Mode::bits), "mode='formula' only");
  CHECK_THROWS(run(normal, normal, Algo::word, Mode::formula), "mode='bits' only");
}

}  // namespace
}  // namespace nnkernels::lmul
