#include "pc/codec.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "common/isa.h"
#include "pc/codec_math.h"
#include "pc/cpu/codec_engine.h"
#include "pc/cpu/float_mode.h"

namespace nnkernels::pc {

extern const CodecKernels scalar_codec_kernels;
#if defined(__x86_64__)
extern const CodecKernels avx2_codec_kernels, avx512_codec_kernels;
#endif

const CodecKernels& codec_kernels(int64_t h) {
#if defined(__x86_64__)
  // Rows of up to 8 states would leave half of a longer vector empty.
  if (active_isa() == Isa::avx512 && h > 8) return avx512_codec_kernels;
  if (active_isa() >= Isa::avx2) return avx2_codec_kernels;
#endif
  (void)h;
  return scalar_codec_kernels;
}

namespace {

// Samples that are coded side by side: enough to use a node's tables for many, few enough to stay
// in the second cache.
int64_t tile_rows(int64_t h) { return std::clamp<int64_t>(16384 / h, 64, 512); }

// Samples that are worth a thread of their own.
int64_t samples_per_thread(const FrozenModel& model) {
  constexpr int64_t worth = 4 << 20;  // multiply-adds
  return 1 + worth / (2 * model.D() * model.h * (model.h + 16));
}

// ---- the order of work ----

// beta of `node`, whose subtree is coded, goes into its parent's rows. Slots; -1: not wanted.
struct Absorption {
  int64_t node;
  int below, alpha, u;
};

struct Visit {
  int64_t node;
  int from, alpha, u;  // slots of the parent's alpha and of the node's own rows; -1: none
  bool leaf;
  size_t absorptions;  // end of those that follow the visit
};

// Which rows are alive when. An alpha lives until the last child has been entered, so that children
// of growing size keep log2 D of them; u of a node lives until its subtree is coded, and only where
// an ancestor waits for a beta.
struct Schedule {
  std::vector<Visit> visits;
  std::vector<Absorption> absorptions;
  int alphas = 0, us = 0;
};

class Slots {
 public:
  explicit Slots(int& count) : count_(count) {}
  int take() {
    if (free_.empty()) return count_++;
    const int slot = free_.back();
    free_.pop_back();
    return slot;
  }
  void give(int slot) { free_.push_back(slot); }

 private:
  int& count_;
  std::vector<int> free_;
};

Schedule make_schedule(const Tree& tree) {
  Schedule schedule;
  Slots alphas(schedule.alphas), us(schedule.us);
  const auto count = static_cast<size_t>(tree.D);
  std::vector<int> alpha(count, -1), u(count, -1);
  const auto is_last = [&](int64_t node) {
    const int64_t parent = tree.parent[Tree::at(node)];
    return parent >= 0 && tree.child(parent, tree.child_count(parent) - 1) == node;
  };
  for (const int64_t node : tree.order) {
    const size_t i = Tree::at(node);
    const int64_t parent = tree.parent[i];
    const bool leaf = tree.child_count(node) == 0;
    Visit visit{node, parent < 0 ? -1 : alpha[Tree::at(parent)], alphas.take(), -1, leaf, 0};
    alpha[i] = visit.alpha;
    if (parent >= 0 && (!is_last(node) || u[Tree::at(parent)] >= 0)) u[i] = visit.u = us.take();
    if (is_last(node)) alphas.give(visit.from);
    if (leaf) {
      alphas.give(visit.alpha);
      // The subtrees that end here.
      for (int64_t done = node; u[Tree::at(done)] >= 0; done = tree.parent[Tree::at(done)]) {
        const size_t above = Tree::at(tree.parent[Tree::at(done)]);
        const bool last = is_last(done);
        schedule.absorptions.push_back(
            {done, u[Tree::at(done)], last ? -1 : alpha[above], u[above]});
        us.give(u[Tree::at(done)]);
        if (!last) break;
      }
    }
    visit.absorptions = schedule.absorptions.size();
    schedule.visits.push_back(visit);
  }
  return schedule;
}

// ---- a tile of samples ----

struct Work {
  const FrozenModel& model;
  const Schedule& schedule;
  const CodecKernels& kernels;
  int precision;

  Work(const FrozenModel& of, const Schedule& order, int bits)
      : model(of), schedule(order), kernels(codec_kernels(of.h)), precision(bits) {}

  int64_t width() const { return (model.h + kernels.lanes - 1) / kernels.lanes * kernels.lanes; }
  const float* A(int64_t node) const { return model.A + node * model.h * model.h; }
  const float* B(int64_t node) const { return model.B + node * model.h * model.K; }
  const float* C(int64_t node) const { return model.C + node * model.h * (model.K + 1); }

