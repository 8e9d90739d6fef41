// A matrix unit for bytes, where the processor has one.
#pragma once

#include "binary/cpu/engine.h"

namespace nnkernels::binary {

// Rows of a block are a multiple of this; a direct convolution takes as many output channels, and
// as many positions, at a time.
constexpr int64_t kMatrixRows = 32;
constexpr int64_t kMatrixTile = 1024;  // bytes: 16 rows of a step

// Positions of a padded image, of which the set bits of `wanted` are output pixels: successive ones
// from `first` on.
struct Strip {
  uint32_t wanted = 0;
  int64_t first = 0;
};

// A convolution of one image, for up to kMatrixRows output channels. Bytes of the image are
// [group of 4][position][4], so a tap is a step of `offsets` from the position of a pixel.
struct DirectConv {
  const int8_t* weights;  // [2][steps][kMatrixTile], 0 for channels that are padding
  const int8_t* image;
  int64_t pitch;           // bytes from group to group of the image
  const int64_t* offsets;  // [steps], in bytes
  int64_t steps;
  const Strip* strips;
  int64_t channels;
  Epilogue epilogue;  // of the first channel; its planes are `plane` items apart
  int64_t plane;
};

// Bits as bytes +1 and -1, 64 for 8 bytes of a row (a step), in an order that both sides share.
struct MatrixKernels {
  // Writes whole tiles of 16 rows, of which the last may be partly left as it was. Bytes for which
  // the bit of `keep` (of each step alike) is 0 are 0.
  void (*spread_rows)(const Rows& rows, int64_t n, uint64_t keep, int8_t* out);
  // Up to 16 rows, as groups of 4 bytes of every row, `pitch` bytes apart.
  void (*spread_columns)(const Rows& rows, int64_t n, int8_t* out, int64_t pitch);
  // counts[row][kPanel] = mismatches of n rows (a multiple of kMatrixRows) with kPanel columns.
  void (*multiply)(const int8_t* rows, int64_t n, const int8_t* columns, int64_t steps,
                   int32_t* counts);
  void (*convolve)(const DirectConv& conv, int64_t first_strip, int64_t last_strip);
};

// nullptr where this machine or its operating system has none.
const MatrixKernels* amx_kernels();

}  // namespace nnkernels::binary
