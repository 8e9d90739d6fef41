// The passes of a block of groups over the panels of S, see engine.h.
#pragma once

#include "deltaproduct/cpu/rows.h"

namespace nnkernels::deltaproduct {
namespace {

constexpr int kMaxRows = kMaxSteps + kMaxOutputs;

// What goes from one pass over a panel to the next: S^T k and S^T q of a group.
template <class Real>
struct Projections {
  Real rows[kMaxRows][kPanel<Real>];
};

// The d of a group, multiplied by their decay to its end; writes its outputs.
template <class Real, int steps, int outputs>
NNK_VEC void solve(const Group<Real>& group, const Projections<Real>& projections, const Real* v,
                   int64_t v_stride, Real* o, int64_t o_stride,
                   typename Vec<Real>::Reg (&d)[steps][Vec<Real>::panel_vectors]) {
  using V = Vec<Real>;
  constexpr int width = V::panel_vectors;
  v += group.step * v_stride;
#pragma GCC unroll 4
  for (int j = 0; j < steps; ++j) {
    const auto v_factor = V::set(group.v_factor[j]), s_factor = V::set(group.s_factor[j]);
#pragma GCC unroll 4
    for (int w = 0; w < width; ++w) {
      d[j][w] = V::mul(v_factor, V::load(v + j * v_stride + w * V::lanes));
      d[j][w] = V::fnma(s_factor, V::load(projections.rows[j] + w * V::lanes), d[j][w]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < j; ++i) {
      const auto factor = V::set(group.d_factor[j][i]);
#pragma GCC unroll 4
      for (int w = 0; w < width; ++w) d[j][w] = V::fnma(factor, d[i][w], d[j][w]);
    }
  }
  o += group.token * o_stride;
#pragma GCC unroll 2
  for (int t = 0; t < outputs; ++t) {
    const auto factor = V::set(group.o_state[t]);
    typename V::Reg sum[width];
#pragma GCC unroll 4
    for (int w = 0; w < width; ++w) {
      sum[w] = V::mul(factor, V::load(projections.rows[steps + t] + w * V::lanes));
    }
#pragma GCC unroll 4
    for (int i = 0; i < (outputs == 2 ? t + 1 : steps); ++i) {
      const auto step = V::set(group.o_step[t][i]);
#pragma GCC unroll 4
      for (int w = 0; w < width; ++w) sum[w] = V::fma(step, d[i][w], sum[w]);
    }
#pragma GCC unroll 4
    for (int w = 0; w < width; ++w) V::store(o + t * o_stride + w * V::lanes, sum[w]);
  }
  // With one output all micro-steps are of one token, whose gate comes before them.
  if constexpr (outputs != 1) {
#pragma GCC unroll 4
    for (int j = 0; j + 1 < steps; ++j) {
      const auto factor = V::set(group.to_end[j]);
#pragma GCC unroll 4
      for (int w = 0; w < width; ++w) d[j][w] = V::mul(factor, d[j][w]);
    }
  }
}

// S <- decay S + sum_j k_j d_j^T, and the projections of the result on the rows of `next`.
template <class Real, int steps, bool decays, int next_steps, int next_outputs>
NNK_VEC void sweep(
    int64_t K, Real decay, const Real* const* k,
    const typename Vec<Real>::Reg (&d)[steps == 0 ? 1 : steps][Vec<Real>::panel_vectors],
    Real* state, const Group<Real>* next, Projections<Real>& projections) {
  using V = Vec<Real>;
  using Reg = typename V::Reg;
  constexpr int width = V::panel_vectors, rows = next_steps + next_outputs;
  const Real* update[steps == 0 ? 1 : steps];
  const Real* project[rows == 0 ? 1 : rows];
  for (int j = 0; j < steps; ++j) update[j] = k[j];
  for (int j = 0; j < next_steps; ++j) project[j] = next->k[j];
  for (int t = 0; t < next_outputs; ++t) project[next_steps + t] = next->q[t];
  Reg sums[rows == 0 ? 1 : rows][width];
  for (int r = 0; r < rows; ++r) {
    for (int w = 0; w < width; ++w) sums[r][w] = V::zero();
  }
  const Reg gate = V::set(decay);
  for (int64_t i = 0; i < K; ++i, state += kPanel<Real>) {
    Reg x[width];
#pragma GCC unroll 4
    for (int w = 0; w < width; ++w) {
      x[w] = V::load(state + w * V::lanes);
      if constexpr (decays) x[w] = V::mul(gate, x[w]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < steps; ++j) {
      const Reg factor = V::set(update[j][i]);
#pragma GCC unroll 4
      for (int w = 0; w < width; ++w) x[w] = V::fma(factor, d[j][w], x[w]);
    }
    if constexpr (steps > 0) {
#pragma GCC unroll 4
      for (int w = 0; w < width; ++w) V::store(state + w * V::lanes, x[w]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Reg factor = V::set(project[r][i]);
#pragma GCC unroll 4
      for (int w = 0; w < width; ++w) sums[r][w] = V::fma(factor, x[w], sums[r][w]);
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (int w = 0; w < width; ++w) V::store(projections.rows[r] + w * V::lanes, sums[r][w]);
  }
}

template <class Real>
using Advance = void (*)(const Group<Real>& group, const Group<Real>* next,
                         const Panels<Real>& panels, int64_t panel, Projections<Real>& projections);

// Finishes a group on one panel and projects S on the rows of the next group.
template <class Real, int shape, int next_shape>
void advance(const Group<Real>& group, const Group<Real>* next, const Panels<Real>& panels,
             int64_t panel, Projections<Real>& projections) {
  constexpr int steps = kShapes[shape].steps, outputs = kShapes[shape].outputs;
  constexpr Shape after = next_shape < 0 ? Shape{0, 0} : kShapes[next_shape < 0 ? 0 : next_shape];
  typename Vec<Real>::Reg d[steps][Vec<Real>::panel_vectors];
  solve<Real, steps, outputs>(group, projections, panels.v + panel * panels.v_panel,
                              panels.v_stride, panels.o + panel * panels.o_panel, panels.o_stride,
                              d);
  Real* state = panels.state + panel * panels.K * kPanel<Real>;
  // The same numbers either way.
  if (group.decay == 1) {
    sweep<Real, steps, false, after.steps, after.outputs>(panels.K, 1, group.k, d, state, next,
                                                          projections);
  } else {
    sweep<Real, steps, true, after.steps, after.outputs>(panels.K, group.decay, group.k, d, state,
                                                         next, projections);
  }
}

template <class Real, int shape>
void begin(const Group<Real>&, const Group<Real>* group, const Panels<Real>& panels, int64_t panel,
           Projections<Real>& projections) {
  const typename Vec<Real>::Reg none[1][Vec<Real>::panel_vectors] = {};
  sweep<Real, 0, false, kShapes[shape].steps, kShapes[shape].outputs>(
      panels.K, 1, nullptr, none, panels.state + panel * panels.K * kPanel<Real>, group,
      projections);
}

template <class Real>
constexpr Advance<Real> kBegin[kShapeCount] = {begin<Real, 0>, begin<Real, 1>, begin<Real, 2>,
                                               begin<Real, 3>, begin<Real, 4>, begin<Real, 5>};
template <class Real>
constexpr Advance<Real> kFinish[kShapeCount] = {advance<Real, 0, -1>, advance<Real, 1, -1>,
                                                advance<Real, 2, -1>, advance<Real, 3, -1>,
                                                advance<Real, 4, -1>, advance<Real, 5, -1>};
// From one shape to the next, where that is common: nullptr is kFinish and then kBegin.
template <class Real>
constexpr Advance<Real> kAdvance[kShapeCount][kShapeCount] = {
    {},
    {},
    {nullptr, nullptr, advance<Real, 2, 2>, advance<Real, 2, 3>, nullptr, advance<Real, 2, 5>},
    {nullptr, nullptr, advance<Real, 3, 2>, advance<Real, 3, 3>, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, advance<Real, 4, 4>, nullptr},
    {nullptr, nullptr, advance<Real, 5, 2>, nullptr, nullptr, advance<Real, 5, 5>},
};

template <class Real>
void run(const Group<Real>* groups, int64_t count, const Panels<Real>& panels) {
  Projections<Real> projections[kMaxPanels];
  for (int64_t p = 0; p < panels.count; ++p) {
    kBegin<Real>[groups[0].shape](groups[0], groups, panels, p, projections[p]);
  }
  for (int64_t g = 0; g < count; ++g) {
    const Group<Real>& group = groups[g];
    const Group<Real>* next = g + 1 < count ? groups + g + 1 : nullptr;
    const Advance<Real> both = next ? kAdvance<Real>[group.shape][next->shape] : nullptr;
    // The panels take turns, so that one's solve() overlaps with another's sweep().
    for (int64_t p = 0; p < panels.count; ++p) {
      if (both) {
        both(group, next, panels, p, projections[p]);
      } else {
        kFinish<Real>[group.shape](group, nullptr, panels, p, projections[p]);
        if (next) kBegin<Real>[next->shape](group, next, panels, p, projections[p]);
      }
    }
  }
}

}  // namespace
}  // namespace nnkernels::deltaproduct
