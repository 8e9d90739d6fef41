// The kernels on the vectors of vec_generic.h.
#include "deltaproduct/cpu/engine.h"
//
#include "deltaproduct/cpu/vec_generic.h"
//
#include "deltaproduct/cpu/table.h"

namespace nnkernels::deltaproduct {

extern const Kernels<float> scalar_kernels32;
extern const Kernels<double> scalar_kernels64;
const Kernels<float> scalar_kernels32 = kKernels<float>;
const Kernels<double> scalar_kernels64 = kKernels<double>;

}  // namespace nnkernels::deltaproduct
