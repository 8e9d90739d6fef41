// Kernels that use every feature of the CUDA-on-CPU header and of mma.cuh once. The tests run them
// on the CPU; nvcc compiles them like the product's own.
#include <cstdint>

#include "common/launch.cuh"
#include "common/mma.cuh"

namespace nnkernels::testing {

// Writes each thread's global rank to its place, from the last thread to the first.
__global__ void indices_kernel(int64_t* out) {
  const int64_t block = blockIdx.x + gridDim.x * (blockIdx.y + int64_t{gridDim.y} * blockIdx.z);
  const int64_t thread =
      threadIdx.x + blockDim.x * (threadIdx.y + int64_t{blockDim.y} * threadIdx.z);
  const int64_t threads = int64_t{blockDim.x} * blockDim.y * blockDim.z;
  out[block * threads + thread] = block * threads + thread;
}

// Reverses each block's part of x through dynamic shared memory.
__global__ void reverse_kernel(const int* x, int* out) {
  NNK_DYNAMIC_SHARED(int, tile);
  const unsigned first = blockIdx.x * blockDim.x;
  tile[threadIdx.x] = x[first + threadIdx.x];
  __syncthreads();
  out[first + threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

// out[0] += the sum of x, by shuffles inside a warp and static shared memory across warps.
__global__ void __launch_bounds__(1024) sum_kernel(const float* x, int64_t n, float* out) {
  __shared__ float warp_sums[32];
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  float sum = i < n ? __ldg(x + i) : 0.0f;
  for (int distance = warpSize / 2; distance > 0; distance /= 2) {
    sum += __shfl_down_sync(0xFFFFFFFFu, sum, distance);
  }
  if (threadIdx.x % warpSize == 0) warp_sums[threadIdx.x / warpSize] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned warp = 1; warp < blockDim.x / warpSize; ++warp) sum += warp_sums[warp];
    atomicAdd(out, sum);
  }
}

struct WarpResults {
  int broadcast, up, down, exchanged, segment;
  unsigned odd, any, all, lower_half;
  int block_count, block_and, block_or;
};

__global__ void warp_functions_kernel(WarpResults* out) {
  constexpr unsigned everyone = 0xFFFFFFFFu;
  const int lane = static_cast<int>(threadIdx.x) % warpSize;
  WarpResults result = {};
  result.broadcast = __shfl_sync(everyone, 10 * lane, 5);
  result.up = __shfl_up_sync(everyone, lane, 3);
  result.down = __shfl_down_sync(everyone, lane, 3);
  result.exchanged = __shfl_xor_sync(everyone, lane, 7);
  result.segment = __shfl_sync(everyone, lane, 2, 8);
  result.odd = __ballot_sync(everyone, lane % 2);
  result.any = __any_sync(everyone, lane == 31);
  result.all = __all_sync(everyone, lane == 31);
  if (lane < 16) result.lower_half = __ballot_sync(0xFFFFu, lane >= 8);
  __syncwarp();
  result.block_count = __syncthreads_count(lane < 3);
  result.block_and = __syncthreads_and(lane < 3);
  result.block_or = __syncthreads_or(lane < 3);
  out[threadIdx.x] = result;
}

struct Atomics {
  int added, smallest, largest, counter;
  unsigned ored;
  unsigned long long wide;
  float sum;
};

__global__ void atomics_kernel(Atomics* out) {
  const int rank = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&out->added, rank);
  atomicMin(&out->smallest, 7 - rank);
  atomicMax(&out->largest, rank - 7);
  atomicOr(&out->ored, 1u << rank % 32);
  atomicAdd(&out->wide, 1ull << 33);
  atomicAdd(&out->sum, 0.5f);
  int seen = out->counter;
  for (int expected = seen + 1; expected != seen;) {
    expected = seen;
    seen = atomicCAS(&out->counter, expected, expected + 1);
  }
}

// D = A B + D for one fragment: A [16, k] and B [k, 8], both with k innermost (A by rows, B by
// columns) and packed into 32-bit words of k; D [16, 8] by rows. One warp.
template <int words, typename Accumulator, typename Mma>
__device__ void fragment_product(const uint32_t* a, const uint32_t* b, Accumulator* d,
                                 const Mma& mma) {
  const int g = static_cast<int>(threadIdx.x) / 4;
  const int t = static_cast<int>(threadIdx.x) % 4;
  const uint32_t a_registers[4] = {a[g * words + t], a[(g + 8) * words + t], a[g * words + t + 4],
                                   a[(g + 8) * words + t + 4]};
  const uint32_t b_registers[2] = {b[g * words + t], b[g * words + t + 4]};
  Accumulator* rows[2] = {d + g * 8 + 2 * t, d + (g + 8) * 8 + 2 * t};
  Accumulator sums[4] = {rows[0][0], rows[0][1], rows[1][0], rows[1][1]};
  mma(sums, a_registers, b_registers);
  for (int i = 0; i < 4; ++i) rows[i / 2][i % 2] = sums[i];
}

__global__ void mma_bf16_kernel(const uint32_t* a, const uint32_t* b, float* d) {
  fragment_product<8>(a, b, d, [](auto& sums, const auto& a_registers, const auto& b_registers) {
    cuda::mma_m16n8k16_bf16(sums, a_registers, b_registers);
  });
}

__global__ void mma_fp16_kernel(const uint32_t* a, const uint32_t* b, float* d) {
  fragment_product<8>(a, b, d, [](auto& sums, const auto& a_registers, const auto& b_registers) {
    cuda::mma_m16n8k16_fp16(sums, a_registers, b_registers);
  });
}

__global__ void mma_tf32_kernel(const uint32_t* a, const uint32_t* b, float* d) {
  fragment_product<8>(a, b, d, [](auto& sums, const auto& a_registers, const auto& b_registers) {
    cuda::mma_m16n8k8_tf32(sums, a_registers, b_registers);
  });
}

__global__ void mma_b1_kernel(const uint32_t* a, const uint32_t* b, int32_t* d) {
  fragment_product<8>(a, b, d, [](auto& sums, const auto& a_registers, const auto& b_registers) {
    cuda::mma_m16n8k256_b1_and(sums, a_registers, b_registers);
  });
}

// out[lane][j]: lane's register of matrix j of x [4, 8, 8], plain and transposed.
__global__ void ldmatrix_kernel(const uint16_t* x, uint32_t* plain, uint32_t* transposed) {
  NNK_DYNAMIC_SHARED(uint16_t, tile);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += warpSize) tile[i] = x[i];
  __syncwarp();
  uint32_t registers[4];
  cuda::ldmatrix_x4(registers, tile + 8 * lane);
  for (int j = 0; j < 4; ++j) plain[4 * lane + j] = registers[j];
  cuda::ldmatrix_x4_trans(registers, tile + 8 * lane);
  for (int j = 0; j < 4; ++j) transposed[4 * lane + j] = registers[j];
}

}  // namespace nnkernels::testing
