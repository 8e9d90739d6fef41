// Forward, flows and gradients of hidden Chow-Liu trees against plain loops in double, on every
// instruction set of this machine.
#include "pc/cpu/tree.h"
#include "testing/check.h"
#include "testing/machine.h"
#include "testing/pc_reference.h"

namespace nnkernels::pc {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Numbers of a type at the start of a cache line, with a canary after the last.
struct Array {
  Type type = Type::float32;
  size_t size = 0;
  std::vector<char> bytes;

  static constexpr double kCanary = 12345;

  Array(Type of, const Numbers& numbers) : type(of), size(numbers.size()), bytes(8 * size + 80) {
    for (size_t i = 0; i < size; ++i) set(i, numbers[i]);
    set(size, kCanary);
  }
  void* data() const {
    const auto start = reinterpret_cast<uintptr_t>(bytes.data());
    return const_cast<char*>(bytes.data()) + (64 - start % 64) % 64;
  }
  Numbers read() const {
    CHECK_EQ(get(size), kCanary);
    Numbers numbers(size);
    for (size_t i = 0; i < size; ++i) numbers[i] = get(i);
    return numbers;
  }

 private:
  void set(size_t i, double x) {
    if (type == Type::float32) {
      static_cast<float*>(data())[i] = static_cast<float>(x);
    } else {
      static_cast<double*>(data())[i] = x;
    }
  }
  double get(size_t i) const {
    return type == Type::float32 ? static_cast<double>(static_cast<const float*>(data())[i])
                                 : static_cast<const double*>(data())[i];
  }
};

struct Results {
  Numbers ll, u, flows_ll;
  Numbers pi, A, B;              // derivatives
  Numbers cnt_pi, cnt_A, cnt_B;  // counts
};

Results run(const Case& c, const Data& data, int thread_count) {
  Array pi(c.type, data.pi), A(c.type, data.A), B(c.type, data.B), weights(c.type, data.weights);
  const std::vector<uint8_t> bytes(data.x.begin(), data.x.end());
  const std::vector<int16_t> words(data.x.begin(), data.x.end());
  Model model{c.type,           c.D, c.h, c.K, pi.data(), A.data(), B.data(), data.parent.data(),
              data.order.data()};
  Evidence evidence;
  evidence.x = c.symbol == Symbol::uint8 ? static_cast<const void*>(bytes.data()) : words.data();
  evidence.type = c.symbol;
  evidence.N = c.N;
  evidence.row = evidence.mask_row = c.D;
  if (c.missing) evidence.mask = reinterpret_cast<const bool*>(data.missing.data());

  const auto room = [&](size_t count) { return Array(c.type, Numbers(count, kNan)); };
  Array ll = room(at(c.N)), u = room(at(c.D * c.N * c.h)), flows_ll = room(at(c.N));
  forward({model, evidence, ll.data(), u.data()}, threads(thread_count));
  Results out;
  out.ll = ll.read();
  out.u = u.read();
  Array only_ll = room(at(c.N));
  forward({model, evidence, only_ll.data(), nullptr}, threads(thread_count));
  CHECK(c.N == 0 || memcmp(only_ll.data(), ll.data(), at(c.N) * sizeof(float)) == 0);

  for (const bool counts : {false, true}) {
    Array dpi = room(data.pi.size()), dA = room(data.A.size()), dB = room(data.B.size());
    FlowsArgs args{model,     evidence,        c.weighted ? weights.data() : nullptr,
                   counts,    flows_ll.data(), dpi.data(),
                   dA.data(), dB.data()};
    flows(args, threads(thread_count));
    (counts ? out.cnt_pi : out.pi) = dpi.read();
    (counts ? out.cnt_A : out.A) = dA.read();
    (counts ? out.cnt_B : out.B) = dB.read();
  }
  out.flows_ll = flows_ll.read();
  return out;
}

std::string describe(const Case& c) {
  std::string text;
  for (const int64_t n : {c.D, c.h, c.K, c.N}) text += " " + std::to_string(n);
  return text + " shape " + std::to_string(static_cast<int>(c.shape)) + " type " +
         std::to_string(static_cast<int>(c.type));
}

// The largest difference, as a share of the largest expected number of each group of `group`.
double error_of(const Numbers& x, const Numbers& expected, int64_t group) {
  CHECK_EQ(x.size(), expected.size());
  double worst = 0;
  for (size_t first = 0; first < x.size(); first += at(group)) {
    double most = 0, off = 0;
    for (size_t i = first; i < first + at(group); ++i) {
      if (!(std::abs(x[i]) < std::numeric_limits<double>::infinity())) return kNan;
      most = std::max(most, std::abs(expected[i]));
      off = std::max(off, std::abs(x[i] - expected[i]));
    }
    worst = std::max(worst, off == 0 ? 0 : off / std::max(most, 1e-30));
  }
  return worst;
}

void check(const std::string& name, const Case& c, double error, double limit) {
  if (error <= limit) return;
  testing::report_failure(__FILE__, __LINE__,
                          name + describe(c) + " is off by " + std::to_string(error));
}

Numbers times(Numbers x, const Numbers& y) {
  for (size_t i = 0; i < x.size(); ++i) x[i] *= y[i];
  return x;
}

void compare(const Case& c, unsigned seed) {
  const Data data = random_data(c, seed);
  const Expected expected = Reference(c, data)();
  const bool wide = c.type == Type::float64;
  const double limit = wide ? 1e-12 : 1e-5, flow_limit = wide ? 1e-10 : 1e-4;
  each_isa([&](const std::string& isa) {
    const Results out = run(c, data, 1);
    for (int64_t n = 0; n < c.N; ++n) {
      const double x = out.ll[at(n)], y = expected.ll[at(n)];
      if (std::isinf(y)) {
        CHECK_EQ(x, y);
      } else {
        check(isa + " ll", c, std::abs(x - y) / std::max(1.0, std::abs(y)), limit);
      }
    }
    CHECK(out.ll == out.flows_ll);
    if (c.N == 0) return;
    const int64_t h = c.h, K = c.K;
    check(isa + " pi", c, error_of(out.pi, expected.pi, h), flow_limit);
    check(isa + " A", c, error_of(out.A, expected.A, h * h), flow_limit);
    check(isa + " B", c, error_of(out.B, expected.B, h * K), flow_limit);
    check(isa + " cnt_pi", c, error_of(out.cnt_pi, times(expected.pi, data.pi), h), flow_limit);
    check(isa + " cnt_A", c, error_of(out.cnt_A, times(expected.A, data.A), h * h), flow_limit);
    check(isa + " cnt_B", c, error_of(out.cnt_B, times(expected.B, data.B), h * K), flow_limit);
    for (int64_t row = 0; row < c.D * c.N; ++row) {
      const auto first = out.u.begin() + row * h;
      const double most = *std::max_element(first, first + h);
      CHECK(most == 0 || (most >= 0.5 && most < 1));
    }
  });
}

constexpr Type kTypes[] = {Type::float32, Type::float64};

TEST(trees_are_checked) {
  const auto make = [](std::vector<int64_t> parent, std::vector<int64_t> order) {
    std::string error;
    make_tree(parent.data(), order.data(), static_cast<int64_t>(parent.size()), &error);
    return error;
  };
  CHECK_EQ(make({-1, 0, 1, 0}, {0, 1, 2, 3}), "");
  CHECK_EQ(make({-1, 0, 1, 0}, {0, 3, 1, 2}), "");
  CHECK_EQ(make({-1, 0, 1, 0}, {0, 1, 3, 2}),
           "order holds node 2 outside the subtree of its parent 1, expected a depth-first "
           "preorder");
  CHECK_EQ(make({-1, -1}, {0, 1}), "nodes 0 and 1 are both roots");
  CHECK_EQ(make({1, 0}, {0, 1}), "no node is a root (parent -1)");
  CHECK(make({-1, 1, 2}, {0, 1, 2}).find("parent of node 1 is 1") == 0);
  CHECK(make({-1, 2, 1}, {0, 1, 2}).find("order holds node 1 outside") == 0);
  CHECK(make({-1, 5}, {0, 1}).find("parent of node 1 is 5") == 0);
  CHECK(make({-1, 0}, {0, 0}).find("order holds node 0 twice") == 0);
  CHECK(make({-1, 0}, {0, 2}).find("order holds node 2") == 0);
  CHECK(make({-1, 0}, {1, 0}).find("order starts at node 1") == 0);
  std::string error;
  const int64_t parent[] = {-1, 0, 1, 0}, order[] = {0, 3, 1, 2};
  const Tree tree = make_tree(parent, order, 4, &error);
  CHECK_EQ(tree.root, 0);
  CHECK_EQ(tree.child_count(0), 2);
  CHECK_EQ(tree.child(0, 0), 3);
  CHECK_EQ(tree.child(0, 1), 1);
  CHECK_EQ(tree.size(1), 2);
  CHECK_EQ(tree.depth[2], 2);
}

TEST(enumeration) {
  unsigned seed = 0;
  for (const Shape shape : {Shape::random, Shape::chain, Shape::star}) {
    for (const bool missing : {false, true}) {
      Case c{5, 3, 3, 20, shape, Type::float64};
      c.missing = missing;
      const Data data = random_data(c, ++seed);
      const Expected expected = Reference(c, data)();
      for (int64_t n = 0; n < c.N; ++n) {
        CHECK(std::abs(expected.ll[at(n)] - std::log(enumerated(c, data, n))) < 1e-12);
      }
      compare(c, seed);
    }
  }
}

TEST(states) {
  unsigned seed = 100;
  for (const int64_t h : {1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 24, 32, 40, 64, 100, 128, 256}) {
    for (const Type type : kTypes) {
      Case c{h > 64 ? 7 : 17, h, 5, 100, Shape::random, type};
      c.missing = ++seed % 2 == 0;
      c.weighted = seed % 3 == 0;
      compare(c, seed);
    }
  }
}

TEST(values) {
  unsigned seed = 200;
  for (const int64_t K : {1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 33, 255, 256, 300, 1000}) {
    for (const Type type : kTypes) {
      Case c{9, 6, K, 130, Shape::random, type};
      c.symbol = K > 256 || K % 2 == 0 ? Symbol::int16 : Symbol::uint8;
      c.missing = ++seed % 2 == 0;
      compare(c, seed);
    }
  }
}

TEST(samples) {
  unsigned seed = 300;
  for (const int64_t N : {0, 1, 2, 15, 16, 17, 47, 48, 49, 95, 97, 300, 1024, 1025, 2100}) {
    for (const int64_t configurations : {0, 1, 10}) {
      Case c{N > 1000 ? 5 : 23, 10, 4, N, Shape::random, Type::float32};
      c.configurations = configurations;
      c.weighted = ++seed % 2 == 0;
      compare(c, seed);
      c.type = Type::float64;
      if (N < 100) compare(c, seed);
    }
  }
}

TEST(shapes) {
  unsigned seed = 400;
  for (const Shape shape : {Shape::random, Shape::chain, Shape::star}) {
    for (const int64_t D : {1, 2, 3, 17, 100, 300}) {
      for (const int64_t configurations : {0, 7}) {
        Case c{D, 16, 2, 60, shape, Type::float32};
        c.configurations = configurations;
        c.missing = ++seed % 2 == 0;
        compare(c, seed);
      }
    }
  }
}

// Results of several megabytes, which bypass the caches.
TEST(large_tables) {
  unsigned seed = 450;
  for (const int64_t K : {248, 250, 256}) {
    for (const Type type : kTypes) {
      Case c{70, type == Type::float32 ? 70 : 36, K, 40, Shape::random, type};
      c.configurations = 20;
      compare(c, ++seed);
    }
  }
}

// Derivatives by parameters that are 0, and samples of probability 0.
TEST(zeros) {
  unsigned seed = 500;
  for (const Shape shape : {Shape::random, Shape::chain, Shape::star}) {
    for (const Type type : kTypes) {
      Case c{6, 8, 4, 80, shape, type};
      c.zeros = 0.6;
      c.weighted = true;
      compare(c, ++seed);
      c.zeros = 0.9;
      compare(c, ++seed);
      const Expected expected = Reference(c, random_data(c, seed))();
      CHECK(std::count(expected.ll.begin(), expected.ll.end(),
                       -std::numeric_limits<double>::infinity()) > 0);
    }
  }
}

TEST(threads_do_not_change_a_bit) {
  unsigned seed = 600;
  for (const Shape shape : {Shape::random, Shape::chain, Shape::star}) {
    for (const int64_t configurations : {0, 5}) {
      Case c{60, 12, 20, 500, shape, Type::float32};
      c.configurations = configurations;
      const Data data = random_data(c, ++seed);
      each_isa([&](const std::string&) {
        const Results one = run(c, data, 1);
        for (const int count : {2, 5}) {
          const Results many = run(c, data, count);
          CHECK(one.ll == many.ll);
          CHECK(one.u == many.u);
          CHECK(one.pi == many.pi);
          CHECK(one.A == many.A);
          CHECK(one.B == many.B);
          CHECK(one.cnt_A == many.cnt_A);
          CHECK(one.cnt_B == many.cnt_B);
        }
      });
    }
  }
}

TEST(symbols_are_checked) {
  Case c{4, 3, 5, 70, Shape::random, Type::float32};
  for (const Symbol symbol : {Symbol::uint8, Symbol::int16}) {
    c.symbol = symbol;
    for (const int64_t bad : {5, 255, -1}) {
      if (bad < 0 && symbol == Symbol::uint8) continue;
      Data data = random_data(c, 700);
      data.x[at(66 * c.D + 2)] = bad;
      CHECK_THROWS(run(c, data, 1),
                   "x[66, 2] is " + std::to_string(bad) + ", expected at least 0 and below K=5");
      c.missing = true;
      data.missing[at(66 * c.D + 2)] = 1;
      run(c, data, 1);
      c.missing = false;
    }
  }
}

TEST(updates) {
  for (const Type type : kTypes) {
    for (const int64_t width : {1, 2, 7, 16, 33, 256}) {
      std::mt19937 generator(800);
      Numbers theta = distributions(5, width, 0.2, generator, type);
      Numbers counts = distributions(5, width, 0.2, generator, type);
      for (double& x : counts) x *= 17;
      std::fill(counts.begin() + width, counts.begin() + 2 * width, 0.0);
      for (const double pseudo_count : {0.0, 0.5}) {
        for (const double step : {1.0, 0.25}) {
          each_isa([&](const std::string&) {
            Array array(type, theta), of_counts(type, counts);
            update({type, 5, width, of_counts.data(), pseudo_count, step, array.data()},
                   threads(2));
            const Numbers result = array.read();
            for (int64_t r = 0; r < 5; ++r) {
              double sum = pseudo_count;
              for (int64_t i = 0; i < width; ++i) sum += counts[at(r * width + i)];
              for (int64_t i = 0; i < width; ++i) {
                const size_t k = at(r * width + i);
                const double share = pseudo_count / static_cast<double>(width);
                const double expected =
                    sum > 0 ? (1 - step) * theta[k] + step * (counts[k] + share) / sum : theta[k];
                CHECK(std::abs(result[k] - expected) < (type == Type::float32 ? 1e-6 : 1e-14));
              }
            }
          });
        }
      }
    }
  }
}

}  // namespace
}  // namespace nnkernels::pc
