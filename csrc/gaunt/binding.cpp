// The torch operators nnkernels::gaunt_* on CPU tensors: they check what guards memory, allocate
// and call the kernels of gaunt.h. Autograd and fake kernels are Python
// (nnkernels/gaunt/register.py).
#include "gaunt/binding.h"

#include <tuple>

namespace nnkernels::gaunt {
namespace {

// ---- product and cross ----

// The arguments that product, its derivatives and those of cross share.
#define GAUNT_OPERANDS                                                                            \
  const Tensor &x, const Tensor &y, int64_t L1, int64_t L2, int64_t L3, const OptionalTensor &w1, \
      const OptionalTensor &w2, const OptionalTensor &w3, const Text &normalization,              \
      const Text &layout

struct ProductCall {
  Call call;
  ProductArgs args;

  ProductCall(const char* op, Kind kind, GAUNT_OPERANDS) : call(op, x, layout) {
    check_degree(op, "L1", L1);
    check_degree(op, "L2", L2);
    check_degree(op, "L3", L3);
    args.kind = kind;
    args.basis = choose(op, "normalization", normalization, kBases);
    args.L1 = L1;
    args.L2 = L2;
    args.L3 = L3;
    call.add("x", x, coefficients_of(L1));
    call.add("y", y, coefficients_of(L2));
    call.add("w1", w1, L1 + 1);
    call.add("w2", w2, L2 + 1);
    call.add("w3", w3, L3 + 1);
    args.samples = call.samples();
    args.in = {call.array(x), call.array(y), {}, call.array(w1), call.array(w2), call.array(w3)};
  }

  int64_t z_count() const { return coefficients_of(args.L3); }
};

template <const char* op, Kind kind>
Tensor forward(GAUNT_OPERANDS) {
  ProductCall c(op, kind, x, y, L1, L2, L3, w1, w2, w3, normalization, layout);
  const Tensor z = c.call.new_result(c.z_count());
  c.args.out.z = c.call.array(z);
  product(c.args, torch_threads());
  return z;
}

template <const char* op, Kind kind>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(const Tensor& gz, GAUNT_OPERANDS,
                                                            bool need_x, bool need_y, bool need_w1,
                                                            bool need_w2, bool need_w3) {
  ProductCall c(op, kind, x, y, L1, L2, L3, w1, w2, w3, normalization, layout);
  c.args.in.z = c.call.result("gz", gz, c.z_count());
  const Tensor gx = c.call.new_gradient(need_x, x), gy = c.call.new_gradient(need_y, y),
               gw1 = c.call.new_gradient(need_w1, w1), gw2 = c.call.new_gradient(need_w2, w2),
               gw3 = c.call.new_gradient(need_w3, w3);
  c.args.out = {c.call.wanted(need_x, gx),
                c.call.wanted(need_y, gy),
                {},
                c.call.wanted(need_w1, gw1, w1),
                c.call.wanted(need_w2, gw2, w2),
                c.call.wanted(need_w3, gw3, w3)};
  product_grad(c.args, torch_threads());
  return {gx, gy, gw1, gw2, gw3};
}

template <const char* op, Kind kind>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward_backward(
    const OptionalTensor& ux, const OptionalTensor& uy, const OptionalTensor& uw1,
    const OptionalTensor& uw2, const OptionalTensor& uw3, const Tensor& gz, GAUNT_OPERANDS,
    bool need_gz, bool need_x, bool need_y, bool need_w1, bool need_w2, bool need_w3) {
  ProductCall c(op, kind, x, y, L1, L2, L3, w1, w2, w3, normalization, layout);
  c.args.in.z = c.call.result("gz", gz, c.z_count());
  c.args.tangent = {c.call.cotangent("ux", ux, x),
                    c.call.cotangent("uy", uy, y),
                    {},
                    c.call.cotangent("uw1", uw1, w1),
                    c.call.cotangent("uw2", uw2, w2),
                    c.call.cotangent("uw3", uw3, w3)};
  const Tensor dgz = c.call.new_gradient(need_gz, gz), dx = c.call.new_gradient(need_x, x),
               dy = c.call.new_gradient(need_y, y), dw1 = c.call.new_gradient(need_w1, w1),
               dw2 = c.call.new_gradient(need_w2, w2), dw3 = c.call.new_gradient(need_w3, w3);
  c.args.out = {c.call.wanted(need_x, dx),       c.call.wanted(need_y, dy),
                c.call.wanted(need_gz, dgz),     c.call.wanted(need_w1, dw1, w1),
                c.call.wanted(need_w2, dw2, w2), c.call.wanted(need_w3, dw3, w3)};
  product_grad_grad(c.args, torch_threads());
  return {dgz, dx, dy, dw1, dw2, dw3};
}

// ---- nfold ----

struct NfoldCall {
  Call call;
  NfoldArgs args;

