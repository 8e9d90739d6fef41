// Packed binary (XNOR) arithmetic on the CPU: entry points without torch.
//
// A value of -1 is the bit 1, +1 is the bit 0. A row of K values is row_words(K) int32 words, least
// significant bit first, and its pad bits are 0: every function writes them so and relies on it.
// Integer results are exact; float results follow one order of operations and one rounding. So
// nothing depends on the instruction set, the thread count or the algorithm.
//
// Sizes may be 0 where the maths allows it (no rows, no columns); K, C and kernel sizes are >= 1.
#pragma once

#include <cstdint>

#include "common/parallel.h"

namespace nnkernels::binary {

// W(K): int32 words from one row of K bits to the next, a multiple of 256 bits.
constexpr int64_t row_words(int64_t K) { return (K + 255) / 256 * 8; }

enum class Type : int { float32, bfloat16, float16, int8, int16, int32 };

constexpr int64_t type_size(Type type) {
  return type == Type::float32 || type == Type::int32 ? 4 : type == Type::int8 ? 1 : 2;
}

// Forces a kernel family and, after the underscore, the operand whose rows share a vector;
// automatic follows the measured costs (cpu/costs.h). All agree bit for bit. One that the
// instruction set in use lacks becomes popcount.
enum class Algo : int { automatic, popcount, nibble_a, nibble_b, lookup_a, lookup_b, matrix };
enum class Pad : int { zero, one, minus_one };

// Element [b, r, c] is at data + b * batch_stride + r * row_stride + c * column_stride, counted in
// elements.
struct Strided {
  const void* data = nullptr;
  Type type = Type::float32;
  int64_t batch_stride = 0, row_stride = 0, column_stride = 1;
};

// Rows of bits: row r of batch b starts at data + b * batch_stride + r * row_stride (in words).
struct Bits {
  const int32_t* data = nullptr;
  int64_t batch_stride = 0, row_stride = 0;
};

// ---- packing: x [batch, rows, groups * K], float32, bfloat16, float16 or int8
struct PackArgs {
  int64_t batch = 1, rows = 0, K = 0, groups = 1;
  Strided x;
  int32_t* bits = nullptr;    // [batch, rows, groups, row_words(K)]: x < 0
  int32_t* rowpop = nullptr;  // [batch, rows, groups]: ones per row; nullptr: not wanted
  int32_t* inside = nullptr;  // shaped as bits: |x| <= 1; nullptr: not wanted
};
// With check_nan: the flat index (over x's shape) of the first NaN, -1 if there is none.
int64_t pack(const PackArgs& args, bool check_nan, const Parallel& parallel);
// The square wave: the bit is 1 where floor(double(p) / pi) is odd, p = omega * x in float32. x is
// float32, bfloat16 or float16; `inside` is unused. With check: the flat index of the first
// |p| > 2^20 or NaN, -1 if there is none.
int64_t pack_biper(const PackArgs& args, float omega, bool check, const Parallel& parallel);
// Two planes of t in {-1, 0, 1}, shaped as bits: t != 0 and t < 0.
void pack_ternary(const PackArgs& args, int32_t* mask, int32_t* sign, const Parallel& parallel);
// out [rows, K], contiguous, any Type: +1 or -1.
void unpack(const Bits& bits, int64_t rows, int64_t K, void* out, Type type,
            const Parallel& parallel);
// The flat index [rows] of the first row with a set pad bit, -1 if all are 0.
int64_t first_bad_padding(const Bits& bits, int64_t batch, int64_t rows, int64_t K);
// out[i] = number of ones in words[i].
void popcount(const int32_t* words, int64_t count, int32_t* out, const Parallel& parallel);

// ---- products
// What becomes of dot [batch, M, N]. One of:
//   y = dot                        for int32 (int16: |dot| <= 32767 is the caller's check)
//   y = float32(dot) * row_scale[m] * column_scale[n] + bias[n], rounded once to a float type;
//       an absent vector is a skipped operation, and nothing is fused
//   bits [batch, M, row_words(N)], where `dir` is given: dot < thresh[n] for dir[n] > 0,
//       dot > thresh[n] for dir[n] < 0, thresh[n] != 0 for dir[n] = 0
struct Epilogue {
  void* out = nullptr;  // contiguous
  Type type = Type::int32;
  const float* row_scale = nullptr;     // [M], per batch at row_scale_stride
  const float* column_scale = nullptr;  // [N], per batch at column_scale_stride
  const float* bias = nullptr;          // [N], per batch at column_scale_stride
  int64_t row_scale_stride = 0, column_scale_stride = 0;
  const int32_t* thresh = nullptr;  // [N]
  const int8_t* dir = nullptr;      // [N]
};

// dot[b, m, n] = K - 2 * popcount(a[b, m] xor b[b, n])
struct MatmulArgs {
  int64_t batch = 1, M = 0, N = 0, K = 0;
  Bits a, b;                          // [batch, M, row_words(K)], [batch, N, row_words(K)]
  const uint8_t* b_packed = nullptr;  // of prepack(), stands for b (batch_stride of b: 0)
  bool hamming = false;               // out (int32) = popcount(a xor b) itself
  Epilogue epilogue;
  Algo algo = Algo::automatic;
};
void matmul(const MatmulArgs& args, const Parallel& parallel);

// b [N, row_words(K)] prepared for matmul. The length depends on N and K alone; a header records
// the format, N and K.
int64_t packed_size(int64_t N, int64_t K);
void prepack(const Bits& b, int64_t N, int64_t K, uint8_t* packed, const Parallel& parallel);
struct PackedInfo {
  bool valid = false;  // false: not written by this version's prepack()
  int64_t N = 0, K = 0;
};
PackedInfo packed_info(const uint8_t* packed, int64_t size);

// matmul of x [M, K] (float32, bfloat16, float16 or int8, batch_stride unused), packed on the way.
struct LinearArgs {
  int64_t M = 0, N = 0, K = 0;
  Strided x;
  Bits w;                             // [N, row_words(K)]
  const uint8_t* w_packed = nullptr;  // of prepack(), stands for w
  Epilogue epilogue;
  Algo algo = Algo::automatic;
};
void linear(const LinearArgs& args, const Parallel& parallel);

// dot of ternary rows given as planes (pack_ternary); out [batch, M, N] int32.
struct TernaryArgs {
  int64_t batch = 1, M = 0, N = 0, K = 0;
  Bits a_mask, a_sign, b_mask, b_sign;
  int32_t* out = nullptr;
};
void ternary_matmul(const TernaryArgs& args, const Parallel& parallel);

// out[m, n] = sum_ij 2^(i + j) * popcount(a[i, m] and b[j, n]): planes of unsigned integers, least
// significant first. batch_stride of a and b steps from plane to plane; out [M, N] int32.
struct PlanesArgs {
  int64_t a_planes = 1, b_planes = 1, M = 0, N = 0, K = 0;
  Bits a, b;
  int32_t* out = nullptr;
};
void planes_matmul(const PlanesArgs& args, const Parallel& parallel);

// dot[m, n] = sum_k x[m, k] * w[n, k] with int8 x [M, K] (any strides, batch_stride unused) and
// binary w, or ternary w where w_mask is given. |dot| must fit int32 (K <= 2^23).
struct Int8MatmulArgs {
  int64_t M = 0, N = 0, K = 0;
  Strided x;
  Bits w, w_mask;     // w_mask.data = nullptr: binary
  Epilogue epilogue;  // thresh and dir unused; type not int16
};
void int8_matmul(const Int8MatmulArgs& args, const Parallel& parallel);

// ---- convolution: bits NHWC, channels packed by group
struct ConvShape {
  int64_t batch = 0, C = 0, H = 0, W = 0, O = 0, KH = 1, KW = 1, groups = 1;
  int64_t stride[2] = {1, 1}, padding[2] = {0, 0}, dilation[2] = {1, 1};
  Pad pad = Pad::zero;

