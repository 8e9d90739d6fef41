// The kernels on the vectors of vec_generic.h.
#include "gaunt/cpu/vec_generic.h"
//
#include "gaunt/cpu/table.h"

namespace nnkernels::gaunt {

extern const Kernels scalar_kernels[2];
const Kernels scalar_kernels[2] = {kKernels<Vec32>, kKernels<Vec64>};

}  // namespace nnkernels::gaunt
