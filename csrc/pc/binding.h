// Reading the arguments of the pc operators. For every device.
#pragma once

#include "common/binding.h"
#include "pc/pc.h"

HIDDEN_NAMESPACE_BEGIN(nnkernels, pc)

// The tensors that a call reads, contiguous. They must outlive the arguments made from them.
class Operands {
 public:
  Operands(const char* op, const Tensor& first) : op_(op), first_(first) {}

  const void* read(const char* name, const Tensor& tensor, ScalarType type,
                   const std::vector<int64_t>& sizes, const char* meaning) {
    check_device(op_, name, tensor, first_);
    NNK_CHECK(tensor.scalar_type() == type, op_, ": ", name, " has dtype ",
              torch::headeronly::toString(tensor.scalar_type()), ", expected ",
              torch::headeronly::toString(type));
    NNK_CHECK(sizes_of(tensor) == sizes, op_, ": ", name, " is ", shape(tensor), ", expected ",
              meaning, " = ", shape(sizes));
    held_.push_back(tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor));
    return held_.back().const_data_ptr();
  }

 private:
  const char* op_;
  const Tensor& first_;
  std::vector<Tensor> held_;
};

inline Evidence read_evidence(const char* op, Operands& operands, const Tensor& x,
                              const OptionalTensor& mask) {
  NNK_CHECK(x.dim() == 2, op, ": x is ", shape(x), ", expected [N, D]");
  const ScalarType type = x.scalar_type();
  NNK_CHECK(type == ScalarType::Byte || type == ScalarType::Short, op, ": x has dtype ",
            torch::headeronly::toString(type), ", expected uint8 or int16");
  Evidence evidence;
  evidence.type = type == ScalarType::Byte ? Symbol::uint8 : Symbol::int16;
  evidence.N = x.size(0);
  evidence.row = evidence.mask_row = x.size(1);
  evidence.x = operands.read("x", x, type, sizes_of(x), "[N, D]");
  if (mask) {
    evidence.mask = static_cast<const bool*>(
        operands.read("mask", *mask, ScalarType::Bool, sizes_of(x), "that of x, [N, D]"));
  }
  return evidence;
}

// x has D columns.
inline Model read_model(const char* op, Operands& operands, int64_t D, const Tensor& pi,
                        const Tensor& A, const Tensor& B, const Tensor& parent,
                        const Tensor& order) {
  const ScalarType type = pi.scalar_type();
  NNK_CHECK(type == ScalarType::Float || type == ScalarType::Double, op, ": pi has dtype ",
            torch::headeronly::toString(type), ", expected float32 or float64");
  NNK_CHECK(pi.dim() == 1, op, ": pi is ", shape(pi), ", expected [h]");
  NNK_CHECK(B.dim() == 3, op, ": B is ", shape(B), ", expected [D, h, K]");
  Model model;
  model.type = type == ScalarType::Float ? Type::float32 : Type::float64;
  model.D = D;
  model.h = pi.size(0);
  model.K = B.size(2);
  NNK_CHECK(D >= 1, op, ": x has no variables, expected at least one column");
  NNK_CHECK(model.h >= 1 && model.h <= kMaxStates, op, ": h is ", model.h, ", expected 1 to ",
            kMaxStates);
  NNK_CHECK(model.K >= 1 && model.K <= kMaxValues, op, ": K is ", model.K, ", expected 1 to ",
            kMaxValues);
  model.pi = operands.read("pi", pi, type, {model.h}, "[h]");
  model.A = operands.read("A", A, type, {D, model.h, model.h}, "[D, h, h]");
  model.B = operands.read("B", B, type, {D, model.h, model.K}, "[D, h, K]");
  model.parent =
      static_cast<const int64_t*>(operands.read("parent", parent, ScalarType::Long, {D}, "[D]"));
  model.order =
      static_cast<const int64_t*>(operands.read("order", order, ScalarType::Long, {D}, "[D]"));
  return model;
}

HIDDEN_NAMESPACE_END(nnkernels, pc)
