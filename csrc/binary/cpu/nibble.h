// The nibble kernel: one shuffle looks up the mismatches of two rows of a with 32 rows of b, for 4
// bits of K. For AVX2 and up; included by one file per instruction set.
#pragma once

#include <immintrin.h>

#include <array>

#include "binary/cpu/engine.h"

namespace nnkernels::binary {
namespace {

// Bytes of K between two flushes: 16 triples of nibbles, each triple counting up to 12 a row.
constexpr int64_t kNibbleBytes = 24;

// kPairTable[x][y]: mismatches of nibble y with the low nibble of x, and 16 times those with its
// high nibble.
struct PairTable {
  alignas(64) uint8_t entries[256][16];
};
constexpr PairTable kPairTable = [] {
  PairTable table{};
  for (int x = 0; x < 256; ++x) {
    for (int y = 0; y < 16; ++y) {
      int entry = 0;
      for (int bit = 0; bit < 4; ++bit) {
        entry += ((x ^ y) >> bit & 1) + 16 * ((x >> 4 ^ y) >> bit & 1);
      }
      table.entries[x][y] = static_cast<uint8_t>(entry);
    }
  }
  return table;
}();

// nibbles[2 * byte + half][row], for kNibbleBytes bytes of kPanel rows from byte `at` on.
inline void spread_panel(const Rows& b, int64_t n, int64_t at, __m256i (*nibbles)[2]) {
  static const uint8_t zeros[8] = {};
  const __m256i low = _mm256_set1_epi8(15);
  for (int64_t k = 0; k < kNibbleBytes; k += 8) {
    for (int half = 0; half < 2; ++half) {
      const uint8_t* rows[32];
      for (int64_t r = 0; r < 32; ++r) {
        rows[r] = at + k < b.bytes && 32 * half + r < n ? b[32 * half + r] + at + k : zeros;
      }
      __m256i bytes[8];
      transpose_bytes(rows, bytes);
      for (int64_t i = 0; i < 8; ++i) {
        nibbles[2 * (k + i)][half] = _mm256_and_si256(bytes[i], low);
        nibbles[2 * (k + i) + 1][half] = _mm256_and_si256(_mm256_srli_epi16(bytes[i], 4), low);
      }
    }
  }
}

// pairs[2 * byte + half]: that nibble of row i and, above it, of row i + 1 (or 0).
inline void pair_rows(const Rows& a, int64_t i, bool second, int64_t at, uint8_t* pairs) {
  uint8_t x[kNibbleBytes] = {}, y[kNibbleBytes] = {};
  const auto count = static_cast<size_t>(a.bytes - at < kNibbleBytes ? a.bytes - at : kNibbleBytes);
  memcpy(x, a[i] + at, count);
  if (second) memcpy(y, a[i + 1] + at, count);
  for (int64_t k = 0; k < kNibbleBytes; ++k) {
    pairs[2 * k] = static_cast<uint8_t>((x[k] & 15) | y[k] << 4);
    pairs[2 * k + 1] = static_cast<uint8_t>(x[k] >> 4 | (y[k] & 0xF0));
  }
}

inline void add_bytes(__m256i counts, bool first, int32_t* out) {
  alignas(32) uint8_t bytes[32];
  _mm256_store_si256(reinterpret_cast<__m256i*>(bytes), counts);
  for (int i = 0; i < 32; i += 8) {
    __m256i sum =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes + i)));
    auto* at = reinterpret_cast<__m256i*>(out + i);
    if (!first) sum = _mm256_add_epi32(sum, _mm256_loadu_si256(at));
    _mm256_storeu_si256(at, sum);
  }
}

// P pairs of rows; out[2 * pair + row][column], kPanel columns.
template <int P>
void nibble_tile(const __m256i (*nibbles)[2], const uint8_t (*pairs)[2 * kNibbleBytes],
                 int64_t rows, bool first, int32_t* out, int64_t stride) {
  const __m256i low_mask = _mm256_set1_epi8(15);
  __m256i low[P][2], high[P][2];
  for (int p = 0; p < P; ++p) {
    low[p][0] = low[p][1] = high[p][0] = high[p][1] = _mm256_setzero_si256();
  }
  for (int64_t k = 0; k < 2 * kNibbleBytes; k += 3) {
    __m256i sum[P][2];
    for (int i = 0; i < 3; ++i) {
      for (int p = 0; p < P; ++p) {
        const __m256i table = _mm256_broadcastsi128_si256(
            _mm_load_si128(reinterpret_cast<const __m128i*>(kPairTable.entries[pairs[p][k + i]])));
        for (int half = 0; half < 2; ++half) {
          const __m256i entry = _mm256_shuffle_epi8(table, nibbles[k + i][half]);
          sum[p][half] = i == 0 ? entry : _mm256_add_epi8(sum[p][half], entry);
        }
      }
    }
    for (int p = 0; p < P; ++p) {
      for (int half = 0; half < 2; ++half) {
        low[p][half] = _mm256_add_epi8(low[p][half], _mm256_and_si256(sum[p][half], low_mask));
        // Also moves the low nibble of odd bytes into even ones; taken out below.
        high[p][half] = _mm256_add_epi16(high[p][half], _mm256_srli_epi16(sum[p][half], 4));
      }
    }
  }
  for (int p = 0; p < P; ++p) {
    for (int half = 0; half < 2; ++half) {
      const __m256i strays = _mm256_slli_epi16(_mm256_srli_epi16(low[p][half], 8), 4);
      const __m256i highs = _mm256_sub_epi16(high[p][half], strays);
      add_bytes(low[p][half], first, out + 2 * p * stride + 32 * half);
      if (2 * p + 1 < rows) add_bytes(highs, first, out + (2 * p + 1) * stride + 32 * half);
    }
  }
}

inline void nibble(const Rows& a, int64_t m, const Rows& b, int64_t n, int32_t* counts,
                   int64_t stride) {
  alignas(64) __m256i nibbles[2 * kNibbleBytes][2];
  for (int64_t at = 0; at < a.bytes; at += kNibbleBytes) {
    spread_panel(b, n, at, nibbles);
    for (int64_t i = 0; i < m; i += 4) {
      uint8_t pairs[2][2 * kNibbleBytes];
      const int64_t rows = m - i;
      pair_rows(a, i, rows > 1, at, pairs[0]);
      int32_t* out = counts + i * stride;
      if (rows > 2) {
        pair_rows(a, i + 2, rows > 3, at, pairs[1]);
        nibble_tile<2>(nibbles, pairs, rows, at == 0, out, stride);
      } else {
        nibble_tile<1>(nibbles, pairs, rows, at == 0, out, stride);
      }
    }
  }
}

}  // namespace
}  // namespace nnkernels::binary
