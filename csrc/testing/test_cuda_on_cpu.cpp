// The CUDA-on-CPU header and the mma.cuh wrappers against plain loops, and the errors it promises.
#include <cstdint>
#include <random>
#include <vector>

#include "common/convert.h"
#include "testing/check.h"
#include "testing/test_kernels.cu"

namespace nnkernels::testing {
namespace {

using cuda_on_cpu::DeviceBuffer;
using cuda_on_cpu::Flush;
using cuda_on_cpu::machine;
using cuda_on_cpu::Order;

// Runs the body once with threads and blocks in ascending order and once in descending order.
template <typename Body>
void in_both_orders(const Body& body) {
  for (Order order : {Order::forward, Order::backward}) {
    machine.order = order;
    body();
  }
  machine.order = Order::forward;
}

TEST(indices_cover_a_three_dimensional_launch) {
  DeviceBuffer<int64_t> out("out", 2 * 3 * 4 * 5 * 6 * 2);
  in_both_orders([&] {
    NNK_LAUNCH(indices_kernel, dim3(2, 3, 4), dim3(5, 6, 2), 0, nullptr, out.data());
    for (size_t i = 0; i < out.size(); ++i) CHECK_EQ(out[i], static_cast<int64_t>(i));
  });
}

TEST(dynamic_shared_memory_and_barrier) {
  std::vector<int> values(3 * 96);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int>(i);
  DeviceBuffer<int> x("x", values), out("out", values.size());
  in_both_orders([&] {
    NNK_LAUNCH(reverse_kernel, 3, 96, 96 * sizeof(int), nullptr, x.data(), out.data());
    for (int i = 0; i < 3 * 96; ++i) CHECK_EQ(out[i], i / 96 * 96 + 95 - i % 96);
  });
}

TEST(block_sum_over_shuffles_static_shared_memory_and_atomics) {
  DeviceBuffer<float> x("x", std::vector<float>(1000, 0.25f));
  in_both_orders([&] {
    DeviceBuffer<float> out("out", std::vector<float>{1.0f});
    NNK_LAUNCH(sum_kernel, 4, 256, 0, nullptr, x.data(), int64_t{1000}, out.data());
    CHECK_EQ(out[0], 251.0f);
  });
}

TEST(warp_and_block_votes) {
  DeviceBuffer<WarpResults> out("out", 64);
  in_both_orders([&] {
    NNK_LAUNCH(warp_functions_kernel, 1, 64, 0, nullptr, out.data());
    for (int thread = 0; thread < 64; ++thread) {
      const int lane = thread % 32;
      const WarpResults& r = out[thread];
      CHECK_EQ(r.broadcast, 50);
      CHECK_EQ(r.up, lane < 3 ? lane : lane - 3);
      CHECK_EQ(r.down, lane > 28 ? lane : lane + 3);
      CHECK_EQ(r.exchanged, lane ^ 7);
      CHECK_EQ(r.segment, lane / 8 * 8 + 2);
      CHECK_EQ(r.odd, 0xAAAAAAAAu);
      CHECK_EQ(r.any, 1u);
      CHECK_EQ(r.all, 0u);
      CHECK_EQ(r.lower_half, lane < 16 ? 0xFF00u : 0u);
      CHECK_EQ(r.block_count, 6);
      CHECK_EQ(r.block_and, 0);
      CHECK_EQ(r.block_or, 1);
    }
  });
}

TEST(atomics) {
  in_both_orders([&] {
    DeviceBuffer<Atomics> out("out", std::vector<Atomics>{Atomics{}});
    NNK_LAUNCH(atomics_kernel, 2, 50, 0, nullptr, out.data());
    CHECK_EQ(out[0].added, 4950);
    CHECK_EQ(out[0].smallest, -92);
    CHECK_EQ(out[0].largest, 92);
    CHECK_EQ(out[0].counter, 100);
    CHECK_EQ(out[0].ored, 0xFFFFFFFFu);
    CHECK_EQ(out[0].wide, 100ull << 33);
    CHECK_EQ(out[0].sum, 50.0f);
  });
}

TEST(bit_intrinsics) {
  CHECK_EQ(__popc(0xF0F0u), 8);
  CHECK_EQ(__popcll(~0ull), 64);
  CHECK_EQ(__clz(1), 31);
  CHECK_EQ(__clzll(0), 64);
  CHECK_EQ(__ffs(0), 0);
  CHECK_EQ(__ffs(8), 4);
  CHECK_EQ(__ffsll(1ll << 40), 41);
  CHECK_EQ(__umulhi(0x80000000u, 6u), 3u);
  CHECK_EQ(__float_as_uint(1.0f), 0x3F800000u);
  CHECK_EQ(__int_as_float(0x40000000), 2.0f);
  CHECK_EQ(__fmaf_rn(1.0f + 0x1p-23f, 1.0f - 0x1p-23f, -1.0f), -0x1p-46f);
}

#if NNK_HAS_CUDA_HEADERS
__global__ void half_types_kernel(float* out) {
  const __nv_bfloat16 b = __float2bfloat16_rn(1.00390625f);
  const __half h = __float2half_rn(1.00048828125f);
  out[0] = __bfloat162float(__shfl_sync(0x1u, b, 0));
  out[1] = __half2float(h);
}

TEST(cuda_headers_bring_bf16_and_fp16) {
  DeviceBuffer<float> out("out", 2);
  NNK_LAUNCH(half_types_kernel, 1, 1, 0, nullptr, out.data());
  // Both inputs lie halfway between two numbers of the format: the even one wins.
  CHECK_EQ(out[0], 1.0f);
  CHECK_EQ(out[1], 1.0f);
}
#endif

// A and B of a fragment product as random small numbers and as packed words, k innermost.
struct Fragments {
  std::vector<float> a, b;
  std::vector<uint32_t> a_words, b_words;
};

// Each number is a sign, an exponent in [-2, 1] and `mantissa_bits` random bits, so that sums of 16
// products are exact in double.
template <typename Narrow>
Fragments random_fragments(int k, int mantissa_bits, int bits, const Narrow& narrow) {
  std::mt19937 random(k + bits);
  Fragments f;
  const auto fill = [&](int rows, std::vector<float>& values, std::vector<uint32_t>& words) {
    words.assign(static_cast<size_t>(rows) * k * bits / 32, 0);
    for (int i = 0; i < rows * k; ++i) {
      const uint32_t word = (random() & 1u) << 31 | (125u + random() % 4) << 23 |
                            (random() & ((1u << mantissa_bits) - 1)) << (23 - mantissa_bits);
      values.push_back(float_of(word));
      const int per_word = 32 / bits;
      words[i / per_word] |= static_cast<uint32_t>(narrow(word)) << (i % per_word * bits);
    }
  };
  fill(16, f.a, f.a_words);
  fill(8, f.b, f.b_words);
  return f;
}

template <typename Narrow>
void check_float_fragment(int k, int mantissa_bits, int bits,
                          void (*kernel)(const uint32_t*, const uint32_t*, float*),
                          const Narrow& narrow) {
  const Fragments f = random_fragments(k, mantissa_bits, bits, narrow);
  DeviceBuffer<uint32_t> a("a", f.a_words), b("b", f.b_words);
  std::vector<float> start(16 * 8);
  for (int i = 0; i < 16 * 8; ++i) start[i] = 0.125f * static_cast<float>(i);
  DeviceBuffer<float> d("d", start);
  NNK_LAUNCH(kernel, 1, 32, 0, nullptr, a.data(), b.data(), d.data());
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      double sum = start[row * 8 + column];
      for (int i = 0; i < k; ++i) sum += double{f.a[row * k + i]} * f.b[column * k + i];
      CHECK_EQ(d[row * 8 + column], static_cast<float>(sum));
    }
  }
}

