// The torch operators nnkernels::binary_* on CPU tensors: they check what guards memory, allocate
// and call the kernels of binary.h. Autograd and fake kernels are Python
// (nnkernels/binary/register.py).
#include "binary/binding.h"

#include <tuple>

namespace nnkernels::binary {
namespace {

// ---- packing ----

// x [..., K] that is packed along its last dimension.
Values packed_values(const char* op, const char* name, const Tensor& x, bool int8) {
  const Type type = value_type(op, name, x, int8);
  NNK_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) >= 1, op, ": ", name, " is ", shape(x),
            ", expected [..., K] with K of at least 1");
  check_length(op, x.size(x.dim() - 1), kMaxK, "bits a row");
  return Values(x, type);
}

Tensor new_bits(const char* op, const Tensor& x) {
  return empty(op, x, with_last(leading(x), row_words(x.size(x.dim() - 1))), ScalarType::Int);
}

void refuse_nan(const char* op, const Tensor& x, int64_t index) {
  NNK_CHECK(index < 0, op, ": x is NaN at ", index_text(index, sizes_of(x)),
            "; leave check_nan out to pack NaN as +1");
}

Tensor binary_pack(const Tensor& x, bool check_nan) {
  const char* op = "binary_pack";
  const Values values = packed_values(op, "x", x, true);
  PackArgs args = values.pack_args();
  const Tensor bits = new_bits(op, x);
  args.bits = new_words(bits);
  refuse_nan(op, x, pack(args, check_nan, torch_threads()));
  return bits;
}

std::tuple<Tensor, Tensor> binary_pack_rowpop(const Tensor& x, bool check_nan) {
  const char* op = "binary_pack_rowpop";
  const Values values = packed_values(op, "x", x, true);
  PackArgs args = values.pack_args();
  const Tensor bits = new_bits(op, x), rowpop = empty(op, x, leading(x), ScalarType::Int);
  args.bits = new_words(bits);
  args.rowpop = new_words(rowpop);
  refuse_nan(op, x, pack(args, check_nan, torch_threads()));
  return {bits, rowpop};
}

float checked_omega(const char* op, double omega) {
  const auto narrow = static_cast<float>(omega);
  NNK_CHECK(std::isfinite(narrow) && narrow > 0, op, ": omega must be finite and positive, got ",
            omega);
  return narrow;
}

Tensor binary_pack_biper(const Tensor& w, double omega, bool check) {
  const char* op = "binary_pack_biper";
  const Values values = packed_values(op, "w", w, false);
  PackArgs args = values.pack_args();
  const Tensor bits = new_bits(op, w);
  args.bits = new_words(bits);
  const int64_t index = pack_biper(args, checked_omega(op, omega), check, torch_threads());
  NNK_CHECK(index < 0, op, ": |omega * w| exceeds 2^20 or is NaN at ",
            index_text(index, sizes_of(w)), "; the square wave is defined up to 2^20");
  return bits;
}

std::tuple<Tensor, Tensor> binary_pack_ternary(const Tensor& t) {
  const char* op = "binary_pack_ternary";
  const Values values = packed_values(op, "t", t, true);
  const Tensor mask = new_bits(op, t), sign = new_bits(op, t);
  pack_ternary(values.pack_args(), new_words(mask), new_words(sign), torch_threads());
  return {mask, sign};
}

Tensor binary_unpack(const Tensor& bits, int64_t K, ScalarType dtype) {
  const char* op = "binary_unpack";
  check_length(op, K, kMaxK, "bits a row");
  check_words(op, "bits", bits, K);
  const std::optional<Type> type = to_type(dtype);
  NNK_CHECK(type, op, ": dtype is ", name_of(dtype),
            ", expected float32, bfloat16, float16, int8, int16 or int32");
  const Tensor rows = side_by_side(as_rows(bits));
  const Tensor out = empty(op, bits, with_last(leading(bits), K), dtype);
  const int64_t stride = rows.dim() == 2 ? rows.stride(0) : 0;
  unpack({words_of(rows), 0, stride}, product(leading(bits)), K, out.mutable_data_ptr(), *type,
         torch_threads());
  return out;
}

Tensor binary_popcount(const Tensor& t) {
  const char* op = "binary_popcount";
  check_dtype(op, "t", t, ScalarType::Int);
  const Tensor words = dense(t), out = empty(op, t, sizes_of(t), ScalarType::Int);
  popcount(words_of(words), t.numel(), new_words(out), torch_threads());
  return out;
}

// ---- matmul ----

void check_rowpop(const char* op, const char* name, const OptionalTensor& pop, const Tensor& bits) {
  Vector(op, name, pop, leading(bits), bits, ScalarType::Int);
}