  // Of visit k.
  void prepare(size_t k, int64_t rows, const float* alpha, CodecStep& step) const {
    const int64_t h = model.h, K = model.K;
    step.rows = rows;
    step.h = h;
    step.K = K;
    step.precision = precision;
    step.alpha = alpha;
    step.C = C(schedule.visits[k].node);
    if (k + 1 == schedule.visits.size()) return;
    const int64_t next = schedule.visits[k + 1].node;
    step.ahead.add(A(next), h * h, rows);
    step.ahead.add(C(next), h * (K + 1), rows);
    step.ahead.add(B(next), h * K, rows);
  }
};

[[noreturn]] void fail_at(const std::string& what, int64_t sample, int64_t node) {
  throw CorruptStream(what + " at sample " + std::to_string(sample) + ", variable " +
                      std::to_string(node));
}

class Tile {
 public:
  Tile(const Work& work, int64_t capacity)
      : work_(work), capacity_(capacity), symbols_(static_cast<size_t>(capacity)) {
    const int64_t slots = work.schedule.alphas + work.schedule.us;
    rows_.get(slots * slot_size());
  }

  // Visits the first `visits` nodes for `rows` samples. `code(visit number, node, alpha, symbols)`
  // finds or reads the symbols of a node.
  template <class Code>
  void walk(int64_t rows, size_t visits, Code&& code) {
    const FrozenModel& model = work_.model;
    const CodecKernels& kernels = work_.kernels;
    size_t absorbed = 0;
    for (size_t k = 0; k < visits; ++k) {
      const Visit& visit = work_.schedule.visits[k];
      float* alpha = this->alpha(visit.alpha);
      enter(rows, k);
      code(k, visit.node, alpha, symbols_.data());
      float* next = visit.leaf ? nullptr : alpha;
      float* u = this->u(visit.u);
      if (next != nullptr || u != nullptr) {
        kernels.observe(work_.B(visit.node), model.h, model.K, symbols_.data(), rows, next, u,
                        scratch);
      }
      for (; absorbed < visit.absorptions; ++absorbed) {
        const Absorption& step = work_.schedule.absorptions[absorbed];
        kernels.absorb(this->u(step.below), work_.A(step.node), model.h, rows,
                       this->alpha(step.alpha), this->u(step.u), scratch);
      }
    }
  }

  // alpha of visit k.
  float* enter(int64_t rows, size_t k) {
    const Visit& visit = work_.schedule.visits[k];
    float* alpha = this->alpha(visit.alpha);
    if (visit.from < 0) {
      work_.kernels.start(work_.model.pi, work_.model.h, rows, alpha);
    } else {
      work_.kernels.descend(this->alpha(visit.from), work_.A(visit.node), work_.model.h, rows,
                            alpha, scratch);
    }
    return alpha;
  }

  CodecScratch scratch;

 private:
  int64_t slot_size() const { return capacity_ * work_.width(); }
  float* alpha(int slot) { return slot < 0 ? nullptr : rows_.data() + slot * slot_size(); }
  float* u(int slot) { return slot < 0 ? nullptr : alpha(work_.schedule.alphas + slot); }

  const Work& work_;
  int64_t capacity_;
  std::vector<uint16_t> symbols_;
  Buffer<float> rows_;
};

// Symbols of a variable, of samples from `first` on.
void read_symbols(const Samples& samples, int64_t D, int64_t K, int64_t first, int64_t rows,
                  int64_t node, uint16_t* symbols) {
  const auto read = [&](const auto* x) {
    bool good = true;
    for (int64_t r = 0; r < rows; ++r) {
      symbols[r] = static_cast<uint16_t>(x[(first + r) * D + node]);
      good &= symbols[r] < K;
    }
    if (good) return;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t value = x[(first + r) * D + node];
      if (value >= 0 && value < K) continue;
      throw std::invalid_argument("x[" + std::to_string(first + r) + ", " + std::to_string(node) +
                                  "] is " + std::to_string(value) +
                                  ", expected 0 <= x < K = " + std::to_string(K));
    }
  };
  if (samples.type == Symbol::uint8) {
    read(static_cast<const uint8_t*>(samples.x));
  } else {
    read(static_cast<const int16_t*>(samples.x));
  }
}

// The columns of C that the search looks at before its last step, gathered.
class SearchTables {
 public:
  SearchTables(const FrozenModel& model, const Parallel& parallel)
      : h_(model.h), groups_((model.K + 15) / 16) {
    const int64_t K = model.K, rows = model.D() * h_, stride = search_stride(K);
    float* top = top_.get(rows * kColumns);
    float* middle = search_steps(K) == 3 ? middle_.get(rows * (groups_ + 1)) : nullptr;
    parallel_for(parallel, rows, 1024, [&](int64_t from, int64_t to) {
      for (int64_t r = from; r < to; ++r) {
        const float* column = model.C + r * (K + 1);
        for (int64_t j = 0; j < kColumns; ++j) {
          top[r * kColumns + j] = column[std::min(K, (j + 1) * stride)];
        }
        if (middle == nullptr) continue;
        for (int64_t j = 0; j <= groups_; ++j) {
          middle[r * (groups_ + 1) + j] = column[std::min(K, 16 * j)];
        }
      }
    });
  }

