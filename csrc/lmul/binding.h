// Reading the arguments of the lmul operators: options, operands, shapes. For every device.
#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "common/binding.h"
#include "lmul/lmul.h"

HIDDEN_NAMESPACE_BEGIN(nnkernels, lmul)

using OptionalInt = std::optional<int64_t>;
using OptionalFloat = std::optional<double>;
using OptionalText = std::optional<Text>;
using OptionalType = std::optional<ScalarType>;

inline constexpr Choice<Mode> kModes[] = {{"bits", Mode::bits}, {"formula", Mode::formula}};
inline constexpr Choice<Round> kRounds[] = {{"trunc", Round::trunc}, {"rne", Round::rne}};
inline constexpr Choice<Grad> kGrads[] = {
    {"ste", Grad::ste}, {"lmul", Grad::lmul}, {"exact", Grad::exact}};
inline constexpr Choice<Normalize> kNormalizes[] = {{"before", Normalize::before},
                                                    {"after", Normalize::after}};

// ---- options ----

struct RawOptions {
  OptionalInt mantissa_bits;
  const Text& mode;
  const Text& round;
  OptionalFloat offset;
};

inline int own_mantissa_bits(DType dtype) {
  switch (dtype) {
    case DType::float32: return 23;
    case DType::float16: return 10;
    case DType::bfloat16: return 7;
    case DType::float8_e4m3fn: return 3;
    default: return 2;
  }
}

inline Options parse_options(const char* op, const RawOptions& raw,
                             std::initializer_list<DType> inputs) {
  Options options;
  int64_t m = 0;
  for (const DType dtype : inputs) m = std::max<int64_t>(m, own_mantissa_bits(dtype));
  m = raw.mantissa_bits.value_or(m);
  NNK_CHECK(m >= 1 && m <= 23, op, ": mantissa_bits must be between 1 and 23, got ", m);
  options.mantissa_bits = static_cast<int>(m);
  options.mode = choose(op, "mode", raw.mode, kModes);
  options.round = choose(op, "round", raw.round, kRounds);
  options.offset = 1u << (23 - (m <= 3 ? m : m == 4 ? 3 : 4));
  if (raw.offset) {
    const double scaled = *raw.offset * (1 << 23);
    NNK_CHECK(*raw.offset >= 0 && *raw.offset < 1 && scaled == std::floor(scaled), op,
              ": offset must be a multiple of 2^-23 with 0 <= offset < 1, got ",
              number(*raw.offset));
    options.offset = static_cast<uint32_t>(scaled);
  }
  return options;
}

inline std::string describe(const Options& options) {
  std::ostringstream text;
  text << "mantissa_bits=" << options.mantissa_bits << ", mode='"
       << kModes[static_cast<int>(options.mode)].name << "', round='"
       << kRounds[static_cast<int>(options.round)].name
       << "', offset=" << number(static_cast<double>(options.offset) / (1 << 23));
  return text.str();
}

// torch's promotion of the supported dtypes; float32 where a float8 takes part.
inline ScalarType result_type(OptionalType out_dtype, std::initializer_list<ScalarType> inputs) {
  if (out_dtype) return *out_dtype;
  const ScalarType first = *inputs.begin();
  const bool same =
      std::all_of(inputs.begin(), inputs.end(), [first](ScalarType type) { return type == first; });
  return same && !is_float8(first) ? first : ScalarType::Float;
}

// ---- operands ----

inline Matrix matrix(const Tensor& tensor, DType dtype) {  // [rows, columns] or a batch of them
  const int64_t d = tensor.dim();
  return {tensor.const_data_ptr(), dtype, d == 3 ? tensor.stride(0) : 0, tensor.stride(d - 2),
          tensor.stride(d - 1)};
}

inline Matrix transposed(Matrix matrix) {
  std::swap(matrix.row_stride, matrix.column_stride);
  return matrix;
}

inline Tensor4 tensor4(const Tensor& tensor, DType dtype) {
  Tensor4 operand{tensor.const_data_ptr(), dtype, {}};
  for (int d = 0; d < 4; ++d) operand.strides[d] = tensor.stride(d);
  return operand;
}

inline Output output(const Result& result) { return {result.data(), result.dtype()}; }

// The gradient of `of`, or an empty tensor where it is not needed.
class Gradient {
 public:
  Gradient(const char* op, const Tensor& of, bool needed)
      : needed_(needed),
        result_(op, of, needed ? sizes_of(of) : std::vector<int64_t>{0}, of.scalar_type()) {}

  Output out() const { return needed_ ? output(result_) : Output{}; }
  Tensor finish() const { return result_.finish(); }

 private:
  bool needed_;
  Result result_;
};

// ---- arguments of mul ----

