// Elementwise L-Mul. Contiguous operands of one dtype take a kernel that moves 16 bytes at a time
// and is bound by memory; any other strides and dtypes take one that computes an index per element.
#include <algorithm>
#include <cstdint>

#include "common/convert.cuh"
#include "common/launch.cuh"
#include "lmul/collapse.h"
#include "lmul/cuda/lmul_cuda.h"
#include "lmul/lmul_math.h"

namespace nnkernels::lmul {
namespace {

using cuda::CodeOf;

constexpr int kThreads = 256;

template <typename T, int count>
struct alignas(sizeof(T) * count) Vector {
  T values[count];
};

constexpr DType default_output(DType input) {
  return element_size(input) == 1 ? DType::float32 : input;
}

// How the contiguous kernel cuts operands of one dtype, float8 giving float32: a vector of the
// result has 16 bytes, and a thread reads 16 bytes of each operand.
template <DType dtype>
struct Contiguous {
  static constexpr DType out_dtype = default_output(dtype);
  using In = CodeOf<dtype>;
  using Out = CodeOf<out_dtype>;
  static constexpr int vector = 16 / sizeof(Out);
  static constexpr int vectors_per_thread = 16 / (vector * sizeof(In));
  static constexpr int per_block = kThreads * vectors_per_thread * vector;
};

// The magnitude of x reduced to m bits, at least kInfinity for NaN and infinity.
template <Round round>
__device__ __forceinline__ uint32_t reduced_magnitude(uint32_t x, int mantissa_bits) {
  uint32_t magnitude = x & kMagnitudeMask;
  const int dropped = 23 - mantissa_bits;
  if (round == Round::rne) {
    // NaN as infinity, which rounding leaves alone.
    magnitude = min(magnitude, kInfinity);
    magnitude += ((1u << dropped) - 1u + ((magnitude >> dropped) & 1u)) >> 1;
  }
  return magnitude & ~((1u << dropped) - 1u);
}

// mul(reduce(x), reduce(y)) without a branch, where operands and product are finite. `largest` is
// raised to their magnitudes: a value of kInfinity or more says that some product is invalid.
template <Mode mode, Round round>
__device__ __forceinline__ uint32_t finite_product(uint32_t x, uint32_t y, int mantissa_bits,
                                                   uint32_t offset, uint32_t& largest) {
  x = (x & kSignBit) | reduced_magnitude<round>(x, mantissa_bits);
  y = (y & kSignBit) | reduced_magnitude<round>(y, mantissa_bits);
  const uint32_t a = x & kMagnitudeMask;
  const uint32_t b = y & kMagnitudeMask;
  bool zero = a < kSmallest || b < kSmallest;
  uint32_t product;
  if (mode == Mode::bits) {
    const uint32_t off = word_offset(offset);
    zero |= a + b < off + kSmallest;
    product = a + b - off;
  } else {
    // As in mul_formula, with the exponent field left in its place.
    const uint32_t sum = (1u << 23) + (a & kMantissaMask) + (b & kMantissaMask) + offset;
    const uint32_t carry = sum >> 24;
    const uint32_t exponent = (a & kInfinity) + (b & kInfinity) + (carry << 23);
    zero |= exponent < kOne + kSmallest;
    product = exponent - (kOne + kSmallest) + ((sum + (carry & (sum >> 1))) >> carry);
  }
  product = zero ? 0u : product;
  largest = max(max(largest, product), max(a, b));
  return ((x ^ y) & kSignBit) | product;
}

template <DType dtype, Mode mode, Round round>
__global__ void __launch_bounds__(kThreads)
    mul_contiguous_kernel(const CodeOf<dtype>* __restrict__ x, const CodeOf<dtype>* __restrict__ y,
                          typename Contiguous<dtype>::Out* __restrict__ out, int64_t size,
                          int mantissa_bits, uint32_t offset) {
  using Tile = Contiguous<dtype>;
  using Input = Vector<typename Tile::In, Tile::vector>;
  using Result = Vector<typename Tile::Out, Tile::vector>;
  const int64_t first = int64_t{blockIdx.x} * Tile::per_block + threadIdx.x * Tile::vector;
#pragma unroll
  for (int v = 0; v < Tile::vectors_per_thread; ++v) {
    const int64_t start = first + v * kThreads * Tile::vector;
    uint32_t largest = kInfinity;
    if (start + Tile::vector <= size) {
      largest = 0;
      const Input a = *reinterpret_cast<const Input*>(x + start);
      const Input b = *reinterpret_cast<const Input*>(y + start);
      Result result;
#pragma unroll
      for (int i = 0; i < Tile::vector; ++i) {
        result.values[i] = cuda::narrow_finite<Tile::out_dtype>(finite_product<mode, round>(
            cuda::widen_code<dtype>(a.values[i]), cuda::widen_code<dtype>(b.values[i]),
            mantissa_bits, offset, largest));
      }
      if (largest < kInfinity) *reinterpret_cast<Result*>(out + start) = result;
    }
    if (largest < kInfinity) continue;
    // The end of the tensors, or a vector with an infinity or NaN.
    const int64_t end = start + Tile::vector < size ? start + Tile::vector : size;
#pragma unroll 1
    for (int64_t i = start; i < end; ++i) {
      store_word(Tile::out_dtype, out, i,
                 mul(mode, reduce(load_word(dtype, x, i), mantissa_bits, round),
                     reduce(load_word(dtype, y, i), mantissa_bits, round), offset));
    }
  }
}

// Index is uint32_t where it can count the elements, since 64-bit division is slow.
template <typename Index>
__global__ void __launch_bounds__(kThreads) mul_strided_kernel(const MulArgs args, int64_t size) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= size) return;
  Index rest = static_cast<Index>(i);
  int64_t x_index = 0, y_index = 0;
  for (int d = args.ndim - 1; d >= 0; --d) {
    const Index extent = static_cast<Index>(args.sizes[d]);
    const Index coordinate = rest % extent;
    rest /= extent;
    x_index += static_cast<int64_t>(coordinate) * args.x_strides[d];
    y_index += static_cast<int64_t>(coordinate) * args.y_strides[d];
  }
  const Options& options = args.options;
  const uint32_t x =
      reduce(load_word(args.x_dtype, args.x, x_index), options.mantissa_bits, options.round);
  const uint32_t y =
      reduce(load_word(args.y_dtype, args.y, y_index), options.mantissa_bits, options.round);
  store_word(args.out.dtype, args.out.data, i, mul(options.mode, x, y, options.offset));
}

