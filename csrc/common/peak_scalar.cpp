#include "common/peak_loops.h"

#include "common/peak.h"

namespace nnkernels {
PeakRates peak_rates_scalar() { return {Peak<4>::fma(), Peak<4>::add_pair()}; }
}  // namespace nnkernels