Tensor binary_matmul(const Tensor& a, const Tensor& b, int64_t K, const OptionalTensor& row_scale,
                     const OptionalTensor& col_scale, const OptionalTensor& bias,
                     OptionalType out_dtype, const OptionalTensor& a_pop,
                     const OptionalTensor& b_pop, bool check_padding) {
  const char* op = "binary_matmul";
  const ScalarType type = out_type(op, out_dtype, K, row_scale || col_scale || bias);
  const Pair pair(op, "a", a, "b", b, K);
  if (check_padding) {
    check_pad_bits(op, "a", pair.a(), pair.batch, pair.M, K);
    check_pad_bits(op, "b", pair.b(), pair.batch, pair.N, K);
  }
  check_rowpop(op, "a_pop", a_pop, a);
  check_rowpop(op, "b_pop", b_pop, b);
  const Vector rows(op, "row_scale", row_scale, leading(a), a);
  const Vector columns(op, "col_scale", col_scale, {pair.N}, a),
      added(op, "bias", bias, {pair.N}, a);
  const Tensor out = empty(op, a, pair.out_sizes(pair.N), type);
  MatmulArgs args{pair.batch, pair.M, pair.N, K, pair.a(), pair.b()};
  args.epilogue = store_to(out);
  args.epilogue.row_scale = rows.data();
  args.epilogue.row_scale_stride = pair.M;
  args.epilogue.column_scale = columns.data();
  args.epilogue.bias = added.data();
  matmul(args, torch_threads());
  return out;
}

Tensor binary_matmul_prepacked(const Tensor& a, const Tensor& b_packed, int64_t N, int64_t K,
                               const OptionalTensor& row_scale, const OptionalTensor& col_scale,
                               const OptionalTensor& bias, OptionalType out_dtype,
                               const OptionalTensor& a_pop) {
  const char* op = "binary_matmul_prepacked";
  const ScalarType type = out_type(op, out_dtype, K, row_scale || col_scale || bias);
  check_words(op, "a", a, K);
  check_rowpop(op, "a_pop", a_pop, a);
  const Vector rows(op, "row_scale", row_scale, leading(a), a);
  const Vector columns(op, "col_scale", col_scale, {N}, a), added(op, "bias", bias, {N}, a);
  const Tensor flat = side_by_side(reshaped(a, {product(leading(a)), a.size(a.dim() - 1)}));
  MatmulArgs args;
  args.M = flat.size(0);
  args.N = N;
  args.K = K;
  args.a = rows_of(flat);
  args.b_packed = packed_weight(op, "b_packed", b_packed, a, N, K);
  const Tensor out = empty(op, a, with_last(leading(a), N), type);
  args.epilogue = store_to(out);
  args.epilogue.row_scale = rows.data();
  args.epilogue.column_scale = columns.data();
  args.epilogue.bias = added.data();
  matmul(args, torch_threads());
  return out;
}

Tensor binary_matmul_sign(const Tensor& a, const Tensor& b, int64_t K, const Tensor& thresh,
                          const Tensor& dir) {
  const char* op = "binary_matmul_sign";
  check_length(op, K, kMaxK, "for 32-bit sums");
  const Pair pair(op, "a", a, "b", b, K);
  NNK_CHECK(b.dim() == 2, op, ": b is ", shape(b), ", expected [N, W(K)]");
  const Vector limits(op, "thresh", thresh, {pair.N}, a, ScalarType::Int);
  const Vector directions(op, "dir", dir, {pair.N}, a, ScalarType::Char);
  const Tensor out = empty(op, a, pair.out_sizes(row_words(pair.N)), ScalarType::Int);
  MatmulArgs args{1, pair.M, pair.N, K, pair.a(), pair.b()};
  args.epilogue = store_to(out);
  args.epilogue.thresh = limits.data<int32_t>();
  args.epilogue.dir = directions.data<int8_t>();
  matmul(args, torch_threads());
  return out;
}

Tensor binary_hamming(const Tensor& a, const Tensor& b, int64_t K) {
  const char* op = "binary_hamming";
  check_length(op, K, kMaxK, "for 32-bit sums");
  const Pair pair(op, "a", a, "b", b, K);
  const Tensor out = empty(op, a, pair.out_sizes(pair.N), ScalarType::Int);
  MatmulArgs args{pair.batch, pair.M, pair.N, K, pair.a(), pair.b()};
  args.hamming = true;
  args.epilogue = store_to(out);
  matmul(args, torch_threads());
  return out;
}

Tensor binary_prepack(const Tensor& b, int64_t K) {
  const char* op = "binary_prepack";
  check_length(op, K, kMaxK, "bits a row");
  check_words(op, "b", b, K);
  NNK_CHECK(b.dim() == 2, op, ": b is ", shape(b), ", expected [N, W(K)]");
  const Tensor rows = side_by_side(b);
  const Tensor packed = empty(op, b, {packed_size(b.size(0), K)}, ScalarType::Byte);
  prepack(rows_of(rows), b.size(0), K, static_cast<uint8_t*>(packed.mutable_data_ptr()),
          torch_threads());
  return packed;
}

// ---- linear ----

Tensor run_linear(const char* op, const Tensor& x, LinearArgs args, const OptionalTensor& scale,
                  const OptionalTensor& bias) {
  const Vector columns(op, "scale", scale, {args.N}, x), added(op, "bias", bias, {args.N}, x);
  const Tensor rows = reshaped(x, {product(leading(x)), args.K});
  args.M = rows.size(0);
  args.x = {rows.const_data_ptr(), *to_type(x.scalar_type()), 0, rows.stride(0), rows.stride(1)};
  const Tensor out = empty(op, x, with_last(leading(x), args.N), x.scalar_type());
  args.epilogue = store_to(out);
  args.epilogue.column_scale = columns.data();
  args.epilogue.bias = added.data();
  linear(args, torch_threads());
  return out;
}