  NfoldCall(const char* op, const Tensors& xs, const Ints& Ls, int64_t Lout,
            const Text& normalization, const Text& layout)
      : call(op, first(op, xs, Ls), layout) {
    int64_t sum = Lout;
    check_degree(op, "Lout", Lout);
    for (size_t i = 0; i < xs.size(); ++i) {
      check_degree(op, "Ls", Ls[i]);
      sum += Ls[i];
    }
    check_degree_sum(op, sum);
    for (size_t i = 0; i < xs.size(); ++i) call.add("xs", xs[i], coefficients_of(Ls[i]));
    args.basis = choose(op, "normalization", normalization, kBases);
    args.degrees = Ls;
    args.out_degree = Lout;
    args.samples = call.samples();
    for (const Tensor& x : xs) args.x.push_back(call.array(x));
  }

  int64_t z_count() const { return coefficients_of(args.out_degree); }

  // Gradients of the factors whose entry of `need` is not 0, from `need[at]` on.
  Tensors gradients(const char* op, const Tensors& xs, const Ints& need, size_t at) {
    NNK_CHECK(need.size() == xs.size() + at, op, ": need has ", need.size(), " entries, expected ",
              xs.size() + at);
    Tensors gradients;
    for (size_t i = 0; i < xs.size(); ++i) {
      gradients.push_back(call.new_gradient(need[at + i] != 0, xs[i]));
      args.gx.push_back(call.wanted(need[at + i] != 0, gradients.back()));
    }
    return gradients;
  }

 private:
  static const Tensor& first(const char* op, const Tensors& xs, const Ints& Ls) {
    NNK_CHECK(!xs.empty() && static_cast<int64_t>(xs.size()) <= kMaxFactors, op, ": got ",
              xs.size(), " signals, expected 1 to ", kMaxFactors);
    NNK_CHECK(xs.size() == Ls.size(), op, ": got ", xs.size(), " signals and ", Ls.size(),
              " degrees");
    return xs[0];
  }
};

template <const char* op>
Tensor nfold_forward(const Tensors& xs, const Ints& Ls, int64_t Lout, const Text& normalization,
                     const Text& layout) {
  NfoldCall c(op, xs, Ls, Lout, normalization, layout);
  const Tensor z = c.call.new_result(c.z_count());
  c.args.z = c.call.array(z);
  nfold(c.args, torch_threads());
  return z;
}

template <const char* op>
Tensors nfold_backward(const Tensor& gz, const Tensors& xs, const Ints& Ls, int64_t Lout,
                       const Text& normalization, const Text& layout, const Ints& need) {
  NfoldCall c(op, xs, Ls, Lout, normalization, layout);
  c.args.gz = c.call.result("gz", gz, c.z_count());
  const Tensors gradients = c.gradients(op, xs, need, 0);
  nfold_grad(c.args, torch_threads());
  return gradients;
}

template <const char* op>
Tensors nfold_backward_backward(const Tensors& us, const Tensor& gz, const Tensors& xs,
                                const Ints& Ls, int64_t Lout, const Text& normalization,
                                const Text& layout, const Ints& need) {
  NfoldCall c(op, xs, Ls, Lout, normalization, layout);
  NNK_CHECK(us.size() == xs.size(), op, ": got ", us.size(), " cotangents, expected ", xs.size());
  c.args.gz = c.call.result("gz", gz, c.z_count());
  for (size_t i = 0; i < us.size(); ++i) {
    const bool is_absent = us[i].dim() == 1 && us[i].size(0) == 0;
    c.args.u.push_back(is_absent ? Array{} : c.call.cotangent("us", us[i], xs[i]));
  }
  Tensors gradients = c.gradients(op, xs, need, 1);
  gradients.insert(gradients.begin(), c.call.new_gradient(need[0] != 0, gz));
  c.args.z = c.call.wanted(need[0] != 0, gradients[0]);
  nfold_grad_grad(c.args, torch_threads());
  return gradients;
}

// ---- power ----

struct PowerCall {
  Call call;
  PowerArgs args;