TEST(mma_bf16_fragment) { check_float_fragment(16, 7, 16, mma_bf16_kernel, word_to_bfloat16); }

TEST(mma_fp16_fragment) { check_float_fragment(16, 10, 16, mma_fp16_kernel, word_to_float16); }

TEST(mma_tf32_fragment_ignores_the_low_bits) {
  check_float_fragment(8, 10, 32, mma_tf32_kernel, [](uint32_t word) { return word | 0x1FFFu; });
}

TEST(mma_b1_fragment) {
  std::mt19937 random(7);
  std::vector<uint32_t> a_words(16 * 8), b_words(8 * 8);
  for (uint32_t& word : a_words) word = static_cast<uint32_t>(random());
  for (uint32_t& word : b_words) word = static_cast<uint32_t>(random());
  DeviceBuffer<uint32_t> a("a", a_words), b("b", b_words);
  DeviceBuffer<int32_t> d("d", std::vector<int32_t>(16 * 8, -5));
  NNK_LAUNCH(mma_b1_kernel, 1, 32, 0, nullptr, a.data(), b.data(), d.data());
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      int sum = -5;
      for (int bit = 0; bit < 256; ++bit) {
        sum +=
            (a_words[row * 8 + bit / 32] >> bit % 32 & b_words[column * 8 + bit / 32] >> bit % 32) &
            1;
      }
      CHECK_EQ(d[row * 8 + column], sum);
    }
  }
}

