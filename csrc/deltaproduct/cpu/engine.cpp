#include "deltaproduct/cpu/engine.h"

#include "common/isa.h"

namespace nnkernels::deltaproduct {

extern const Kernels<float> scalar_kernels32;
extern const Kernels<double> scalar_kernels64;
#if defined(__x86_64__)
extern const Kernels<float> avx2_kernels32, avx512_kernels32;
extern const Kernels<double> avx2_kernels64, avx512_kernels64;
#endif

template <>
const Kernels<float>& kernels<float>() {
#if defined(__x86_64__)
  if (active_isa() == Isa::avx512) return avx512_kernels32;
  if (active_isa() == Isa::avx2) return avx2_kernels32;
#endif
  return scalar_kernels32;
}

template <>
const Kernels<double>& kernels<double>() {
#if defined(__x86_64__)
  if (active_isa() == Isa::avx512) return avx512_kernels64;
  if (active_isa() == Isa::avx2) return avx2_kernels64;
#endif
  return scalar_kernels64;
}

}  // namespace nnkernels::deltaproduct
