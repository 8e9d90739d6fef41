// Rows of a node's B by value, and the way back for its derivative; for one instruction set.
#pragma once

#include <cstring>

#include "pc/cpu/products.h"
#include "pc/cpu/shuffle.h"
#include "pc/pc_math.h"

namespace nnkernels::pc {
namespace {

// The values of a node in blocks of `lanes`; the last one, not whole, ends with value K: missing.
template <class Real>
struct Leaf {
  using V = Vec<Real>;
  using Reg = typename V::Reg;
  static constexpr int lanes = V::lanes;

  const Node<Real>& node;
  int64_t width, blocks;
  Real *rows, *factor;  // [blocks * lanes, width], [blocks * lanes]
  char* used;           // [blocks]

  Leaf(const Node<Real>& of, int64_t padded, Scratch<Real>& scratch)
      : node(of), width(padded), blocks(of.K / lanes + 1) {
    rows = scratch.leaf.get((blocks * lanes + kSpareRows) * width);
    factor = scratch.factor.get(blocks * lanes);
    used = scratch.used.get(blocks);
    memset(used, 0, static_cast<size_t>(blocks));
    for (int64_t r = node.begin; r < node.end; ++r) used[node.values[r] / lanes] = 1;
    for (int64_t b = 0; b < blocks; ++b) {
      if (!used[b]) continue;
      if (whole(b)) {
        read_block(b * lanes);
      } else {
        read_last();
      }
    }
  }

  bool whole(int64_t b) const { return (b + 1) * lanes <= node.K; }

  // sums [blocks * lanes, width] by value, to dB [h, K].
  void finish(const Real* sums, const Downward<Real>& work) const {
    for (int64_t b = 0; b < blocks; ++b) {
      if (!whole(b)) {
        finish_last(sums, work);
      } else if (used[b]) {
        finish_block(b * lanes, sums, work);
      } else if (!work.add) {
        for (int64_t a = 0; a < node.h; ++a) V::store(work.dB + a * node.K + b * lanes, V::zero());
      }
    }
  }

 private:
  void read_block(int64_t first) {
    for (int64_t a = 0; a < width; a += lanes) {
      Reg block[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) {
        block[i] = a + i < node.h ? V::load(node.B + (a + i) * node.K + first) : V::zero();
      }
      Shuffle<Real>::transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) V::store(rows + (first + i) * width + a, block[i]);
    }
    for (int64_t v = first; v < first + lanes; ++v) normalise(v);
  }

  void read_last() {
    for (int64_t v = (blocks - 1) * lanes; v <= node.K; ++v) {
      for (int64_t a = 0; a < width; ++a) {
        const Real x = v == node.K ? Real{1} : a < node.h ? node.B[a * node.K + v] : Real{0};
        rows[v * width + a] = a < node.h ? x : Real{0};
      }
      normalise(v);
    }
  }

  void normalise(int64_t v) {
    Real* row = rows + v * width;
    Reg most = V::load(row);
    for (int64_t a = lanes; a < width; a += lanes) most = V::max(most, V::load(row + a));
    factor[v] = to_unit(Shuffle<Real>::largest(most));
    const Reg by = V::set(factor[v]);
    for (int64_t a = 0; a < width; a += lanes) V::store(row + a, V::load(row + a) * by);
  }

  void finish_block(int64_t first, const Real* sums, const Downward<Real>& work) const {
    for (int64_t a = 0; a < width; a += lanes) {
      Reg block[lanes];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) {
        block[i] = V::load(sums + (first + i) * width + a) * V::set(factor[first + i]);
      }
      Shuffle<Real>::transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) {
        if (a + i >= node.h) break;
        const int64_t at = (a + i) * node.K + first;
        Reg x = block[i];
        if (work.times) x = x * V::load(node.B + at);
        if (work.add) x = x + V::load(work.dB + at);
        V::store(work.dB + at, x);
      }
    }
  }

  void finish_last(const Real* sums, const Downward<Real>& work) const {
    for (int64_t v = (blocks - 1) * lanes; v < node.K; ++v) {
      for (int64_t a = 0; a < node.h; ++a) {
        const int64_t at = a * node.K + v;
        Real x = used[blocks - 1] ? sums[v * width + a] * factor[v] : Real{0};
        if (work.times) x *= node.B[at];
        work.dB[at] = work.add ? work.dB[at] + x : x;
      }
    }
  }
};

}  // namespace
}  // namespace nnkernels::pc