  PowerCall(const char* op, const Tensor& x, int64_t n, int64_t L, int64_t Lout,
            const Text& normalization, const Text& layout)
      : call(op, x, layout) {
    NNK_CHECK(n >= 1 && n <= kMaxFactors, op, ": n is ", n, ", expected 1 to ", kMaxFactors);
    check_degree(op, "L", L);
    check_degree(op, "Lout", Lout);
    check_degree_sum(op, n * L + Lout);
    args.basis = choose(op, "normalization", normalization, kBases);
    args.n = n;
    args.degree = L;
    args.out_degree = Lout;
    call.add("x", x, coefficients_of(L));
    args.samples = call.samples();
    args.x = call.array(x);
  }

  int64_t z_count() const { return coefficients_of(args.out_degree); }
};

template <const char* op>
Tensor power_forward(const Tensor& x, int64_t n, int64_t L, int64_t Lout, const Text& normalization,
                     const Text& layout) {
  PowerCall c(op, x, n, L, Lout, normalization, layout);
  const Tensor z = c.call.new_result(c.z_count());
  c.args.z = c.call.array(z);
  power(c.args, torch_threads());
  return z;
}

template <const char* op>
Tensor power_backward(const Tensor& gz, const Tensor& x, int64_t n, int64_t L, int64_t Lout,
                      const Text& normalization, const Text& layout) {
  PowerCall c(op, x, n, L, Lout, normalization, layout);
  c.args.gz = c.call.result("gz", gz, c.z_count());
  const Tensor gx = c.call.new_gradient(true, x);
  c.args.gx = c.call.array(gx);
  power_grad(c.args, torch_threads());
  return gx;
}

template <const char* op>
std::tuple<Tensor, Tensor> power_backward_backward(const Tensor& u, const Tensor& gz,
                                                   const Tensor& x, int64_t n, int64_t L,
                                                   int64_t Lout, const Text& normalization,
                                                   const Text& layout, bool need_gz, bool need_x) {
  PowerCall c(op, x, n, L, Lout, normalization, layout);
  c.args.gz = c.call.result("gz", gz, c.z_count());
  c.args.u = c.call.cotangent("u", u, x);
  const Tensor dgz = c.call.new_gradient(need_gz, gz), dx = c.call.new_gradient(need_x, x);
  c.args.z = c.call.wanted(need_gz, dgz);
  c.args.gx = c.call.wanted(need_x, dx);
  power_grad_grad(c.args, torch_threads());
  return {dgz, dx};
}

// ---- paths ----

struct PathsCall {
  Call call;
  PathsArgs args;

