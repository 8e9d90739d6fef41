// The torch operators nnkernels::lmul_* on CUDA tensors, in a library of their own (_C_cuda) that
// is loaded only by a torch with CUDA. The schemas are those of binding.cpp.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "lmul/binding.h"
#include "lmul/cuda/lmul_cuda.h"

namespace nnkernels::lmul {
namespace {

constexpr char kMul[] = "lmul_mul";

// Makes the tensor's device current for its lifetime.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor) : device_(tensor.get_device_index()), guard_(device_) {}

  cudaStream_t stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    return static_cast<cudaStream_t>(stream);
  }

 private:
  torch::stable::accelerator::DeviceIndex device_;
  torch::stable::accelerator::DeviceGuard guard_;
};

Tensor lmul_mul(const Tensor& x, const Tensor& y, OptionalInt mantissa_bits, const Text& mode,
                const Text& round, OptionalFloat offset, OptionalType out_dtype) {
  MulArgs args = mul_args(kMul, x, y, {mantissa_bits, mode, round, offset});
  const OnDeviceOf device(x);
  const Result out(kMul, x, {args.sizes, args.sizes + args.ndim}, mul_type(out_dtype, x, y));
  args.out = output(out);
  mul_cuda(args, device.stream());
  return out.finish();
}

}  // namespace
}  // namespace nnkernels::lmul

STABLE_TORCH_LIBRARY_IMPL(nnkernels, CUDA, m) {
  namespace ops = nnkernels::lmul;
  using nnkernels::boxed;
  m.impl("lmul_mul_fwd", boxed<ops::kMul, &ops::lmul_mul>);
  m.impl("lmul_mul", ops::with_grad<ops::kMul, 6, boxed<ops::kMul, &ops::lmul_mul>>);
}
