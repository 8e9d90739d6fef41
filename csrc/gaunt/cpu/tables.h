// Tables of the ring convolution: Gauss-Legendre rings and associated Legendre functions. Computed
// once per degree in extended precision, cached for the life of the process.
#pragma once

#include <vector>

#include "gaunt/cpu/engine.h"
#include "gaunt/gaunt_math.h"

namespace nnkernels::gaunt {

// North to south; node and weight integrate polynomials in cos(theta) of degree 2 * count - 1.
struct Rings {
  std::vector<long double> cosines, sines, weights;
};
Rings gauss_legendre(int64_t count);

// N_lm(theta) >= 0 near the pole with Y_l0 = N_l0, Y_lm = sqrt2 N_lm cos(m alpha); and the same
// with d/dtheta or m / sin(theta).
enum class Flavour : int { value, theta, alpha };
// [(l, m) at l * (l + 1) / 2 + m]
std::vector<long double> legendre(int64_t L, long double cosine, long double sine, Flavour flavour);

// Which scale of the basis a table carries: coefficients of x are multiplied by c_l, of z divided.
enum class Scale : int { none, component, norm, inverse_component, inverse_norm };
Scale scale_of(Basis basis, bool inverse);

// A ring of a signal is a_0 + 2 sum_m (a_m cos(m alpha) + b_m sin(m alpha)): products of such sums
// need no factors. Ring pair i is ring i and its mirror; with an odd count the last pair is the
// equator, whose mirror does not count.
//   synthesis: [m][pair][l = m..L]
//   analysis:  [m][parity of l - m][pair][l of that parity]
// T is float or double.
template <class T>
const T* synthesis_table(int64_t L, int64_t rings, Flavour flavour, Scale scale);
template <class T>
const T* analysis_table(int64_t L, int64_t rings, Scale scale);

// The constants of a kernel without rings, for operands x and y and a result of these scales.
const void* direct_table(bool wide, const DirectKernel& kernel, Scale x, Scale y, Scale out);

}  // namespace nnkernels::gaunt
