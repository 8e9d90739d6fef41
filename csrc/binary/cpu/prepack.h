// The layout of a prepacked operand: a header, its rows as they are, then their slices.
#pragma once

#include "binary/cpu/engine.h"

namespace nnkernels::binary {

struct PackedHeader {
  char magic[8];
  int32_t version;
  int32_t reserved;
  int64_t N, K;
  char pad[32];
};
static_assert(sizeof(PackedHeader) == 64);

// The operand that `packed` holds; its parts may lie at any address.
Operand packed_operand(const uint8_t* packed, int64_t N, int64_t K);

}  // namespace nnkernels::binary
