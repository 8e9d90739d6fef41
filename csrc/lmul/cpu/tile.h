// Register tiles: R rows by G column groups, summed over kc in ascending order from +0.
//
// A term says what it reads of a row (forms, broadcast) and of a column vector, and how it adds the
// product of the two to a sum. tile() is the loop that all terms share.
#pragma once

#include "lmul/cpu/forms.h"

namespace nnkernels::lmul {
namespace {

using Int = Vec::Int;
using Float = Vec::Float;
using Mask = Vec::Mask;

constexpr int kVectors = kGroup / Vec::lanes;  // in a group

struct TermArgs {
  const uint32_t* rows[3];  // forms, at the first row
  const uint32_t* columns;  // words, at the first group
  int64_t packed_kc;        // rows of a packed group
  uint32_t off;             // OFF of mode bits
  // Memory to bring into the cache meanwhile: `ahead_step` words for each k.
  const uint32_t* ahead;
  int64_t ahead_step;
};

// bits. The sum of the words is the word of the product: one integer and one float addition.
struct WordTerm {
  static constexpr int tile_rows = Vec::tile_rows, registers = 1;
  struct Row {
    Int x;
  };
  struct Column {
    Int y;
  };
  static NNK_VEC Row row(const TermArgs& t, int64_t at) { return {Vec::broadcast(t.rows[0] + at)}; }
  static NNK_VEC Column column(const TermArgs&, Int y) { return {y}; }
  static NNK_VEC Float add(Float sum, const Row& r, const Column& c) {
    return Vec::add(sum, Vec::as_float(Vec::add(r.x, c.y)));
  }
};

// bits, zeros anywhere. Zero rows multiply a finite product by 0, zero columns are masked.
struct ZerosTerm {
  static constexpr int tile_rows = Vec::tile_rows, registers = 2;
  struct Row {
    Int x;
    Float nonzero;
  };
  struct Column {
    Int y;
    Mask nonzero;
  };
  static NNK_VEC Row row(const TermArgs& t, int64_t at) {
    return {Vec::broadcast(t.rows[0] + at), Vec::as_float(Vec::broadcast(t.rows[1] + at))};
  }
  static NNK_VEC Column column(const TermArgs& t, Int y) {
    return {y, Vec::not_equal(y, Vec::set(0u - t.off))};
  }
  static NNK_VEC Float add(Float sum, const Row& r, const Column& c) {
    return Vec::add_signed(c.nonzero, Vec::as_float(Vec::add(r.x, c.y)), r.nonzero, sum);
  }
};

// bits, zeros and underflow. Magnitudes are added, so that underflow is a small or negative number:
// it is masked. A zero column is the most negative magnitude, a zero row has sign 0.
struct GuardedTerm {
  static constexpr int tile_rows = Vec::few_rows, registers = 2;
  struct Row {
    Int magnitude;
    Float sign;
  };
  struct Column {
    Int magnitude, sign;
  };
  static NNK_VEC Row row(const TermArgs& t, int64_t at) {
    return {Vec::broadcast(t.rows[0] + at), Vec::as_float(Vec::broadcast(t.rows[1] + at))};
  }
  static NNK_VEC Column column(const TermArgs& t, Int y) {
    const Int off = Vec::set(t.off);
    const Int word = Vec::add(y, off);
    const Int magnitude = Vec::bit_and(word, Vec::set(kMagnitudeMask));
    const Mask nonzero = Vec::greater(magnitude, Vec::set(0u));
    return {Vec::select(nonzero, Vec::sub(magnitude, off), Vec::set(kSignBit)),
            Vec::bit_and(word, Vec::set(kSignBit))};
  }
  static NNK_VEC Float add(Float sum, const Row& r, const Column& c) {
    const Int magnitude = Vec::add(r.magnitude, c.magnitude);
    const Mask normal = Vec::greater(magnitude, Vec::set(kSmallest - 1u));
    return Vec::add_signed(normal, Vec::as_float(Vec::bit_or(magnitude, c.sign)), r.sign, sum);
  }
};

// formula: Xc P(y) + P(x) Y. Zeros have P = Xc = Y = 0.
struct FormulaTerm {
  static constexpr int tile_rows = Vec::tile_rows, registers = 2;
  struct Row {
    Float power, centred;
  };
  struct Column {
    Float y, power;
  };
  static NNK_VEC Row row(const TermArgs& t, int64_t at) {
    return {Vec::as_float(Vec::broadcast(t.rows[0] + at)),
            Vec::as_float(Vec::broadcast(t.rows[1] + at))};
  }
  static NNK_VEC Column column(const TermArgs&, Int y) {
    return {Vec::as_float(y), Vec::as_float(Vec::bit_and(y, Vec::set(kPowerMask)))};
  }
  static NNK_VEC Float add(Float sum, const Row& r, const Column& c) {
    return Vec::fma(r.power, c.y, Vec::fma(r.centred, c.power, sum));
  }
};

// formula with underflow: |L| < 2^-126 exactly where the word of mode bits underflows, or where
// only a double carry, which formula does not have, kept it from doing so: at powers below 2^-127.
struct FormulaGuardedTerm {
  static constexpr int tile_rows = Vec::few_rows, registers = 2;
  struct Row {
    Float power, centred;
    Int magnitude;
  };
  struct Column {
    Float y, power;
    Int magnitude;
  };
  static NNK_VEC Row row(const TermArgs& t, int64_t at) {
    return {Vec::as_float(Vec::broadcast(t.rows[0] + at)),
            Vec::as_float(Vec::broadcast(t.rows[1] + at)), Vec::broadcast(t.rows[2] + at)};
  }
  static NNK_VEC Column column(const TermArgs& t, Int y) {
    const Int magnitude = Vec::bit_and(y, Vec::set(kMagnitudeMask));
    return {Vec::as_float(y), Vec::as_float(Vec::bit_and(y, Vec::set(kPowerMask))),
            Vec::sub(magnitude, Vec::set(t.off))};
  }
  static NNK_VEC Float add(Float sum, const Row& r, const Column& c) {
    const Int exponents = Vec::set(kInfinity);
    const Int column_power =
        Vec::sub(Vec::bit_and(Vec::as_int(c.power), exponents), Vec::set(kOne));
    const Int power = Vec::add(Vec::bit_and(Vec::as_int(r.power), exponents), column_power);
    const Mask normal =
        Vec::mask_and(Vec::greater(Vec::add(r.magnitude, c.magnitude), Vec::set(kSmallest - 1u)),
                      Vec::greater(power, Vec::set(~0u)));
    const Float half = Vec::fma_where(normal, r.centred, c.power, sum);
    return Vec::fma_where(normal, r.power, c.y, half);
  }
};

struct ExactTerm {
  static constexpr int tile_rows = Vec::tile_rows, registers = 1;
  struct Row {
    Float x;
  };
  struct Column {
    Float y;
  };
  static NNK_VEC Row row(const TermArgs& t, int64_t at) {
    return {Vec::as_float(Vec::broadcast(t.rows[0] + at))};
  }
  static NNK_VEC Column column(const TermArgs&, Int y) { return {Vec::as_float(y)}; }
  static NNK_VEC Float add(Float sum, const Row& r, const Column& c) {
    return Vec::fma(r.x, c.y, sum);
  }
};

// sums: row-major, Vec::tile_groups * kGroup a row.
// Not inlined: its registers are all taken.
template <class Term, int R, int G>
[[gnu::noinline]] void tile(const TermArgs& args, int64_t row, int64_t kc, float* sums) {
  constexpr int V = G * kVectors;
  Float sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][v] = Vec::set(0.0f);
  }
  TermArgs local = args;
  local.rows[0] += row * kRowStride;
  local.rows[1] += row * kRowStride;
  local.rows[2] += row * kRowStride;
  for (int64_t k = 0; k < kc; ++k) {
    __builtin_prefetch(local.ahead + k * local.ahead_step);
    const auto column = [&](int v) {
      const int64_t group = v / kVectors, lane = v % kVectors * Vec::lanes;
      return Term::column(local,
                          Vec::load(local.columns + (group * local.packed_kc + k) * kGroup + lane));
    };
    const auto x_at = [&](int r) { return Term::row(local, r * kRowStride + k); };
    if constexpr (Term::registers * V + R * V < Vec::registers - 1) {
      typename Term::Column y[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) y[v] = column(v);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const auto x = x_at(r);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[r][v] = Term::add(sum[r][v], x, y[v]);
      }
    } else {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        // Rows are read again for each vector: hidden from the compiler, which would keep them
        // in registers that the sums need.
        const uint32_t *first = local.rows[0], *second = local.rows[1];
        asm("" : "+r"(first), "+r"(second));
        local.rows[0] = first;
        local.rows[1] = second;
        const auto y = column(v);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) sum[r][v] = Term::add(sum[r][v], x_at(r), y);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    float* into = sums + (row + r) * Vec::tile_groups * kGroup;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      Vec::store(into + v * Vec::lanes, Vec::as_int(sum[r][v]));
    }
  }
}

