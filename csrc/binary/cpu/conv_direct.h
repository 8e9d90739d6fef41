// Convolution without gathering taps, on a matrix unit.
#pragma once

#include "binary/cpu/engine.h"

namespace nnkernels::binary {

// Is it possible, and likely the fastest way?
bool is_direct(const Conv2dArgs& args);
void conv2d_direct(const Conv2dArgs& args, const Parallel& parallel);

}  // namespace nnkernels::binary
