#include "lmul/cpu/packed.h"

#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>

namespace nnkernels::lmul {
namespace {

struct Header {
  char magic[8] = {'n', 'n', 'k', 'l', 'm', 'u', 'l', '1'};
  int64_t N = 0, K = 0;
  Options options;
  uint8_t padding[24] = {};
};
static_assert(sizeof(Header) == 64);

int64_t ranges_at(int64_t K, int64_t N) {
  return static_cast<int64_t>(sizeof(Header)) + 4 * PackedMatrix::word_count(K, N);
}

// The bytes of a packed weight, or nothing where int64_t does not hold them.
std::optional<int64_t> checked_size(int64_t N, int64_t K) {
  // Up to here the bytes of one group fit.
  constexpr int64_t limit = int64_t{1} << 56;
  if (N < 0 || N > limit || K < 0 || K > limit) return std::nullopt;
  const int64_t group = 4 * kGroup * K + sizeof(Range) * PackedMatrix::blocks(K);
  int64_t size = 0;
  if (__builtin_mul_overflow(Columns::groups(N), group, &size) ||
      __builtin_add_overflow(size, static_cast<int64_t>(sizeof(Header)), &size)) {
    return std::nullopt;
  }
  return size;
}

// Whether these are options that a call can have.
bool possible(const Options& options) {
  return options.mantissa_bits >= 1 && options.mantissa_bits <= 23 &&
         (options.mode == Mode::bits || options.mode == Mode::formula) &&
         (options.round == Round::trunc || options.round == Round::rne) &&
         options.offset < 1u << 23;
}

}  // namespace

Matrix submatrix(const Matrix& matrix, int64_t batch, int64_t row, int64_t column) {
  const int64_t index =
      batch * matrix.batch_stride + row * matrix.row_stride + column * matrix.column_stride;
  Matrix sub = matrix;
  sub.data = static_cast<const char*>(matrix.data) + index * element_size(matrix.dtype);
  return sub;
}

Matrix transposed(const Matrix& matrix) {
  return {matrix.data, matrix.dtype, matrix.batch_stride, matrix.column_stride, matrix.row_stride};
}

void pack_matrix(const Plan& plan, const Matrix& b, int64_t K, int64_t N, uint32_t* words,
                 Range* ranges, const Parallel& parallel) {
  const Kernels& kernel = kernels();
  const int64_t groups = Columns::groups(N);
  // A task packs 8 groups of one K block.
  constexpr int64_t task_groups = 8;
  const int64_t tasks = (groups + task_groups - 1) / task_groups;
  const int64_t grain = 1 + (1 << 16) / (task_groups * kGroup * kSumBlock);
  parallel_for(parallel, PackedMatrix::blocks(K) * tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t k = task / tasks * kSumBlock;
      const int64_t kc = K - k < kSumBlock ? K - k : kSumBlock;
      const int64_t group = task % tasks * task_groups;
      const int64_t left = N - group * kGroup;
      kernel.pack_columns(plan, submatrix(b, 0, k, group * kGroup), kc,
                          left < task_groups * kGroup ? left : task_groups * kGroup,
                          words + (k * groups + group * kc) * kGroup,
                          ranges + k / kSumBlock * groups + group);
    }
  });
}

int64_t packed_size(int64_t N, int64_t K) {
  const std::optional<int64_t> size = checked_size(N, K);
  if (!size) {
    throw std::runtime_error("w is [" + std::to_string(N) + ", " + std::to_string(K) +
                             "], too large to pack");
  }
  return *size;
}

void pack(const Matrix& w, int64_t N, int64_t K, const Options& options, uint8_t* packed,
          const Parallel& parallel) {
  Header header;
  header.N = N;
  header.K = K;
  header.options = options;
  std::memcpy(packed, &header, sizeof header);
  pack_matrix(make_plan(options, Algo::automatic), transposed(w), K, N,
              reinterpret_cast<uint32_t*>(packed + sizeof header),
              reinterpret_cast<Range*>(packed + ranges_at(K, N)), parallel);
}

PackedInfo packed_info(const uint8_t* packed, int64_t size) {
  PackedInfo info;
  Header header;
  if (size < static_cast<int64_t>(sizeof header)) return info;
  std::memcpy(&header, packed, sizeof header);
  info.N = header.N;
  info.K = header.K;
  info.options = header.options;
  info.valid = std::memcmp(header.magic, Header().magic, sizeof header.magic) == 0 &&
               reinterpret_cast<uintptr_t>(packed) % 4 == 0 && possible(header.options) &&
               checked_size(header.N, header.K) == size;
  return info;
}

PackedMatrix packed_matrix(const uint8_t* packed) {
  Header header;
  std::memcpy(&header, packed, sizeof header);
  return {header.K, header.N, reinterpret_cast<const uint32_t*>(packed + sizeof header),
          reinterpret_cast<const Range*>(packed + ranges_at(header.K, header.N))};
}

}  // namespace nnkernels::lmul
