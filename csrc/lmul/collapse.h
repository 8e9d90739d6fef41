// The same elementwise product over as few dimensions as its strides allow.
#pragma once

#include "lmul/lmul.h"

namespace nnkernels::lmul {

// Drops dimensions of size 1 and merges neighbours that x and y both step through evenly. A pair of
// contiguous tensors becomes one dimension with strides 1.
inline MulArgs collapsed(const MulArgs& args) {
  MulArgs result = args;
  result.ndim = 0;
  for (int d = 0; d < args.ndim; ++d) {
    if (args.sizes[d] == 1) continue;
    const int last = result.ndim - 1;
    if (last >= 0 && result.x_strides[last] == args.x_strides[d] * args.sizes[d] &&
        result.y_strides[last] == args.y_strides[d] * args.sizes[d]) {
      result.sizes[last] *= args.sizes[d];
      result.x_strides[last] = args.x_strides[d];
      result.y_strides[last] = args.y_strides[d];
      continue;
    }
    result.sizes[result.ndim] = args.sizes[d];
    result.x_strides[result.ndim] = args.x_strides[d];
    result.y_strides[result.ndim] = args.y_strides[d];
    ++result.ndim;
  }
  return result;
}

}  // namespace nnkernels::lmul