  void of(int64_t node, DecodeStep& step) {
    step.groups = groups_;
    step.top = top_.data() + node * h_ * kColumns;
    if (middle_.data() != nullptr) step.middle = middle_.data() + node * h_ * (groups_ + 1);
  }

 private:
  int64_t h_, groups_;
  Buffer<float> top_, middle_;
};

// Calls f(begin, end) on equal parts of [begin, end) of at most `most`.
template <class Function>
void in_tiles(int64_t begin, int64_t end, int64_t most, Function&& f) {
  const int64_t tiles = (end - begin + most - 1) / most;
  for (int64_t i = 0; i < tiles; ++i) {
    f(begin + (end - begin) * i / tiles, begin + (end - begin) * (i + 1) / tiles);
  }
}

// low, width [end - begin, D] of samples [begin, end).
void measure_samples(const Work& work, const Samples& samples, int64_t begin, int64_t end,
                     int32_t* low, int32_t* width, const Parallel& parallel) {
  const FrozenModel& model = work.model;
  const int64_t D = model.D();
  parallel_for(parallel, end - begin, samples_per_thread(model), [&](int64_t from, int64_t to) {
    const StandardFloats floats;
    const int64_t most = std::min(tile_rows(model.h), to - from);
    Tile tile(work, most);
    in_tiles(from, to, most, [&](int64_t first, int64_t last) {
      const int64_t rows = last - first;
      tile.walk(rows, work.schedule.visits.size(),
                [&](size_t k, int64_t node, const float* alpha, uint16_t* symbols) {
                  read_symbols(samples, D, model.K, begin + first, rows, node, symbols);
                  MeasureStep step;
                  work.prepare(k, rows, alpha, step);
                  step.symbols = symbols;
                  step.low = low + first * D + static_cast<int64_t>(k);
                  step.width = width + first * D + static_cast<int64_t>(k);
                  step.row = D;
                  const int64_t wrong = work.kernels.measure(step);
                  if (wrong >= 0) fail_at("the tables are no model", begin + first + wrong, node);
                });
    });
  });
}

}  // namespace

FrozenModel frozen_model(const float* pi, const float* A, const float* B, const float* C,
                         const int64_t* parent, const int64_t* order, int64_t D, int64_t h,
                         int64_t K, int64_t precision) {
  const auto expect = [](bool good, const char* name, int64_t value, const std::string& range) {
    if (good) return;
    throw std::invalid_argument(std::string(name) + " is " + std::to_string(value) + ", expected " +
                                range);
  };
  expect(D >= 1, "D", D, "at least 1");
  expect(h >= 1 && h <= kMaxStates, "h", h, "1.." + std::to_string(kMaxStates));
  expect(K >= 1 && K <= kMaxValues, "K", K, "1.." + std::to_string(kMaxValues));
  expect(precision >= kMinPrecision && precision <= kMaxPrecision, "precision", precision,
         "12..24");
  expect(int64_t{1} << precision >= 4 * K, "precision", precision,
         "2^precision >= 4 K with K = " + std::to_string(K));
  FrozenModel model{h, K, pi, A, B, C, {}};
  std::string error;
  model.tree = make_tree(parent, order, D, &error);
  if (!error.empty()) throw std::invalid_argument(error);
  return model;
}

void intervals(const FrozenModel& model, const Samples& samples, int precision, int32_t* low,
               int32_t* width, const Parallel& parallel) {
  const Schedule schedule = make_schedule(model.tree);
  const Work work(model, schedule, precision);
  measure_samples(work, samples, 0, samples.N, low, width, parallel);
}

