// Block product: a RowBlock times packed columns, tile by tile, into float32; and the last step
// that adds the bias and rounds.
#pragma once

#include "lmul/cpu/tile.h"

namespace nnkernels::lmul {
namespace {

constexpr int64_t kTileColumns = Vec::tile_groups * kGroup;

// The columns of a tile, and a copy with soft zeros for the tiles that want one.
class ColumnPanel {
 public:
  void set(const Columns& columns, int soft_exponent, uint32_t off) {
    columns_ = columns;
    off_ = off;
    soft_word_ = soft_word(soft_exponent) - off;
    soft_made_ = false;
    range = Range();
    for (int64_t group = 0; group < columns.groups(); ++group) range.add(columns.ranges[group]);
  }
  const Columns& columns() const { return columns_; }
  const uint32_t* soft_words() {
    if (!soft_made_) {
      const Int zero = Vec::set(0u - off_), soft = Vec::set(soft_word_);
      const int64_t count = columns_.kc * kGroup;
      for (int64_t group = 0; group < columns_.groups(); ++group) {
        const uint32_t* from = columns_.words + group * columns_.packed_kc * kGroup;
        for (int64_t i = 0; i < count; i += Vec::lanes) {
          const Int x = Vec::load(from + i);
          Vec::store(soft_ + group * count + i, Vec::select(Vec::equal(x, zero), soft, x));
        }
      }
      soft_made_ = true;
    }
    return soft_;
  }

  Range range;

