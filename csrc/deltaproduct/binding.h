// Reading the arguments of the deltaproduct operators. For every device.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/binding.h"
#include "deltaproduct/deltaproduct.h"

HIDDEN_NAMESPACE_BEGIN(nnkernels, deltaproduct)

using Ints = std::vector<int64_t>;

inline std::optional<Type> to_type(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return Type::float32;
    case ScalarType::BFloat16: return Type::bfloat16;
    case ScalarType::Half: return Type::float16;
    case ScalarType::Double: return Type::float64;
    default: return std::nullopt;
  }
}

// The dtype of a tensor that a kernel is about to read or write.
inline Type type_of(const char* op, const char* name, const Tensor& tensor) {
  const std::optional<Type> type = to_type(tensor.scalar_type());
  NNK_CHECK(type, op, ": ", name, " has dtype ", torch::headeronly::toString(tensor.scalar_type()),
            ", expected float32, bfloat16, float16 or float64");
  return *type;
}

inline void check_shape(const char* op, const char* name, const Tensor& tensor,
                        const Ints& expected, const char* meaning) {
  NNK_CHECK(sizes_of(tensor) == expected, op, ": ", name, " is ", shape(tensor), ", expected ",
            meaning, " = ", shape(expected));
}

// The tensors that a call reads, copied where their last dimension is not contiguous. They must
// outlive the arguments made from them.
class Operands {
 public:
  Operands(const char* op, const Tensor& first) : op_(op), first_(first) {}

  // [B, rows, heads, columns].
  Rows rows(const char* name, const Tensor& tensor) {
    const Tensor& t = hold(name, tensor);
    return {t.const_data_ptr(), type_of(op_, name, t), t.stride(0), t.stride(1), t.stride(2)};
  }
  // [B, heads, columns], one row each.
  Rows single_rows(const char* name, const Tensor& tensor) {
    const Tensor& t = hold(name, tensor);
    return {t.const_data_ptr(), type_of(op_, name, t), t.stride(0), 0, t.stride(1)};
  }
  // [B, rows, heads]: single numbers, with any strides.
  Rows numbers(const char* name, const Tensor& tensor) {
    check_device(op_, name, tensor, first_);
    return {tensor.const_data_ptr(), type_of(op_, name, tensor), tensor.stride(0), tensor.stride(1),
            tensor.stride(2)};
  }
  // [B, heads].
  Rows single_numbers(const char* name, const Tensor& tensor) {
    check_device(op_, name, tensor, first_);
    return {tensor.const_data_ptr(), type_of(op_, name, tensor), tensor.stride(0), 0,
            tensor.stride(1)};
  }
  // [N, H, K, V], only read.
  States states(const char* name, const Tensor& tensor) {
    const Tensor& t = hold(name, tensor);
    return {const_cast<void*>(t.const_data_ptr()), type_of(op_, name, t), t.stride(0), t.stride(1),
            t.stride(2)};
  }

 private:
  const Tensor& hold(const char* name, const Tensor& tensor) {
    check_device(op_, name, tensor, first_);
    const int64_t last = tensor.dim() - 1;
    const bool in_place = tensor.stride(last) == 1 || tensor.size(last) == 1;
    held_.push_back(in_place ? tensor : torch::stable::contiguous(tensor));
    return held_.back();
  }

  const char* op_;
  const Tensor& first_;
  std::vector<Tensor> held_;
};

