#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "binary/cpu/amx.h"
#include "binary/cpu/costs.h"
#include "binary/cpu/engine.h"

namespace nnkernels::binary {
namespace {

constexpr int64_t kStripRows = 64;  // rows of a tile handed to the sink
constexpr int64_t kWide = 2 * kPanel;

struct Job {
  const Operand& a;
  const Operand& b;
  int64_t bits;
  Sink sink;
  void* context;
  const Parallel& parallel;
};

// Tiles of 64 x 64 by a kernel that needs no preparation.
template <class Kernel>
void tiled_product(const Job& job, Kernel kernel) {
  const int64_t row_blocks = ceil_div(job.a.count, kStripRows);
  const int64_t tasks = row_blocks * ceil_div(job.b.count, kPanel);
  parallel_for(job.parallel, tasks, 1, [&](int64_t begin, int64_t end) {
    alignas(64) int32_t counts[kStripRows * kPanel];
    for (int64_t task = begin; task < end; ++task) {
      Tile tile;
      tile.m0 = task % row_blocks * kStripRows;
      tile.n0 = task / row_blocks * kPanel;
      tile.rows = std::min(kStripRows, job.a.count - tile.m0);
      tile.columns = std::min(kPanel, job.b.count - tile.n0);
      tile.counts = counts;
      tile.stride = kPanel;
      kernel(job.a.rows.from(tile.m0), tile.rows, job.b.rows.from(tile.n0), tile.columns, counts,
             kPanel);
      job.sink(job.context, tile);
    }
  });
}

// What a thread needs for a lookup product, kept from call to call.
struct Scratch {
  Buffer<uint8_t> index;
  Buffer<uint16_t> sums;
  Buffer<int32_t> counts;
};

// The four-Russians product. Tasks go panel by panel inside a block of rows, whose index a thread
// builds once.
void lookup_product(const Job& job) {
  const Kernels& kernel = kernels();
  const int64_t chunks = chunk_count(job.bits);
  const int64_t segments = ceil_div(chunks, kSegment);
  const bool wide = kernel.lookup[1] != nullptr;
  const int64_t width = wide ? kWide : kPanel;
  const int64_t column_blocks = ceil_div(job.b.count, width);

  int64_t block_rows = segments > 1 ? 256 : 1024;
  while (block_rows > 256 &&
         ceil_div(job.a.count, block_rows) * column_blocks < 2 * job.parallel.threads) {
    block_rows /= 2;
  }
  block_rows = std::min(block_rows, ceil_div(job.a.count, kStripRows) * kStripRows);

  Buffer<uint64_t> own_slices;
  const uint64_t* slices = job.b.slices;
  if (slices == nullptr) {
    own_slices.reserve(slice_words(job.b.count, chunks));
    slice_operand(job.b, chunks, own_slices.data(), job.parallel);
    slices = own_slices.data();
  }

  const int64_t tasks = ceil_div(job.a.count, block_rows) * column_blocks;
  parallel_for(job.parallel, tasks, 1, [&](int64_t begin, int64_t end) {
    thread_local Scratch scratch;
    uint8_t* index = scratch.index.reserve(chunks * block_rows * kGroups);
    uint16_t* sums = scratch.sums.reserve(block_rows * width);
    int32_t* counts = scratch.counts.reserve((segments > 1 ? block_rows : kStripRows) * width);
    int64_t indexed = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t m0 = task / column_blocks * block_rows;
      const int64_t n0 = task % column_blocks * width;
      const int64_t rows = std::min(block_rows, job.a.count - m0);
      const int64_t columns = std::min(width, job.b.count - n0);
      if (indexed != m0) kernel.index(job.a.rows.from(m0), rows, chunks, index);
      indexed = m0;

      const int panels = columns > kPanel ? 1 : 0;  // which table
      const int64_t tile_width = panels != 0 ? kWide : kPanel;
      for (int64_t segment = 0; segment < segments; ++segment) {
        const int64_t first = segment * kSegment;
        memset(sums, 0, static_cast<size_t>(rows * tile_width) * sizeof(uint16_t));
        kernel.lookup[panels](slices + n0 / kPanel * slice_panel_words(chunks) + first * kChunkBits,
                              slice_panel_words(chunks), index + first * rows * kGroups, rows,
                              std::min(kSegment, chunks - first), sums);
        for (int64_t row = 0; row < rows; row += kStripRows) {
          const int64_t strip = std::min(kStripRows, rows - row);
          int32_t* at = counts + (segments > 1 ? row * tile_width : 0);
          kernel.widen[panels](sums + row * tile_width, strip, segment > 0, at, tile_width);
          if (segment + 1 == segments) {
            job.sink(job.context, {m0 + row, strip, n0, columns, at, tile_width});
          }
        }
      }
    }
  });
}

// Bytes of spread bits that a block of rows, and that a slab of columns, may take.
constexpr int64_t kSpreadRows = 1 << 19, kSpreadColumns = 1 << 21;

// The product on a matrix unit: a slab of columns is spread once for all rows.
void matrix_product(const Job& job) {
  const MatrixKernels& kernel = *kernels().matrix;
  const int64_t steps = job.a.rows.bytes / 8, panel_bytes = kPanel * steps * 64;
  const int64_t slab = std::max<int64_t>(1, kSpreadColumns / panel_bytes);  // panels
  const int64_t share = ceil_div(job.a.count, job.parallel.threads);
  int64_t block = std::clamp<int64_t>(kSpreadRows / (steps * 64), kMatrixRows, 512);
  block = ceil_div(std::min(block, share), kMatrixRows) * kMatrixRows;
  const int64_t panels = ceil_div(job.b.count, kPanel);
  // Kept from call to call: fresh memory costs more to touch than to fill.
  thread_local Buffer<int8_t> caller_spread;
  int8_t* spread = caller_spread.reserve(std::min(slab, panels) * panel_bytes);
  for (int64_t first = 0; first < panels; first += slab) {
    const int64_t count = std::min(slab, panels - first);
    constexpr int64_t groups = kPanel / 16;
    parallel_for(job.parallel, count * groups, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t n = first * kPanel + i * 16;
        const int64_t real = std::clamp<int64_t>(job.b.count - n, 0, 16);
        kernel.spread_columns(job.b.rows.from(real > 0 ? n : 0), real,
                              spread + i * steps * kMatrixTile, 64);
      }
    });
    parallel_for(job.parallel, ceil_div(job.a.count, block), 1, [&](int64_t begin, int64_t end) {
      thread_local Buffer<int8_t> rows;
      thread_local Buffer<int32_t> counts;
      rows.reserve(block * steps * 64);
      counts.reserve(block * kPanel);
      for (int64_t m0 = begin * block; m0 < std::min(end * block, job.a.count); m0 += block) {
        const int64_t real = std::min(block, job.a.count - m0);
        kernel.spread_rows(job.a.rows.from(m0), real, ~0ull, rows.data());
        for (int64_t panel = 0; panel < count; ++panel) {
          kernel.multiply(rows.data(), ceil_div(real, kMatrixRows) * kMatrixRows,
                          spread + panel * panel_bytes, steps, counts.data());
          const int64_t n0 = (first + panel) * kPanel;
          job.sink(job.context,
                   {m0, real, n0, std::min(kPanel, job.b.count - n0), counts.data(), kPanel});
        }
      }
    });
  }
}

