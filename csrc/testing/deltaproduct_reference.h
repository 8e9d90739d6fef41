// The recurrence of deltaproduct.h and its gradient as plain loops in double, and random calls.
#pragma once

#include <cmath>
#include <limits>
#include <random>
#include <string>

#include "deltaproduct/deltaproduct_math.h"

namespace nnkernels::deltaproduct {
namespace {

using Numbers = std::vector<double>;

// A contiguous tensor as the kernels see it, and the numbers that it holds after rounding.
struct Tensor {
  Type type = Type::float32;
  std::vector<char> bytes;
  Numbers numbers;

  void set(Type new_type, const Numbers& values) {
    type = new_type;
    bytes.assign(static_cast<size_t>(bytes_of(type, static_cast<int64_t>(values.size()))), 0);
    for (size_t i = 0; i < values.size(); ++i) {
      store_number<double>(type, bytes.data(), static_cast<int64_t>(i), values[i]);
    }
    read();
  }
  // Room for `count` results, which are NaN until they are written.
  void* room(Type new_type, int64_t count) {
    set(new_type, Numbers(static_cast<size_t>(count), std::numeric_limits<double>::quiet_NaN()));
    return bytes.data();
  }
  void read() {
    numbers.resize(bytes.size() / static_cast<size_t>(type_size(type)));
    for (size_t i = 0; i < numbers.size(); ++i) {
      numbers[i] = load_number<double>(type, bytes.data(), static_cast<int64_t>(i));
    }
  }
};

enum class Gates { none, mild, with_resets };

struct Call {
  int64_t B = 1, T = 1, Hk = 1, H = 1, K = 1, V = 1, n = 1;
  Type type = Type::float32;
  Gates gates = Gates::mild;
  bool l2norm = false;
  double beta = 2;  // upper bound
  std::vector<int64_t> bounds;
  double scale = 0.5;
};

struct Inputs {
  Tensor q, k, v, beta, g, initial, grad_o, grad_final;
};

[[maybe_unused]] Inputs random_inputs(const Call& call, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  const auto fill = [&](Tensor& tensor, Type type, int64_t count, auto&& next) {
    Numbers values(static_cast<size_t>(count));
    for (double& value : values) value = next();
    tensor.set(type, values);
  };
  const int64_t rows = call.B * call.T, K = call.K, V = call.V;
  const int64_t states =
      call.bounds.empty() ? call.B : static_cast<int64_t>(call.bounds.size()) - 1;
  const Type state_type = call.type == Type::float64 ? Type::float64 : Type::float32;
  const double unit = 1 / std::sqrt(1.5 * static_cast<double>(K) + 2);
  Inputs in;
  fill(in.q, call.type, rows * call.Hk * K, [&] { return unit * normal(generator); });
  fill(in.k, call.type, rows * call.n * call.Hk * K, [&] { return unit * normal(generator); });
  fill(in.v, call.type, rows * call.n * call.H * V, [&] { return normal(generator); });
  fill(in.beta, call.type, rows * call.n * call.H, [&] { return call.beta * uniform(generator); });
  fill(in.initial, state_type, states * call.H * K * V, [&] { return normal(generator); });
  fill(in.grad_o, call.type, rows * call.H * V, [&] { return normal(generator); });
  fill(in.grad_final, state_type, states * call.H * K * V, [&] { return normal(generator); });
  if (call.gates != Gates::none) {
    fill(in.g, state_type, rows * call.H, [&] {
      const double kind = uniform(generator);
      if (call.gates == Gates::mild || kind < 0.7) return -0.2 * uniform(generator);
      return kind < 0.85 ? -50.0 : -std::numeric_limits<double>::infinity();
    });
  }
  return in;
}

// Strides of contiguous tensors.
[[maybe_unused]] Rows rows_of(const Tensor& tensor, int64_t rows, int64_t heads, int64_t width) {
  if (tensor.numbers.empty()) return {};
  return {tensor.bytes.data(), tensor.type, rows * heads * width, heads * width, width};
}
[[maybe_unused]] States states_of(Tensor& tensor, const Call& call) {
  const int64_t size = call.K * call.V;
  return {tensor.bytes.data(), tensor.type, call.H * size, size, call.V};
}

[[maybe_unused]] ScanArgs scan_args(const Call& call, Inputs& in) {
  ScanArgs args;
  args.sequences = {call.B, call.T, call.bounds};
  args.Hk = call.Hk;
  args.H = call.H;
  args.K = call.K;
  args.V = call.V;
  args.n = call.n;
  args.q = rows_of(in.q, call.T, call.Hk, call.K);
  args.k = rows_of(in.k, call.T * call.n, call.Hk, call.K);
  args.v = rows_of(in.v, call.T * call.n, call.H, call.V);
  args.beta = rows_of(in.beta, call.T * call.n, call.H, 1);
  args.g = rows_of(in.g, call.T, call.H, 1);
  args.float64 = call.type == Type::float64;
  args.l2norm = call.l2norm;
  args.scale = call.scale;
  args.initial = states_of(in.initial, call);
  return args;
}

struct Expected {
  Numbers o, final, dq, dk, dv, dg, dbeta, dinitial;
};

// One sequence and head at a time.
class Reference {
 public:
  Reference(const Call& call, const Inputs& in) : c_(call), in_(in) {
    const auto zeros = [](Numbers& to, const Tensor& like) { to.assign(like.numbers.size(), 0); };
    zeros(out_.o, in.grad_o);
    zeros(out_.final, in.initial);
    zeros(out_.dq, in.q);
    zeros(out_.dk, in.k);
    zeros(out_.dv, in.v);
    zeros(out_.dg, in.g);
    zeros(out_.dbeta, in.beta);
    zeros(out_.dinitial, in.initial);
  }

