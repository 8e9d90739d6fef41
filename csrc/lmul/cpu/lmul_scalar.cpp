// The kernels on the vectors of vec_generic.h.
#include "lmul/cpu/engine.h"
//
#include "lmul/cpu/vec_generic.h"
//
#include "lmul/cpu/table.h"

namespace nnkernels::lmul {

extern const Kernels scalar_kernels;
const Kernels scalar_kernels = kKernels;

}  // namespace nnkernels::lmul
