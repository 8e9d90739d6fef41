// Products of many signals, paths and grids, on every instruction set: against the product of two,
// and by the linearity that ties derivatives to results.
#include <cmath>

#include "testing/check.h"
#include "testing/gaunt_reference.h"
#include "testing/machine.h"

namespace nnkernels {
namespace {

constexpr size_t kSamples = 11;
constexpr double kTolerance = 2e-13;

size_t size_of(int64_t L) { return static_cast<size_t>((L + 1) * (L + 1)); }

Tensor signal(int64_t L, int seed) {
  return {Type::float64, kSamples, size_of(L), false, random_numbers(kSamples * size_of(L), seed)};
}

Tensor empty(int64_t L) { return {Type::float64, kSamples, size_of(L), false}; }

Tensor product(Tensor& x, int64_t L1, Tensor& y, int64_t L2, int64_t L3) {
  Tensor z = empty(L3);
  gaunt::ProductArgs args;
  args.samples = samples_of(Type::float64, kSamples);
  args.L1 = L1;
  args.L2 = L2;
  args.L3 = L3;
  args.in.x = x.array();
  args.in.y = y.array();
  args.out.z = z.array();
  gaunt::product(args, Parallel{});
  return z;
}

struct Signals {
  std::vector<int64_t> degrees;
  std::vector<Tensor> of;

