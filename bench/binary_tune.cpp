// Measures what the inner steps of the binary kernels cost on this machine and prints
// csrc/binary/cpu/costs.h, from which product() chooses its algorithm. Instruction sets that the
// machine lacks keep their entries. Built with the C++ tests:
//   cmake --build build --target binary_tune && build/binary_tune > csrc/binary/cpu/costs.h
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <random>
#include <string>

#include "binary/cpu/amx.h"
#include "binary/cpu/costs.h"
#include "binary/cpu/engine.h"
#include "common/isa.h"

namespace nnkernels::binary {

extern const Kernels scalar_kernels, avx2_kernels, avx512_kernels;

namespace {

double now() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
}

// The fastest of many runs, in nanoseconds: interruptions only ever slow a run.
template <class F>
double best_time(F&& f) {
  f();
  double best = 1e18;
  const double start = now();
  do {
    const double begin = now();
    for (int i = 0; i < 4; ++i) f();
    best = std::min(best, (now() - begin) / 4);
  } while (now() - start < 1e8);
  return best;
}

constexpr int64_t kRows = 1024, kBytes = 512;

struct Data {
  Buffer<uint8_t> bytes{kRows * kBytes};
  Buffer<int32_t> counts{kRows * kRows};
  Data() {
    std::mt19937 random(1);
    for (int64_t i = 0; i < kRows * kBytes; ++i) bytes.data()[i] = static_cast<uint8_t>(random());
  }
  Rows rows(int64_t bytes_used) { return {bytes.data(), kBytes, bytes_used}; }
};

void measure_popcount(const Kernels& kernel, Data& data, Costs& costs) {
  const auto run = [&](int64_t bytes) {
    return best_time([&] {
             kernel.popcount(data.rows(bytes), 64, data.rows(bytes), 64, data.counts.data(), 64);
           }) /
           (64.0 * 64.0);
  };
  const double low = run(64), high = run(kBytes);
  costs.popcount_block = (high - low) / (kBytes / 32.0 - 2);
  costs.popcount_pair = std::max(0.1, low - 2 * costs.popcount_block);
}

void measure_nibble(const Kernels& kernel, Data& data, Costs& costs) {
  if (kernel.nibble == nullptr) return;
  const auto run = [&](int64_t rows) {
    return best_time([&] {
             kernel.nibble(data.rows(480), rows, data.rows(480), 64, data.counts.data(), 64);
           }) /
           20;
  };
  const double few = run(4), many = run(64);
  costs.nibble_row = (many - few) / 60;
  costs.nibble_spread = std::max(1.0, few - 4 * costs.nibble_row);
}

void measure_lookup(const Kernels& kernel, Data& data, Costs& costs) {
  if (kernel.slice == nullptr) return;
  const int64_t chunks = chunk_count(kBytes * 8);
  Buffer<uint64_t> slices(2 * slice_panel_words(chunks));
  Buffer<uint8_t> index(chunks * kRows * kGroups);
  Buffer<uint16_t> sums(kRows * 2 * kPanel);
  const auto per_chunk = [chunks](double time) { return time / static_cast<double>(chunks); };
  costs.slice =
      per_chunk(best_time([&] {
        kernel.slice(data.rows(kBytes), 64, chunks, slices.data());
        kernel.slice(data.rows(kBytes), 64, chunks, slices.data() + slice_panel_words(chunks));
      })) /
      2;
  costs.index =
      per_chunk(best_time([&] { kernel.index(data.rows(kBytes), kRows, chunks, index.data()); })) /
      kRows;
  for (int wide = 0; wide < 2; ++wide) {
    if (kernel.lookup[wide] == nullptr) continue;
    const auto run = [&](int64_t rows) {
      return per_chunk(best_time([&] {
        memset(sums.data(), 0, kRows * 2 * kPanel * sizeof(uint16_t));
        kernel.lookup[wide](slices.data(), slice_panel_words(chunks), index.data(), rows, chunks,
                            sums.data());
      }));
    };
    const double few = run(64), many = run(kRows);
    costs.lookup_row[wide] = (many - few) / (kRows - 64);
    costs.lookup_table[wide] = std::max(1.0, few - 64 * costs.lookup_row[wide]);
  }
}

void measure_matrix(const Kernels& kernel, Data& data, Costs& costs) {
  if (kernel.matrix == nullptr) return;
  const int64_t rows = 256, steps = kBytes / 8;
  Buffer<int8_t> left(rows * steps * 64), right(kPanel * steps * 64);
  memset(right.data(), 1, kPanel * steps * 64);
  costs.matrix_spread =
      best_time([&] { kernel.matrix->spread_rows(data.rows(kBytes), rows, ~0ull, left.data()); }) /
      (rows * steps);
  costs.matrix_row =
      best_time([&] {
        kernel.matrix->multiply(left.data(), rows, right.data(), steps, data.counts.data());
      }) /
      (rows * steps);
}

// Of turning a tile round, as product() does for the algorithms whose name ends in _a.
void measure_transpose(Data& data, Costs& costs) {
  const Operand operand{data.rows(32), kRows};
  const auto run = [&](Algo algo) {
    const Sink sink = [](void*, const Tile&) {};
    return best_time([&] { product(operand, operand, 256, algo, sink, nullptr, {}); });
  };
  costs.transpose = std::max(0.05, (run(Algo::nibble_a) - run(Algo::nibble_b)) / (kRows * kRows));
}

Costs measure(const Kernels& kernel) {
  Data data;
  Costs costs = {};
  measure_popcount(kernel, data, costs);
  measure_nibble(kernel, data, costs);
  measure_lookup(kernel, data, costs);
  measure_matrix(kernel, data, costs);
  costs.transpose = 0.3;
  if (kernel.nibble != nullptr) measure_transpose(data, costs);
  return costs;
}

void print(const char* name, const Costs& c) {
  std::printf(
      "inline constexpr Costs %s = {\n"
      "    .popcount_pair = %.2f,\n    .popcount_block = %.2f,\n"
      "    .nibble_row = %.1f,\n    .nibble_spread = %.1f,\n"
      "    .lookup_row = {%.1f, %.1f},\n    .lookup_table = {%.0f, %.0f},\n"
      "    .slice = %.0f,\n    .index = %.2f,\n    .transpose = %.2f,\n"
      "    .matrix_row = %.2f,\n    .matrix_spread = %.2f,\n};\n",
      name, c.popcount_pair, c.popcount_block, c.nibble_row, c.nibble_spread, c.lookup_row[0],
      c.lookup_row[1], c.lookup_table[0], c.lookup_table[1], c.slice, c.index, c.transpose,
      c.matrix_row, c.matrix_spread);
}

}  // namespace
}  // namespace nnkernels::binary

