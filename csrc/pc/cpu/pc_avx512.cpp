// The kernels on the vectors that this file is compiled for.
#include "pc/cpu/table.h"

namespace nnkernels::pc {

extern const Kernels<float> avx512_kernels32;
extern const Kernels<double> avx512_kernels64;
const Kernels<float> avx512_kernels32 = kKernels<float>;
const Kernels<double> avx512_kernels64 = kKernels<double>;

}  // namespace nnkernels::pc
