// The torch operators nnkernels::pc_* and rans_* of the codec on CPU tensors: they check what
// guards memory, allocate and call the kernels of codec.h and rans.h. Fake kernels are Python
// (nnkernels/pc/register.py).
#include <tuple>

#include "pc/binding.h"
#include "pc/codec.h"

namespace nnkernels::pc {
namespace {

constexpr char kConditionalCdf[] = "pc_conditional_cdf", kIntervals[] = "pc_intervals",
               kEncode[] = "pc_encode", kDecode[] = "pc_decode", kRansEncode[] = "rans_encode",
               kRansDecode[] = "rans_decode", kRansDecodeStep[] = "rans_decode_step";

using Sizes = std::vector<int64_t>;

const int32_t* read_ints(Operands& operands, const char* name, const Tensor& tensor,
                         const Sizes& sizes, const char* meaning) {
  return static_cast<const int32_t*>(operands.read(name, tensor, ScalarType::Int, sizes, meaning));
}

FrozenModel read_frozen(const char* op, Operands& operands, const std::vector<Tensor>& model,
                        int64_t precision) {
  NNK_CHECK(model.size() == 6, op, ": model has ", model.size(),
            " tensors, expected [pi, A, B, C, parent, order]");
  const Tensor &pi = model[0], &B = model[2], &parent = model[4];
  NNK_CHECK(pi.dim() == 1, op, ": pi is ", shape(pi), ", expected [h]");
  NNK_CHECK(B.dim() == 3, op, ": B is ", shape(B), ", expected [D, h, K]");
  NNK_CHECK(parent.dim() == 1, op, ": parent is ", shape(parent), ", expected [D]");
  const int64_t D = parent.size(0), h = pi.size(0), K = B.size(2);
  const auto table = [&](const char* name, size_t index, const Sizes& sizes, const char* meaning) {
    return static_cast<const float*>(
        operands.read(name, model[index], ScalarType::Float, sizes, meaning));
  };
  const auto nodes = [&](const char* name, size_t index) {
    return static_cast<const int64_t*>(
        operands.read(name, model[index], ScalarType::Long, {D}, "[D]"));
  };
  return frozen_model(table("pi", 0, {h}, "[h]"), table("A", 1, {D, h, h}, "[D, h, h]"),
                      table("B", 2, {D, h, K}, "[D, h, K]"),
                      table("C", 3, {D, h, K + 1}, "[D, h, K + 1]"), nodes("parent", 4),
                      nodes("order", 5), D, h, K, precision);
}

Samples read_samples(const char* op, Operands& operands, const Tensor& x,
                     const FrozenModel& model) {
  const Evidence evidence = read_evidence(op, operands, x, std::nullopt);
  NNK_CHECK(x.size(1) == model.D(), op, ": x is ", shape(x),
            ", expected [N, D] with D = ", model.D());
  return {evidence.x, evidence.type, evidence.N};
}

int32_t* ints(const Tensor& tensor) { return static_cast<int32_t*>(tensor.mutable_data_ptr()); }

struct Streams {
  Tensor words, counts;

  Streams(const char* op, const Tensor& like, int64_t N, int64_t D, int64_t lanes,
          int64_t precision) {
    check_rans_sizes(N, D, lanes, precision);
    words = empty(op, like, {lanes, rans_capacity(N, D, lanes)}, ScalarType::Int);
    counts = empty(op, like, {lanes}, ScalarType::Int);
  }
};

// words [L, W] and counts [L] of a decoder.
struct StreamInputs {
  const int32_t *words, *counts;
  int64_t lanes, row;

