// Cumulative frequencies of rows: a symbol's interval when encoding, the search for the symbol when
// decoding; for one instruction set.
#pragma once

#include "pc/cpu/codec_rows.h"

namespace nnkernels::pc {
namespace {

constexpr int kColumnVectors = static_cast<int>(kColumns) / F::lanes;
// Rows that take turns, so that the sums of one hide the latency of the others'.
constexpr int kTurns = kVecBytes == 16 ? 2 : 8 / kColumnVectors;

// How many of 16 frequencies are at most `slot`, for frequencies that grow.
NNK_VEC int64_t count_not_above(const Words (&f)[kColumnVectors], uint32_t slot) {
  int64_t count = 0;
#if defined(__AVX512F__)
  const auto all = reinterpret_cast<__m512i>(f[0]);
  count =
      __builtin_popcount(_mm512_cmple_epi32_mask(all, _mm512_set1_epi32(static_cast<int>(slot))));
#elif defined(__AVX2__)
  const __m256i limit = _mm256_set1_epi32(static_cast<int>(slot));
  const __m256i low = _mm256_cmpgt_epi32(reinterpret_cast<__m256i>(f[0]), limit);
  const __m256i high = _mm256_cmpgt_epi32(reinterpret_cast<__m256i>(f[1]), limit);
  const int above = _mm256_movemask_epi8(_mm256_packs_epi32(low, high));
  count = 16 - __builtin_popcount(static_cast<unsigned>(above)) / 2;
#else
  for (int c = 0; c < kColumnVectors; ++c) {
    for (int i = 0; i < F::lanes; ++i) count += f[c][i] <= static_cast<int32_t>(slot);
  }
#endif
  return count;
}

// The search of one row: [low, high) is where the symbol lies, from `value` on.
struct Search {
  float ratio, total;
  uint32_t slot;
  int64_t value = 0;
  uint32_t low = 0, high = 0;

  // Looks at columns base + stride, base + 2 stride, .. of 16 sums, at most column K, the whole.
  // `value` becomes the last column at most `slot`, or stays.
  template <int stride>
  NNK_VEC void narrow(const Reg (&sums)[kColumnVectors], int64_t base, int64_t K, uint32_t whole) {
    Words f[kColumnVectors];
    alignas(64) int32_t found[kColumns];
    const Words steps = step_numbers();
#pragma GCC unroll 4
    for (int c = 0; c < kColumnVectors; ++c) {
      Reg share = F::max(F::min(sums[c] * F::set(ratio), F::set(total)), F::zero());
      const Words columns = static_cast<int32_t>(base) + stride * (steps + (c * F::lanes + 1));
      f[c] = __builtin_convertvector(share, Words) + columns;
      memcpy(found + c * F::lanes, &f[c], sizeof f[c]);
    }
    // The last column before K that is among the sixteen.
    const int64_t last = (K - 1 - base) / stride;
    const int64_t count = std::min(count_not_above(f, slot), std::min(last, kColumns));
    if (count > 0) {
      value = base + count * stride;
      low = static_cast<uint32_t>(found[count - 1]);
    }
    high = count < last && count < kColumns ? static_cast<uint32_t>(found[count]) : whole;
  }

