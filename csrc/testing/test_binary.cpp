// The binary kernels against plain loops over +-1, for every instruction set and algorithm. Buffers
// have exactly the promised size, so that a sanitizer sees any access outside them.
#include <iterator>

#include "testing/binary_reference.h"
#include "testing/check.h"

namespace nnkernels::binary {
namespace {

// ---- packing
constexpr float kSpecials[] = {0.0f,       -0.0f,       1.0f,     -1.0f,     1e-45f, -1e-45f,
                               6e-8f,      -6e-8f,      INFINITY, -INFINITY, NAN,    -NAN,
                               1.0000001f, -1.0000001f, 3.4e38f,  -3.4e38f,  0.5f,   -3.2f};

// x as a buffer of `type` with these strides, and its elements in order.
struct Elements {
  std::vector<char> data;
  std::vector<double> values;  // [batch, rows, columns]
};

Elements elements(Type type, int64_t batch, int64_t rows, int64_t columns, const Strided& x) {
  Elements result;
  const int64_t size = type_size(type);
  const int64_t last =
      (batch - 1) * x.batch_stride + (rows - 1) * x.row_stride + (columns - 1) * x.column_stride;
  result.data.resize((last + 1) * size);
  std::mt19937 random(7);
  for (int64_t i = 0; i < batch * rows * columns; ++i) {
    const float special = kSpecials[random() % std::size(kSpecials)];
    const float plain = static_cast<float>(static_cast<int32_t>(random())) / 1e9f;
    const uint32_t code = code_of(type, random() % 3 == 0 && type != Type::int8 ? special : plain);
    const int64_t at = i / (rows * columns) * x.batch_stride + i / columns % rows * x.row_stride +
                       i % columns * x.column_stride;
    std::memcpy(result.data.data() + at * size, &code, size);
    result.values.push_back(value_of(type, code));
  }
  return result;
}

TEST(pack) {
  for_each_isa([] {
    for (const Type type : {Type::float32, Type::bfloat16, Type::float16, Type::int8}) {
      for (const int64_t K : {1, 31, 32, 33, 255, 256, 257, 1000}) {
        for (const int64_t rows : {1, 7, 8, 40, 600}) {
          for (const int layout : {0, 1, 2}) {
            const int64_t batch = 2, groups = layout == 2 ? 3 : 1, columns = K * groups;
            Strided x{nullptr, type, rows * columns, columns, 1};
            if (layout == 1) x = {nullptr, type, rows * columns, 1, rows};
            if (layout == 2) x = {nullptr, type, 2 * rows * columns + 5, 2 * columns, 2};
            const Elements e = elements(type, batch, rows, columns, x);
            x.data = e.data.data();
            const int64_t width = row_words(K), count = batch * rows * groups;
            Ints bits(count * width, -1), inside(count * width, -1), ones(count, -1);
            Ints mask(count * width, -1), sign(count * width, -1);
            const PackArgs args{batch, rows, K, groups, x, bits.data(), ones.data(), inside.data()};
            CHECK_EQ(pack(args, false, scattered()), -1);
            pack_ternary(args, mask.data(), sign.data(), scattered());
            bool right = true;
            for (int64_t row = 0; row < count; ++row) {
              int32_t expected = 0;
              for (int64_t k = 0; k < width * 32; ++k) {
                const double value = k < K ? e.values[row * K + k] : 0.0;
                right &= bit_at(bits, row, width, k) == (value < 0);
                right &= bit_at(sign, row, width, k) == (value < 0);
                right &= bit_at(inside, row, width, k) == (k < K && std::fabs(value) <= 1);
                right &= bit_at(mask, row, width, k) == (k < K && value != 0);
                expected += value < 0;
              }
              right &= ones[row] == expected;
            }
            CHECK(right);
            CHECK_EQ(first_bad_padding({bits.data(), 0, width}, 1, count, K), -1);
          }
        }
      }
    }
  });
}

TEST(pack_finds_nan_and_bad_padding) {
  const int64_t K = 40;
  Floats x(3 * K, 1.0f);
  Ints bits(3 * row_words(K));
  PackArgs args;
  args.rows = 3;
  args.K = K;
  args.x = {x.data(), Type::float32, 0, K, 1};
  args.bits = bits.data();
  CHECK_EQ(pack(args, true, {}), -1);
  x[K + 7] = NAN;
  CHECK_EQ(pack(args, true, {}), K + 7);
  CHECK_EQ(pack_biper(args, 20.0f, true, {}), K + 7);
  x[3] = 1e6f;
  CHECK_EQ(pack_biper(args, 20.0f, true, {}), 3);
  CHECK_EQ(first_bad_padding({bits.data(), 0, row_words(K)}, 1, 3, K), -1);
  bits[2 * row_words(K) + 1] = 1 << 8;
  CHECK_EQ(first_bad_padding({bits.data(), 0, row_words(K)}, 1, 3, K), 2);
}

TEST(pack_biper) {
  const double pi = 3.14159265358979323846;
  for_each_isa([&] {
    for (const float omega : {1.0f, 20.0f, 1000.0f}) {
      const int64_t K = 3001;
      Floats w = random_floats(K, 3);
      for (int64_t i = 0; i < 1000; ++i) {
        // Next to the edges of the wave.
        const float edge = static_cast<float>(pi * static_cast<double>(i % 50 - 25) / omega);
        w[2 * i] = i % 3 == 0 ? edge : std::nextafterf(edge, i % 3 == 1 ? 9.0f : -9.0f);
      }
      Ints bits(row_words(K));
      PackArgs args;
      args.rows = 1;
      args.K = K;
      args.x = {w.data(), Type::float32, 0, K, 1};
      args.bits = bits.data();
      CHECK_EQ(pack_biper(args, omega, true, {}), -1);
      bool right = true;
      for (int64_t k = 0; k < K; ++k) {
        const double turns = std::floor(static_cast<double>(omega * w[k]) / pi);
        right &= bit_at(bits, 0, row_words(K), k) == (std::fmod(turns, 2.0) != 0);
      }
      CHECK(right);
    }
  });
}

TEST(unpack) {
  for (const int64_t K : {1, 33, 257}) {
    const Signs signs = random_signs(5, K, 11);
    const Ints bits = bits_of(signs);
    for (const Type type :
         {Type::float32, Type::bfloat16, Type::float16, Type::int8, Type::int16, Type::int32}) {
      std::vector<char> out(5 * K * type_size(type));
      unpack({bits.data(), 0, row_words(K)}, 5, K, out.data(), type, scattered());
      bool right = true;
      for (int64_t i = 0; i < 5 * K; ++i) {
        uint32_t code = 0;
        std::memcpy(&code, out.data() + i * type_size(type), type_size(type));
        double value = value_of(type, code);
        if (type == Type::int16) value = static_cast<int16_t>(code);
        if (type == Type::int32) value = static_cast<int32_t>(code);
        right &= value == signs.values[i];
      }
      CHECK(right);
    }
  }
}

// ---- matmul
MatmulArgs matmul_args(const Signs& a, const Ints& a_bits, const Signs& b, const Ints& b_bits) {
  MatmulArgs args;
  args.M = a.rows;
  args.N = b.rows;
  args.K = a.K;
  args.a = {a_bits.data(), 0, row_words(a.K)};
  args.b = {b_bits.data(), 0, row_words(a.K)};
  return args;
}

TEST(matmul_dots) {
  for (const int64_t K : {1, 31, 32, 33, 255, 256, 257, 1000}) {
    for (const int64_t M : {1, 3, 63, 64, 65}) {
      for (const int64_t N : {1, 3, 63, 64, 65, 130}) {
        const Signs a = random_signs(M, K, 1), b = random_signs(N, K, 2);
        const Ints a_bits = bits_of(a), b_bits = bits_of(b), expected = dots(a, b);
        Ints distances(M * N);
        for (int64_t i = 0; i < M * N; ++i) {
          distances[i] = static_cast<int32_t>(K - expected[i]) / 2;
        }
        for_each_isa([&] {
          std::vector<uint8_t> packed(packed_size(N, K));
          prepack({b_bits.data(), 0, row_words(K)}, N, K, packed.data(), scattered());
          for (const Algo algo : kAlgos) {
            MatmulArgs args = matmul_args(a, a_bits, b, b_bits);
            args.algo = algo;
            Ints out(M * N, 99);
            args.epilogue.out = out.data();
            matmul(args, scattered());
            CHECK(same(out, expected));
            args.b = {};
            args.b_packed = packed.data();
            std::fill(out.begin(), out.end(), 99);
            matmul(args, {});
            CHECK(same(out, expected));
            args.hamming = true;
            matmul(args, scattered());
            CHECK(same(out, distances));
          }
        });
      }
    }
  }
}

TEST(matmul_many_rows_and_long_rows) {
  const struct {
    int64_t M, N, K;
  } shapes[] = {{1500, 70, 300}, {70, 1500, 300}, {2, 3, 140000}, {70, 66, 70000}};
  for (const auto& s : shapes) {
    const Signs a = random_signs(s.M, s.K, 1), b = random_signs(s.N, s.K, 2);
    const Ints a_bits = bits_of(a), b_bits = bits_of(b);
    Ints expected;
    for_each_isa([&] {
      for (const Algo algo : kAlgos) {
        MatmulArgs args = matmul_args(a, a_bits, b, b_bits);
        args.algo = algo;
        Ints out(s.M * s.N);
        args.epilogue.out = out.data();
        matmul(args, scattered());
        if (expected.empty()) expected = dots(a, b);
        CHECK(same(out, expected));
      }
    });
  }
}

const Type kOutTypes[] = {Type::int32, Type::int16, Type::float32, Type::float16, Type::bfloat16};

TEST(matmul_epilogues) {
  const int64_t K = 300;
  for (const int64_t M : {1, 3, 65}) {
    for (const int64_t N : {1, 63, 65, 129}) {
      const Signs a = random_signs(M, K, 1), b = random_signs(N, K, 2);
      const Ints a_bits = bits_of(a), b_bits = bits_of(b), dot = dots(a, b);
      const Floats rows = random_floats(M, 3), columns = random_floats(N, 4),
                   bias = random_floats(N, 5);
      for_each_isa([&] {
        for (const Algo algo : kAlgos) {
          for (const Type type : kOutTypes) {
            for (int mask = 0; mask < 8; ++mask) {
              MatmulArgs args = matmul_args(a, a_bits, b, b_bits);
              args.algo = algo;
              args.epilogue.type = type;
              if (mask & 1) args.epilogue.row_scale = rows.data();
              if (mask & 2) args.epilogue.column_scale = columns.data();
              if (mask & 4) args.epilogue.bias = bias.data();
              std::vector<char> out(M * N * type_size(type));
              args.epilogue.out = out.data();
              matmul(args, scattered());
              CHECK(same(out, finish(args.epilogue, dot, M, N)));
            }
          }
        }
      });
    }
  }
}

TEST(matmul_sign) {
  for (const int64_t M : {1, 65}) {
    for (const int64_t N : {1, 33, 64, 65, 128, 257}) {
      const Signs a = random_signs(M, 100, 1), b = random_signs(N, 100, 2);
      const Ints a_bits = bits_of(a), b_bits = bits_of(b), dot = dots(a, b);
      const Ints thresh = thresholds(N, 20);
      const std::vector<int8_t> dir = directions(N);
      for_each_isa([&] {
        for (const Algo algo : kAlgos) {
          MatmulArgs args = matmul_args(a, a_bits, b, b_bits);
          args.algo = algo;
          Ints out(M * row_words(N), -1);
          args.epilogue.out = out.data();
          args.epilogue.thresh = thresh.data();
          args.epilogue.dir = dir.data();
          matmul(args, scattered());
          CHECK(same(out, sign_bits(dot, M, N, thresh, dir)));
        }
      });
    }
  }
}

TEST(matmul_batches) {
  const int64_t batch = 3, M = 5, N = 66, K = 70, width = row_words(K);
  const Signs a = random_signs(batch * M, K, 1), b = random_signs(batch * N, K, 2);
  const Ints a_bits = bits_of(a), b_bits = bits_of(b);
  const Floats rows = random_floats(batch * M, 3), columns = random_floats(batch * N, 4);
  for_each_isa([&] {
    MatmulArgs args;
    args.batch = batch;
    args.M = M;
    args.N = N;
    args.K = K;
    args.a = {a_bits.data(), M * width, width};
    args.b = {b_bits.data(), N * width, width};
    args.epilogue.type = Type::float32;
    args.epilogue.row_scale = rows.data();
    args.epilogue.row_scale_stride = M;
    args.epilogue.column_scale = columns.data();
    args.epilogue.column_scale_stride = N;
    Floats out(batch * M * N);
    args.epilogue.out = out.data();
    matmul(args, scattered());
    bool right = true;
    for (int64_t i = 0; i < batch * M * N; ++i) {
      const int64_t m = i / N, n = i / (M * N) * N + i % N;
      int32_t dot = 0;
      for (int64_t k = 0; k < K; ++k) dot += a.at(m, k) * b.at(n, k);
      right &= out[i] == static_cast<float>(dot) * rows[m] * columns[n];
    }
    CHECK(right);
  });
}

TEST(prepacked_header) {
  const int64_t N = 5, K = 300;
  const Ints bits = bits_of(random_signs(N, K, 1));
  std::vector<uint8_t> packed(packed_size(N, K));
  prepack({bits.data(), 0, row_words(K)}, N, K, packed.data(), {});
  const int64_t size = static_cast<int64_t>(packed.size());
  const PackedInfo info = packed_info(packed.data(), size);
  CHECK(info.valid && info.N == N && info.K == K);
  CHECK(!packed_info(packed.data(), size - 1).valid);
  CHECK(!packed_info(packed.data(), 10).valid);
  for (const int at : {0, 8, 16, 24}) {
    packed[at] ^= 1;
    const PackedInfo changed = packed_info(packed.data(), size);
    CHECK(!changed.valid || changed.N != N || changed.K != K);
    packed[at] ^= 1;
  }
  // Every instruction set writes the same bytes.
  for_each_isa([&] {
    std::vector<uint8_t> other(packed.size(), 1);
    prepack({bits.data(), 0, row_words(K)}, N, K, other.data(), {});
    CHECK(same(other, packed));
  });
}

TEST(linear) {
  const int64_t M = 70, N = 66, K = 257;
  const Floats x = random_floats(M * K, 1);
  const Signs w = random_signs(N, K, 2);
  Signs a{M, K, {}};
  for (const float value : x) a.values.push_back(value < 0 ? -1 : 1);
  const Ints w_bits = bits_of(w), expected = dots(a, w);
  for_each_isa([&] {
    LinearArgs args;
    args.M = M;
    args.N = N;
    args.K = K;
    args.x = {x.data(), Type::float32, 0, K, 1};
    args.w = {w_bits.data(), 0, row_words(K)};
    Ints out(M * N);
    args.epilogue.out = out.data();
    linear(args, scattered());
    CHECK(same(out, expected));
  });
}

// ---- ternary, planes, int8
TEST(ternary_and_int8_products) {
  std::mt19937 random(9);
  for (const int64_t K : {1, 31, 33, 256, 1000}) {
    for (const int64_t M : {1, 5, 66}) {
      const int64_t N = 35, width = row_words(K);
      std::vector<int8_t> a(M * K), b(N * K), x(M * K);
      for (int8_t& value : a) value = static_cast<int8_t>(random() % 3) - 1;
      for (int8_t& value : b) value = static_cast<int8_t>(random() % 3) - 1;
      for (int8_t& value : x) value = static_cast<int8_t>(random() % 8 ? random() : 128);
      Ints ternary(M * N), mixed(M * N), binary(M * N);
      for (int64_t m = 0; m < M; ++m) {
        for (int64_t n = 0; n < N; ++n) {
          for (int64_t k = 0; k < K; ++k) {
            ternary[m * N + n] += a[m * K + k] * b[n * K + k];
            mixed[m * N + n] += x[m * K + k] * b[n * K + k];
            binary[m * N + n] += x[m * K + k] * (b[n * K + k] < 0 ? -1 : 1);
          }
        }
      }
      for_each_isa([&] {
        Ints planes[4];
        for (Ints& plane : planes) plane.resize(std::max(M, N) * width);
        PackArgs pack_args;
        pack_args.K = K;
        pack_args.rows = M;
        pack_args.x = {a.data(), Type::int8, 0, K, 1};
        pack_ternary(pack_args, planes[0].data(), planes[1].data(), {});
        pack_args.rows = N;
        pack_args.x.data = b.data();
        pack_ternary(pack_args, planes[2].data(), planes[3].data(), {});
        const auto rows = [&](int i) { return Bits{planes[i].data(), 0, width}; };
        Ints out(M * N);
        ternary_matmul({1, M, N, K, rows(0), rows(1), rows(2), rows(3), out.data()}, scattered());
        CHECK(same(out, ternary));
        for (const bool has_mask : {false, true}) {
          Int8MatmulArgs args;
          args.M = M;
          args.N = N;
          args.K = K;
          args.x = {x.data(), Type::int8, 0, K, 1};
          args.w = rows(3);
          if (has_mask) args.w_mask = rows(2);
          args.epilogue.out = out.data();
          int8_matmul(args, scattered());
          CHECK(same(out, has_mask ? mixed : binary));
        }
      });
    }
  }
}

TEST(planes_matmul) {
  const int64_t M = 5, N = 70, K = 300, width = row_words(K), a_planes = 3, b_planes = 2;
  std::mt19937 random(4);
  std::vector<uint32_t> a(M * K), b(N * K);
  for (uint32_t& value : a) value = random() % (1u << a_planes);
  for (uint32_t& value : b) value = random() % (1u << b_planes);
  const auto planes = [&](const std::vector<uint32_t>& x, int64_t rows, int64_t count) {
    Ints bits(count * rows * width);
    for (int64_t p = 0; p < count; ++p) {
      for (int64_t i = 0; i < rows * K; ++i) {
        bits[(p * rows + i / K) * width + i % K / 32] |=
            static_cast<int32_t>((x[i] >> p & 1) << (i % K % 32));
      }
    }
    return bits;
  };
  const Ints a_bits = planes(a, M, a_planes), b_bits = planes(b, N, b_planes);
  Ints expected(M * N);
  for (int64_t i = 0; i < M * N; ++i) {
    for (int64_t k = 0; k < K; ++k) expected[i] += a[i / N * K + k] * b[i % N * K + k];
  }
  for_each_isa([&] {
    Ints out(M * N);
    planes_matmul({a_planes,
                   b_planes,
                   M,
                   N,
                   K,
                   {a_bits.data(), M * width, width},
                   {b_bits.data(), N * width, width},
                   out.data()},
                  scattered());
    CHECK(same(out, expected));
  });
}

TEST(popcount) {
  const Ints words = {0, -1, 1, INT32_MIN, 0x0F0F0F0F};
  Ints out(words.size());
  popcount(words.data(), words.size(), out.data(), {});
  CHECK(same(out, Ints{0, 32, 1, 1, 16}));
}

}  // namespace
}  // namespace nnkernels::binary
