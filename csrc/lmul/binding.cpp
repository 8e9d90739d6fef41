// The torch operators nnkernels::lmul_* on CPU tensors: they check what guards memory, allocate and
// call the kernels of lmul.h. Autograd and fake kernels are Python (nnkernels/lmul/register.py).
#include "lmul/binding.h"

#include <tuple>

namespace nnkernels::lmul {
namespace {

constexpr Choice<Algo> kAlgos[] = {{"auto", Algo::automatic},
                                   {"word", Algo::word},
                                   {"guarded", Algo::guarded},
                                   {"gemm2", Algo::gemm2}};

Algo parse_algo(const char* op, const Text& text, const Options& options) {
  NNK_CHECK(text.value != "onehot" && text.value != "wordmma", op, ": algo='", text.value,
            "' needs CUDA tensors; on the CPU use 'auto', 'word', 'guarded' or 'gemm2'");
  const Algo algo = choose(op, "algo", text, kAlgos);
  const bool formula = options.mode == Mode::formula;
  NNK_CHECK(algo != Algo::gemm2 || formula, op, ": algo='gemm2' computes mode='formula' only");
  NNK_CHECK(algo == Algo::automatic || algo == Algo::gemm2 || !formula, op, ": algo='", text.value,
            "' computes mode='bits' only");
  return algo;
}

// ---- mul ----

Tensor lmul_mul(const Tensor& x, const Tensor& y, OptionalInt mantissa_bits, const Text& mode,
                const Text& round, OptionalFloat offset, OptionalType out_dtype) {
  const char* op = "lmul_mul";
  MulArgs args = mul_args(op, x, y, {mantissa_bits, mode, round, offset});
  const Result out(op, x, {args.sizes, args.sizes + args.ndim}, mul_type(out_dtype, x, y));
  args.out = output(out);
  mul(args, torch_threads());
  return out.finish();
}

std::tuple<Tensor, Tensor> lmul_mul_bwd(const Tensor& g, const Tensor& x, const Tensor& y,
                                        OptionalInt mantissa_bits, const Text& mode,
                                        const Text& round, OptionalFloat offset, const Text& grad,
                                        bool need_x, bool need_y) {
  const char* op = "lmul_mul_bwd";
  const Tensor upstream = is_float8(g.scalar_type()) ? torch::stable::to(g, ScalarType::Float) : g;
  MulGradArgs args = mul_grad_args(op, upstream, x, y, {mantissa_bits, mode, round, offset}, grad);
  const Gradient grad_x(op, x, need_x), grad_y(op, y, need_y);
  args.grad_x = grad_x.out();
  args.grad_y = grad_y.out();
  mul_grad(args, torch_threads());
  return {grad_x.finish(), grad_y.finish()};
}

// ---- matmul and bmm ----

Tensor run_matmul(const char* op, int rank, const Tensor& a, const Tensor& b, const RawOptions& raw,
                  const Text& algo, OptionalType out_dtype) {
  MatmulArgs args = matmul_args(op, rank, a, b, raw);
  args.algo = parse_algo(op, algo, args.options);
  std::vector<int64_t> sizes = {args.M, args.N};
  if (rank == 3) sizes.insert(sizes.begin(), args.batch);
  const Result out(op, a, sizes, result_type(out_dtype, {a.scalar_type(), b.scalar_type()}));
  args.out = output(out);
  matmul(args, torch_threads());
  return out.finish();
}

MatmulGradArgs grad_args(const MatmulArgs& forward, const Matrix& g, Grad grad) {
  MatmulGradArgs args;
  args.batch = forward.batch;
  args.M = forward.M;
  args.N = forward.N;
  args.K = forward.K;
  args.g = g;
  args.a = forward.a;
  args.b = forward.b;
  args.options = forward.options;
  args.grad = grad;
  return args;
}

std::tuple<Tensor, Tensor> run_matmul_bwd(const char* op, int rank, const Tensor& g,
                                          const Tensor& a, const Tensor& b, const RawOptions& raw,
                                          const Text& grad, bool need_a, bool need_b) {
  const MatmulArgs forward = matmul_args(op, rank, a, b, raw);
  NNK_CHECK(g.dim() == rank && g.size(rank - 2) == forward.M && g.size(rank - 1) == forward.N &&
                (rank == 2 || g.size(0) == forward.batch),
            op, ": g is ", shape(g), ", expected the shape of the product of a ", shape(a),
            " and b ", shape(b));
  check_device(op, "g", g, a);
  const Matrix upstream = matrix(g, input_dtype(op, "g", g));
  MatmulGradArgs args = grad_args(forward, upstream, choose(op, "grad", grad, kGrads));
  const Gradient grad_a(op, a, need_a), grad_b(op, b, need_b);
  args.grad_a = grad_a.out();
  args.grad_b = grad_b.out();
  matmul_grad(args, torch_threads());
  return {grad_a.finish(), grad_b.finish()};
}

template <int rank>
Tensor lmul_matmul(const Tensor& a, const Tensor& b, OptionalInt mantissa_bits, const Text& mode,
                   const Text& round, OptionalFloat offset, const Text& algo,
                   OptionalType out_dtype) {
  return run_matmul(rank == 3 ? "lmul_bmm" : "lmul_matmul", rank, a, b,
                    {mantissa_bits, mode, round, offset}, algo, out_dtype);
}

template <int rank>
std::tuple<Tensor, Tensor> lmul_matmul_bwd(const Tensor& g, const Tensor& a, const Tensor& b,
                                           OptionalInt mantissa_bits, const Text& mode,
                                           const Text& round, OptionalFloat offset,
                                           const Text& grad, bool need_a, bool need_b) {
  return run_matmul_bwd(rank == 3 ? "lmul_bmm_bwd" : "lmul_matmul_bwd", rank, g, a, b,
                        {mantissa_bits, mode, round, offset}, grad, need_a, need_b);
}

// ---- linear and pack ----

// A prepared weight that matches the call, or an error that shows both.
const uint8_t* packed_weight(const char* op, const Tensor& packed, const Tensor& w,
                             const MatmulArgs& args) {
  check_device(op, "w_packed", packed, w);
  NNK_CHECK(packed.scalar_type() == ScalarType::Byte && packed.dim() == 1 && packed.is_contiguous(),
            op, ": w_packed must be the uint8 tensor that lmul_pack returned");
  const auto* data = static_cast<const uint8_t*>(packed.const_data_ptr());
  const PackedInfo info = packed_info(data, packed.numel());
  NNK_CHECK(info.valid, op,
            ": w_packed was not made by lmul_pack of this version; pack the weight again");
  NNK_CHECK(info.N == args.N && info.K == args.K, op, ": w_packed holds a weight [", info.N, ", ",
            info.K, "], but w is ", shape(w), "; pack w again");
  NNK_CHECK(info.options == args.options, op, ": w_packed was made with ", describe(info.options),
            ", but the call has ", describe(args.options), "; pack w with the options of the call");
  return data;
}

Tensor lmul_linear(const Tensor& x, const Tensor& w, const OptionalTensor& bias,
                   const OptionalTensor& w_packed, OptionalInt mantissa_bits, const Text& mode,
                   const Text& round, OptionalFloat offset, const Text& algo,
                   OptionalType out_dtype) {
  const char* op = "lmul_linear";
  const Tensor rows = linear_rows(op, x, w);
  MatmulArgs args = linear_args(op, rows, w, {mantissa_bits, mode, round, offset});
  args.algo = parse_algo(op, algo, args.options);
  OptionalTensor dense_bias;
  if (bias) {
    check_device(op, "bias", *bias, x);
    NNK_CHECK(bias->dim() == 1 && bias->size(0) == args.N, op, ": bias is ", shape(*bias),
              ", expected [", args.N, "]");
    args.bias_dtype = input_dtype(op, "bias", *bias);
    dense_bias = bias->is_contiguous() ? *bias : torch::stable::contiguous(*bias);
    args.bias = dense_bias->const_data_ptr();
  }
  if (w_packed) args.b_packed = packed_weight(op, *w_packed, w, args);
  std::vector<int64_t> sizes = sizes_of(x);
  sizes.back() = args.N;
  const Result out(op, x, sizes, result_type(out_dtype, {x.scalar_type(), w.scalar_type()}));
  args.out = output(out);
  matmul(args, torch_threads());
  return out.finish();
}

std::tuple<Tensor, Tensor, Tensor> lmul_linear_bwd(const Tensor& g, const Tensor& x,
                                                   const Tensor& w, OptionalInt mantissa_bits,
                                                   const Text& mode, const Text& round,
                                                   OptionalFloat offset, const Text& grad,
                                                   bool need_x, bool need_w, bool need_bias) {
  const char* op = "lmul_linear_bwd";
  const Tensor rows = linear_rows(op, x, w);
  const MatmulArgs forward = linear_args(op, rows, w, {mantissa_bits, mode, round, offset});
  std::vector<int64_t> expected = sizes_of(x);
  expected.back() = forward.N;
  NNK_CHECK(sizes_of(g) == expected, op, ": g is ", shape(g),
            ", expected the shape of linear of x ", shape(x), " and w ", shape(w));
  check_device(op, "g", g, x);
  const Tensor g_rows = as_rows(g);
  const Matrix upstream = matrix(g_rows, input_dtype(op, "g", g_rows));
  const Grad rule = choose(op, "grad", grad, kGrads);
  const Gradient grad_x(op, x, need_x), grad_w(op, w, need_w);
  if (need_x) {
    MatmulGradArgs args = grad_args(forward, upstream, rule);
    args.grad_a = grad_x.out();
    matmul_grad(args, torch_threads());
  }
  if (need_w) {
    // L commutes: the transposed product w x^T gives the gradient of w as [N, K].
    MatmulGradArgs args = grad_args(forward, transposed(upstream), rule);
    std::swap(args.M, args.N);
    args.a = transposed(forward.b);
    args.b = transposed(forward.a);
    args.grad_a = grad_w.out();
    matmul_grad(args, torch_threads());
  }
  const Result grad_bias(op, g, {need_bias ? forward.N : 0}, ScalarType::Float);
  if (need_bias) {
    // The column sums of g are ones^T g, so they too have the one order of sums.
    const float one = 1.0f;
    MatmulGradArgs args = grad_args(forward, upstream, Grad::ste);
    args.K = 1;
    args.a = args.b = {&one, DType::float32, 0, 0, 0};
    args.options = Options{};
    args.grad_b = output(grad_bias);
    matmul_grad(args, torch_threads());
  }
  return {grad_x.finish(), grad_w.finish(), grad_bias.finish()};
}

Tensor lmul_pack(const Tensor& w, OptionalInt mantissa_bits, const Text& mode, const Text& round,
                 OptionalFloat offset) {
  const char* op = "lmul_pack";
  NNK_CHECK(w.dim() == 2, op, ": w is ", shape(w), ", expected [N, K]");
  const Matrix weight = matrix(w, input_dtype(op, "w", w));
  const Options options = parse_options(op, {mantissa_bits, mode, round, offset}, {weight.dtype});
  const int64_t N = w.size(0), K = w.size(1);
  Tensor packed = empty(op, w, {packed_size(N, K)}, ScalarType::Byte);
  pack(weight, N, K, options, static_cast<uint8_t*>(packed.mutable_data_ptr()), torch_threads());
  return packed;
}

// ---- attention ----

Tensor lmul_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                      const OptionalTensor& attn_mask, bool is_causal, OptionalFloat scale,
                      const Text& normalize, OptionalInt mantissa_bits, const Text& mode,
                      const Text& round, OptionalFloat offset, const Text& algo,
                      OptionalType out_dtype) {
  const char* op = "lmul_attention";
  AttentionArgs args = attention_args(op, q, k, v, attn_mask, is_causal, scale, normalize,
                                      {mantissa_bits, mode, round, offset});
  args.algo = parse_algo(op, algo, args.options);
  const Result out(op, q, {args.B, args.H, args.T, args.Dv},
                   result_type(out_dtype, {q.scalar_type(), k.scalar_type(), v.scalar_type()}));
  args.out = output(out);
  attention(args, torch_threads());
  return out.finish();
}

std::tuple<Tensor, Tensor, Tensor> lmul_attention_bwd(
    const Tensor& g, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
    const OptionalTensor& attn_mask, bool is_causal, OptionalFloat scale, const Text& normalize,
    OptionalInt mantissa_bits, const Text& mode, const Text& round, OptionalFloat offset,
    const Text& grad, bool need_q, bool need_k, bool need_v) {
  const char* op = "lmul_attention_bwd";
  AttentionGradArgs args;
  args.forward = attention_args(op, q, k, v, attn_mask, is_causal, scale, normalize,
                                {mantissa_bits, mode, round, offset});
  const AttentionArgs& forward = args.forward;
  const std::vector<int64_t> expected = {forward.B, forward.H, forward.T, forward.Dv};
  NNK_CHECK(sizes_of(g) == expected && sizes_of(out) == expected, op, ": g is ", shape(g),
            " and out is ", shape(out), ", expected [", forward.B, ", ", forward.H, ", ", forward.T,
            ", ", forward.Dv, "]");
  check_device(op, "g", g, q);
  check_device(op, "out", out, q);
  args.g = tensor4(g, input_dtype(op, "g", g));
  args.out = tensor4(out, input_dtype(op, "out", out));
  args.grad = choose(op, "grad", grad, kGrads);
  const Gradient grad_q(op, q, need_q), grad_k(op, k, need_k), grad_v(op, v, need_v);
  args.grad_q = grad_q.out();
  args.grad_k = grad_k.out();
  args.grad_v = grad_v.out();
  attention_grad(args, torch_threads());
  return {grad_q.finish(), grad_k.finish(), grad_v.finish()};
}

// ---- registration ----

constexpr char kMul[] = "lmul_mul", kMulBwd[] = "lmul_mul_bwd", kMatmul[] = "lmul_matmul",
               kMatmulBwd[] = "lmul_matmul_bwd", kBmm[] = "lmul_bmm", kBmmBwd[] = "lmul_bmm_bwd",
               kLinear[] = "lmul_linear", kLinearBwd[] = "lmul_linear_bwd", kPack[] = "lmul_pack",
               kAttention[] = "lmul_attention", kAttentionBwd[] = "lmul_attention_bwd";

}  // namespace
}  // namespace nnkernels::lmul

