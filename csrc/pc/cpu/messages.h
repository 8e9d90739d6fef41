// The messages of a node, upward and downward; for one instruction set.
#pragma once

#include "pc/cpu/leaf.h"

namespace nnkernels::pc {
namespace {

// `vectors` as in products.h.
template <class Real, int vectors>
struct Messages {
  using V = Vec<Real>;
  using Reg = typename V::Reg;
  static constexpr int lanes = V::lanes;
  // Vectors of a row, in registers where their number is known.
  static constexpr int most = vectors > 0 ? vectors : kMaxStates / lanes;
  using Row = Reg[most];

  static NNK_VEC int64_t count(int64_t width) { return vectors > 0 ? vectors : width / lanes; }

  // Padded to `width` columns: weights[b][a] = A[a][b].
  static void transpose(const Real* A, int64_t h, int64_t width, Real* weights) {
    for (int64_t b = 0; b < h; b += lanes) {
      for (int64_t a = 0; a < width; a += lanes) {
        Reg block[lanes];
        if (b + lanes <= h) {
#pragma GCC unroll 16
          for (int i = 0; i < lanes; ++i) {
            block[i] = a + i < h ? V::load(A + (a + i) * h + b) : V::zero();
          }
        } else {
          for (int i = 0; i < lanes; ++i) {
            block[i] = V::zero();
            for (int64_t j = 0; a + i < h && b + j < h; ++j) block[i][j] = A[(a + i) * h + b + j];
          }
        }
        Shuffle<Real>::transpose(block);
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) V::store(weights + (b + i) * width + a, block[i]);
      }
    }
  }

  static const Real* padded(const Real* A, int64_t h, int64_t width, Scratch<Real>& scratch) {
    if (width == h) return A;
    Real* weights = scratch.weights.get(width * width);
    for (int64_t a = 0; a < h; ++a) {
      for (int64_t b = 0; b < width; ++b) weights[a * width + b] = b < h ? A[a * h + b] : Real{0};
    }
    return weights;
  }

  static void up(const Upward<Real>& work, int64_t padded_width, Scratch<Real>& scratch) {
    const Node<Real>& node = work.node;
    const int64_t width = width_of<Real, vectors>(padded_width);
    Real* weights = scratch.weights.get((width + lanes) * width);
    if (node.A) transpose(node.A, node.h, width, weights);
    Real* spare = scratch.u.get((kChunk + kSpareRows) * width);
    Real* products = scratch.t.get((kChunk + kSpareRows) * width);
    for (int64_t first = node.begin; first < node.end; first += kChunk) {
      const int64_t rows = std::min(kChunk, node.end - first);
      Real* u = work.u ? work.u + first * width : node.A ? spare : work.beta + first * width;
      for (int64_t i = 0; i < rows; ++i) {
        up_row(work, first + i, width, u + i * width);
      }
      if (!node.A) continue;
      Real* beta = work.beta + first * width;
      const bool whole = rows == kChunk;
      multiply<Real, vectors>(u, weights, rows, node.h, width, whole ? beta : products);
      if (!whole) memcpy(beta, products, static_cast<size_t>(rows * width) * sizeof(Real));
    }
  }

  static void down(const Downward<Real>& work, int64_t padded_width, Scratch<Real>& scratch) {
    const Node<Real>& node = work.node;
    const int64_t width = width_of<Real, vectors>(padded_width);
    const Real* weights = node.A ? padded(node.A, node.h, width, scratch) : nullptr;
    Real* t = scratch.t.get((kChunk + kSpareRows) * width);
    Real* prefix = scratch.prefix.get((node.child_count + 1) * width);
    Real *dA = nullptr, *dB = nullptr;
    if (work.count) {
      dA = scratch.dA.get(width * width);
      if (node.A) memset(dA, 0, static_cast<size_t>(width * width) * sizeof(Real));
      dB = scratch.dB.get(node.distinct_count * width);
      memset(dB, 0, static_cast<size_t>(node.distinct_count * width) * sizeof(Real));
    }
    for (int64_t first = node.begin; first < node.end; first += kChunk) {
      const int64_t rows = std::min(kChunk, node.end - first);
      Real* u = work.u ? work.u + first * width : scratch.u.get(kChunk * width);
      Real* ends = work.ends ? work.ends + first * width : scratch.ends.get(kChunk * width);
      const Real* q = work.q + first * width;
      if (work.spread) {
        if (node.A) multiply<Real, vectors>(q, weights, rows, node.h, width, t);
        for (int64_t i = 0; i < rows; ++i) {
          down_row(node, first + i, width, (node.A ? t : q) + i * width, prefix, u + i * width,
                   ends + i * width);
        }
      }
      if (work.count) {
        if (node.A) accumulate<Real, vectors>(q, u, rows, width, dA);
        for (int64_t i = 0; i < rows; ++i) {
          Real* to = dB + node.values[first + i] * width;
          add(ends + i * width, width, to);
        }
      }
    }
    if (!work.count) return;
    Leaf<Real>(node, width, scratch).finish(dB, work);
    if (node.A) finish(dA, width, work);
  }

