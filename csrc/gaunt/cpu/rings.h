// The three steps of the ring convolution for degrees known at run time. Included by the file that
// chose the vectors.
#pragma once

#include "gaunt/cpu/degree.h"
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

  // With a_-n = a_n, b_-n = -b_n a product of rings is the plain convolution of a_m - i b_m over m
  // = 0, 1, -1, ..., a, -a.
  static void convolve(const ConvArgs& args) {
    constexpr int kOutputs = 4;
    const auto& [a, b, c, f_data, g_data, h_data, rings, store] = args;
    // g extended by zeros: `reach` covers what any of kOutputs neighbours asks for.
    const int64_t reach = a + c + kOutputs;
    constexpr int64_t kReach = 2 * kMaxDegreeSum + kOutputs;
    alignas(64) T extended[2][(2 * kReach + 1) * V::lanes];
    T* const cosines = extended[0] + kReach * V::lanes;
    T* const sines = extended[1] + kReach * V::lanes;
    const Value zero = V::set(0);
    for (int64_t ring = 0; ring < rings; ++ring) {
      const T* f = static_cast<const T*>(f_data) + ring * ring_size(a) * V::lanes;
      const T* g = static_cast<const T*>(g_data) + ring * ring_size(b) * V::lanes;
      T* h = static_cast<T*>(h_data) + ring * ring_size(c) * V::lanes;
      for (int64_t n = -reach; n <= reach; ++n) {
        const int64_t k = n < 0 ? -n : n;
        const Value sine = k == 0 || k > b ? zero : V::load(g + (b + k) * V::lanes);
        V::store(cosines + n * V::lanes, k > b ? zero : V::load(g + k * V::lanes));
        V::store(sines + n * V::lanes, n < 0 ? V::sub(zero, sine) : sine);
      }
      put<V>(store, mean(f, a, g, b), h);
      for (int64_t k = 1; k <= c; k += kOutputs) {
        Value real[kOutputs], imaginary[kOutputs];
        const Value first = V::load(f);
        for (int i = 0; i < kOutputs; ++i) {
          real[i] = V::mul(first, V::load(cosines + (k + i) * V::lanes));
          imaginary[i] = V::mul(first, V::load(sines + (k + i) * V::lanes));
        }
        for (int64_t m = 1; m <= a; ++m) {
          const Value p = V::load(f + m * V::lanes), q = V::load(f + (a + m) * V::lanes);
          add_products(p, q, cosines + (k - m) * V::lanes, sines + (k - m) * V::lanes, real,
                       imaginary);
          add_products(p, V::sub(zero, q), cosines + (k + m) * V::lanes, sines + (k + m) * V::lanes,
                       real, imaginary);
        }
        for (int i = 0; i < kOutputs && k + i <= c; ++i) {
          put<V>(store, real[i], h + (k + i) * V::lanes);
          put<V>(store, imaginary[i], h + (c + k + i) * V::lanes);
        }
      }
    }
  }

  // Frequency 0 of a product.
  static NNK_VEC Value mean(const T* f, int64_t a, const T* g, int64_t b) {
    Value twice = V::set(0);
    for (int64_t m = 1; m <= a && m <= b; ++m) {
      twice = V::fma(V::load(f + m * V::lanes), V::load(g + m * V::lanes), twice);
      twice = V::fma(V::load(f + (a + m) * V::lanes), V::load(g + (b + m) * V::lanes), twice);
    }
    return V::fma(V::set(2), twice, V::mul(V::load(f), V::load(g)));
  }

  // (p - i q) (r - i s) for neighbouring frequencies.
  template <int outputs>
  static NNK_VEC void add_products(Value p, Value q, const T* r, const T* s, Value (&real)[outputs],
                                   Value (&imaginary)[outputs]) {
    for (int i = 0; i < outputs; ++i) {
      const Value cosine = V::load(r + i * V::lanes), sine = V::load(s + i * V::lanes);
      real[i] = V::fnma(q, sine, V::fma(p, cosine, real[i]));
      imaginary[i] = V::fma(q, cosine, V::fma(p, sine, imaginary[i]));
    }
  }
};

}  // namespace
}  // namespace nnkernels::gaunt
