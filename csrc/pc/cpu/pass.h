// The upward pass over a tile of samples: what forward() and flows() share.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "pc/cpu/engine.h"
#include "pc/cpu/rows.h"

namespace nnkernels::pc {

// What a call works in, kept for the next one: fresh memory costs more to touch than to use.
template <class Real>
struct Workspace {
  Rows rows;
  Buffer<Real> beta, leaf, factor, scale, p, weight, root_u, root_t, saved;
  Buffer<int32_t> exponent;
  std::vector<std::unique_ptr<Scratch<Real>>> scratch;  // of the threads
  std::vector<Real> dpi;

  int64_t bytes() const {
    return beta.bytes() + leaf.bytes() + scale.bytes() + exponent.bytes() + saved.bytes();
  }
};

// At most one workspace of up to kKeptBytes waits for the next call.
constexpr int64_t kKeptBytes = 160 << 20;

template <class Real>
class Lease {
 public:
  Lease() {
    const std::lock_guard<std::mutex> lock(guard());
    space_ = std::move(idle());
    if (!space_) space_ = std::make_unique<Workspace<Real>>();
  }
  ~Lease() {
    if (space_->bytes() > kKeptBytes) return;
    const std::lock_guard<std::mutex> lock(guard());
    idle() = std::move(space_);
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  Workspace<Real>& operator*() { return *space_; }

 private:
  static std::mutex& guard() {
    static std::mutex mutex;
    return mutex;
  }
  static std::unique_ptr<Workspace<Real>>& idle() {
    static std::unique_ptr<Workspace<Real>> space;
    return space;
  }
  std::unique_ptr<Workspace<Real>> space_;
};

// Numbers of a node's rows in a tile: they share the second cache with the model's tables.
constexpr int64_t kTileNumbers = 32768;

// Calls of less work, in multiply-adds, stay on the calling thread: waking others takes longer.
constexpr int64_t kThreadWork = 4 << 20;

inline Parallel worth(const Parallel& parallel, const Model& model, int64_t N) {
  const int64_t work = N * model.D * model.h * (model.h + 16);
  return work < kThreadWork ? Parallel{} : parallel;
}

template <class Real>
class Pass {
 public:
  // `keep`: what the nodes read of B is wanted after the upward pass.
  Pass(const Model& model, const Evidence& evidence, const Parallel& parallel, bool keep,
       Workspace<Real>& workspace)
      : model_(model),
        evidence_(evidence),
        parallel_(worth(parallel, model, evidence.N)),
        keep_(keep),
        space(workspace),
        plan(make_plan(model, std::max(parallel_.threads, 1))),
        kernel(kernels<Real>(model.h)),
        width((model.h + kernel.lanes - 1) / kernel.lanes * kernel.lanes) {
    const int64_t most = std::clamp<int64_t>(kTileNumbers / width, 128, 1024);
    tiles = std::max<int64_t>((evidence.N + most - 1) / most, 1);
    tile = (evidence.N + tiles - 1) / tiles;
    const int64_t threads = std::max(parallel_.threads, 1);
    while (static_cast<int64_t>(space.scratch.size()) < threads) {
      space.scratch.push_back(std::make_unique<Scratch<Real>>());
    }
  }

  // Calls f(i, scratch) for i < count, on all threads.
  template <class F>
  void each(int64_t count, F&& f) {
    const int64_t threads = std::min<int64_t>(std::max(parallel_.threads, 1), count);
    std::atomic<int64_t> next{0}, next_scratch{0};
    parallel_for(parallel_, threads, 1, [&](int64_t, int64_t) {
      Scratch<Real>& scratch = *space.scratch[Tree::at(next_scratch++)];
      for (int64_t i = next++; i < count; i = next++) f(i, scratch);
    });
  }

  // Slices of the tile's rows, in whole chunks, for the nodes above the units.
  int64_t slices() const {
    return std::min<int64_t>(std::max(parallel_.threads, 1), (samples + kChunk - 1) / kChunk);
  }
  int64_t slice_begin(int64_t i) const {
    const int64_t chunks = (samples + kChunk - 1) / kChunk;
    return std::min(i * chunks / slices() * kChunk, samples);
  }

  // Takes the samples [first, first + count): finds their rows and room for their messages.
  void start(int64_t from, int64_t count) {
    first = from;
    samples = count;
    Rows& rows = space.rows;
    rows.start(count);
    each(slices(), [&](int64_t i, Scratch<Real>&) {
      rows.read(evidence_, model_.K, first, slice_begin(i), slice_begin(i + 1));
    });
    each(static_cast<int64_t>(plan.units.size()) + 1, [&](int64_t i, Scratch<Real>& scratch) {
      scratch.classifier.values(model_.K + 1);
      if (i == 0) {
        for (const int64_t node : plan.top) rows.classify(plan, node, scratch.classifier);
        return;
      }
      const Unit& unit = plan.units[Tree::at(i - 1)];
      for (int64_t p = unit.end - 1; p >= unit.begin; --p) {
        rows.classify(plan, plan.tree.order[Tree::at(p)], scratch.classifier);
      }
    });
    offsets_.assign(Tree::at(model_.D + 1), 0);
    leaf_offsets_.assign(Tree::at(model_.D + 1), 0);
    for (int64_t p = 0; p < model_.D; ++p) {
      const int64_t node = plan.tree.order[Tree::at(p)];
      offsets_[Tree::at(p + 1)] = offsets_[Tree::at(p)] + rows.count(node);
      leaf_offsets_[Tree::at(p + 1)] = leaf_offsets_[Tree::at(p)] + rows.distinct_count(node);
    }
    const int64_t all = offsets_.back();
    space.beta.get((all + kSpareRows) * width);
    space.leaf.get(leaf_offsets_.back() * width);
    space.factor.get(leaf_offsets_.back());
    space.scale.get(model_.D * samples);
    space.exponent.get(all);
    space.p.get(samples);
  }