void run(const Job& job, Algo algo) {
  const Kernels& kernel = kernels();
  if (algo == Algo::matrix && kernel.matrix != nullptr) return matrix_product(job);
  if (algo == Algo::lookup_b && kernel.lookup[0] != nullptr) return lookup_product(job);
  if (algo == Algo::nibble_b && kernel.nibble != nullptr) return tiled_product(job, kernel.nibble);
  tiled_product(job, kernel.popcount);
}

// Runs the product of b and a, and turns its tiles round.
void run_swapped(const Job& job, Algo algo) {
  struct Context {
    Sink sink;
    void* context;
  } outer{job.sink, job.context};
  const Sink sink = [](void* context, const Tile& tile) {
    alignas(64) int32_t turned[kWide * kStripRows];
    for (int64_t j = 0; j < tile.columns; ++j) {
      for (int64_t i = 0; i < tile.rows; ++i) {
        turned[j * kStripRows + i] = tile.counts[i * tile.stride + j];
      }
    }
    const auto* outer = static_cast<const Context*>(context);
    outer->sink(outer->context, {tile.n0, tile.columns, tile.m0, tile.rows, turned, kStripRows});
  };
  run({job.b, job.a, job.bits, sink, &outer, job.parallel}, algo);
}

double nibble_cost(const Costs& cost, double m, double n, int64_t bits) {
  const double blocks = static_cast<double>(ceil_div(bits, 192)) * std::ceil(n / 64);
  return blocks * (m * cost.nibble_row + std::ceil(m / 64) * cost.nibble_spread);
}

