// Hidden Chow-Liu trees in double: the sum over all hidden states, plain recursion, and random
// models.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "pc/pc.h"

namespace nnkernels::pc {
namespace {

using Numbers = std::vector<double>;

enum class Shape { random, chain, star };

struct Case {
  int64_t D = 1, h = 1, K = 2, N = 1;
  Shape shape = Shape::random;
  Type type = Type::float32;
  Symbol symbol = Symbol::uint8;
  bool missing = false, weighted = false;
  double zeros = 0;            // share of parameters that are 0
  int64_t configurations = 0;  // samples repeat so many; 0: all are drawn
};

struct Data {
  std::vector<int64_t> parent, order;
  Numbers pi, A, B, weights;
  std::vector<int64_t> x;     // [N, D]
  std::vector<char> missing;  // [N, D]
};

inline size_t at(int64_t i) { return static_cast<size_t>(i); }

// Rows of `width` numbers that sum to 1; with zeros, but never a whole row of them.
[[maybe_unused]] Numbers distributions(int64_t rows, int64_t width, double zeros,
                                       std::mt19937& generator, Type type) {
  std::uniform_real_distribution<double> uniform;
  Numbers numbers(at(rows * width));
  for (int64_t r = 0; r < rows; ++r) {
    double* row = numbers.data() + r * width;
    double sum = 0;
    for (int64_t i = 0; i < width; ++i) {
      row[i] = i > 0 && uniform(generator) < zeros ? 0 : std::pow(uniform(generator), 3) + 1e-6;
      sum += row[i];
    }
    for (int64_t i = 0; i < width; ++i) {
      row[i] /= sum;
      if (type == Type::float32) row[i] = static_cast<float>(row[i]);
    }
  }
  return numbers;
}

// Nodes are named at random; `order` visits the children of a node by their size, then name.
[[maybe_unused]] void random_tree(const Case& c, std::mt19937& generator, Data& data) {
  std::vector<int64_t> name(at(c.D)), size(at(c.D), 1);
  for (int64_t i = 0; i < c.D; ++i) name[at(i)] = i;
  std::shuffle(name.begin(), name.end(), generator);
  data.parent.assign(at(c.D), -1);
  for (int64_t i = 1; i < c.D; ++i) {
    const int64_t above = c.shape == Shape::chain  ? i - 1
                          : c.shape == Shape::star ? 0
                                                   : static_cast<int64_t>(generator() % at(i));
    data.parent[at(name[at(i)])] = name[at(above)];
  }
  for (int64_t i = c.D - 1; i > 0; --i) {
    size[at(data.parent[at(name[at(i)])])] += size[at(name[at(i)])];
  }
  std::vector<int64_t> waiting{name[0]};
  while (!waiting.empty()) {
    const int64_t node = waiting.back();
    waiting.pop_back();
    data.order.push_back(node);
    std::vector<int64_t> children;
    for (int64_t i = 0; i < c.D; ++i) {
      if (data.parent[at(i)] == node) children.push_back(i);
    }
    std::sort(children.begin(), children.end(), [&](int64_t a, int64_t b) {
      return size[at(a)] != size[at(b)] ? size[at(a)] > size[at(b)] : a > b;
    });
    waiting.insert(waiting.end(), children.begin(), children.end());
  }
}

[[maybe_unused]] Data random_data(const Case& c, unsigned seed) {
  std::mt19937 generator(seed);
  Data data;
  random_tree(c, generator, data);
  data.pi = distributions(1, c.h, 0, generator, c.type);
  data.A = distributions(c.D * c.h, c.h, c.zeros, generator, c.type);
  data.B = distributions(c.D * c.h, c.K, c.zeros, generator, c.type);
  std::uniform_real_distribution<double> uniform;
  for (int64_t n = 0; n < c.N; ++n) {
    const int64_t like = c.configurations > 0 && n >= c.configurations
                             ? static_cast<int64_t>(generator() % at(c.configurations))
                             : -1;
    for (int64_t i = 0; i < c.D; ++i) {
      // A few variables differ even between samples that are otherwise alike.
      const bool copy = like >= 0 && generator() % at(c.D + 1) != 0;
      data.missing.push_back(copy ? data.missing[at(like * c.D + i)]
                                  : c.missing && generator() % 4 == 0);
      data.x.push_back(copy ? data.x[at(like * c.D + i)]
                            : static_cast<int64_t>(generator() % at(c.K)));
    }
    const double w = std::floor(7 * uniform(generator)) - 2;
    data.weights.push_back(c.weighted ? w : 1.0);
  }
  return data;
}

struct Expected {
  Numbers ll, pi, A, B;  // the derivatives of sum weights ll
};

// Upward and downward with sums as they stand in the definition; p(x) must be a normal number.
class Reference {
 public:
  Reference(const Case& c, const Data& data) : c_(c), data_(data) {}

