// Products with a weight for each path (l1, l2, l3): sums over the non-zero coefficients.
#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "gaunt/cpu/program.h"

namespace nnkernels::gaunt {
namespace {

bool is_path(Kind kind, int64_t l1, int64_t l2, int64_t l3) {
  if (l3 < std::abs(l1 - l2) || l3 > l1 + l2) return false;
  const bool odd = (l1 + l2 + l3) % 2 != 0;
  if (odd && l1 * l2 * l3 == 0) return false;
  return kind == Kind::both || odd == (kind == Kind::cross);
}

// The integral of three functions cos(m alpha) (m >= 0) or sin(-m alpha), times 2 / pi.
int64_t circle(int64_t m1, int64_t m2, int64_t m3) {
  if ((m1 < 0) + (m2 < 0) + (m3 < 0) == 1 || (m1 < 0 && m2 < 0 && m3 < 0)) return 0;
  const int64_t p = std::abs(m1), q = std::abs(m2), r = std::abs(m3);
  // sin a sin b is half of cos(a - b) - cos(a + b).
  const int64_t qs = m1 < 0 && m2 < 0 ? -1 : 1, rs = m1 < 0 && m3 < 0 ? -1 : 1;
  const int64_t qr = m2 < 0 && m3 < 0 ? -1 : 1;
  // Over the signs of q and r in cos(p +- q +- r).
  return (p + q + r == 0) * (qs * rs * qr) + (p - q - r == 0) * qr + (p + q - r == 0) * qs +
         (p - q + r == 0) * rs;
}

// The integrals over theta that the coefficients are made of.
class Integrals {
 public:
  explicit Integrals(int64_t L) : rings_(gauss_legendre(3 * L / 2 + 1)) {
    for (const Flavour flavour : {Flavour::value, Flavour::theta, Flavour::alpha}) {
      for (size_t i = 0; i < rings_.weights.size(); ++i) {
        values_[static_cast<int>(flavour)].push_back(
            legendre(L, rings_.cosines[i], rings_.sines[i], flavour));
      }
    }
  }

  long double even(int64_t l1, int64_t m1, int64_t l2, int64_t m2, int64_t l3, int64_t m3) const {
    const int64_t angle = circle(m1, m2, m3);
    if (angle == 0) return 0;
    return factor(m1, m2, m3) * static_cast<long double>(angle) *
           sum(Flavour::value, l1, m1, Flavour::value, l2, m2, l3, m3);
  }

  // d/dalpha of cos(m alpha) is -m sin(m alpha), of sin(m alpha) m cos(m alpha).
  long double cross(int64_t l1, int64_t m1, int64_t l2, int64_t m2, int64_t l3, int64_t m3) const {
    const int64_t first = m2 == 0 ? 0 : (m2 > 0 ? -1 : 1) * circle(m1, -m2, m3);
    const int64_t second = m1 == 0 ? 0 : (m1 > 0 ? -1 : 1) * circle(-m1, m2, m3);
    long double result = 0;
    if (first != 0) {
      result += static_cast<long double>(first) *
                sum(Flavour::theta, l1, m1, Flavour::alpha, l2, m2, l3, m3);
    }
    if (second != 0) {
      result -= static_cast<long double>(second) *
                sum(Flavour::alpha, l1, m1, Flavour::theta, l2, m2, l3, m3);
    }
    return factor(m1, m2, m3) * result;
  }

 private:
  static long double factor(int64_t m1, int64_t m2, int64_t m3) {
    const int orders = (m1 != 0) + (m2 != 0) + (m3 != 0);
    return powl(2, 0.5L * static_cast<long double>(orders)) * static_cast<long double>(kPi) / 2;
  }

  long double at(Flavour flavour, size_t ring, int64_t l, int64_t m) const {
    return values_[static_cast<int>(flavour)][ring][l * (l + 1) / 2 + std::abs(m)];
  }

  long double sum(Flavour f1, int64_t l1, int64_t m1, Flavour f2, int64_t l2, int64_t m2,
                  int64_t l3, int64_t m3) const {
    long double result = 0;
    for (size_t i = 0; i < rings_.weights.size(); ++i) {
      result +=
          rings_.weights[i] * at(f1, i, l1, m1) * at(f2, i, l2, m2) * at(Flavour::value, i, l3, m3);
    }
    return result;
  }

