#include "gaunt/cpu/program.h"

#include <algorithm>

namespace nnkernels::gaunt {

int Program::add_buffer(Buffer buffer) {
  buffers_.push_back(buffer);
  return static_cast<int>(buffers_.size()) - 1;
}

void Program::widen(int x, int64_t count) {
  buffers_[x].vectors = std::max(buffers_[x].vectors, count);
}

int Program::zeros(int64_t count) { return add_buffer({count, -1, false}); }

int Program::load(const Array& array, int64_t count) {
  if (!array) return -1;
  const int out = zeros(count);
  before_.push_back(
      {.what = Step::Do::load, .out = out, .operand = static_cast<int>(operands_.size())});
  operands_.push_back({array, count, false});
  return out;
}

void Program::store(const Array& array, int x, int64_t count) {
  if (!array) return;
  if (x < 0) x = zeros(count);
  widen(x, count);
  after_.push_back(
      {.what = Step::Do::store, .x = x, .operand = static_cast<int>(operands_.size())});
  operands_.push_back({array, count, true});
}

int Program::weigh(int64_t L, int x, int w, int out) {
  if (x < 0 || w < 0) return out;
  const bool is_late = late(x) || late(w) || late(out);
  const Store store = out < 0 ? Store::set : Store::add;
  if (out < 0) out = add_buffer({coefficients_of(L), -1, is_late});
  phase(is_late).push_back(
      {.what = Step::Do::weigh, .L = L, .x = x, .w = w, .out = out, .store = store});
  return out;
}

int Program::dot(int64_t L, int x, int y, int out) {
  if (x < 0 || y < 0) return out;
  const Store store = out < 0 ? Store::set : Store::add;
  if (out < 0) out = add_buffer({L + 1, -1, true});
  after_.push_back({.what = Step::Do::dot, .L = L, .x = x, .y = y, .out = out, .store = store});
  return out;
}

int Program::contract(const std::vector<Term>& terms, int x, int y, int w, int64_t count, int out) {
  if (x < 0 || y < 0 || w < 0) return out;
  const Store store = out < 0 ? Store::set : Store::add;
  if (out < 0) out = add_buffer({count, -1, true});
  after_.push_back({.what = Step::Do::contract,
                    .L = count,
                    .x = x,
                    .y = y,
                    .w = w,
                    .out = out,
                    .terms = &terms,
                    .store = store});
  return out;
}

int Program::transform(int64_t rows, int64_t columns, const void* matrix, int x) {
  const int out = add_buffer({rows, -1, true});
  after_.push_back(
      {.what = Step::Do::transform, .L = columns, .x = x, .out = out, .Lx = rows, .table = matrix});
  return out;
}

void Program::scale(int x, int64_t count, double factor) {
  if (x < 0 || factor == 1) return;
  after_.push_back({.what = Step::Do::scale, .L = count, .x = x, .factor = factor});
}

int Program::synthesis(Signal& f, Flavour flavour) {
  int& grid = flavour == Flavour::value ? f.value : flavour == Flavour::theta ? f.theta : f.alpha;
  if (f.x < 0 || grid >= 0) return grid;
  const auto table =
      type_ == Type::float64
          ? static_cast<const void*>(synthesis_table<double>(f.L, rings_, flavour, f.scale))
          : synthesis_table<float>(f.L, rings_, flavour, f.scale);
  grid = add_buffer({0, f.L, true});
  on_rings_.push_back({.what = Step::Do::synthesis,
                       .L = f.L,
                       .x = f.x,
                       .out = grid,
                       .table = table,
                       .turn = flavour == Flavour::alpha,
                       .synthesis = synthesis_for(*kernels_, f.L)});
  return grid;
}

int Program::multiply(int f, int64_t Lf, int g, int64_t Lg, int64_t L, int out, Store store) {
  if (f < 0 || g < 0) return out;
  if (out < 0) {
    out = add_buffer({0, L, true});
    store = Store::set;
  }
  // Kernels for degrees known at build time take the lower one first.
  if (Lf > Lg) {
    std::swap(f, g);
    std::swap(Lf, Lg);
  }
  on_rings_.push_back({.what = Step::Do::convolve,
                       .L = L,
                       .x = f,
                       .y = g,
                       .out = out,
                       .Lx = Lf,
                       .Ly = Lg,
                       .store = store,
                       .convolve = convolve_for(*kernels_, Lf, Lg, L)});
  return out;
}

int Program::product(Kind kind, Signal& f, Signal& g, int64_t L, int out) {
  if (f.x < 0 || g.x < 0) return out;
  if (kind == Kind::even) {
    const int f_value = synthesis(f, Flavour::value), g_value = synthesis(g, Flavour::value);
    return multiply(f_value, f.L, g_value, g.L, L, out);
  }
  const int f_theta = synthesis(f, Flavour::theta), g_alpha = synthesis(g, Flavour::alpha);
  out = multiply(f_theta, f.L, g_alpha, g.L, L, out);
  const int f_alpha = synthesis(f, Flavour::alpha), g_theta = synthesis(g, Flavour::theta);
  return multiply(f_alpha, f.L, g_theta, g.L, L, out, Store::subtract);
}

bool Program::direct_is_faster(int64_t Lf, int64_t Lg, int64_t L) const {
  return direct_for(*kernels_, std::min(Lf, Lg), std::max(Lf, Lg), L) != nullptr;
}

int Program::direct(const Signal& f, const Signal& g, int64_t L, Scale scale, int out) {
  if (f.x < 0 || g.x < 0) return out;
  if (f.L > g.L) return direct(g, f, L, scale, out);
  const DirectKernel& kernel = *direct_for(*kernels_, f.L, g.L, L);
  const Store store = out < 0 ? Store::set : Store::add;
  if (out < 0) out = add_buffer({coefficients_of(L), -1, true});
  after_.push_back({.what = Step::Do::direct,
                    .x = f.x,
                    .y = g.x,
                    .out = out,
                    .table = direct_table(type_ == Type::float64, kernel, f.scale, g.scale, scale),
                    .store = store,
                    .direct = kernel.run});
  return out;
}

int Program::analysis(Kind kind, int64_t L, Scale scale, int grid) {
  if (grid < 0) return -1;
  const auto table = type_ == Type::float64
                         ? static_cast<const void*>(analysis_table<double>(L, rings_, scale))
                         : analysis_table<float>(L, rings_, scale);
  const int out = add_buffer({coefficients_of(L), -1, true});
  // Where theta is mirrored, derivatives by theta change their sign: synthesis does not, this does.
  on_rings_.push_back({.what = Step::Do::analysis,
                       .L = L,
                       .x = grid,
                       .out = out,
                       .table = table,
                       .factor = kind == Kind::cross ? -1.0 : 1.0,
                       .analysis = analysis_for(*kernels_, L)});
  return out;
}

}  // namespace nnkernels::gaunt