 private:
  static NNK_VEC Words step_numbers() {
    Words numbers;
    for (int i = 0; i < F::lanes; ++i) numbers[i] = i;
    return numbers;
  }
};

// sums[g] = sum_a alpha[g, a] table[a, first[g] ..], for rows that take turns.
template <int turns>
NNK_VEC void sum_columns(const float* alpha, int64_t width, const float* table, int64_t row,
                         int64_t h, const int64_t* first, Reg (&sums)[turns][kColumnVectors]) {
  const float* from[turns];
#pragma GCC unroll 8
  for (int g = 0; g < turns; ++g) {
    from[g] = table + first[g];
#pragma GCC unroll 4
    for (int c = 0; c < kColumnVectors; ++c) sums[g][c] = F::zero();
  }
  for (int64_t a = 0; a < h; ++a) {
#pragma GCC unroll 8
    for (int g = 0; g < turns; ++g) {
      const Reg x = F::set(alpha[g * width + a]);
#pragma GCC unroll 4
      for (int c = 0; c < kColumnVectors; ++c) {
        sums[g][c] = F::fma(x, F::load(from[g] + a * row + c * F::lanes), sums[g][c]);
      }
    }
  }
}

// The first of 16 columns after `value` that lie within 1 .. last.
NNK_VEC int64_t window(int64_t value, int64_t last) { return std::min(value, last - kColumns); }

NNK_VEC bool pop(LaneState& lane, const Search& search, int precision) {
  if (search.low > search.slot || search.slot >= search.high) return false;
  lane.state = rans_pop(lane.state, search.low, search.high - search.low, precision);
  if (lane.state < kFirstState) {
    if (lane.next == lane.end) return false;
    lane.state = lane.state << 32 | static_cast<uint32_t>(*lane.next++);
  }
  return true;
}

// Rows [first, first + turns); false where one of them cannot be.
template <int turns, int search>
NNK_VEC bool decode_turns(DecodeStep& step, const float* coarse, int64_t width, int64_t first) {
  constexpr int kTop = search == 1 ? 1 : search == 2 ? 16 : 256;
  const int64_t K = step.K;
  const int precision = step.precision;
  const uint32_t whole = uint32_t{1} << precision;
  const float total = shared_total(precision, K);
  const float* alpha = step.alpha + first * width;
  Search searches[turns];
  bool good = true;
#pragma GCC unroll 8
  for (int g = 0; g < turns; ++g) {
    step.ahead.fetch(0);
    step.ahead.fetch(1);
    const float* top = coarse + (first + g) * kColumns;
    Reg sums[kColumnVectors];
#pragma GCC unroll 4
    for (int c = 0; c < kColumnVectors; ++c) sums[c] = F::load(top + c * F::lanes);
    const float sum = top[kColumns - 1];
    good &= is_valid_sum(sum);
    searches[g] = {.ratio = total / sum,
                   .total = total,
                   .slot = rans_slot(step.lanes[first + g].state, precision)};
    searches[g].template narrow<kTop>(sums, 0, K, whole);
  }
  if (!good) return false;
  int64_t at[turns];
  Reg sums[turns][kColumnVectors];
  if constexpr (search == 3) {
#pragma GCC unroll 8
    for (int g = 0; g < turns; ++g) at[g] = window(searches[g].value / 16, step.groups) + 1;
    sum_columns<turns>(alpha, width, step.middle, step.groups + 1, step.h, at, sums);
#pragma GCC unroll 8
    for (int g = 0; g < turns; ++g) {
      searches[g].template narrow<16>(sums[g], 16 * (at[g] - 1), K, whole);
    }
  }
  if constexpr (search > 1) {
#pragma GCC unroll 8
    for (int g = 0; g < turns; ++g) at[g] = window(searches[g].value, K) + 1;
    sum_columns<turns>(alpha, width, step.C, K + 1, step.h, at, sums);
#pragma GCC unroll 8
    for (int g = 0; g < turns; ++g) searches[g].template narrow<1>(sums[g], at[g] - 1, K, whole);
  }
#pragma GCC unroll 8
  for (int g = 0; g < turns; ++g) {
    step.ahead.fetch(2);
    step.symbols[first + g] = static_cast<uint16_t>(searches[g].value);
    good &= pop(step.lanes[first + g], searches[g], precision);
  }
  return good;
}

template <int vectors, int search>
NNK_VEC int64_t search_rows(DecodeStep& step, const float* coarse, int64_t width) {
  int64_t r = 0;
  for (; r + kTurns <= step.rows; r += kTurns) {
    if (!decode_turns<kTurns, search>(step, coarse, width, r)) return r;
  }
  for (; r < step.rows; ++r) {
    if (!decode_turns<1, search>(step, coarse, width, r)) return r;
  }
  return -1;
}

template <int vectors>
int64_t decode_rows(DecodeStep& step, int64_t row, CodecScratch& scratch) {
  const int64_t width = row_width<vectors>(row);
  float* coarse = scratch.rows.get(step.rows * kColumns);
  codec_columns<kColumnVectors>(step.alpha, width, step.top, kColumns, step.h, step.rows, coarse,
                                kColumns);
  switch (search_steps(step.K)) {
    case 1: return search_rows<vectors, 1>(step, coarse, width);
    case 2: return search_rows<vectors, 2>(step, coarse, width);
    default: return search_rows<vectors, 3>(step, coarse, width);
  }
}

// Rows [first, first + turns); false where a sum is not a model's.
template <int turns>
NNK_VEC bool measure_turns(MeasureStep& step, int64_t width, int64_t first) {
  const int64_t K = step.K;
  const float total = shared_total(step.precision, K);
  const float* alpha = step.alpha + first * width;
  float low[turns], high[turns], sum[turns];
  const float* from[turns];
#pragma GCC unroll 4
  for (int g = 0; g < turns; ++g) {
    step.ahead.fetch(0);
    step.ahead.fetch(1);
    from[g] = step.C + step.symbols[first + g];
    low[g] = high[g] = sum[g] = 0;
  }
  for (int64_t a = 0; a < step.h; ++a) {
    const float last = step.C[a * (K + 1) + K];
#pragma GCC unroll 4
    for (int g = 0; g < turns; ++g) {
      const float x = alpha[g * width + a];
      const float* column = from[g] + a * (K + 1);
      low[g] = std::fma(x, column[0], low[g]);
      high[g] = std::fma(x, column[1], high[g]);
      sum[g] = std::fma(x, last, sum[g]);
    }
  }
  bool good = true;
#pragma GCC unroll 4
  for (int g = 0; g < turns; ++g) {
    step.ahead.fetch(2);
    good &= is_valid_sum(sum[g]);
    const float ratio = total / sum[g];
    const uint32_t v = step.symbols[first + g];
    const uint32_t from_f = frequency_below(low[g], ratio, total, v);
    const uint32_t to_f =
        v + 1 == K ? uint32_t{1} << step.precision : frequency_below(high[g], ratio, total, v + 1);
    good &= from_f < to_f;
    const int64_t at = (first + g) * step.row;
    step.low[at] = static_cast<int32_t>(from_f);
    step.width[at] = static_cast<int32_t>(to_f - from_f);
  }
  return good;
}

template <int vectors>
int64_t measure_rows(MeasureStep& step, int64_t row) {
  constexpr int turns = 4;
  const int64_t width = row_width<vectors>(row);
  int64_t r = 0;
  for (; r + turns <= step.rows; r += turns) {
    if (!measure_turns<turns>(step, width, r)) return r;
  }
  for (; r < step.rows; ++r) {
    if (!measure_turns<1>(step, width, r)) return r;
  }
  return -1;
}

}  // namespace
}  // namespace nnkernels::pc