  static NNK_VEC void add(const Real* from, int64_t width, Real* to) {
    for (int64_t j = 0; j < count(width); ++j) {
      V::store(to + j * lanes, V::load(to + j * lanes) + V::load(from + j * lanes));
    }
  }

 private:
  static NNK_VEC void up_row(const Upward<Real>& work, int64_t r, int64_t width, Real* u) {
    const Node<Real>& node = work.node;
    const int64_t vecs = count(width), value = node.values[r];
    Row p;
#pragma GCC unroll 8
    for (int64_t j = 0; j < vecs; ++j) p[j] = V::load(node.leaf + value * width + j * lanes);
    int32_t exponent = exponent_of(node.factor[value]);
    for (int64_t c = 0; c < node.child_count; ++c) {
      const Child<Real>& child = node.children[c];
      const int64_t below = child.below ? child.below[r] : r;
      const Real* beta = child.beta + below * width;
      p[0] = p[0] * V::load(beta);
      Reg largest = p[0];
#pragma GCC unroll 8
      for (int64_t j = 1; j < vecs; ++j) {
        p[j] = p[j] * V::load(beta + j * lanes);
        largest = V::max(largest, p[j]);
      }
      const Real scale = to_unit(Shuffle<Real>::largest(largest));
      const Reg by = V::set(scale);
#pragma GCC unroll 8
      for (int64_t j = 0; j < vecs; ++j) p[j] = p[j] * by;
      child.scale[r] = scale;
      exponent += child.exponent[below] + exponent_of(scale);
    }
#pragma GCC unroll 8
    for (int64_t j = 0; j < vecs; ++j) V::store(u + j * lanes, p[j]);
    work.exponent[r] = exponent;
  }

  static NNK_VEC void down_row(const Node<Real>& node, int64_t r, int64_t width, const Real* t,
                               Real* prefix, Real* u, Real* end) {
    const int64_t vecs = count(width), children = node.child_count;
    const Real* e = node.leaf + node.values[r] * width;
    if (children == 0) {
      for (int64_t j = 0; j < vecs; ++j) {
        V::store(u + j * lanes, V::load(e + j * lanes));
        V::store(end + j * lanes, V::load(t + j * lanes));
      }
      return;
    }
    if (children == 1) {
      const Child<Real>& child = node.children[0];
      const Real* beta = child.beta + (child.below ? child.below[r] : r) * width;
      const Reg scale = V::set(child.scale[r]);
      Real* q = child.q + (child.q_below ? child.q_below[r] : r) * width;
#pragma GCC unroll 8
      for (int64_t j = 0; j < vecs; ++j) {
        const Reg ej = V::load(e + j * lanes), tj = V::load(t + j * lanes);
        const Reg b = V::load(beta + j * lanes) * scale;
        V::store(u + j * lanes, ej * b);
        V::store(end + j * lanes, tj * b);
        const Reg x = ej * tj * scale;
        V::store(q + j * lanes, child.q_below ? x + V::load(q + j * lanes) : x);
      }
      return;
    }
    Row x;
    for (int64_t j = 0; j < vecs; ++j) x[j] = V::load(e + j * lanes);
    for (int64_t c = 0; c < children; ++c) {
      const Child<Real>& child = node.children[c];
      const Real* beta = child.beta + (child.below ? child.below[r] : r) * width;
      const Reg scale = V::set(child.scale[r]);
      for (int64_t j = 0; j < vecs; ++j) {
        V::store(prefix + c * width + j * lanes, x[j]);
        x[j] = x[j] * (V::load(beta + j * lanes) * scale);
      }
    }
    for (int64_t j = 0; j < vecs; ++j) {
      V::store(u + j * lanes, x[j]);
      x[j] = V::load(t + j * lanes);
    }
    for (int64_t c = children - 1; c >= 0; --c) {
      const Child<Real>& child = node.children[c];
      const Real* beta = child.beta + (child.below ? child.below[r] : r) * width;
      const Reg scale = V::set(child.scale[r]);
      Real* q = child.q + (child.q_below ? child.q_below[r] : r) * width;
      for (int64_t j = 0; j < vecs; ++j) {
        const Reg b = V::load(beta + j * lanes) * scale;
        const Reg y = V::load(prefix + c * width + j * lanes) * x[j] * scale;
        V::store(q + j * lanes, child.q_below ? y + V::load(q + j * lanes) : y);
        x[j] = x[j] * b;
      }
    }
    for (int64_t j = 0; j < vecs; ++j) V::store(end + j * lanes, x[j]);
  }

  static void finish(const Real* dA, int64_t width, const Downward<Real>& work) {
    const int64_t h = work.node.h;
    for (int64_t a = 0; a < h; ++a) {
      const Real *from = dA + a * width, *A = work.node.A + a * h;
      Real* to = work.dA + a * h;
      for (int64_t b = 0; b < h; ++b) {
        const Real x = work.times ? from[b] * A[b] : from[b];
        to[b] = work.add ? to[b] + x : x;
      }
    }
  }
};

}  // namespace
}  // namespace nnkernels::pc
