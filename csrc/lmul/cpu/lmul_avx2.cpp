// The kernels on the vectors of vec_avx2.h.
#include "lmul/cpu/engine.h"
//
#include "lmul/cpu/vec_avx2.h"
//
#include "lmul/cpu/table.h"

namespace nnkernels::lmul {

extern const Kernels avx2_kernels;
const Kernels avx2_kernels = kKernels;

}  // namespace nnkernels::lmul
