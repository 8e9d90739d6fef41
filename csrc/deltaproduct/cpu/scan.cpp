// The forward scan, also of single tokens and of state maps: cuts the work into panels of columns
// of single heads and prepares blocks of kSpacing tokens for the kernels.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "deltaproduct/cpu/items.h"

namespace nnkernels::deltaproduct {
namespace {

// Below this many multiply-adds a second thread costs more than it brings.
constexpr int64_t kSerialWork = 200'000;
// Of S in the first cache.
constexpr int64_t kStateBytes = 24 << 10;

// Panels [first, first + count) of the columns of a head.
struct Item {
  int64_t sequence, head, first, count;
};

// Long sequences first, divided until there is work for all threads.
std::vector<Item> make_items(const ScanArgs& args, int64_t panels, int threads) {
  const Sequences& sequences = args.sequences;
  std::vector<int64_t> order(static_cast<size_t>(sequences.count()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return sequences.length(a) > sequences.length(b); });
  int64_t tokens = 0;
  for (const int64_t s : order) tokens += sequences.length(s);
  const int64_t share = threads == 1 ? tokens * args.H : tokens * args.H / (4 * threads);
  std::vector<Item> items;
  for (const int64_t s : order) {
    const int64_t wanted = sequences.length(s) / std::max<int64_t>(share, 1);
    const int64_t parts = std::clamp<int64_t>(wanted, 1, panels);
    for (int64_t head = 0; head < args.H; ++head) {
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t first = part * panels / parts, end = (part + 1) * panels / parts;
        items.push_back({s, head, first, end - first});
      }
    }
  }
  return items;
}

// The groups of `tokens` tokens of n micro-steps: their shapes and places.
template <class Real>
void plan_groups(int64_t tokens, int64_t n, bool outputs, std::vector<Group<Real>>& groups) {
  groups.clear();
  const auto add = [&](int steps, int count, int64_t step) {
    Group<Real> group{};
    while (kShapes[group.shape].steps != steps || kShapes[group.shape].outputs != count) {
      ++group.shape;
    }
    group.step = step;
    group.token = step / n;
    for (int j = 0; j < steps; ++j) group.gate[j] = (step + j) % n == 0 ? (step + j) / n : -1;
    groups.push_back(group);
  };
  const int64_t steps = tokens * n;
  if (!outputs || n == 1) {
    for (int64_t step = 0; step < steps; step += 2) {
      const int size = step + 1 < steps ? 2 : 1;
      add(size, outputs ? size : 0, step);
    }
    return;
  }
  for (int64_t token = 0; token < tokens; ++token) {
    int64_t step = token * n;
    for (; (token + 1) * n - step > kMaxSteps; step += 2) add(2, 0, step);
    add(static_cast<int>((token + 1) * n - step), 1, step);
  }
}

template <class Real>
class Worker {
 public:
  Worker(const ScanArgs& args, const std::vector<Item>& items)
      : args_(args), items_(items), kernels_(kernels<Real>()) {}

  void operator()(int64_t index) {
    item_ = items_[static_cast<size_t>(index)];
    const Sequences& sequences = args_.sequences;
    batch_ = sequences.batch(item_.sequence);
    const int64_t first = sequences.first(item_.sequence);
    const int64_t length = sequences.length(item_.sequence);
    const int64_t slot = args_.slots ? args_.slots[item_.sequence] : item_.sequence;
    if (slot < 0) return clear_outputs(first, length);
    const int64_t panel = kernels_.panel;
    state_ = states_.get(item_.count * args_.K * panel);
    const int64_t at_once = std::clamp<int64_t>(
        kStateBytes / (args_.K * panel * static_cast<int64_t>(sizeof(Real))), 1, kMaxPanels);
    // The panels of a short sequence need not wait for each other.
    const bool single = length > 0 && length <= kSpacing;
    if (!single) load_state(slot, 0, item_.count);
    for (int64_t token = 0; token < length; token += kSpacing) {
      const int64_t tokens = std::min(kSpacing, length - token);
      prepare(first + token, tokens);
      for (int64_t p = 0; p < item_.count; p += at_once) {
        const int64_t count = std::min(at_once, item_.count - p);
        if (single) load_state(slot, p, count);
        if (args_.checkpoints) {
          save_checkpoint(sequences.checkpoint(item_.sequence) + token / kSpacing, p, count);
        }
        run_panels(first + token, tokens, p, count);
        if (single && args_.final.data) store_panels(p, count, args_.final, slot);
      }
    }
    if (!single && args_.final.data) store_panels(0, item_.count, args_.final, slot);
  }