inline MulArgs mul_args(const char* op, const Tensor& x, const Tensor& y, const RawOptions& raw) {
  check_device(op, "y", y, x);
  MulArgs args;
  args.x_dtype = input_dtype(op, "x", x);
  args.y_dtype = input_dtype(op, "y", y);
  args.options = parse_options(op, raw, {args.x_dtype, args.y_dtype});
  args.x = x.const_data_ptr();
  args.y = y.const_data_ptr();
  const int64_t ndim = std::max(x.dim(), y.dim());
  NNK_CHECK(ndim <= kMaxDims, op, ": x and y may have up to ", kMaxDims, " dimensions, got ", ndim);
  args.ndim = static_cast<int>(ndim);
  for (int64_t d = 0; d < ndim; ++d) {
    const int64_t xd = d - (ndim - x.dim()), yd = d - (ndim - y.dim());
    const int64_t x_size = xd < 0 ? 1 : x.size(xd), y_size = yd < 0 ? 1 : y.size(yd);
    NNK_CHECK(x_size == y_size || x_size == 1 || y_size == 1, op, ": x ", shape(x), " and y ",
              shape(y), " do not broadcast");
    args.sizes[d] = x_size == 1 ? y_size : x_size;
    args.x_strides[d] = x_size == 1 ? 0 : x.stride(xd);
    args.y_strides[d] = y_size == 1 ? 0 : y.stride(yd);
  }
  return args;
}

// torch's promotion: a 0-dimensional operand gives way to one with dimensions.
inline ScalarType mul_type(OptionalType out_dtype, const Tensor& x, const Tensor& y) {
  const ScalarType x_type = x.scalar_type(), y_type = y.scalar_type();
  if (is_float8(x_type) || is_float8(y_type) || (x.dim() == 0) == (y.dim() == 0)) {
    return result_type(out_dtype, {x_type, y_type});
  }
  return out_dtype.value_or(y.dim() == 0 ? x_type : y_type);
}

// `upstream` must outlive the arguments: the gradient of x * y, in float32, bfloat16 or float16.
inline MulGradArgs mul_grad_args(const char* op, const Tensor& upstream, const Tensor& x,
                                 const Tensor& y, const RawOptions& raw, const Text& grad) {
  MulGradArgs args;
  args.forward = mul_args(op, x, y, raw);
  args.grad = choose(op, "grad", grad, kGrads);
  const int ndim = args.forward.ndim;
  NNK_CHECK(upstream.dim() == ndim &&
                std::equal(upstream.sizes().begin(), upstream.sizes().end(), args.forward.sizes),
            op, ": g is ", shape(upstream), ", expected the broadcast shape of x ", shape(x),
            " and y ", shape(y));
  check_device(op, "g", upstream, x);
  args.g_dtype = input_dtype(op, "g", upstream);
  args.g = upstream.const_data_ptr();
  for (int d = 0; d < ndim; ++d) {
    args.g_strides[d] = upstream.stride(d);
    const int64_t xd = d - (ndim - x.dim()), yd = d - (ndim - y.dim());
    args.x_broadcast[d] = args.forward.sizes[d] != 1 && (xd < 0 || x.size(xd) == 1);
    args.y_broadcast[d] = args.forward.sizes[d] != 1 && (yd < 0 || y.size(yd) == 1);
  }
  return args;
}

// ---- arguments of matmul, bmm and linear ----

// a [M, K] and b [K, N], or a [B, M, K] and b [B, K, N].
inline MatmulArgs matmul_args(const char* op, int rank, const Tensor& a, const Tensor& b,
                              const RawOptions& raw) {
  check_device(op, "b", b, a);
  NNK_CHECK(a.dim() == rank && b.dim() == rank, op, ": a is ", shape(a), " and b is ", shape(b),
            ", expected ", rank, " dimensions each");
  NNK_CHECK(a.size(rank - 1) == b.size(rank - 2), op, ": a is ", shape(a), " and b is ", shape(b),
            ": their inner dimensions differ");
  NNK_CHECK(rank == 2 || a.size(0) == b.size(0), op, ": a is ", shape(a), " and b is ", shape(b),
            ": their batch dimensions differ");
  MatmulArgs args;
  args.a = matrix(a, input_dtype(op, "a", a));
  args.b = matrix(b, input_dtype(op, "b", b));
  args.batch = rank == 3 ? a.size(0) : 1;
  args.M = a.size(rank - 2);
  args.K = a.size(rank - 1);
  args.N = b.size(rank - 1);
  args.options = parse_options(op, raw, {args.a.dtype, args.b.dtype});
  return args;
}