  StreamInputs(const char* op, Operands& operands, const Tensor& of_words,
               const Tensor& of_counts) {
    NNK_CHECK(of_words.dim() == 2, op, ": words is ", shape(of_words), ", expected [L, W]");
    lanes = of_words.size(0);
    row = of_words.size(1);
    words = read_ints(operands, "words", of_words, {lanes, row}, "[L, W]");
    counts = read_ints(operands, "counts", of_counts, {lanes}, "[L] of words [L, W]");
  }
};

Tensor pc_conditional_cdf(const Tensor& x, const std::vector<Tensor>& model, int64_t i,
                          int64_t precision) {
  constexpr const char* op = kConditionalCdf;
  Operands operands(op, x);
  const FrozenModel frozen = read_frozen(op, operands, model, precision);
  const Samples samples = read_samples(op, operands, x, frozen);
  NNK_CHECK(i >= 0 && i < frozen.D(), op, ": i is ", i,
            ", expected a variable below D = ", frozen.D());
  const Tensor cdf = empty(op, x, {samples.N, frozen.K + 1}, ScalarType::Int);
  conditional_cdf(frozen, samples, i, static_cast<int>(precision), ints(cdf), torch_threads());
  return cdf;
}

std::tuple<Tensor, Tensor> pc_intervals(const Tensor& x, const std::vector<Tensor>& model,
                                        int64_t precision) {
  Operands operands(kIntervals, x);
  const FrozenModel frozen = read_frozen(kIntervals, operands, model, precision);
  const Samples samples = read_samples(kIntervals, operands, x, frozen);
  const Tensor low = empty(kIntervals, x, sizes_of(x), ScalarType::Int),
               width = empty(kIntervals, x, sizes_of(x), ScalarType::Int);
  intervals(frozen, samples, static_cast<int>(precision), ints(low), ints(width), torch_threads());
  return {low, width};
}

std::tuple<Tensor, Tensor> pc_encode(const Tensor& x, const std::vector<Tensor>& model,
                                     int64_t lanes, int64_t precision) {
  Operands operands(kEncode, x);
  const FrozenModel frozen = read_frozen(kEncode, operands, model, precision);
  const Samples samples = read_samples(kEncode, operands, x, frozen);
  const Streams out(kEncode, x, samples.N, frozen.D(), lanes, precision);
  encode(frozen, samples, lanes, static_cast<int>(precision), ints(out.words), ints(out.counts),
         torch_threads());
  return {out.words, out.counts};
}

Tensor pc_decode(const Tensor& words, const Tensor& counts, int64_t N,
                 const std::vector<Tensor>& model, int64_t precision) {
  Operands operands(kDecode, words);
  const FrozenModel frozen = read_frozen(kDecode, operands, model, precision);
  const StreamInputs in(kDecode, operands, words, counts);
  check_rans_sizes(N, frozen.D(), in.lanes, precision);
  DecodeArgs args;
  args.words = in.words;
  args.lanes = in.lanes;
  args.row = in.row;
  args.counts = in.counts;
  args.N = N;
  args.precision = static_cast<int>(precision);
  args.type = frozen.K <= 256 ? Symbol::uint8 : Symbol::int16;
  const Tensor x = empty(kDecode, words, {N, frozen.D()},
                         frozen.K <= 256 ? ScalarType::Byte : ScalarType::Short);
  args.x = x.mutable_data_ptr();
  decode(frozen, args, torch_threads());
  return x;
}

// rans_encode, rans_decode and rans_decode_step; rans.h has functions of these names.
std::tuple<Tensor, Tensor> encode_ints(const Tensor& low, const Tensor& width, int64_t lanes,
                                       int64_t precision) {
  Operands operands(kRansEncode, low);
  NNK_CHECK(low.dim() == 2, kRansEncode, ": low is ", shape(low), ", expected [N, D]");
  const int64_t N = low.size(0), D = low.size(1);
  const int32_t* from = read_ints(operands, "low", low, {N, D}, "[N, D]");
  const int32_t* size = read_ints(operands, "width", width, {N, D}, "that of low");
  const Streams out(kRansEncode, low, N, D, lanes, precision);
  const Parallel parallel = torch_threads();
  RansEncoder encoder(N, D, lanes, static_cast<int>(precision), ints(out.words));
  encoder.push(from, size, 0, N, parallel);
  encoder.finish(ints(out.counts), parallel);
  return {out.words, out.counts};
}

Tensor decode_ints(const Tensor& words, const Tensor& counts, const Tensor& cdf, int64_t N,
                   int64_t precision) {
  Operands operands(kRansDecode, words);
  const StreamInputs in(kRansDecode, operands, words, counts);
  const int64_t dims = cdf.dim();
  NNK_CHECK(dims == 2 || (dims == 3 && cdf.size(0) == N), kRansDecode, ": cdf is ", shape(cdf),
            ", expected [D, K + 1] or [N, D, K + 1] with N = ", N);
  RansDecodeArgs args;
  args.D = cdf.size(dims - 2);
  args.K = cdf.size(dims - 1) - 1;
  NNK_CHECK(args.K >= 1, kRansDecode, ": cdf is ", shape(cdf), ", expected K + 1 >= 2 columns");
  check_rans_sizes(N, args.D, in.lanes, precision);
  args.words = in.words;
  args.lanes = in.lanes;
  args.row = in.row;
  args.counts = in.counts;
  args.cdf = read_ints(operands, "cdf", cdf, sizes_of(cdf), "itself");
  args.sample_stride = dims == 3 ? args.D * (args.K + 1) : 0;
  args.N = N;
  args.precision = static_cast<int>(precision);
  const Tensor symbols = empty(kRansDecode, words, {N, args.D}, ScalarType::Int);
  args.symbols = ints(symbols);
  rans_decode(args, torch_threads());
  return symbols;
}

int64_t* mutable_numbers(const char* name, const Tensor& tensor, const Tensor& words) {
  constexpr const char* op = kRansDecodeStep;
  check_device(op, name, tensor, words);
  NNK_CHECK(tensor.scalar_type() == ScalarType::Long && tensor.dim() == 1 &&
                tensor.size(0) == words.size(0) && tensor.is_contiguous(),
            op, ": ", name, " is ", shape(tensor), " of ",
            torch::headeronly::toString(tensor.scalar_type()),
            ", expected contiguous int64 [L] with L = ", words.size(0), ": it is updated in place");
  return static_cast<int64_t*>(tensor.mutable_data_ptr());
}

Tensor decode_step_ints(const Tensor& state, const Tensor& position, const Tensor& words,
                        const Tensor& counts, const Tensor& cdf, int64_t precision) {
  constexpr const char* op = kRansDecodeStep;
  Operands operands(op, words);
  const StreamInputs in(op, operands, words, counts);
  NNK_CHECK(cdf.dim() == 2 && cdf.size(1) >= 2, op, ": cdf is ", shape(cdf),
            ", expected [L, K + 1]");
  check_rans_sizes(0, 0, std::max<int64_t>(in.lanes, 1), precision);
  RansDecodeStepArgs args;
  args.states = mutable_numbers("state", state, words);
  args.positions = mutable_numbers("position", position, words);
  args.words = in.words;
  args.lanes = in.lanes;
  args.row = in.row;
  args.counts = in.counts;
  args.K = cdf.size(1) - 1;
  args.cdf = read_ints(operands, "cdf", cdf, {in.lanes, args.K + 1}, "[L, K + 1]");
  args.precision = static_cast<int>(precision);
  const Tensor symbols = empty(op, words, {in.lanes}, ScalarType::Int);
  args.symbols = ints(symbols);
  rans_decode_step(args);
  return symbols;
}

}  // namespace
}  // namespace nnkernels::pc