  Rings rings_;
  std::vector<std::vector<long double>> values_[3];
};

// The non-zero coefficients, and the same for each of the derivatives: by which index they sum.
struct Terms {
  std::vector<Term> by_z, by_x, by_y, by_w;
};

Terms make_terms(const PathsArgs& args) {
  const Integrals integrals(std::max({args.L1, args.L2, args.L3}));
  Terms terms;
  int32_t path = 0;
  for (int64_t l1 = 0; l1 <= args.L1; ++l1) {
    for (int64_t l2 = 0; l2 <= args.L2; ++l2) {
      for (int64_t l3 = 0; l3 <= args.L3; ++l3) {
        if (!is_path(args.kind, l1, l2, l3)) continue;
        const bool cross = (l1 + l2 + l3) % 2 != 0;
        const double scale =
            basis_scale(args.basis, l1) * basis_scale(args.basis, l2) / basis_scale(args.basis, l3);
        for (int64_t m1 = -l1; m1 <= l1; ++m1) {
          for (int64_t m2 = -l2; m2 <= l2; ++m2) {
            const int64_t p = std::abs(m1), q = std::abs(m2);
            for (int64_t m3 = -l3; m3 <= l3; ++m3) {
              if (std::abs(m3) != p + q && std::abs(m3) != std::abs(p - q)) continue;
              const long double value = cross ? integrals.cross(l1, m1, l2, m2, l3, m3)
                                              : integrals.even(l1, m1, l2, m2, l3, m3);
              if (fabsl(value) < 1e-15L) continue;
              const auto a = static_cast<int32_t>(center_of(l1) + m1),
                         b = static_cast<int32_t>(center_of(l2) + m2),
                         c = static_cast<int32_t>(center_of(l3) + m3);
              const double number = scale * static_cast<double>(value);
              terms.by_z.push_back({a, b, c, path, number});
              terms.by_x.push_back({b, c, a, path, number});
              terms.by_y.push_back({a, c, b, path, number});
              terms.by_w.push_back({a, b, path, c, number});
            }
          }
        }
        ++path;
      }
    }
  }
  return terms;
}

const Terms& terms_of(const PathsArgs& args) {
  using Key = std::tuple<Kind, Basis, int64_t, int64_t, int64_t>;
  static std::mutex guard;
  static std::map<Key, std::unique_ptr<Terms>> cache;
  const std::lock_guard<std::mutex> lock(guard);
  auto& terms = cache[{args.kind, args.basis, args.L1, args.L2, args.L3}];
  if (terms == nullptr) terms = std::make_unique<Terms>(make_terms(args));
  return *terms;
}

struct Buffers {
  int x, y, z, w;
};

void derivatives(const PathsArgs& args, bool second, const Parallel& parallel) {
  Program program(args.samples.type, 0);
  const Terms& terms = terms_of(args);
  const int64_t P = path_count(args.kind, args.L1, args.L2, args.L3);
  const int64_t x_count = coefficients_of(args.L1), y_count = coefficients_of(args.L2),
                z_count = coefficients_of(args.L3);
  const auto load = [&](const Quadrilinear& q) {
    return Buffers{program.load(q.x, x_count), program.load(q.y, y_count),
                   program.load(q.z, z_count), program.load(q.w, P)};
  };
  const Buffers v = load(args.in);
  const Buffers u = second ? load(args.tangent) : Buffers{-1, -1, -1, -1};
  // The derivative of a trilinear form at (f, g, h), or its tangent.
  const auto store = [&](const Array& array, const std::vector<Term>& list, int Buffers::* f,
                         int Buffers::* g, int Buffers::* h, int64_t count) {
    if (!array) return;
    int out = -1;
    if (!second) {
      out = program.contract(list, v.*f, v.*g, v.*h, count);
    } else {
      out = program.contract(list, u.*f, v.*g, v.*h, count);
      out = program.contract(list, v.*f, u.*g, v.*h, count, out);
      out = program.contract(list, v.*f, v.*g, u.*h, count, out);
    }
    program.store(array, out, count);
  };
  store(args.out.z, terms.by_z, &Buffers::x, &Buffers::y, &Buffers::w, z_count);
  store(args.out.x, terms.by_x, &Buffers::y, &Buffers::z, &Buffers::w, x_count);
  store(args.out.y, terms.by_y, &Buffers::x, &Buffers::z, &Buffers::w, y_count);
  store(args.out.w, terms.by_w, &Buffers::x, &Buffers::y, &Buffers::z, P);
  program.run(args.samples, parallel);
}

}  // namespace

int64_t path_count(Kind kind, int64_t L1, int64_t L2, int64_t L3) {
  int64_t count = 0;
  for (int64_t l1 = 0; l1 <= L1; ++l1) {
    for (int64_t l2 = 0; l2 <= L2; ++l2) {
      for (int64_t l3 = 0; l3 <= L3; ++l3) count += is_path(kind, l1, l2, l3);
    }
  }
  return count;
}

void paths(const PathsArgs& args, const Parallel& parallel) { derivatives(args, false, parallel); }
void paths_grad(const PathsArgs& args, const Parallel& parallel) {
  derivatives(args, false, parallel);
}
void paths_grad_grad(const PathsArgs& args, const Parallel& parallel) {
  derivatives(args, true, parallel);
}

}  // namespace nnkernels::gaunt
