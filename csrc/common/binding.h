// What the torch bindings of all cores share: checks, dtypes, choices, outputs, torch's threads.
// Everything goes through libtorch's stable ABI, so one binary serves torch 2.11 and later.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <charconv>
#include <exception>
#include <mutex>
#include <new>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/dtype.h"
#include "common/parallel.h"

namespace nnkernels {

// A `str` argument of an operator. torch's conversion to std::string leaks its result, this one
// does not.
struct Text {
  std::string value;
};

}  // namespace nnkernels

HIDDEN_NAMESPACE_BEGIN(torch, stable, detail)
template <>
struct ToImpl<nnkernels::Text> {
  static nnkernels::Text call(StableIValue value, uint64_t /*build_version*/, bool /*internal*/) {
    const auto handle = to<StringHandle>(value);
    size_t length = 0;
    const char* data = nullptr;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    nnkernels::Text text{std::string(data, length)};
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};
HIDDEN_NAMESPACE_END(torch, stable, detail)

// Unlike STD_TORCH_CHECK the text is the message alone, without function, file and line.
#define NNK_CHECK(condition, ...) \
  if (!(condition)) ::nnkernels::fail(__VA_ARGS__)

HIDDEN_NAMESPACE_BEGIN(nnkernels)

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// An error whose text names the operator.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Failure(text.str());
}

// The shortest text that reads back as this number.
inline std::string number(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof text, value).ptr};
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  const Sizes sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

// The tensor [..., columns] as [rows, columns]: a view where its strides allow one, else a copy.
inline Tensor as_rows(const Tensor& tensor) {
  if (tensor.dim() == 2) return tensor;
  const int64_t columns = tensor.size(tensor.dim() - 1);
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < tensor.dim(); ++d) rows *= tensor.size(d);
  const int64_t sizes[] = {rows, columns};
  return torch::stable::reshape(tensor, Sizes(sizes, 2));
}

inline std::string shape(const std::vector<int64_t>& sizes) {
  std::ostringstream text;
  text << "[";
  for (size_t d = 0; d < sizes.size(); ++d) text << (d > 0 ? ", " : "") << sizes[d];
  text << "]";
  return text.str();
}

inline std::string shape(const Tensor& tensor) { return shape(sizes_of(tensor)); }

// ---- dtypes ----

inline std::optional<DType> to_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return DType::float32;
    case ScalarType::BFloat16: return DType::bfloat16;
    case ScalarType::Half: return DType::float16;
    case ScalarType::Float8_e4m3fn: return DType::float8_e4m3fn;
    case ScalarType::Float8_e5m2: return DType::float8_e5m2;
    default: return std::nullopt;
  }
}

inline bool is_float8(ScalarType type) {
  return type == ScalarType::Float8_e4m3fn || type == ScalarType::Float8_e5m2;
}

inline constexpr const char* kDTypes = "float32, bfloat16, float16, float8_e4m3fn or float8_e5m2";

inline void check_device(const char* op, const char* name, const Tensor& tensor,
                         const Tensor& first) {
  NNK_CHECK(tensor.device() == first.device(), op, ": ", name,
            " is on another device than the first tensor; move both to one device");
}

// The dtype of a tensor that a kernel is about to read.
inline DType input_dtype(const char* op, const char* name, const Tensor& tensor) {
  const std::optional<DType> dtype = to_dtype(tensor.scalar_type());
  NNK_CHECK(dtype, op, ": ", name, " has dtype ", torch::headeronly::toString(tensor.scalar_type()),
            ", expected ", kDTypes);
  return *dtype;
}

// ---- choices ----

template <class Enum>
struct Choice {
  const char* name;
  Enum value;
};

template <class Enum, size_t count>
Enum choose(const char* op, const char* argument, const Text& text,
            const Choice<Enum> (&choices)[count]) {
  for (const auto& choice : choices) {
    if (text.value == choice.name) return choice.value;
  }
  std::string names;
  for (const auto& choice : choices)
    names += (names.empty() ? "'" : ", '") + std::string(choice.name) + "'";
  fail(op, ": ", argument, " must be one of ", names, ", got '", text.value, "'");
}

// ---- outputs ----

// Results this large come as fresh pages from the operating system at every call (glibc keeps
// smaller ones). Touching them for the first time, 4 KiB at a time, takes longer than a fast kernel
// does to fill them, so large pages are asked for.
constexpr int64_t kFreshBytes = 32 << 20;

