// The kernels on the vectors of vec_scalar.h.
#include "gaunt/cpu/vec_scalar.h"
//
#include "gaunt/cpu/table.h"

namespace nnkernels::gaunt {

extern const DegreeKernels scalar_degree_1[2], scalar_degree_2[2];

namespace {

// For vectors of floats and of doubles.
const DegreeKernels* const kFloats[kDegrees] = {&scalar_degree_1[0], &scalar_degree_2[0]};
const DegreeKernels* const kDoubles[kDegrees] = {&scalar_degree_1[1], &scalar_degree_2[1]};

}  // namespace

extern const Kernels scalar_kernels[2];
const Kernels scalar_kernels[2] = {make_kernels<Vec32>(kFloats), make_kernels<Vec64>(kDoubles)};

}  // namespace nnkernels::gaunt
