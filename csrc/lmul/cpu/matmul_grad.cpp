#include <algorithm>
#include <vector>

#include "lmul/cpu/product.h"

namespace nnkernels::lmul {
namespace {

// out[r, c] = sum_k g[r, k] slope(x[r, c], y[k, c]), with the strides that `out` has.
struct SlopeProduct {
  int64_t batch, rows, columns, K;
  Matrix g, x, y;
  Output out;
  int64_t out_row_stride, out_column_stride;
};

void run_slope_product(const Options& options, const SlopeProduct& p, const Parallel& parallel) {
  Plan g_plan = make_plan(options, Algo::automatic);
  g_plan.term = Term::exact;
  g_plan.a_bits = 23;
  Plan y_plan = g_plan;
  y_plan.term = Term::formula;
  const Kernels& kernel = kernels();
  Buffer words;
  uint32_t* packed_words = words.words(PackedMatrix::word_count(p.K, p.columns));
  std::vector<Range> ranges(static_cast<size_t>(PackedMatrix::range_count(p.K, p.columns)));
  const int64_t row_blocks = (p.rows + kMaxRows - 1) / kMaxRows;
  constexpr int64_t kBlockColumns = 256;
  const int64_t column_blocks = (p.columns + kBlockColumns - 1) / kBlockColumns;

  for (int64_t batch = 0; batch < p.batch; ++batch) {
    if (batch == 0 || p.y.batch_stride != 0) {
      pack_matrix(y_plan, submatrix(p.y, batch, 0, 0), p.K, p.columns, packed_words, ranges.data(),
                  parallel);
    }
    const PackedMatrix packed{p.K, p.columns, packed_words, ranges.data()};
    parallel_for(parallel, row_blocks * column_blocks, 1, [&](int64_t begin, int64_t end) {
      RowBlock block;
      std::vector<uint32_t> fractions(kMaxRows * kBlockColumns);
      std::vector<float> sums(kMaxRows * kBlockColumns);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t row = task / column_blocks * kMaxRows;
        const int64_t column = task % column_blocks * kBlockColumns;
        const int64_t rows = std::min(kMaxRows, p.rows - row);
        const int64_t columns = std::min(kBlockColumns, p.columns - column);
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < columns; ++c) {
            const Matrix x = submatrix(p.x, batch, row + r, column + c);
            const uint32_t word =
                reduce(load_word(x.dtype, x.data, 0), options.mantissa_bits, options.round);
            const bool normal = is_finite(word) && !is_zero(word);
            fractions[static_cast<size_t>(r * kBlockColumns + c)] =
                (normal ? word & kMantissaMask : 0u) + options.offset;
          }
        }
        for (int64_t k = 0; k < p.K; k += kSumBlock) {
          const Columns k_block = packed.block(k);
          kernel.pack_rows(g_plan, submatrix(p.g, batch, row, k), rows, k_block.kc, block);
          kernel.multiply_slopes(block, k_block.slice(column, columns), fractions.data(),
                                 kBlockColumns, sums.data(), kBlockColumns, k == 0);
        }
        const int64_t start = batch * p.rows * p.columns;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < columns; ++c) {
            const int64_t at =
                start + (row + r) * p.out_row_stride + (column + c) * p.out_column_stride;
            const float sum = sums[static_cast<size_t>(r * kBlockColumns + c)];
            store_word(p.out.dtype, p.out.data, at, word_of(sum));
          }
        }
      }
    });
  }
}

}  // namespace

// grad_a = g b^T and grad_b = a^T g, with another product than the ordinary one for some kinds.
void matmul_grad(const MatmulGradArgs& args, const Parallel& parallel) {
  const int64_t batch = args.batch, M = args.M, N = args.N, K = args.K;
  if (args.grad == Grad::exact && args.options.mode == Mode::bits && M != 0 && N != 0) {
    if (args.grad_a.data != nullptr) {
      run_slope_product(args.options,
                        {batch, M, K, N, args.g, args.a, transposed(args.b), args.grad_a, K, 1},
                        parallel);
    }
    if (args.grad_b.data != nullptr) {
      // Computed transposed: rows n, columns k.
      run_slope_product(
          args.options,
          {batch, N, K, M, transposed(args.g), transposed(args.b), args.a, args.grad_b, 1, N},
          parallel);
    }
    return;
  }
  // The upstream gradient keeps its bits unless it is an operand of L.
  Plan a_plan = make_plan(args.options, Algo::automatic), b_plan = a_plan;
  if (args.grad != Grad::lmul) {
    a_plan.term = b_plan.term = Term::exact;
    a_plan.a_bits = b_plan.b_bits = 23;
    a_plan.b_power = b_plan.a_power = args.grad == Grad::exact;
  }
  if (args.grad_a.data != nullptr) {
    run_product(a_plan, {batch, M, K, N, args.g, transposed(args.b), args.grad_a}, parallel);
  }
  if (args.grad_b.data != nullptr) {
    run_product(b_plan, {batch, K, N, M, transposed(args.a), args.g, args.grad_b}, parallel);
  }
}

}  // namespace nnkernels::lmul