 private:
  // Columns [first, first + count) of S, of which the last may lie beyond V.
  int64_t columns(int64_t first, int64_t count) const { return std::min(count, args_.V - first); }
  Real* state(int64_t p) const { return state_ + p * args_.K * kernels_.panel; }
  int64_t column(int64_t p) const { return (item_.first + p) * kernels_.panel; }

  void clear_outputs(int64_t first, int64_t length) {
    const int64_t width = columns(column(0), item_.count * kernels_.panel);
    for (int64_t t = first; t < first + length; ++t) {
      const int64_t at = output_at(t, column(0));
      std::memset(element_at(args_.o, at), 0, static_cast<size_t>(bytes_of(args_.o.type, width)));
    }
  }

  int64_t output_at(int64_t token, int64_t column) const {
    return ((batch_ * args_.sequences.T + token) * args_.H + item_.head) * args_.V + column;
  }

  void load_state(int64_t slot, int64_t p, int64_t count) {
    const int64_t panel = kernels_.panel;
    if (args_.initial.data) {
      return kernels_.load_panels(
          args_.initial.type, state_at(args_.initial, slot, item_.head, 0, column(p)),
          args_.initial.row_stride, args_.K, columns(column(p), count * panel), state(p));
    }
    std::fill_n(state(p), count * args_.K * panel, Real(0));
    if (!args_.identity) return;
    for (int64_t i = column(p); i < std::min(column(p) + count * panel, args_.K); ++i) {
      state(p + (i - column(p)) / panel)[i * panel + (i - column(p)) % panel] = 1;
    }
  }

  void store_panels(int64_t p, int64_t count, const States& to, int64_t place) {
    kernels_.store_panels(state(p), args_.K, columns(column(p), count * kernels_.panel), to.type,
                          state_at(to, place, item_.head, 0, column(p)), to.row_stride);
  }

  void save_checkpoint(int64_t checkpoint, int64_t p, int64_t count) {
    const Type type = args_.float64 ? Type::float64 : Type::float32;
    const int64_t size = args_.K * args_.V;
    store_panels(p, count, {args_.checkpoints, type, args_.H * size, size, args_.V}, checkpoint);
  }

  // `count` rows of k or q as Real, their norms divided out: where they are already, if they can be
  // read in place.
  const Real* stage(const Rows& rows, int64_t row, int64_t count, Buffer<Real>& buffer,
                    int64_t& stride) {
    const int64_t head = item_.head / (args_.H / args_.Hk);
    const void* data = row_at(rows, batch_, row, head);
    stride = rows.row_stride;
    const bool same_type = rows.type == (args_.float64 ? Type::float64 : Type::float32);
    if (same_type && !args_.l2norm) return static_cast<const Real*>(data);
    stride = padded(args_.K);
    Real* staged = buffer.get(count * stride);
    kernels_.load(rows.type, data, rows.row_stride, count, args_.K, staged, stride);
    if (!args_.l2norm) return staged;
    for (int64_t r = 0; r < count; ++r) {
      Real* x = staged + r * stride;
      const Real square = kernels_.dot(x, x, args_.K);
      const Real factor = 1 / std::sqrt(square + static_cast<Real>(kNormEpsilon));
      for (int64_t i = 0; i < args_.K; ++i) x[i] *= factor;
    }
    return staged;
  }

