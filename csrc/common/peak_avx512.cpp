#include "common/peak_loops.h"

#include "common/peak.h"

namespace nnkernels {
PeakRates peak_rates_avx512() { return {Peak<16>::fma(), Peak<16>::add_pair()}; }
}  // namespace nnkernels
