// Reading the arguments of the binary operators: bits, scales, convolution shapes. For every
// device.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "binary/binary.h"
#include "common/binding.h"

HIDDEN_NAMESPACE_BEGIN(nnkernels, binary)

using OptionalType = std::optional<ScalarType>;
using Ints = std::vector<int64_t>;

inline constexpr Choice<Pad> kPads[] = {
    {"zero", Pad::zero}, {"one", Pad::one}, {"minus_one", Pad::minus_one}};

enum class Surrogate : int { ste, approxsign, identity };
inline constexpr Choice<Surrogate> kSurrogates[] = {{"ste", Surrogate::ste},
                                                    {"approxsign", Surrogate::approxsign},
                                                    {"identity", Surrogate::identity}};

// Sums that float32 and int8 sums in int32 hold exactly.
inline constexpr int64_t kMaxFloatK = int64_t{1} << 24, kMaxInt8K = int64_t{1} << 23,
                         kMaxInt16K = 32767, kMaxK = (int64_t{1} << 31) - 1;

// ---- dtypes ----

inline std::optional<Type> to_type(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return Type::float32;
    case ScalarType::BFloat16: return Type::bfloat16;
    case ScalarType::Half: return Type::float16;
    case ScalarType::Char: return Type::int8;
    case ScalarType::Short: return Type::int16;
    case ScalarType::Int: return Type::int32;
    default: return std::nullopt;
  }
}

inline bool is_float(Type type) {
  return type == Type::float32 || type == Type::bfloat16 || type == Type::float16;
}

inline const char* name_of(ScalarType type) { return torch::headeronly::toString(type); }

// The type of a tensor of values: floating point, or int8 where the operator takes it.
inline Type value_type(const char* op, const char* name, const Tensor& tensor, bool int8) {
  const std::optional<Type> type = to_type(tensor.scalar_type());
  NNK_CHECK(type && (is_float(*type) || (int8 && *type == Type::int8)), op, ": ", name,
            " has dtype ", name_of(tensor.scalar_type()), ", expected float32, bfloat16",
            int8 ? ", float16 or int8" : " or float16");
  return *type;
}

inline void check_dtype(const char* op, const char* name, const Tensor& tensor, ScalarType type) {
  NNK_CHECK(tensor.scalar_type() == type, op, ": ", name, " has dtype ",
            name_of(tensor.scalar_type()), ", expected ", name_of(type));
}

// ---- sizes ----

inline Ints leading(const Tensor& tensor) {
  Ints sizes = sizes_of(tensor);
  sizes.pop_back();
  return sizes;
}

inline int64_t product(const Ints& sizes) {
  int64_t count = 1;
  for (const int64_t size : sizes) count *= size;
  return count;
}

inline Ints with_last(Ints sizes, int64_t last) {
  sizes.push_back(last);
  return sizes;
}

inline Tensor reshaped(const Tensor& tensor, const Ints& sizes) {
  return torch::stable::reshape(tensor, Sizes(sizes.data(), sizes.size()));
}

inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline void check_length(const char* op, int64_t K, int64_t largest, const char* why) {
  NNK_CHECK(K >= 1, op, ": K is ", K, ", expected at least 1");
  NNK_CHECK(K <= largest, op, ": K is ", K, ", expected at most ", largest, " ", why);
}

// ---- bits ----

inline void check_bits(const char* op, const char* name, const Tensor& bits) {
  check_dtype(op, name, bits, ScalarType::Int);
  NNK_CHECK(bits.dim() >= 1, op, ": ", name, " is ", shape(bits), ", expected rows of words");
}

// A tensor of rows of bits [..., row_words(K)].
inline void check_words(const char* op, const char* name, const Tensor& bits, int64_t K) {
  check_bits(op, name, bits);
  const int64_t words = bits.size(bits.dim() - 1);
  NNK_CHECK(words == row_words(K), op, ": ", name, " has ", words,
            " words a row, expected W(K)=", row_words(K), " for K=", K,
            "; pass the K it was packed with");
}

