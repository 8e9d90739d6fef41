// Packing: any dtype and strides to fp32 words, reduced to m bits, with the ranges of what was
// read.
#pragma once

#include <initializer_list>

#include "lmul/cpu/engine.h"

namespace nnkernels::lmul {
namespace {

// Gathers a Range from vectors of reduced words.
struct RangeOf {
  using Int = Vec::Int;
  Int least = Vec::set(0xFFFFFFFFu);  // of magnitudes, zeros included
  Int low = Vec::set(0xFFFFFFFFu);    // of magnitudes - 1: zeros wrap to the top
  Int high = Vec::set(0u);

  NNK_VEC void add(Int x) {
    const Int magnitude = Vec::bit_and(x, Vec::set(kMagnitudeMask));
    least = Vec::min(least, magnitude);
    low = Vec::min(low, Vec::sub(magnitude, Vec::set(1u)));
    high = Vec::max(high, magnitude);
  }

  Range result() const {
    uint32_t leasts[Vec::lanes], lows[Vec::lanes], highs[Vec::lanes];
    Vec::store(leasts, least);
    Vec::store(lows, low);
    Vec::store(highs, high);
    Range range;
    for (int i = 0; i < Vec::lanes; ++i) {
      if (highs[i] == 0 && leasts[i] != 0) continue;
      range.zero |= leasts[i] == 0;
      range.nonfinite |= highs[i] >= kInfinity;
      if (highs[i] == 0) continue;
      const auto low_exponent = static_cast<int16_t>((lows[i] + 1) >> 23);
      const auto high_exponent = static_cast<int16_t>(highs[i] >> 23);
      if (low_exponent < range.low) range.low = low_exponent;
      if (high_exponent > range.high) range.high = high_exponent;
    }
    return range;
  }
};

// The same for vectors of bfloat16 pairs; of magnitudes that may be subnormal, which count as zero.
struct PairRangeOf {
  using Int = Vec::Int;
  Int least = Vec::set(0xFFFFFFFFu);
  Int low = Vec::set(0xFFFFFFFFu);  // of magnitudes less the smallest: zeros wrap to the top
  Int high = Vec::set(0u);

  NNK_VEC void add(Int magnitude) {
    least = Vec::min16(least, magnitude);
    low = Vec::min16(low, Vec::sub16(magnitude, Vec::set(0x00800080u)));
    high = Vec::max16(high, magnitude);
  }

  // What RangeOf knows, with both halves of each pair added as words.
  RangeOf words() const {
    const Int smallest = Vec::set(kSmallest);
    RangeOf range;
    for (const int half : {0, 16}) {
      const auto word = [&](Int x) {
        return Vec::bit_and(Vec::shift_left(x, half), Vec::set(0xFFFF0000u));
      };
      const auto flush = [&](Int x) { return Vec::where(Vec::equal(Vec::max(x, smallest), x), x); };
      range.least = Vec::min(range.least, flush(word(least)));
      range.high = Vec::max(range.high, flush(word(high)));
      // Zeros and subnormals, wrapped to the top, stay there.
      const Int low_word = word(low);
      const Int less_one = Vec::add(low_word, Vec::set(kSmallest - 1u));
      range.low = Vec::min(range.low, Vec::max(less_one, low_word));
    }
    return range;
  }
};

constexpr int mantissa_bits_of(DType dtype) {
  switch (dtype) {
    case DType::bfloat16: return 7;
    case DType::float16: return 10;
    case DType::float8_e4m3fn: return 3;
    case DType::float8_e5m2: return 2;
    default: return 23;
  }
}

// What happens to the words of a dtype: keep m bits, take the power of two, make subnormals and
// zeros +0.
template <DType dtype>
class Reduce {
 public:
  using Int = Vec::Int;

  NNK_VEC Reduce(int mantissa_bits, Round round, bool power, bool flush)
      : dropped_(mantissa_bits < mantissa_bits_of(dtype) ? 23 - mantissa_bits : 0),
        nearest_(round == Round::rne),
        power_(power),
        flush_(flush) {}

  NNK_VEC Int operator()(Int x) const {
    const Int magnitude = Vec::bit_and(x, Vec::set(kMagnitudeMask));
    if (dropped_ > 0) {
      const Int mask = Vec::set((1u << dropped_) - 1u);
      Int r = x;
      if (nearest_) {
        const Int odd = Vec::bit_and(Vec::shift_right(x, dropped_), Vec::set(1u));
        r = Vec::add(x, Vec::add(odd, Vec::set(((1u << dropped_) - 1u) >> 1)));
      }
      r = Vec::sub(r, Vec::bit_and(r, mask));
      x = Vec::select(Vec::greater(magnitude, Vec::set(kInfinity)), x, r);
    }
    if (power_) {
      const Int power = Vec::bit_and(x, Vec::set(kPowerMask));
      x = Vec::select(Vec::greater(magnitude, Vec::set(kInfinity)), x, power);
    }
    if (flush_) {
      const Int reduced = Vec::bit_and(x, Vec::set(kMagnitudeMask));
      x = Vec::where(Vec::greater(reduced, Vec::set(kSmallest - 1u)), x);
    }
    return x;
  }

