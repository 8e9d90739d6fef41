// The kernels on the vectors of vec_avx512.h.
#include "lmul/cpu/engine.h"
//
#include "lmul/cpu/vec_avx512.h"
//
#include "lmul/cpu/table.h"

namespace nnkernels::lmul {

extern const Kernels avx512_kernels;
const Kernels avx512_kernels = kKernels;

}  // namespace nnkernels::lmul