inline const int32_t* words_of(const Tensor& bits) {
  return static_cast<const int32_t*>(bits.const_data_ptr());
}

// [rows, words] or [batch, rows, words] whose words lie side by side.
inline Tensor side_by_side(const Tensor& bits) {
  return bits.stride(bits.dim() - 1) == 1 ? bits : torch::stable::contiguous(bits);
}

inline Bits rows_of(const Tensor& bits) {
  const int64_t d = bits.dim();
  return {words_of(bits), d == 3 ? bits.stride(0) : 0, bits.stride(d - 2)};
}

// Operands a [..., M, words] and b [N, words], or b [..., N, words] with the batch of a.
class Pair {
 public:
  Pair(const char* op, const char* a_name, const Tensor& a, const char* b_name, const Tensor& b,
       int64_t K)
      : a_(a), b_(b) {
    check_words(op, a_name, a, K);
    check_words(op, b_name, b, K);
    check_device(op, b_name, b, a);
    const Ints a_batch = batch_of(a), b_batch = batch_of(b);
    batched_ = b.dim() > 2;
    NNK_CHECK(b.dim() >= 2 && (!batched_ || a_batch == b_batch) && (!batched_ || a.dim() > 2), op,
              ": ", a_name, " is ", shape(a), " and ", b_name, " is ", shape(b), ", expected ",
              b_name, " [N, W(K)], or [batch, N, W(K)] with the batch of ", a_name);
    out_sizes_ = leading(a);
    batch = batched_ ? product(a_batch) : 1;
    M = batched_ ? a.size(a.dim() - 2) : product(out_sizes_);
    N = b.size(b.dim() - 2);
    a_ = flat(a);
    b_ = flat(b);
  }

  Bits a() const { return rows_of(a_); }
  Bits b() const { return rows_of(b_); }
  Ints out_sizes(int64_t last) const { return with_last(out_sizes_, last); }

  int64_t batch = 1, M = 0, N = 0;

 private:
  static Ints batch_of(const Tensor& tensor) {
    Ints sizes = sizes_of(tensor);
    sizes.resize(sizes.size() > 2 ? sizes.size() - 2 : 0);
    return sizes;
  }

  Tensor flat(const Tensor& tensor) const {
    const int64_t d = tensor.dim(), words = tensor.size(d - 1);
    if (!batched_) return side_by_side(d == 2 ? tensor : reshaped(tensor, {rows(tensor), words}));
    if (d == 3) return side_by_side(tensor);
    return side_by_side(reshaped(tensor, {batch, tensor.size(d - 2), words}));
  }

  static int64_t rows(const Tensor& tensor) { return product(leading(tensor)); }

  Tensor a_, b_;
  Ints out_sizes_;
  bool batched_ = false;
};

inline void check_pad_bits(const char* op, const char* name, const Bits& bits, int64_t batch,
                           int64_t rows, int64_t K) {
  const int64_t row = first_bad_padding(bits, batch, rows, K);
  NNK_CHECK(row < 0, op, ": ", name, " has a set pad bit in row ", row, ", expected 0 beyond K=", K,
            "; pass the K it was packed with");
}

// ---- values ----

// x [..., K] as [batch, rows, groups, K] without a copy where its strides allow it.
class Values {
 public:
  Values(const Tensor& x, Type type) : x_(x) {
    if (!collapse()) {
      x_ = torch::stable::contiguous(x_);
      collapse();
    }
    layout_.type = type;
    layout_.data = x_.const_data_ptr();
  }

  PackArgs pack_args() const {
    PackArgs args;
    args.batch = batch_;
    args.rows = rows_;
    args.groups = groups_;
    args.K = x_.size(x_.dim() - 1);
    args.x = layout_;
    return args;
  }