  NNK_VEC bool only_flushes() const { return dropped_ == 0 && !power_ && flush_; }

 private:
  int dropped_;
  bool nearest_, power_, flush_;
};

// `lanes` elements base[(first + i) * stride], the last one of `count` repeated beyond it.
template <DType dtype>
NNK_VEC Vec::Int load_line(const void* base, int64_t first, int64_t stride, int64_t count) {
  if (stride == 1 && first + Vec::lanes <= count) return Vec::load_as<dtype>(base, first);
  uint32_t words[Vec::lanes];
  for (int64_t i = 0; i < Vec::lanes; ++i) {
    const int64_t index = first + i < count ? first + i : count - 1;
    words[i] = load_word(dtype, base, index * stride);
  }
  return Vec::load(words);
}

NNK_VEC const void* element(const Matrix& matrix, int64_t row, int64_t column) {
  return static_cast<const char*>(matrix.data) +
         (row * matrix.row_stride + column * matrix.column_stride) * element_size(matrix.dtype);
}

// The whole squares of pairs among the bfloat16 columns of a group that lie along k, which keep all
// bits: zeros and ranges are found and squares transposed two k at a time. Returns the number of k.
NNK_VEC int64_t pack_pairs_along_k(Vec::Int off, const Matrix& b, int64_t kc, int64_t count,
                                   uint32_t* words, RangeOf& range) {
  constexpr int L = Vec::lanes;
  PairRangeOf pair_range;
  int64_t k = 0;
  for (; k + 2 * L <= kc; k += 2 * L) {
    for (int64_t j = 0; j < kGroup; j += L) {
      Vec::Int square[L];
      for (int i = 0; i < L; ++i) {
        const int64_t column = j + i < count ? j + i : count - 1;
        const char* line = static_cast<const char*>(element(b, k, column));
        // The next block of k: the runs are too short, and too many, for the hardware to prefetch.
        __builtin_prefetch(line + 2 * kSumBlock);
        const auto x = Vec::load(line);
        const auto magnitude = Vec::bit_and(x, Vec::set(0x7FFF7FFFu));
        pair_range.add(magnitude);
        square[i] = Vec::where_greater16(magnitude, Vec::set(0x007F007Fu), x);
      }
      Vec::transpose(square);
      for (int64_t i = 0; i < L; ++i) {
        uint32_t* into = words + (k + 2 * i) * kGroup + j;
        Vec::store(into, Vec::sub(Vec::shift_left(square[i], 16), off));
        Vec::store(into + kGroup, Vec::sub(Vec::bit_and(square[i], Vec::set(0xFFFF0000u)), off));
      }
    }
  }
  if (k > 0) range = pair_range.words();
  return k;
}

// One group of columns that lie along k: squares of them are read and transposed.
template <DType dtype>
Range pack_group_along_k(const Reduce<dtype>& reduce, Vec::Int off, const Matrix& b, int64_t kc,
                         int64_t count, uint32_t* words) {
  constexpr int L = Vec::lanes;
  RangeOf range;
  int64_t k = 0;
  if (dtype == DType::bfloat16 && reduce.only_flushes()) {
    k = pack_pairs_along_k(off, b, kc, count, words, range);
  }
  for (; k < kc; k += L) {
    const int64_t lines = kc - k < L ? kc - k : L;
    for (int64_t j = 0; j < kGroup; j += L) {
      Vec::Int square[L];
      for (int i = 0; i < L; ++i) {
        const int64_t column = j + i < count ? j + i : count - 1;
        const auto x = reduce(load_line<dtype>(element(b, 0, column), k, 1, kc));
        range.add(x);
        square[i] = Vec::sub(x, off);
      }
      Vec::transpose(square);
      for (int64_t i = 0; i < lines; ++i) Vec::store(words + (k + i) * kGroup + j, square[i]);
    }
  }
  return range.result();
}

// Groups of columns that lie across memory lines, side by side: a long piece of each line is read.
template <DType dtype>
void pack_groups_along_n(const Reduce<dtype>& reduce, Vec::Int off, const Matrix& b, int64_t kc,
                         int64_t n, uint32_t* words, Range* ranges) {
  constexpr int64_t kGroups = 8;
  RangeOf range[kGroups];
  for (int64_t k = 0; k < kc; ++k) {
    const void* line = element(b, k, 0);
    for (int64_t group = 0; group * kGroup < n; ++group) {
      for (int64_t j = 0; j < kGroup; j += Vec::lanes) {
        const auto x = reduce(load_line<dtype>(line, group * kGroup + j, b.column_stride, n));
        range[group].add(x);
        Vec::store(words + (group * kc + k) * kGroup + j, Vec::sub(x, off));
      }
    }
  }
  for (int64_t group = 0; group * kGroup < n; ++group) ranges[group] = range[group].result();
}

template <DType dtype>
void pack_columns_as(const Plan& plan, const Matrix& b, int64_t kc, int64_t n, uint32_t* words,
                     Range* ranges) {
  const Reduce<dtype> reduce(plan.b_bits, plan.round, plan.b_power,
                             plan.term != Term::exact || plan.b_power);
  const auto off = Vec::set(plan.term == Term::bits ? word_offset(plan.offset) : 0u);
  // The last group may have fewer columns: it repeats the last one, which leaves its range true.
  const bool along_k = b.row_stride == 1 && b.column_stride != 1;
  const int64_t step = along_k ? kGroup : 8 * kGroup;
  for (int64_t first = 0; first < n; first += step) {
    const int64_t count = n - first < step ? n - first : step;
    Matrix part = b;
    part.data = element(b, 0, first);
    uint32_t* into = words + first * kc;
    if (along_k) {
      ranges[first / kGroup] = pack_group_along_k<dtype>(reduce, off, part, kc, count, into);
    } else {
      pack_groups_along_n<dtype>(reduce, off, part, kc, count, into, ranges + first / kGroup);
    }
  }
}

template <DType dtype>
void pack_rows_as(const Plan& plan, const Matrix& a, int64_t rows, int64_t kc, RowBlock& block) {
  constexpr int L = Vec::lanes;
  const Reduce<dtype> reduce(plan.a_bits, plan.round, plan.a_power,
                             plan.term != Term::exact || plan.a_power);
  uint32_t* words = block.form(kWords);
  RangeOf ranges[kMaxRows / Vec::tile_rows];
  if (a.row_stride == 1 && a.column_stride != 1) {
    // Rows lie across memory lines: read a square of them and transpose it.
    for (int64_t first = 0; first < rows; first += L) {
      const int64_t count = rows - first < L ? rows - first : L;
      for (int64_t k = 0; k < kc; k += L) {
        Vec::Int square[L];
        for (int i = 0; i < L; ++i) {
          const int64_t column = k + i < kc ? k + i : kc - 1;
          square[i] = reduce(load_line<dtype>(element(a, first, column), 0, 1, count));
        }
        Vec::transpose(square);
        for (int64_t i = 0; i < count; ++i) {
          ranges[(first + i) / Vec::tile_rows].add(square[i]);
          Vec::store(words + (first + i) * kRowStride + k, square[i]);
        }
      }
    }
  } else {
    for (int64_t row = 0; row < rows; ++row) {
      const void* line = element(a, row, 0);
      // A row is too short a run for the hardware to prefetch.
      const char* ahead = static_cast<const char*>(element(a, row + 4, 0));
      for (int64_t k = 0; k < kc && row + 4 < rows; k += 64 / element_size(dtype)) {
        __builtin_prefetch(ahead + k * element_size(dtype));
      }
      RangeOf range = ranges[row / Vec::tile_rows];
      for (int64_t k = 0; k < kc; k += L) {
        const auto x = reduce(load_line<dtype>(line, k, a.column_stride, kc));
        range.add(x);
        Vec::store(words + row * kRowStride + k, x);
      }
      ranges[row / Vec::tile_rows] = range;
    }
  }
  for (int64_t panel = 0; panel * Vec::tile_rows < rows; ++panel) {
    block.ranges[panel] = ranges[panel].result();
    block.made[panel] = 1u << kWords;
  }
}

void pack_columns(const Plan& plan, const Matrix& b, int64_t kc, int64_t n, uint32_t* words,
                  Range* ranges) {
  switch (b.dtype) {
    case DType::float32: return pack_columns_as<DType::float32>(plan, b, kc, n, words, ranges);
    case DType::bfloat16: return pack_columns_as<DType::bfloat16>(plan, b, kc, n, words, ranges);
    case DType::float16: return pack_columns_as<DType::float16>(plan, b, kc, n, words, ranges);
    case DType::float8_e4m3fn:
      return pack_columns_as<DType::float8_e4m3fn>(plan, b, kc, n, words, ranges);
    case DType::float8_e5m2:
      return pack_columns_as<DType::float8_e5m2>(plan, b, kc, n, words, ranges);
  }
}

void pack_rows(const Plan& plan, const Matrix& a, int64_t rows, int64_t kc, RowBlock& block) {
  block.rows = rows;
  block.kc = kc;
  switch (a.dtype) {
    case DType::float32: return pack_rows_as<DType::float32>(plan, a, rows, kc, block);
    case DType::bfloat16: return pack_rows_as<DType::bfloat16>(plan, a, rows, kc, block);
    case DType::float16: return pack_rows_as<DType::float16>(plan, a, rows, kc, block);
    case DType::float8_e4m3fn: return pack_rows_as<DType::float8_e4m3fn>(plan, a, rows, kc, block);
    case DType::float8_e5m2: return pack_rows_as<DType::float8_e5m2>(plan, a, rows, kc, block);
  }
}

}  // namespace
}  // namespace nnkernels::lmul