  Expected operator()() {
    const Sequences sequences{c_.B, c_.T, c_.bounds};
    for (int64_t s = 0; s < sequences.count(); ++s) {
      for (head_ = 0; head_ < c_.H; ++head_) {
        batch_ = sequences.batch(s);
        sequence(s, sequences.first(s), sequences.length(s));
      }
    }
    return out_;
  }

 private:
  size_t at(int64_t row, int64_t rows, int64_t heads, int64_t head, int64_t width) const {
    return static_cast<size_t>(((batch_ * rows + row) * heads + head) * width);
  }
  size_t q_at(int64_t t) const { return at(t, c_.T, c_.Hk, head_ / (c_.H / c_.Hk), c_.K); }
  size_t k_at(int64_t i) const { return at(i, c_.T * c_.n, c_.Hk, head_ / (c_.H / c_.Hk), c_.K); }
  size_t v_at(int64_t i) const { return at(i, c_.T * c_.n, c_.H, head_, c_.V); }
  size_t o_at(int64_t t) const { return at(t, c_.T, c_.H, head_, c_.V); }
  size_t beta_at(int64_t i) const { return at(i, c_.T * c_.n, c_.H, head_, 1); }
  size_t g_at(int64_t t) const { return at(t, c_.T, c_.H, head_, 1); }

  // The row that S meets, and 1 over its norm.
  Numbers row(const Tensor& tensor, size_t first, double& factor) const {
    const double* data = tensor.numbers.data() + first;
    Numbers x(data, data + c_.K);
    double square = 0;
    for (const double value : x) square += value * value;
    factor = c_.l2norm ? 1 / std::sqrt(square + kNormEpsilon) : 1;
    for (double& value : x) value *= factor;
    return x;
  }
  void add_row_gradient(const Numbers& x, double factor, const Numbers& gradient,
                        double* to) const {
    double along = 0;
    for (size_t i = 0; i < x.size(); ++i) along += x[i] * gradient[i];
    for (size_t i = 0; i < x.size(); ++i) {
      to[i] += factor * (gradient[i] - (c_.l2norm ? x[i] * along : 0));
    }
  }
  double gate(int64_t t) const {
    return in_.g.numbers.empty() ? 1 : std::exp(in_.g.numbers[g_at(t)]);
  }
  Numbers error(const Numbers& state, const Numbers& k, int64_t i) const {
    Numbers e(in_.v.numbers.begin() + static_cast<int64_t>(v_at(i)),
              in_.v.numbers.begin() + static_cast<int64_t>(v_at(i)) + c_.V);
    for (size_t a = 0; a < k.size(); ++a) {
      for (size_t b = 0; b < e.size(); ++b) e[b] -= k[a] * state[a * e.size() + b];
    }
    return e;
  }