void conditional_cdf(const FrozenModel& model, const Samples& samples, int64_t variable,
                     int precision, int32_t* cdf, const Parallel& parallel) {
  const Schedule schedule = make_schedule(model.tree);
  const Work work(model, schedule, precision);
  const int64_t D = model.D(), K = model.K, h = model.h, width = work.width();
  const auto position = static_cast<size_t>(model.tree.position[Tree::at(variable)]);
  const float total = shared_total(precision, K);
  const float* C = work.C(variable);
  parallel_for(parallel, samples.N, samples_per_thread(model), [&](int64_t from, int64_t to) {
    const StandardFloats floats;
    const int64_t most = std::min(tile_rows(h), to - from);
    Tile tile(work, most);
    std::vector<float> sums(static_cast<size_t>(K + 1));
    in_tiles(from, to, most, [&](int64_t first, int64_t last) {
      const int64_t rows = last - first;
      tile.walk(rows, position, [&](size_t, int64_t node, const float*, uint16_t* symbols) {
        read_symbols(samples, D, K, first, rows, node, symbols);
      });
      const float* alpha = tile.enter(rows, position);
      for (int64_t r = 0; r < rows; ++r) {
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (int64_t a = 0; a < h; ++a) {
          const float x = alpha[r * width + a];
          const float* column = C + a * (K + 1);
          for (size_t v = 0; v < sums.size(); ++v) sums[v] = std::fma(x, column[v], sums[v]);
        }
        if (!is_valid_sum(sums.back())) {
          fail_at("the tables are no model", first + r, variable);
        }
        const float ratio = total / sums.back();
        int32_t* row = cdf + (first + r) * (K + 1);
        for (int64_t v = 0; v < K; ++v) {
          row[v] = static_cast<int32_t>(frequency_below(sums[static_cast<size_t>(v)], ratio, total,
                                                        static_cast<uint32_t>(v)));
        }
        row[K] = int32_t{1} << precision;
      }
    });
  });
}

void encode(const FrozenModel& model, const Samples& samples, int64_t lanes, int precision,
            int32_t* words, int32_t* counts, const Parallel& parallel) {
  const Schedule schedule = make_schedule(model.tree);
  const Work work(model, schedule, precision);
  const int64_t D = model.D();
  RansEncoder encoder(samples.N, D, lanes, precision, words);
  // The coder starts at the end; intervals are computed for some tiles at a time.
  const int64_t part = std::min(samples.N, 2 * tile_rows(model.h) * std::max(parallel.threads, 1));
  std::vector<int32_t> low(static_cast<size_t>(part * D)), width(low.size());
  for (int64_t end = samples.N; end > 0;) {
    const int64_t begin = std::max<int64_t>(0, end - part);
    measure_samples(work, samples, begin, end, low.data(), width.data(), parallel);
    encoder.push(low.data(), width.data(), begin, end, parallel);
    end = begin;
  }
  encoder.finish(counts, parallel);
}

void decode(const FrozenModel& model, const DecodeArgs& args, const Parallel& parallel) {
  check_counts(args.counts, args.lanes, args.row);
  const Schedule schedule = make_schedule(model.tree);
  const Work work(model, schedule, args.precision);
  const int64_t D = model.D();
  SearchTables tables(model, parallel);
  const int64_t passes = std::max<int64_t>(1, args.N / args.lanes);
  const int64_t grain = std::max<int64_t>(8, samples_per_thread(model) / passes);
  parallel_for(parallel, args.lanes, grain, [&](int64_t from, int64_t to) {
    const StandardFloats floats;
    const int64_t most = std::min(tile_rows(model.h), to - from);
    Tile tile(work, most);
    std::vector<LaneState> lanes(static_cast<size_t>(most));
    in_tiles(from, to, most, [&](int64_t first, int64_t last) {
      for (int64_t l = first; l < last; ++l) {
        const int32_t* words = args.words + l * args.row;
        lanes[static_cast<size_t>(l - first)] = {rans_first_state(words), words + kStateWords,
                                                 words + args.counts[l]};
      }
      for (int64_t sample = first; sample < args.N; sample += args.lanes) {
        const int64_t rows = std::min(last - first, args.N - sample);
        tile.walk(rows, schedule.visits.size(),
                  [&](size_t k, int64_t node, const float* alpha, uint16_t* symbols) {
                    DecodeStep step;
                    work.prepare(k, rows, alpha, step);
                    tables.of(node, step);
                    step.lanes = lanes.data();
                    step.symbols = symbols;
                    const int64_t wrong = work.kernels.decode(step, tile.scratch);
                    if (wrong >= 0) fail_at("corrupt stream or model", sample + wrong, node);
                    const auto store = [&](auto* x) {
                      for (int64_t r = 0; r < rows; ++r) {
                        x[(sample + r) * D + node] =
                            static_cast<std::remove_reference_t<decltype(*x)>>(symbols[r]);
                      }
                    };
                    if (args.type == Symbol::uint8) {
                      store(static_cast<uint8_t*>(args.x));
                    } else {
                      store(static_cast<int16_t*>(args.x));
                    }
                  });
      }
      for (int64_t l = first; l < last; ++l) {
        const LaneState& lane = lanes[static_cast<size_t>(l - first)];
        if (lane.state == kFirstState && lane.next == lane.end) continue;
        throw CorruptStream("corrupt stream in lane " + std::to_string(l) +
                            ": it does not end where an encoder begins");
      }
    });
  });
}

}  // namespace nnkernels::pc