 private:
  Columns columns_;
  uint32_t off_ = 0, soft_word_ = 0;
  bool soft_made_ = false;
  alignas(64) uint32_t soft_[kTileColumns * kSumBlock];
};

// Runs the chosen kernel on one tile of rows and columns.
void run_tile(const Plan& plan, const Choice& choice, RowBlock& block, int64_t panel,
              ColumnPanel& column_panel, const uint32_t* ahead, int64_t ahead_step, float* sums) {
  const Columns& columns = column_panel.columns();
  TermArgs args{};
  args.columns = columns.words;
  args.packed_kc = columns.packed_kc;
  args.off = word_offset(plan.offset);
  args.ahead = ahead;
  args.ahead_step = ahead_step;
  const int64_t begin = panel * Vec::tile_rows;
  const int64_t left = block.rows - begin;
  const int64_t rows = left < Vec::tile_rows ? left : Vec::tile_rows;
  const int64_t kc = block.kc, groups = columns.groups();
  const auto form = [&](Form which) { return panel_form(plan, block, panel, which); };
  switch (choice.kernel) {
    case Kernel::word:
      args.rows[0] = form(choice.soft_rows ? kSoft : kWords);
      if (choice.soft_columns) {
        args.columns = column_panel.soft_words();
        args.packed_kc = kc;
      }
      return tiles<WordTerm>(args, rows, groups, kc, sums);
    case Kernel::zeros:
      args.rows[0] = form(kSoft);
      args.rows[1] = form(kNonzero);
      return tiles<ZerosTerm>(args, rows, groups, kc, sums);
    case Kernel::guarded:
      args.rows[0] = form(kMagnitude);
      args.rows[1] = form(kSign);
      return tiles<GuardedTerm>(args, rows, groups, kc, sums);
    case Kernel::formula:
      args.rows[0] = form(kPower);
      args.rows[1] = form(kCentred);
      return tiles<FormulaTerm>(args, rows, groups, kc, sums);
    case Kernel::formula_guarded:
      args.rows[0] = form(kPower);
      args.rows[1] = form(kCentred);
      args.rows[2] = form(kMagnitude);
      return tiles<FormulaGuardedTerm>(args, rows, groups, kc, sums);
    case Kernel::exact:
      args.rows[0] = form(kWords);
      return tiles<ExactTerm>(args, rows, groups, kc, sums);
    case Kernel::oracle:
      args.rows[0] = form(kWords);
      return oracle_tiles(plan, args, rows, groups, kc, sums);
  }
}

// c = (first ? 0 : c) + sums, where sums below `flush` are zero. Adding to 0 matters: the sum of a
// formula tile that rounds to zero may be -0.
void add_tile(const float* sums, int64_t rows, int64_t columns, float flush, float* c,
              int64_t c_stride, bool first) {
  const Int limit = Vec::as_int(Vec::set(flush));
  for (int64_t row = 0; row < rows; ++row, sums += kTileColumns, c += c_stride) {
    for (int64_t column = 0; column < columns; column += Vec::lanes) {
      Int sum = Vec::load(sums + column);
      if (flush > 0.0f) {
        const Int magnitude = Vec::bit_and(sum, Vec::set(kMagnitudeMask));
        sum = Vec::select(Vec::greater(limit, magnitude), Vec::set(0u), sum);
      }
      float* into = c + column;
      if (column + Vec::lanes <= columns) {
        const Int before = first ? Vec::set(0u) : Vec::load(into);
        Vec::store(into, Vec::as_int(Vec::add(Vec::as_float(before), Vec::as_float(sum))));
      } else {
        float rest[Vec::lanes];
        Vec::store(rest, sum);
        for (int64_t i = column; i < columns; ++i) {
          c[i] = (first ? 0.0f : c[i]) + rest[i - column];
        }
      }
    }
  }
}

void multiply(const Plan& plan, RowBlock& block, const Columns& columns, float* c, int64_t c_stride,
              bool first) {
  const int64_t panels = (block.rows + Vec::tile_rows - 1) / Vec::tile_rows;
  Range all_rows, all_columns;
  for (int64_t panel = 0; panel < panels; ++panel) all_rows.add(block.ranges[panel]);
  for (int64_t group = 0; group < columns.groups(); ++group) all_columns.add(columns.ranges[group]);
  const SoftExponents soft = soft_exponents(plan, all_rows, all_columns);
  if (soft.rows != block.soft_exponent) {
    block.soft_exponent = soft.rows;
    for (int64_t panel = 0; panel < panels; ++panel) block.made[panel] &= ~(1u << kSoft);
  }

  alignas(64) float sums[Vec::tile_rows * kTileColumns];
  ColumnPanel column_panel;
  for (int64_t column = 0; column < columns.count; column += kTileColumns) {
    const int64_t left = columns.count - column;
    const int64_t count = left < kTileColumns ? left : kTileColumns;
    column_panel.set(columns.slice(column, count), soft.columns, word_offset(plan.offset));
    // Each row panel brings its share of the next column panel, which is too short to be prefetched
    // by the hardware in time.
    const uint32_t* next =
        columns.words + (left > kTileColumns ? column + kTileColumns : column) * columns.packed_kc;
    const int64_t ahead_step = (kTileColumns + panels - 1) / panels;
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t row = panel * Vec::tile_rows;
      const int64_t rows = block.rows - row < Vec::tile_rows ? block.rows - row : Vec::tile_rows;
      for (int64_t r = row; r < row + rows; ++r) {
        for (int64_t i = 0; i < count; i += 16)
          __builtin_prefetch(c + r * c_stride + column + i, 1);
      }
      const Choice choice = choose(plan, block.ranges[panel], column_panel.range, soft);
      run_tile(plan, choice, block, panel, column_panel, next + panel * columns.kc * ahead_step,
               ahead_step, sums);
      add_tile(sums, rows, count, choice.flush, c + row * c_stride + column, c_stride, first);
    }
  }
}

template <DType dtype>
void store_as(const float* c, int64_t c_stride, int64_t rows, int64_t columns, const float* bias,
              void* out, int64_t out_stride) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = c + row * c_stride;
    int64_t column = 0;
    for (; column + Vec::lanes <= columns; column += Vec::lanes) {
      Int sum = Vec::load(from + column);
      if (bias != nullptr) {
        const Int b = Vec::load(bias + column);
        sum = Vec::as_int(Vec::add(Vec::as_float(sum), Vec::as_float(b)));
      }
      Vec::store_as<dtype>(out, row * out_stride + column, sum);
    }
    for (; column < columns; ++column) {
      const float sum = bias != nullptr ? from[column] + bias[column] : from[column];
      store_word(dtype, out, row * out_stride + column, word_of(sum));
    }
  }
}

void store(const float* c, int64_t c_stride, int64_t rows, int64_t columns, const float* bias,
           const Output& out, int64_t out_stride) {
  switch (out.dtype) {
    case DType::bfloat16:
      return store_as<DType::bfloat16>(c, c_stride, rows, columns, bias, out.data, out_stride);
    case DType::float16:
      return store_as<DType::float16>(c, c_stride, rows, columns, bias, out.data, out_stride);
    default:
      return store_as<DType::float32>(c, c_stride, rows, columns, bias, out.data, out_stride);
  }
}

}  // namespace
}  // namespace nnkernels::lmul