TEST(ldmatrix) {
  std::vector<uint16_t> values(256);
  for (int i = 0; i < 256; ++i) values[i] = static_cast<uint16_t>(i);
  DeviceBuffer<uint16_t> x("x", values);
  DeviceBuffer<uint32_t> plain("plain", 128), transposed("transposed", 128);
  NNK_LAUNCH(ldmatrix_kernel, 1, 32, 256 * sizeof(uint16_t), nullptr, x.data(), plain.data(),
             transposed.data());
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (uint32_t j = 0; j < 4; ++j) {
      const uint32_t g = lane / 4, t = lane % 4;
      const uint32_t along = 64 * j + 8 * g + 2 * t;
      const uint32_t across = 64 * j + 16 * t + g;
      CHECK_EQ(plain[4 * lane + j], along | (along + 1) << 16);
      CHECK_EQ(transposed[4 * lane + j], across | (across + 8) << 16);
    }
  }
}

// Kernels that are wrong on purpose: each must raise the error that names its fault.

__global__ void index_kernel(const int* x, int* out, int64_t offset) {
  out[threadIdx.x] = x[static_cast<int64_t>(threadIdx.x) + offset];
}

TEST(reads_outside_a_buffer_are_errors) {
  DeviceBuffer<int> x("x", std::vector<int>(40, 3)), out("out", 32);
  NNK_LAUNCH(index_kernel, 1, 32, 0, nullptr, x.data(), out.data(), int64_t{8});
  CHECK_EQ(out[31], 3);
  CHECK_THROWS(NNK_LAUNCH(index_kernel, 1, 32, 0, nullptr, x.data(), out.data(), int64_t{9}),
               "index_kernel: block (0,0,0) thread (31,0,0): bad memory access: "
               "0 bytes past the end of x (160 bytes)");
  DeviceBuffer<int> y("y", std::vector<int>(40, 3), Flush::start);
  CHECK_THROWS(NNK_LAUNCH(index_kernel, 1, 32, 0, nullptr, y.data(), out.data(), int64_t{-2}),
               "8 bytes before the start of y");
  CHECK_THROWS(NNK_LAUNCH(index_kernel, 1, 1, 0, nullptr, nullptr, out.data(), int64_t{1}),
               "address outside every buffer");
}

TEST(writes_outside_a_buffer_are_errors) {
  DeviceBuffer<int> x("x", std::vector<int>(64, 3)), out("out", 30);
  CHECK_THROWS(NNK_LAUNCH(index_kernel, 2, 32, 0, nullptr, x.data(), out.data(), int64_t{0}),
               "thread (30,0,0): bad memory access: 0 bytes past the end of out");
  DeviceBuffer<int> aligned("aligned", 30, Flush::end, 16);
  CHECK(aligned.intact());
  NNK_LAUNCH(index_kernel, 1, 31, 0, nullptr, x.data(), aligned.data(), int64_t{0});
  CHECK(!aligned.intact());
}

TEST(fresh_memory_is_not_zero) {
  DeviceBuffer<float> x("x", 3);
  CHECK(x[0] != x[0]);
}

TEST(accesses_outside_dynamic_shared_memory_are_errors) {
  DeviceBuffer<int> x("x", std::vector<int>(64, 3)), out("out", 64);
  CHECK_THROWS(NNK_LAUNCH(reverse_kernel, 1, 64, 60 * sizeof(int), nullptr, x.data(), out.data()),
               "past the end of dynamic shared memory (240 bytes)");
  CHECK_THROWS(NNK_LAUNCH(reverse_kernel, 1, 64, 63 * sizeof(int), nullptr, x.data(), out.data()),
               "wrote past the end of dynamic shared memory");
}

__global__ void overflow_kernel(volatile char* out) {
  volatile char local[cuda_on_cpu::Fiber::stack_bytes];
  for (size_t i = sizeof local; i > 0; --i) local[i - 1] = 1;
  out[0] = local[0];
}

