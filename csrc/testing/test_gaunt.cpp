// The products of two signals and their derivatives against plain sums in float64, on every
// instruction set.
#include <cmath>
#include <cstdint>
#include <limits>

#include "testing/check.h"
#include "testing/gaunt_reference.h"
#include "testing/machine.h"

namespace nnkernels {
namespace {

// x, y, gz, w1, w2, w3: the arguments that the form S is linear in.
constexpr int kArguments = 6;

struct Problem {
  Kind kind;
  Basis basis;
  int L[3];
  size_t samples;
  bool shared_y, weighted;

  size_t count(int argument) const {
    const int degree = L[argument % 3] + 1;
    return static_cast<size_t>(argument < 3 ? degree * degree : degree);
  }
  // Weights serve all samples.
  size_t rows(int argument) const {
    return argument > 2 || (argument == 1 && shared_y) ? 1 : samples;
  }
  bool has(int argument) const { return argument < 3 || weighted; }
};

struct Values {
  Numbers of[kArguments];
};

Values random_values(const Problem& problem, int seed) {
  Values values;
  for (int i = 0; i < kArguments; ++i) {
    values.of[i] = random_numbers(problem.rows(i) * problem.count(i), seed * 10 + i);
    if (!problem.has(i)) values.of[i].assign(problem.count(i), seed == 1 ? 1.0 : 0.0);
  }
  return values;
}

// dS by argument `which`, at `values` with argument `replaced` taken from `tangent`; added to
// `sum`.
void add_derivative(const Problem& problem, const Numbers& K, const Values& values,
                    const Values& tangent, int replaced, int which, Numbers& sum) {
  const int d1 = static_cast<int>(problem.count(0)), d2 = static_cast<int>(problem.count(1)),
            d3 = static_cast<int>(problem.count(2));
  const auto degree = [](int a) { return static_cast<int>(std::sqrt(a + 0.5)); };
  for (size_t n = 0; n < problem.samples; ++n) {
    const auto index = [&](int argument, int a) {
      return (problem.rows(argument) == 1 ? 0 : n) * problem.count(argument) +
             static_cast<size_t>(argument < 3 ? a : degree(a));
    };
    const auto value = [&](int argument, int a) {
      if (argument == which) return 1.0;
      return (argument == replaced ? tangent : values).of[argument][index(argument, a)];
    };
    for (int a = 0; a < d1; ++a) {
      const double f = value(0, a) * value(3, a);
      for (int b = 0; b < d2; ++b) {
        const double fg = f * value(1, b) * value(4, b);
        for (int c = 0; c < d3; ++c) {
          const int at = which % 3 == 0 ? a : which % 3 == 1 ? b : c;
          sum[index(which, at)] += K[(a * d2 + b) * d3 + c] * fg * value(2, c) * value(5, c);
        }
      }
    }
  }
}

// The arguments as tensors of a type and layout, and room for a derivative by each.
struct Call {
  std::vector<Tensor> in, tangent, out;
  gaunt::ProductArgs args;

  Call(const Problem& problem, const Values& values, const Values& slopes, Type type, bool inside) {
    args.samples = samples_of(type, problem.samples);
    args.kind = problem.kind;
    args.basis = problem.basis;
    args.L1 = problem.L[0];
    args.L2 = problem.L[1];
    args.L3 = problem.L[2];
    for (int i = 0; i < kArguments; ++i) {
      in.emplace_back(type, problem.rows(i), problem.count(i), inside, values.of[i]);
      tangent.emplace_back(type, problem.rows(i), problem.count(i), inside, slopes.of[i]);
      out.emplace_back(type, problem.rows(i), problem.count(i), inside);
    }
    for (int i = 0; i < kArguments; ++i) {
      if (!problem.has(i)) continue;
      member(args.in, i) = in[i].array();
      if (i != 2) member(args.tangent, i) = tangent[i].array();
      member(args.out, i) = out[i].array();
    }
  }

