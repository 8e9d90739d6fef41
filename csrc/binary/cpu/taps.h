// Which taps of a convolution lie inside the image.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "binary/binary.h"

namespace nnkernels::binary {

// Taps [first, last) of one output coordinate; tap i reads input coordinate origin + i * dilation.
struct TapRange {
  int64_t origin = 0, first = 0, last = 0;
  bool operator==(const TapRange& other) const {
    return first == other.first && last == other.last;
  }
};

inline TapRange tap_range(int64_t out, int64_t stride, int64_t padding, int64_t dilation,
                          int64_t taps, int64_t size) {
  TapRange range;
  range.origin = out * stride - padding;
  range.first = range.origin < 0 ? (-range.origin + dilation - 1) / dilation : 0;
  range.last = range.origin < size ? (size - range.origin + dilation - 1) / dilation : 0;
  range.first = std::min(range.first, taps);
  range.last = std::max(range.first, std::min(range.last, taps));
  return range;
}

// The outputs in [first, last), i, whose input i * stride + origin is in [0, size).
inline std::pair<int64_t, int64_t> outputs_inside(int64_t origin, int64_t stride, int64_t size,
                                                  int64_t first, int64_t last) {
  const int64_t low = origin < 0 ? (stride - 1 - origin) / stride : 0;
  const int64_t high = origin < size ? (size - 1 - origin) / stride + 1 : 0;
  const int64_t begin = std::clamp(low, first, last);
  return {begin, std::clamp(high, begin, last)};
}

// The ranges of all output rows (axis 0) or columns (axis 1).
inline std::vector<TapRange> tap_ranges(const ConvShape& s, int axis) {
  const int64_t count = axis == 0 ? s.out_height() : s.out_width();
  std::vector<TapRange> ranges;
  for (int64_t i = 0; i < count; ++i) {
    ranges.push_back(tap_range(i, s.stride[axis], s.padding[axis], s.dilation[axis],
                               axis == 0 ? s.KH : s.KW, axis == 0 ? s.H : s.W));
  }
  return ranges;
}

}  // namespace nnkernels::binary
