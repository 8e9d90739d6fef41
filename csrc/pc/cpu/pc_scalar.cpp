// The kernels on the vectors that this file is compiled for.
#include "pc/cpu/table.h"

namespace nnkernels::pc {

extern const Kernels<float> scalar_kernels32;
extern const Kernels<double> scalar_kernels64;
const Kernels<float> scalar_kernels32 = kKernels<float>;
const Kernels<double> scalar_kernels64 = kKernels<double>;

}  // namespace nnkernels::pc
