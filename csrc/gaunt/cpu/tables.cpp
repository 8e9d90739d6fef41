#include "gaunt/cpu/tables.h"

#include <map>
#include <memory>
#include <mutex>
#include <tuple>

namespace nnkernels::gaunt {
namespace {

constexpr long double kLongPi = 3.14159265358979323846264338327950288L;

long double scale_at(Scale scale, int64_t l) {
  const long double component = sqrtl(4 * kLongPi);
  const long double norm = component / sqrtl(static_cast<long double>(2 * l + 1));
  switch (scale) {
    case Scale::component: return component;
    case Scale::norm: return norm;
    case Scale::inverse_component: return 1 / component;
    case Scale::inverse_norm: return 1 / norm;
    case Scale::none: break;
  }
  return 1;
}

template <class T>
std::vector<T> make_synthesis(int64_t L, int64_t rings, Flavour flavour, Scale scale) {
  const Rings nodes = gauss_legendre(rings);
  const int64_t pairs = (rings + 1) / 2;
  std::vector<std::vector<long double>> values;
  for (int64_t i = 0; i < pairs; ++i)
    values.push_back(legendre(L, nodes.cosines[i], nodes.sines[i], flavour));
  std::vector<T> table;
  for (int64_t m = 0; m <= L; ++m) {
    const long double factor = m == 0 ? 1 : sqrtl(0.5L);
    for (int64_t i = 0; i < pairs; ++i) {
      for (int64_t l = m; l <= L; ++l) {
        const long double value = values[i][l * (l + 1) / 2 + m];
        table.push_back(static_cast<T>(value * factor * scale_at(scale, l)));
      }
    }
  }
  return table;
}

template <class T>
std::vector<T> make_analysis(int64_t L, int64_t rings, Scale scale) {
  const Rings nodes = gauss_legendre(rings);
  const int64_t pairs = (rings + 1) / 2;
  std::vector<std::vector<long double>> values;
  for (int64_t i = 0; i < pairs; ++i) {
    values.push_back(legendre(L, nodes.cosines[i], nodes.sines[i], Flavour::value));
  }
  std::vector<T> table;
  for (int64_t m = 0; m <= L; ++m) {
    const long double factor = 2 * kLongPi * (m == 0 ? 1 : sqrtl(2));
    for (int64_t parity = 0; parity < 2; ++parity) {
      for (int64_t i = 0; i < pairs; ++i) {
        for (int64_t l = m + parity; l <= L; l += 2) {
          const long double value = values[i][l * (l + 1) / 2 + m] * nodes.weights[i];
          table.push_back(static_cast<T>(value * factor * scale_at(scale, l)));
        }
      }
    }
  }
  return table;
}

// The table of `key`, made by the first caller.
template <class T, class Key, class Make>
const T* cached(const Key& key, Make make) {
  static std::mutex guard;
  static std::map<Key, std::vector<T>> tables;
  const std::lock_guard<std::mutex> lock(guard);
  auto found = tables.find(key);
  if (found == tables.end()) found = tables.emplace(key, make()).first;
  return found->second.data();
}

}  // namespace

Rings gauss_legendre(int64_t count) {
  Rings rings;
  rings.cosines.resize(count);
  rings.sines.resize(count);
  rings.weights.resize(count);
  for (int64_t i = 0; i < (count + 1) / 2; ++i) {
    long double x = cosl(kLongPi * (static_cast<long double>(i) + 0.75L) /
                         (static_cast<long double>(count) + 0.5L));
    const bool equator = 2 * i + 1 == count;
    if (equator) x = 0;
    long double slope = 0;
    // Newton's method from this start converges in a few steps.
    for (int step = 0; step < 8; ++step) {
      long double previous = 1, value = x;
      for (int64_t n = 2; n <= count; ++n) {
        const auto N = static_cast<long double>(n);
        const long double next = ((2 * N - 1) * x * value - (N - 1) * previous) / N;
        previous = value;
        value = next;
      }
      slope = static_cast<long double>(count) * (previous - x * value) / (1 - x * x);
      if (!equator) x -= value / slope;
    }
    rings.cosines[i] = x;
    rings.cosines[count - 1 - i] = -x;
    rings.sines[i] = rings.sines[count - 1 - i] = sqrtl((1 - x) * (1 + x));
    rings.weights[i] = rings.weights[count - 1 - i] = 2 / ((1 - x * x) * slope * slope);
  }
  return rings;
}

std::vector<long double> legendre(int64_t L, long double cosine, long double sine,
                                  Flavour flavour) {
  std::vector<long double> values((L + 1) * (L + 2) / 2);
  const auto at = [&](int64_t l, int64_t m) -> long double& { return values[l * (l + 1) / 2 + m]; };
  at(0, 0) = sqrtl(1 / (4 * kLongPi));
  for (int64_t m = 0; m <= L; ++m) {
    const auto M = static_cast<long double>(m);
    if (m > 0) at(m, m) = at(m - 1, m - 1) * sqrtl((2 * M + 1) / (2 * M)) * sine;
    for (int64_t l = m + 1; l <= L; ++l) {
      const auto l2 = static_cast<long double>(l * l),
                 k2 = static_cast<long double>((l - 1) * (l - 1));
      const long double last = l - 2 >= m ? sqrtl((k2 - M * M) / (4 * k2 - 1)) * at(l - 2, m) : 0;
      at(l, m) = sqrtl((4 * l2 - 1) / (l2 - M * M)) * (cosine * at(l - 1, m) - last);
    }
  }
  if (flavour == Flavour::value) return values;
  std::vector<long double> result(values.size());
  for (int64_t l = 0; l <= L; ++l) {
    for (int64_t m = 0; m <= l; ++m) {
      const auto D = static_cast<long double>(l), M = static_cast<long double>(m);
      long double& value = result[l * (l + 1) / 2 + m];
      if (flavour == Flavour::alpha) {
        value = M * at(l, m) / sine;
      } else {
        const long double below =
            l > m ? sqrtl((2 * D + 1) / (2 * D - 1) * (D * D - M * M)) * at(l - 1, m) : 0;
        value = (D * cosine * at(l, m) - below) / sine;
      }
    }
  }
  return result;
}

Scale scale_of(Basis basis, bool inverse) {
  if (basis == Basis::integral) return Scale::none;
  if (basis == Basis::component) return inverse ? Scale::inverse_component : Scale::component;
  return inverse ? Scale::inverse_norm : Scale::norm;
}

template <class T>
const T* synthesis_table(int64_t L, int64_t rings, Flavour flavour, Scale scale) {
  return cached<T>(std::tuple(L, rings, flavour, scale),
                   [&] { return make_synthesis<T>(L, rings, flavour, scale); });
}
template <class T>
const T* analysis_table(int64_t L, int64_t rings, Scale scale) {
  return cached<T>(std::tuple(L, rings, scale), [&] { return make_analysis<T>(L, rings, scale); });
}

namespace {

template <class T>
const T* direct_table_as(const DirectKernel& kernel, Scale x, Scale y, Scale out) {
  return cached<T>(std::tuple(kernel.groups, x, y, out), [&] {
    std::vector<T> table;
    for (int64_t i = 0; i < kernel.count; ++i) {
      const Group& group = kernel.groups[i];
      table.push_back(static_cast<T>(group.value * scale_at(x, group.l1) * scale_at(y, group.l2) *
                                     scale_at(out, group.l3)));
    }
    return table;
  });
}

}  // namespace

const void* direct_table(bool wide, const DirectKernel& kernel, Scale x, Scale y, Scale out) {
  if (wide) return direct_table_as<double>(kernel, x, y, out);
  return direct_table_as<float>(kernel, x, y, out);
}

template const float* synthesis_table(int64_t, int64_t, Flavour, Scale);
template const double* synthesis_table(int64_t, int64_t, Flavour, Scale);
template const float* analysis_table(int64_t, int64_t, Scale);
template const double* analysis_table(int64_t, int64_t, Scale);

}  // namespace nnkernels::gaunt
