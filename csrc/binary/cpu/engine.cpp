#include "binary/cpu/engine.h"

#include "binary/cpu/amx.h"
#include "binary/cpu/costs.h"
#include "common/isa.h"

namespace nnkernels::binary {

extern const Kernels scalar_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels, avx512_kernels;
extern const decltype(Kernels::popcount) vpopcnt_popcount;

namespace {

bool has_vpopcnt() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512vpopcntdq");
}

const Kernels& best_avx512_kernels() {
  static const Kernels kernels = [] {
    Kernels best = avx512_kernels;
    if (has_vpopcnt()) {
      best.popcount = vpopcnt_popcount;
      best.costs = &kVpopcntCosts;
    }
    best.matrix = amx_kernels();
    return best;
  }();
  return kernels;
}

}  // namespace
#endif

const Kernels& kernels() {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::avx512: return best_avx512_kernels();
    case Isa::avx2: return avx2_kernels;
    case Isa::scalar: break;
  }
#endif
  return scalar_kernels;
}

}  // namespace nnkernels::binary
