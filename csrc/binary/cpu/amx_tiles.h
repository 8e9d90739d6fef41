// The tile registers of AMX; included by the files that are built for it.
#pragma once

#include <immintrin.h>

#include "binary/cpu/amx.h"

namespace nnkernels::binary {

void convolve_strips(const DirectConv& conv, int64_t first_strip, int64_t last_strip);

namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Eight tiles of 16 rows of 64 bytes.
inline void configure_tiles() {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = 64;
    config.rows[i] = 16;
  }
  _tile_loadconfig(&config);
}

}  // namespace
}  // namespace nnkernels::binary