 private:
  // Neighbouring leading dimensions become one where they step evenly; two may remain, and a third
  // that steps by K columns: the groups of channels of an image.
  bool collapse() {
    const int64_t d = x_.dim();
    std::vector<std::pair<int64_t, int64_t>> steps;  // size, stride
    for (int64_t i = 0; i + 1 < d; ++i) {
      const int64_t size = x_.size(i), stride = x_.stride(i);
      if (size == 1) continue;
      if (!steps.empty() && steps.back().second == size * stride) {
        steps.back() = {steps.back().first * size, stride};
      } else {
        steps.emplace_back(size, stride);
      }
    }
    layout_.column_stride = x_.stride(d - 1);
    groups_ = 1;
    if (steps.size() == 3 && steps.back().second == x_.size(d - 1) * layout_.column_stride) {
      groups_ = steps.back().first;
      steps.pop_back();
    }
    rows_ = steps.empty() ? 1 : steps.back().first;
    layout_.row_stride = steps.empty() ? 0 : steps.back().second;
    batch_ = steps.size() == 2 ? steps.front().first : 1;
    layout_.batch_stride = steps.size() == 2 ? steps.front().second : 0;
    return steps.size() <= 2;
  }

  Tensor x_;
  Strided layout_;
  int64_t batch_ = 1, rows_ = 1, groups_ = 1;
};

inline std::string index_text(int64_t flat, const Ints& sizes) {
  std::string text;
  for (size_t d = sizes.size(); d-- > 0;) {
    text = std::to_string(flat % sizes[d]) + (text.empty() ? "" : ", ") + text;
    flat /= sizes[d];
  }
  return "[" + text + "]";
}

// ---- scales, results ----

// A vector of `count` values, or an absent one.
class Vector {
 public:
  Vector(const char* op, const char* name, const OptionalTensor& tensor, const Ints& sizes,
         const Tensor& first, ScalarType type = ScalarType::Float) {
    if (!tensor) return;
    check_dtype(op, name, *tensor, type);
    check_device(op, name, *tensor, first);
    NNK_CHECK(sizes_of(*tensor) == sizes, op, ": ", name, " is ", shape(*tensor), ", expected ",
              shape(sizes));
    tensor_ = dense(*tensor);
  }

  template <class T = float>
  const T* data() const {
    return tensor_ ? static_cast<const T*>(tensor_->const_data_ptr()) : nullptr;
  }

 private:
  OptionalTensor tensor_;
};

// The result type of a product of length K; int32 where none is asked for.
inline ScalarType out_type(const char* op, OptionalType out_dtype, int64_t K, bool scaled,
                           bool int16 = true) {
  const ScalarType type = out_dtype.value_or(ScalarType::Int);
  const std::optional<Type> kernel = to_type(type);
  NNK_CHECK(kernel && *kernel != Type::int8 && (int16 || *kernel != Type::int16), op,
            ": out_dtype is ", name_of(type), ", expected int32, ", int16 ? "int16, " : "",
            "float32, float16 or bfloat16");
  NNK_CHECK(!scaled || is_float(*kernel), op, ": a scale or bias needs a float out_dtype, got ",
            name_of(type));
  check_length(op, K, kMaxK, "for 32-bit sums");
  if (*kernel == Type::int16) check_length(op, K, kMaxInt16K, "for out_dtype int16");
  if (is_float(*kernel)) check_length(op, K, kMaxFloatK, "for a float out_dtype");
  return type;
}

inline Epilogue store_to(const Tensor& out) {
  Epilogue epilogue;
  epilogue.out = out.mutable_data_ptr();
  epilogue.type = *to_type(out.scalar_type());
  return epilogue;
}

inline int32_t* new_words(const Tensor& bits) {
  return static_cast<int32_t*>(bits.mutable_data_ptr());
}

// ---- prepacked weights ----

inline const uint8_t* packed_weight(const char* op, const char* name, const Tensor& packed,
                                    const Tensor& first, int64_t N, int64_t K) {
  check_device(op, name, packed, first);
  NNK_CHECK(packed.scalar_type() == ScalarType::Byte && packed.dim() == 1 && packed.is_contiguous(),
            op, ": ", name, " must be the uint8 tensor that binary_prepack returned");
  const auto* data = static_cast<const uint8_t*>(packed.const_data_ptr());
  const PackedInfo info = packed_info(data, packed.numel());
  NNK_CHECK(info.valid, op, ": ", name,
            " was not made by binary_prepack of this version for this backend; prepack the weight "
            "again");
  NNK_CHECK(info.N == N && info.K == K, op, ": ", name, " holds N=", info.N, ", K=", info.K,
            ", but the call has N=", N, ", K=", K, "; pass those it was made with");
  return data;
}