  // The groups of the tokens [token, token + tokens).
  void prepare(int64_t token, int64_t tokens) {
    const int64_t n = args_.n;
    if (tokens != planned_) plan_groups(tokens, n, args_.q.data != nullptr, groups_);
    planned_ = tokens;
    int64_t k_stride = 0, q_stride = 0;
    const Real* k = stage(args_.k, token * n, tokens * n, k_rows_, k_stride);
    const Real* q = args_.q.data ? stage(args_.q, token, tokens, q_rows_, q_stride) : nullptr;
    load_numbers(token, tokens);
    for (Group<Real>& group : groups_) {
      const Shape shape = kShapes[group.shape];
      for (int j = 0; j < shape.steps; ++j) group.k[j] = k + (group.step + j) * k_stride;
      for (int t = 0; t < shape.outputs; ++t) group.q[t] = q + (group.token + t) * q_stride;
      Products<Real> products;
      kernels_.group_products(group, args_.K, products);
      set_factors(shape, products, group);
    }
  }

  // Gates and beta of the block.
  void load_numbers(int64_t token, int64_t tokens) {
    const int64_t steps = tokens * args_.n;
    beta_ = numbers_.get(steps + tokens);
    gates_ = beta_ + steps;
    const void* beta = row_at(args_.beta, batch_, token * args_.n, item_.head);
    for (int64_t i = 0; i < steps; ++i) {
      beta_[i] = load_number<Real>(args_.beta.type, beta, i * args_.beta.row_stride);
    }
    if (args_.g.data == nullptr) return void(std::fill_n(gates_, tokens, Real(1)));
    const void* g = row_at(args_.g, batch_, token, item_.head);
    for (int64_t t = 0; t < tokens; ++t) {
      gates_[t] = std::exp(load_number<Real>(args_.g.type, g, t * args_.g.row_stride));
    }
  }

  void set_factors(const Shape& shape, const Products<Real>& products, Group<Real>& group) const {
    const Real scale = static_cast<Real>(args_.scale);
    // After the gate of micro-step j: the decay since the group began, and since after i < j.
    Real since_begin = 1, since[kMaxSteps][kMaxSteps];
    for (int j = 0; j < shape.steps; ++j) {
      const Real gate = group.gate[j] < 0 ? Real(1) : gates_[group.gate[j]];
      const Real beta = beta_[group.step + j];
      since_begin *= gate;
      since[j][j] = 1;
      group.v_factor[j] = beta;
      group.s_factor[j] = beta * since_begin;
      for (int i = 0; i < j; ++i) {
        since[j][i] = since[j - 1][i] * gate;
        group.d_factor[j][i] = beta * (since[j][i] * products.kk[j][i]);
      }
      const int t = shape.outputs == 2 ? j : j + 1 - shape.steps;
      if (shape.outputs == 0 || t < 0) continue;
      group.o_state[t] = scale * since_begin;
      for (int i = 0; i <= j; ++i) {
        group.o_step[t][i] = scale * (since[j][i] * products.qk[t][i]);
      }
    }
    group.decay = since_begin;
    for (int i = 0; i < shape.steps; ++i) group.to_end[i] = since[shape.steps - 1][i];
  }

