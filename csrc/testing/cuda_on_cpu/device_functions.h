// The CUDA device functions that kernels call, in the global namespace where CUDA has them.
// Functions that wait for other threads take the place of the call, for the error messages.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "testing/cuda_on_cpu/block.h"

namespace nnkernels::cuda_on_cpu {

constexpr unsigned full_mask = 0xFFFFFFFFu;

// The value of lane source(lane) of this thread's segment of `width` lanes; a lane whose source
// lies outside the segment keeps its own.
template <typename T, typename Source>
T shuffle(unsigned mask, T value, int width, Site site, const Source& source) {
  return machine.warp_operation<T>(mask, value, site, [&](const T* const* operands, int lane) {
    const int first = lane / width * width;
    const int from = source(lane - first);
    if (from < 0 || from >= width) return *operands[lane];
    if (!operands[first + from]) {
      machine.fail(machine.current(), site, "reads a lane that the shuffle's mask omits");
    }
    return *operands[first + from];
  });
}

template <typename T, typename Update>
T fetch_and_update(T* address, const Update& update) {
  machine.current();
  const T old = *address;
  *address = update(old);
  return old;
}

template <typename To, typename From>
To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

}  // namespace nnkernels::cuda_on_cpu

#define NNK_SITE ::nnkernels::cuda_on_cpu::Site site = ::nnkernels::cuda_on_cpu::Site::current()

inline void __syncthreads(NNK_SITE) { ::nnkernels::cuda_on_cpu::machine.barrier(0, site); }
inline int __syncthreads_count(int predicate, NNK_SITE) {
  return ::nnkernels::cuda_on_cpu::machine.barrier(predicate, site);
}
inline int __syncthreads_or(int predicate, NNK_SITE) {
  return __syncthreads_count(predicate, site) != 0;
}
inline int __syncthreads_and(int predicate, NNK_SITE) {
  return __syncthreads_count(!predicate, site) == 0;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, NNK_SITE) {
  return ::nnkernels::cuda_on_cpu::shuffle(mask, value, width, site,
                                           [=](int) { return source & (width - 1); });
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize, NNK_SITE) {
  return ::nnkernels::cuda_on_cpu::shuffle(mask, value, width, site,
                                           [=](int lane) { return lane ^ bits; });
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, int distance, int width = warpSize, NNK_SITE) {
  return ::nnkernels::cuda_on_cpu::shuffle(mask, value, width, site,
                                           [=](int lane) { return lane - distance; });
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, int distance, int width = warpSize, NNK_SITE) {
  return ::nnkernels::cuda_on_cpu::shuffle(mask, value, width, site,
                                           [=](int lane) { return lane + distance; });
}

inline unsigned __ballot_sync(unsigned mask, int predicate, NNK_SITE) {
  return ::nnkernels::cuda_on_cpu::machine.warp_operation<unsigned>(
      mask, predicate, site, [](const int* const* operands, int) {
        unsigned votes = 0;
        for (int lane = 0; lane < warpSize; ++lane) {
          if (operands[lane] && *operands[lane]) votes |= 1u << lane;
        }
        return votes;
      });
}
inline int __any_sync(unsigned mask, int predicate, NNK_SITE) {
  return __ballot_sync(mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, NNK_SITE) {
  return __ballot_sync(mask, predicate, site) == mask;
}
inline void __syncwarp(unsigned mask = ::nnkernels::cuda_on_cpu::full_mask, NNK_SITE) {
  __ballot_sync(mask, 0, site);
}
// CUDA promises no more than that the caller is active.
inline unsigned __activemask() { return 1u << ::nnkernels::cuda_on_cpu::machine.current().lane(); }
#undef NNK_SITE

#define NNK_ATOMIC(name, expression)                                                  \
  template <typename T>                                                               \
  T name(T* address, std::type_identity_t<T> value) {                                 \
    return ::nnkernels::cuda_on_cpu::fetch_and_update(                                \
        address, [=]([[maybe_unused]] T old) { return static_cast<T>(expression); }); \
  }
NNK_ATOMIC(atomicAdd, old + value)
NNK_ATOMIC(atomicSub, old - value)
NNK_ATOMIC(atomicMin, old < value ? old : value)
NNK_ATOMIC(atomicMax, old > value ? old : value)
NNK_ATOMIC(atomicAnd, old& value)
NNK_ATOMIC(atomicOr, old | value)
NNK_ATOMIC(atomicXor, old ^ value)
NNK_ATOMIC(atomicExch, value)
#undef NNK_ATOMIC
template <typename T>
T atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  return ::nnkernels::cuda_on_cpu::fetch_and_update(
      address, [=](T old) { return old == compare ? value : old; });
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
template <typename T>
void __stcs(T* address, std::type_identity_t<T> value) {
  *address = value;
}

inline int __float_as_int(float value) { return ::nnkernels::cuda_on_cpu::bits_as<int>(value); }
inline unsigned __float_as_uint(float value) {
  return ::nnkernels::cuda_on_cpu::bits_as<unsigned>(value);
}
inline float __int_as_float(int value) { return ::nnkernels::cuda_on_cpu::bits_as<float>(value); }
inline float __uint_as_float(unsigned value) {
  return ::nnkernels::cuda_on_cpu::bits_as<float>(value);
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

inline int __popc(unsigned value) { return std::popcount(value); }
inline int __popcll(unsigned long long value) { return std::popcount(value); }
inline int __clz(int value) { return std::countl_zero(static_cast<unsigned>(value)); }
inline int __clzll(long long value) {
  return std::countl_zero(static_cast<unsigned long long>(value));
}
inline int __ffs(int value) {
  return value ? std::countr_zero(static_cast<unsigned>(value)) + 1 : 0;
}
inline int __ffsll(long long value) {
  return value ? std::countr_zero(static_cast<unsigned long long>(value)) + 1 : 0;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}

template <typename T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
