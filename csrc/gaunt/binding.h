// Reading the arguments of the gaunt operators, for every device.
#pragma once

#include <algorithm>
#include <utility>

#include "common/binding.h"
#include "gaunt/gaunt.h"

HIDDEN_NAMESPACE_BEGIN(nnkernels, gaunt)

using Ints = std::vector<int64_t>;
using Tensors = std::vector<Tensor>;

inline constexpr Choice<Basis> kBases[] = {
    {"integral", Basis::integral}, {"component", Basis::component}, {"norm", Basis::norm}};
inline constexpr Choice<bool> kLayouts[] = {{"mul_ir", false}, {"ir_mul", true}};
inline constexpr Choice<Kind> kKinds[] = {
    {"even", Kind::even}, {"cross", Kind::cross}, {"both", Kind::both}};

inline std::optional<Type> to_type(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return Type::float32;
    case ScalarType::Double: return Type::float64;
    case ScalarType::BFloat16: return Type::bfloat16;
    case ScalarType::Half: return Type::float16;
    default: return std::nullopt;
  }
}

inline void check_degree(const char* op, const char* name, int64_t L) {
  NNK_CHECK(L >= 0 && L <= kMaxDegree, op, ": ", name, " is ", L, ", degree out of range [0, ",
            kMaxDegree, "]");
}

inline void check_degree_sum(const char* op, int64_t sum) {
  NNK_CHECK(sum <= kMaxDegreeSum, op, ": the degrees add up to ", sum, ", expected at most ",
            kMaxDegreeSum);
}

inline Tensor absent(const char* op, const Tensor& like) {
  return empty(op, like, {0}, like.scalar_type());
}

// The tensors of one call: they have one dtype and device, and broadcast over all dimensions but
// that of the coefficients.
class Call {
 public:
  Call(const char* op, const Tensor& first, const Text& layout)
      : op_(op), first_(first), coefficients_inside_(choose(op, "layout", layout, kLayouts)) {
    const std::optional<Type> type = to_type(first.scalar_type());
    NNK_CHECK(type, op, ": expected a float32, float64, bfloat16 or float16 tensor, got ",
              torch::headeronly::toString(first.scalar_type()));
    samples_.type = *type;
  }

  // An operand with `count` coefficients.
  void add(const char* name, const Tensor& tensor, int64_t count) {
    check(name, tensor, count);
    const Ints sizes = sample_sizes(tensor);
    if (sizes.size() > sizes_.size())
      sizes_.insert(sizes_.begin(), sizes.size() - sizes_.size(), 1);
    const size_t skip = sizes_.size() - sizes.size();
    for (size_t d = 0; d < sizes.size(); ++d) {
      int64_t& size = sizes_[skip + d];
      NNK_CHECK(size == sizes[d] || size == 1 || sizes[d] == 1, op_, ": ", name, " ", shape(tensor),
                " does not broadcast with the other operands");
      if (size == 1) size = sizes[d];
    }
    NNK_CHECK(static_cast<int64_t>(sizes_.size()) <= kMaxDims, op_, ": ", name, " has ",
              tensor.dim(), " dimensions, expected at most ", kMaxDims);
  }
  void add(const char* name, const OptionalTensor& tensor, int64_t count) {
    if (tensor) add(name, *tensor, count);
  }

  // After all operands are added: the sizes that the kernel runs over.
  const Samples& samples() {
    samples_.ndim = static_cast<int>(sizes_.size());
    std::copy(sizes_.begin(), sizes_.end(), samples_.sizes);
    return samples_;
  }

  Array array(const Tensor& tensor) const {
    Array array;
    const int64_t d = tensor.dim(), at = coefficient_dim(tensor);
    array.data = const_cast<void*>(tensor.const_data_ptr());
    array.step = tensor.stride(at);
    int64_t to = static_cast<int64_t>(sizes_.size());
    for (int64_t from = d - 1; from >= 0; --from) {
      if (from == at) continue;
      array.strides[--to] = tensor.size(from) == 1 ? 0 : tensor.stride(from);
    }
    // Tensors without elements may have no memory.
    if (array.data == nullptr) array.data = &empty_;
    return array;
  }
  Array array(const OptionalTensor& tensor) const { return tensor ? array(*tensor) : Array{}; }

  // A tensor that must be shaped like a result, or like the operand it is a cotangent of.
  Array result(const char* name, const Tensor& tensor, int64_t count) const {
    check(name, tensor, count);
    return like(name, tensor, result_sizes(count));
  }
  Array cotangent(const char* name, const OptionalTensor& tensor,
                  const OptionalTensor& operand) const {
    if (!tensor) return {};
    NNK_CHECK(operand, op_, ": ", name, " is a cotangent of an operand that is absent");
    check_type(name, *tensor);
    return like(name, *tensor, sizes_of(*operand));
  }

  Tensor new_result(int64_t count) const {
    return empty(op_, first_, result_sizes(count), first_.scalar_type());
  }
  Tensor new_gradient(bool need, const OptionalTensor& operand) const {
    if (!need || !operand) return absent(op_, first_);
    return empty(op_, first_, sizes_of(*operand), first_.scalar_type());
  }
  Array wanted(bool need, const Tensor& gradient) const { return need ? array(gradient) : Array{}; }
  // The same for an operand that may be absent.
  Array wanted(bool need, const Tensor& gradient, const OptionalTensor& operand) const {
    return wanted(need && operand, gradient);
  }

 private:
  int64_t coefficient_dim(const Tensor& tensor) const {
    return tensor.dim() - (coefficients_inside_ ? 2 : 1);
  }

  void check_type(const char* name, const Tensor& tensor) const {
    NNK_CHECK(tensor.scalar_type() == first_.scalar_type(), op_,
              ": expected matching floating dtypes, got ",
              torch::headeronly::toString(first_.scalar_type()), " and, for ", name, ", ",
              torch::headeronly::toString(tensor.scalar_type()));
    NNK_CHECK(tensor.device() == first_.device(), op_, ": ", name,
              " and the first tensor are on different devices");
  }

  void check(const char* name, const Tensor& tensor, int64_t count) const {
    check_type(name, tensor);
    NNK_CHECK(tensor.dim() >= (coefficients_inside_ ? 2 : 1), op_, ": ", name, " is ",
              shape(tensor), ", expected ",
              coefficients_inside_ ? "[..., coefficients, channels]" : "[..., coefficients]");
    const int64_t got = tensor.size(coefficient_dim(tensor));
    NNK_CHECK(got == count, op_, ": ", name, " has ", got, " coefficients, expected ", count);
  }

  Array like(const char* name, const Tensor& tensor, const Ints& sizes) const {
    NNK_CHECK(sizes_of(tensor) == sizes, op_, ": ", name, " is ", shape(tensor), ", expected ",
              shape(sizes));
    return array(tensor);
  }

  Ints sample_sizes(const Tensor& tensor) const {
    Ints sizes = sizes_of(tensor);
    sizes.erase(sizes.begin() + coefficient_dim(tensor));
    return sizes;
  }

  Ints result_sizes(int64_t count) const {
    Ints sizes = sizes_;
    sizes.insert(sizes.end() - (coefficients_inside_ ? 1 : 0), count);
    return sizes;
  }

  inline static char empty_ = 0;

  const char* op_;
  Tensor first_;
  bool coefficients_inside_;
  Ints sizes_;
  Samples samples_;
};

HIDDEN_NAMESPACE_END(nnkernels, gaunt)
