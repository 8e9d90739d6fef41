// The kernels on the vectors of vec_generic.h.
#include "gaunt/cpu/vec_generic.h"
//
#include "gaunt/cpu/table.h"

namespace nnkernels::gaunt {

extern const Kernels scalar_kernels[2];
const Kernels scalar_kernels[2] = {make_kernels<Vec32>(nullptr), make_kernels<Vec64>(nullptr)};

}  // namespace nnkernels::gaunt
