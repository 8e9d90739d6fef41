// Bits of an image become bytes once, in a padded image whose positions are output pixels too: the
// inputs of a tap are all of them, moved by one offset. Rows share their padding at either end, and
// so do images.
#include "binary/cpu/conv_direct.h"

#include <algorithm>
#include <vector>

#include "binary/cpu/amx.h"

namespace nnkernels::binary {
namespace {

// Bytes of images that are convolved together: they stay in L2 while the weights pass.
constexpr int64_t kImageBytes = 1 << 19;
constexpr int64_t kStepGroups = 16;  // of 4 channels

int64_t tap_steps(const ConvShape& s) { return ceil_div(s.C / s.groups, 64); }

// The padded images. Tiles read past the last position.
struct Padded {
  int64_t width, rows;    // positions of a row, and rows of an image, with the padding above
  int64_t positions;      // of an image's outputs, those between the rows included
  int64_t images, pitch;  // in the buffer, and bytes of a group of 4 channels
  int64_t start(int64_t image) const { return image * rows * width; }

  explicit Padded(const ConvShape& s)
      : width(s.W + s.padding[1]),
        rows(s.H + s.padding[0]),
        positions((s.out_height() - 1) * width + s.out_width()) {
    images = std::clamp<int64_t>(kImageBytes / (rows * width * tap_steps(s) * 64), 1, s.batch);
    const int64_t reach = (s.KH - 1) * s.dilation[0] * width + (s.KW - 1) * s.dilation[1];
    const int64_t last = start(images - 1) + ceil_div(positions, kMatrixRows) * kMatrixRows + reach;
    // An odd number of cache lines, so that the groups of a tile fall on different sets.
    pitch = (ceil_div(last * 4, 64) | 1) * 64;
  }
};

int8_t pad_byte(Pad pad) { return pad == Pad::zero ? 0 : pad == Pad::one ? 1 : -1; }

std::vector<Strip> strips_of(const ConvShape& s, const Padded& padded) {
  std::vector<Strip> strips(ceil_div(padded.positions, kMatrixRows));
  int64_t x = 0, pixel = 0;
  for (int64_t i = 0; i < padded.positions; ++i) {
    Strip& strip = strips[i / kMatrixRows];
    if (i % kMatrixRows == 0) strip.first = pixel;
    if (x < s.out_width()) {
      strip.wanted |= 1u << (i % kMatrixRows);
      ++pixel;
    }
    x = x + 1 == padded.width ? 0 : x + 1;
  }
  return strips;
}

// Bytes [tile of 16 channels][step][kMatrixTile] of a group's weights, in whole pairs of tiles.
void spread_weights(const ConvShape& s, const int32_t* w, int64_t group, int8_t* out,
                    const Parallel& parallel) {
  const int64_t count = s.O / s.groups, taps = s.KH * s.KW, channels = s.C / s.groups;
  const int64_t steps = tap_steps(s), words = s.group_words();
  const auto* rows = reinterpret_cast<const uint8_t*>(w + group * count * taps * words);
  parallel_for(parallel, ceil_div(count, 16), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * taps * steps; i < end * taps * steps; ++i) {
      const int64_t tile = i / (taps * steps), tap = i / steps % taps, step = i % steps;
      const int64_t left = channels - 64 * step;
      const Rows bits{rows + (tile * 16 * taps + tap) * words * 4 + step * 8, taps * words * 4, 8};
      kernels().matrix->spread_rows(bits, std::min<int64_t>(16, count - tile * 16),
                                    left >= 64 ? ~0ull : (1ull << left) - 1, out + i * kMatrixTile);
    }
  });
}

// Bytes of images [first, first + count), of one group.
void spread_images(const ConvShape& s, const int32_t* x, int64_t group, int64_t first,
                   int64_t count, const Padded& padded, int8_t* out, const Parallel& parallel) {
  const int64_t pixel_bytes = s.groups * s.group_words() * 4;
  const auto* bits = reinterpret_cast<const uint8_t*>(x) + group * s.group_words() * 4;
  parallel_for(parallel, count * s.H, 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const uint8_t* from = bits + (first * s.H + row) * s.W * pixel_bytes;
      const int64_t at =
          padded.start(row / s.H) + (s.padding[0] + row % s.H) * padded.width + s.padding[1];
      for (int64_t i = 0; i < s.W; i += 16) {
        kernels().matrix->spread_columns({from + i * pixel_bytes, pixel_bytes, tap_steps(s) * 8},
                                         std::min<int64_t>(16, s.W - i), out + (at + i) * 4,
                                         padded.pitch);
      }
    }
  });
}

}  // namespace

