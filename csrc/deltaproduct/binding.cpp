// The torch operators nnkernels::deltaproduct_* on CPU tensors: they check what guards memory,
// allocate and call the kernels of deltaproduct.h. Autograd and fake kernels are Python
// (nnkernels/deltaproduct/register.py).
#include "deltaproduct/binding.h"

#include <tuple>

namespace nnkernels::deltaproduct {
namespace {

constexpr char kScan[] = "deltaproduct_scan", kScanBwd[] = "deltaproduct_scan_bwd",
               kStep[] = "deltaproduct_step", kStateMap[] = "deltaproduct_state_map";

Output output(const Tensor& tensor) {
  return {tensor.mutable_data_ptr(), *to_type(tensor.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor> deltaproduct_scan(
    const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& g, const Tensor& beta,
    const OptionalTensor& initial_state, const OptionalTensor& cu_seqlens, int64_t num_householder,
    double scale, bool use_qk_l2norm, bool output_final_state, bool save_for_backward) {
  Operands operands(kScan, k);
  ScanArgs args = scan_args(
      kScan, {q, k, v, g, beta, initial_state, cu_seqlens, num_householder, scale, use_qk_l2norm},
      operands);
  const Sequences& sequences = args.sequences;
  const Tensor o = empty(kScan, q, {sequences.B, sequences.T, args.H, args.V}, q.scalar_type());
  args.o = output(o);
  const auto new_states = [&](bool wanted, int64_t count) {
    return empty(kScan, q, wanted ? Ints{count, args.H, args.K, args.V} : Ints{0}, state_type(k));
  };
  const Tensor final_state = new_states(output_final_state, sequences.count());
  const Tensor checkpoints = new_states(save_for_backward, sequences.checkpoints());
  if (output_final_state) {
    args.final = states(args, final_state.mutable_data_ptr(), output(final_state).type);
  }
  if (save_for_backward) args.checkpoints = checkpoints.mutable_data_ptr();
  scan(args, torch_threads());
  return {o, final_state, checkpoints};
}

// A tensor for the gradient of `of`, with `sizes` unless that is absent.
Tensor gradient(const char* op, const Tensor& like, const OptionalTensor& of, ScalarType absent) {
  return of ? empty(op, like, sizes_of(*of), of->scalar_type()) : empty(op, like, {0}, absent);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> deltaproduct_scan_bwd(
    const Tensor& grad_o, const OptionalTensor& grad_final, const Tensor& q, const Tensor& k,
    const Tensor& v, const OptionalTensor& g, const Tensor& beta,
    const OptionalTensor& initial_state, const OptionalTensor& cu_seqlens,
    const Tensor& checkpoints, int64_t num_householder, double scale, bool use_qk_l2norm) {
  Operands operands(kScanBwd, k);
  ScanGradArgs args;
  args.forward = scan_args(
      kScanBwd,
      {q, k, v, g, beta, initial_state, cu_seqlens, num_householder, scale, use_qk_l2norm},
      operands);
  const ScanArgs& forward = args.forward;
  const Sequences& sequences = forward.sequences;
  const auto state_sizes = [&](int64_t count) {
    return Ints{count, forward.H, forward.K, forward.V};
  };
  check_shape(kScanBwd, "grad_o", grad_o, {sequences.B, sequences.T, forward.H, forward.V},
              "[B, T, H, V]");
  args.grad_o = operands.rows("grad_o", grad_o);
  if (grad_final) {
    check_shape(kScanBwd, "grad_final", *grad_final, state_sizes(sequences.count()),
                "[N, H, K, V]");
    args.grad_final = operands.states("grad_final", *grad_final);
  }
  check_shape(kScanBwd, "checkpoints", checkpoints, state_sizes(sequences.checkpoints()),
              "those of deltaproduct_scan_fwd with save_for_backward");
  check_device(kScanBwd, "checkpoints", checkpoints, k);
  NNK_CHECK(checkpoints.scalar_type() == state_type(k) && checkpoints.is_contiguous(), kScanBwd,
            ": checkpoints must be what deltaproduct_scan_fwd returned");
  args.forward.checkpoints = const_cast<void*>(checkpoints.const_data_ptr());

  const ScalarType absent = state_type(k);
  const Tensor dq = gradient(kScanBwd, k, q, absent), dk = gradient(kScanBwd, k, k, absent),
               dv = gradient(kScanBwd, k, v, absent), dg = gradient(kScanBwd, k, g, absent),
               dbeta = gradient(kScanBwd, k, beta, absent),
               dinitial = gradient(kScanBwd, k, initial_state, absent);
  args.dq = output(dq);
  args.dk = output(dk);
  args.dv = output(dv);
  args.dbeta = output(dbeta);
  if (g) args.dg = output(dg);
  if (initial_state) args.dinitial = output(dinitial);
  scan_grad(args, torch_threads());
  return {dq, dk, dv, dg, dbeta, dinitial};
}

// Which row of the pool each batch entry has: in range, none twice, -1 for none.
Ints read_slots(const Tensor& slots, int64_t B, int64_t pool, const Tensor& q) {
  check_device(kStep, "slots", slots, q);
  NNK_CHECK(slots.scalar_type() == ScalarType::Long, kStep, ": slots has dtype ",
            torch::headeronly::toString(slots.scalar_type()), ", expected int64");
  check_shape(kStep, "slots", slots, {B}, "[B]");
  Ints rows;
  for (int64_t i = 0; i < B; ++i) {
    rows.push_back(static_cast<const int64_t*>(slots.const_data_ptr())[i * slots.stride(0)]);
    NNK_CHECK(rows.back() >= -1 && rows.back() < pool, kStep, ": slots holds ", rows.back(),
              ", expected -1 or a row of the ", pool, " states");
  }
  Ints sorted = rows;
  std::sort(sorted.begin(), sorted.end());
  for (size_t i = 1; i < sorted.size(); ++i) {
    NNK_CHECK(sorted[i] < 0 || sorted[i] != sorted[i - 1], kStep, ": slots holds ", sorted[i],
              " twice");
  }
  return rows;
}

Tensor deltaproduct_step(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& g,
                         const Tensor& beta, const Tensor& state, const OptionalTensor& slots,
                         double scale, bool use_qk_l2norm) {
  Operands operands(kStep, q);
  NNK_CHECK(q.dim() == 3, kStep, ": q is ", shape(q), ", expected [B, Hk, K]");
  NNK_CHECK(k.dim() == 4, kStep, ": k is ", shape(k), ", expected [B, n, Hk, K]");
  NNK_CHECK(v.dim() == 4, kStep, ": v is ", shape(v), ", expected [B, n, H, V]");
  NNK_CHECK(k.size(1) >= 1, kStep, ": k is ", shape(k), ", expected at least one micro-step");
  NNK_CHECK(std::isfinite(scale), kStep, ": scale must be finite, got ", number(scale));
  ScanArgs args;
  const int64_t B = q.size(0);
  args.sequences.B = B;
  args.sequences.T = 1;
  args.Hk = q.size(1);
  args.K = q.size(2);
  args.n = k.size(1);
  args.H = v.size(2);
  args.V = v.size(3);
  check_sizes(kStep, args);
  check_shape(kStep, "k", k, {B, args.n, args.Hk, args.K}, "[B, n, Hk, K]");
  check_same_dtype(kStep, "k", k, "q", q);
  check_shape(kStep, "v", v, {B, args.n, args.H, args.V}, "[B, n, H, V]");
  check_same_dtype(kStep, "v", v, "q", q);
  check_shape(kStep, "beta", beta, {B, args.n, args.H}, "[B, n, H]");
  if (g) check_shape(kStep, "g", *g, {B, args.H}, "one gate per token, [B, H]");
  NNK_CHECK(state.dim() == 4, kStep, ": state is ", shape(state), ", expected [B, H, K, V]");
  const int64_t pool = state.size(0);
  check_shape(kStep, "state", state, {slots ? pool : B, args.H, args.K, args.V},
              slots ? "[pool, H, K, V]" : "[B, H, K, V]");
  check_device(kStep, "state", state, q);
  NNK_CHECK(args.V == 1 || state.stride(3) == 1, kStep,
            ": state is updated in place and needs a last dimension of stride 1");

  args.q = operands.single_rows("q", q);
  args.k = operands.rows("k", k);
  args.v = operands.rows("v", v);
  args.beta = operands.numbers("beta", beta);
  if (g) args.g = operands.single_numbers("g", *g);
  args.float64 = q.scalar_type() == ScalarType::Double;
  args.l2norm = use_qk_l2norm;
  args.scale = scale;
  args.initial = args.final = {state.mutable_data_ptr(), type_of(kStep, "state", state),
                               state.stride(0), state.stride(1), state.stride(2)};
  Ints rows;
  if (slots) {
    rows = read_slots(*slots, B, pool, q);
    args.slots = rows.data();
  }
  const Tensor o = empty(kStep, q, {B, args.H, args.V}, q.scalar_type());
  args.o = output(o);
  scan(args, torch_threads());
  return o;
}

std::tuple<Tensor, Tensor> deltaproduct_state_map(const Tensor& k, const Tensor& v,
                                                  const OptionalTensor& g, const Tensor& beta,
                                                  const OptionalTensor& cu_seqlens,
                                                  int64_t num_householder, bool use_k_l2norm) {
  Operands operands(kStateMap, k);
  const OptionalTensor none;
  ScanArgs args = scan_args(
      kStateMap, {none, k, v, g, beta, none, cu_seqlens, num_householder, 1.0, use_k_l2norm},
      operands);
  const ScalarType type = state_type(k);
  const int64_t count = args.sequences.count();
  const Tensor M = empty(kStateMap, k, {count, args.H, args.K, args.V}, type);
  args.final = states(args, M.mutable_data_ptr(), output(M).type);
  scan(args, torch_threads());
  // S of the zero values, from the unit matrix on.
  args.V = args.K;
  args.v = {};
  args.identity = true;
  const Tensor A = empty(kStateMap, k, {count, args.H, args.K, args.K}, type);
  args.final = states(args, A.mutable_data_ptr(), output(A).type);
  scan(args, torch_threads());
  return {A, M};
}

}  // namespace
}  // namespace nnkernels::deltaproduct

#define DELTAPRODUCT_INPUTS                                                       \
  "Tensor q, Tensor k, Tensor v, Tensor? g, Tensor beta, Tensor? initial_state, " \
  "Tensor? cu_seqlens, "
#define DELTAPRODUCT_SCAN                                                           \
  DELTAPRODUCT_INPUTS                                                               \
  "int num_householder, float scale, bool use_qk_l2norm, bool output_final_state, " \
  "bool save_for_backward) -> (Tensor o, Tensor final_state, Tensor checkpoints)"

STABLE_TORCH_LIBRARY_FRAGMENT(nnkernels, m) {
  m.def("deltaproduct_scan(" DELTAPRODUCT_SCAN);
  m.def("deltaproduct_scan_fwd(" DELTAPRODUCT_SCAN);
  m.def("deltaproduct_scan_bwd(Tensor grad_o, Tensor? grad_final, " DELTAPRODUCT_INPUTS
        "Tensor checkpoints, int num_householder, float scale, bool use_qk_l2norm) -> "
        "(Tensor dq, Tensor dk, Tensor dv, Tensor dg, Tensor dbeta, Tensor dinitial)");
  m.def(
      "deltaproduct_step(Tensor q, Tensor k, Tensor v, Tensor? g, Tensor beta, Tensor(a!) state, "
      "Tensor? slots, float scale, bool use_qk_l2norm) -> Tensor");
  m.def(
      "deltaproduct_state_map(Tensor k, Tensor v, Tensor? g, Tensor beta, Tensor? cu_seqlens, "
      "int num_householder, bool use_k_l2norm) -> (Tensor A, Tensor M)");
}

STABLE_TORCH_LIBRARY_IMPL(nnkernels, CPU, m) {
  namespace ops = nnkernels::deltaproduct;
  using nnkernels::boxed;
  m.impl("deltaproduct_scan", boxed<ops::kScan, &ops::deltaproduct_scan>);
  m.impl("deltaproduct_scan_fwd", boxed<ops::kScan, &ops::deltaproduct_scan>);
  m.impl("deltaproduct_scan_bwd", boxed<ops::kScanBwd, &ops::deltaproduct_scan_bwd>);
  m.impl("deltaproduct_step", boxed<ops::kStep, &ops::deltaproduct_step>);
  m.impl("deltaproduct_state_map", boxed<ops::kStateMap, &ops::deltaproduct_state_map>);
}
