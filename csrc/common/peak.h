// What one core can do at most, measured: the ceilings that the benches hold kernels against.
#pragma once

#include "common/isa.h"

namespace nnkernels {

// Per second of one thread, from registers.
struct PeakRates {
  double fma = 0;  // fp32 multiply-adds
  // Pairs of a 32-bit integer add and an fp32 add of its result: one L-Mul product and its sum.
  double add_pair = 0;
};

PeakRates peak_rates_scalar();
PeakRates peak_rates_avx2();
PeakRates peak_rates_avx512();

inline PeakRates peak_rates(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::avx512) return peak_rates_avx512();
  if (isa == Isa::avx2) return peak_rates_avx2();
#endif
  (void)isa;
  return peak_rates_scalar();
}

}  // namespace nnkernels
