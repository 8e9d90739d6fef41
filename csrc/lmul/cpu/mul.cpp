#include "lmul/cpu/engine.h"

namespace nnkernels::lmul {
namespace {

// Elements that a thread takes at least.
constexpr int64_t kGrain = int64_t{1} << 14;

// The loops of an elementwise call, dimensions merged where all operands allow.
struct Loops {
  int ndim = 0;
  int64_t sizes[kMaxDims];
  int64_t x_strides[kMaxDims], y_strides[kMaxDims];

  explicit Loops(const MulArgs& args) {
    for (int d = 0; d < args.ndim; ++d) {
      if (args.sizes[d] == 1) continue;
      const int last = ndim - 1;
      if (ndim > 0 && x_strides[last] == args.x_strides[d] * args.sizes[d] &&
          y_strides[last] == args.y_strides[d] * args.sizes[d]) {
        sizes[last] *= args.sizes[d];
      } else {
        sizes[ndim++] = args.sizes[d];
      }
      x_strides[ndim - 1] = args.x_strides[d];
      y_strides[ndim - 1] = args.y_strides[d];
    }
    if (ndim > 0) return;
    ndim = 1;
    sizes[0] = 1;
    x_strides[0] = y_strides[0] = 1;
  }
};

}  // namespace

void mul(const MulArgs& args, const Parallel& parallel) {
  int64_t count = 1;
  for (int d = 0; d < args.ndim; ++d) count *= args.sizes[d];
  const Plan plan = make_plan(args.options, Algo::automatic);
  const Loops loops(args);
  const int inner = loops.ndim - 1;
  const Line x{args.x, args.x_dtype, loops.x_strides[inner]};
  const Line y{args.y, args.y_dtype, loops.y_strides[inner]};
  char* out = static_cast<char*>(args.out.data);
  const Kernels& kernel = kernels();
  parallel_for(parallel, count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end;) {
      // From element i to the end of its innermost line, or of the range.
      int64_t rest = i, x_index = 0, y_index = 0;
      for (int d = inner; d >= 0; --d) {
        x_index += rest % loops.sizes[d] * loops.x_strides[d];
        y_index += rest % loops.sizes[d] * loops.y_strides[d];
        rest /= loops.sizes[d];
      }
      const int64_t left = loops.sizes[inner] - i % loops.sizes[inner];
      const int64_t n = left < end - i ? left : end - i;
      kernel.mul_line(plan, x.from(x_index), y.from(y_index), n,
                      {out + i * element_size(args.out.dtype), args.out.dtype});
      i += n;
    }
  });
}

}  // namespace nnkernels::lmul
