// The kernels on the vectors of vec_avx512.h.
#include "lmul/cpu/engine.h"
//
#include "lmul/cpu/vec_avx512.h"
//
#include "lmul/cpu/attention_kernels.h"
#include "lmul/cpu/elementwise.h"
#include "lmul/cpu/multiply.h"
#include "lmul/cpu/pack.h"
#include "lmul/cpu/slopes.h"

namespace nnkernels::lmul {

extern const Kernels avx512_kernels;
const Kernels avx512_kernels = {
    .tile_rows = Vec::tile_rows,
    .tile_columns = kTileColumns,
    .pack_columns = pack_columns,
    .pack_rows = pack_rows,
    .multiply = multiply,
    .multiply_slopes = multiply_slopes,
    .store = store,
    .mul_line = mul_line,
    .mul_grad_line = mul_grad_line,
    .attention = &kAttentionKernels,
};

}  // namespace nnkernels::lmul