#define LMUL_OPTIONS \
  "int? mantissa_bits=None, str mode='bits', str round='trunc', float? offset=None"
#define LMUL_TAIL "str algo='auto', ScalarType? out_dtype=None) -> Tensor"
#define LMUL_GRAD "str? grad='ste', "
#define LMUL_ATTENTION                                                              \
  "Tensor q, Tensor k, Tensor v, *, Tensor? attn_mask=None, bool is_causal=False, " \
  "float? scale=None, str normalize='before', " LMUL_OPTIONS ", "
#define LMUL_LINEAR \
  "Tensor x, Tensor w, Tensor? bias=None, *, Tensor? w_packed=None, " LMUL_OPTIONS ", "

STABLE_TORCH_LIBRARY_FRAGMENT(nnkernels, m) {
  m.def("lmul_mul(Tensor x, Tensor y, *, " LMUL_OPTIONS ", " LMUL_GRAD
        "ScalarType? out_dtype=None) -> Tensor");
  m.def("lmul_mul_fwd(Tensor x, Tensor y, *, " LMUL_OPTIONS
        ", ScalarType? out_dtype=None) -> Tensor");
  m.def("lmul_mul_bwd(Tensor g, Tensor x, Tensor y, *, " LMUL_OPTIONS
        ", str grad='ste', bool need_x=True, bool need_y=True) -> (Tensor, Tensor)");

  m.def("lmul_matmul(Tensor a, Tensor b, *, " LMUL_OPTIONS ", " LMUL_GRAD LMUL_TAIL);
  m.def("lmul_matmul_fwd(Tensor a, Tensor b, *, " LMUL_OPTIONS ", " LMUL_TAIL);
  m.def("lmul_matmul_bwd(Tensor g, Tensor a, Tensor b, *, " LMUL_OPTIONS
        ", str grad='ste', bool need_a=True, bool need_b=True) -> (Tensor, Tensor)");

  m.def("lmul_bmm(Tensor a, Tensor b, *, " LMUL_OPTIONS ", " LMUL_GRAD LMUL_TAIL);
  m.def("lmul_bmm_fwd(Tensor a, Tensor b, *, " LMUL_OPTIONS ", " LMUL_TAIL);
  m.def("lmul_bmm_bwd(Tensor g, Tensor a, Tensor b, *, " LMUL_OPTIONS
        ", str grad='ste', bool need_a=True, bool need_b=True) -> (Tensor, Tensor)");

  m.def("lmul_linear(" LMUL_LINEAR LMUL_GRAD LMUL_TAIL);
  m.def("lmul_linear_fwd(" LMUL_LINEAR LMUL_TAIL);
  m.def("lmul_linear_bwd(Tensor g, Tensor x, Tensor w, *, " LMUL_OPTIONS
        ", str grad='ste', bool need_x=True, bool need_w=True, bool need_bias=False)"
        " -> (Tensor, Tensor, Tensor)");
  m.def("lmul_pack(Tensor w, *, " LMUL_OPTIONS ") -> Tensor");

  m.def("lmul_attention(" LMUL_ATTENTION LMUL_GRAD LMUL_TAIL);
  m.def("lmul_attention_fwd(" LMUL_ATTENTION LMUL_TAIL);
  m.def(
      "lmul_attention_bwd(Tensor g, Tensor q, Tensor k, Tensor v, Tensor out, "
      "Tensor? attn_mask=None, *, bool is_causal=False, float? scale=None, "
      "str normalize='before', " LMUL_OPTIONS
      ", str grad='ste', bool need_q=True, bool need_k=True, bool need_v=True)"
      " -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(nnkernels, CPU, m) {
  namespace ops = nnkernels::lmul;
  using nnkernels::boxed;
  m.impl("lmul_mul_fwd", boxed<ops::kMul, &ops::lmul_mul>);
  m.impl("lmul_mul", ops::with_grad<ops::kMul, 6, boxed<ops::kMul, &ops::lmul_mul>>);
  m.impl("lmul_mul_bwd", boxed<ops::kMulBwd, &ops::lmul_mul_bwd>);
  m.impl("lmul_matmul_fwd", boxed<ops::kMatmul, &ops::lmul_matmul<2>>);
  m.impl("lmul_matmul", ops::with_grad<ops::kMatmul, 6, boxed<ops::kMatmul, &ops::lmul_matmul<2>>>);
  m.impl("lmul_matmul_bwd", boxed<ops::kMatmulBwd, &ops::lmul_matmul_bwd<2>>);
  m.impl("lmul_bmm_fwd", boxed<ops::kBmm, &ops::lmul_matmul<3>>);
  m.impl("lmul_bmm", ops::with_grad<ops::kBmm, 6, boxed<ops::kBmm, &ops::lmul_matmul<3>>>);
  m.impl("lmul_bmm_bwd", boxed<ops::kBmmBwd, &ops::lmul_matmul_bwd<3>>);
  m.impl("lmul_linear_fwd", boxed<ops::kLinear, &ops::lmul_linear>);
  m.impl("lmul_linear", ops::with_grad<ops::kLinear, 8, boxed<ops::kLinear, &ops::lmul_linear>>);
  m.impl("lmul_linear_bwd", boxed<ops::kLinearBwd, &ops::lmul_linear_bwd>);
  m.impl("lmul_pack", boxed<ops::kPack, &ops::lmul_pack>);
  m.impl("lmul_attention_fwd", boxed<ops::kAttention, &ops::lmul_attention>);
  m.impl("lmul_attention",
         ops::with_grad<ops::kAttention, 11, boxed<ops::kAttention, &ops::lmul_attention>>);
  m.impl("lmul_attention_bwd", boxed<ops::kAttentionBwd, &ops::lmul_attention_bwd>);
}
