#include "lmul/cpu/product.h"

#include <algorithm>
#include <vector>

namespace nnkernels::lmul {
namespace {

// Words of packed B that exist at a time, unless one group of columns has more.
constexpr int64_t kPackedWords = int64_t{4} << 20;
// Up to this many rows B is not worth packing as a whole.
constexpr int64_t kStreamedRows = 12;
constexpr int64_t kMaxTileGroups = 2;
// Below this many products one thread is faster than two.
constexpr int64_t kSerialWork = int64_t{1} << 17;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One pass: all of M and K of some batches, columns [first, first + columns).
struct Pass {
  int64_t batch_begin, batch_end, first, columns;
};

class Run {
 public:
  Run(const Plan& plan, const Product& product, const Parallel& parallel)
      : plan_(plan), p_(product), parallel_(parallel), kernel_(kernels()) {
    if (p_.bias != nullptr) {
      bias_.resize(static_cast<size_t>(p_.N));
      for (int64_t n = 0; n < p_.N; ++n) {
        bias_[static_cast<size_t>(n)] = float_of(load_word(p_.bias_dtype, p_.bias, n));
      }
    }
    shared_b_ = p_.b_packed != nullptr || p_.b.batch_stride == 0 || p_.batch == 1;
  }

  void operator()() {
    // The packed words of a narrow type are longer than itself, to be read as often.
    const bool packed_is_better =
        p_.b_packed != nullptr && (p_.b.data == nullptr || p_.b.dtype == DType::float32);
    if (p_.M <= kStreamedRows && !packed_is_better) return stream();
    if (p_.b_packed != nullptr) {
      const PackedMatrix packed = packed_matrix(p_.b_packed);
      return multiply({0, p_.batch, 0, p_.N}, &packed);
    }
    const int64_t columns = std::min(std::max(kPackedWords / p_.K / kGroup * kGroup, kGroup), p_.N);
    const int64_t words = PackedMatrix::word_count(p_.K, columns);
    const int64_t batches = shared_b_ ? p_.batch : std::max<int64_t>(1, kPackedWords / words);
    for (int64_t first = 0; first < p_.N; first += columns) {
      for (int64_t batch = 0; batch < p_.batch; batch += batches) {
        pass({batch, std::min(batch + batches, p_.batch), first, std::min(columns, p_.N - first)});
      }
    }
  }

 private:
  // Few rows: B is read once, so its columns are packed a panel at a time and multiplied at once.
  void stream() {
    const int64_t panels = ceil_div(p_.N, kernel_.tile_columns);
    const int64_t grain = 1 + kSerialWork / 8 / (p_.K * kernel_.tile_columns);
    parallel_for(parallel_, p_.batch * panels, grain, [&](int64_t begin, int64_t end) {
      RowBlock block;
      Buffer words, sums;
      Range ranges[kMaxTileGroups];
      for (int64_t task = begin; task < end; ++task) {
        const int64_t batch = task / panels, column = task % panels * kernel_.tile_columns;
        const int64_t columns = std::min(kernel_.tile_columns, p_.N - column);
        uint32_t* packed = words.words(PackedMatrix::word_count(kSumBlock, columns));
        float* c = sums.floats(p_.M * columns);
        for (int64_t k = 0; k < p_.K; k += kSumBlock) {
          const int64_t kc = std::min(kSumBlock, p_.K - k);
          kernel_.pack_columns(plan_, submatrix(p_.b, batch, k, column), kc, columns, packed,
                               ranges);
          kernel_.pack_rows(plan_, submatrix(p_.a, batch, 0, k), p_.M, kc, block);
          kernel_.multiply(plan_, block, {packed, ranges, kc, columns, kc}, c, columns, k == 0);
        }
        const int64_t at = batch * p_.M * p_.N + column;
        const Output out{static_cast<char*>(p_.out.data) + at * element_size(p_.out.dtype),
                         p_.out.dtype};
        kernel_.store(c, columns, p_.M, columns, bias_.empty() ? nullptr : bias_.data() + column,
                      out, p_.N);
      }
    });
  }

