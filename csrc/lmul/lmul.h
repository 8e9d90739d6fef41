// L-Mul (Luo and Sun, arXiv 2410.00907) on the CPU: entry points without torch.
//
// Every product is the exact bit pattern of the definition (lmul_math.h); sums are fp32 in one
// fixed order: k ascending inside blocks of 256, block sums added in ascending order, bias last.
// So results do not depend on the instruction set, the thread count, the tile or the algorithm.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/parallel.h"

namespace nnkernels::lmul {

enum class Mode : int { bits, formula };
enum class Round : int { trunc, rne };
// automatic: the fastest exact kernel per panel. The others force one and throw
// std::runtime_error, naming the condition, where it cannot be exact.
enum class Algo : int { automatic, word, guarded, gemm2 };
enum class Grad : int { ste, lmul, exact };
enum class Normalize : int { before, after };

struct Options {
  int mantissa_bits = 23;  // m, 1..23
  Mode mode = Mode::bits;
  Round round = Round::trunc;
  uint32_t offset = 1u << 19;  // c * 2^23

  bool operator==(const Options&) const = default;
};

// Strides count elements and may be 0.
struct Matrix {  // [batch, rows, columns]
  const void* data = nullptr;
  DType dtype = DType::float32;
  int64_t batch_stride = 0, row_stride = 0, column_stride = 0;
};

struct Tensor4 {  // [batch, heads, rows, columns]
  const void* data = nullptr;
  DType dtype = DType::float32;
  int64_t strides[4] = {0, 0, 0, 0};
};

// Written outputs are contiguous, of dtype float32, bfloat16 or float16 (gradients: any DType is
// computed in float32 and stored by the binding's conversion, so kernels write these three).
struct Output {
  void* data = nullptr;  // nullptr: not wanted
  DType dtype = DType::float32;
};

constexpr int kMaxDims = 16;

struct MulArgs {
  int ndim = 0;
  int64_t sizes[kMaxDims] = {};  // of the broadcast result
  const void* x = nullptr;
  const void* y = nullptr;
  DType x_dtype = DType::float32, y_dtype = DType::float32;
  int64_t x_strides[kMaxDims] = {}, y_strides[kMaxDims] = {};
  Output out;
  Options options;
};
void mul(const MulArgs& args, const Parallel& parallel);

// Gradients of mul for upstream g [sizes] (float32, bfloat16 or float16, any strides), summed over
// the dimensions along which an operand has stride 0 because it was broadcast: `x_broadcast[d]`.
struct MulGradArgs {
  MulArgs forward;  // `out` unused
  const void* g = nullptr;
  DType g_dtype = DType::float32;
  int64_t g_strides[kMaxDims] = {};
  bool x_broadcast[kMaxDims] = {}, y_broadcast[kMaxDims] = {};
  Output grad_x, grad_y;
  Grad grad = Grad::ste;
};
void mul_grad(const MulGradArgs& args, const Parallel& parallel);

// out[b, m, n] = sum_k L(a[b, m, k], b[b, k, n]) + bias[n]
struct MatmulArgs {
  int64_t batch = 1, M = 0, N = 0, K = 0;
  Matrix a, b;
  const uint8_t* b_packed = nullptr;  // of pack(), stands for b
  const void* bias = nullptr;         // [N], contiguous, or nullptr
  DType bias_dtype = DType::float32;
  Output out;
  Options options;
  Algo algo = Algo::automatic;
};
void matmul(const MatmulArgs& args, const Parallel& parallel);

// grad_a [batch, M, K] and grad_b [batch, K, N] for upstream g [batch, M, N].
struct MatmulGradArgs {
  int64_t batch = 1, M = 0, N = 0, K = 0;
  Matrix g, a, b;
  Output grad_a, grad_b;
  Options options;
  Grad grad = Grad::ste;
};
void matmul_grad(const MatmulGradArgs& args, const Parallel& parallel);

// A weight w [N, K] prepared for matmul as b = w^T. The length depends on N and K alone; a header
// records the format, N, K and the options. Throws std::runtime_error where the length exceeds
// int64_t.
int64_t packed_size(int64_t N, int64_t K);
void pack(const Matrix& w, int64_t N, int64_t K, const Options& options, uint8_t* packed,
          const Parallel& parallel);
struct PackedInfo {
  bool valid = false;  // false: not written by this version's pack()
  int64_t N = 0, K = 0;
  Options options;
};
PackedInfo packed_info(const uint8_t* packed, int64_t size);

// Mask added to the scores (float kinds) or selecting them (boolean: nonzero byte = attend).
struct Mask {
  const void* data = nullptr;  // nullptr: none
  bool boolean = false;
  DType dtype = DType::float32;
  int64_t strides[4] = {0, 0, 0, 0};  // broadcast to [B, H, T, S]
};

struct AttentionArgs {
  int64_t B = 0, H = 0, Hk = 0, T = 0, S = 0, D = 0, Dv = 0;
  Tensor4 q, k, v;
  Mask mask;
  bool causal = false;  // key j is seen by query i iff j <= i
  float scale = 1.0f;
  Normalize normalize = Normalize::before;
  Output out;  // [B, H, T, Dv]
  Options options;
  Algo algo = Algo::automatic;
};
void attention(const AttentionArgs& args, const Parallel& parallel);

struct AttentionGradArgs {
  AttentionArgs forward;  // `out` unused
  Tensor4 g, out;         // upstream gradient and forward result [B, H, T, Dv]
  Output grad_q, grad_k, grad_v;
  Grad grad = Grad::ste;
};
void attention_grad(const AttentionGradArgs& args, const Parallel& parallel);

}  // namespace nnkernels::lmul
