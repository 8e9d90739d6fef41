// The lookup (packed four-Russians) kernels, for AVX2 and up. Included by one file per instruction
// set.
//
// A table entry is one vector. Its byte 4 * i + b counts for two rows of the table side: in the low
// nibble row b * bytes/4 + i, in the high nibble the row `bytes` further. Three entries sum to at
// most 15 in each nibble; the sums of a chunk's 8 triples to at most 120 in each byte. The order of
// the bytes is the one that leaves rows in order when the four bytes of every 32 bits are split.
#pragma once

#include <immintrin.h>

#include "binary/cpu/transpose.h"

namespace nnkernels::binary {
namespace {

template <int bytes>
struct Vectors {
  typedef uint8_t Byte __attribute__((vector_size(bytes)));
  typedef uint16_t Half __attribute__((vector_size(bytes)));
  typedef uint32_t Word __attribute__((vector_size(bytes)));
};

template <class V>
V load(const void* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
void save(void* p, V v) {
  memcpy(p, &v, sizeof v);
}

// What flipping a pattern bit from 0 to 1 adds to an entry: 1 - 2 * bit in each nibble, for slice
// words `first` (rows 0 to 63) and, for the wide table, `second` (rows 64 to 127).
template <int bytes>
typename Vectors<bytes>::Byte flip(uint64_t first, uint64_t second) {
  if constexpr (bytes == 32) {
    const __m256i select = _mm256_set1_epi64x(0x0202020201010101);
    const __m256i shift = _mm256_set_epi64x(6, 4, 2, 0);
    const __m256i bit = _mm256_sllv_epi64(select, shift);
    const __m256i low = _mm256_set1_epi32(static_cast<int>(first));
    const __m256i high = _mm256_set1_epi32(static_cast<int>(first >> 32));
    const __m256i low_set = _mm256_cmpeq_epi8(_mm256_and_si256(low, bit), bit);
    const __m256i high_set = _mm256_cmpeq_epi8(_mm256_and_si256(high, bit), bit);
    const __m256i twos = _mm256_and_si256(low_set, _mm256_set1_epi8(2));
    const __m256i highs = _mm256_and_si256(high_set, _mm256_set1_epi8(32));
    const __m256i all = _mm256_set1_epi8(17);
    (void)second;
    return (typename Vectors<bytes>::Byte)_mm256_sub_epi8(_mm256_sub_epi8(all, twos), highs);
  } else {
#if defined(__AVX512BW__)
    // Byte 4 * i + b tests bit 16 * b + i: byte 2 * b + i / 8 of the word, bit i % 8.
    const __m512i even = _mm512_set1_epi32(0x06040200);
    const __m512i place =
        _mm512_mask_add_epi8(even, 0xFFFFFFFF00000000u, even, _mm512_set1_epi8(1));
    const __m512i bit =
        _mm512_sllv_epi32(_mm512_set1_epi32(0x01010101),
                          _mm512_set_epi32(7, 6, 5, 4, 3, 2, 1, 0, 7, 6, 5, 4, 3, 2, 1, 0));
    const __m512i low = _mm512_shuffle_epi8(_mm512_set1_epi64(static_cast<int64_t>(first)), place);
    const __m512i high =
        _mm512_shuffle_epi8(_mm512_set1_epi64(static_cast<int64_t>(second)), place);
    const __m512i all = _mm512_set1_epi8(17);
    const __m512i less =
        _mm512_mask_sub_epi8(all, _mm512_test_epi8_mask(low, bit), all, _mm512_set1_epi8(2));
    return (typename Vectors<bytes>::Byte)_mm512_mask_sub_epi8(
        less, _mm512_test_epi8_mask(high, bit), less, _mm512_set1_epi8(32));
#endif
  }
}

// table[group][pattern]: mismatches of the group's 5 bits of every row with the pattern.
template <int bytes>
void build_table(const uint64_t* slices, int64_t panel_stride, uint8_t* table) {
  using Byte = typename Vectors<bytes>::Byte;
  for (int64_t group = 0; group < kGroups; ++group, table += kPatterns * bytes) {
    const uint64_t* words = slices + group * kGroupBits;
    Byte flips[kGroupBits], entries[8];
    // With pattern 0 every set bit is a mismatch: (1 - flip) / 2 in each nibble, summed over 5.
    Byte sum = {};
    for (int64_t k = 0; k < kGroupBits; ++k) {
      flips[k] = flip<bytes>(words[k], bytes == 64 ? words[k + panel_stride] : 0);
      sum += flips[k];
    }
    const Byte twice = (Byte{} + uint8_t(5 * 17)) - sum;
    // Both nibbles are even: the shift moves no bit between them or between bytes.
    entries[0] = (Byte)((typename Vectors<bytes>::Half)twice >> 1);
    for (int k = 0; k < 3; ++k) {
      for (int p = 0; p < 1 << k; ++p) entries[p + (1 << k)] = entries[p] + flips[k];
    }
    const Byte offsets[4] = {Byte{}, flips[3], flips[4], flips[3] + flips[4]};
    for (int half = 0; half < 4; ++half) {
      for (int p = 0; p < 8; ++p) save(table + (8 * half + p) * bytes, entries[p] + offsets[half]);
    }
  }
}

template <int bytes>
void add_chunk(const uint8_t* table, const uint8_t* index, int64_t rows, uint16_t* sums) {
  using Byte = typename Vectors<bytes>::Byte;
  using Half = typename Vectors<bytes>::Half;
  constexpr int scale = bytes / 8;  // index bytes are 8 * pattern
  constexpr int step = kPatterns * bytes;
  for (int64_t row = 0; row < rows; ++row, index += kGroups, sums += 2 * bytes) {
    Byte low = {};
    Half high = {};
#pragma GCC unroll 8
    for (int triple = 0; triple < kGroups / 3; ++triple) {
      const uint8_t* groups = table + 3 * triple * step;
      const Byte sum = load<Byte>(groups + index[3 * triple] * scale) +
                       load<Byte>(groups + step + index[3 * triple + 1] * scale) +
                       load<Byte>(groups + 2 * step + index[3 * triple + 2] * scale);
      low += sum & 15;
      // Also moves the low nibble of the odd bytes into the even ones; taken out below.
      high += (Half)sum >> 4;
    }
    const Half lows = (Half)low;
    const Half highs = high - ((lows >> 8) << 4);
    save(sums, load<Half>(sums) + (lows & 255));
    save(sums + bytes / 2, load<Half>(sums + bytes / 2) + (lows >> 8));
    save(sums + bytes, load<Half>(sums + bytes) + (highs & 255));
    save(sums + 3 * bytes / 2, load<Half>(sums + 3 * bytes / 2) + (highs >> 8));
  }
}

template <int bytes>
void lookup(const uint64_t* slices, int64_t panel_stride, const uint8_t* index, int64_t rows,
            int64_t chunks, uint16_t* sums) {
  alignas(64) uint8_t table[kGroups * kPatterns * bytes];
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    build_table<bytes>(slices + chunk * kChunkBits, panel_stride, table);
    add_chunk<bytes>(table, index + chunk * rows * kGroups, rows, sums);
  }
}

// The 16-bit sums of even and odd bytes, split into 32-bit words, are in the order of the rows.
template <int bytes>
void widen(const uint16_t* sums, int64_t rows, bool add, int32_t* counts, int64_t stride) {
  using Word = typename Vectors<bytes>::Word;
  constexpr int lanes = bytes / 4;
  for (int64_t row = 0; row < rows; ++row, sums += 2 * bytes, counts += stride) {
    for (int half = 0; half < 2; ++half) {
      const Word even = load<Word>(sums + half * bytes);
      const Word odd = load<Word>(sums + half * bytes + bytes / 2);
      const Word parts[4] = {even & 0xFFFF, odd & 0xFFFF, even >> 16, odd >> 16};
      for (int b = 0; b < 4; ++b) {
        int32_t* at = counts + (4 * half + b) * lanes;
        save(at, add ? load<Word>(at) + parts[b] : parts[b]);
      }
    }
  }
}

// ---- slicing: bits of 64 rows, one word per bit
inline void slice(const Rows& rows, int64_t n, int64_t chunks, uint64_t* slices) {
  static const uint8_t zeros[8] = {};
  const int64_t bits = chunks * kChunkBits;
  for (int64_t k = 0; k < bits; k += 64) {
    uint32_t masks[64][2];
    for (int half = 0; half < 2; ++half) {
      const uint8_t* pointers[32];
      for (int r = 0; r < 32; ++r) {
        const int64_t row = 32 * half + r;
        pointers[r] = k < rows.bytes * 8 && row < n ? rows[row] + k / 8 : zeros;
      }
      __m256i bytes[8];
      transpose_bytes(pointers, bytes);
      for (int i = 0; i < 8; ++i) {
        for (int bit = 7; bit >= 0; --bit) {
          masks[8 * i + bit][half] = static_cast<uint32_t>(_mm256_movemask_epi8(bytes[i]));
          bytes[i] = _mm256_add_epi8(bytes[i], bytes[i]);
        }
      }
    }
    const int64_t count = bits - k < 64 ? bits - k : 64;
    memcpy(slices + k, masks, static_cast<size_t>(count) * sizeof(uint64_t));
  }
}

// ---- indexing: 15 bytes of a row to 24 groups of 5 bits
inline void index_chunk(__m128i bytes, uint8_t* index) {
  // A group of 8 indices comes from 5 bytes; each 16-bit lane takes the two bytes that hold it.
  const __m128i place = _mm_setr_epi8(0, 1, 0, 1, 1, 2, 1, 2, 2, 3, 3, 4, 3, 4, 4, 5);
  // Moves the group, at bit 5 * i % 8 of its lane, to bits 11 to 15.
  const __m128i move =
      _mm_setr_epi16(1 << 11, 1 << 6, 1 << 9, 1 << 4, 1 << 7, 1 << 10, 1 << 5, 1 << 8);
  __m128i lanes[3];
  for (int i = 0; i < 3; ++i) {
    const __m128i five =
        _mm_shuffle_epi8(bytes, _mm_add_epi8(place, _mm_set1_epi8(static_cast<char>(5 * i))));
    lanes[i] = _mm_srli_epi16(_mm_mullo_epi16(five, move), 8);
    lanes[i] = _mm_and_si128(lanes[i], _mm_set1_epi16(0xF8));
  }
  _mm_storeu_si128(reinterpret_cast<__m128i*>(index), _mm_packus_epi16(lanes[0], lanes[1]));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(index + 16), _mm_packus_epi16(lanes[2], lanes[2]));
}

inline void index_rows(const Rows& rows, int64_t n, int64_t chunks, uint8_t* index) {
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t at = chunk * kChunkBits / 8, left = rows.bytes - at;
    if (left >= 16) {
      for (int64_t row = 0; row < n; ++row, index += kGroups) {
        index_chunk(_mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + at)), index);
      }
      continue;
    }
    // The end of a row, by the words that hold it, moved down.
    for (int64_t row = 0; row < n; ++row, index += kGroups) {
      uint64_t words[2] = {};
      const uint8_t* from = rows[row] + at;
      if (left >= 8) {
        memcpy(words, from, 8);
        memcpy(words + 1, from + left - 8, 8);
        words[1] = left == 8 ? 0 : words[1] >> (8 * (16 - left));
      } else if (left > 0) {
        memcpy(words, from + left - 8, 8);
        words[0] >>= 8 * (8 - left);
      }
      index_chunk(_mm_loadu_si128(reinterpret_cast<const __m128i*>(words)), index);
    }
  }
}

}  // namespace
}  // namespace nnkernels::binary