void check_linear_x(const char* op, const Tensor& x, int64_t K) {
  value_type(op, "x", x, false);
  check_length(op, K, kMaxFloatK, "for a float result");
  NNK_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) == K, op, ": x is ", shape(x),
            ", expected [..., K] for K=", K);
}

Tensor binary_linear(const Tensor& x, const Tensor& w_bits, int64_t K, const OptionalTensor& scale,
                     const OptionalTensor& bias) {
  const char* op = "binary_linear";
  check_linear_x(op, x, K);
  check_words(op, "w_bits", w_bits, K);
  check_device(op, "w_bits", w_bits, x);
  NNK_CHECK(w_bits.dim() == 2, op, ": w_bits is ", shape(w_bits), ", expected [N, W(K)]");
  const Tensor w = side_by_side(w_bits);
  LinearArgs args;
  args.N = w.size(0);
  args.K = K;
  args.w = rows_of(w);
  return run_linear(op, x, args, scale, bias);
}

Tensor binary_linear_prepacked(const Tensor& x, const Tensor& w_packed, int64_t N, int64_t K,
                               const OptionalTensor& scale, const OptionalTensor& bias) {
  const char* op = "binary_linear_prepacked";
  check_linear_x(op, x, K);
  LinearArgs args;
  args.N = N;
  args.K = K;
  args.w_packed = packed_weight(op, "w_packed", w_packed, x, N, K);
  return run_linear(op, x, args, scale, bias);
}

// ---- convolution ----

Tensor run_conv2d(const char* op, const Tensor& x, const Tensor& w, const ConvShape& shape,
                  const OptionalTensor& corr, const Epilogue& epilogue, const Tensor& out,
                  bool nchw) {
  const Vector sums(op, "corr", corr, corr_sizes(shape), x, ScalarType::Int);
  const Tensor pixels = dense(x), taps = dense(w);
  Conv2dArgs args;
  args.shape = shape;
  args.x = words_of(pixels);
  args.w = words_of(taps);
  args.corr = sums.data<int32_t>();
  args.epilogue = epilogue;
  args.nchw = nchw;
  conv2d(args, torch_threads());
  return out;
}

Tensor binary_conv2d(const Tensor& x, const Tensor& w, int64_t C, const Ints& stride,
                     const Ints& padding, const Ints& dilation, int64_t groups,
                     const Text& pad_mode, const OptionalTensor& corr, const OptionalTensor& scale,
                     const OptionalTensor& bias, OptionalType out_dtype, bool nchw) {
  const char* op = "binary_conv2d";
  const ConvShape shape =
      conv_shape_of_bits(op, x, w, C, {stride, padding, dilation, groups, pad_mode});
  const ScalarType type = out_type(op, out_dtype, C / groups * shape.KH * shape.KW, scale || bias);
  const Vector columns(op, "scale", scale, {shape.O}, x), added(op, "bias", bias, {shape.O}, x);
  const Tensor out = empty(op, x, conv_out_sizes(shape, nchw), type);
  Epilogue epilogue = store_to(out);
  epilogue.column_scale = columns.data();
  epilogue.bias = added.data();
  return run_conv2d(op, x, w, shape, corr, epilogue, out, nchw);
}

Tensor binary_conv2d_sign(const Tensor& x, const Tensor& w, int64_t C, const Tensor& thresh,
                          const Tensor& dir, const Ints& stride, const Ints& padding,
                          const Ints& dilation, int64_t groups, const Text& pad_mode,
                          const OptionalTensor& corr) {
  const char* op = "binary_conv2d_sign";
  const ConvShape shape =
      conv_shape_of_bits(op, x, w, C, {stride, padding, dilation, groups, pad_mode});
  const Vector limits(op, "thresh", thresh, {shape.O}, x, ScalarType::Int);
  const Vector directions(op, "dir", dir, {shape.O}, x, ScalarType::Char);
  Ints sizes = conv_out_sizes(shape, false);
  sizes.back() = row_words(shape.O);
  const Tensor out = empty(op, x, sizes, ScalarType::Int);
  Epilogue epilogue = store_to(out);
  epilogue.thresh = limits.data<int32_t>();
  epilogue.dir = directions.data<int8_t>();
  return run_conv2d(op, x, w, shape, corr, epilogue, out, false);
}

Tensor binary_conv2d_corr(const Tensor& w, int64_t C, int64_t groups) {
  const char* op = "binary_conv2d_corr";
  check_bits(op, "w", w);
  NNK_CHECK(groups >= 1 && C >= 1 && C % groups == 0, op, ": C=", C,
            " is not divisible by groups=", groups);
  NNK_CHECK(w.dim() == 4 && w.size(1) >= 1 && w.size(2) >= 1 && w.size(3) == row_words(C / groups),
            op, ": w is ", shape(w), ", expected [O, KH, KW, ", row_words(C / groups),
            "] for C=", C, " in ", groups, " groups");
  ConvShape sizes;
  sizes.C = C;
  sizes.O = w.size(0);
  sizes.KH = w.size(1);
  sizes.KW = w.size(2);
  sizes.groups = groups;
  const Tensor taps = dense(w), corr = empty(op, w, corr_sizes(sizes), ScalarType::Int);
  conv_corr(sizes, words_of(taps), new_words(corr));
  return corr;
}