unsigned blocks_for(int64_t size, int64_t per_block) {
  return static_cast<unsigned>((size + per_block - 1) / per_block);
}

template <DType dtype, Mode mode, Round round>
void launch_contiguous(const MulArgs& args, int64_t size, cudaStream_t stream) {
  using Tile = Contiguous<dtype>;
  NNK_LAUNCH((mul_contiguous_kernel<dtype, mode, round>), blocks_for(size, Tile::per_block),
             kThreads, 0, stream, static_cast<const typename Tile::In*>(args.x),
             static_cast<const typename Tile::In*>(args.y),
             static_cast<typename Tile::Out*>(args.out.data), size, args.options.mantissa_bits,
             args.options.offset);
}

template <DType dtype>
void launch_contiguous(const MulArgs& args, int64_t size, cudaStream_t stream) {
  const bool bits = args.options.mode == Mode::bits;
  if (args.options.round == Round::trunc) {
    return bits ? launch_contiguous<dtype, Mode::bits, Round::trunc>(args, size, stream)
                : launch_contiguous<dtype, Mode::formula, Round::trunc>(args, size, stream);
  }
  return bits ? launch_contiguous<dtype, Mode::bits, Round::rne>(args, size, stream)
              : launch_contiguous<dtype, Mode::formula, Round::rne>(args, size, stream);
}

bool is_contiguous(const MulArgs& args) {
  const auto aligned = [](const void* pointer) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  };
  const bool even_steps =
      args.ndim == 0 || (args.ndim == 1 && args.x_strides[0] == 1 && args.y_strides[0] == 1);
  return even_steps && args.x_dtype == args.y_dtype &&
         args.out.dtype == default_output(args.x_dtype) && aligned(args.x) && aligned(args.y) &&
         aligned(args.out.data);
}

}  // namespace

void mul_cuda(const MulArgs& uncollapsed, cudaStream_t stream) {
  const MulArgs args = collapsed(uncollapsed);
  int64_t size = 1;
  for (int d = 0; d < args.ndim; ++d) size *= args.sizes[d];
  if (size == 0) return;
  if (is_contiguous(args)) {
    switch (args.x_dtype) {
      case DType::float32: return launch_contiguous<DType::float32>(args, size, stream);
      case DType::bfloat16: return launch_contiguous<DType::bfloat16>(args, size, stream);
      case DType::float16: return launch_contiguous<DType::float16>(args, size, stream);
      case DType::float8_e4m3fn: return launch_contiguous<DType::float8_e4m3fn>(args, size, stream);
      case DType::float8_e5m2: return launch_contiguous<DType::float8_e5m2>(args, size, stream);
    }
  }
  const auto strided_kernel =
      size <= UINT32_MAX ? mul_strided_kernel<uint32_t> : mul_strided_kernel<int64_t>;
  NNK_LAUNCH(strided_kernel, blocks_for(size, kThreads), kThreads, 0, stream, args, size);
}

}  // namespace nnkernels::lmul
