// Tensor-core products of one warp, D = A B + D, one function per mma.sync shape in use.
//
// With nvcc these are the PTX instructions; on the CPU the same fragments are gathered from the 32
// lanes and multiplied with plain loops (summed in double there and rounded once; tensor cores
// round inside the sum). All 32 lanes call together.
//
// Fragment layouts (PTX ISA, "Matrix fragments for mma"), with g = lane / 4 and t = lane % 4:
//   C, D [16, 8]    d[0], d[1]: row g,     columns 2t, 2t + 1      d[2], d[3]: row g + 8, same
//   16-bit A [16, 16]  a[0]: row g,     columns 2t, 2t + 1         a[1]: row g + 8, same columns
//                      a[2]: row g,     columns 2t + 8, 2t + 9     a[3]: row g + 8, same columns
//   16-bit B [16, 8]   b[0]: rows 2t, 2t + 1, column g             b[1]: rows 2t + 8, 2t + 9
//   tf32 A [16, 8]     a[0]: (g, t)  a[1]: (g + 8, t)  a[2]: (g, t + 4)  a[3]: (g + 8, t + 4)
//   tf32 B [8, 8]      b[0]: (t, g)  b[1]: (t + 4, g)
//   b1 A [16, 256]     a[0]: row g, bits 32t..32t + 31   a[1]: row g + 8   a[2], a[3]: bits + 128
//   b1 B [256, 8]      b[0]: bits 32t..32t + 31, column g   b[1]: bits + 128
// The lower half of a register holds the lower column (A) or row (B).
#pragma once

#include <cstdint>

#include "common/launch.cuh"

namespace nnkernels::cuda {

#if defined(__CUDACC__)

#define NNK_MMA(name, instruction, Accumulator, constraint)                           \
  __device__ __forceinline__ void name(Accumulator(&d)[4], const uint32_t (&a)[4],    \
                                       const uint32_t (&b)[2]) {                      \
    asm volatile("mma.sync.aligned." instruction                                      \
                 " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "                           \
                 "{%0,%1,%2,%3};"                                                     \
                 : "+" constraint(d[0]), "+" constraint(d[1]), "+" constraint(d[2]),  \
                   "+" constraint(d[3])                                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); \
  }
NNK_MMA(mma_m16n8k16_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32", float, "f")
NNK_MMA(mma_m16n8k16_fp16, "m16n8k16.row.col.f32.f16.f16.f32", float, "f")
NNK_MMA(mma_m16n8k8_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32", float, "f")
NNK_MMA(mma_m16n8k256_b1_and, "m16n8k256.row.col.s32.b1.b1.s32.and.popc", int32_t, "r")
#undef NNK_MMA

// Loads four 8x8 matrices of 16-bit elements from shared memory. Lane i passes the 16-byte row
// i % 8 of matrix i / 8; it receives in r[j] the elements (g, 2t), (g, 2t + 1) of matrix j.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// The same with each matrix transposed: r[j] receives the elements (2t, g), (2t + 1, g).
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

}  // namespace nnkernels::cuda

#else

}  // namespace nnkernels::cuda

#include "testing/cuda_on_cpu/mma.h"

#endif