  PathsCall(const char* op, const Tensor& x, const Tensor& y, const Tensor& w, int64_t L1,
            int64_t L2, int64_t L3, const Text& kind, const Text& normalization, const Text& layout)
      : call(op, x, layout) {
    check_degree(op, "L1", L1);
    check_degree(op, "L2", L2);
    check_degree(op, "L3", L3);
    args.kind = choose(op, "kind", kind, kKinds);
    args.basis = choose(op, "normalization", normalization, kBases);
    args.L1 = L1;
    args.L2 = L2;
    args.L3 = L3;
    call.add("x", x, coefficients_of(L1));
    call.add("y", y, coefficients_of(L2));
    const int64_t P = path_count(args.kind, L1, L2, L3);
    // [P] serves every sample in both layouts.
    const int64_t one[] = {P, 1};
    w_ = layout.value == "ir_mul" && w.dim() == 1 && w.size(0) == P
             ? torch::stable::reshape(w, Sizes(one, 2))
             : w;
    call.add("w", *w_, P);
    args.samples = call.samples();
    args.in = {call.array(x), call.array(y), {}, call.array(*w_)};
  }

  int64_t z_count() const { return coefficients_of(args.L3); }
  // A tensor shaped like w, with the dimensions of the call.
  Array like_w(const Tensor& tensor) const {
    const Sizes sizes = w_->sizes();
    return call.array(torch::stable::reshape(tensor, sizes));
  }