  void run_panels(int64_t token, int64_t tokens, int64_t p, int64_t count) {
    const Type type = args_.float64 ? Type::float64 : Type::float32;
    const int64_t panel = kernels_.panel, width = count * panel;
    const int64_t valid = columns(column(p), width);
    Panels<Real> panels;
    panels.K = args_.K;
    panels.count = count;
    panels.state = state(p);
    panels.v_panel = panels.o_panel = panel;
    if (args_.v.data == nullptr) {
      Real* zeros = v_rows_.get(panel);
      std::fill_n(zeros, panel, Real(0));
      panels.v = zeros;
      panels.v_panel = 0;
    } else {
      const Rows& v = args_.v;
      const auto* data = static_cast<const char*>(row_at(v, batch_, token * args_.n, item_.head)) +
                         bytes_of(v.type, column(p));
      panels.v = reinterpret_cast<const Real*>(data);
      panels.v_stride = v.row_stride;
      if (v.type != type || valid != width) {
        Real* staged = v_rows_.get(tokens * args_.n * width);
        kernels_.load(v.type, data, v.row_stride, tokens * args_.n, valid, staged, width);
        panels.v = staged;
        panels.v_stride = width;
      }
    }
    if (args_.q.data == nullptr) return kernels_.run(groups_.data(), group_count(), panels);

    void* o = element_at(args_.o, output_at(token, column(p)));
    const int64_t o_row = args_.H * args_.V;
    const bool direct = args_.o.type == type && valid == width;
    panels.o = direct ? static_cast<Real*>(o) : o_rows_.get(tokens * width);
    panels.o_stride = direct ? o_row : width;
    kernels_.run(groups_.data(), group_count(), panels);
    if (!direct) kernels_.store(panels.o, width, tokens, valid, args_.o.type, o, o_row);
  }

  int64_t group_count() const { return static_cast<int64_t>(groups_.size()); }

  const ScanArgs& args_;
  const std::vector<Item>& items_;
  const Kernels<Real>& kernels_;
  Item item_;
  int64_t batch_ = 0;
  int64_t planned_ = 0;  // tokens
  std::vector<Group<Real>> groups_;
  Real *state_ = nullptr, *beta_ = nullptr, *gates_ = nullptr;
  Buffer<Real> states_, numbers_, k_rows_, q_rows_, v_rows_, o_rows_;
};

template <class Real>
void scan_as(const ScanArgs& args, const Parallel& parallel) {
  const int64_t panel = kernels<Real>().panel;
  Parallel threads = parallel;
  const Sequences& sequences = args.sequences;
  const int64_t work =
      sequences.B * (sequences.T + 1) * args.H * args.K * args.V * (2 * args.n + 1);
  if (work < kSerialWork) threads.threads = 1;
  const std::vector<Item> items =
      make_items(args, (args.V + panel - 1) / panel, std::max(threads.threads, 1));
  for_each_item(threads, static_cast<int64_t>(items.size()),
                [&] { return Worker<Real>(args, items); });
}

// What belongs to no sequence is 0: rows of o past the last one, and the checkpoints between.
void clear_unused(const ScanArgs& args) {
  const Sequences& sequences = args.sequences;
  if (sequences.bounds.empty()) return;
  const auto clear = [](void* data, Type type, int64_t row, int64_t begin, int64_t end) {
    if (data == nullptr) return;
    std::memset(static_cast<char*>(data) + bytes_of(type, begin * row), 0,
                static_cast<size_t>(bytes_of(type, (end - begin) * row)));
  };
  clear(args.o.data, args.o.type, args.H * args.V, sequences.bounds.back(), sequences.T);
  const Type type = args.float64 ? Type::float64 : Type::float32;
  int64_t used = 0;
  for (int64_t s = 0; s <= sequences.count(); ++s) {
    const bool last = s == sequences.count();
    const int64_t first = last ? sequences.checkpoints() : sequences.checkpoint(s);
    clear(args.checkpoints, type, args.H * args.K * args.V, used, first);
    if (!last) used = first + (sequences.length(s) + kSpacing - 1) / kSpacing;
  }
}

}  // namespace

void scan(const ScanArgs& args, const Parallel& parallel) {
  clear_unused(args);
  if (args.H == 0 || args.sequences.count() == 0) return;
  args.float64 ? scan_as<double>(args, parallel) : scan_as<float>(args, parallel);
}

}  // namespace nnkernels::deltaproduct
