// Matrix products: binary, from floats, ternary, and of bit planes.
#include "binary/cpu/engine.h"
#include "binary/cpu/prepack.h"

namespace nnkernels::binary {
namespace {

// Where batch `batch` of a result goes, and the vectors that belong to it.
Store batch_store(const Epilogue& epilogue, int64_t batch, int64_t M, int64_t N) {
  Store store;
  store.epilogue = epilogue;
  Epilogue& e = store.epilogue;
  const bool to_bits = e.dir != nullptr;
  store.M = M;
  store.N = N;
  store.row_stride = to_bits ? row_words(N) : N;
  const int64_t size = to_bits ? 4 : type_size(e.type);
  e.out = static_cast<char*>(e.out) + batch * M * store.row_stride * size;
  if (e.row_scale != nullptr) e.row_scale += batch * e.row_scale_stride;
  if (e.column_scale != nullptr) e.column_scale += batch * e.column_scale_stride;
  if (e.bias != nullptr) e.bias += batch * e.column_scale_stride;
  return store;
}

}  // namespace

void matmul(const MatmulArgs& args, const Parallel& parallel) {
  for (int64_t batch = 0; batch < args.batch; ++batch) {
    const Operand a{rows_of(args.a, args.K, batch), args.M};
    const Operand b = args.b_packed != nullptr ? packed_operand(args.b_packed, args.N, args.K)
                                               : Operand{rows_of(args.b, args.K, batch), args.N};
    Store store = batch_store(args.epilogue, batch, args.M, args.N);
    if (!args.hamming) {
      store.base = static_cast<int32_t>(args.K);
      store.scale = -2;
    }
    product(a, b, args.K, args.algo, store, parallel);
  }
}

void linear(const LinearArgs& args, const Parallel& parallel) {
  const int64_t width = row_words(args.K);
  Buffer<int32_t> bits(args.M * width);
  PackArgs pack_args;
  pack_args.rows = args.M;
  pack_args.K = args.K;
  pack_args.x = args.x;
  pack_args.bits = bits.data();
  pack(pack_args, false, parallel);
  MatmulArgs matmul_args;
  matmul_args.M = args.M;
  matmul_args.N = args.N;
  matmul_args.K = args.K;
  matmul_args.a = {bits.data(), 0, width};
  matmul_args.b = args.w;
  matmul_args.b_packed = args.w_packed;
  matmul_args.epilogue = args.epilogue;
  matmul_args.algo = args.algo;
  matmul(matmul_args, parallel);
}

namespace {

// A ternary t is the mean of two binary values u = (t < 0 ? -1 : 1) and v = (t > 0 ? 1 : -1), so
// 4 * t1 * t2 = u1 u2 + u1 v2 + v1 u2 + v1 v2: one binary product of rows four times as long, here
// [u u v v] (order 0) or [u v u v] (order 1).
void quadruple(const Bits& mask, const Bits& sign, int64_t batch, int64_t rows, int64_t K,
               bool alternate, uint32_t* out) {
  const int64_t width = row_words(K);
  for (int64_t row = 0; row < rows; ++row, out += 4 * width) {
    const auto word_at = [&](const Bits& bits, int64_t i) {
      return static_cast<uint32_t>(
          bits.data[batch * bits.batch_stride + row * bits.row_stride + i]);
    };
    for (int64_t i = 0; i < width; ++i) {
      const int64_t left = K - 32 * i;
      const uint32_t real = left >= 32 ? ~0u : left <= 0 ? 0u : (1u << left) - 1;
      const uint32_t m = word_at(mask, i), u = m & word_at(sign, i);
      const uint32_t v = (u | ~m) & real;
      out[i] = u;
      out[(alternate ? 2 : 1) * width + i] = u;
      out[(alternate ? 1 : 2) * width + i] = v;
      out[3 * width + i] = v;
    }
  }
}

}  // namespace

void ternary_matmul(const TernaryArgs& args, const Parallel& parallel) {
  const int64_t width = 4 * row_words(args.K);
  Buffer<uint32_t> a(args.M * width), b(args.N * width);
  for (int64_t batch = 0; batch < args.batch; ++batch) {
    quadruple(args.a_mask, args.a_sign, batch, args.M, args.K, false, a.data());
    quadruple(args.b_mask, args.b_sign, batch, args.N, args.K, true, b.data());
    const auto operand = [width](Buffer<uint32_t>& rows, int64_t count) {
      return Operand{{reinterpret_cast<const uint8_t*>(rows.data()), width * 4, width * 4}, count};
    };
    Epilogue epilogue;
    epilogue.out = args.out;
    Store store = batch_store(epilogue, batch, args.M, args.N);
    // (4 K - 2 mismatches) / 4; the mismatches are even.
    store.base = static_cast<int32_t>(args.K);
    store.scale = -1;
    store.shift = 1;
    product(operand(a, args.M), operand(b, args.N), width * 32, Algo::automatic, store, parallel);
  }
}

namespace {

struct PlanesSum {
  const PlanesArgs& args;
  uint32_t* a_sums;  // sum_i 2^i * ones of a[i, m]
  uint32_t* b_sums;
  int shift = 0;  // i + j of the planes being multiplied
  bool first = false, last = false;
};

void weighted_ones(const Bits& planes, int64_t count, int64_t rows, int64_t K, uint32_t* sums) {
  for (int64_t row = 0; row < rows; ++row) {
    uint32_t sum = 0;
    for (int64_t plane = 0; plane < count; ++plane) {
      const int32_t* words = planes.data + plane * planes.batch_stride + row * planes.row_stride;
      uint32_t ones = 0;
      for (int64_t i = 0; i < row_words(K); ++i) {
        ones += static_cast<uint32_t>(count_ones(static_cast<uint32_t>(words[i])));
      }
      sum += ones << plane;
    }
    sums[row] = sum;
  }
}

// ones(a and b) = (ones(a) + ones(b) - ones(a xor b)) / 2, weighted and summed over the planes.
// Twice the result fits 32 bits, so the sums may wrap.
void add_planes(void* context, const Tile& tile) {
  const auto& sum = *static_cast<const PlanesSum*>(context);
  const PlanesArgs& args = sum.args;
  const uint32_t a_weight = (1u << args.b_planes) - 1, b_weight = (1u << args.a_planes) - 1;
  for (int64_t i = 0; i < tile.rows; ++i) {
    const int64_t m = tile.m0 + i;
    auto* out = reinterpret_cast<uint32_t*>(args.out) + m * args.N + tile.n0;
    for (int64_t j = 0; j < tile.columns; ++j) {
      uint32_t value =
          sum.first ? a_weight * sum.a_sums[m] + b_weight * sum.b_sums[tile.n0 + j] : out[j];
      value -= static_cast<uint32_t>(tile.counts[i * tile.stride + j]) << sum.shift;
      out[j] = sum.last ? value >> 1 : value;
    }
  }
}

}  // namespace

void planes_matmul(const PlanesArgs& args, const Parallel& parallel) {
  Buffer<uint32_t> a_sums(args.M), b_sums(args.N);
  weighted_ones(args.a, args.a_planes, args.M, args.K, a_sums.data());
  weighted_ones(args.b, args.b_planes, args.N, args.K, b_sums.data());
  PlanesSum sum{args, a_sums.data(), b_sums.data()};
  for (int64_t i = 0; i < args.a_planes; ++i) {
    for (int64_t j = 0; j < args.b_planes; ++j) {
      sum.shift = static_cast<int>(i + j);
      sum.first = i + j == 0;
      sum.last = i + 1 == args.a_planes && j + 1 == args.b_planes;
      product({rows_of(args.a, args.K, i), args.M}, {rows_of(args.b, args.K, j), args.N}, args.K,
              Algo::automatic, add_planes, &sum, parallel);
    }
  }
}

}  // namespace nnkernels::binary
