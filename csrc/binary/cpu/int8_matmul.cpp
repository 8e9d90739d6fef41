#include <algorithm>

#include "binary/cpu/engine.h"

namespace nnkernels::binary {
namespace {

constexpr int64_t kBlockRows = 64;

// x as contiguous rows, padded with zeros to whole quads, and the sum of each.
void copy_rows(const Int8MatmulArgs& args, int64_t quads, int8_t* rows, int32_t* sums,
               const Parallel& parallel) {
  const auto* x = static_cast<const int8_t*>(args.x.data);
  parallel_for(parallel, args.M, 16, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      int8_t* to = rows + m * quads * 4;
      const int8_t* from = x + m * args.x.row_stride;
      int32_t sum = 0;
      if (args.x.column_stride == 1) {
        memcpy(to, from, static_cast<size_t>(args.K));
      } else {
        for (int64_t k = 0; k < args.K; ++k) to[k] = from[k * args.x.column_stride];
      }
      for (int64_t k = 0; k < args.K; ++k) sum += to[k];
      memset(to + args.K, 0, static_cast<size_t>(quads * 4 - args.K));
      sums[m] = sum;
    }
  });
}

}  // namespace

void int8_matmul(const Int8MatmulArgs& args, const Parallel& parallel) {
  if (args.M <= 0 || args.N <= 0) return;
  const Kernels& kernel = kernels();
  const int64_t quads = ceil_div(args.K, 4), width = kernel.int8_columns;
  Buffer<int8_t> x(args.M * quads * 4);
  Buffer<int32_t> x_sums(args.M);
  copy_rows(args, quads, x.data(), x_sums.data(), parallel);

  Store store;
  store.epilogue = args.epilogue;
  store.M = args.M;
  store.N = args.N;
  store.row_stride = args.N;
  const Rows sign = rows_of(args.w, args.K), mask = rows_of(args.w_mask, args.K);
  parallel_for(parallel, ceil_div(args.N, width), 1, [&](int64_t begin, int64_t end) {
    Buffer<uint8_t> weights(quads * width * 4);
    Buffer<int32_t> sums(kBlockRows * width);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t n0 = block * width, columns = std::min(width, args.N - n0);
      const Rows block_mask = mask.from(n0);
      kernel.expand(sign.from(n0), args.w_mask.data != nullptr ? &block_mask : nullptr, columns,
                    quads, weights.data());
      for (int64_t m0 = 0; m0 < args.M; m0 += kBlockRows) {
        const int64_t rows = std::min(kBlockRows, args.M - m0);
        kernel.int8(x.data() + m0 * quads * 4, quads * 4, rows, weights.data(), quads, sums.data(),
                    width);
        for (int64_t i = 0; i < rows; ++i) {
          for (int64_t j = 0; j < columns; ++j) sums.data()[i * width + j] -= x_sums.data()[m0 + i];
        }
        kernel.store(store, {m0, rows, n0, columns, sums.data(), width});
      }
    }
  });
}

}  // namespace nnkernels::binary
