#include <algorithm>

#include "gaunt/cpu/program.h"

namespace nnkernels::gaunt {
namespace {

// S = sum of x^n gz, of which x^k times other signals is built.
class Powers {
 public:
  explicit Powers(const PowerArgs& args)
      : args_(args),
        L_(std::min(args.degree, (args.n - 1) * args.degree + args.out_degree)),
        out_(std::min(args.out_degree, args.n * args.degree)),
        program_(args.samples.type, (args.n * L_ + out_) / 2 + 1),
        powers_(args.n + 1, -1) {
    const int64_t count = coefficients_of(L_);
    x_ = {program_.load(args.x, count), L_, scale_of(args.basis, false)};
    u_ = {program_.load(args.u, count), L_, scale_of(args.basis, false)};
    gz_ = {program_.load(args.gz, coefficients_of(out_)), out_, scale_of(args.basis, true)};
  }

  void forward() { store_z(power(args_.n), 1); }

  // n x^(n-1) gz
  void gradient() {
    const int gz = program_.synthesis(gz_, Flavour::value);
    store_x(args_.n == 1 ? gz : times(args_.n - 1, gz, out_, L_), args_.n);
  }

  // n x^(n-1) u and n (n-1) x^(n-2) gz u
  void second() {
    const int64_t n = args_.n;
    const int u = program_.synthesis(u_, Flavour::value);
    if (args_.z) store_z(n == 1 ? u : times(n - 1, u, L_, out_), n);
    if (!args_.gx) return;
    int grid = -1;
    if (n > 1) {
      const int gz = program_.synthesis(gz_, Flavour::value);
      const int64_t L = std::min(out_ + L_, (n - 1) * L_);
      grid = program_.multiply(gz, out_, u, L_, L);
      if (n > 2) grid = times(n - 2, grid, L, L_);
    }
    store_x(grid, n * (n - 1));
  }

  void run(const Parallel& parallel) const { program_.run(args_.samples, parallel); }

 private:
  // Frequencies of x^k that the rest of the form can meet.
  int64_t met(int64_t k) const { return std::min(k * L_, (args_.n - k) * L_ + out_); }

  int power(int64_t k) {
    if (k == 1) return program_.synthesis(x_, Flavour::value);
    if (powers_[k] < 0) {
      const int64_t half = k / 2;
      const int f = power(half), g = power(k - half);
      powers_[k] = program_.multiply(f, met(half), g, met(k - half), met(k));
    }
    return powers_[k];
  }

  int times(int64_t k, int grid, int64_t L, int64_t out) {
    return program_.multiply(power(k), met(k), grid, L, out);
  }

  void store_x(int grid, int64_t factor) { store(args_.gx, grid, L_, args_.degree, false, factor); }
  void store_z(int grid, int64_t factor) {
    store(args_.z, grid, out_, args_.out_degree, true, factor);
  }
  void store(const Array& array, int grid, int64_t used, int64_t L, bool inverse, int64_t factor) {
    const int x = program_.analysis(Kind::even, used, scale_of(args_.basis, inverse), grid);
    program_.scale(x, coefficients_of(used), static_cast<double>(factor));
    program_.store(array, x, coefficients_of(L));
  }

  const PowerArgs& args_;
  int64_t L_, out_;
  Program program_;
  std::vector<int> powers_;
  Signal x_, u_, gz_;
};

}  // namespace

void power(const PowerArgs& args, const Parallel& parallel) {
  Powers powers(args);
  powers.forward();
  powers.run(parallel);
}
void power_grad(const PowerArgs& args, const Parallel& parallel) {
  Powers powers(args);
  powers.gradient();
  powers.run(parallel);
}
void power_grad_grad(const PowerArgs& args, const Parallel& parallel) {
  Powers powers(args);
  powers.second();
  powers.run(parallel);
}

}  // namespace nnkernels::gaunt