// ---- convolution ----

struct ConvOptions {
  const Ints& stride;
  const Ints& padding;
  const Ints& dilation;
  int64_t groups;
  const Text& pad_mode;
};

inline void check_pair(const char* op, const char* name, const Ints& values, int64_t least) {
  NNK_CHECK(values.size() == 2 && values[0] >= least && values[1] >= least, op, ": ", name,
            " must be two integers of at least ", least);
}

// `image` [batch, H, W] and `kernel` [O, KH, KW]: sizes that the caller reads off its tensors.
inline ConvShape conv_shape(const char* op, const std::array<int64_t, 3>& image, int64_t C,
                            const std::array<int64_t, 3>& kernel, const ConvOptions& options) {
  check_pair(op, "stride", options.stride, 1);
  check_pair(op, "padding", options.padding, 0);
  check_pair(op, "dilation", options.dilation, 1);
  const int64_t groups = options.groups;
  NNK_CHECK(groups >= 1 && C >= 1 && C % groups == 0 && kernel[0] % groups == 0, op, ": C=", C,
            " and O=", kernel[0], " are not divisible by groups=", groups);
  ConvShape shape;
  shape.batch = image[0];
  shape.C = C;
  shape.H = image[1];
  shape.W = image[2];
  shape.O = kernel[0];
  shape.KH = kernel[1];
  shape.KW = kernel[2];
  shape.groups = groups;
  for (int d = 0; d < 2; ++d) {
    shape.stride[d] = options.stride[d];
    shape.padding[d] = options.padding[d];
    shape.dilation[d] = options.dilation[d];
    const int64_t reach = options.dilation[d] * (kernel[1 + d] - 1) + 1;
    const int64_t padded = image[1 + d] + 2 * options.padding[d];
    NNK_CHECK(kernel[1 + d] >= 1 && reach <= padded, op, ": the kernel reaches over ", reach,
              " pixels, the padded input has ", padded);
  }
  shape.pad = choose(op, "pad_mode", options.pad_mode, kPads);
  return shape;
}

// Bits x [batch, H, W, groups * words] and w [O, KH, KW, words], words = W(C / groups).
inline ConvShape conv_shape_of_bits(const char* op, const Tensor& x, const Tensor& w, int64_t C,
                                    const ConvOptions& options) {
  check_bits(op, "x", x);
  check_bits(op, "w", w);
  check_device(op, "w", w, x);
  NNK_CHECK(x.dim() == 4 && w.dim() == 4, op, ": x is ", shape(x), " and w is ", shape(w),
            ", expected x [batch, H, W, groups * W(C / groups)] and w [O, KH, KW, W(C / groups)]");
  const ConvShape sizes = conv_shape(op, {x.size(0), x.size(1), x.size(2)}, C,
                                     {w.size(0), w.size(1), w.size(2)}, options);
  const int64_t words = sizes.group_words();
  NNK_CHECK(x.size(3) == sizes.groups * words && w.size(3) == words, op, ": x has ", x.size(3),
            " words a pixel and w has ", w.size(3), ", expected ", sizes.groups * words, " and ",
            words, " for C=", C, " in ", sizes.groups, " groups");
  return sizes;
}

inline Ints corr_sizes(const ConvShape& shape) { return {shape.KH + 1, shape.KW + 1, shape.O}; }

inline Ints conv_out_sizes(const ConvShape& shape, bool nchw) {
  const int64_t height = shape.out_height(), width = shape.out_width();
  if (nchw) return {shape.batch, shape.O, height, width};
  return {shape.batch, height, width, shape.O};
}

HIDDEN_NAMESPACE_END(nnkernels, binary)