 private:
  OptionalTensor w_;
};

#define GAUNT_PATHS                                                                      \
  const Tensor &x, const Tensor &y, const Tensor &w, int64_t L1, int64_t L2, int64_t L3, \
      const Text &kind, const Text &normalization, const Text &layout

template <const char* op>
Tensor paths_forward(GAUNT_PATHS) {
  PathsCall c(op, x, y, w, L1, L2, L3, kind, normalization, layout);
  const Tensor z = c.call.new_result(c.z_count());
  c.args.out.z = c.call.array(z);
  paths(c.args, torch_threads());
  return z;
}

template <const char* op>
std::tuple<Tensor, Tensor, Tensor> paths_backward(const Tensor& gz, GAUNT_PATHS, bool need_x,
                                                  bool need_y, bool need_w) {
  PathsCall c(op, x, y, w, L1, L2, L3, kind, normalization, layout);
  c.args.in.z = c.call.result("gz", gz, c.z_count());
  const Tensor gx = c.call.new_gradient(need_x, x), gy = c.call.new_gradient(need_y, y),
               gw = c.call.new_gradient(need_w, w);
  c.args.out = {
      c.call.wanted(need_x, gx), c.call.wanted(need_y, gy), {}, need_w ? c.like_w(gw) : Array{}};
  paths_grad(c.args, torch_threads());
  return {gx, gy, gw};
}

template <const char* op>
std::tuple<Tensor, Tensor, Tensor, Tensor> paths_backward_backward(
    const OptionalTensor& ux, const OptionalTensor& uy, const OptionalTensor& uw, const Tensor& gz,
    GAUNT_PATHS, bool need_gz, bool need_x, bool need_y, bool need_w) {
  PathsCall c(op, x, y, w, L1, L2, L3, kind, normalization, layout);
  c.args.in.z = c.call.result("gz", gz, c.z_count());
  OptionalTensor uw_dense;
  if (uw) {
    NNK_CHECK(sizes_of(*uw) == sizes_of(w), op, ": uw is ", shape(*uw), ", expected ", shape(w));
    uw_dense = torch::stable::contiguous(*uw);
    c.call.cotangent("uw", uw, w);
  }
  c.args.tangent = {c.call.cotangent("ux", ux, x),
                    c.call.cotangent("uy", uy, y),
                    {},
                    uw_dense ? c.like_w(*uw_dense) : Array{}};
  const Tensor dgz = c.call.new_gradient(need_gz, gz), dx = c.call.new_gradient(need_x, x),
               dy = c.call.new_gradient(need_y, y), dw = c.call.new_gradient(need_w, w);
  c.args.out = {c.call.wanted(need_x, dx), c.call.wanted(need_y, dy), c.call.wanted(need_gz, dgz),
                need_w ? c.like_w(dw) : Array{}};
  paths_grad_grad(c.args, torch_threads());
  return {dgz, dx, dy, dw};
}

// ---- grids ----

// A table of numbers, read in float64.
std::vector<double> numbers(const char* op, const char* name, const Tensor& tensor,
                            const Ints& sizes) {
  NNK_CHECK(sizes_of(tensor) == sizes, op, ": ", name, " is ", shape(tensor), ", expected ",
            shape(sizes));
  NNK_CHECK(tensor.scalar_type() == ScalarType::Double || tensor.scalar_type() == ScalarType::Float,
            op, ": ", name, " has dtype ", torch::headeronly::toString(tensor.scalar_type()),
            ", expected float64 or float32");
  const Tensor dense = torch::stable::contiguous(tensor);
  std::vector<double> values(static_cast<size_t>(dense.numel()));
  const void* data = dense.const_data_ptr();
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = tensor.scalar_type() == ScalarType::Double ? static_cast<const double*>(data)[i]
                                                           : static_cast<const float*>(data)[i];
  }
  return values;
}

Tensor grid(const char* op, const char* name, const Tensor& in, int64_t L, const Tensor& points,
            const OptionalTensor& weights, bool to) {
  check_degree(op, "L", L);
  NNK_CHECK(points.dim() == 2, op, ": points is ", shape(points), ", expected [P, 3]");
  NNK_CHECK(points.device() == in.device(), op, ": points and ", name, " are on different devices");
  const int64_t P = points.size(0), count = coefficients_of(L);
  Call call(op, in, Text{"mul_ir"});
  call.add(name, in, to ? count : P);
  const std::vector<double> xyz = numbers(op, "points", points, {P, 3});
  std::vector<double> scale;
  if (weights) scale = numbers(op, "weights", *weights, {P});
  const Tensor out = call.new_result(to ? P : count);
  GridArgs args;
  args.samples = call.samples();
  args.L = L;
  args.points = P;
  args.xyz = xyz.data();
  args.weights = weights ? scale.data() : nullptr;
  args.in = call.array(in);
  args.out = call.array(out);
  (to ? to_grid : from_grid)(args, torch_threads());
  return out;
}

template <const char* op>
Tensor to_grid_forward(const Tensor& x, int64_t L, const Tensor& points,
                       const OptionalTensor& weights) {
  return grid(op, "x", x, L, points, weights, true);
}
template <const char* op>
Tensor to_grid_values(const Tensor& x, int64_t L, const Tensor& points) {
  return grid(op, "x", x, L, points, {}, true);
}
template <const char* op>
Tensor from_grid_forward(const Tensor& f, int64_t L, const Tensor& points,
                         const OptionalTensor& weights) {
  return grid(op, "f", f, L, points, weights, false);
}
template <const char* op>
Tensor from_grid_weighted(const Tensor& f, int64_t L, const Tensor& points, const Tensor& weights) {
  return grid(op, "f", f, L, points, weights, false);
}

// ---- registration ----

constexpr char kProduct[] = "gaunt_product", kProductFwd[] = "gaunt_product_fwd",
               kProductBwd[] = "gaunt_product_bwd", kProductBwdBwd[] = "gaunt_product_bwd_bwd",
               kCross[] = "gaunt_cross", kCrossFwd[] = "gaunt_cross_fwd",
               kCrossBwd[] = "gaunt_cross_bwd", kCrossBwdBwd[] = "gaunt_cross_bwd_bwd",
               kNfold[] = "gaunt_nfold", kNfoldFwd[] = "gaunt_nfold_fwd",
               kNfoldBwd[] = "gaunt_nfold_bwd", kNfoldBwdBwd[] = "gaunt_nfold_bwd_bwd",
               kPower[] = "gaunt_power", kPowerFwd[] = "gaunt_power_fwd",
               kPowerBwd[] = "gaunt_power_bwd", kPowerBwdBwd[] = "gaunt_power_bwd_bwd",
               kPaths[] = "gaunt_paths", kPathsFwd[] = "gaunt_paths_fwd",
               kPathsBwd[] = "gaunt_paths_bwd", kPathsBwdBwd[] = "gaunt_paths_bwd_bwd",
               kToGrid[] = "gaunt_to_grid", kToGridFwd[] = "gaunt_to_grid_fwd",
               kFromGrid[] = "gaunt_from_grid", kFromGridFwd[] = "gaunt_from_grid_fwd";

}  // namespace
}  // namespace nnkernels::gaunt