Tensor binary_maxpool2d(const Tensor& bits, const Ints& kernel_size,
                        const std::optional<Ints>& stride, const Ints& padding) {
  const char* op = "binary_maxpool2d";
  check_bits(op, "bits", bits);
  NNK_CHECK(bits.dim() == 4, op, ": bits is ", shape(bits), ", expected [batch, H, W, words]");
  const Ints& steps = stride && !stride->empty() ? *stride : kernel_size;
  check_pair(op, "kernel_size", kernel_size, 1);
  check_pair(op, "stride", steps, 1);
  check_pair(op, "padding", padding, 0);
  MaxPoolArgs args{bits.size(0), bits.size(1), bits.size(2), bits.size(3)};
  for (int d = 0; d < 2; ++d) {
    args.kernel[d] = kernel_size[d];
    args.stride[d] = steps[d];
    args.padding[d] = padding[d];
    const int64_t padded = bits.size(1 + d) + 2 * padding[d];
    NNK_CHECK(2 * padding[d] <= kernel_size[d], op, ": padding ", padding[d],
              " is more than half of kernel_size ", kernel_size[d]);
    NNK_CHECK(kernel_size[d] <= padded, op, ": kernel_size ", kernel_size[d],
              " exceeds the padded input of ", padded, " pixels");
  }
  const Tensor pixels = dense(bits);
  const Tensor out = empty(op, bits, {args.batch, args.out_height(), args.out_width(), args.words},
                           ScalarType::Int);
  args.x = words_of(pixels);
  args.out = new_words(out);
  maxpool2d(args, torch_threads());
  return out;
}

// ---- ternary, int8 and n-bit products ----

Tensor binary_ternary_matmul(const Tensor& a_mask, const Tensor& a_sign, const Tensor& b_mask,
                             const Tensor& b_sign, int64_t K) {
  const char* op = "binary_ternary_matmul";
  check_length(op, K, kMaxK, "for 32-bit sums");
  NNK_CHECK(sizes_of(a_sign) == sizes_of(a_mask) && sizes_of(b_sign) == sizes_of(b_mask), op,
            ": masks are ", shape(a_mask), " and ", shape(b_mask), ", signs are ", shape(a_sign),
            " and ", shape(b_sign), ", expected equal shapes");
  const Pair masks(op, "a_mask", a_mask, "b_mask", b_mask, K);
  const Pair signs(op, "a_sign", a_sign, "b_sign", b_sign, K);
  check_device(op, "a_sign", a_sign, a_mask);
  const Tensor out = empty(op, a_mask, masks.out_sizes(masks.N), ScalarType::Int);
  TernaryArgs args{masks.batch, masks.M, masks.N, K};
  args.a_mask = masks.a();
  args.a_sign = signs.a();
  args.b_mask = masks.b();
  args.b_sign = signs.b();
  args.out = new_words(out);
  ternary_matmul(args, torch_threads());
  return out;
}

Tensor binary_int8_matmul(const Tensor& x, const Tensor& w_bits, int64_t K,
                          const OptionalTensor& w_mask, const OptionalTensor& row_scale,
                          const OptionalTensor& col_scale, OptionalType out_dtype) {
  const char* op = "binary_int8_matmul";
  const ScalarType type = out_type(op, out_dtype, K, row_scale || col_scale, false);
  check_length(op, K, kMaxInt8K, "for int8 sums in 32 bits");
  check_dtype(op, "x", x, ScalarType::Char);
  NNK_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) == K, op, ": x is ", shape(x),
            ", expected [..., K] for K=", K);
  check_words(op, "w_bits", w_bits, K);
  check_device(op, "w_bits", w_bits, x);
  NNK_CHECK(w_bits.dim() == 2, op, ": w_bits is ", shape(w_bits), ", expected [N, W(K)]");
  const int64_t N = w_bits.size(0);
  const Vector rows(op, "row_scale", row_scale, leading(x), x);
  const Vector columns(op, "col_scale", col_scale, {N}, x);
  const Tensor flat = reshaped(x, {product(leading(x)), K}), w = side_by_side(w_bits);
  OptionalTensor mask;
  Int8MatmulArgs args;
  if (w_mask) {
    check_words(op, "w_mask", *w_mask, K);
    check_device(op, "w_mask", *w_mask, x);
    NNK_CHECK(sizes_of(*w_mask) == sizes_of(w_bits), op, ": w_mask is ", shape(*w_mask),
              " and w_bits is ", shape(w_bits), ", expected equal shapes");
    mask = side_by_side(*w_mask);
    args.w_mask = rows_of(*mask);
  }
  const Tensor out = empty(op, x, with_last(leading(x), N), type);
  args.M = flat.size(0);
  args.N = N;
  args.K = K;
  args.x = {flat.const_data_ptr(), Type::int8, 0, flat.stride(0), flat.stride(1)};
  args.w = rows_of(w);
  args.epilogue = store_to(out);
  args.epilogue.row_scale = rows.data();
  args.epilogue.column_scale = columns.data();
  int8_matmul(args, torch_threads());
  return out;
}

