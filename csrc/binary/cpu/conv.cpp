// Convolution: the taps of output pixels are gathered into rows of bits, a block of pixels at a
// time, and multiplied with the weights. Taps outside the image are gathered as +1; the other
// padding rules subtract a vector that depends on which taps were outside.
#include <memory>

#include "binary/cpu/conv_direct.h"
#include "binary/cpu/engine.h"
#include "binary/cpu/taps.h"

namespace nnkernels::binary {
namespace {

constexpr int64_t kBlockPixels = 2048;

// Words of 32 channels that a tap has, without the padding of the bits tensors.
int64_t tap_words(const ConvShape& s) { return ceil_div(s.C / s.groups, 32); }
int64_t gathered_bits(const ConvShape& s) { return s.KH * s.KW * tap_words(s) * 32; }
int64_t gathered_bytes(const ConvShape& s) { return ceil_div(gathered_bits(s), 64) * 8; }

template <int words>
void copy_words(const int32_t* from, int64_t count, int32_t* to) {
  memcpy(to, from, static_cast<size_t>(words > 0 ? words : count) * sizeof(int32_t));
}

template <int words>
void clear_words(int64_t count, int32_t* to) {
  memset(to, 0, static_cast<size_t>(words > 0 ? words : count) * sizeof(int32_t));
}

// The rows of output pixels [begin, end) of all images, for one group: tap by tap for the pixels of
// an output row.
template <int words>
void gather_pixels(const ConvShape& s, const int32_t* x, int64_t group, int64_t begin, int64_t end,
                   uint8_t* out) {
  const int64_t width = s.out_width(), height = s.out_height();
  const int64_t count = tap_words(s), pixel_words = s.groups * s.group_words();
  const int64_t pitch = gathered_bytes(s) / 4;
  const bool odd = pitch != s.KH * s.KW * count;
  auto* to = reinterpret_cast<int32_t*>(out);
  for (int64_t pixel = begin; pixel < end;) {
    const int64_t first = pixel % width, last = std::min(width, first + end - pixel);
    const int64_t y = pixel / width % height, image = pixel / (width * height);
    const int32_t* from = x + image * s.H * s.W * pixel_words + group * s.group_words();
    for (int64_t tap = 0; tap < s.KH * s.KW; ++tap) {
      const int64_t in_y = y * s.stride[0] - s.padding[0] + tap / s.KW * s.dilation[0];
      const int64_t origin = tap % s.KW * s.dilation[1] - s.padding[1];
      const bool inside = in_y >= 0 && in_y < s.H;
      const auto [low, high] =
          outputs_inside(origin, s.stride[1], s.W, first, inside ? last : first);
      const int32_t* row = from + (in_y * s.W + origin) * pixel_words;
      int32_t* at = to + tap * count;
      for (int64_t i = first; i < low; ++i) clear_words<words>(count, at + (i - first) * pitch);
      for (int64_t i = low; i < high; ++i) {
        copy_words<words>(row + i * s.stride[1] * pixel_words, count, at + (i - first) * pitch);
      }
      for (int64_t i = high; i < last; ++i) clear_words<words>(count, at + (i - first) * pitch);
    }
    for (int64_t i = first; odd && i < last; ++i) to[(i - first) * pitch + pitch - 1] = 0;
    to += (last - first) * pitch;
    pixel += last - first;
  }
}

using Gather = decltype(&gather_pixels<0>);

Gather choose_gather(int64_t words) {
  switch (words) {
    case 1: return gather_pixels<1>;
    case 2: return gather_pixels<2>;
    case 4: return gather_pixels<4>;
    case 8: return gather_pixels<8>;
    default: return gather_pixels<0>;
  }
}

// w of one group, without the padding between taps.
void gather_weights(const ConvShape& s, const int32_t* w, int64_t first, int64_t count,
                    uint8_t* out) {
  const int64_t words = tap_words(s), taps = s.KH * s.KW, bytes = gathered_bytes(s);
  memset(out, 0, static_cast<size_t>(count * bytes));
  for (int64_t o = 0; o < count; ++o) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      memcpy(out + o * bytes + tap * words * 4, w + ((first + o) * taps + tap) * s.group_words(),
             static_cast<size_t>(words) * 4);
    }
  }
}

