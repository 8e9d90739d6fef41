// The kernels of one instruction set, gathered; included last by the file that chose Vec.
#pragma once

#include "lmul/cpu/attention_kernels.h"
#include "lmul/cpu/elementwise.h"
#include "lmul/cpu/multiply.h"
#include "lmul/cpu/pack.h"
#include "lmul/cpu/slopes.h"

namespace nnkernels::lmul {
namespace {

constexpr Kernels kKernels = {
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

}  // namespace
}  // namespace nnkernels::lmul
