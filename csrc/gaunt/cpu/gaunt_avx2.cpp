// The kernels on the vectors of vec_avx2.h.
#include "gaunt/cpu/vec_avx2.h"
//
#include "gaunt/cpu/table.h"

namespace nnkernels::gaunt {

extern const DegreeKernels avx2_degree_1[2], avx2_degree_2[2], avx2_degree_3[2], avx2_degree_4[2],
    avx2_degree_5[2], avx2_degree_6[2], avx2_degree_7[2], avx2_degree_8[2];

namespace {

// For vectors of floats and of doubles.
const DegreeKernels* const kFloats[kDegrees] = {
    &avx2_degree_1[0], &avx2_degree_2[0], &avx2_degree_3[0], &avx2_degree_4[0],
    &avx2_degree_5[0], &avx2_degree_6[0], &avx2_degree_7[0], &avx2_degree_8[0]};
const DegreeKernels* const kDoubles[kDegrees] = {
    &avx2_degree_1[1], &avx2_degree_2[1], &avx2_degree_3[1], &avx2_degree_4[1],
    &avx2_degree_5[1], &avx2_degree_6[1], &avx2_degree_7[1], &avx2_degree_8[1]};

}  // namespace

extern const Kernels avx2_kernels[2];
const Kernels avx2_kernels[2] = {make_kernels<Vec32>(kFloats), make_kernels<Vec64>(kDoubles)};

}  // namespace nnkernels::gaunt