// The vectors to subtract for every combination of tap ranges that occurs.
class Corrections {
 public:
  Corrections(const ConvShape& s, const std::vector<TapRange>& ys, const std::vector<TapRange>& xs,
              const int32_t* prefix)
      : O_(s.O), y_class_(classify(ys, y_kinds_)), x_class_(classify(xs, x_kinds_)) {
    const auto sum_before = [&](int64_t i, int64_t j, int64_t o) {
      return prefix[(i * (s.KW + 1) + j) * s.O + o];
    };
    vectors_.resize(y_kinds_.size() * x_kinds_.size() * s.O);
    int32_t* out = vectors_.data();
    for (const TapRange& y : y_kinds_) {
      for (const TapRange& x : x_kinds_) {
        full_.push_back(y.first == 0 && y.last == s.KH && x.first == 0 && x.last == s.KW);
        for (int64_t o = 0; o < s.O; ++o) {
          const int32_t inside = sum_before(y.last, x.last, o) - sum_before(y.first, x.last, o) -
                                 sum_before(y.last, x.first, o) + sum_before(y.first, x.first, o);
          *out++ = sum_before(s.KH, s.KW, o) - inside;
        }
      }
    }
  }

  // For `count` output pixels from `first` on: a vector over the outputs from `o` on, or nullptr
  // where all taps are inside.
  void rows(int64_t first, int64_t count, int64_t o, const int32_t** out) const {
    const auto width = static_cast<int64_t>(x_class_.size());
    const auto height = static_cast<int64_t>(y_class_.size());
    int64_t x = first % width, y = first / width % height;
    for (int64_t i = 0; i < count; ++i) {
      const size_t kind = y_class_[y] * x_kinds_.size() + x_class_[x];
      out[i] = full_[kind] ? nullptr : vectors_.data() + kind * O_ + o;
      if (++x < width) continue;
      x = 0;
      y = y + 1 == height ? 0 : y + 1;
    }
  }

 private:
  static std::vector<size_t> classify(const std::vector<TapRange>& ranges,
                                      std::vector<TapRange>& kinds) {
    std::vector<size_t> classes;
    for (const TapRange& range : ranges) {
      const auto found = std::find(kinds.begin(), kinds.end(), range);
      classes.push_back(found - kinds.begin());
      if (found == kinds.end()) kinds.push_back(range);
    }
    return classes;
  }

  int64_t O_;
  std::vector<TapRange> y_kinds_, x_kinds_;
  std::vector<size_t> y_class_, x_class_;
  std::vector<char> full_;
  std::vector<int32_t> vectors_;
};

// One group's weights, ready to multiply.
struct Weights {
  Buffer<uint8_t> rows;
  Buffer<uint64_t> slices;
  Operand operand;
};

// Does a row of bits of x hold exactly the taps of an output pixel?
bool is_plain(const ConvShape& s) {
  return s.KH * s.KW == 1 && s.stride[0] == 1 && s.stride[1] == 1 && s.padding[0] == 0 &&
         s.padding[1] == 0;
}

void prepare_weights(const ConvShape& s, const int32_t* w, int64_t group, Weights& weights,
                     const Parallel& parallel) {
  const int64_t count = s.O / s.groups;
  const int64_t bytes = is_plain(s) ? s.group_words() * 4 : gathered_bytes(s);
  if (is_plain(s)) {
    const auto* rows = reinterpret_cast<const uint8_t*>(w + group * count * s.group_words());
    weights.operand = {{rows, bytes, bytes}, count};
  } else {
    weights.rows.reserve(count * bytes);
    gather_weights(s, w, group * count, count, weights.rows.data());
    weights.operand = {{weights.rows.data(), bytes, bytes}, count};
  }
  // A matrix unit takes the rows as they are.
  if (kernels().slice != nullptr && kernels().matrix == nullptr) {
    const int64_t chunks = chunk_count(gathered_bits(s));
    weights.slices.reserve(slice_words(count, chunks));
    slice_operand(weights.operand, chunks, weights.slices.data(), parallel);
    weights.operand.slices = weights.slices.data();
  }
}

// The store for one group's product, from output pixel `first` on.
Store group_store(const Conv2dArgs& args, int64_t group, int64_t first) {
  const ConvShape& s = args.shape;
  const int64_t count = s.O / s.groups, plane = s.out_height() * s.out_width();
  Store store;
  store.epilogue = args.epilogue;
  store.epilogue.row_scale = nullptr;
  store.M = s.batch * plane;
  store.N = count;
  store.base = static_cast<int32_t>(s.KH * s.KW * (s.C / s.groups));
  store.scale = -2;
  store.corr_scale = s.pad == Pad::minus_one ? 2 : 1;
  store.first_row = first;
  Epilogue& e = store.epilogue;
  int64_t offset = group * count;
  if (e.dir != nullptr) {
    store.row_stride = row_words(s.O);
  } else if (args.nchw) {
    store.plane = plane;
    store.plane_stride = s.O * plane;
    store.row_stride = 1;
    store.column_stride = plane;
    offset *= plane;
  } else {
    store.row_stride = s.O;
  }
  if (e.dir == nullptr) e.out = static_cast<char*>(e.out) + offset * type_size(e.type);
  if (e.column_scale != nullptr) e.column_scale += group * count;
  if (e.bias != nullptr) e.bias += group * count;
  return store;
}

