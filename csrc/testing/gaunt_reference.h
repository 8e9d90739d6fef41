// Products on the sphere from plain sums over a grid, in float64, sharing nothing with the kernels.
#pragma once

#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "gaunt/gaunt.h"

namespace nnkernels {
namespace {

using gaunt::Array;
using gaunt::Basis;
using gaunt::Kind;
using gaunt::Samples;
using gaunt::Type;
using Numbers = std::vector<double>;

// Y_{l,m} at polar angle theta and azimuth alpha.
[[maybe_unused]] double harmonic(int l, int m, double theta, double alpha) {
  const int order = std::abs(m);
  // The standard library's has the sign (-1)^m.
  const double value = (order % 2 ? -1 : 1) * std::sph_legendre(l, order, theta);
  if (m == 0) return value;
  return std::sqrt(2.0) * value * (m > 0 ? std::cos(order * alpha) : std::sin(order * alpha));
}

[[maybe_unused]] double basis_constant(Basis basis, int l) {
  const double pi = std::acos(-1.0);
  if (basis == Basis::integral) return 1;
  return std::sqrt(4 * pi / (basis == Basis::norm ? 2 * l + 1 : 1));
}

// K_abc of a kind and basis, [d1, d2, d3]: integrals by the trapezoidal rule in alpha and a fine
// Clenshaw-Curtis-like sum in theta; derivatives by differences of fourth order.
[[maybe_unused]] Numbers coefficients(Kind kind, Basis basis, int L1, int L2, int L3) {
  const int d1 = (L1 + 1) * (L1 + 1), d2 = (L2 + 1) * (L2 + 1), d3 = (L3 + 1) * (L3 + 1);
  const int turns = L1 + L2 + L3 + 2, nodes = 2 * (L1 + L2 + L3) + 8;
  const double pi = std::acos(-1.0), h = 1e-3;
  Numbers K(static_cast<size_t>(d1) * d2 * d3, 0.0);
  const auto all = [](int L, double theta, double alpha) {
    Numbers values;
    for (int l = 0; l <= L; ++l) {
      for (int m = -l; m <= l; ++m) values.push_back(harmonic(l, m, theta, alpha));
    }
    return values;
  };
  const auto slope = [&](int L, double theta, double alpha, double dt, double da) {
    const Numbers a = all(L, theta + dt, alpha + da), b = all(L, theta - dt, alpha - da),
                  c = all(L, theta + 2 * dt, alpha + 2 * da),
                  d = all(L, theta - 2 * dt, alpha - 2 * da);
    Numbers values;
    for (size_t i = 0; i < a.size(); ++i) {
      values.push_back((8 * (a[i] - b[i]) - (c[i] - d[i])) / (12 * h));
    }
    return values;
  };
  for (int i = 0; i < nodes; ++i) {
    // Fejer's first rule: exact for polynomials of degree nodes - 1 in cos(theta).
    const double theta = pi * (i + 0.5) / nodes;
    double weight = 1;
    for (int k = 1; k <= nodes / 2; ++k) weight -= 2 * std::cos(2 * k * theta) / (4.0 * k * k - 1);
    weight *= 2.0 / nodes * 2 * pi / turns;
    for (int j = 0; j < turns; ++j) {
      const double alpha = 2 * pi * j / turns;
      const Numbers z = all(L3, theta, alpha);
      Numbers pairs(static_cast<size_t>(d1) * d2);
      if (kind == Kind::even) {
        const Numbers x = all(L1, theta, alpha), y = all(L2, theta, alpha);
        for (int a = 0; a < d1; ++a) {
          for (int b = 0; b < d2; ++b) pairs[a * d2 + b] = x[a] * y[b];
        }
      } else {
        const Numbers xt = slope(L1, theta, alpha, h, 0), xa = slope(L1, theta, alpha, 0, h),
                      yt = slope(L2, theta, alpha, h, 0), ya = slope(L2, theta, alpha, 0, h);
        for (int a = 0; a < d1; ++a) {
          for (int b = 0; b < d2; ++b) {
            pairs[a * d2 + b] = (xt[a] * ya[b] - xa[a] * yt[b]) / std::sin(theta);
          }
        }
      }
      for (size_t p = 0; p < pairs.size(); ++p) {
        for (int c = 0; c < d3; ++c) K[p * d3 + c] += weight * pairs[p] * z[c];
      }
    }
  }
  const auto degree = [](int a) { return static_cast<int>(std::sqrt(a + 0.5)); };
  for (int a = 0; a < d1; ++a) {
    for (int b = 0; b < d2; ++b) {
      for (int c = 0; c < d3; ++c) {
        K[(a * d2 + b) * d3 + c] *= basis_constant(basis, degree(a)) *
                                    basis_constant(basis, degree(b)) /
                                    basis_constant(basis, degree(c));
      }
    }
  }
  return K;
}

[[maybe_unused]] Numbers random_numbers(size_t count, int seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  Numbers values(count);
  // float32 numbers, so that every type but the 16-bit ones holds them.
  for (double& value : values) value = static_cast<float>(normal(generator));
  return values;
}

// A tensor of samples: [samples, count], or [count, samples] where `inside`.
struct Tensor {
  Type type = Type::float64;
  size_t samples = 0, count = 0;
  bool inside = false;
  std::vector<float> floats;
  Numbers doubles;

  Tensor(Type type, size_t samples, size_t count, bool inside = false)
      : type(type), samples(samples), count(count), inside(inside) {
    (type == Type::float64 ? doubles.resize(samples * count) : floats.resize(samples * count));
  }
  Tensor(Type type, size_t samples, size_t count, bool inside, const Numbers& values)
      : Tensor(type, samples, count, inside) {
    for (size_t i = 0; i < samples; ++i) {
      for (size_t a = 0; a < count; ++a) set(i, a, values[i * count + a]);
    }
  }

  size_t at(size_t i, size_t a) const { return inside ? a * samples + i : i * count + a; }
  double get(size_t i, size_t a) const {
    return type == Type::float64 ? doubles[at(i, a)] : floats[at(i, a)];
  }
  void set(size_t i, size_t a, double value) {
    if (type == Type::float64) {
      doubles[at(i, a)] = value;
    } else {
      floats[at(i, a)] = static_cast<float>(value);
    }
  }
  // The operand of a call; a single sample serves all.
  Array array() {
    Array array;
    array.data = type == Type::float64 ? static_cast<void*>(doubles.data()) : floats.data();
    array.step = static_cast<int64_t>(inside ? samples : 1);
    array.strides[0] = samples == 1 ? 0 : static_cast<int64_t>(inside ? 1 : count);
    return array;
  }
};

[[maybe_unused]] Samples samples_of(Type type, size_t count) {
  Samples samples;
  samples.type = type;
  samples.ndim = 1;
  samples.sizes[0] = static_cast<int64_t>(count);
  return samples;
}

// Relative to the largest: 0 where all agree.
[[maybe_unused]] double error_of(const Tensor& tensor, const Numbers& expected) {
  double worst = 0, largest = 1e-3;
  for (size_t i = 0; i < tensor.samples; ++i) {
    for (size_t a = 0; a < tensor.count; ++a) {
      const double value = expected[i * tensor.count + a], error = tensor.get(i, a) - value;
      largest = std::max(largest, std::abs(value));
      // Not std::max, which drops NaN.
      if (!(std::abs(error) <= worst)) worst = std::abs(error);
    }
  }
  return worst / largest;
}

}  // namespace
}  // namespace nnkernels
