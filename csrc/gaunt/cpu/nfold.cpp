#include <algorithm>
#include <numeric>
#include <optional>

#include "gaunt/cpu/program.h"

namespace nnkernels::gaunt {
namespace {

// A product of signals on the rings, and its tangent. -1: is 0.
struct Dual {
  int value = -1, slope = -1;
  int64_t L = 0;
};

// The (n + 1)-linear form of n factors and gz, the last signal: products of all signals but one.
class Form {
 public:
  Form(const NfoldArgs& args, bool second)
      : count_(static_cast<int64_t>(args.degrees.size()) + 1),
        degrees_(used_degrees(args)),
        program_(args.samples.type, std::reduce(degrees_.begin(), degrees_.end()) / 2 + 1),
        heads_(count_ + 1),
        tails_(count_ + 1) {
    for (int64_t i = 0; i < count_; ++i) {
      const bool last = i + 1 == count_;
      const int64_t L = degrees_[i];
      const Scale scale = scale_of(args.basis, last);
      scales_.push_back(scale);
      const Array none;
      const Array& value = last ? args.gz : args.x[i];
      const Array& slope = last || !second ? none : args.u[i];
      values_.push_back({program_.load(value, coefficients_of(L)), L, scale});
      slopes_.push_back({program_.load(slope, coefficients_of(L)), L, scale});
    }
  }

  // Stores the derivative by signal i, or its tangent.
  void store(const Array& array, int64_t i, int64_t L, bool second) {
    if (!array) return;
    Dual all;
    if (i == 0) {
      all = tail(1);
    } else if (i + 1 == count_) {
      all = head(i);
    } else {
      all = multiply(head(i), tail(i + 1), degrees_[i], !second);
    }
    const int grid = second ? all.slope : all.value;
    const int x = program_.analysis(Kind::even, degrees_[i], scales_[i], grid);
    program_.store(array, x, coefficients_of(L));
  }

  void run(const Samples& samples, const Parallel& parallel) const {
    program_.run(samples, parallel);
  }

 private:
  // Degrees that take part: no signal needs more than the others together can meet.
  static std::vector<int64_t> used_degrees(const NfoldArgs& args) {
    std::vector<int64_t> degrees = args.degrees;
    degrees.push_back(args.out_degree);
    const int64_t sum = std::reduce(degrees.begin(), degrees.end());
    for (int64_t& L : degrees) {
      if (2 * L > sum) {
        L = sum - L;
        break;
      }
    }
    return degrees;
  }

  Dual signal(int64_t i) {
    return {program_.synthesis(values_[i], Flavour::value),
            program_.synthesis(slopes_[i], Flavour::value), degrees_[i]};
  }

  // Products of the signals before i, and of those from i on; frequencies that the others cannot
  // meet are dropped.
  Dual head(int64_t i) {
    if (!heads_[i])
      heads_[i] = i == 1 ? signal(0) : multiply(head(i - 1), signal(i - 1), met(0, i));
    return *heads_[i];
  }
  Dual tail(int64_t i) {
    if (!tails_[i]) {
      tails_[i] = i + 1 == count_ ? signal(i) : multiply(signal(i), tail(i + 1), met(i, count_));
    }
    return *tails_[i];
  }
  int64_t met(int64_t first, int64_t last) const {
    const int64_t inside = std::reduce(degrees_.begin() + first, degrees_.begin() + last);
    return std::min(inside, std::reduce(degrees_.begin(), degrees_.end()) - inside);
  }

  Dual multiply(const Dual& f, const Dual& g, int64_t L, bool value = true) {
    Dual h{-1, -1, L};
    if (value) h.value = program_.multiply(f.value, f.L, g.value, g.L, L);
    h.slope = program_.multiply(f.slope, f.L, g.value, g.L, L);
    h.slope = program_.multiply(f.value, f.L, g.slope, g.L, L, h.slope);
    return h;
  }

  int64_t count_;
  std::vector<int64_t> degrees_;
  Program program_;
  std::vector<Signal> values_, slopes_;
  std::vector<Scale> scales_;
  std::vector<std::optional<Dual>> heads_, tails_;
};

void derivatives(const NfoldArgs& args, bool second, const Parallel& parallel) {
  Form form(args, second);
  const auto n = static_cast<int64_t>(args.degrees.size());
  form.store(args.z, n, args.out_degree, second);
  for (int64_t i = 0; i < static_cast<int64_t>(args.gx.size()); ++i) {
    form.store(args.gx[i], i, args.degrees[i], second);
  }
  form.run(args.samples, parallel);
}

}  // namespace

void nfold(const NfoldArgs& args, const Parallel& parallel) { derivatives(args, false, parallel); }
void nfold_grad(const NfoldArgs& args, const Parallel& parallel) {
  derivatives(args, false, parallel);
}
void nfold_grad_grad(const NfoldArgs& args, const Parallel& parallel) {
  derivatives(args, true, parallel);
}

}  // namespace nnkernels::gaunt
