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

namespace {

// The generated kernels of degree L, or nullptr.
const DegreeKernels* of_degree(const Kernels& kernels, int64_t L) {
  return kernels.degrees != nullptr && L >= 1 && L <= kDegrees ? kernels.degrees[L - 1] : nullptr;
}

template <class Function>
Function first_of(Function fast, Function any) {
  return fast != nullptr ? fast : any;
}

}  // namespace

Synthesis synthesis_for(const Kernels& kernels, int64_t L) {
  if (const auto* own = of_degree(kernels, L)) return own->synthesis;
  const auto* half = L % 2 == 0 ? of_degree(kernels, L / 2) : nullptr;
  return first_of(half != nullptr ? half->synthesis_twice : nullptr, kernels.synthesis);
}

Analysis analysis_for(const Kernels& kernels, int64_t L) {
  if (const auto* own = of_degree(kernels, L)) return own->analysis;
  const auto* half = L % 2 == 0 ? of_degree(kernels, L / 2) : nullptr;
  return first_of(half != nullptr ? half->analysis_twice : nullptr, kernels.analysis);
}

Convolve convolve_for(const Kernels& kernels, int64_t a, int64_t b, int64_t c) {
  const auto* own = of_degree(kernels, a);
  if (own != nullptr && a == b && c == a) return own->convolve_same;
  if (own != nullptr && a == b && c == 2 * a) return own->convolve_up;
  if (own != nullptr && b == 2 * a && c == a) return own->convolve_down;
  return kernels.convolve;
}

const DirectKernel* direct_for(const Kernels& kernels, int64_t a, int64_t b, int64_t c) {
  const auto* own = of_degree(kernels, a);
  if (own == nullptr || own->direct_same.run == nullptr) return nullptr;
  if (a == b && c == a) return &own->direct_same;
  if (a == b && c == 2 * a) return &own->direct_up;
  if (b == 2 * a && c == a) return &own->direct_down;
  return nullptr;
}

}  // namespace nnkernels::gaunt