bool is_direct(const Conv2dArgs& args) {
  const ConvShape& s = args.shape;
  const bool wanted = args.algo == Algo::automatic || args.algo == Algo::matrix;
  if (!wanted || kernels().matrix == nullptr || !args.nchw) return false;
  const Padded padded(s);
  if (s.stride[0] != 1 || s.stride[1] != 1 || s.out_width() > padded.width ||
      s.out_height() > padded.rows) {
    return false;
  }
  if (args.algo == Algo::matrix) return true;
  // Not where tiles would be mostly empty.
  const int64_t columns = ceil_div(padded.positions, kMatrixRows) * kMatrixRows;
  return s.C / s.groups >= 32 && s.O / s.groups >= 16 &&
         columns <= 2 * s.out_height() * s.out_width();
}

void conv2d_direct(const Conv2dArgs& args, const Parallel& parallel) {
  const ConvShape& s = args.shape;
  const Padded padded(s);
  const std::vector<Strip> strips = strips_of(s, padded);
  const auto strip_count = static_cast<int64_t>(strips.size());
  const int64_t steps = s.KH * s.KW * tap_steps(s), outputs = s.O / s.groups;
  std::vector<int64_t> offsets;
  for (int64_t i = 0; i < s.KH; ++i) {
    for (int64_t j = 0; j < s.KW; ++j) {
      const int64_t at = (i * s.dilation[0] * padded.width + j * s.dilation[1]) * 4;
      for (int64_t step = 0; step < tap_steps(s); ++step) {
        offsets.push_back(at + step * kStepGroups * padded.pitch);
      }
    }
  }

  // Kept from call to call: fresh memory costs more to touch than to fill.
  thread_local Buffer<int8_t> weights, images;
  const int64_t pairs = ceil_div(outputs, kMatrixRows), pair_bytes = 2 * steps * kMatrixTile;
  const int64_t image_bytes = tap_steps(s) * kStepGroups * padded.pitch;
  int8_t* weight_bytes = weights.reserve(pairs * pair_bytes);
  int8_t* bytes = images.reserve(image_bytes);
  memset(bytes, pad_byte(s.pad), static_cast<size_t>(image_bytes));

  const int64_t plane = s.out_height() * s.out_width(), size = type_size(args.epilogue.type);
  for (int64_t group = 0; group < s.groups; ++group) {
    spread_weights(s, args.w, group, weight_bytes, parallel);
    for (int64_t first = 0; first < s.batch; first += padded.images) {
      const int64_t count = std::min(padded.images, s.batch - first);
      spread_images(s, args.x, group, first, count, padded, bytes, parallel);
      parallel_for(parallel, pairs * count * strip_count, 4, [&](int64_t begin, int64_t end) {
        while (begin < end) {
          const int64_t task = begin / strip_count, strip = begin % strip_count;
          const int64_t last = std::min(strip_count, strip + end - begin);
          const int64_t image = task % count, pair = task / count;
          const int64_t o = group * outputs + pair * kMatrixRows;
          DirectConv conv{weight_bytes + pair * pair_bytes,
                          bytes + padded.start(image) * 4,
                          padded.pitch,
                          offsets.data(),
                          steps,
                          strips.data(),
                          std::min(kMatrixRows, outputs - pair * kMatrixRows),
                          args.epilogue,
                          plane};
          Epilogue& e = conv.epilogue;
          e.out = static_cast<char*>(e.out) + ((first + image) * s.O + o) * plane * size;
          if (e.column_scale != nullptr) e.column_scale += o;
          if (e.bias != nullptr) e.bias += o;
          kernels().matrix->convolve(conv, strip, last);
          begin += last - strip;
        }
      });
    }
  }
}

}  // namespace nnkernels::binary