  int64_t out_height() const {
    return (H + 2 * padding[0] - dilation[0] * (KH - 1) - 1) / stride[0] + 1;
  }
  int64_t out_width() const {
    return (W + 2 * padding[1] - dilation[1] * (KW - 1) - 1) / stride[1] + 1;
  }
  int64_t group_words() const { return row_words(C / groups); }
};

// Sums of weight values over the taps before (i, j): corr[i, j, o] = sum over ky < i, kx < j and c
// of w[o, ky, kx, c], int32 [KH + 1, KW + 1, O]. The sum over any rectangle of valid taps follows,
// so one tensor serves every image size, stride, padding and dilation.
void conv_corr(const ConvShape& shape, const int32_t* w, int32_t* corr);

struct Conv2dArgs {
  ConvShape shape;
  const int32_t* x = nullptr;     // [batch, H, W, groups * group_words], contiguous
  const int32_t* w = nullptr;     // [O, KH, KW, group_words], contiguous
  const int32_t* corr = nullptr;  // of conv_corr(); nullptr: computed on the way where needed
  // As for matmul with M = batch * out_height * out_width and N = O; row_scale unused.
  Epilogue epilogue;
  bool nchw = false;  // out is [batch, O, out_height, out_width], not for bits
  Algo algo = Algo::automatic;
};
void conv2d(const Conv2dArgs& args, const Parallel& parallel);

// Maximum of +-1 over windows; taps outside the image are ignored.
struct MaxPoolArgs {
  int64_t batch = 0, H = 0, W = 0, words = 0;
  int64_t kernel[2] = {1, 1}, stride[2] = {1, 1}, padding[2] = {0, 0};
  const int32_t* x = nullptr;  // [batch, H, W, words]
  int32_t* out = nullptr;      // [batch, OH, OW, words]

