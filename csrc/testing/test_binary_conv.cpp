// Binary convolution, pooling and gradients against plain loops over +-1, for every instruction
// set.
#include <cstdlib>

#include "testing/binary_reference.h"
#include "testing/check.h"

namespace nnkernels::binary {
namespace {

// ---- convolution
struct ConvCase {
  ConvShape shape;
  Signs x, w;  // [batch * H * W, C], [O * KH * KW, C / groups]
};

// Bits of rows of `groups` packed separately.
Ints grouped_bits(const Signs& x, int64_t groups) {
  Signs split{x.rows * groups, x.K / groups, x.values};
  return bits_of(split);
}

std::vector<ConvCase> conv_cases() {
  std::vector<ConvCase> cases;
  const auto add = [&](int64_t batch, int64_t C, int64_t size, int64_t O, int64_t kernel,
                       int64_t groups, int64_t stride, int64_t padding, int64_t dilation) {
    for (const Pad pad : {Pad::zero, Pad::one, Pad::minus_one}) {
      ConvShape s{batch, C, size, size + 1, O, kernel, kernel, groups};
      s.stride[0] = s.stride[1] = stride;
      s.padding[0] = s.padding[1] = padding;
      s.dilation[0] = s.dilation[1] = dilation;
      s.pad = pad;
      cases.push_back({s, random_signs(batch * size * (size + 1), C, 1),
                       random_signs(O * kernel * kernel, C / groups, 2)});
    }
  };
  add(2, 64, 6, 70, 3, 1, 1, 1, 1);
  add(1, 33, 7, 5, 3, 1, 2, 1, 1);
  add(2, 256, 3, 64, 1, 1, 1, 0, 1);
  add(2, 40, 5, 66, 1, 1, 2, 1, 1);
  add(1, 12, 6, 6, 3, 3, 1, 2, 2);
  add(2, 300, 4, 130, 2, 2, 1, 0, 1);
  // Several blocks of images on a matrix unit.
  add(3, 300, 40, 6, 1, 1, 1, 0, 1);
  add(1, 8, 2, 3, 5, 1, 3, 3, 1);
  cases.back().shape.stride[1] = 1;
  return cases;
}

// Every input pixel and channel that output (pixel, o) sees: f(tap, input pixel or -1).
template <class F>
void for_taps(const ConvShape& s, int64_t pixel, F&& f) {
  const int64_t plane = s.out_height() * s.out_width();
  const int64_t batch = pixel / plane, y = pixel % plane / s.out_width(), x = pixel % s.out_width();
  for (int64_t tap = 0; tap < s.KH * s.KW; ++tap) {
    const int64_t in_y = y * s.stride[0] - s.padding[0] + tap / s.KW * s.dilation[0];
    const int64_t in_x = x * s.stride[1] - s.padding[1] + tap % s.KW * s.dilation[1];
    const bool inside = in_y >= 0 && in_y < s.H && in_x >= 0 && in_x < s.W;
    f(tap, inside ? (batch * s.H + in_y) * s.W + in_x : -1);
  }
}

int pad_value(Pad pad) { return pad == Pad::zero ? 0 : pad == Pad::one ? 1 : -1; }

int64_t pixel_count(const ConvShape& s) { return s.batch * s.out_height() * s.out_width(); }

Ints conv_dots(const ConvCase& c) {
  const ConvShape& s = c.shape;
  const int64_t channels = s.C / s.groups;
  Ints result;
  for (int64_t pixel = 0; pixel < pixel_count(s); ++pixel) {
    for (int64_t o = 0; o < s.O; ++o) {
      const int64_t first = o / (s.O / s.groups) * channels;
      int32_t dot = 0;
      for_taps(s, pixel, [&](int64_t tap, int64_t in) {
        for (int64_t k = 0; k < channels; ++k) {
          const int x = in < 0 ? pad_value(s.pad) : c.x.at(in, first + k);
          dot += x * c.w.at(o * s.KH * s.KW + tap, k);
        }
      });
      result.push_back(dot);
    }
  }
  return result;
}

TEST(conv2d) {
  for (const ConvCase& c : conv_cases()) {
    const ConvShape& s = c.shape;
    const Ints x = grouped_bits(c.x, s.groups), w = bits_of(c.w), expected = conv_dots(c);
    const int64_t pixels = pixel_count(s), plane = s.out_height() * s.out_width();
    const Floats scale = random_floats(s.O, 3), bias = random_floats(s.O, 4);
    const Ints thresh = thresholds(s.O, 10);
    const std::vector<int8_t> dir = directions(s.O);
    Ints corr((s.KH + 1) * (s.KW + 1) * s.O);
    conv_corr(s, w.data(), corr.data());
    for_each_isa([&] {
      for (const Algo algo : kAlgos) {
        Conv2dArgs args{s, x.data(), w.data(), nullptr, {}, false, algo};
        Ints out(pixels * s.O);
        args.epilogue.out = out.data();
        conv2d(args, scattered());
        CHECK(same(out, expected));

        args.corr = corr.data();
        args.nchw = true;
        for (const Type type :
             {Type::int32, Type::int16, Type::float32, Type::bfloat16, Type::float16}) {
          const bool scaled = type != Type::int32 && type != Type::int16;
          args.epilogue.type = type;
          args.epilogue.column_scale = scaled ? scale.data() : nullptr;
          args.epilogue.bias = scaled ? bias.data() : nullptr;
          std::vector<char> nchw(pixels * s.O * type_size(type));
          args.epilogue.out = nchw.data();
          conv2d(args, scattered());
          const std::vector<char> nhwc = finish(args.epilogue, expected, pixels, s.O);
          bool right = true;
          for (int64_t i = 0; i < pixels * s.O; ++i) {
            const int64_t pixel = i / s.O, o = i % s.O;
            const int64_t to = (pixel / plane * s.O + o) * plane + pixel % plane;
            right &= std::memcmp(nhwc.data() + i * type_size(type),
                                 nchw.data() + to * type_size(type), type_size(type)) == 0;
          }
          CHECK(right);
        }

        args.nchw = false;
        args.epilogue = {};
        args.epilogue.thresh = thresh.data();
        args.epilogue.dir = dir.data();
        Ints bits(pixels * row_words(s.O), -1);
        args.epilogue.out = bits.data();
        conv2d(args, scattered());
        CHECK(same(bits, sign_bits(expected, pixels, s.O, thresh, dir)));
      }
    });
  }
}

// Large outputs on whole cache lines are written past the caches; elsewhere they are not.
TEST(large_outputs) {
  ConvShape s{2, 40, 40, 48, 72, 3, 3};
  s.padding[0] = s.padding[1] = 1;
  const Ints x = bits_of(random_signs(s.batch * s.H * s.W, s.C, 1));
  const Ints w = bits_of(random_signs(s.O * s.KH * s.KW, s.C, 2));
  const Floats scale = random_floats(s.O, 3);
  const int64_t count = pixel_count(s) * s.O;
  for_each_isa([&] {
    for (const Type type : {Type::int32, Type::float32, Type::bfloat16}) {
      for (const bool nchw : {false, true}) {
        const int64_t bytes = count * type_size(type);
        char* lines = static_cast<char*>(std::aligned_alloc(64, bytes + 64));
        const auto run = [&](char* out) {
          Conv2dArgs args{s, x.data(), w.data(), nullptr, {}, nchw};
          args.epilogue.type = type;
          args.epilogue.column_scale = scale.data();
          args.epilogue.out = out;
          conv2d(args, scattered());
          return std::vector<char>(out, out + bytes);
        };
        const std::vector<char> aligned = run(lines);
        CHECK(same(aligned, run(lines + 4)));
        std::free(lines);
      }
    }
  });
}

TEST(maxpool2d) {
  const int64_t H = 5, W = 6, C = 40, words = row_words(C);
  const Signs x = random_signs(2 * H * W, C, 6);
  const Ints bits = bits_of(x);
  MaxPoolArgs args{2, H, W, words, {3, 2}, {2, 1}, {1, 1}, bits.data(), nullptr};
  const int64_t height = args.out_height(), width = args.out_width();
  Ints out(2 * height * width * words);
  args.out = out.data();
  maxpool2d(args, scattered());
  ConvShape s{2, C, H, W, 1, 3, 2};
  s.stride[0] = 2;
  s.padding[0] = s.padding[1] = 1;
  bool right = true;
  for (int64_t pixel = 0; pixel < 2 * height * width; ++pixel) {
    for (int64_t k = 0; k < words * 32; ++k) {
      int best = -1;
      for_taps(s, pixel, [&](int64_t, int64_t in) {
        if (in >= 0) best = std::max<int>(best, k < C ? x.at(in, k) : 1);
      });
      right &= bit_at(out, pixel, words, k) == (best < 0);
    }
  }
  CHECK(right);
}

// ---- gradients
// Largest error of `values` in units of the largest expected magnitude.
double error(const Floats& values, const std::vector<double>& expected) {
  double worst = 0, scale = 1e-30;
  for (const double value : expected) scale = std::max(scale, std::fabs(value));
  for (size_t i = 0; i < values.size(); ++i) {
    worst = std::max(worst, std::fabs(values[i] - expected[i]));
  }
  return worst / scale;
}

TEST(linear_grad) {
  for (const int64_t M : {1, 13, 300}) {
    for (const int64_t K : {1, 33, 1100}) {
      const int64_t N = 70, width = row_words(K);
      const Signs x = random_signs(M, K, 1), w = random_signs(N, K, 2),
                  mask = random_signs(M, K, 3);
      const Ints x_bits = bits_of(x), w_bits = bits_of(w), inside = bits_of(mask);
      const Floats g = random_floats(M * N, 4), alpha = random_floats(N, 5);
      std::vector<double> grad_x(M * K), grad_w(N * K), grad_alpha(N);
      for (int64_t m = 0; m < M; ++m) {
        for (int64_t n = 0; n < N; ++n) {
          // g is given transposed, to try strides.
          const double up = g[n * M + m];
          for (int64_t k = 0; k < K; ++k) {
            if (mask.at(m, k) < 0) grad_x[m * K + k] += up * alpha[n] * w.at(n, k);
            grad_w[n * K + k] += up * alpha[n] * x.at(m, k);
            grad_alpha[n] += up * x.at(m, k) * w.at(n, k);
          }
        }
      }
      Floats first;
      for_each_isa([&] {
        Floats out_x(M * K), out_w(N * K), out_alpha(N);
        linear_grad({M,
                     N,
                     K,
                     {g.data(), Type::float32, 0, 1, M},
                     alpha.data(),
                     {x_bits.data(), 0, width},
                     {w_bits.data(), 0, width},
                     {inside.data(), 0, width},
                     out_x.data(),
                     out_w.data(),
                     out_alpha.data()},
                    scattered());
        CHECK(error(out_x, grad_x) < 1e-6);
        CHECK(error(out_w, grad_w) < 2e-6);
        CHECK(error(out_alpha, grad_alpha) < 2e-6);
        out_x.insert(out_x.end(), out_w.begin(), out_w.end());
        out_x.insert(out_x.end(), out_alpha.begin(), out_alpha.end());
        if (first.empty()) first = out_x;
        CHECK(same(out_x, first));
      });
    }
  }
}

TEST(conv2d_grad) {
  for (const ConvCase& c : conv_cases()) {
    const ConvShape& s = c.shape;
    const int64_t channels = s.C / s.groups, taps = s.KH * s.KW, outputs = s.O / s.groups;
    const int64_t plane = s.out_height() * s.out_width(), pixels = pixel_count(s);
    const Signs mask = random_signs(c.x.rows, s.C, 9);
    const Ints x = grouped_bits(c.x, s.groups), w = bits_of(c.w),
               inside = grouped_bits(mask, s.groups);
    const Floats g = random_floats(pixels * s.O, 4), alpha = random_floats(s.O, 5);
    std::vector<double> grad_x(s.batch * s.H * s.W * s.C), grad_w(s.O * channels * taps),
        grad_alpha(s.O);
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      for (int64_t o = 0; o < s.O; ++o) {
        // g is NCHW, grad_x NHWC.
        const double up = g[(pixel / plane * s.O + o) * plane + pixel % plane];
        for_taps(s, pixel, [&](int64_t tap, int64_t in) {
          for (int64_t k = 0; k < channels; ++k) {
            const int64_t channel = o / outputs * channels + k;
            const int weight = c.w.at(o * taps + tap, k);
            const int value = in < 0 ? pad_value(s.pad) : c.x.at(in, channel);
            grad_w[(o * channels + k) * taps + tap] += up * alpha[o] * value;
            grad_alpha[o] += up * value * weight;
            if (in >= 0 && mask.at(in, channel) < 0) {
              grad_x[in * s.C + channel] += up * alpha[o] * weight;
            }
          }
        });
      }
    }
    Floats first;
    for_each_isa([&] {
      Floats out_x(grad_x.size()), out_w(grad_w.size()), out_alpha(s.O);
      conv2d_grad({s,
                   {g.data(), Type::float32, s.O * plane, 1, plane},
                   alpha.data(),
                   x.data(),
                   w.data(),
                   inside.data(),
                   out_x.data(),
                   {s.H * s.W * s.C, s.C, 1},
                   out_w.data(),
                   out_alpha.data()},
                  scattered());
      CHECK(error(out_x, grad_x) < 1e-6);
      CHECK(error(out_w, grad_w) < 2e-6);
      CHECK(error(out_alpha, grad_alpha) < 2e-6);
      out_x.insert(out_x.end(), out_w.begin(), out_w.end());
      out_x.insert(out_x.end(), out_alpha.begin(), out_alpha.end());
      if (first.empty()) first = out_x;
      CHECK(same(out_x, first));
    });
  }
}

}  // namespace
}  // namespace nnkernels::binary