Tensor binary_planes_matmul(const Tensor& a_planes, const Tensor& b_planes, int64_t K) {
  const char* op = "binary_planes_matmul";
  check_length(op, K, kMaxK, "for 32-bit sums");
  check_words(op, "a_planes", a_planes, K);
  check_words(op, "b_planes", b_planes, K);
  check_device(op, "b_planes", b_planes, a_planes);
  NNK_CHECK(a_planes.dim() == 3 && b_planes.dim() == 3, op, ": a_planes is ", shape(a_planes),
            " and b_planes is ", shape(b_planes), ", expected [planes, rows, W(K)] each");
  PlanesArgs args;
  args.a_planes = a_planes.size(0);
  args.b_planes = b_planes.size(0);
  const int64_t bits = args.a_planes + args.b_planes;
  NNK_CHECK(args.a_planes >= 1 && args.b_planes >= 1 && bits <= 32 && K <= kMaxK >> (bits - 2), op,
            ": sums of ", args.a_planes, "-bit by ", args.b_planes, "-bit products over K=", K,
            " do not fit 32 bits");
  args.M = a_planes.size(1);
  args.N = b_planes.size(1);
  args.K = K;
  const Tensor a = side_by_side(a_planes), b = side_by_side(b_planes);
  args.a = rows_of(a);
  args.b = rows_of(b);
  const Tensor out = empty(op, a_planes, {args.M, args.N}, ScalarType::Int);
  args.out = new_words(out);
  planes_matmul(args, torch_threads());
  return out;
}

// ---- training: float values in, +-1 inside ----

using Trained = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

// The bits of latent values: their signs, or the square wave where omega is given.
void pack_latent(const char* op, PackArgs args, const OptionalTensor& omega, const Tensor& weight) {
  if (!omega) {
    pack(args, false, torch_threads());
    return;
  }
  check_dtype(op, "omega", *omega, ScalarType::Float);
  check_device(op, "omega", *omega, weight);
  NNK_CHECK(omega->numel() == 1, op, ": omega is ", shape(*omega), ", expected one number");
  const float value = *static_cast<const float*>(omega->const_data_ptr());
  pack_biper(args, checked_omega(op, value), false, torch_threads());
}

bool wants_inside(const char* op, const Text& surrogate) {
  return choose(op, "surrogate", surrogate, kSurrogates) == Surrogate::ste;
}

Epilogue trained_epilogue(const Tensor& out, const Vector& alpha, const Vector& bias) {
  Epilogue epilogue = store_to(out);
  epilogue.column_scale = alpha.data();
  epilogue.bias = bias.data();
  return epilogue;
}

Trained binary_linear_train_fwd(const Tensor& x, const Tensor& w, const OptionalTensor& alpha,
                                const OptionalTensor& bias, const OptionalTensor& omega,
                                const Text& surrogate) {
  const char* op = "binary_linear_train";
  const Values x_values = packed_values(op, "x", x, false),
               w_values = packed_values(op, "w", w, false);
  NNK_CHECK(w.dim() == 2 && x.size(x.dim() - 1) == w.size(1), op, ": x is ", shape(x), " and w is ",
            shape(w), ", expected x [..., K] and w [N, K]");
  check_device(op, "w", w, x);
  const int64_t K = w.size(1), N = w.size(0);
  check_length(op, K, kMaxFloatK, "for a float result");
  const Vector scale(op, "alpha", alpha, {N}, x), added(op, "bias", bias, {N}, x);
  const bool inside = wants_inside(op, surrogate);
  const Tensor w_bits = new_bits(op, w), x_bits = new_bits(op, x);
  const Tensor x_inside = empty(op, x, inside ? sizes_of(x_bits) : Ints{0}, ScalarType::Int);
  PackArgs w_args = w_values.pack_args(), x_args = x_values.pack_args();
  w_args.bits = new_words(w_bits);
  pack_latent(op, w_args, omega, w);
  x_args.bits = new_words(x_bits);
  if (inside) x_args.inside = new_words(x_inside);
  pack(x_args, false, torch_threads());
  const Tensor out = empty(op, x, with_last(leading(x), N), x.scalar_type());
  const int64_t M = product(leading(x)), words = row_words(K);
  MatmulArgs args{1, M, N, K, {words_of(x_bits), 0, words}, {words_of(w_bits), 0, words}};
  args.epilogue = trained_epilogue(out, scale, added);
  matmul(args, torch_threads());
  return {out, x_bits, x_inside, w_bits};
}

Tensor binary_linear_train(const Tensor& x, const Tensor& w, const OptionalTensor& alpha,
                           const OptionalTensor& bias, const OptionalTensor& omega,
                           const Text& surrogate) {
  return std::get<0>(binary_linear_train_fwd(x, w, alpha, bias, omega, surrogate));
}

