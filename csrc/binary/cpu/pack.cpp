// Packing, unpacking and whole words of bits.
#include <algorithm>

#include "binary/cpu/engine.h"

namespace nnkernels::binary {
namespace {

constexpr int64_t kGrainBytes = 1 << 16;  // of work that is worth a thread

const char* element(const Strided& x, int64_t batch, int64_t row, int64_t column) {
  return static_cast<const char*>(x.data) +
         (batch * x.batch_stride + row * x.row_stride + column * x.column_stride) *
             type_size(x.type);
}

// Row `row` of group `group` as K successive elements: where it lies, or copied to `copy`.
const void* contiguous_row(const PackArgs& args, int64_t batch, int64_t row, int64_t group,
                           Buffer<char>& copy) {
  const char* at = element(args.x, batch, row, group * args.K);
  if (args.x.column_stride == 1) return at;
  const int64_t size = type_size(args.x.type), step = args.x.column_stride * size;
  char* to = copy.reserve(args.K * size);
  for (int64_t k = 0; k < args.K; ++k) memcpy(to + k * size, at + k * step, size);
  return to;
}

int64_t row_grain(int64_t K) { return std::max<int64_t>(1, kGrainBytes / K); }

// Calls f(begin, end) on ranges of the batch * rows * groups rows of bits.
template <class F>
void for_rows(const PackArgs& args, const Parallel& parallel, F&& f) {
  parallel_for(parallel, args.batch * args.rows * args.groups, row_grain(args.K), f);
}

// Calls f(bits row, elements) for every row.
template <class F>
void for_contiguous_rows(const PackArgs& args, const Parallel& parallel, F&& f) {
  for_rows(args, parallel, [&](int64_t begin, int64_t end) {
    Buffer<char> copy;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / args.groups;
      f(i, contiguous_row(args, row / args.rows, row % args.rows, i % args.groups, copy));
    }
  });
}

// Are rows, not columns, next to each other, as in NCHW?
bool rows_adjacent(const PackArgs& args) {
  return args.x.row_stride == 1 && args.x.column_stride != 1 && args.rows >= 8 && args.K > 1;
}

void pack_plane(const PackArgs& args, Plane plane, int32_t* out, const Parallel& parallel) {
  auto* words = reinterpret_cast<uint32_t*>(out);
  const Kernels& kernel = kernels();
  const int64_t width = row_words(args.K);
  if (!rows_adjacent(args)) {
    for_contiguous_rows(args, parallel, [&](int64_t i, const void* x) {
      kernel.pack_row(args.x.type, plane, x, args.K, words + i * width);
    });
    return;
  }
  const int64_t blocks = ceil_div(args.rows, kColumnRows);
  parallel_for(
      parallel, args.batch * args.groups * blocks, row_grain(kColumnRows * args.K),
      [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t row = task % blocks * kColumnRows, group = task / blocks % args.groups;
          const int64_t batch = task / blocks / args.groups;
          const int64_t first = (batch * args.rows + row) * args.groups + group;
          kernel.pack_columns(args.x.type, plane, element(args.x, batch, row, group * args.K),
                              args.x.column_stride, std::min(kColumnRows, args.rows - row), args.K,
                              words + first * width, args.groups * width);
        }
      });
}

int64_t ones_in(const uint32_t* words, int64_t count) {
  int64_t ones = 0;
  for (int64_t i = 0; i < count; i += 2) {
    ones += count_ones(words[i] | static_cast<uint64_t>(words[i + 1]) << 32);
  }
  return ones;
}

void count_rows(const PackArgs& args, const Parallel& parallel) {
  if (args.rowpop == nullptr) return;
  const auto* words = reinterpret_cast<const uint32_t*>(args.bits);
  const int64_t width = row_words(args.K);
  for_rows(args, parallel, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      args.rowpop[i] = static_cast<int32_t>(ones_in(words + i * width, width));
    }
  });
}

uint32_t load_element(const void* row, Type type, int64_t k) {
  switch (type) {
    case Type::float32: return load_word(DType::float32, row, k);
    case Type::bfloat16: return load_word(DType::bfloat16, row, k);
    default: return load_word(DType::float16, row, k);
  }
}

// The flat index of the first element whose number satisfies `bad`, or -1.
template <class Bad>
int64_t first_bad(const PackArgs& args, Bad&& bad) {
  if (args.x.type == Type::int8) return -1;
  Buffer<char> copy;
  for (int64_t i = 0; i < args.batch * args.rows * args.groups; ++i) {
    const int64_t row = i / args.groups;
    const void* x = contiguous_row(args, row / args.rows, row % args.rows, i % args.groups, copy);
    for (int64_t k = 0; k < args.K; ++k) {
      if (bad(float_of(load_element(x, args.x.type, k)))) return i * args.K + k;
    }
  }
  return -1;
}

}  // namespace