  static Array& member(gaunt::Trilinear& form, int i) {
    Array* const members[] = {&form.x, &form.y, &form.z, &form.w1, &form.w2, &form.w3};
    return *members[i];
  }
};

void check_problem(const Problem& problem, Type type, bool inside, const Parallel& parallel) {
  const Numbers K =
      coefficients(problem.kind, problem.basis, problem.L[0], problem.L[1], problem.L[2]);
  const Values values = random_values(problem, 1);
  Values slopes = random_values(problem, 2);
  // gz is no result of the first derivative and has no tangent.
  slopes.of[2].assign(slopes.of[2].size(), 0.0);
  Call call(problem, values, slopes, type, inside);
  // Differences limit the coefficients of the bracket.
  const double tolerance = type == Type::float32         ? 2e-6
                           : problem.kind == Kind::cross ? 1e-8
                                                         : 2e-13;
  gaunt::product_grad(call.args, parallel);
  for (int i = 0; i < kArguments; ++i) {
    if (!problem.has(i)) continue;
    Numbers expected(problem.rows(i) * problem.count(i));
    add_derivative(problem, K, values, values, i, i, expected);
    CHECK(error_of(call.out[i], expected) <= tolerance);
  }
  gaunt::product_grad_grad(call.args, parallel);
  for (int i = 0; i < kArguments; ++i) {
    if (!problem.has(i)) continue;
    Numbers expected(problem.rows(i) * problem.count(i));
    for (int replaced = 0; replaced < kArguments; ++replaced) {
      if (replaced == i) continue;
      add_derivative(problem, K, values, slopes, replaced, i, expected);
    }
    CHECK(error_of(call.out[i], expected) <= 4 * tolerance);
  }
}

TEST(derivatives_of_first_and_second_order) {
  const int degrees[][3] = {{0, 0, 0}, {1, 1, 1}, {1, 1, 2}, {1, 2, 1}, {2, 2, 2}, {2, 2, 4},
                            {2, 4, 2}, {3, 3, 3}, {3, 1, 2}, {1, 4, 2}, {2, 1, 5}};
  each_isa([&](const std::string&) {
    int turn = 0;
    for (const auto& L : degrees) {
      for (const Kind kind : {Kind::even, Kind::cross}) {
        const Basis bases[] = {Basis::integral, Basis::component, Basis::norm};
        const Problem problem{
            kind,          bases[turn % 3], {L[0], L[1], L[2]}, turn % 2 ? 19u : 5u,
            turn % 4 == 1, turn % 3 != 1};
        check_problem(problem, turn % 2 ? Type::float32 : Type::float64, turn % 5 == 2, Parallel{});
        ++turn;
      }
    }
  });
}

// Degrees with kernels of their own, on the widest vectors.
TEST(generated_degrees) {
  for (int L = 4; L <= 8; L += 2) {
    check_problem({Kind::even, Basis::integral, {L, L, L}, 3, false, false}, Type::float64, false,
                  Parallel{});
  }
  check_problem({Kind::even, Basis::integral, {5, 5, 10}, 3, false, false}, Type::float64, false,
                Parallel{});
}

Tensor forward(Kind kind, int L1, int L2, int L3, Tensor& x, Tensor& y, const Parallel& parallel) {
  Tensor z(x.type, x.samples, static_cast<size_t>((L3 + 1) * (L3 + 1)));
  gaunt::ProductArgs args;
  args.samples = samples_of(x.type, x.samples);
  args.kind = kind;
  args.L1 = L1;
  args.L2 = L2;
  args.L3 = L3;
  args.in.x = x.array();
  args.in.y = y.array();
  args.out.z = z.array();
  gaunt::product(args, parallel);
  return z;
}

bool same(const Tensor& a, size_t i, const Tensor& b, size_t j) {
  for (size_t k = 0; k < a.count; ++k) {
    if (a.get(i, k) != b.get(j, k)) return false;
  }
  return true;
}

// A sample's result is the same alone, elsewhere, on any number of threads and any vectors; the
// degrees take the ways without rings, of single degrees and of any degree.
TEST(samples_are_independent) {
  const int degrees[][3] = {{2, 2, 2}, {4, 4, 4}, {3, 3, 6}, {3, 4, 5}, {9, 9, 9}};
  for (const auto& L : degrees) {
    for (const Type type : {Type::float32, Type::float64}) {
      for (const Kind kind : {Kind::even, Kind::cross}) {
        const size_t N = 37;
        const auto d1 = static_cast<size_t>((L[0] + 1) * (L[0] + 1));
        const auto d2 = static_cast<size_t>((L[1] + 1) * (L[1] + 1));
        Tensor x(type, N, d1, false, random_numbers(N * d1, 3));
        Tensor y(type, N, d2, false, random_numbers(N * d2, 4));
        const Tensor first = forward(kind, L[0], L[1], L[2], x, y, Parallel{});
        each_isa([&](const std::string&) {
          const Tensor z = forward(kind, L[0], L[1], L[2], x, y, threads(3));
          for (size_t i = 0; i < N; ++i) CHECK(same(z, i, first, i));
        });
        for (const size_t i : {size_t{0}, size_t{17}, N - 1}) {
          Tensor one_x(type, 1, d1), one_y(type, 1, d2);
          for (size_t a = 0; a < d1; ++a) one_x.set(0, a, x.get(i, a));
          for (size_t a = 0; a < d2; ++a) one_y.set(0, a, y.get(i, a));
          const Tensor z = forward(kind, L[0], L[1], L[2], one_x, one_y, Parallel{});
          CHECK(same(z, 0, first, i));
        }
      }
    }
  }
}

TEST(nan_and_infinity_stay_in_their_sample) {
  each_isa([](const std::string&) {
    for (const int L : {2, 3, 9}) {
      const auto d = static_cast<size_t>((L + 1) * (L + 1));
      Tensor x(Type::float32, 21, d, false, random_numbers(21 * d, 5));
      Tensor y(Type::float32, 21, d, false, random_numbers(21 * d, 6));
      const Tensor before = forward(Kind::even, L, L, L, x, y, Parallel{});
      x.set(3, 0, std::numeric_limits<double>::quiet_NaN());
      y.set(20, d - 1, std::numeric_limits<double>::infinity());
      const Tensor after = forward(Kind::even, L, L, L, x, y, Parallel{});
      for (size_t i = 0; i < 21; ++i) CHECK(same(before, i, after, i) == (i != 3 && i != 20));
    }
  });
}

// Sums over samples have one order, also those of more samples than are added in one go.
TEST(sums_over_many_samples) {
  check_problem({Kind::even, Basis::norm, {1, 1, 1}, 1300, true, true}, Type::float64, false,
                threads(2));
  Problem problem{Kind::even, Basis::integral, {2, 2, 2}, 3000, true, true};
  const Values values = random_values(problem, 1), slopes = random_values(problem, 2);
  Call one(problem, values, slopes, Type::float32, false);
  Call three(problem, values, slopes, Type::float32, false);
  gaunt::product_grad(one.args, Parallel{});
  gaunt::product_grad(three.args, threads(3));
  for (int i = 0; i < kArguments; ++i) CHECK(one.out[i].floats == three.out[i].floats);
}

TEST(no_samples) {
  Problem problem{Kind::even, Basis::integral, {2, 3, 4}, 0, true, true};
  const Values values = random_values(problem, 1), slopes = random_values(problem, 2);
  Call call(problem, values, slopes, Type::float32, false);
  call.out[1].set(0, 0, 7);
  gaunt::product_grad(call.args, Parallel{});
  CHECK_EQ(call.out[1].get(0, 0), 0.0);
}

}  // namespace
}  // namespace nnkernels