#define GAUNT_BASIS "str normalization='integral', str layout='mul_ir'"
#define GAUNT_TAIL \
  "int L1, int L2, int L3, Tensor? w1=None, Tensor? w2=None, Tensor? w3=None, " GAUNT_BASIS
#define GAUNT_NEED_W ", bool need_w1=False, bool need_w2=False, bool need_w3=False)"
#define GAUNT_NFOLD "Tensor[] xs, int[] Ls, int Lout, " GAUNT_BASIS
#define GAUNT_POWER "Tensor x, int n, int L, int Lout, " GAUNT_BASIS
#define GAUNT_PATH_TAIL \
  "Tensor x, Tensor y, Tensor w, int L1, int L2, int L3, str kind='even', " GAUNT_BASIS

STABLE_TORCH_LIBRARY_FRAGMENT(nnkernels, m) {
  m.def("gaunt_product(Tensor x, Tensor y, " GAUNT_TAIL ") -> Tensor");
  m.def("gaunt_product_fwd(Tensor x, Tensor y, " GAUNT_TAIL ") -> Tensor");
  m.def("gaunt_product_bwd(Tensor gz, Tensor x, Tensor y, " GAUNT_TAIL
        ", bool need_x=True, bool need_y=True" GAUNT_NEED_W
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "gaunt_product_bwd_bwd(Tensor? ux, Tensor? uy, Tensor? uw1, Tensor? uw2, Tensor? uw3, "
      "Tensor gz, Tensor x, Tensor y, " GAUNT_TAIL
      ", bool need_gz=True, bool need_x=True, bool need_y=True" GAUNT_NEED_W
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("gaunt_cross(Tensor x, Tensor y, " GAUNT_TAIL ") -> Tensor");
  m.def("gaunt_cross_fwd(Tensor x, Tensor y, " GAUNT_TAIL ") -> Tensor");
  m.def("gaunt_cross_bwd(Tensor gz, Tensor x, Tensor y, " GAUNT_TAIL
        ", bool need_x=True, bool need_y=True" GAUNT_NEED_W
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "gaunt_cross_bwd_bwd(Tensor? ux, Tensor? uy, Tensor? uw1, Tensor? uw2, Tensor? uw3, "
      "Tensor gz, Tensor x, Tensor y, " GAUNT_TAIL
      ", bool need_gz=True, bool need_x=True, bool need_y=True" GAUNT_NEED_W
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");

  m.def("gaunt_nfold(" GAUNT_NFOLD ") -> Tensor");
  m.def("gaunt_nfold_fwd(" GAUNT_NFOLD ") -> Tensor");
  m.def("gaunt_nfold_bwd(Tensor gz, " GAUNT_NFOLD ", *, int[] need) -> Tensor[]");
  m.def("gaunt_nfold_bwd_bwd(Tensor[] us, Tensor gz, " GAUNT_NFOLD ", *, int[] need) -> Tensor[]");

  m.def("gaunt_power(" GAUNT_POWER ") -> Tensor");
  m.def("gaunt_power_fwd(" GAUNT_POWER ") -> Tensor");
  m.def("gaunt_power_bwd(Tensor gz, " GAUNT_POWER ") -> Tensor");
  m.def("gaunt_power_bwd_bwd(Tensor u, Tensor gz, " GAUNT_POWER
        ", bool need_gz=True, bool need_x=True) -> (Tensor, Tensor)");

  m.def("gaunt_paths(" GAUNT_PATH_TAIL ") -> Tensor");
  m.def("gaunt_paths_fwd(" GAUNT_PATH_TAIL ") -> Tensor");
  m.def("gaunt_paths_bwd(Tensor gz, " GAUNT_PATH_TAIL
        ", bool need_x=True, bool need_y=True, bool need_w=True) -> (Tensor, Tensor, Tensor)");
  m.def("gaunt_paths_bwd_bwd(Tensor? ux, Tensor? uy, Tensor? uw, Tensor gz, " GAUNT_PATH_TAIL
        ", bool need_gz=True, bool need_x=True, bool need_y=True, bool need_w=True)"
        " -> (Tensor, Tensor, Tensor, Tensor)");

  m.def("gaunt_to_grid(Tensor x, int L, Tensor points) -> Tensor");
  m.def("gaunt_to_grid_fwd(Tensor x, int L, Tensor points, Tensor? weights=None) -> Tensor");
  m.def("gaunt_from_grid(Tensor f, int L, Tensor points, Tensor weights) -> Tensor");
  m.def("gaunt_from_grid_fwd(Tensor f, int L, Tensor points, Tensor? weights=None) -> Tensor");

  // A composition of gaunt_product in Python.
  m.def(
      "gaunt_vector_product(Tensor u, Tensor v, int L1, int L2, int L3, str "
      "kind='cross', " GAUNT_BASIS ") -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(nnkernels, CPU, m) {
  namespace ops = nnkernels::gaunt;
  using nnkernels::boxed;
  using ops::Kind;
#define GAUNT_IMPL(name, ...) m.impl(name, boxed<name, &ops::__VA_ARGS__>)
  GAUNT_IMPL(ops::kProduct, forward<ops::kProduct, Kind::even>);
  GAUNT_IMPL(ops::kProductFwd, forward<ops::kProductFwd, Kind::even>);
  GAUNT_IMPL(ops::kProductBwd, backward<ops::kProductBwd, Kind::even>);
  GAUNT_IMPL(ops::kProductBwdBwd, backward_backward<ops::kProductBwdBwd, Kind::even>);
  GAUNT_IMPL(ops::kCross, forward<ops::kCross, Kind::cross>);
  GAUNT_IMPL(ops::kCrossFwd, forward<ops::kCrossFwd, Kind::cross>);
  GAUNT_IMPL(ops::kCrossBwd, backward<ops::kCrossBwd, Kind::cross>);
  GAUNT_IMPL(ops::kCrossBwdBwd, backward_backward<ops::kCrossBwdBwd, Kind::cross>);
  GAUNT_IMPL(ops::kNfold, nfold_forward<ops::kNfold>);
  GAUNT_IMPL(ops::kNfoldFwd, nfold_forward<ops::kNfoldFwd>);
  GAUNT_IMPL(ops::kNfoldBwd, nfold_backward<ops::kNfoldBwd>);
  GAUNT_IMPL(ops::kNfoldBwdBwd, nfold_backward_backward<ops::kNfoldBwdBwd>);
  GAUNT_IMPL(ops::kPower, power_forward<ops::kPower>);
  GAUNT_IMPL(ops::kPowerFwd, power_forward<ops::kPowerFwd>);
  GAUNT_IMPL(ops::kPowerBwd, power_backward<ops::kPowerBwd>);
  GAUNT_IMPL(ops::kPowerBwdBwd, power_backward_backward<ops::kPowerBwdBwd>);
  GAUNT_IMPL(ops::kPaths, paths_forward<ops::kPaths>);
  GAUNT_IMPL(ops::kPathsFwd, paths_forward<ops::kPathsFwd>);
  GAUNT_IMPL(ops::kPathsBwd, paths_backward<ops::kPathsBwd>);
  GAUNT_IMPL(ops::kPathsBwdBwd, paths_backward_backward<ops::kPathsBwdBwd>);
  GAUNT_IMPL(ops::kToGrid, to_grid_values<ops::kToGrid>);
  GAUNT_IMPL(ops::kToGridFwd, to_grid_forward<ops::kToGridFwd>);
  GAUNT_IMPL(ops::kFromGrid, from_grid_weighted<ops::kFromGrid>);
  GAUNT_IMPL(ops::kFromGridFwd, from_grid_forward<ops::kFromGridFwd>);
#undef GAUNT_IMPL
}
