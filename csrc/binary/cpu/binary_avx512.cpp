// The kernels on the vectors of vec_avx512.h.
#include <limits>

#include "binary/cpu/engine.h"
//
#include "binary/cpu/vec_avx512.h"
//
#include "binary/cpu/costs.h"
#include "binary/cpu/count.h"
#include "binary/cpu/int8.h"
#include "binary/cpu/lookup.h"
#include "binary/cpu/nibble.h"
#include "binary/cpu/pack.h"
#include "binary/cpu/signs.h"
#include "binary/cpu/store.h"

namespace nnkernels::binary {

extern const Kernels avx512_kernels;
const Kernels avx512_kernels = {
    .costs = &kAvx512Costs,
    .pack_row = pack_row,
    .pack_columns = pack_columns,
    .pack_wave = pack_wave,
    .popcount = popcount,
    .nibble = nibble,
    .slice = slice,
    .index = index_rows,
    .lookup = {lookup<32>, lookup<64>},
    .widen = {widen<32>, widen<64>},
    .matrix = nullptr,
    .store = store_tile,
    .int8_columns = kInt8Columns,
    .expand = expand,
    .int8 = int8_product,
    .float_bits = float_bits,
};

}  // namespace nnkernels::binary