  gaunt::NfoldArgs args(int64_t out_degree) {
    gaunt::NfoldArgs args;
    args.samples = samples_of(Type::float64, kSamples);
    args.degrees = degrees;
    args.out_degree = out_degree;
    for (Tensor& tensor : of) args.x.push_back(tensor.array());
    return args;
  }
};

Signals random_signals(const std::vector<int64_t>& degrees, int seed) {
  Signals signals{degrees, {}};
  for (const int64_t L : degrees) signals.of.push_back(signal(L, seed++));
  return signals;
}

Tensor nfold(Signals signals, int64_t out_degree) {
  Tensor z = empty(out_degree);
  auto args = signals.args(out_degree);
  args.z = z.array();
  gaunt::nfold(args, Parallel{});
  return z;
}

Tensor nfold_grad(Signals signals, int64_t out_degree, Tensor& gz, size_t which) {
  Tensor gx = empty(signals.degrees[which]);
  auto args = signals.args(out_degree);
  args.gz = gz.array();
  args.gx.resize(signals.of.size());
  args.gx[which] = gx.array();
  gaunt::nfold_grad(args, Parallel{});
  return gx;
}

Numbers sum(const std::vector<Tensor>& tensors) {
  Numbers total(tensors[0].doubles.size());
  for (const Tensor& tensor : tensors) {
    for (size_t i = 0; i < total.size(); ++i) total[i] += tensor.doubles[i];
  }
  return total;
}

double inner(const Tensor& a, const Tensor& b) {
  double total = 0;
  for (size_t i = 0; i < a.doubles.size(); ++i) total += a.doubles[i] * b.doubles[i];
  return total;
}

const std::vector<std::pair<std::vector<int64_t>, int64_t>> kForms = {
    {{2}, 1},       {{2}, 3},          {{1, 2}, 2},          {{2, 1, 3}, 2},
    {{4, 4, 4}, 4}, {{1, 1, 1, 1}, 1}, {{2, 2, 1, 1, 1}, 3}, {{1, 1, 1, 1, 1, 1}, 6},
    {{5, 1}, 1},    {{1, 0, 2}, 9}};

TEST(nfold_is_a_chain_of_products) {
  each_isa([](const std::string&) {
    for (const auto& [degrees, out_degree] : kForms) {
      Signals signals = random_signals(degrees, 1);
      Tensor chain = signals.of[0];
      int64_t L = degrees[0];
      for (size_t i = 1; i < degrees.size(); ++i) {
        chain = product(chain, L, signals.of[i], degrees[i], L + degrees[i]);
        L += degrees[i];
      }
      const Tensor z = nfold(signals, out_degree);
      Numbers expected;
      for (size_t n = 0; n < kSamples; ++n) {
        for (size_t a = 0; a < z.count; ++a) {
          expected.push_back(a < chain.count ? chain.get(n, a) : 0);
        }
      }
      CHECK(error_of(z, expected) <= kTolerance);
    }
  });
}

TEST(nfold_derivatives) {
  for (const auto& [degrees, out_degree] : kForms) {
    const Signals signals = random_signals(degrees, 1), slopes = random_signals(degrees, 20);
    Tensor gz = signal(out_degree, 30);
    Signals inputs = signals, tangents = slopes;
    auto args = inputs.args(out_degree);
    args.gz = gz.array();
    std::vector<Tensor> second;
    for (size_t i = 0; i < degrees.size(); ++i) second.push_back(empty(degrees[i]));
    Tensor second_z = empty(out_degree);
    for (size_t i = 0; i < degrees.size(); ++i) {
      args.u.push_back(tangents.of[i].array());
      args.gx.push_back(second[i].array());
    }
    args.z = second_z.array();
    gaunt::nfold_grad_grad(args, Parallel{});

    // S is linear in each signal: its value is that of any derivative times its argument.
    const double value = inner(nfold(signals, out_degree), gz);
    std::vector<Tensor> moved;
    for (size_t i = 0; i < degrees.size(); ++i) {
      const Tensor gx = nfold_grad(signals, out_degree, gz, i);
      CHECK(std::abs(inner(gx, signals.of[i]) - value) <= 1e-11 * (1 + std::abs(value)));
      Signals with_slope = signals;
      with_slope.of[i] = slopes.of[i];
      moved.push_back(nfold(with_slope, out_degree));
    }
    CHECK(error_of(second_z, sum(moved)) <= 4 * kTolerance);
    for (size_t i = 0; i < degrees.size(); ++i) {
      std::vector<Tensor> parts = {empty(degrees[i])};
      for (size_t j = 0; j < degrees.size(); ++j) {
        if (j == i) continue;
        Signals with_slope = signals;
        with_slope.of[j] = slopes.of[j];
        parts.push_back(nfold_grad(with_slope, out_degree, gz, i));
      }
      CHECK(error_of(second[i], sum(parts)) <= 4 * kTolerance);
    }
  }
}

TEST(power_is_nfold_of_equal_signals) {
  const int64_t cases[][3] = {{1, 2, 1}, {1, 1, 3}, {2, 2, 2}, {3, 2, 2},
                              {4, 2, 3}, {6, 1, 2}, {2, 1, 5}, {5, 1, 0}};
  each_isa([&](const std::string&) {
    for (const auto& [n, L, out_degree] : cases) {
      Tensor x = signal(L, 1), u = signal(L, 2), gz = signal(out_degree, 3);
      const Signals equal{std::vector<int64_t>(n, L), std::vector<Tensor>(n, x)};
      Tensor z = empty(out_degree), gx = empty(L), second_z = empty(out_degree), second = empty(L);
      gaunt::PowerArgs args;
      args.samples = samples_of(Type::float64, kSamples);
      args.n = n;
      args.degree = L;
      args.out_degree = out_degree;
      args.x = x.array();
      args.z = z.array();
      gaunt::power(args, Parallel{});
      CHECK(error_of(z, nfold(equal, out_degree).doubles) <= kTolerance);

      args.z = {};
      args.gz = gz.array();
      args.gx = gx.array();
      gaunt::power_grad(args, Parallel{});
      const Tensor by_one = nfold_grad(equal, out_degree, gz, 0);
      CHECK(error_of(gx, sum(std::vector<Tensor>(n, by_one))) <= kTolerance);

      args.u = u.array();
      args.gx = second.array();
      args.z = second_z.array();
      gaunt::power_grad_grad(args, Parallel{});
      Signals moved = equal;
      moved.of[n - 1] = u;
      const Tensor z_part = nfold(moved, out_degree);
      CHECK(error_of(second_z, sum(std::vector<Tensor>(n, z_part))) <= kTolerance);
      std::vector<Tensor> parts = {empty(L)};
      if (n > 1) parts.assign(n * (n - 1), nfold_grad(moved, out_degree, gz, 0));
      CHECK(error_of(second, sum(parts)) <= kTolerance);
    }
  });
}

// With weights of 1 the paths of one kind are the product; its derivatives follow by linearity.
TEST(paths) {
  each_isa([](const std::string&) {
    for (const Kind kind : {Kind::even, Kind::cross, Kind::both}) {
      const int L1 = 2, L2 = 3, L3 = 4;
      const auto P = static_cast<size_t>(gaunt::path_count(kind, L1, L2, L3));
      const auto d1 = size_of(L1), d2 = size_of(L2), d3 = size_of(L3);
      Numbers K(d1 * d2 * d3);
      for (const Kind part : {Kind::even, Kind::cross}) {
        if (kind != Kind::both && kind != part) continue;
        const Numbers more = coefficients(part, Basis::norm, L1, L2, L3);
        for (size_t i = 0; i < K.size(); ++i) K[i] += more[i];
      }
      Tensor x = signal(L1, 1), y = signal(L2, 2), gz = signal(L3, 3), z = empty(L3);
      Tensor ones(Type::float64, 1, P, false, Numbers(P, 1.0));
      gaunt::PathsArgs args;
      args.samples = samples_of(Type::float64, kSamples);
      args.kind = kind;
      args.basis = Basis::norm;
      args.L1 = L1;
      args.L2 = L2;
      args.L3 = L3;
      args.in = {x.array(), y.array(), {}, ones.array()};
      args.out.z = z.array();
      gaunt::paths(args, Parallel{});
      Numbers expected(kSamples * d3);
      for (size_t n = 0; n < kSamples; ++n) {
        for (size_t a = 0; a < d1; ++a) {
          for (size_t b = 0; b < d2; ++b) {
            for (size_t c = 0; c < d3; ++c) {
              expected[n * d3 + c] += K[(a * d2 + b) * d3 + c] * x.get(n, a) * y.get(n, b);
            }
          }
        }
      }
      CHECK(error_of(z, expected) <= (kind == Kind::even ? kTolerance : 1e-8));

      Tensor w(Type::float64, kSamples, P, false, random_numbers(kSamples * P, 4));
      args.in.w = w.array();
      gaunt::paths(args, Parallel{});
      Tensor gx = empty(L1), gy = empty(L2), gw(Type::float64, kSamples, P);
      args.in.z = gz.array();
      args.out = {gx.array(), gy.array(), {}, gw.array()};
      gaunt::paths_grad(args, Parallel{});
      const double value = inner(z, gz);
      CHECK(std::abs(inner(gx, x) - value) <= 1e-11 * (1 + std::abs(value)));
      CHECK(std::abs(inner(gy, y) - value) <= 1e-11 * (1 + std::abs(value)));
      CHECK(std::abs(inner(gw, w) - value) <= 1e-11 * (1 + std::abs(value)));
      // Along its own arguments the derivative by gz, of degree 3 in them, is 3 times itself.
      Tensor second_z = empty(L3);
      args.tangent = {x.array(), y.array(), {}, w.array()};
      args.out = {{}, {}, second_z.array(), {}};
      gaunt::paths_grad_grad(args, Parallel{});
      CHECK(error_of(second_z, sum({z, z, z})) <= kTolerance);
    }
  });
}

// The bracket with a constant has none.
TEST(no_paths) {
  each_isa([](const std::string&) {
    CHECK_EQ(gaunt::path_count(Kind::cross, 0, 1, 1), 0);
    Tensor x(Type::float64, 40, 1, false, random_numbers(40, 1));
    Tensor y(Type::float64, 40, 4, false, random_numbers(160, 2));
    Tensor z(Type::float64, 40, 4, false, random_numbers(160, 3)), w(Type::float64, 1, 1);
    gaunt::PathsArgs args;
    args.samples = samples_of(Type::float64, 40);
    args.kind = Kind::cross;
    args.L2 = args.L3 = 1;
    args.in = {x.array(), y.array(), {}, w.array()};
    args.out.z = z.array();
    gaunt::paths(args, Parallel{});
    CHECK(error_of(z, Numbers(160)) == 0);
  });
}

TEST(grids) {
  each_isa([](const std::string&) {
    const int L = 3;
    const size_t points = 7;
    Numbers xyz, weights, Y;
    for (size_t p = 0; p < points; ++p) {
      // The pole is among them.
      const double theta = 0.45 * static_cast<double>(p), alpha = 2.0 * static_cast<double>(p);
      xyz.insert(xyz.end(), {std::sin(theta) * std::sin(alpha), std::cos(theta),
                             std::sin(theta) * std::cos(alpha)});
      weights.push_back(1 + static_cast<double>(p));
      for (int l = 0; l <= L; ++l) {
        for (int m = -l; m <= l; ++m) Y.push_back(harmonic(l, m, theta, alpha));
      }
    }
    Tensor x = signal(L, 1), f(Type::float64, kSamples, points), back = empty(L);
    gaunt::GridArgs args;
    args.samples = samples_of(Type::float64, kSamples);
    args.L = L;
    args.points = points;
    args.xyz = xyz.data();
    args.in = x.array();
    args.out = f.array();
    gaunt::to_grid(args, Parallel{});
    args.weights = weights.data();
    args.in = f.array();
    args.out = back.array();
    gaunt::from_grid(args, Parallel{});
    Numbers values(kSamples * points), projection(kSamples * x.count);
    for (size_t n = 0; n < kSamples; ++n) {
      for (size_t p = 0; p < points; ++p) {
        double& value = values[n * points + p];
        for (size_t a = 0; a < x.count; ++a) value += Y[p * x.count + a] * x.get(n, a);
        for (size_t a = 0; a < x.count; ++a) {
          projection[n * x.count + a] += weights[p] * Y[p * x.count + a] * value;
        }
      }
    }
    CHECK(error_of(f, values) <= kTolerance);
    CHECK(error_of(back, projection) <= kTolerance);
  });
}

}  // namespace
}  // namespace nnkernels
