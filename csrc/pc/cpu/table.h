// The kernels of one instruction set, gathered.
#pragma once

#include "pc/cpu/messages.h"

namespace nnkernels::pc {
namespace {

template <class Real>
int64_t width_for(int64_t h) {
  constexpr int64_t lanes = Vec<Real>::lanes;
  return (h + lanes - 1) / lanes * lanes;
}

// Calls f with Messages of the width of rows of h numbers.
template <class Real, class F>
NNK_VEC void with_width(int64_t h, F&& f) {
  const int64_t width = width_for<Real>(h);
  switch (width / Vec<Real>::lanes) {
    case 1: return f(Messages<Real, 1>(), width);
    case 2: return f(Messages<Real, 2>(), width);
    case 4: return f(Messages<Real, 4>(), width);
    case 8: return f(Messages<Real, 8>(), width);
    default: return f(Messages<Real, 0>(), width);
  }
}

template <class Real>
void read_leaf(const Node<Real>& node, Scratch<Real>& scratch) {
  Leaf<Real>(node, width_for<Real>(node.h), scratch).read();
}

template <class Real>
void up(const Upward<Real>& work, Scratch<Real>& scratch) {
  with_width<Real>(work.node.h,
                   [&](auto messages, int64_t width) { messages.up(work, width, scratch); });
}

template <class Real>
void down(const Downward<Real>& work, Scratch<Real>& scratch) {
  with_width<Real>(work.node.h,
                   [&](auto messages, int64_t width) { messages.down(work, width, scratch); });
}

template <class Real>
void gather(const Real* from, const uint16_t* below, int64_t rows, int64_t width, Real* to) {
  for (int64_t r = 0; r < rows; ++r) {
    Messages<Real, 0>::add(from + r * width, width, to + (below ? below[r] : r) * width);
  }
}

template <class Real>
void root(const Real* pi, const Real* u, int64_t rows, int64_t h, int64_t width, Real* p) {
  for (int64_t r = 0; r < rows; ++r) {
    Real sum = 0;
    for (int64_t a = 0; a < h; ++a) sum += pi[a] * u[r * width + a];
    p[r] = sum;
  }
}

template <class Real>
void root_down(const Real* pi, const Real* u, const Real* weight, int64_t rows, int64_t h,
               int64_t width, Real* t, Real* dpi) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t a = 0; a < width; ++a) t[r * width + a] = a < h ? weight[r] * pi[a] : Real{0};
    for (int64_t a = 0; a < h; ++a) dpi[a] += weight[r] * u[r * width + a];
  }
}

template <class Real>
void update(const Real* counts, int64_t rows, int64_t width, Real pseudo_count, Real step,
            Real* theta) {
  using V = Vec<Real>;
  const Real even = pseudo_count / static_cast<Real>(width);
  for (int64_t r = 0; r < rows; ++r, counts += width, theta += width) {
    typename V::Reg sums = V::zero();
    int64_t i = 0;
    for (; i + V::lanes <= width; i += V::lanes) sums = sums + V::load(counts + i);
    Real total = pseudo_count + Shuffle<Real>::sum(sums);
    for (; i < width; ++i) total += counts[i];
    if (!(total > 0)) continue;
    const Real keep = 1 - step, share = step / total;
    for (i = 0; i + V::lanes <= width; i += V::lanes) {
      const auto fresh = (V::load(counts + i) + V::set(even)) * V::set(share);
      V::store(theta + i, V::mul_add(V::set(keep), V::load(theta + i), fresh));
    }
    for (; i < width; ++i) theta[i] = keep * theta[i] + (counts[i] + even) * share;
  }
}

template <class Real>
constexpr Kernels<Real> kKernels = {
    .lanes = Vec<Real>::lanes,
    .read_leaf = read_leaf<Real>,
    .up = up<Real>,
    .down = down<Real>,
    .gather = gather<Real>,
    .root = root<Real>,
    .root_down = root_down<Real>,
    .update = update<Real>,
};

}  // namespace
}  // namespace nnkernels::pc
