#include <algorithm>
#include <cmath>

#include "lmul/cpu/attention.h"

namespace nnkernels::lmul {
namespace {

// f(j, at + j * step) for j < n; unit steps are known to the compiler.
template <class F>
void each_element(int64_t n, int64_t at, int64_t step, F&& f) {
  if (step == 1) {
    for (int64_t j = 0; j < n; ++j) f(j, at + j);
  } else {
    for (int64_t j = 0; j < n; ++j) f(j, at + j * step);
  }
}

// The mask of one row of a tile as numbers to add. A key that a boolean mask leaves out gets -inf,
// and 0 for its sum of products, which may be NaN.
void load_mask(const Mask& mask, const ScoreTile& tile, int64_t row, float* x, float* bias) {
  constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
  const int64_t* strides = mask.strides;
  const int64_t n = tile.columns, step = strides[3];
  const int64_t at =
      tile.batch * strides[0] + tile.head * strides[1] + row * strides[2] + tile.column * step;
  if (mask.boolean) {
    const auto* keep = static_cast<const uint8_t*>(mask.data);
    each_element(n, at, step, [&](int64_t j, int64_t index) {
      bias[j] = keep[index] != 0 ? 0.0f : kMinusInf;
      x[j] = keep[index] != 0 ? x[j] : 0.0f;
    });
  } else if (mask.dtype == DType::float32) {
    const auto* values = static_cast<const float*>(mask.data);
    each_element(n, at, step, [&](int64_t j, int64_t index) { bias[j] = values[index]; });
  } else {
    each_element(n, at, step, [&](int64_t j, int64_t index) {
      bias[j] = float_of(load_word(mask.dtype, mask.data, index));
    });
  }
}

// An fp32 matrix in plain memory.
const float& element(const Matrix& a, int64_t row, int64_t column) {
  return static_cast<const float*>(a.data)[row * a.row_stride + column * a.column_stride];
}

bool is_masked(float weight) { return word_of(weight) == kMasked; }

bool has_masked(const Matrix& a, int64_t rows, int64_t kc) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t k = 0; k < kc; ++k) {
      if (is_masked(element(a, row, k))) return true;
    }
  }
  return false;
}

// One row of a: rows of b that meet a masked weight are replaced by zeros.
void multiply_live_row(const ProductPlan& plan, const Matrix& a, const Matrix& b, int64_t kc,
                       int64_t n, RowBlock& block, float* c, bool first) {
  std::vector<float> live(static_cast<size_t>(kc * n), 0.0f);
  for (int64_t k = 0; k < kc; ++k) {
    if (is_masked(element(a, 0, k))) continue;
    for (int64_t j = 0; j < n; ++j) {
      const Matrix x = submatrix(b, 0, k, j);
      live[static_cast<size_t>(k * n + j)] = float_of(load_word(x.dtype, x.data, 0));
    }
  }
  Buffer memory;
  uint32_t* words = memory.words(PackedMatrix::word_count(kc, n));
  std::vector<Range> ranges(static_cast<size_t>(PackedMatrix::range_count(kc, n)));
  const Kernels& kernel = kernels();
  kernel.pack_columns(plan.columns, {live.data(), DType::float32, 0, n, 1}, kc, n, words,
                      ranges.data());
  kernel.pack_rows(plan.rows, a, 1, kc, block);
  multiply(plan, block, PackedMatrix{kc, n, words, ranges.data()}.block(0), c, n, first);
}

}  // namespace

const AttentionKernels& attention_kernels() { return *kernels().attention; }

float sum_of_lanes(const float* lanes) {
  float sum[kLanes];
  std::copy_n(lanes, kLanes, sum);
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) sum[i] += sum[i + half];
  }
  return sum[0];
}

float integer_maximum(float x) {
  constexpr float kLog2e = 0x1.715476p+0f;
  return std::floor(std::max(x * kLog2e, kNoMaximum));
}

float power_of_two(float shift) {
  return shift < 127.0f ? std::ldexp(1.0f, -static_cast<int>(shift)) : 0.0f;
}

AttentionArgs with_terms(AttentionArgs args) {
  static const float zero = 0.0f;
  if (args.D == 0) {
    args.D = 1;
    args.q = args.k = {&zero, DType::float32, {0, 0, 0, 0}};
  }
  return args;
}

Matrix head_of(const Tensor4& tensor, int64_t batch, int64_t head) {
  const int64_t at = batch * tensor.strides[0] + head * tensor.strides[1];
  return {static_cast<const char*>(tensor.data) + at * element_size(tensor.dtype), tensor.dtype, 0,
          tensor.strides[2], tensor.strides[3]};
}

Output output_at(const Output& out, int64_t index) {
  return {static_cast<char*>(out.data) + index * element_size(out.dtype), out.dtype};
}

Range range_of(const Columns& columns) {
  Range range;
  for (int64_t group = 0; group < columns.groups(); ++group) range.add(columns.ranges[group]);
  return range;
}

void finish_scores(const AttentionArgs& args, const ScoreTile& tile, float* x, int64_t x_stride,
                   float* largest) {
  const AttentionKernels& kernel = attention_kernels();
  const bool masked = args.mask.data != nullptr;
  float bias[kSumBlock] = {};
  for (int64_t r = 0; r < tile.rows; ++r, x += x_stride) {
    const int64_t row = tile.row + r;
    int64_t end = tile.columns;
    if (args.causal) end = std::clamp<int64_t>(row + 1 - tile.column, 0, end);
    if (masked) load_mask(args.mask, tile, row, x, bias);
    largest[r] = kernel.scores(x, end, tile.columns, args.scale, masked ? bias : nullptr);
  }
}

void multiply(const ProductPlan& plan, RowBlock& a, const Columns& b, float* c, int64_t c_stride,
              bool first) {
  const Kernels& kernel = kernels();
  if (plan.fractions == nullptr) return kernel.multiply(plan.rows, a, b, c, c_stride, first);
  kernel.multiply_slopes(a, b, plan.fractions, plan.fraction_stride, c, c_stride, first);
}

void multiply_live(const ProductPlan& plan, const Matrix& a, int64_t rows, const Matrix& b,
                   const Columns& columns, RowBlock& block, float* c, int64_t c_stride,
                   bool first) {
  if (range_of(columns).nonfinite && has_masked(a, rows, columns.kc)) {
    ProductPlan row_plan = plan;
    for (int64_t row = 0; row < rows; ++row) {
      if (plan.fractions != nullptr)
        row_plan.fractions = plan.fractions + row * plan.fraction_stride;
      multiply_live_row(row_plan, submatrix(a, 0, row, 0), b, columns.kc, columns.count, block,
                        c + row * c_stride, first);
    }
    return;
  }
  kernels().pack_rows(plan.rows, a, rows, columns.kc, block);
  multiply(plan, block, columns, c, c_stride, first);
}

int64_t balanced(int64_t task, int64_t tiles) {
  return task % 2 == 0 ? task / 2 : tiles - 1 - task / 2;
}

}  // namespace nnkernels::lmul
