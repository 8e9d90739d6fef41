// The kernels in plain C++.
#include <limits>

#include "binary/cpu/engine.h"
//
#include "binary/cpu/vec_generic.h"
//
#include "binary/cpu/costs.h"
#include "binary/cpu/count.h"
#include "binary/cpu/int8.h"
#include "binary/cpu/pack.h"
#include "binary/cpu/signs.h"
#include "binary/cpu/store.h"

namespace nnkernels::binary {

extern const Kernels scalar_kernels;
const Kernels scalar_kernels = {
    .costs = &kScalarCosts,
    .pack_row = pack_row,
    .pack_columns = pack_columns,
    .pack_wave = pack_wave,
    .popcount = popcount,
    .nibble = nullptr,
    .slice = nullptr,
    .index = nullptr,
    .lookup = {nullptr, nullptr},
    .widen = {nullptr, nullptr},
    .matrix = nullptr,
    .store = store_tile,
    .int8_columns = kInt8Columns,
    .expand = expand,
    .int8 = int8_product,
    .float_bits = float_bits,
};

}  // namespace nnkernels::binary