// Bits of several groups share words: they are made from all groups' dots [pixels, O].
void store_signs(const Conv2dArgs& args, int64_t first, int64_t pixels, const int32_t* dots,
                 const Parallel& parallel) {
  Store store = group_store(args, 0, first);
  const int64_t O = store.N = args.shape.O;
  store.base = 0;
  store.scale = 1;
  parallel_for(parallel, pixels, 64, [&](int64_t begin, int64_t end) {
    for (int64_t n = 0; n < O; n += kPanel) {
      kernels().store(store,
                      {begin, end - begin, n, std::min(kPanel, O - n), dots + begin * O + n, O});
    }
  });
}

}  // namespace

void conv_corr(const ConvShape& s, const int32_t* w, int32_t* corr) {
  const int64_t words = s.group_words(), stride = (s.KW + 1) * s.O;
  memset(corr, 0, static_cast<size_t>((s.KH + 1) * stride) * sizeof(int32_t));
  for (int64_t i = 0; i < s.KH; ++i) {
    for (int64_t j = 0; j < s.KW; ++j) {
      int32_t* at = corr + (i + 1) * stride + (j + 1) * s.O;
      for (int64_t o = 0; o < s.O; ++o) {
        const int32_t* tap = w + ((o * s.KH + i) * s.KW + j) * words;
        int64_t ones = 0;
        for (int64_t word = 0; word < words; ++word) {
          ones += count_ones(static_cast<uint32_t>(tap[word]));
        }
        const int32_t above = at[o - stride], left = at[o - s.O], both = at[o - stride - s.O];
        at[o] = static_cast<int32_t>(s.C / s.groups - 2 * ones) + above + left - both;
      }
    }
  }
}

void conv2d(const Conv2dArgs& args, const Parallel& parallel) {
  const ConvShape& s = args.shape;
  const int64_t plane = s.out_height() * s.out_width(), pixels = s.batch * plane;
  if (pixels <= 0 || s.O <= 0) return;
  if (is_direct(args)) return conv2d_direct(args, parallel);
  const std::vector<TapRange> ys = tap_ranges(s, 0), xs = tap_ranges(s, 1);

  std::vector<int32_t> own_corr;
  const int32_t* prefix = args.corr;
  if (s.pad != Pad::one && prefix == nullptr) {
    own_corr.resize((s.KH + 1) * (s.KW + 1) * s.O);
    conv_corr(s, args.w, own_corr.data());
    prefix = own_corr.data();
  }
  std::unique_ptr<Corrections> corrections;
  if (s.pad != Pad::one) corrections = std::make_unique<Corrections>(s, ys, xs, prefix);

  std::vector<Weights> weights(s.groups);
  for (int64_t g = 0; g < s.groups; ++g) prepare_weights(s, args.w, g, weights[g], parallel);

  const bool plain = is_plain(s), sign_groups = args.epilogue.dir != nullptr && s.groups > 1;
  const int64_t block = std::min(kBlockPixels, pixels);
  const int64_t bytes = plain ? s.group_words() * 4 : gathered_bytes(s);
  // Kept from call to call: fresh memory costs more to touch than to fill.
  thread_local Buffer<uint8_t> gathered;
  uint8_t* rows = gathered.reserve(plain ? 0 : block * bytes);
  Buffer<int32_t> dots(sign_groups ? block * s.O : 0);
  std::vector<const int32_t*> corr_rows(corrections ? block : 0);
  const Gather gather = choose_gather(tap_words(s));

  for (int64_t first = 0; first < pixels; first += block) {
    const int64_t count = std::min(block, pixels - first);
    for (int64_t g = 0; g < s.groups; ++g) {
      Operand a{{nullptr, bytes, bytes}, count};
      if (plain) {
        a.rows.pitch = s.groups * bytes;
        a.rows.data = reinterpret_cast<const uint8_t*>(args.x) + first * a.rows.pitch + g * bytes;
      } else {
        parallel_for(parallel, count, 256, [&](int64_t begin, int64_t end) {
          gather(s, args.x, g, first + begin, first + end, rows + begin * bytes);
        });
        a.rows.data = rows;
      }
      Store store = group_store(args, g, first);
      if (sign_groups) {
        store.epilogue = {};
        store.epilogue.out = dots.data() + g * store.N;
        store.row_stride = s.O;
        store.first_row = 0;
      }
      if (corrections) {
        corrections->rows(first, count, g * store.N, corr_rows.data());
        store.corr = corr_rows.data();
      }
      product(a, weights[g].operand, gathered_bits(s), args.algo, store, parallel);
    }
    if (sign_groups) store_signs(args, first, count, dots.data(), parallel);
  }
}

}  // namespace nnkernels::binary