  void sequence(int64_t s, int64_t first, int64_t length) {
    const size_t K = static_cast<size_t>(c_.K), V = static_cast<size_t>(c_.V), size = K * V;
    const size_t place = static_cast<size_t>(s * c_.H + head_) * size;
    Numbers state(in_.initial.numbers.begin() + static_cast<int64_t>(place),
                  in_.initial.numbers.begin() + static_cast<int64_t>(place + size));
    // Before each token, and after its gate and each micro-step.
    std::vector<Numbers> states;
    double factor = 1;
    for (int64_t t = first; t < first + length; ++t) {
      states.push_back(state);
      for (double& x : state) x *= gate(t);
      for (int64_t i = t * c_.n; i < (t + 1) * c_.n; ++i) {
        states.push_back(state);
        const Numbers k = row(in_.k, k_at(i), factor), e = error(state, k, i);
        const double beta = in_.beta.numbers[beta_at(i)];
        for (size_t a = 0; a < K; ++a) {
          for (size_t b = 0; b < V; ++b) state[a * V + b] += beta * k[a] * e[b];
        }
      }
      const Numbers q = row(in_.q, q_at(t), factor);
      for (size_t a = 0; a < K; ++a) {
        for (size_t b = 0; b < V; ++b) out_.o[o_at(t) + b] += c_.scale * q[a] * state[a * V + b];
      }
    }
    std::copy(state.begin(), state.end(), out_.final.begin() + static_cast<int64_t>(place));

    Numbers grad(in_.grad_final.numbers.begin() + static_cast<int64_t>(place),
                 in_.grad_final.numbers.begin() + static_cast<int64_t>(place + size));
    for (int64_t t = first + length - 1; t >= first; --t) {
      const double* grad_o = in_.grad_o.numbers.data() + o_at(t);
      const Numbers q = row(in_.q, q_at(t), factor);
      Numbers dq(K, 0);
      for (size_t a = 0; a < K; ++a) {
        for (size_t b = 0; b < V; ++b) {
          dq[a] += c_.scale * state[a * V + b] * grad_o[b];
          grad[a * V + b] += c_.scale * q[a] * grad_o[b];
        }
      }
      add_row_gradient(q, factor, dq, out_.dq.data() + q_at(t));
      for (int64_t i = (t + 1) * c_.n - 1; i >= t * c_.n; --i) {
        state = states.back();
        states.pop_back();
        micro_step(i, state, grad);
      }
      state = states.back();
      states.pop_back();
      for (size_t a = 0; a < size; ++a) {
        if (!out_.dg.empty()) out_.dg[g_at(t)] += grad[a] * gate(t) * state[a];
        grad[a] *= gate(t);
      }
    }
    std::copy(grad.begin(), grad.end(), out_.dinitial.begin() + static_cast<int64_t>(place));
  }

  // From the gradient after micro-step i to the one before it, where S is `state`.
  void micro_step(int64_t i, const Numbers& state, Numbers& grad) {
    const size_t K = static_cast<size_t>(c_.K), V = static_cast<size_t>(c_.V);
    double factor = 1;
    const Numbers k = row(in_.k, k_at(i), factor), e = error(state, k, i);
    const double beta = in_.beta.numbers[beta_at(i)];
    Numbers de(V, 0), dk(K, 0);
    for (size_t a = 0; a < K; ++a) {
      for (size_t b = 0; b < V; ++b) {
        de[b] += beta * k[a] * grad[a * V + b];
        out_.dbeta[beta_at(i)] += k[a] * grad[a * V + b] * e[b];
        dk[a] += beta * grad[a * V + b] * e[b];
      }
    }
    for (size_t a = 0; a < K; ++a) {
      for (size_t b = 0; b < V; ++b) {
        dk[a] -= state[a * V + b] * de[b];
        grad[a * V + b] -= k[a] * de[b];
      }
    }
    for (size_t b = 0; b < V; ++b) out_.dv[v_at(i) + b] += de[b];
    add_row_gradient(k, factor, dk, out_.dk.data() + k_at(i));
  }

  const Call& c_;
  const Inputs& in_;
  int64_t batch_ = 0, head_ = 0;
  Expected out_;
};

// |x - expected| / |expected|; NaN and infinity count as errors.
[[maybe_unused]] double error_of(const Numbers& x, const Numbers& expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (!std::isfinite(x[i])) return std::numeric_limits<double>::infinity();
    difference += (x[i] - expected[i]) * (x[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return difference == 0 ? 0 : std::sqrt(difference / norm);
}

}  // namespace
}  // namespace nnkernels::deltaproduct
