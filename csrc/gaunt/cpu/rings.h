// The three steps of the ring convolution for degrees known at run time. Included by the file that
// chose the vectors.
#pragma once

#include "gaunt/cpu/engine.h"
#include "gaunt/gaunt_math.h"

namespace nnkernels::gaunt {
namespace {

template <class V>
struct AnyRings {
  using T = typename V::T;
  using Value = typename V::Value;

  // sum over l = first, first + 2, ... <= L of table[l] * x[l, m].
  static NNK_VEC Value sum_degrees(const T* table, const T* x, int64_t first, int64_t L,
                                   int64_t m) {
    Value sum = V::mul(V::set(table[first]), V::load(x + (center_of(first) + m) * V::lanes));
    for (int64_t l = first + 2; l <= L; l += 2) {
      sum = V::fma(V::set(table[l]), V::load(x + (center_of(l) + m) * V::lanes), sum);
    }
    return sum;
  }

  static void synthesis(int64_t L, const PairRange& range, const void* table, bool turn,
                        const void* x, void* grid) {
    const int64_t ring = ring_size(L) * V::lanes;
    const T* from = static_cast<const T*>(x);
    const T* row = static_cast<const T*>(table);
    for (int64_t m = 0; m <= L; ++m) {
      const int64_t width = L - m + 1;
      for (int sine = 0; sine <= (m > 0); ++sine) {
        // d/dalpha (a cos + b sin) = m b cos - m a sin; the m is in the table.
        const int64_t slot = (turn != static_cast<bool>(sine) ? L + m : m) * V::lanes;
        const bool negate = turn && sine == 0 && m > 0;
        const int64_t order = sine ? -m : m;
        for (int64_t i = 0; i < range.count; ++i) {
          const T* values = row + (range.first + i) * width - m;
          T* north = static_cast<T*>(grid) + 2 * i * ring + (m > 0 ? slot : 0);
          const Value even = sum_degrees(values, from, m, L, order);
          Value sum = even, difference = even;
          if (m < L) {
            const Value odd = sum_degrees(values, from, m + 1, L, order);
            sum = V::add(even, odd);
            difference = V::sub(even, odd);
          }
          if (negate) {
            sum = V::sub(V::set(0), sum);
            difference = V::sub(V::set(0), difference);
          }
          V::store(north, sum);
          V::store(north + ring, difference);
        }
      }
      row += range.pairs * width;
    }
  }

  static void analysis(int64_t L, const PairRange& range, const void* table, double mirror,
                       const void* grid, void* x) {
    const int64_t ring = ring_size(L) * V::lanes;
    const Value sign = V::set(static_cast<T>(mirror));
    T* to = static_cast<T*>(x);
    const T* row = static_cast<const T*>(table);
    for (int64_t m = 0; m <= L; ++m) {
      for (int64_t parity = 0; parity < 2; ++parity) {
        const int64_t width = (L - m - parity) / 2 + 1;
        if (m + parity > L) continue;
        for (int sine = 0; sine <= (m > 0); ++sine) {
          for (int64_t k = 0; k < width; ++k) {
            const int64_t l = m + parity + 2 * k;
            T* at = to + (center_of(l) + (sine ? -m : m)) * V::lanes;
            Value sum = range.first == 0 ? V::set(0) : V::load(at);
            for (int64_t i = 0; i < range.count; ++i) {
              const T* north =
                  static_cast<const T*>(grid) + 2 * i * ring + (sine ? L + m : m) * V::lanes;
              const Value n = V::load(north), s = V::load(north + ring);
              const Value folded = parity == 0 ? V::fma(sign, s, n) : V::fnma(sign, s, n);
              sum = V::fma(V::set(row[(range.first + i) * width + k]), folded, sum);
            }
            V::store(at, sum);
          }
        }
        row += range.pairs * width;
      }
    }
  }

  // With b_-n = -b_n, a_-n = a_n a product of rings is the plain convolution of a_m - i b_m over
  // m = -a..a.
  static void convolve(const ConvArgs& args) {
    constexpr int kOutputs = 4;
    const auto& [a, b, c, f_data, g_data, h_data, rings, store] = args;
    // g extended to [-b - reach, b + reach] by zeros: kOutputs neighbours read beyond its ends.
    constexpr int64_t reach = kOutputs;
    alignas(64) T extended[2][(2 * (kMaxDegreeSum + reach) + 1) * V::lanes];
    T* const cosines = extended[0] + (b + reach) * V::lanes;
    T* const sines = extended[1] + (b + reach) * V::lanes;
    for (int64_t ring = 0; ring < rings; ++ring) {
      const T* f = static_cast<const T*>(f_data) + ring * ring_size(a) * V::lanes;
      const T* g = static_cast<const T*>(g_data) + ring * ring_size(b) * V::lanes;
      T* h = static_cast<T*>(h_data) + ring * ring_size(c) * V::lanes;
      for (int64_t n = -b - reach; n <= b + reach; ++n) {
        const int64_t k = n < 0 ? -n : n;
        const Value zero = V::set(0);
        const Value sine = k == 0 || k > b ? zero : V::load(g + (b + k) * V::lanes);
        V::store(cosines + n * V::lanes, k > b ? zero : V::load(g + k * V::lanes));
        V::store(sines + n * V::lanes, n < 0 ? V::sub(zero, sine) : sine);
      }
      for (int64_t k = 0; k <= c; k += kOutputs) {
        Value real[kOutputs], imaginary[kOutputs];
        for (int i = 0; i < kOutputs; ++i) real[i] = imaginary[i] = V::set(0);
        const int64_t first = k - b > -a ? k - b : -a;
        const int64_t last = k + kOutputs - 1 + b < a ? k + kOutputs - 1 + b : a;
        for (int64_t m = first; m <= last; ++m) {
          const Value p = V::load(f + (m < 0 ? -m : m) * V::lanes);
          Value q = V::set(0);
          if (m != 0) q = V::load(f + (a + (m < 0 ? -m : m)) * V::lanes);
          if (m < 0) q = V::sub(V::set(0), q);
          for (int i = 0; i < kOutputs; ++i) {
            const Value r = V::load(cosines + (k + i - m) * V::lanes);
            const Value s = V::load(sines + (k + i - m) * V::lanes);
            real[i] = V::fnma(q, s, V::fma(p, r, real[i]));
            imaginary[i] = V::fma(q, r, V::fma(p, s, imaginary[i]));
          }
        }
        for (int i = 0; i < kOutputs && k + i <= c; ++i) {
          put(store, real[i], h + (k + i) * V::lanes);
          if (k + i > 0) put(store, imaginary[i], h + (c + k + i) * V::lanes);
        }
      }
    }
  }

  static NNK_VEC void put(Store store, Value x, T* at) {
    if (store == Store::add) x = V::add(V::load(at), x);
    if (store == Store::subtract) x = V::sub(V::load(at), x);
    V::store(at, x);
  }
};

}  // namespace
}  // namespace nnkernels::gaunt