inline void advise_large_pages(const Tensor& tensor) {
#if defined(MADV_HUGEPAGE)
  const int64_t bytes = tensor.numel() * static_cast<int64_t>(tensor.element_size());
  if (bytes < kFreshBytes || tensor.is_cuda()) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto start = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t first = (start + page - 1) / page * page;
  const uintptr_t end = (start + static_cast<uintptr_t>(bytes)) / page * page;
  // Advice: where the system has no large pages, nothing changes.
  (void)madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
  (void)tensor;
#endif
}

inline Tensor empty(const char* op, const Tensor& like, const std::vector<int64_t>& sizes,
                    ScalarType type) {
  auto code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle = nullptr;
  // Not empty_strided: this one honours torch.utils.deterministic.fill_uninitialized_memory.
  const auto error =
      aoti_torch_aten_new_empty(like.get(), sizes.data(), static_cast<int64_t>(sizes.size()), &code,
                                nullptr, nullptr, 0, nullptr, &handle);
  NNK_CHECK(error == TORCH_SUCCESS, op, ": cannot allocate ", shape(sizes), " of ",
            torch::headeronly::toString(type), " for the result");
  Tensor result(handle);
  advise_large_pages(result);
  return result;
}

// A contiguous result. Kernels write float32, bfloat16 and float16; float8 is written as float32
// and converted by the running torch, whose overflow rule depends on its version.
class Result {
 public:
  Result(const char* op, const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type)
      : type_(checked(op, type)),
        tensor_(empty(op, like, sizes, is_float8(type) ? ScalarType::Float : type)) {}

  void* data() const { return tensor_.mutable_data_ptr(); }
  DType dtype() const { return *to_dtype(tensor_.scalar_type()); }
  Tensor finish() const { return is_float8(type_) ? torch::stable::to(tensor_, type_) : tensor_; }

 private:
  static ScalarType checked(const char* op, ScalarType type) {
    NNK_CHECK(to_dtype(type), op, ": out_dtype is ", torch::headeronly::toString(type),
              ", expected ", kDTypes);
    return type;
  }

  ScalarType type_;
  Tensor tensor_;
};

// ---- threads ----

// torch's thread pool. An exception is carried to the caller by hand: torch_parallel_for would
// replace its text.
inline Parallel torch_threads() {
  Parallel parallel;
  parallel.threads = static_cast<int>(torch::stable::get_num_threads());
  parallel.run = [](int64_t begin, int64_t end, int64_t grain, Parallel::Body body, void* context) {
    std::exception_ptr error;
    std::mutex guard;
    torch::stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) {
      try {
        body(context, first, last);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(guard);
        if (!error) error = std::current_exception();
      }
    });
    if (error) std::rethrow_exception(error);
  };
  return parallel;
}

// ---- registration ----

// What a text on lacking memory says of an argument: the shape of a tensor, nothing of the others.
template <class Argument>
void add_shape(std::ostream&, const Argument&) {}
inline void add_shape(std::ostream& text, const Tensor& tensor) { text << " " << shape(tensor); }
inline void add_shape(std::ostream& text, const OptionalTensor& tensor) {
  if (tensor) add_shape(text, *tensor);
}

// `function` of operator `op`, with whatever it throws naming the operator.
template <const char* op, auto function>
struct Named;
template <const char* op, class Output, class... Arguments, Output (*function)(Arguments...)>
struct Named<op, function> {
  static Output call(Arguments... arguments) {
    try {
      return function(arguments...);
    } catch (const Failure&) {
      throw;
    } catch (const std::bad_alloc&) {
      lack_of_memory(arguments...);
    } catch (const std::length_error&) {
      lack_of_memory(arguments...);
    } catch (const std::exception& error) {
      fail(op, ": ", error.what());
    }
  }

 private:
  [[noreturn]] static void lack_of_memory(const std::remove_reference_t<Arguments>&... arguments) {
    std::ostringstream shapes;
    (add_shape(shapes, arguments), ...);
    fail(op, ": not enough memory to work on tensors of shapes", shapes.str());
  }
};

// What torch registers for `function`.
template <const char* op, auto function>
inline constexpr auto boxed = TORCH_BOX((&Named<op, function>::call));

HIDDEN_NAMESPACE_END(nnkernels)