  Expected operator()() {
    const int64_t h = c_.h, root = data_.order[0];
    out_.pi.assign(at(h), 0.0);
    out_.A.assign(at(c_.D * h * h), 0.0);
    out_.B.assign(at(c_.D * h * c_.K), 0.0);
    for (int64_t n = 0; n < c_.N; ++n) {
      up(n);
      double p = 0;
      for (int64_t a = 0; a < h; ++a) p += data_.pi[at(a)] * u_[at(root * h + a)];
      out_.ll.push_back(std::log(p));
      if (p > 0) down(n, data_.weights[at(n)] / p);
    }
    return out_;
  }

 private:
  double leaf(int64_t n, int64_t i, int64_t a) const {
    if (data_.missing[at(n * c_.D + i)]) return 1;
    return data_.B[at((i * c_.h + a) * c_.K + data_.x[at(n * c_.D + i)])];
  }

  void up(int64_t n) {
    const int64_t h = c_.h;
    u_.assign(at(c_.D * h), 1.0);
    beta_.assign(at(c_.D * h), 0.0);
    for (int64_t p = c_.D - 1; p >= 0; --p) {
      const int64_t i = data_.order[at(p)], above = data_.parent[at(i)];
      for (int64_t a = 0; a < h; ++a) u_[at(i * h + a)] *= leaf(n, i, a);
      if (above < 0) continue;
      for (int64_t a = 0; a < h; ++a) {
        double& beta = beta_[at(i * h + a)];
        for (int64_t b = 0; b < h; ++b) {
          beta += data_.A[at((i * h + a) * h + b)] * u_[at(i * h + b)];
        }
        u_[at(above * h + a)] *= beta;
      }
    }
  }

  void down(int64_t n, double factor) {
    const int64_t h = c_.h, K = c_.K;
    Numbers t(at(c_.D * h), 0.0);  // derivative by u
    for (int64_t p = 0; p < c_.D; ++p) {
      const int64_t i = data_.order[at(p)], above = data_.parent[at(i)];
      for (int64_t b = 0; b < h; ++b) {
        if (above < 0) {
          t[at(i * h + b)] = factor * data_.pi[at(b)];
          out_.pi[at(b)] += factor * u_[at(i * h + b)];
          continue;
        }
        for (int64_t a = 0; a < h; ++a) {
          double q = t[at(above * h + a)] * leaf(n, above, a);
          for (int64_t s = 0; s < c_.D; ++s) {
            if (s != i && data_.parent[at(s)] == above) q *= beta_[at(s * h + a)];
          }
          t[at(i * h + b)] += q * data_.A[at((i * h + a) * h + b)];
          out_.A[at((i * h + a) * h + b)] += q * u_[at(i * h + b)];
        }
      }
      if (data_.missing[at(n * c_.D + i)]) continue;
      for (int64_t a = 0; a < h; ++a) {
        double r = t[at(i * h + a)];
        for (int64_t s = 0; s < c_.D; ++s) {
          if (data_.parent[at(s)] == i) r *= beta_[at(s * h + a)];
        }
        out_.B[at((i * h + a) * K + data_.x[at(n * c_.D + i)])] += r;
      }
    }
  }

  const Case& c_;
  const Data& data_;
  Numbers u_, beta_;
  Expected out_;
};

// p(x) as the sum over every assignment of hidden states.
[[maybe_unused]] double enumerated(const Case& c, const Data& data, int64_t n) {
  double total = 0;
  std::vector<int64_t> z(at(c.D), 0);
  for (;;) {
    double p = 1;
    for (int64_t i = 0; i < c.D; ++i) {
      const int64_t above = data.parent[at(i)];
      p *=
          above < 0 ? data.pi[at(z[at(i)])] : data.A[at((i * c.h + z[at(above)]) * c.h + z[at(i)])];
      if (!data.missing[at(n * c.D + i)]) {
        p *= data.B[at((i * c.h + z[at(i)]) * c.K + data.x[at(n * c.D + i)])];
      }
    }
    total += p;
    int64_t i = 0;
    while (i < c.D && ++z[at(i)] == c.h) z[at(i++)] = 0;
    if (i == c.D) return total;
  }
}

}  // namespace
}  // namespace nnkernels::pc
