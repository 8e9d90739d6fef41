#include "gaunt/cpu/engine.h"

#include "common/isa.h"

namespace nnkernels::gaunt {

// For vectors of floats and of doubles.
extern const Kernels scalar_kernels[2];
#if defined(__x86_64__)
extern const Kernels avx2_kernels[2], avx512_kernels[2];
#endif

const Kernels& kernels_for(Type type) {
  const int wide = type == Type::float64;
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::avx512: return avx512_kernels[wide];
    case Isa::avx2: return avx2_kernels[wide];
    case Isa::scalar: break;
  }
#endif
  return scalar_kernels[wide];
}

}  // namespace nnkernels::gaunt
