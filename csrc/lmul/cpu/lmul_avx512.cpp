// The kernels on the vectors of vec_avx512.h.
#include "lmul/cpu/engine.h"
//
#include "lmul/cpu/vec_avx512.h"
//
#include "lmul/cpu/multiply.h"
#include "lmul/cpu/pack.h"

namespace nnkernels::lmul {

extern const Kernels avx512_kernels;
const Kernels avx512_kernels = {
    .tile_rows = Vec::tile_rows,
    .tile_columns = kTileColumns,
    .pack_columns = pack_columns,
    .pack_rows = pack_rows,
    .multiply = multiply,
    .store = store,
};

}  // namespace nnkernels::lmul