// x [..., K] as [M, K], checked against w [N, K]: a view where the strides of x allow one.
inline Tensor linear_rows(const char* op, const Tensor& x, const Tensor& w) {
  NNK_CHECK(x.dim() >= 1 && w.dim() == 2 && x.size(x.dim() - 1) == w.size(1), op, ": x is ",
            shape(x), " and w is ", shape(w), ", expected x [..., K] and w [N, K]");
  return as_rows(x);
}

// The product of rows [M, K] and w^T, for w [N, K].
inline MatmulArgs linear_args(const char* op, const Tensor& rows, const Tensor& w,
                              const RawOptions& raw) {
  check_device(op, "w", w, rows);
  MatmulArgs args;
  args.M = rows.size(0);
  args.K = w.size(1);
  args.N = w.size(0);
  args.a = matrix(rows, input_dtype(op, "x", rows));
  args.b = transposed(matrix(w, input_dtype(op, "w", w)));
  args.options = parse_options(op, raw, {args.a.dtype, args.b.dtype});
  return args;
}

// ---- arguments of attention ----

inline AttentionArgs attention_args(const char* op, const Tensor& q, const Tensor& k,
                                    const Tensor& v, const OptionalTensor& mask, bool is_causal,
                                    OptionalFloat scale, const Text& normalize,
                                    const RawOptions& raw) {
  check_device(op, "k", k, q);
  check_device(op, "v", v, q);
  NNK_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4, op, ": q is ", shape(q), ", k is ",
            shape(k), " and v is ", shape(v), ", expected 4 dimensions each");
  AttentionArgs args;
  args.B = q.size(0);
  args.H = q.size(1);
  args.T = q.size(2);
  args.D = q.size(3);
  args.Hk = k.size(1);
  args.S = k.size(2);
  args.Dv = v.size(3);
  NNK_CHECK(k.size(0) == args.B && v.size(0) == args.B && v.size(1) == args.Hk &&
                v.size(2) == args.S && k.size(3) == args.D,
            op, ": q is ", shape(q), ", k is ", shape(k), " and v is ", shape(v),
            ", expected q [B, H, T, D], k [B, Hk, S, D] and v [B, Hk, S, Dv]");
  NNK_CHECK(args.Hk > 0 ? args.H % args.Hk == 0 : args.H == 0, op, ": q has ", args.H,
            " heads and k has ", args.Hk, ", expected a multiple");
  NNK_CHECK(args.D <= 256 && args.Dv <= 256, op, ": head dimensions are ", args.D, " and ", args.Dv,
            ", expected up to 256");
  args.q = tensor4(q, input_dtype(op, "q", q));
  args.k = tensor4(k, input_dtype(op, "k", k));
  args.v = tensor4(v, input_dtype(op, "v", v));
  args.options = parse_options(op, raw, {args.q.dtype, args.k.dtype, args.v.dtype});
  args.causal = is_causal;
  args.normalize = choose(op, "normalize", normalize, kNormalizes);
  args.scale = static_cast<float>(
      scale.value_or(args.D > 0 ? 1.0 / std::sqrt(static_cast<double>(args.D)) : 1.0));
  if (!mask) return args;

  NNK_CHECK(!is_causal, op, ": attn_mask and is_causal exclude each other");
  check_device(op, "attn_mask", *mask, q);
  args.mask.boolean = mask->scalar_type() == ScalarType::Bool;
  if (!args.mask.boolean) {
    NNK_CHECK(!is_float8(mask->scalar_type()), op,
              ": attn_mask must be bool, float32, bfloat16 or float16");
    args.mask.dtype = input_dtype(op, "attn_mask", *mask);
  }
  args.mask.data = mask->const_data_ptr();
  const int64_t sizes[4] = {args.B, args.H, args.T, args.S};
  bool broadcasts = mask->dim() <= 4;
  for (int64_t d = 0; broadcasts && d < mask->dim(); ++d) {
    const int64_t to = d + 4 - mask->dim();
    broadcasts = mask->size(d) == 1 || mask->size(d) == sizes[to];
    args.mask.strides[to] = mask->size(d) == 1 ? 0 : mask->stride(d);
  }
  NNK_CHECK(broadcasts, op, ": attn_mask ", shape(*mask), " does not broadcast to [", args.B, ", ",
            args.H, ", ", args.T, ", ", args.S, "]");
  return args;
}

// ---- registration ----

// Operator X computes what X_fwd computes. Its argument number `position`, `grad`, is there for the
// autograd and only checked here.
template <const char* op, size_t position, auto forward>
void with_grad(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  const auto grad = torch::stable::detail::to<OptionalText>(stack[position]);
  if (grad) choose(op, "grad", *grad, kGrads);
  std::copy(stack + position + 1, stack + inputs, stack + position);
  forward(stack, inputs - 1, outputs);
}

HIDDEN_NAMESPACE_END(nnkernels, lmul)
