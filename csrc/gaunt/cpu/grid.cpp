#include <cmath>

#include "gaunt/cpu/program.h"

namespace nnkernels::gaunt {
namespace {

// Orthonormal harmonics at the points: [points, (L+1)^2], or its transpose, times the weights.
template <class T>
std::vector<T> harmonics(const GridArgs& args, bool transposed) {
  const int64_t L = args.L, count = coefficients_of(L);
  std::vector<T> matrix(static_cast<size_t>(args.points * count));
  for (int64_t p = 0; p < args.points; ++p) {
    const long double x = args.xyz[3 * p], y = args.xyz[3 * p + 1], z = args.xyz[3 * p + 2];
    const long double sine = hypotl(x, z), radius = hypotl(sine, y);
    const std::vector<long double> N = legendre(L, y / radius, sine / radius, Flavour::value);
    // At the poles only m = 0 counts.
    const long double cos1 = sine > 0 ? z / sine : 1, sin1 = sine > 0 ? x / sine : 0;
    long double cosine = 1, sines = 0;
    const long double weight = args.weights == nullptr ? 1 : args.weights[p];
    for (int64_t m = 0; m <= L; ++m) {
      const long double factor = m == 0 ? weight : weight * sqrtl(2);
      for (int64_t l = m; l <= L; ++l) {
        const long double value = factor * N[l * (l + 1) / 2 + m];
        const auto at = [&](int64_t a) -> T& {
          return matrix[transposed ? a * args.points + p : p * count + a];
        };
        if (m > 0) at(center_of(l) - m) = static_cast<T>(value * sines);
        at(center_of(l) + m) = static_cast<T>(value * cosine);
      }
      const long double next = cosine * cos1 - sines * sin1;
      sines = sines * cos1 + cosine * sin1;
      cosine = next;
    }
  }
  return matrix;
}

template <class T>
void apply(const GridArgs& args, bool transposed, const Parallel& parallel) {
  const std::vector<T> matrix = harmonics<T>(args, transposed);
  const int64_t count = coefficients_of(args.L);
  const int64_t rows = transposed ? count : args.points, columns = transposed ? args.points : count;
  Program program(args.samples.type, 0);
  const int x = program.load(args.in, columns);
  program.store(args.out, program.transform(rows, columns, matrix.data(), x), rows);
  program.run(args.samples, parallel);
}

void apply(const GridArgs& args, bool transposed, const Parallel& parallel) {
  if (args.samples.type == Type::float64) {
    apply<double>(args, transposed, parallel);
  } else {
    apply<float>(args, transposed, parallel);
  }
}

}  // namespace

void to_grid(const GridArgs& args, const Parallel& parallel) { apply(args, false, parallel); }
void from_grid(const GridArgs& args, const Parallel& parallel) { apply(args, true, parallel); }

}  // namespace nnkernels::gaunt
