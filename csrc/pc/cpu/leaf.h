// Rows of a node's B by value, and the way back for its derivative; for one instruction set.
#pragma once

#include <cstring>

#include "pc/cpu/products.h"
#include "pc/cpu/shuffle.h"
#include "pc/pc_math.h"

namespace nnkernels::pc {
namespace {

// The values of a node in blocks of `lanes`; the last one is not whole, or empty.
template <class Real>
struct Leaf {
  using V = Vec<Real>;
  using Reg = typename V::Reg;
  static constexpr int lanes = V::lanes;
  static constexpr int64_t kLineBytes = 64, kLineBlocks = kLineBytes / kVecBytes;

  const Node<Real>& node;
  const int64_t width, blocks;
  int32_t* slots;  // [blocks * lanes] of a value: its row of `leaf`, -1 where it does not occur
  int32_t* used;   // [blocks]

  Leaf(const Node<Real>& of, int64_t padded, Scratch<Real>& scratch)
      : node(of), width(padded), blocks(of.K / lanes + 1) {
    slots = scratch.slots.get(blocks * lanes + blocks);
    used = slots + blocks * lanes;
    std::fill(slots, used, -1);
    std::fill(used, used + blocks, 0);
    for (int64_t j = 0; j < node.distinct_count; ++j) {
      const int64_t value = node.distinct[j];
      slots[value] = static_cast<int32_t>(j);
      used[value / lanes] = 1;
    }
  }

  void read() const {
    for (int64_t b = 0; b < blocks; ++b) {
      if (!used[b]) continue;
      if (whole(b)) {
        read_block(b * lanes);
      } else {
        read_last();
      }
    }
    for (int64_t j = 0; j < node.distinct_count; ++j) normalise(j);
  }

  // sums [distinct_count, width] to dB [h, K], cache line by cache line.
  void finish(const Real* sums, const Downward<Real>& work) const {
    const bool stream = work.stream && !work.add &&
                        reinterpret_cast<uintptr_t>(work.dB) % kLineBytes == 0 &&
                        node.K * static_cast<int64_t>(sizeof(Real)) % kLineBytes == 0;
    const int64_t last = node.K / lanes;
    for (int64_t b = 0; b < last; b += kLineBlocks) {
      for (int64_t a = 0; a < node.h; a += lanes) {
        if (stream) {
          finish_line<true>(b, std::min(b + kLineBlocks, last), a, sums, work);
        } else {
          finish_line<false>(b, std::min(b + kLineBlocks, last), a, sums, work);
        }
      }
    }
    finish_last(sums, work);
    if (stream) V::end_stream();
  }

 private:
  bool whole(int64_t b) const { return (b + 1) * lanes <= node.K; }

  NNK_VEC void read_block(int64_t first) const {
    const int64_t h = node.h, K = node.K;
    const Real* B = node.B + first;
    // Of the next block: the rows are too far from each other for the machine to guess.
    for (int64_t a = 0; a < h; ++a) __builtin_prefetch(B + a * K + lanes);
    Real unused[lanes];
    Real* to[lanes];
    int64_t step[lanes];
    for (int i = 0; i < lanes; ++i) {
      const int32_t slot = slots[first + i];
      to[i] = slot < 0 ? unused : node.leaf + slot * width;
      step[i] = slot < 0 ? 0 : lanes;
    }
    for (int64_t a = 0; a < width; a += lanes) {
      Reg block[lanes];
      if (a + lanes <= h) {
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) block[i] = V::load(B + (a + i) * K);
      } else {
        for (int i = 0; i < lanes; ++i) block[i] = a + i < h ? V::load(B + (a + i) * K) : V::zero();
      }
      Shuffle<Real>::transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) {
        V::store(to[i], block[i]);
        to[i] += step[i];
      }
    }
  }

  void read_last() const {
    for (int64_t v = (blocks - 1) * lanes; v <= node.K; ++v) {
      if (slots[v] < 0) continue;
      Real* row = node.leaf + slots[v] * width;
      for (int64_t a = 0; a < width; ++a) {
        row[a] = a >= node.h ? Real{0} : v == node.K ? Real{1} : node.B[a * node.K + v];
      }
    }
  }

  NNK_VEC void normalise(int64_t j) const {
    Real* row = node.leaf + j * width;
    Reg most = V::load(row);
    for (int64_t a = lanes; a < width; a += lanes) most = V::max(most, V::load(row + a));
    node.factor[j] = to_unit(Shuffle<Real>::largest(most));
    const Reg by = V::set(node.factor[j]);
    for (int64_t a = 0; a < width; a += lanes) V::store(row + a, V::load(row + a) * by);
  }

  // Blocks [first, end) of rows a to a + lanes.
  template <bool stream>
  NNK_VEC void finish_line(int64_t first, int64_t end, int64_t a, const Real* sums,
                           const Downward<Real>& work) const {
    Reg blocks_of[kLineBlocks][lanes];
    for (int64_t b = first; b < end; ++b) {
      Reg(&block)[lanes] = blocks_of[b - first];
#pragma GCC unroll 16
      for (int i = 0; i < lanes; ++i) {
        const int64_t slot = used[b] ? slots[b * lanes + i] : -1;
        if (slot < 0) {
          block[i] = V::zero();
          continue;
        }
        // e = leaf / factor, and sums is by leaf.
        const Reg by =
            work.times ? V::load(node.leaf + slot * width + a) : V::set(node.factor[slot]);
        block[i] = V::load(sums + slot * width + a) * by;
      }
      if (used[b]) Shuffle<Real>::transpose(block);
    }
    const int64_t rows = std::min<int64_t>(lanes, node.h - a);
    for (int64_t i = 0; i < rows; ++i) {
      Real* to = work.dB + (a + i) * node.K + first * lanes;
      for (int64_t b = 0; b < end - first; ++b, to += lanes) {
        const Reg x = blocks_of[b][i];
        put<stream>(to, work.add ? x + V::load(to) : x);
      }
    }
  }

  template <bool stream>
  static NNK_VEC void put(Real* to, Reg x) {
    if constexpr (stream) {
      V::stream(to, x);
    } else {
      V::store(to, x);
    }
  }

  void finish_last(const Real* sums, const Downward<Real>& work) const {
    for (int64_t v = (blocks - 1) * lanes; v < node.K; ++v) {
      const int64_t slot = slots[v];
      for (int64_t a = 0; a < node.h; ++a) {
        Real x = 0;
        if (slot >= 0) {
          x = sums[slot * width + a] *
              (work.times ? node.leaf[slot * width + a] : node.factor[slot]);
        }
        Real& to = work.dB[a * node.K + v];
        to = work.add ? to + x : x;
      }
    }
  }
};

}  // namespace
}  // namespace nnkernels::pc