int64_t pack(const PackArgs& args, bool check_nan, const Parallel& parallel) {
  if (check_nan) {
    const int64_t index = first_bad(args, [](float x) { return x != x; });
    if (index >= 0) return index;
  }
  pack_plane(args, Plane::negative, args.bits, parallel);
  if (args.inside != nullptr) pack_plane(args, Plane::inside, args.inside, parallel);
  count_rows(args, parallel);
  return -1;
}

void pack_ternary(const PackArgs& args, int32_t* mask, int32_t* sign, const Parallel& parallel) {
  pack_plane(args, Plane::nonzero, mask, parallel);
  pack_plane(args, Plane::negative, sign, parallel);
}

int64_t pack_biper(const PackArgs& args, float omega, bool check, const Parallel& parallel) {
  if (check) {
    const int64_t index =
        first_bad(args, [omega](float x) { return !(std::fabs(omega * x) <= 1048576.0f); });
    if (index >= 0) return index;
  }
  auto* words = reinterpret_cast<uint32_t*>(args.bits);
  const bool narrow = args.x.type != Type::float32;
  for_rows(args, parallel, [&](int64_t begin, int64_t end) {
    Buffer<char> copy;
    Buffer<float> wide(narrow ? args.K : 0);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / args.groups;
      const void* x = contiguous_row(args, row / args.rows, row % args.rows, i % args.groups, copy);
      if (narrow) {
        for (int64_t k = 0; k < args.K; ++k) {
          wide.data()[k] = float_of(load_element(x, args.x.type, k));
        }
      }
      kernels().pack_wave(narrow ? wide.data() : static_cast<const float*>(x), args.K, omega,
                          words + i * row_words(args.K));
    }
  });
  count_rows(args, parallel);
  return -1;
}

namespace {

// The codes of +1 and -1.
struct Codes {
  uint32_t plus, minus;
};

Codes codes(Type type) {
  switch (type) {
    case Type::float32: return {0x3F800000, 0xBF800000};
    case Type::bfloat16: return {0x3F80, 0xBF80};
    case Type::float16: return {0x3C00, 0xBC00};
    default: return {1, 0xFFFFFFFF};
  }
}

template <class Int>
void unpack_row(const uint32_t* words, int64_t K, Codes code, void* out) {
  const auto plus = static_cast<Int>(code.plus), minus = static_cast<Int>(code.minus);
  for (int64_t k = 0; k < K; ++k) {
    static_cast<Int*>(out)[k] = words[k / 32] >> (k % 32) & 1 ? minus : plus;
  }
}

}  // namespace

void unpack(const Bits& bits, int64_t rows, int64_t K, void* out, Type type,
            const Parallel& parallel) {
  const int64_t size = type_size(type);
  parallel_for(parallel, rows, row_grain(K), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const auto* words = reinterpret_cast<const uint32_t*>(bits.data + row * bits.row_stride);
      char* to = static_cast<char*>(out) + row * K * size;
      if (size == 4) unpack_row<uint32_t>(words, K, codes(type), to);
      if (size == 2) unpack_row<uint16_t>(words, K, codes(type), to);
      if (size == 1) unpack_row<uint8_t>(words, K, codes(type), to);
    }
  });
}

int64_t first_bad_padding(const Bits& bits, int64_t batch, int64_t rows, int64_t K) {
  for (int64_t i = 0; i < batch * rows; ++i) {
    const auto* words = reinterpret_cast<const uint32_t*>(bits.data + i / rows * bits.batch_stride +
                                                          i % rows * bits.row_stride);
    uint32_t pad = K % 32 == 0 ? 0 : words[K / 32] >> (K % 32);
    for (int64_t word = ceil_div(K, 32); word < row_words(K); ++word) pad |= words[word];
    if (pad != 0) return i;
  }
  return -1;
}

void popcount(const int32_t* words, int64_t count, int32_t* out, const Parallel& parallel) {
  parallel_for(parallel, count, kGrainBytes, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      out[i] = static_cast<int32_t>(count_ones(static_cast<uint32_t>(words[i])));
    }
  });
}

void maxpool2d(const MaxPoolArgs& args, const Parallel& parallel) {
  const int64_t height = args.out_height(), width = args.out_width();
  const int64_t pixels = args.batch * height * width;
  parallel_for(parallel, pixels, row_grain(args.words), [&](int64_t begin, int64_t end) {
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      const int64_t image = pixel / (height * width);
      const int64_t y = pixel / width % height * args.stride[0] - args.padding[0];
      const int64_t x = pixel % width * args.stride[1] - args.padding[1];
      int32_t* out = args.out + pixel * args.words;
      std::fill_n(out, args.words, -1);
      // -1 is the bit 1: only a window of ones has the maximum -1.
      for (int64_t i = std::max<int64_t>(y, 0); i < std::min(args.H, y + args.kernel[0]); ++i) {
        for (int64_t j = std::max<int64_t>(x, 0); j < std::min(args.W, x + args.kernel[1]); ++j) {
          const int32_t* in = args.x + ((image * args.H + i) * args.W + j) * args.words;
          for (int64_t word = 0; word < args.words; ++word) out[word] &= in[word];
        }
      }
    }
  });
}

}  // namespace nnkernels::binary
