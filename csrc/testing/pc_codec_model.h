// Random frozen models and data for the tests of the codec.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "pc/codec.h"

namespace nnkernels::pc {
namespace {

enum class Shape { random, chain, star };

struct RandomModel {
  int64_t D, h, K;
  std::vector<float> pi, A, B, C;
  std::vector<int64_t> parent, order;

  RandomModel(int64_t variables, int64_t states, int64_t values, unsigned seed,
              Shape shape = Shape::random, double power = 12)
      : D(variables), h(states), K(values), random_(seed), power_(power) {
    parent.assign(static_cast<size_t>(D), -1);
    // Variable names are shuffled, so that they are not the order of the tree.
    std::vector<int64_t> name(static_cast<size_t>(D));
    for (int64_t i = 0; i < D; ++i) name[static_cast<size_t>(i)] = i;
    std::shuffle(name.begin(), name.end(), random_);
    for (int64_t i = 1; i < D; ++i) {
      const int64_t above = shape == Shape::chain  ? i - 1
                            : shape == Shape::star ? 0
                                                   : static_cast<int64_t>(random_()) % i;
      parent[static_cast<size_t>(name[static_cast<size_t>(i)])] = name[static_cast<size_t>(above)];
    }
    visit(name[0]);
    fill(pi, 1, h);
    fill(A, D * h, h);
    fill(B, D * h, K);
    for (int64_t r = 0; r < D * h; ++r) {
      double sum = 0;
      C.push_back(0);
      for (int64_t v = 0; v < K; ++v) {
        sum += B[static_cast<size_t>(r * K + v)];
        C.push_back(v + 1 == K ? 1.0f : std::clamp(static_cast<float>(sum), C.back(), 1.0f));
      }
    }
  }

  FrozenModel frozen(int precision) const {
    return frozen_model(pi.data(), A.data(), B.data(), C.data(), parent.data(), order.data(), D, h,
                        K, precision);
  }

  template <class Number>
  std::vector<Number> data(int64_t N, unsigned seed) const {
    std::mt19937 random(seed);
    std::vector<Number> x;
    for (int64_t i = 0; i < N * D; ++i)
      x.push_back(static_cast<Number>(static_cast<int64_t>(random()) % K));
    return x;
  }

 private:
  void visit(int64_t node) {
    order.push_back(node);
    for (int64_t i = 0; i < D; ++i) {
      if (parent[static_cast<size_t>(i)] == node) visit(i);
    }
  }

  // Rows of sum 1 with entries from 2^-30 on.
  void fill(std::vector<float>& table, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; ++r) {
      std::vector<double> row;
      double sum = 0;
      for (int64_t i = 0; i < columns; ++i) {
        const double u = static_cast<double>(random_()) / 4294967296.0;
        row.push_back(std::max(std::pow(u, power_), 0x1p-30));
        sum += row.back();
      }
      for (const double x : row) table.push_back(static_cast<float>(x / sum));
    }
  }

  std::mt19937 random_;
  double power_;  // how unlike the entries of a row are
};

}  // namespace
}  // namespace nnkernels::pc
