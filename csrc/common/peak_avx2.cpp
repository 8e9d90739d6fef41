#include "common/peak_loops.h"

#include "common/peak.h"

namespace nnkernels {
PeakRates peak_rates_avx2() { return {Peak<8>::fma(), Peak<8>::add_pair()}; }
}  // namespace nnkernels
