// The codec against a plain walk in float, bit for bit, and against double arithmetic; its bytes
// over instruction sets, threads, tiles and floating-point modes.
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <functional>

#include "testing/check.h"
#include "testing/machine.h"
#include "testing/pc_codec_model.h"

namespace nnkernels::pc {
namespace {

using Row = std::vector<float>;

// The definition, one sample at a time.
struct Plain {
  const RandomModel& model;
  int precision;
  // Symbol of a variable from its cumulative frequencies.
  std::function<int64_t(int64_t, const std::vector<int32_t>&)> code;

  static size_t at(int64_t i) { return static_cast<size_t>(i); }
  static void rescale(Row& row) {
    int e = 0;
    std::frexp(*std::max_element(row.begin(), row.end()), &e);
    for (float& x : row) {
      x = std::ldexp(x, -e);
      if (x < 0x1p-40f) x = 0;
    }
  }
  Row times(const Row& a, const Row& b) const {
    Row out;
    for (size_t i = 0; i < a.size(); ++i) out.push_back(a[i] * b[i]);
    return out;
  }
  // sum over the first (transposed: the second) state of A.
  Row through(const Row& x, int64_t node, bool transposed) const {
    const int64_t h = model.h;
    Row out;
    for (int64_t b = 0; b < h; ++b) {
      float sum = 0;
      for (int64_t a = 0; a < h; ++a) {
        const float w = model.A[at(node * h * h + (transposed ? b * h + a : a * h + b))];
        sum = std::fma(x[at(a)], w, sum);
      }
      out.push_back(sum);
    }
    rescale(out);
    return out;
  }
  std::vector<int32_t> frequencies(const Row& alpha, int64_t node) const {
    const int64_t K = model.K;
    Row sums;
    for (int64_t v = 0; v <= K; ++v) {
      float sum = 0;
      for (int64_t a = 0; a < model.h; ++a) {
        sum = std::fma(alpha[at(a)], model.C[at((node * model.h + a) * (K + 1) + v)], sum);
      }
      sums.push_back(sum);
    }
    const auto total = static_cast<float>((1 << precision) - K);
    const float ratio = total / sums.back();
    std::vector<int32_t> f;
    for (int64_t v = 0; v < K; ++v) {
      const auto share = static_cast<int64_t>(sums[at(v)] * ratio);
      f.push_back(static_cast<int32_t>(std::min(share, static_cast<int64_t>(total)) + v));
    }
    f.push_back(1 << precision);
    return f;
  }
  Row visit(int64_t node, Row alpha) {
    const int64_t v = code(node, frequencies(alpha, node));
    Row u;
    for (int64_t a = 0; a < model.h; ++a) {
      u.push_back(model.B[at((node * model.h + a) * model.K + v)]);
    }
    alpha = times(alpha, u);
    rescale(alpha);
    for (const int64_t child : model.order) {
      if (model.parent[at(child)] != node) continue;
      const Row beta = through(visit(child, through(alpha, child, false)), child, true);
      alpha = times(alpha, beta);
      rescale(alpha);
      u = times(u, beta);
      rescale(u);
    }
    return u;
  }
  void run() {
    Row alpha = model.pi;
    rescale(alpha);
    visit(model.order[0], alpha);
  }
};

// log2 p(x) in double.
double log_likelihood(const RandomModel& model, const uint8_t* x) {
  const auto at = [](int64_t i) { return static_cast<size_t>(i); };
  const int64_t h = model.h;
  std::vector<std::vector<double>> u(at(model.D));
  double exponent = 0;
  for (int64_t i = 0; i < model.D; ++i) {
    for (int64_t a = 0; a < h; ++a) u[at(i)].push_back(model.B[at((i * h + a) * model.K + x[i])]);
  }
  for (int64_t k = model.D - 1; k >= 0; --k) {
    const int64_t node = model.order[at(k)], parent = model.parent[at(node)];
    double most = 0;
    for (const double p : u[at(node)]) most = std::max(most, p);
    exponent += std::log2(most);
    for (double& p : u[at(node)]) p /= most;
    if (parent < 0) continue;
    for (int64_t a = 0; a < h; ++a) {
      double sum = 0;
      for (int64_t b = 0; b < h; ++b)
        sum += model.A[at((node * h + a) * h + b)] * u[at(node)][at(b)];
      u[at(parent)][at(a)] *= sum;
    }
  }
  double sum = 0;
  for (int64_t a = 0; a < h; ++a) sum += model.pi[at(a)] * u[at(model.order[0])][at(a)];
  return exponent + std::log2(sum);
}

struct Coded {
  std::vector<int32_t> low, width, words, counts;
  bool operator==(const Coded&) const = default;
};

template <class Number>
Coded encoded(const RandomModel& model, const std::vector<Number>& x, int64_t lanes, int precision,
              int thread_count) {
  const FrozenModel frozen = model.frozen(precision);
  const Symbol type = sizeof(Number) == 1 ? Symbol::uint8 : Symbol::int16;
  const Samples samples{x.data(), type, static_cast<int64_t>(x.size()) / model.D};
  Coded coded;
  coded.low.resize(x.size());
  coded.width.resize(x.size());
  intervals(frozen, samples, precision, coded.low.data(), coded.width.data(),
            threads(thread_count));
  coded.words.resize(static_cast<size_t>(lanes * rans_capacity(samples.N, model.D, lanes)));
  coded.counts.resize(static_cast<size_t>(lanes));
  encode(frozen, samples, lanes, precision, coded.words.data(), coded.counts.data(),
         threads(thread_count));
  return coded;
}

template <class Number>
std::vector<Number> decoded(const RandomModel& model, const Coded& coded, int64_t N, int64_t lanes,
                            int precision, int thread_count) {
  std::vector<Number> x(static_cast<size_t>(N * model.D), Number{77});
  DecodeArgs args;
  args.words = coded.words.data();
  args.lanes = lanes;
  args.row = rans_capacity(N, model.D, lanes);
  args.counts = coded.counts.data();
  args.N = N;
  args.precision = precision;
  args.type = sizeof(Number) == 1 ? Symbol::uint8 : Symbol::int16;
  args.x = x.data();
  decode(model.frozen(precision), args, threads(thread_count));
  return x;
}

struct Case {
  int64_t D, h, K, N;
  int precision;
  Shape shape = Shape::random;
};

const Case kCases[] = {
    {1, 1, 1, 3, 12},
    {1, 5, 2, 40, 12},
    {7, 3, 3, 30, 13},
    {9, 8, 15, 25, 14},
    {12, 16, 16, 20, 20},
    {12, 17, 17, 20, 20},
    {30, 4, 40, 70, 16},
    {12, 32, 256, 70, 20},
    {20, 2, 255, 12, 24, Shape::chain},
    {20, 5, 33, 12, 18, Shape::star},
    {6, 33, 257, 9, 20},
    {5, 40, 300, 9, 20},
    {4, 64, 256, 7, 24},
    {4, 24, 4096, 9, 14},
    {3, 100, 1000, 5, 22},
    {3, 130, 100, 5, 16},
    {2, 256, 60, 3, 20},
};

std::string describe(const Case& c) {
  std::string text;
  for (const int64_t x : {c.D, c.h, c.K, c.N}) text += std::to_string(x) + " ";
  return text;
}

void fail(const Case& c, const std::string& what) {
  testing::report_failure(__FILE__, __LINE__, describe(c) + what);
}

template <class Number>
void check_against_plain(const Case& c, unsigned seed) {
  const RandomModel model(c.D, c.h, c.K, seed, c.shape);
  const std::vector<Number> x = model.data<Number>(c.N, seed + 1);
  std::vector<int32_t> low, width;
  for (int64_t n = 0; n < c.N; ++n) {
    Plain plain{model, c.precision, [&](int64_t node, const std::vector<int32_t>& f) {
                  const auto v = static_cast<size_t>(x[static_cast<size_t>(n * c.D + node)]);
                  low.push_back(f[v]);
                  width.push_back(f[v + 1] - f[v]);
                  return static_cast<int64_t>(v);
                }};
    plain.run();
  }
  each_isa([&](const std::string& isa) {
    for (const auto& [lanes, count] : {std::pair<int64_t, int>{1, 1}, {3, 2}, {64, 4}}) {
      const Coded coded = encoded(model, x, lanes, c.precision, 1);
      if (coded.low != low || coded.width != width) fail(c, isa + ": intervals differ");
      if (count > 1 && !(encoded(model, x, lanes, c.precision, count) == coded)) {
        fail(c, isa + ": threads change the code");
      }
      if (decoded<Number>(model, coded, c.N, lanes, c.precision, count) != x) {
        fail(c, isa + ": decoded otherwise");
      }
    }
  });
}

TEST(bits_of_the_definition) {
  unsigned seed = 0;
  for (const Case& c : kCases) {
    if (c.K <= 256) check_against_plain<uint8_t>(c, ++seed);
    check_against_plain<int16_t>(c, ++seed);
  }
}

TEST(cdf_of_a_variable) {
  for (const Case& c : {Case{9, 6, 20, 40, 16}, Case{5, 20, 256, 12, 20}, Case{3, 2, 1, 4, 12}}) {
    const RandomModel model(c.D, c.h, c.K, 3, c.shape);
    std::vector<int16_t> x = model.data<int16_t>(c.N, 4);
    const FrozenModel frozen = model.frozen(c.precision);
    for (int64_t variable = 0; variable < c.D; ++variable) {
      std::vector<int32_t> expected;
      std::vector<int16_t> visible = x;
      for (int64_t n = 0; n < c.N; ++n) {
        bool reached = false;
        Plain plain{model, c.precision, [&](int64_t node, const std::vector<int32_t>& f) {
                      int16_t& symbol = visible[static_cast<size_t>(n * c.D + node)];
                      const int64_t v = x[static_cast<size_t>(n * c.D + node)];
                      if (node == variable) {
                        expected.insert(expected.end(), f.begin(), f.end());
                        reached = true;
                      }
                      // Not known yet: nothing may look at it.
                      if (reached) symbol = -1;
                      return v;
                    }};
        plain.run();
      }
      each_isa([&](const std::string& isa) {
        std::vector<int32_t> cdf(static_cast<size_t>(c.N * (c.K + 1)));
        conditional_cdf(frozen, {visible.data(), Symbol::int16, c.N}, variable, c.precision,
                        cdf.data(), threads(2));
        if (cdf != expected) fail(c, isa + ": the cdf differs");
      });
    }
  }
}

TEST(conditionals_multiply_to_the_likelihood) {
  unsigned seed = 50;
  for (const int64_t h : {1, 2, 5, 16, 32}) {
    for (const int64_t D : {1, 2, 3, 17, 100}) {
      for (const int64_t K : {2, 3, 256}) {
        const RandomModel model(D, h, K, ++seed, Shape::random, 0.5);
        const std::vector<uint8_t> x = model.data<uint8_t>(4, seed);
        const Coded coded = encoded(model, x, 1, 24, 1);
        for (int64_t n = 0; n < 4; ++n) {
          double bits = 0, least = 0;
          for (int64_t k = 0; k < D; ++k) {
            const double width = coded.width[static_cast<size_t>(n * D + k)];
            bits += 24 - std::log2(width);
            // What truncation, the widths of at least 1 and float sums can take from an interval.
            least += std::log2(1 + 2 / width) + static_cast<double>(K) * 0x1p-23 + 1e-5;
          }
          const double expected = -log_likelihood(model, x.data() + n * D);
          CHECK(bits <= expected + least);
          CHECK(bits >= expected - least);
        }
      }
    }
  }
}

TEST(tiles_and_batches_do_not_matter) {
  // More samples than a tile holds, and single ones.
  const RandomModel model(11, 20, 50, 5);
  const std::vector<uint8_t> x = model.data<uint8_t>(1500, 6);
  const Coded all = encoded(model, x, 700, 20, 2);
  each_isa([&](const std::string&) {
    for (const int count : {1, 2, 4}) {
      CHECK(encoded(model, x, 700, 20, count) == all);
      CHECK(decoded<uint8_t>(model, all, 1500, 700, 20, count) == x);
    }
  });
  for (const int64_t n : {0, 700, 1499}) {
    const std::vector<uint8_t> one(x.begin() + n * 11, x.begin() + (n + 1) * 11);
    const Coded single = encoded(model, one, 1, 20, 1);
    CHECK(std::equal(single.low.begin(), single.low.end(), all.low.begin() + n * 11));
    CHECK(std::equal(single.width.begin(), single.width.end(), all.width.begin() + n * 11));
  }
  const Coded none = encoded(model, std::vector<uint8_t>(), 3, 20, 1);
  CHECK(none.counts == std::vector<int32_t>({2, 2, 2}));
  CHECK(decoded<uint8_t>(model, none, 0, 3, 20, 1).empty());
}

#if defined(__x86_64__)
TEST(flushing_subnormal_numbers_does_not_matter) {
  const RandomModel model(40, 16, 100, 8);
  const std::vector<uint8_t> x = model.data<uint8_t>(60, 9);
  each_isa([&](const std::string&) {
    const Coded before = encoded(model, x, 4, 20, 1);
    const unsigned mode = _mm_getcsr();
    // Flush to zero, subnormals are zero, round upwards.
    const unsigned other = mode | 0x8040 | 0x4000;
    _mm_setcsr(other);
    const Coded flushed = encoded(model, x, 4, 20, 1);
    const bool same = decoded<uint8_t>(model, before, 60, 4, 20, 1) == x;
    const unsigned after = _mm_getcsr();
    _mm_setcsr(mode);
    CHECK(flushed == before);
    CHECK(same);
    CHECK_EQ(after & 0xE040, other & 0xE040);
  });
}
#endif

TEST(bad_input_is_refused) {
  const RandomModel model(4, 3, 10, 1);
  std::vector<int16_t> x = model.data<int16_t>(3, 2);
  x[6] = 10;
  CHECK_THROWS(encoded(model, x, 1, 16, 1), "x[1, 2] is 10, expected 0 <= x < K = 10");
  x[6] = -1;
  CHECK_THROWS(encoded(model, x, 1, 16, 1), "x[1, 2] is -1");
  CHECK_THROWS(model.frozen(11), "precision is 11, expected 12..24");
  CHECK_THROWS(model.frozen(25), "precision is 25");
  RandomModel other(4, 3, 2000, 1);
  CHECK_THROWS(other.frozen(12), "2^precision >= 4 K with K = 2000");
  other = model;
  other.parent[1] = 1;
  other.parent[0] = 1;
  try {
    other.frozen(16);
    CHECK(false);
  } catch (const std::invalid_argument&) {
  }
  const auto frozen = [](int64_t h, int64_t K, int64_t D) {
    frozen_model(nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, D, h, K, 24);
  };
  CHECK_THROWS(frozen(0, 2, 1), "h is 0, expected 1..256");
  CHECK_THROWS(frozen(257, 2, 1), "h is 257");
  CHECK_THROWS(frozen(1, 4097, 1), "K is 4097");
  CHECK_THROWS(frozen(1, 2, 0), "D is 0");
}

// Whatever the tables hold, nothing is read out of bounds and nothing hangs.
TEST(tables_that_are_no_model) {
  std::mt19937 random(3);
  int refused = 0;
  for (int i = 0; i < 600; ++i) {
    const int64_t K = i % 3 == 0 ? 10 : i % 3 == 1 ? 100 : 400;
    RandomModel model(5, 1 + static_cast<int64_t>(random() % 20), K, random());
    const std::vector<int16_t> x = model.data<int16_t>(6, random());
    const Coded good = encoded(model, x, 2, 16, 1);
    for (std::vector<float>* table : {&model.pi, &model.A, &model.B, &model.C}) {
      for (int change = 0; change < 20; ++change) {
        const float values[] = {NAN, INFINITY, -1.0f, 0.0f, 1e38f, -1e38f, 1e-45f};
        (*table)[random() % table->size()] = values[random() % 7];
      }
    }
    each_isa([&](const std::string&) {
      try {
        encoded(model, x, 2, 16, 1);
      } catch (const CorruptStream&) {
        ++refused;
      }
      try {
        decoded<int16_t>(model, good, 6, 2, 16, 1);
      } catch (const CorruptStream&) {
        ++refused;
      }
    });
  }
  CHECK(refused > 600);
}

TEST(corrupt_words) {
  std::mt19937 random(4);
  const RandomModel model(6, 9, 200, 7);
  const std::vector<uint8_t> x = model.data<uint8_t>(40, 8);
  const Coded good = encoded(model, x, 8, 20, 1);
  int refused = 0;
  for (int i = 0; i < 200; ++i) {
    Coded bad = good;
    if (random() % 2 == 0) {
      bad.words[random() % bad.words.size()] ^= static_cast<int32_t>(1u << random() % 32);
    } else {
      bad.counts[random() % 8] = static_cast<int32_t>(random() % 40) - 5;
    }
    if (bad == good) continue;
    each_isa([&](const std::string&) {
      try {
        decoded<uint8_t>(model, bad, 40, 8, 20, 1);
      } catch (const CorruptStream&) {
        ++refused;
      }
    });
  }
  CHECK(refused > 200);
}

}  // namespace
}  // namespace nnkernels::pc
