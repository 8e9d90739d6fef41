// The host side of common/mma.cuh: the same fragments, multiplied with plain loops.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "common/convert.h"
#include "testing/cuda_on_cpu/block.h"
#include "testing/cuda_on_cpu/device_functions.h"

namespace nnkernels::cuda_on_cpu {

template <typename Accumulator>
struct MmaOperand {
  uint32_t a[4];
  uint32_t b[2];
  Accumulator d[4];
};

template <typename Accumulator>
struct MmaResult {
  Accumulator d[4];
};

// Multiplies along the fragment layouts, which differ only in what a register holds: it covers
// `packed` neighbouring values of k, and registers a[0], a[1], b[0] come before a[2], a[3], b[1].
// dot(x, y, sum) adds the product of two registers to a Sum.
template <typename Sum, typename Accumulator, typename Dot>
void mma(Accumulator (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site,
         const Dot& dot) {
  MmaOperand<Accumulator> own;
  std::memcpy(own.a, a, sizeof a);
  std::memcpy(own.b, b, sizeof b);
  std::memcpy(own.d, d, sizeof d);
  const auto result = machine.warp_operation<MmaResult<Accumulator>>(
      full_mask, own, site, [&](const MmaOperand<Accumulator>* const* lanes, int lane) {
        MmaResult<Accumulator> out;
        for (int i = 0; i < 4; ++i) {
          const int row = lane / 4;
          const int column = 2 * (lane % 4) + i % 2;
          const int row_half = i / 2;
          Sum sum = lanes[lane]->d[i];
          for (int k_half = 0; k_half < 2; ++k_half) {
            for (int t = 0; t < 4; ++t) {
              dot(lanes[4 * row + t]->a[2 * k_half + row_half], lanes[4 * column + t]->b[k_half],
                  sum);
            }
          }
          out.d[i] = static_cast<Accumulator>(sum);
        }
        return out;
      });
  std::memcpy(d, result.d, sizeof d);
}

// Adds the two products of a register pair of 16-bit floats.
template <uint32_t (*widen)(uint16_t)>
void dot_pair(uint32_t x, uint32_t y, double& sum) {
  for (int shift = 0; shift < 32; shift += 16) {
    sum += double{float_of(widen(static_cast<uint16_t>(x >> shift)))} *
           float_of(widen(static_cast<uint16_t>(y >> shift)));
  }
}

inline void ldmatrix(uint32_t (&r)[4], const void* row, bool transposed, Site site) {
  struct Registers {
    uint32_t r[4];
  };
  const auto result = machine.warp_operation<Registers>(
      full_mask, row, site, [&](const void* const* const* rows, int lane) {
        Registers out;
        for (int j = 0; j < 4; ++j) {
          uint16_t pair[2];
          for (int i = 0; i < 2; ++i) {
            const int from_row = transposed ? 2 * (lane % 4) + i : lane / 4;
            const int column = transposed ? lane / 4 : 2 * (lane % 4) + i;
            const auto* row_bytes = static_cast<const unsigned char*>(*rows[8 * j + from_row]);
            if (reinterpret_cast<uintptr_t>(row_bytes) % 16 != 0) {
              machine.fail(machine.current(), site, "ldmatrix row is not 16-byte aligned");
            }
            std::memcpy(&pair[i], row_bytes + 2 * column, 2);
          }
          out.r[j] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
        }
        return out;
      });
  std::memcpy(r, result.r, sizeof r);
}

}  // namespace nnkernels::cuda_on_cpu

namespace nnkernels::cuda {

#define NNK_SITE cuda_on_cpu::Site site = cuda_on_cpu::Site::current()

inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              NNK_SITE) {
  cuda_on_cpu::mma<double>(d, a, b, site, cuda_on_cpu::dot_pair<bfloat16_to_word>);
}

inline void mma_m16n8k16_fp16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              NNK_SITE) {
  cuda_on_cpu::mma<double>(d, a, b, site, cuda_on_cpu::dot_pair<float16_to_word>);
}

// The hardware reads the upper 19 bits of a tf32 operand.
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             NNK_SITE) {
  constexpr uint32_t tf32_bits = 0xFFFFE000u;
  cuda_on_cpu::mma<double>(d, a, b, site, [](uint32_t x, uint32_t y, double& sum) {
    sum += double{float_of(x & tf32_bits)} * float_of(y & tf32_bits);
  });
}

inline void mma_m16n8k256_b1_and(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                 NNK_SITE) {
  cuda_on_cpu::mma<int32_t>(
      d, a, b, site, [](uint32_t x, uint32_t y, int32_t& sum) { sum += std::popcount(x & y); });
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, NNK_SITE) {
  cuda_on_cpu::ldmatrix(r, row, false, site);
}

inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, NNK_SITE) {
  cuda_on_cpu::ldmatrix(r, row, true, site);
}
#undef NNK_SITE

}  // namespace nnkernels::cuda