// Where the backward of a layer leaves what is needed of it; what is not is an empty tensor.
struct NewGradients {
  NewGradients(const char* op, const Tensor& like, const Ints& x, const Ints& w, int64_t outputs,
               bool need_x, bool need_w, bool need_alpha)
      : x(empty(op, like, need_x ? x : Ints{0}, ScalarType::Float)),
        w(empty(op, like, need_w ? w : Ints{0}, ScalarType::Float)),
        alpha(empty(op, like, {need_alpha ? outputs : 0}, ScalarType::Float)),
        need_x(need_x),
        need_w(need_w),
        need_alpha(need_alpha) {}

  static float* data(const Tensor& tensor, bool needed) {
    return needed ? static_cast<float*>(tensor.mutable_data_ptr()) : nullptr;
  }

  template <class Args>
  void hand_to(Args& args) const {
    args.grad_x = data(x, need_x);
    args.grad_w = data(w, need_w);
    args.grad_alpha = data(alpha, need_alpha);
  }

  Tensor x, w, alpha;
  bool need_x, need_w, need_alpha;
};

// The mask of x, shaped as its bits, or nothing where the surrogate needs none.
const int32_t* inside_of(const char* op, const Tensor& x_inside, const Tensor& x_bits) {
  if (x_inside.numel() == 0) return nullptr;
  check_dtype(op, "x_inside", x_inside, ScalarType::Int);
  NNK_CHECK(sizes_of(x_inside) == sizes_of(x_bits) && x_inside.is_contiguous(), op,
            ": x_inside is ", shape(x_inside), ", expected ", shape(x_bits));
  return words_of(x_inside);
}

Gradients binary_linear_train_bwd(const Tensor& g, const Tensor& x_bits, const Tensor& x_inside,
                                  const Tensor& w_bits, const OptionalTensor& alpha, int64_t K,
                                  bool need_x, bool need_w, bool need_alpha) {
  const char* op = "binary_linear_train_bwd";
  check_length(op, K, kMaxFloatK, "for a float result");
  const Type type = value_type(op, "g", g, false);
  check_words(op, "x_bits", x_bits, K);
  check_words(op, "w_bits", w_bits, K);
  NNK_CHECK(w_bits.dim() == 2 && x_bits.is_contiguous() && w_bits.is_contiguous(), op,
            ": x_bits is ", shape(x_bits), " and w_bits is ", shape(w_bits),
            ", expected what binary_linear_train_fwd returned");
  const int64_t N = w_bits.size(0);
  NNK_CHECK(sizes_of(g) == with_last(leading(x_bits), N), op, ": g is ", shape(g),
            ", expected the shape of the result for x_bits ", shape(x_bits), " and N=", N);
  check_device(op, "g", g, x_bits);
  check_device(op, "w_bits", w_bits, x_bits);
  const Vector scale(op, "alpha", alpha, {N}, x_bits);
  const NewGradients gradients(op, g, with_last(leading(x_bits), K), {N, K}, N, need_x, need_w,
                               need_alpha);
  const int64_t M = product(leading(x_bits)), words = row_words(K);
  const Tensor rows = reshaped(g, {M, N});
  LinearGradArgs args{M, N, K};
  args.g = {rows.const_data_ptr(), type, 0, rows.stride(0), rows.stride(1)};
  args.alpha = scale.data();
  args.x = {words_of(x_bits), 0, words};
  args.w = {words_of(w_bits), 0, words};
  args.x_inside = {inside_of(op, x_inside, x_bits), 0, words};
  gradients.hand_to(args);
  linear_grad(args, torch_threads());
  return {gradients.x, gradients.w, gradients.alpha};
}

Trained binary_conv2d_train_fwd(const Tensor& x, const Tensor& w, const OptionalTensor& alpha,
                                const OptionalTensor& bias, const OptionalTensor& omega,
                                const Ints& stride, const Ints& padding, const Ints& dilation,
                                int64_t groups, const Text& pad_mode, const Text& surrogate) {
  const char* op = "binary_conv2d_train";
  const Type x_type = value_type(op, "x", x, false), w_type = value_type(op, "w", w, false);
  NNK_CHECK(x.dim() == 4 && w.dim() == 4, op, ": x is ", shape(x), " and w is ", shape(w),
            ", expected x [batch, C, H, W] and w [O, C / groups, KH, KW]");
  check_device(op, "w", w, x);
  const ConvShape sizes =
      conv_shape(op, {x.size(0), x.size(2), x.size(3)}, x.size(1),
                 {w.size(0), w.size(2), w.size(3)}, {stride, padding, dilation, groups, pad_mode});
  const int64_t channels = sizes.C / groups, words = sizes.group_words();
  NNK_CHECK(w.size(1) == channels, op, ": w is ", shape(w), ", expected ", channels,
            " channels for x ", shape(x), " in ", groups, " groups");
  check_length(op, channels * sizes.KH * sizes.KW, kMaxFloatK, "for a float result");
  const Vector scale(op, "alpha", alpha, {sizes.O}, x), added(op, "bias", bias, {sizes.O}, x);
  const bool inside = wants_inside(op, surrogate);

  const Tensor images = dense(x), kernels = dense(w);
  const int64_t plane = sizes.H * sizes.W, taps = sizes.KH * sizes.KW;
  const Tensor x_bits =
      empty(op, x, {sizes.batch, sizes.H, sizes.W, groups * words}, ScalarType::Int);
  const Tensor x_inside = empty(op, x, inside ? sizes_of(x_bits) : Ints{0}, ScalarType::Int);
  const Tensor w_bits = empty(op, x, {sizes.O, sizes.KH, sizes.KW, words}, ScalarType::Int);
  PackArgs x_args{sizes.batch, plane, channels, groups};
  x_args.x = {images.const_data_ptr(), x_type, sizes.C * plane, 1, plane};
  x_args.bits = new_words(x_bits);
  if (inside) x_args.inside = new_words(x_inside);
  pack(x_args, false, torch_threads());
  PackArgs w_args{sizes.O, taps, channels};
  w_args.x = {kernels.const_data_ptr(), w_type, channels * taps, 1, taps};
  w_args.bits = new_words(w_bits);
  pack_latent(op, w_args, omega, w);

  const Tensor out = empty(op, x, conv_out_sizes(sizes, true), x.scalar_type());
  run_conv2d(op, x_bits, w_bits, sizes, std::nullopt, trained_epilogue(out, scale, added), out,
             true);
  return {out, x_bits, x_inside, w_bits};
}

