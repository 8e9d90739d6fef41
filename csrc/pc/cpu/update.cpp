#include "pc/cpu/engine.h"

namespace nnkernels::pc {
namespace {

// Numbers that make a thread's start worth while.
constexpr int64_t kGrain = 1 << 16;

template <class Real>
void run(const UpdateArgs& args, const Parallel& parallel) {
  const Kernels<Real>& kernel = kernels<Real>(kMaxStates);
  if (args.rows == 0) return;
  parallel_for(parallel, args.rows, kGrain / args.width + 1, [&](int64_t begin, int64_t end) {
    kernel.update(static_cast<const Real*>(args.counts) + begin * args.width, end - begin,
                  args.width, static_cast<Real>(args.pseudo_count), static_cast<Real>(args.step),
                  static_cast<Real*>(args.theta) + begin * args.width);
  });
}

}  // namespace

void update(const UpdateArgs& args, const Parallel& parallel) {
  args.type == Type::float32 ? run<float>(args, parallel) : run<double>(args, parallel);
}

}  // namespace nnkernels::pc
