// The constants of real spherical harmonics, for every backend.
#pragma once

#include <cmath>

#include "common/hd.h"
#include "gaunt/gaunt.h"

namespace nnkernels::gaunt {

constexpr double kPi = 3.14159265358979323846;

// Index of (l, 0) and, at +-m, of (l, +-m).
constexpr int64_t center_of(int64_t l) { return l * l + l; }

// c_l: the harmonics of the basis are c_l times the orthonormal ones.
NNK_HD double basis_scale(Basis basis, int64_t l) {
  if (basis == Basis::integral) return 1.0;
  return std::sqrt(4.0 * kPi / (basis == Basis::norm ? 2.0 * static_cast<double>(l) + 1.0 : 1.0));
}

}  // namespace nnkernels::gaunt