  int64_t out_height() const { return (H + 2 * padding[0] - kernel[0]) / stride[0] + 1; }
  int64_t out_width() const { return (W + 2 * padding[1] - kernel[1]) / stride[1] + 1; }
};
void maxpool2d(const MaxPoolArgs& args, const Parallel& parallel);

// ---- gradients, float32; bits become +-1 tiles in cache
// With Y[m, n] = alpha[n] * dot(x[m], w[n]) and upstream g [M, N] (any strides):
//   grad_x[m, k] = sum_n g[m, n] * alpha[n] * w[n, k], and 0 where the bit of x_inside is 0
//   grad_w[n, k] = alpha[n] * sum_m g[m, n] * x[m, k]
//   grad_alpha[n] = sum_m g[m, n] * dot(x[m], w[n])
struct LinearGradArgs {
  int64_t M = 0, N = 0, K = 0;
  Strided g;                     // float32, bfloat16 or float16
  const float* alpha = nullptr;  // [N]; nullptr: 1
  Bits x, w, x_inside;           // x_inside.data = nullptr: no mask
  float* grad_x = nullptr;       // [M, K], contiguous; nullptr: not wanted
  float* grad_w = nullptr;       // [N, K], contiguous; nullptr: not wanted
  float* grad_alpha = nullptr;   // [N]; nullptr: not wanted
};
void linear_grad(const LinearGradArgs& args, const Parallel& parallel);

// The same for conv2d. g and grad_x are addressed by [batch, pixel, channel] strides, so NCHW and
// NHWC both work; grad_w is [O, C / groups, KH, KW], as a torch weight.
struct ConvGradArgs {
  ConvShape shape;
  Strided g;                          // [batch, out_height * out_width, O]
  const float* alpha = nullptr;       // [O]; nullptr: 1
  const int32_t* x = nullptr;         // [batch, H, W, groups * group_words]
  const int32_t* w = nullptr;         // [O, KH, KW, group_words]
  const int32_t* x_inside = nullptr;  // shaped as x; nullptr: no mask
  float* grad_x = nullptr;            // [batch, H * W, C] at grad_x_strides; nullptr: not wanted
  int64_t grad_x_strides[3] = {0, 0, 0};
  float* grad_w = nullptr;      // nullptr: not wanted
  float* grad_alpha = nullptr;  // [O]; nullptr: not wanted
};
void conv2d_grad(const ConvGradArgs& args, const Parallel& parallel);

}  // namespace nnkernels::binary
