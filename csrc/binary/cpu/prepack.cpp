#include "binary/cpu/prepack.h"

namespace nnkernels::binary {
namespace {

constexpr char kMagic[8] = {'n', 'n', 'k', 'b', 'i', 'n', 'c', 'p'};
constexpr int32_t kVersion = 1;

int64_t rows_bytes(int64_t N, int64_t K) { return N * row_words(K) * 4; }
int64_t slices_bytes(int64_t N, int64_t K) { return slice_words(N, chunk_count(K)) * 8; }

// Slices of any instruction set; the kernels of AVX2 and up do the same faster.
void slice_plain(const Operand& operand, int64_t chunks, uint64_t* slices) {
  memset(slices, 0, static_cast<size_t>(slice_words(operand.count, chunks)) * sizeof(uint64_t));
  for (int64_t row = 0; row < operand.count; ++row) {
    uint64_t* panel = slices + row / kPanel * slice_panel_words(chunks);
    for (int64_t k = 0; k < operand.rows.bytes * 8 && k < chunks * kChunkBits; ++k) {
      panel[k] |= static_cast<uint64_t>(operand.rows[row][k / 8] >> (k % 8) & 1) << (row % kPanel);
    }
  }
}

}  // namespace

int64_t packed_size(int64_t N, int64_t K) {
  return static_cast<int64_t>(sizeof(PackedHeader)) + rows_bytes(N, K) + slices_bytes(N, K);
}

Operand packed_operand(const uint8_t* packed, int64_t N, int64_t K) {
  const uint8_t* rows = packed + sizeof(PackedHeader);
  const int64_t pitch = row_words(K) * 4;
  return {{rows, pitch, pitch}, N, reinterpret_cast<const uint64_t*>(rows + rows_bytes(N, K))};
}

void prepack(const Bits& b, int64_t N, int64_t K, uint8_t* packed, const Parallel& parallel) {
  PackedHeader header{};
  memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kVersion;
  header.N = N;
  header.K = K;
  memcpy(packed, &header, sizeof header);
  const Rows rows = rows_of(b, K);
  for (int64_t n = 0; n < N; ++n) {
    memcpy(packed + sizeof header + n * rows.bytes, rows[n], static_cast<size_t>(rows.bytes));
  }
  const Operand operand = packed_operand(packed, N, K);
  auto* slices = const_cast<uint64_t*>(operand.slices);
  if (kernels().slice != nullptr) {
    slice_operand(operand, chunk_count(K), slices, parallel);
  } else {
    slice_plain(operand, chunk_count(K), slices);
  }
}

PackedInfo packed_info(const uint8_t* packed, int64_t size) {
  PackedHeader header;
  if (size < static_cast<int64_t>(sizeof header)) return {};
  memcpy(&header, packed, sizeof header);
  const bool known = memcmp(header.magic, kMagic, sizeof kMagic) == 0 &&
                     header.version == kVersion && header.N >= 0 && header.K > 0;
  // The bounds keep packed_size from overflow.
  if (!known || header.N > size || header.K > size * 8) return {};
  if (packed_size(header.N, header.K) != size) return {};
  return {true, header.N, header.K};
}

}  // namespace nnkernels::binary