TEST(stack_overflow_is_an_error) {
  DeviceBuffer<char> out("out", 1);
  CHECK_THROWS(NNK_LAUNCH(overflow_kernel, 1, 1, 0, nullptr, out.data()), "stack overflow");
}

__global__ void early_exit_kernel(unsigned leaver) {
  if (threadIdx.x == leaver) return;
  __syncthreads();
}

TEST(a_thread_that_exits_before_a_barrier_is_an_error) {
  in_both_orders([] {
    CHECK_THROWS(NNK_LAUNCH(early_exit_kernel, 1, 64, 0, nullptr, 40u),
                 "early_exit_kernel: block (0,0,0) is stuck: 1 threads exited (first: (40,0,0)); "
                 "63 threads in __syncthreads at test_cuda_on_cpu.cpp:");
    CHECK_THROWS(NNK_LAUNCH(early_exit_kernel, 1, 64, 0, nullptr, 0u), "is stuck");
  });
}

__global__ void two_barriers_kernel() {
  if (threadIdx.x % 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

TEST(threads_at_different_barriers_are_an_error) {
  CHECK_THROWS(NNK_LAUNCH(two_barriers_kernel, 1, 64, 0, nullptr),
               "is stuck: 32 threads in __syncthreads at test_cuda_on_cpu.cpp:");
}

__global__ void wrong_mask_kernel(int* out, unsigned even_mask) {
  const unsigned mask = threadIdx.x % 2 ? 0xFFFFFFFFu : even_mask;
  out[threadIdx.x] = __shfl_xor_sync(mask, 1, 1);
}

TEST(shuffle_masks_that_do_not_match_are_errors) {
  DeviceBuffer<int> out("out", 32);
  NNK_LAUNCH(wrong_mask_kernel, 1, 32, 0, nullptr, out.data(), 0xFFFFFFFFu);
  in_both_orders([&] {
    CHECK_THROWS(NNK_LAUNCH(wrong_mask_kernel, 1, 32, 0, nullptr, out.data(), 0x55555555u),
                 "reads a lane that the shuffle's mask omits");
    CHECK_THROWS(NNK_LAUNCH(wrong_mask_kernel, 1, 32, 0, nullptr, out.data(), 0x5555FFFFu),
                 "in a warp operation at test_cuda_on_cpu.cpp:");
    CHECK_THROWS(NNK_LAUNCH(wrong_mask_kernel, 1, 32, 0, nullptr, out.data(), 0xAAAAAAAAu),
                 "calls a warp operation whose mask omits it");
    CHECK_THROWS(NNK_LAUNCH(wrong_mask_kernel, 1, 30, 0, nullptr, out.data(), 0xFFFFFFFFu),
                 "the mask names lane 30, beyond the block");
  });
}

__global__ void missing_barrier_kernel(int* out) {
  NNK_DYNAMIC_SHARED(int, tile);
  tile[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

TEST(a_missing_barrier_shows_in_one_of_the_orders) {
  DeviceBuffer<int> out("out", 64);
  int wrong = 0;
  in_both_orders([&] {
    NNK_LAUNCH(missing_barrier_kernel, 1, 64, 64 * sizeof(int), nullptr, out.data());
    for (int i = 0; i < 64; ++i) wrong += out[i] != 63 - i;
  });
  CHECK(wrong > 0);
}

__global__ void throwing_kernel() {
  if (threadIdx.x == 7) throw std::runtime_error("assertion of thread 7");
  __syncthreads();
}

TEST(launch_limits_and_exceptions) {
  CHECK_THROWS(NNK_LAUNCH(throwing_kernel, 1, 1025, 0, nullptr), "out of range");
  CHECK_THROWS(NNK_LAUNCH(throwing_kernel, 0, 32, 0, nullptr), "out of range");
  CHECK_THROWS(NNK_LAUNCH(throwing_kernel, dim3(1, 65536), 32, 0, nullptr), "out of range");
  CHECK_THROWS(NNK_LAUNCH(throwing_kernel, 1, 32, 228 * 1024, nullptr), "out of range");
  CHECK_THROWS(NNK_LAUNCH(throwing_kernel, 1, 32, 0, nullptr), "assertion of thread 7");
  // A failed launch leaves nothing behind.
  NNK_LAUNCH(throwing_kernel, 1, 7, 0, nullptr);
  CHECK_THROWS(__syncthreads(), "outside a kernel");
}

}  // namespace
}  // namespace nnkernels::testing
