#include <tuple>
#include <utility>

#include "lmul/cpu/engine.h"

namespace nnkernels::lmul {
namespace {

// Element offsets of the three operands: upstream gradient, the operand whose gradient is computed,
// the other one.
struct Offsets {
  int64_t g = 0, x = 0, y = 0;

  Offsets operator+(const Offsets& o) const { return {g + o.g, x + o.x, y + o.y}; }
  Offsets operator*(int64_t n) const { return {g * n, x * n, y * n}; }
  bool operator==(const Offsets&) const = default;
};

// Some of the dimensions of a call, row-major, merged where the strides allow.
struct Dims {
  int ndim = 0;
  int64_t sizes[kMaxDims];
  Offsets strides[kMaxDims];

  void add(int64_t size, const Offsets& stride, bool adjacent) {
    if (adjacent && ndim > 0 && strides[ndim - 1] == stride * size) {
      sizes[ndim - 1] *= size;
    } else {
      sizes[ndim++] = size;
    }
    strides[ndim - 1] = stride;
  }
  // Takes the innermost dimension away; one of size 1 if there is none.
  std::pair<int64_t, Offsets> pop() {
    if (ndim == 0) return {1, Offsets{}};
    --ndim;
    return {sizes[ndim], strides[ndim]};
  }
  int64_t count() const {
    int64_t n = 1;
    for (int d = 0; d < ndim; ++d) n *= sizes[d];
    return n;
  }
  Offsets at(int64_t index) const {
    Offsets offsets;
    for (int d = ndim - 1; d >= 0; --d) {
      offsets = offsets + strides[d] * (index % sizes[d]);
      index /= sizes[d];
    }
    return offsets;
  }
};

// The gradient of one operand. A sum over broadcast elements runs in row-major order, in double.
class OperandGrad {
 public:
  OperandGrad(const MulGradArgs& args, bool of_x)
      : grad_(args.grad),
        plan_(make_plan(args.forward.options, Algo::automatic)),
        kernel_(kernels()),
        g_{args.g, args.g_dtype, 0},
        x_{args.forward.x, args.forward.x_dtype, 0},
        y_{args.forward.y, args.forward.y_dtype, 0},
        out_(of_x ? args.grad_x : args.grad_y) {
    const int64_t* x_strides = args.forward.x_strides;
    const int64_t* y_strides = args.forward.y_strides;
    if (!of_x) {
      std::swap(x_, y_);
      std::swap(x_strides, y_strides);
    }
    bool summed = false;
    for (int d = 0; d < args.forward.ndim; ++d) {
      const int64_t size = args.forward.sizes[d];
      if (size == 1) continue;
      const bool sum = (of_x ? args.x_broadcast : args.y_broadcast)[d];
      const bool adjacent = sum == summed;
      summed = sum;
      (sum ? summed_ : kept_).add(size, {args.g_strides[d], x_strides[d], y_strides[d]}, adjacent);
    }
    // Lines run along the innermost dimension, be it kept or summed.
    std::tie(line_, stride_) = summed ? summed_.pop() : kept_.pop();
    summed_line_ = summed;
  }

  void operator()(const Parallel& parallel) const {
    const int64_t pieces = summed_line_ ? 1 : (line_ + kPiece - 1) / kPiece;
    const int64_t work = (summed_line_ ? line_ : line_ / (pieces ? pieces : 1)) * summed_.count();
    const int64_t grain = 1 + (int64_t{1} << 14) / (work + 1);
    parallel_for(parallel, kept_.count() * pieces, grain, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t line = task / pieces;
        summed_line_ ? sum_lines(line) : add_lines(line, task % pieces * kPiece);
      }
    });
  }

 private:
  void terms(const Offsets& at, int64_t n, float* out) const {
    Line g = g_.from(at.g), x = x_.from(at.x), y = y_.from(at.y);
    g.stride = stride_.g;
    x.stride = stride_.x;
    y.stride = stride_.y;
    kernel_.mul_grad_line(plan_, grad_, g, x, y, n, out);
  }

  // Elements first.. of a kept line.
  void add_lines(int64_t line, int64_t first) const {
    const int64_t n = line_ - first < kPiece ? line_ - first : kPiece;
    const Offsets start = kept_.at(line) + stride_ * first;
    const int64_t count = summed_.count();
    float out[kPiece];
    if (count == 1) {
      terms(start, n, out);
    } else {
      double sums[kPiece] = {};
      for (int64_t s = 0; s < count; ++s) {
        terms(start + summed_.at(s), n, out);
        for (int64_t i = 0; i < n; ++i) sums[i] += double{out[i]};
      }
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(sums[i]);
    }
    store(line * line_ + first, n, out);
  }

  // One element, the sum of lines.
  void sum_lines(int64_t element) const {
    const Offsets start = kept_.at(element);
    double sum = 0.0;
    float out[kPiece];
    for (int64_t s = 0; s < summed_.count(); ++s) {
      for (int64_t first = 0; first < line_; first += kPiece) {
        const int64_t n = line_ - first < kPiece ? line_ - first : kPiece;
        terms(start + summed_.at(s) + stride_ * first, n, out);
        for (int64_t i = 0; i < n; ++i) sum += double{out[i]};
      }
    }
    out[0] = static_cast<float>(sum);
    store(element, 1, out);
  }

  void store(int64_t index, int64_t n, const float* values) const {
    char* data = static_cast<char*>(out_.data) + index * element_size(out_.dtype);
    kernel_.store(values, 0, 1, n, nullptr, {data, out_.dtype}, 0);
  }

  Grad grad_;
  Plan plan_;
  const Kernels& kernel_;
  Line g_, x_, y_;
  Output out_;
  Dims kept_, summed_;
  int64_t line_ = 1;
  Offsets stride_;
  bool summed_line_ = false;
};

}  // namespace

void mul_grad(const MulGradArgs& args, const Parallel& parallel) {
  if (args.grad_x.data != nullptr) OperandGrad(args, true)(parallel);
  if (args.grad_y.data != nullptr) OperandGrad(args, false)(parallel);
}

}  // namespace nnkernels::lmul