Tensor binary_conv2d_train(const Tensor& x, const Tensor& w, const OptionalTensor& alpha,
                           const OptionalTensor& bias, const OptionalTensor& omega,
                           const Ints& stride, const Ints& padding, const Ints& dilation,
                           int64_t groups, const Text& pad_mode, const Text& surrogate) {
  return std::get<0>(binary_conv2d_train_fwd(x, w, alpha, bias, omega, stride, padding, dilation,
                                             groups, pad_mode, surrogate));
}

Gradients binary_conv2d_train_bwd(const Tensor& g, const Tensor& x_bits, const Tensor& x_inside,
                                  const Tensor& w_bits, const OptionalTensor& alpha, int64_t C,
                                  const Ints& stride, const Ints& padding, const Ints& dilation,
                                  int64_t groups, const Text& pad_mode, bool need_x, bool need_w,
                                  bool need_alpha) {
  const char* op = "binary_conv2d_train_bwd";
  const Type type = value_type(op, "g", g, false);
  const ConvShape sizes =
      conv_shape_of_bits(op, x_bits, w_bits, C, {stride, padding, dilation, groups, pad_mode});
  NNK_CHECK(x_bits.is_contiguous() && w_bits.is_contiguous(), op,
            ": x_bits and w_bits must be what binary_conv2d_train_fwd returned");
  NNK_CHECK(sizes_of(g) == conv_out_sizes(sizes, true), op, ": g is ", shape(g),
            ", expected the shape of the result for x_bits ", shape(x_bits), " and w_bits ",
            shape(w_bits));
  check_device(op, "g", g, x_bits);
  const Vector scale(op, "alpha", alpha, {sizes.O}, x_bits);
  const NewGradients gradients(op, g, {sizes.batch, C, sizes.H, sizes.W},
                               {sizes.O, C / groups, sizes.KH, sizes.KW}, sizes.O, need_x, need_w,
                               need_alpha);
  // [batch, O, pixels]: a view unless rows and columns step apart.
  const Tensor upstream =
      reshaped(g, {sizes.batch, sizes.O, sizes.out_height() * sizes.out_width()});
  ConvGradArgs args{sizes};
  args.g = {upstream.const_data_ptr(), type, upstream.stride(0), upstream.stride(2),
            upstream.stride(1)};
  args.alpha = scale.data();
  args.x = words_of(x_bits);
  args.w = words_of(w_bits);
  args.x_inside = inside_of(op, x_inside, x_bits);
  gradients.hand_to(args);
  const int64_t plane = sizes.H * sizes.W, strides[3] = {C * plane, 1, plane};
  std::copy(strides, strides + 3, args.grad_x_strides);
  conv2d_grad(args, torch_threads());
  return {gradients.x, gradients.w, gradients.alpha};
}

}  // namespace
}  // namespace nnkernels::binary

#define BINARY_SCALES "Tensor? row_scale=None, Tensor? col_scale=None"
#define BINARY_WINDOW                                                    \
  "int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1, " \
  "str pad_mode='zero'"
#define BINARY_LATENT \
  "Tensor x, Tensor w, Tensor? alpha=None, Tensor? bias=None, Tensor? omega=None, "
#define BINARY_SAVED "Tensor g, Tensor x_bits, Tensor x_inside, Tensor w_bits, Tensor? alpha, *, "
#define BINARY_NEEDS                                              \
  "bool need_x=True, bool need_w=True, bool need_alpha=True) -> " \
  "(Tensor grad_x, Tensor grad_w, Tensor grad_alpha)"
#define BINARY_TRAINED "(Tensor out, Tensor x_bits, Tensor x_inside, Tensor w_bits)"

