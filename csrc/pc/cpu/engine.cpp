#include "pc/cpu/engine.h"

#include "common/isa.h"

namespace nnkernels::pc {

extern const Kernels<float> scalar_kernels32;
extern const Kernels<double> scalar_kernels64;
#if defined(__x86_64__)
extern const Kernels<float> avx2_kernels32, avx512_kernels32;
extern const Kernels<double> avx2_kernels64, avx512_kernels64;
#endif

template <>
const Kernels<float>& kernels<float>([[maybe_unused]] int64_t h) {
#if defined(__x86_64__)
  // Rows that fill half a vector of 64 bytes go faster in one of 32.
  if (active_isa() == Isa::avx512 && h > 8) return avx512_kernels32;
  if (active_isa() >= Isa::avx2) return avx2_kernels32;
#endif
  return scalar_kernels32;
}

template <>
const Kernels<double>& kernels<double>([[maybe_unused]] int64_t h) {
#if defined(__x86_64__)
  if (active_isa() == Isa::avx512 && h > 4) return avx512_kernels64;
  if (active_isa() >= Isa::avx2) return avx2_kernels64;
#endif
  return scalar_kernels64;
}

}  // namespace nnkernels::pc
