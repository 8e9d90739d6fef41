// Gradients: products of the upstream gradient with +-1 matrices that exist only as bits.
#include <algorithm>

#include "binary/cpu/engine.h"
#include "binary/cpu/taps.h"

namespace nnkernels::binary {
namespace {

constexpr int64_t kColumns = 1024;  // of a block of the result

float load_float(const Strided& x, int64_t index) {
  switch (x.type) {
    case Type::bfloat16: return float_of(load_word(DType::bfloat16, x.data, index));
    case Type::float16: return float_of(load_word(DType::float16, x.data, index));
    default: return static_cast<const float*>(x.data)[index];
  }
}

float sign_of(const int32_t* words, int64_t k) {
  return static_cast<uint32_t>(words[k / 32]) >> (k % 32) & 1 ? -1.0f : 1.0f;
}

const uint8_t* bytes_of(const int32_t* words) { return reinterpret_cast<const uint8_t*>(words); }

// c[i, k] = sum_j a[i, j] * value(bit k of row j), i < rows, j < depth, k < columns.
//   fill(i0, ni, j0, nj, a): writes a[j - j0][i - i0], rows of kGradRows floats
//   row(j): the bits of row j, or nullptr for zeros
//   emit(i, k0, nk, c): receives c[i, k0 .. k0 + nk), for a row in ascending order of k0
// Sums of 256 terms are added to the running total, so the error grows slowly with the depth.
template <class Fill, class Row, class Emit>
void signed_product(int64_t rows, int64_t depth, int64_t columns, const Parallel& parallel,
                    Fill&& fill, Row&& row, Emit&& emit) {
  const int64_t share = ceil_div(rows, parallel.threads);
  const int64_t block = std::clamp<int64_t>(ceil_div(share, 12) * 12, 12, kGradRows);
  parallel_for(parallel, ceil_div(rows, block), 1, [&](int64_t begin, int64_t end) {
    const int64_t stride = std::min(kColumns, ceil_div(columns, 32) * 32);
    Buffer<float> a(kGradDepth * kGradRows), c(block * stride);
    const uint8_t* pointers[kGradDepth];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t i0 = task * block, ni = std::min(block, rows - i0);
      for (int64_t k0 = 0; k0 < columns; k0 += kColumns) {
        const int64_t nk = std::min(kColumns, columns - k0);
        std::fill_n(c.data(), ni * stride, 0.0f);
        for (int64_t j0 = 0; j0 < depth; j0 += kGradDepth) {
          const int64_t nj = std::min(kGradDepth, depth - j0);
          fill(i0, ni, j0, nj, a.data());
          for (int64_t j = 0; j < nj; ++j) pointers[j] = row(j0 + j);
          kernels().float_bits(a.data(), ni, pointers, nj, k0, ceil_div(nk, 32) * 32, c.data(),
                               stride);
        }
        for (int64_t i = 0; i < ni; ++i) emit(i0 + i, k0, nk, c.data() + i * stride);
      }
    }
  });
}

float alpha_of(const float* alpha, int64_t n) { return alpha != nullptr ? alpha[n] : 1.0f; }

// grad_alpha[n] = sum_k w[n, k] * (g^T x)[n, k], from the rows of g^T x as they are made.
class AlphaSums {
 public:
  AlphaSums(float* out, int64_t count) : out_(out), sums_(count, 0.0) {}
  void add(int64_t n, const int32_t* w, int64_t k0, int64_t nk, const float* c) {
    if (out_ == nullptr) return;
    for (int64_t k = 0; k < nk; ++k) sums_[n] += static_cast<double>(sign_of(w, k0 + k) * c[k]);
  }
  void finish() {
    if (out_ == nullptr) return;
    std::transform(sums_.begin(), sums_.end(), out_,
                   [](double x) { return static_cast<float>(x); });
  }

 private:
  float* out_;
  std::vector<double> sums_;
};

}  // namespace

