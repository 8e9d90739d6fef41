// The torch operators nnkernels::pc_* of inference and EM on CPU tensors: they check what guards
// memory, allocate and call the kernels of pc.h. Autograd and fake kernels are Python
// (nnkernels/pc/register.py).
#include "pc/binding.h"

#include <tuple>

namespace nnkernels::pc {
namespace {

constexpr char kForward[] = "pc_forward", kForwardBwd[] = "pc_forward_bwd", kFlows[] = "pc_flows",
               kUpdate[] = "pc_em_update";

std::tuple<Tensor, Tensor> pc_forward_fwd(const Tensor& x, const Tensor& pi, const Tensor& A,
                                          const Tensor& B, const Tensor& parent,
                                          const Tensor& order, const OptionalTensor& mask,
                                          bool save_u) {
  Operands operands(kForward, x);
  ForwardArgs args;
  args.evidence = read_evidence(kForward, operands, x, mask);
  args.model = read_model(kForward, operands, x.size(1), pi, A, B, parent, order);
  const int64_t N = args.evidence.N;
  using Sizes = std::vector<int64_t>;
  const Tensor ll = empty(kForward, pi, {N}, pi.scalar_type());
  const Tensor u = empty(kForward, pi, save_u ? Sizes{args.model.D, N, args.model.h} : Sizes{0},
                         pi.scalar_type());
  args.ll = ll.mutable_data_ptr();
  if (save_u) args.u = u.mutable_data_ptr();
  forward(args, torch_threads());
  return {ll, u};
}

std::tuple<Tensor, Tensor> pc_forward(const Tensor& x, const Tensor& pi, const Tensor& A,
                                      const Tensor& B, const Tensor& parent, const Tensor& order,
                                      const OptionalTensor& mask) {
  return pc_forward_fwd(x, pi, A, B, parent, order, mask, true);
}

// Allocates the three results of `args` and computes them.
std::tuple<Tensor, Tensor, Tensor> run_flows(const char* op, FlowsArgs& args, const Tensor& pi,
                                             const Tensor& A, const Tensor& B) {
  const Tensor dpi = empty(op, pi, sizes_of(pi), pi.scalar_type()),
               dA = empty(op, pi, sizes_of(A), pi.scalar_type()),
               dB = empty(op, pi, sizes_of(B), pi.scalar_type());
  args.pi = dpi.mutable_data_ptr();
  args.A = dA.mutable_data_ptr();
  args.B = dB.mutable_data_ptr();
  flows(args, torch_threads());
  return {dpi, dA, dB};
}

std::tuple<Tensor, Tensor, Tensor> pc_forward_bwd(const Tensor& grad_ll, const Tensor& x,
                                                  const Tensor& pi, const Tensor& A,
                                                  const Tensor& B, const Tensor& parent,
                                                  const Tensor& order, const OptionalTensor& mask) {
  Operands operands(kForwardBwd, x);
  FlowsArgs args;
  args.evidence = read_evidence(kForwardBwd, operands, x, mask);
  args.model = read_model(kForwardBwd, operands, x.size(1), pi, A, B, parent, order);
  args.weights = operands.read("grad_ll", grad_ll, pi.scalar_type(), {x.size(0)}, "[N]");
  args.counts = false;
  return run_flows(kForwardBwd, args, pi, A, B);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pc_flows(const Tensor& x, const Tensor& pi,
                                                    const Tensor& A, const Tensor& B,
                                                    const Tensor& parent, const Tensor& order,
                                                    const OptionalTensor& mask,
                                                    const OptionalTensor& weights) {
  Operands operands(kFlows, x);
  FlowsArgs args;
  args.evidence = read_evidence(kFlows, operands, x, mask);
  args.model = read_model(kFlows, operands, x.size(1), pi, A, B, parent, order);
  if (weights) {
    args.weights = operands.read("weights", *weights, pi.scalar_type(), {x.size(0)}, "[N]");
  }
  const Tensor ll = empty(kFlows, pi, {x.size(0)}, pi.scalar_type());
  args.ll = ll.mutable_data_ptr();
  const auto [cnt_pi, cnt_A, cnt_B] = run_flows(kFlows, args, pi, A, B);
  return {ll, cnt_pi, cnt_A, cnt_B};
}

void pc_em_update(const Tensor& theta, const Tensor& counts, double pseudo_count, double step) {
  Operands operands(kUpdate, theta);
  const ScalarType type = theta.scalar_type();
  NNK_CHECK(type == ScalarType::Float || type == ScalarType::Double, kUpdate, ": theta has dtype ",
            torch::headeronly::toString(type), ", expected float32 or float64");
  NNK_CHECK(theta.dim() >= 1 && theta.is_contiguous(), kUpdate, ": theta is ", shape(theta),
            theta.is_contiguous() ? "" : " and not contiguous",
            ", expected contiguous rows [..., width]: it is updated in place");
  UpdateArgs args;
  args.type = type == ScalarType::Float ? Type::float32 : Type::float64;
  args.width = theta.size(theta.dim() - 1);
  args.rows = args.width > 0 ? theta.numel() / args.width : 0;
  args.counts = operands.read("counts", counts, type, sizes_of(theta), "that of theta");
  args.pseudo_count = pseudo_count;
  args.step = step;
  args.theta = theta.mutable_data_ptr();
  update(args, torch_threads());
}

}  // namespace
}  // namespace nnkernels::pc

#define PC_MODEL "Tensor pi, Tensor A, Tensor B, Tensor parent, Tensor order, Tensor? mask=None"

STABLE_TORCH_LIBRARY_FRAGMENT(nnkernels, m) {
  m.def("pc_forward(Tensor x, " PC_MODEL ") -> (Tensor ll, Tensor u)");
  m.def("pc_forward_fwd(Tensor x, " PC_MODEL ", bool save_u=True) -> (Tensor ll, Tensor u)");
  m.def("pc_forward_bwd(Tensor grad_ll, Tensor x, " PC_MODEL
        ") -> (Tensor dpi, Tensor dA, Tensor dB)");
  m.def("pc_flows(Tensor x, " PC_MODEL
        ", Tensor? weights=None) -> (Tensor ll, Tensor cnt_pi, Tensor cnt_A, Tensor cnt_B)");
  m.def("pc_em_update(Tensor(a!) theta, Tensor counts, float pseudo_count, float step) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(nnkernels, CPU, m) {
  namespace ops = nnkernels::pc;
  using nnkernels::boxed;
  m.impl("pc_forward", boxed<ops::kForward, &ops::pc_forward>);
  m.impl("pc_forward_fwd", boxed<ops::kForward, &ops::pc_forward_fwd>);
  m.impl("pc_forward_bwd", boxed<ops::kForwardBwd, &ops::pc_forward_bwd>);
  m.impl("pc_flows", boxed<ops::kFlows, &ops::pc_flows>);
  m.impl("pc_em_update", boxed<ops::kUpdate, &ops::pc_em_update>);
}