// Covers any number of rows with tiles of R rows, then of fewer.
template <class Term, int R, int G>
void tiles_from(const TermArgs& args, int64_t row, int64_t rows, int64_t kc, float* sums) {
  for (; row + R <= rows; row += R) tile<Term, R, G>(args, row, kc, sums);
  constexpr int fewer = R > 8 ? 8 : R > 4 ? 4 : R > 2 ? 2 : 1;
  if constexpr (R > 1) {
    if (row < rows) tiles_from<Term, fewer, G>(args, row, rows, kc, sums);
  }
}

template <class Term>
void tiles(const TermArgs& args, int64_t rows, int64_t groups, int64_t kc, float* sums) {
  if constexpr (Vec::tile_groups == 2) {
    if (groups == 2) return tiles_from<Term, Term::tile_rows, 2>(args, 0, rows, kc, sums);
  }
  tiles_from<Term, Term::tile_rows, 1>(args, 0, rows, kc, sums);
}

// The definition, pair by pair, in the same order of sums.
void oracle_tiles(const Plan& plan, const TermArgs& args, int64_t rows, int64_t groups, int64_t kc,
                  float* sums) {
  const uint32_t off = plan.term == Term::bits ? args.off : 0u;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < groups * kGroup; ++column) {
      const uint32_t* y =
          args.columns + column / kGroup * args.packed_kc * kGroup + column % kGroup;
      float sum = 0.0f;
      for (int64_t k = 0; k < kc; ++k) {
        const uint32_t x_word = args.rows[0][row * kRowStride + k];
        const uint32_t y_word = y[k * kGroup] + off;
        const Mode mode = plan.term == Term::bits ? Mode::bits : Mode::formula;
        const uint32_t product = mul(mode, x_word, y_word, plan.offset);
        if (mode == Mode::bits || is_zero(product) || !is_finite(product)) {
          sum += float_of(product);
        } else {
          // The formula kernel's two steps.
          sum = __builtin_fmaf(centred(x_word, plan.offset), float_of(power(y_word)), sum);
          sum = __builtin_fmaf(float_of(power(x_word)), float_of(y_word), sum);
        }
      }
      sums[row * Vec::tile_groups * kGroup + column] = sum;
    }
  }
}

}  // namespace
}  // namespace nnkernels::lmul
