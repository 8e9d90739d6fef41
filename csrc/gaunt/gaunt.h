// Products of signals on the sphere on the CPU: entry points without torch.
//
// A signal of degree L is (L + 1)^2 coefficients in the order (l, m) = (0,0), (1,-1), (1,0), ...
// Every result of a sample depends on that sample alone and not on the number of samples, their
// position or the thread count; sums over samples (gradients of broadcast operands) have a fixed
// order. float32, bfloat16 and float16 are computed in float32, float64 in float64; the 16-bit
// types are rounded once, at the end.
#pragma once

#include <cstdint>
#include <vector>

#include "common/parallel.h"

namespace nnkernels::gaunt {

enum class Type : int { float32, float64, bfloat16, float16 };
constexpr int64_t type_size(Type type) {
  return type == Type::float64 ? 8 : type == Type::float32 ? 4 : 2;
}

// What the coefficients refer to: int Y^2 = 1, sum_m Y^2 = 2l+1, sum_m Y^2 = 1.
enum class Basis : int { integral, component, norm };
// The even product, the Poisson bracket; both: for paths.
enum class Kind : int { even, cross, both };

constexpr int64_t kMaxDegree = 24, kMaxDegreeSum = 96, kMaxFactors = 6, kMaxDims = 16;

constexpr int64_t coefficients_of(int64_t L) { return (L + 1) * (L + 1); }

// Coefficient a of sample (i_0, i_1, ...) is at data + a * step + sum_k i_k * strides[k], counted
// in elements. An absent operand, or a gradient that is not wanted, has no data. A gradient with
// stride 0 along a dimension is the sum over it.
struct Array {
  void* data = nullptr;
  int64_t step = 1;
  int64_t strides[kMaxDims] = {};

  explicit operator bool() const { return data != nullptr; }
};

// The samples of a call.
struct Samples {
  Type type = Type::float32;
  int ndim = 0;
  int64_t sizes[kMaxDims] = {};
};

// S = sum over a, b, c of K_abc (w1 x)_a (w2 y)_b (w3 gz)_c with K = G or T in the given basis is
// linear in each of its six arguments. `product` is dS/dgz, `product_grad` its other derivatives,
// `product_grad_grad` the derivatives of ux dS/dx + uy dS/dy + sum_i uw_i dS/dw_i.
struct Trilinear {
  Array x, y, z, w1, w2, w3;
};
struct ProductArgs {
  Samples samples;
  Kind kind = Kind::even;
  Basis basis = Basis::integral;
  int64_t L1 = 0, L2 = 0, L3 = 0;
  Trilinear in;       // z is gz
  Trilinear tangent;  // for grad_grad: ux, uy and uw; z unused
  Trilinear out;      // for product: z
};
void product(const ProductArgs& args, const Parallel& parallel);
void product_grad(const ProductArgs& args, const Parallel& parallel);
void product_grad_grad(const ProductArgs& args, const Parallel& parallel);

// The pointwise product of n = x.size() signals. gz, u and the gradients as above.
struct NfoldArgs {
  Samples samples;
  Basis basis = Basis::integral;
  std::vector<int64_t> degrees;
  int64_t out_degree = 0;
  std::vector<Array> x, u, gx;
  Array gz, z;  // z: the result, or the gradient by gz
};
void nfold(const NfoldArgs& args, const Parallel& parallel);
void nfold_grad(const NfoldArgs& args, const Parallel& parallel);
void nfold_grad_grad(const NfoldArgs& args, const Parallel& parallel);

// nfold of n equal signals; gx is the gradient by their common value.
struct PowerArgs {
  Samples samples;
  Basis basis = Basis::integral;
  int64_t n = 1, degree = 0, out_degree = 0;
  Array x, u, gz, gx, z;
};
void power(const PowerArgs& args, const Parallel& parallel);
void power_grad(const PowerArgs& args, const Parallel& parallel);
void power_grad_grad(const PowerArgs& args, const Parallel& parallel);

// S = sum over paths p of w_p K^p_abc x_a y_b gz_c, paths in lexicographic order of (l1, l2, l3).
struct Quadrilinear {
  Array x, y, z, w;
};
struct PathsArgs {
  Samples samples;
  Kind kind = Kind::even;
  Basis basis = Basis::integral;
  int64_t L1 = 0, L2 = 0, L3 = 0;
  Quadrilinear in, tangent, out;
};
int64_t path_count(Kind kind, int64_t L1, int64_t L2, int64_t L3);
void paths(const PathsArgs& args, const Parallel& parallel);
void paths_grad(const PathsArgs& args, const Parallel& parallel);
void paths_grad_grad(const PathsArgs& args, const Parallel& parallel);

// Values f at points (float64 [points, 3], any length but 0) times weights (nullptr: 1), and the
// projection that is its transpose. `in` and `out` are x [(L+1)^2] and f [points] of a sample.
struct GridArgs {
  Samples samples;
  int64_t L = 0, points = 0;
  const double* xyz = nullptr;
  const double* weights = nullptr;
  Array in, out;
};
void to_grid(const GridArgs& args, const Parallel& parallel);
void from_grid(const GridArgs& args, const Parallel& parallel);

}  // namespace nnkernels::gaunt
