// The kernels on the vectors of vec_avx512.h.
#include "deltaproduct/cpu/engine.h"
//
#include "deltaproduct/cpu/vec_avx512.h"
//
#include "deltaproduct/cpu/table.h"

namespace nnkernels::deltaproduct {

extern const Kernels<float> avx512_kernels32;
extern const Kernels<double> avx512_kernels64;
const Kernels<float> avx512_kernels32 = kKernels<float>;
const Kernels<double> avx512_kernels64 = kKernels<double>;

}  // namespace nnkernels::deltaproduct