STABLE_TORCH_LIBRARY_FRAGMENT(nnkernels, m) {
  m.def("pc_conditional_cdf(Tensor x, Tensor[] model, int i, int precision=20) -> Tensor");
  m.def("pc_intervals(Tensor x, Tensor[] model, int precision=20) -> (Tensor low, Tensor width)");
  m.def(
      "pc_encode(Tensor x, Tensor[] model, int lanes, int precision=20) -> "
      "(Tensor words, Tensor counts)");
  m.def(
      "pc_decode(Tensor words, Tensor counts, SymInt N, Tensor[] model, int precision=20) -> "
      "Tensor");
  m.def(
      "rans_encode(Tensor low, Tensor width, int lanes, int precision=20) -> "
      "(Tensor words, Tensor counts)");
  m.def(
      "rans_decode(Tensor words, Tensor counts, Tensor cdf, SymInt N, int precision=20) -> Tensor");
  m.def(
      "rans_decode_step(Tensor(a!) state, Tensor(b!) position, Tensor words, Tensor counts, "
      "Tensor cdf, int precision=20) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(nnkernels, CPU, m) {
  namespace ops = nnkernels::pc;
  using nnkernels::boxed;
  m.impl("pc_conditional_cdf", boxed<ops::kConditionalCdf, &ops::pc_conditional_cdf>);
  m.impl("pc_intervals", boxed<ops::kIntervals, &ops::pc_intervals>);
  m.impl("pc_encode", boxed<ops::kEncode, &ops::pc_encode>);
  m.impl("pc_decode", boxed<ops::kDecode, &ops::pc_decode>);
  m.impl("rans_encode", boxed<ops::kRansEncode, &ops::encode_ints>);
  m.impl("rans_decode", boxed<ops::kRansDecode, &ops::decode_ints>);
  m.impl("rans_decode_step", boxed<ops::kRansDecodeStep, &ops::decode_step_ints>);
}