void linear_grad(const LinearGradArgs& args, const Parallel& parallel) {
  const auto g = [&](int64_t m, int64_t n) {
    return load_float(args.g, m * args.g.row_stride + n * args.g.column_stride);
  };
  if (args.grad_x != nullptr) {
    signed_product(
        args.M, args.N, args.K, parallel,
        [&](int64_t i0, int64_t ni, int64_t j0, int64_t nj, float* a) {
          for (int64_t j = 0; j < nj; ++j) {
            const float alpha = alpha_of(args.alpha, j0 + j);
            for (int64_t i = 0; i < ni; ++i) a[j * kGradRows + i] = g(i0 + i, j0 + j) * alpha;
          }
        },
        [&](int64_t n) { return bytes_of(args.w.data + n * args.w.row_stride); },
        [&](int64_t m, int64_t k0, int64_t nk, const float* c) {
          const int32_t* inside = args.x_inside.data != nullptr
                                      ? args.x_inside.data + m * args.x_inside.row_stride
                                      : nullptr;
          float* out = args.grad_x + m * args.K + k0;
          for (int64_t k = 0; k < nk; ++k) {
            out[k] = inside == nullptr || sign_of(inside, k0 + k) < 0 ? c[k] : 0.0f;
          }
        });
  }
  if (args.grad_w == nullptr && args.grad_alpha == nullptr) return;
  AlphaSums alpha_sums(args.grad_alpha, args.N);
  signed_product(
      args.N, args.M, args.K, parallel,
      [&](int64_t i0, int64_t ni, int64_t j0, int64_t nj, float* a) {
        for (int64_t j = 0; j < nj; ++j) {
          for (int64_t i = 0; i < ni; ++i) a[j * kGradRows + i] = g(j0 + j, i0 + i);
        }
      },
      [&](int64_t m) { return bytes_of(args.x.data + m * args.x.row_stride); },
      [&](int64_t n, int64_t k0, int64_t nk, const float* c) {
        alpha_sums.add(n, args.w.data + n * args.w.row_stride, k0, nk, c);
        if (args.grad_w == nullptr) return;
        const float alpha = alpha_of(args.alpha, n);
        for (int64_t k = 0; k < nk; ++k) args.grad_w[n * args.K + k0 + k] = alpha * c[k];
      });
  alpha_sums.finish();
}

namespace {

// One group of a convolution's gradient.
struct ConvGroup {
  const ConvGradArgs& args;
  int64_t group;
  const ConvShape& s = args.shape;
  int64_t channels = s.C / s.groups, outputs = s.O / s.groups, words = s.group_words();
  int64_t plane = s.out_height() * s.out_width(), image = s.H * s.W;

  int64_t g_index(int64_t batch, int64_t pixel, int64_t o) const {
    return batch * args.g.batch_stride + pixel * args.g.row_stride +
           (group * outputs + o) * args.g.column_stride;
  }
  const int32_t* x_words(const int32_t* x, int64_t pixel) const {
    return x + (pixel * s.groups + group) * words;
  }
  const int32_t* w_words(int64_t o, int64_t tap) const {
    return args.w + ((group * outputs + o) * s.KH * s.KW + tap) * words;
  }

  // The output coordinate whose tap `tap` reads input coordinate `in`, or -1.
  int64_t reader(int64_t in, int64_t tap, int axis) const {
    const int64_t at = in + s.padding[axis] - tap * s.dilation[axis];
    const int64_t size = axis == 0 ? s.out_height() : s.out_width();
    const bool exists = at >= 0 && at % s.stride[axis] == 0 && at / s.stride[axis] < size;
    return exists ? at / s.stride[axis] : -1;
  }