// The dtype computed in.
inline ScalarType state_type(const Tensor& k) {
  return k.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Contiguous states [N, H, K, V].
inline States states(const ScanArgs& args, void* data, Type type) {
  const int64_t size = args.K * args.V;
  return {data, type, args.H * size, size, args.V};
}

inline void check_sizes(const char* op, const ScanArgs& args) {
  NNK_CHECK(args.K > 0 && args.V > 0, op, ": K is ", args.K, " and V is ", args.V,
            ", expected at least 1 each");
  // Key heads that no value head uses would get no gradient.
  NNK_CHECK(args.Hk == 0 ? args.H == 0 : args.H >= args.Hk && args.H % args.Hk == 0, op,
            ": v has H=", args.H, " heads and k has Hk=", args.Hk,
            ", expected H to be a multiple of Hk");
}

inline void check_same_dtype(const char* op, const char* name, const Tensor& tensor,
                             const char* first_name, const Tensor& first) {
  NNK_CHECK(tensor.scalar_type() == first.scalar_type(), op, ": ", name, " has dtype ",
            torch::headeronly::toString(tensor.scalar_type()), ", but ", first_name, " has ",
            torch::headeronly::toString(first.scalar_type()), "; pass q, k and v in one dtype");
}

// The sequences of [B, T] tokens that cu_seqlens divides.
inline Sequences read_sequences(const char* op, int64_t B, int64_t T,
                                const OptionalTensor& cu_seqlens, const Tensor& first) {
  Sequences sequences;
  sequences.B = B;
  sequences.T = T;
  if (!cu_seqlens) return sequences;
  check_device(op, "cu_seqlens", *cu_seqlens, first);
  const ScalarType type = cu_seqlens->scalar_type();
  NNK_CHECK(type == ScalarType::Int || type == ScalarType::Long, op, ": cu_seqlens has dtype ",
            torch::headeronly::toString(type), ", expected int32 or int64");
  NNK_CHECK(cu_seqlens->dim() == 1 && cu_seqlens->numel() >= 1, op, ": cu_seqlens is ",
            shape(*cu_seqlens), ", expected the N + 1 boundaries of N sequences");
  NNK_CHECK(B == 1, op, ": cu_seqlens needs one packed batch entry, got B = ", B);
  const int64_t count = cu_seqlens->numel(), stride = cu_seqlens->stride(0);
  const void* data = cu_seqlens->const_data_ptr();
  for (int64_t i = 0; i < count; ++i) {
    sequences.bounds.push_back(type == ScalarType::Int
                                   ? static_cast<const int32_t*>(data)[i * stride]
                                   : static_cast<const int64_t*>(data)[i * stride]);
  }
  const Ints& bounds = sequences.bounds;
  NNK_CHECK(bounds.front() == 0, op, ": cu_seqlens starts at ", bounds.front(), ", expected 0");
  NNK_CHECK(std::is_sorted(bounds.begin(), bounds.end()), op, ": cu_seqlens decreases");
  NNK_CHECK(bounds.back() <= T, op, ": cu_seqlens ends at ", bounds.back(), ", beyond the ", T,
            " tokens");
  return sequences;
}

struct ScanInputs {
  const OptionalTensor& q;  // may be absent
  const Tensor& k;
  const Tensor& v;
  const OptionalTensor& g;
  const Tensor& beta;
  const OptionalTensor& initial_state;
  const OptionalTensor& cu_seqlens;
  int64_t num_householder;
  double scale;
  bool l2norm;
};

inline ScanArgs scan_args(const char* op, const ScanInputs& in, Operands& operands) {
  const Tensor &k = in.k, &v = in.v;
  const int64_t n = in.num_householder;
  NNK_CHECK(n >= 1, op, ": num_householder must be at least 1, got ", n);
  NNK_CHECK(k.dim() == 4, op, ": k is ", shape(k), ", expected [B, T n, Hk, K]");
  NNK_CHECK(v.dim() == 4, op, ": v is ", shape(v), ", expected [B, T n, H, V]");
  NNK_CHECK(k.size(1) % n == 0, op, ": k has ", k.size(1),
            " rows, expected a multiple of num_householder = ", n);
  NNK_CHECK(std::isfinite(in.scale), op, ": scale must be finite, got ", number(in.scale));
  const int64_t B = k.size(0), T = k.size(1) / n;
  ScanArgs args;
  args.n = n;
  args.Hk = k.size(2);
  args.K = k.size(3);
  args.H = v.size(2);
  args.V = v.size(3);
  check_sizes(op, args);
  if (in.q) {
    check_shape(op, "q", *in.q, {B, T, args.Hk, args.K},
                "[B, T, Hk, K] of k [B, T num_householder, Hk, K]");
    check_same_dtype(op, "q", *in.q, "k", k);
    args.q = operands.rows("q", *in.q);
  }
  check_shape(op, "v", v, {B, T * n, args.H, args.V}, "[B, T num_householder, H, V]");
  check_same_dtype(op, "v", v, "k", k);
  check_shape(op, "beta", in.beta, {B, T * n, args.H}, "[B, T num_householder, H]");
  if (in.g) check_shape(op, "g", *in.g, {B, T, args.H}, "one gate per token, [B, T, H]");
  args.k = operands.rows("k", k);
  args.v = operands.rows("v", v);
  args.beta = operands.numbers("beta", in.beta);
  if (in.g) args.g = operands.numbers("g", *in.g);
  args.sequences = read_sequences(op, B, T, in.cu_seqlens, k);
  if (in.initial_state) {
    check_shape(op, "initial_state", *in.initial_state,
                {args.sequences.count(), args.H, args.K, args.V}, "[N, H, K, V]");
    args.initial = operands.states("initial_state", *in.initial_state);
  }
  args.float64 = k.scalar_type() == ScalarType::Double;
  args.l2norm = in.l2norm;
  args.scale = in.scale;
  return args;
}

HIDDEN_NAMESPACE_END(nnkernels, deltaproduct)
