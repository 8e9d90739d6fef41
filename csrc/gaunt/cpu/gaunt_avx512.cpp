// The kernels on the vectors of vec_avx512.h.
#include "gaunt/cpu/vec_avx512.h"
//
#include "gaunt/cpu/table.h"

namespace nnkernels::gaunt {

extern const Kernels avx512_kernels[2];
const Kernels avx512_kernels[2] = {kKernels<Vec32>, kKernels<Vec64>};

}  // namespace nnkernels::gaunt