  // The sum over (tap, o) of g at the pixel that reads input pixel i through the tap.
  void grad_x(const Parallel& parallel) const {
    const auto fill = [&](int64_t i0, int64_t ni, int64_t j0, int64_t nj, float* a) {
      for (int64_t i = 0; i < ni; ++i) {
        const int64_t pixel = (i0 + i) % image, batch = (i0 + i) / image;
        for (int64_t j = 0; j < nj;) {
          const int64_t tap = (j0 + j) / outputs, o0 = (j0 + j) % outputs;
          const int64_t count = std::min(nj - j, outputs - o0);
          const int64_t y = reader(pixel / s.W, tap / s.KW, 0);
          const int64_t x = reader(pixel % s.W, tap % s.KW, 1);
          for (int64_t o = o0; o < o0 + count; ++o, ++j) {
            a[j * kGradRows + i] =
                y < 0 || x < 0 ? 0.0f
                               : load_float(args.g, g_index(batch, y * s.out_width() + x, o)) *
                                     alpha_of(args.alpha, group * outputs + o);
          }
        }
      }
    };
    const auto row = [&](int64_t j) { return bytes_of(w_words(j % outputs, j / outputs)); };
    const auto emit = [&](int64_t i, int64_t k0, int64_t nk, const float* c) {
      const int32_t* inside = args.x_inside != nullptr ? x_words(args.x_inside, i) : nullptr;
      float* out = args.grad_x + i / image * args.grad_x_strides[0] +
                   i % image * args.grad_x_strides[1] +
                   (group * channels + k0) * args.grad_x_strides[2];
      for (int64_t k = 0; k < nk; ++k) {
        out[k * args.grad_x_strides[2]] =
            inside == nullptr || sign_of(inside, k0 + k) < 0 ? c[k] : 0.0f;
      }
    };
    signed_product(s.batch * image, s.KH * s.KW * outputs, channels, parallel, fill, row, emit);
  }

  // One tap of grad_w: the sum over output pixels of g and the pixel of x under the tap.
  void grad_w_tap(int64_t tap, const std::vector<TapRange>& ys, const std::vector<TapRange>& xs,
                  const uint8_t* outside, AlphaSums& alpha_sums, const Parallel& parallel) const {
    const auto fill = [&](int64_t i0, int64_t ni, int64_t j0, int64_t nj, float* a) {
      for (int64_t j = 0; j < nj; ++j) {
        const int64_t batch = (j0 + j) / plane, pixel = (j0 + j) % plane;
        for (int64_t i = 0; i < ni; ++i) {
          a[j * kGradRows + i] = load_float(args.g, g_index(batch, pixel, i0 + i));
        }
      }
    };
    const int64_t tap_y = tap / s.KW, tap_x = tap % s.KW, width = s.out_width();
    const auto row = [&](int64_t j) {
      const TapRange& y = ys[j % plane / width];
      const TapRange& x = xs[j % width];
      if (tap_y < y.first || tap_y >= y.last || tap_x < x.first || tap_x >= x.last) return outside;
      const int64_t at = (j / plane * s.H + y.origin + tap_y * s.dilation[0]) * s.W + x.origin +
                         tap_x * s.dilation[1];
      return bytes_of(x_words(args.x, at));
    };
    const auto emit = [&](int64_t o, int64_t k0, int64_t nk, const float* c) {
      const int64_t channel = group * outputs + o;
      alpha_sums.add(channel, w_words(o, tap), k0, nk, c);
      if (args.grad_w == nullptr) return;
      const float alpha = alpha_of(args.alpha, channel);
      float* out = args.grad_w + (channel * channels + k0) * s.KH * s.KW + tap;
      for (int64_t k = 0; k < nk; ++k) out[k * s.KH * s.KW] = alpha * c[k];
    };
    signed_product(outputs, s.batch * plane, channels, parallel, fill, row, emit);
  }
};

}  // namespace

void conv2d_grad(const ConvGradArgs& args, const Parallel& parallel) {
  const ConvShape& s = args.shape;
  const std::vector<TapRange> ys = tap_ranges(s, 0), xs = tap_ranges(s, 1);
  // A pixel outside the image: zeros, or a row of equal bits.
  const std::vector<int32_t> border(s.group_words(), s.pad == Pad::minus_one ? -1 : 0);
  const uint8_t* outside = s.pad == Pad::zero ? nullptr : bytes_of(border.data());
  const bool weights = args.grad_w != nullptr || args.grad_alpha != nullptr;
  AlphaSums alpha_sums(args.grad_alpha, s.O);
  for (int64_t group = 0; group < s.groups; ++group) {
    const ConvGroup one{args, group};
    if (args.grad_x != nullptr) one.grad_x(parallel);
    for (int64_t tap = 0; weights && tap < s.KH * s.KW; ++tap) {
      one.grad_w_tap(tap, ys, xs, outside, alpha_sums, parallel);
    }
  }
  alpha_sums.finish();
}

}  // namespace nnkernels::binary