STABLE_TORCH_LIBRARY_FRAGMENT(nnkernels, m) {
  m.def("binary_pack(Tensor x, *, bool check_nan=False) -> Tensor");
  m.def("binary_pack_rowpop(Tensor x, *, bool check_nan=False) -> (Tensor bits, Tensor rowpop)");
  m.def("binary_unpack(Tensor bits, SymInt K, ScalarType dtype) -> Tensor");
  m.def("binary_pack_biper(Tensor w, float omega, *, bool check=False) -> Tensor");
  m.def("binary_pack_ternary(Tensor t) -> (Tensor mask, Tensor sign)");
  m.def("binary_popcount(Tensor t) -> Tensor");

  m.def("binary_matmul(Tensor a, Tensor b, SymInt K, *, " BINARY_SCALES
        ", Tensor? bias=None, ScalarType? out_dtype=None, Tensor? a_pop=None, "
        "Tensor? b_pop=None, bool check_padding=False) -> Tensor");
  m.def("binary_matmul_prepacked(Tensor a, Tensor b_packed, SymInt N, SymInt K, *, " BINARY_SCALES
        ", Tensor? bias=None, ScalarType? out_dtype=None, Tensor? a_pop=None) -> Tensor");
  m.def("binary_matmul_sign(Tensor a, Tensor b, SymInt K, Tensor thresh, Tensor dir) -> Tensor");
  m.def("binary_hamming(Tensor a, Tensor b, SymInt K) -> Tensor");
  m.def("binary_prepack(Tensor b, SymInt K) -> Tensor");

  m.def(
      "binary_linear(Tensor x, Tensor w_bits, SymInt K, *, Tensor? scale=None, "
      "Tensor? bias=None) -> Tensor");
  m.def(
      "binary_linear_prepacked(Tensor x, Tensor w_packed, SymInt N, SymInt K, *, "
      "Tensor? scale=None, Tensor? bias=None) -> Tensor");

  m.def("binary_conv2d(Tensor x, Tensor w, SymInt C, " BINARY_WINDOW
        ", *, Tensor? corr=None, Tensor? scale=None, Tensor? bias=None, "
        "ScalarType? out_dtype=None, bool nchw=False) -> Tensor");
  m.def("binary_conv2d_sign(Tensor x, Tensor w, SymInt C, Tensor thresh, Tensor dir, " BINARY_WINDOW
        ", *, Tensor? corr=None) -> Tensor");
  m.def("binary_conv2d_corr(Tensor w, SymInt C, int groups=1) -> Tensor");
  m.def(
      "binary_maxpool2d(Tensor bits, int[2] kernel_size, int[2]? stride=None, "
      "int[2] padding=0) -> Tensor");

  m.def(
      "binary_ternary_matmul(Tensor a_mask, Tensor a_sign, Tensor b_mask, Tensor b_sign, "
      "SymInt K) -> Tensor");
  m.def(
      "binary_int8_matmul(Tensor x, Tensor w_bits, SymInt K, *, Tensor? w_mask=None, " BINARY_SCALES
      ", ScalarType? out_dtype=None) -> Tensor");
  m.def("binary_planes_matmul(Tensor a_planes, Tensor b_planes, SymInt K) -> Tensor");

  m.def("binary_linear_train(" BINARY_LATENT "*, str surrogate='ste') -> Tensor");
  m.def("binary_linear_train_fwd(" BINARY_LATENT "*, str surrogate='ste') -> " BINARY_TRAINED);
  m.def("binary_linear_train_bwd(" BINARY_SAVED "SymInt K, " BINARY_NEEDS);
  m.def("binary_conv2d_train(" BINARY_LATENT BINARY_WINDOW ", *, str surrogate='ste') -> Tensor");
  m.def("binary_conv2d_train_fwd(" BINARY_LATENT BINARY_WINDOW
        ", *, str surrogate='ste') -> " BINARY_TRAINED);
  m.def("binary_conv2d_train_bwd(" BINARY_SAVED "SymInt C, " BINARY_WINDOW ", " BINARY_NEEDS);
}

#define BINARY_IMPL(name)                                           \
  {                                                                 \
    static constexpr char text[] = #name;                           \
    m.impl(text, nnkernels::boxed<text, &nnkernels::binary::name>); \
  }

STABLE_TORCH_LIBRARY_IMPL(nnkernels, CPU, m) {
  BINARY_IMPL(binary_pack)
  BINARY_IMPL(binary_pack_rowpop)
  BINARY_IMPL(binary_unpack)
  BINARY_IMPL(binary_pack_biper)
  BINARY_IMPL(binary_pack_ternary)
  BINARY_IMPL(binary_popcount)
  BINARY_IMPL(binary_matmul)
  BINARY_IMPL(binary_matmul_prepacked)
  BINARY_IMPL(binary_matmul_sign)
  BINARY_IMPL(binary_hamming)
  BINARY_IMPL(binary_prepack)
  BINARY_IMPL(binary_linear)
  BINARY_IMPL(binary_linear_prepacked)
  BINARY_IMPL(binary_conv2d)
  BINARY_IMPL(binary_conv2d_sign)
  BINARY_IMPL(binary_conv2d_corr)
  BINARY_IMPL(binary_maxpool2d)
  BINARY_IMPL(binary_ternary_matmul)
  BINARY_IMPL(binary_int8_matmul)
  BINARY_IMPL(binary_planes_matmul)
  BINARY_IMPL(binary_linear_train)
  BINARY_IMPL(binary_linear_train_fwd)
  BINARY_IMPL(binary_linear_train_bwd)
  BINARY_IMPL(binary_conv2d_train)
  BINARY_IMPL(binary_conv2d_train_fwd)
  BINARY_IMPL(binary_conv2d_train_bwd)
}
