#include "pc/cpu/pass.h"

namespace nnkernels::pc {
namespace {

template <class Real>
void run(const ForwardArgs& args, const Parallel& parallel) {
  const Model& model = args.model;
  const int64_t N = args.evidence.N, h = model.h;
  Lease<Real> lease;
  Pass<Real> pass(model, args.evidence, parallel, false, *lease);
  pass.space.rows.prepare(model.D, pass.tile);
  const Rows& rows = pass.space.rows;
  for (int64_t first = 0; first < N; first += pass.tile) {
    pass.start(first, std::min(pass.tile, N - first));
    // Every sample gets a copy of its row.
    pass.up(args.u != nullptr, [&](int64_t node, int64_t begin, int64_t end, const Real* u) {
      Real* to = static_cast<Real*>(args.u) + (node * N + first) * h;
      const bool dense = rows.dense(node);
      const uint16_t* classes = rows.classes(node);
      for (int64_t n = dense ? begin : 0; n < (dense ? end : pass.samples); ++n) {
        const Real* row = u + (dense ? n : classes[n]) * pass.width;
        std::copy(row, row + h, to + n * h);
      }
    });
    pass.finish(static_cast<Real*>(args.ll));
  }
}

}  // namespace

void forward(const ForwardArgs& args, const Parallel& parallel) {
  args.model.type == Type::float32 ? run<float>(args, parallel) : run<double>(args, parallel);
}

}  // namespace nnkernels::pc