double lookup_cost(const Costs& cost, int64_t m, int64_t n, int64_t bits, bool sliced) {
  const int64_t panels = ceil_div(n, kPanel);
  const int64_t wide = cost.lookup_row[1] > 0 ? panels / 2 : 0, narrow = panels - 2 * wide;
  const double blocks = static_cast<double>(ceil_div(m, 1024)), rows = static_cast<double>(m);
  double sum = (sliced ? 0.0 : static_cast<double>(panels) * cost.slice) + rows * cost.index;
  sum += static_cast<double>(narrow) * (rows * cost.lookup_row[0] + blocks * cost.lookup_table[0]);
  sum += static_cast<double>(wide) * (rows * cost.lookup_row[1] + blocks * cost.lookup_table[1]);
  return static_cast<double>(chunk_count(bits)) * sum;
}

double matrix_cost(const Costs& cost, int64_t m, int64_t n, int64_t bits) {
  const double rows = static_cast<double>(ceil_div(m, kMatrixRows) * kMatrixRows);
  const double columns = static_cast<double>(ceil_div(n, kPanel) * kPanel);
  return static_cast<double>(ceil_div(bits, 64)) *
         (rows * columns / kPanel * cost.matrix_row + (rows + columns) * cost.matrix_spread);
}

struct Choice {
  Algo algo;
  double cost;
};

Algo choose(const Operand& a, const Operand& b, int64_t bits) {
  if (kernels().lookup[0] == nullptr) return Algo::popcount;
  const Costs& cost = *kernels().costs;
  const auto m = static_cast<double>(a.count), n = static_cast<double>(b.count);
  const double turn = m * n * cost.transpose;
  constexpr double never = std::numeric_limits<double>::infinity();
  const Choice choices[] = {
      {Algo::popcount,
       m * n *
           (cost.popcount_pair + static_cast<double>(ceil_div(bits, 256)) * cost.popcount_block)},
      {Algo::nibble_b, nibble_cost(cost, m, n, bits)},
      {Algo::nibble_a, nibble_cost(cost, n, m, bits) + turn},
      {Algo::lookup_b, lookup_cost(cost, a.count, b.count, bits, b.slices != nullptr)},
      {Algo::lookup_a, lookup_cost(cost, b.count, a.count, bits, false) + turn},
      {Algo::matrix,
       kernels().matrix != nullptr ? matrix_cost(cost, a.count, b.count, bits) : never},
  };
  return std::min_element(std::begin(choices), std::end(choices),
                          [](const Choice& x, const Choice& y) { return x.cost < y.cost; })
      ->algo;
}

}  // namespace

void slice_operand(const Operand& operand, int64_t chunks, uint64_t* slices,
                   const Parallel& parallel) {
  parallel_for(parallel, ceil_div(operand.count, kPanel), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first = panel * kPanel;
      kernels().slice(operand.rows.from(first), std::min(kPanel, operand.count - first), chunks,
                      slices + panel * slice_panel_words(chunks));
    }
  });
}

void product(const Operand& a, const Operand& b, int64_t bits, Algo algo, Sink sink, void* context,
             const Parallel& parallel) {
  if (a.count <= 0 || b.count <= 0) return;
  if (algo == Algo::automatic) algo = choose(a, b, bits);
  const Job job{a, b, bits, sink, context, parallel};
  switch (algo) {
    case Algo::nibble_a: return run_swapped(job, Algo::nibble_b);
    case Algo::lookup_a: return run_swapped(job, Algo::lookup_b);
    default: return run(job, algo);
  }
}

void product(const Operand& a, const Operand& b, int64_t bits, Algo algo, const Store& store,
             const Parallel& parallel) {
  const Sink sink = [](void* context, const Tile& tile) {
    kernels().store(*static_cast<const Store*>(context), tile);
  };
  product(a, b, bits, algo, sink, const_cast<Store*>(&store), parallel);
}

}  // namespace nnkernels::binary