  // All messages upward and p of the root's rows. seen(node, u, slot) gets the node's rescaled rows
  // [begin, end) where `want` is set.
  template <class Seen>
  void up(bool want, Seen&& seen) {
    const auto units = static_cast<int64_t>(plan.units.size()),
               top = static_cast<int64_t>(plan.top.size());
    each(units + top, [&](int64_t i, Scratch<Real>& scratch) {
      if (i >= units) return read_leaf(plan.top[Tree::at(i - units)], scratch);
      const Unit& unit = plan.units[Tree::at(i)];
      for (int64_t p = unit.end - 1; p >= unit.begin; --p) {
        const int64_t node = plan.tree.order[Tree::at(p)];
        read_leaf(node, scratch);
        up_node(node, 0, space.rows.count(node), want, scratch, seen);
      }
    });
    each(slices(), [&](int64_t i, Scratch<Real>& scratch) {
      const int64_t begin = slice_begin(i), end = slice_begin(i + 1);
      for (auto node = plan.top.rbegin(); node != plan.top.rend(); ++node) {
        up_node(*node, begin, end, want, scratch, seen);
      }
      kernel.root(static_cast<const Real*>(model_.pi), beta(plan.tree.root) + begin * width,
                  end - begin, model_.h, width, space.p.data() + begin);
    });
  }

  // ll of the tile's samples.
  void finish(Real* ll) {
    constexpr double kLog2 = 0.693147180559945309417232121458;
    const int32_t* exponents = exponent(plan.tree.root);
    for (int64_t n = 0; n < samples; ++n) {
      const auto p = static_cast<double>(space.p.data()[n]);
      ll[first + n] = static_cast<Real>(std::log(p) + (p > 0 ? exponents[n] * kLog2 : 0.0));
    }
  }

  Real* beta(int64_t node) { return space.beta.data() + offset(node) * width; }
  int32_t* exponent(int64_t node) { return space.exponent.data() + offset(node); }
  Real* scale(int64_t node) { return space.scale.data() + node * samples; }

  // Rows [begin, end) of a node; its children are in the scratch.
  Node<Real> node_rows(int64_t node, int64_t begin, int64_t end, Scratch<Real>& scratch) {
    std::vector<Child<Real>>& children = scratch.children;
    const Tree& tree = plan.tree;
    children.clear();
    for (int64_t i = tree.child_count(node) - 1; i >= 0; --i) {
      const int64_t child = tree.child(node, i);
      children.push_back({.beta = beta(child),
                          .below = space.rows.below(tree, child),
                          .exponent = exponent(child),
                          .scale = scale(child)});
    }
    const int64_t h = model_.h, K = model_.K;
    const int64_t distinct_count = space.rows.distinct_count(node),
                  leaf_offset = leaf_offsets_[Tree::at(tree.position[Tree::at(node)])];
    Real *leaf = space.leaf.data() + leaf_offset * width,
         *factor = space.factor.data() + leaf_offset;
    if (!keep_ && !plan.dense[Tree::at(node)]) {
      leaf = scratch.leaf.get(distinct_count * width);
      factor = scratch.factor.get(distinct_count);
    }
    return {.h = h,
            .K = K,
            .A = node == tree.root ? nullptr : static_cast<const Real*>(model_.A) + node * h * h,
            .B = static_cast<const Real*>(model_.B) + node * h * K,
            .distinct = space.rows.distinct(node),
            .distinct_count = distinct_count,
            .leaf = leaf,
            .factor = factor,
            .values = space.rows.values(node),
            .rows = space.rows.count(node),
            .begin = begin,
            .end = end,
            .children = children.data(),
            .child_count = static_cast<int64_t>(children.size())};
  }

 private:
  int64_t offset(int64_t node) const {
    return offsets_[Tree::at(plan.tree.position[Tree::at(node)])];
  }

  void read_leaf(int64_t node, Scratch<Real>& scratch) {
    kernel.read_leaf(node_rows(node, 0, 0, scratch), scratch);
  }

  template <class Seen>
  void up_node(int64_t node, int64_t begin, int64_t end, bool want, Scratch<Real>& scratch,
               Seen& seen) {
    Upward<Real> work;
    work.node = node_rows(node, begin, end, scratch);
    work.exponent = exponent(node);
    work.beta = beta(node);
    if (want) work.u = scratch.rows.get((samples + kChunk) * width);
    kernel.up(work, scratch);
    if (!want) return;
    seen(node, begin, end, work.u);
    if (node != plan.tree.root) return;
    std::copy(work.u + begin * width, work.u + end * width, work.beta + begin * width);
  }

  const Model& model_;
  const Evidence& evidence_;
  const Parallel parallel_;
  const bool keep_;
  // [D + 1] of a position: rows, and occurring values, of the nodes before it.
  Ints offsets_, leaf_offsets_;

 public:
  Workspace<Real>& space;
  const Plan plan;
  const Kernels<Real>& kernel;
  const int64_t width;
  int64_t tiles = 0, tile = 0;
  int64_t first = 0, samples = 0;  // of the tile
};

}  // namespace nnkernels::pc