  void pass(const Pass& pass) {
    const int64_t matrices = shared_b_ ? 1 : pass.batch_end - pass.batch_begin;
    const int64_t words = PackedMatrix::word_count(p_.K, pass.columns);
    const int64_t ranges = PackedMatrix::range_count(p_.K, pass.columns);
    uint32_t* at = packed_words_.words(matrices * words);
    packed_ranges_.resize(static_cast<size_t>(matrices * ranges));
    std::vector<PackedMatrix> packed(static_cast<size_t>(matrices));
    for (int64_t i = 0; i < matrices; ++i) {
      packed[static_cast<size_t>(i)] = {p_.K, pass.columns, at + i * words,
                                        packed_ranges_.data() + i * ranges};
    }
    // Few large matrices: the threads share each. Many: each thread packs its own.
    const auto pack_one = [&](int64_t i, const Parallel& parallel) {
      pack_matrix(plan_, submatrix(p_.b, pass.batch_begin + i, 0, pass.first), p_.K, pass.columns,
                  at + i * words, packed_ranges_.data() + i * ranges, parallel);
    };
    if (matrices < parallel_.threads) {
      for (int64_t i = 0; i < matrices; ++i) pack_one(i, parallel_);
    } else {
      const int64_t grain = 1 + kSerialWork / words;
      parallel_for(parallel_, matrices, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) pack_one(i, Parallel{});
      });
    }
    multiply(pass, packed.data());
  }

  void multiply(const Pass& pass, const PackedMatrix* packed) {
    // Blocks of rows as even as the tile allows; columns divided only as far as threads need work.
    const int64_t batches = pass.batch_end - pass.batch_begin;
    const int64_t row_blocks = ceil_div(p_.M, kMaxRows);
    const int64_t block_rows =
        ceil_div(ceil_div(p_.M, row_blocks), kernel_.tile_rows) * kernel_.tile_rows;
    const int64_t wanted = parallel_.threads == 1 ? 1 : 8 * parallel_.threads;
    const int64_t column_blocks =
        std::clamp<int64_t>(ceil_div(wanted, batches * row_blocks), 1, ceil_div(pass.columns, 128));
    const int64_t block_columns =
        ceil_div(ceil_div(pass.columns, column_blocks), kernel_.tile_columns) *
        kernel_.tile_columns;
    const int64_t tasks_wide = ceil_div(pass.columns, block_columns);
    const int64_t tasks_high = ceil_div(p_.M, block_rows);
    const int64_t work = std::min(block_rows, p_.M) * std::min(block_columns, pass.columns) * p_.K;
    parallel_for(parallel_, batches * tasks_high * tasks_wide, 1 + kSerialWork / work,
                 [&](int64_t begin, int64_t end) {
                   RowBlock block;
                   Buffer scratch;
                   for (int64_t task = begin; task < end; ++task) {
                     const int64_t batch = task / (tasks_high * tasks_wide);
                     const int64_t row = task / tasks_wide % tasks_high * block_rows;
                     const int64_t column = task % tasks_wide * block_columns;
                     multiply_block(packed[shared_b_ ? 0 : batch], pass.batch_begin + batch, row,
                                    std::min(block_rows, p_.M - row), pass.first, column,
                                    std::min(block_columns, pass.columns - column), block, scratch);
                   }
                 });
  }

  void multiply_block(const PackedMatrix& packed, int64_t batch, int64_t row, int64_t rows,
                      int64_t first, int64_t column, int64_t columns, RowBlock& block,
                      Buffer& scratch) {
    const int64_t at = (batch * p_.M + row) * p_.N + first + column;
    const Output out{static_cast<char*>(p_.out.data) + at * element_size(p_.out.dtype),
                     p_.out.dtype};
    const bool direct = out.dtype == DType::float32;
    float* c = direct ? static_cast<float*>(out.data) : scratch.floats(rows * columns);
    const int64_t c_stride = direct ? p_.N : columns;
    for (int64_t k = 0; k < p_.K; k += kSumBlock) {
      const Columns k_block = packed.block(k);
      kernel_.pack_rows(plan_, submatrix(p_.a, batch, row, k), rows, k_block.kc, block);
      kernel_.multiply(plan_, block, k_block.slice(column, columns), c, c_stride, k == 0);
    }
    if (direct && bias_.empty()) return;
    const float* bias = bias_.empty() ? nullptr : bias_.data() + first + column;
    kernel_.store(c, c_stride, rows, columns, bias, out, p_.N);
  }

  const Plan& plan_;
  const Product& p_;
  const Parallel& parallel_;
  const Kernels& kernel_;
  bool shared_b_ = false;
  std::vector<float> bias_;
  Buffer packed_words_;
  std::vector<Range> packed_ranges_;
};

// Without products, sums are +0.
void store_bias(const Product& product) {
  const int64_t rows = product.batch * product.M;
  for (int64_t i = 0; i < rows * product.N; ++i) {
    const float bias = product.bias == nullptr
                           ? 0.0f
                           : float_of(load_word(product.bias_dtype, product.bias, i % product.N));
    store_word(product.out.dtype, product.out.data, i, word_of(0.0f + bias));
  }
}

}  // namespace

void run_product(const Plan& plan, const Product& product, const Parallel& parallel) {
  if (product.batch * product.M * product.N == 0) return;
  if (product.K == 0) return store_bias(product);
  Run(plan, product, parallel)();
}

}  // namespace nnkernels::lmul