int main() {
  using namespace nnkernels;
  using namespace nnkernels::binary;
  const Isa isa = detected_isa();
  const bool vpopcnt = isa == Isa::avx512 && kernels().popcount != avx512_kernels.popcount;
  std::printf(
      "// Measured costs of the kernels' inner steps, in nanoseconds. Made by "
      "bench/binary_tune.cpp,\n"
      "// do not edit. Only their ratios matter: product() takes the cheapest algorithm for a "
      "shape.\n"
      "#pragma once\n\nnamespace nnkernels::binary {\n\n"
      "struct Costs {\n"
      "  double popcount_pair, popcount_block;   // a pair of rows, and 256 bits of it\n"
      "  double nibble_row, nibble_spread;       // 192 bits: one row with 64, and preparing the "
      "64\n"
      "  double lookup_row[2], lookup_table[2];  // 120 bits: a row with 64 or 128, their table\n"
      "  double slice, index;                    // 120 bits: slicing 64 rows, indexing one\n"
      "  double transpose;                       // one element of the result\n"
      "  double matrix_row, matrix_spread;       // 64 bits: a row with 64, and making bytes of a "
      "row\n"
      "};\n\n");
  print("kScalarCosts", measure(scalar_kernels));
  print("kAvx2Costs", isa >= Isa::avx2 ? measure(avx2_kernels) : kAvx2Costs);
  print("kAvx512Costs", isa >= Isa::avx512 ? measure(avx512_kernels) : kAvx512Costs);
  print("kVpopcntCosts", vpopcnt ? measure(kernels()) : kVpopcntCosts);
  std::printf("\n}  // namespace nnkernels::binary\n");
}
