// Runs a program over all samples.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "gaunt/cpu/program.h"

namespace nnkernels::gaunt {
namespace {

// What the grids of one range of ring pairs may take: with the coefficients beside them they stay
// in the first-level cache.
constexpr int64_t kGridBytes = 12 * 1024;
// Bytes that are asked for before they are needed, at least.
constexpr int64_t kAhead = 2048;
// Vector operations that a thread takes at least.
constexpr int64_t kGrain = 100000;

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<char, Free>;

// Zeroed: coefficients beyond those computed are stored as 0.
Memory allocate(int64_t bytes) {
  const int64_t rounded = (bytes + 127) / 64 * 64;
  Memory memory(static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(rounded))));
  if (memory == nullptr) throw std::bad_alloc();
  std::memset(memory.get(), 0, static_cast<size_t>(rounded));
  return memory;
}

int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

int64_t count_of(const Samples& samples) {
  int64_t count = 1;
  for (int d = 0; d < samples.ndim; ++d) count *= samples.sizes[d];
  return count;
}

bool is_summed(const Samples& samples, const Array& array) {
  for (int d = 0; d < samples.ndim; ++d) {
    if (array.strides[d] == 0 && samples.sizes[d] != 1) return true;
  }
  return false;
}

// Lines of memory that will be wanted soon: asked for while the arithmetic runs.
class Soon {
 public:
  void clear() { ranges_.clear(); }
  void add(const char* p, int64_t step, int64_t count, bool write) {
    ranges_.push_back({p, step, count, write});
  }
  // Asks for up to `lines` of them.
  void fetch(int64_t lines) {
    while (lines > 0 && !ranges_.empty()) {
      Range& range = ranges_.back();
      const int64_t count = std::min(lines, range.count);
      for (int64_t i = 0; i < count; ++i, range.p += range.step) {
#if defined(__x86_64__)
        // Not __builtin_prefetch: without the flag for it, it fetches lines to be written as
        // shared.
        if (range.write) {
          asm volatile("prefetchw %0" : : "m"(*range.p));
          continue;
        }
#endif
        __builtin_prefetch(range.p);
      }
      lines -= count;
      range.count -= count;
      if (range.count == 0) ranges_.pop_back();
    }
  }

 private:
  struct Range {
    const char* p;
    int64_t step, count;
    bool write;
  };
  std::vector<Range> ranges_;
};

}  // namespace

// The sizes of a run, shared by its threads.
class Runner {
 public:
  struct Place {
    BlockIo io;
    int64_t strides[kMaxDims];
  };

  Runner(const Program& program, const Samples& samples)
      : program_(program), kernels_(*program.kernels_), count_(count_of(samples)) {
    const Type arithmetic = program.type_ == Type::float64 ? Type::float64 : Type::float32;
    for (const auto& operand : program.operands_) {
      Place place{};
      place.io.type = samples.type;
      place.io.count = operand.count;
      place.io.step = operand.array.step;
      place.io.first = static_cast<char*>(operand.array.data);
      std::copy_n(operand.array.strides, kMaxDims, place.strides);
      if (operand.output && is_summed(samples, operand.array)) {
        // Gradients to be summed go to memory of their own.
        sums_.push_back(allocate(count_ * operand.count * type_size(arithmetic)));
        place.io.type = arithmetic;
        place.io.step = 1;
        place.io.first = sums_.back().get();
        int64_t stride = operand.count;
        for (int d = samples.ndim - 1; d >= 0; --d) {
          place.strides[d] = stride;
          stride *= samples.sizes[d];
        }
      }
      places_.push_back(place);
    }
    merge(samples);
    lay_out();
  }

  int64_t blocks() const { return (count_ + kernels_.lanes - 1) / kernels_.lanes; }
  int64_t cost() const { return cost_; }

  void run(int64_t begin, int64_t end) const {
    Memory memory = allocate(bytes_);
    int64_t index[kMaxDims], next[kMaxDims];
    int64_t rest = begin * kernels_.lanes;
    for (int d = ndim_ - 1; d >= 0; --d) {
      index[d] = rest % sizes_[d];
      rest /= sizes_[d];
    }
    Soon soon;
    std::vector<BlockIo> blocks;
    for (const Place& place : places_) blocks.push_back(place.io);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t valid = std::min(kernels_.lanes, count_ - block * kernels_.lanes);
      for (const Step& step : program_.before_) single(step, memory.get(), index, valid, blocks);
      std::copy_n(index, ndim_, next);
      advance(next, kernels_.lanes);
      expect(soon, index, next, block + 1 == end);
      if (program_.on_rings_.empty()) soon.fetch(lines_);
      for (PairRange pairs{0, 0, pairs_}; pairs.first < pairs_; pairs.first += pairs.count) {
        pairs.count = std::min(group_, pairs_ - pairs.first);
        for (const Step& step : program_.on_rings_) {
          soon.fetch(lines_);
          on_rings(step, memory.get(), pairs);
        }
      }
      for (const Step& step : program_.after_) single(step, memory.get(), index, valid, blocks);
      std::copy_n(next, ndim_, index);
    }
  }

  void finish(const Samples& samples, const Parallel& parallel) const {
    auto sum = sums_.begin();
    for (const auto& operand : program_.operands_) {
      if (!operand.output || !is_summed(samples, operand.array)) continue;
      reduce(samples, operand.array, operand.count, sum->get(), parallel);
      ++sum;
    }
  }

 private:
  // Drops dimensions of size 1 and merges those that all operands step through evenly.
  void merge(const Samples& samples) {
    for (int d = 0; d < samples.ndim; ++d) {
      const int64_t size = samples.sizes[d];
      if (size == 1) continue;
      bool even = ndim_ > 0;
      for (const Place& place : places_) {
        even = even && place.strides[ndim_ - 1] == place.strides[d] * size;
      }
      if (!even) ++ndim_;
      sizes_[ndim_ - 1] = even ? sizes_[ndim_ - 1] * size : size;
      for (Place& place : places_) place.strides[ndim_ - 1] = place.strides[d];
    }
    if (ndim_ > 0) return;
    ndim_ = 1;
    sizes_[0] = 1;
    for (Place& place : places_) place.strides[0] = 0;
  }

  void lay_out() {
    const int64_t vector = kernels_.vector_bytes;
    pairs_ = (program_.rings_ + 1) / 2;
    int64_t per_pair = 0, widest = 1;
    for (const auto& buffer : program_.buffers_) {
      if (buffer.ring_degree >= 0) per_pair += 2 * ring_size(buffer.ring_degree) * vector;
    }
    group_ = per_pair == 0
                 ? 1
                 : std::clamp<int64_t>(kGridBytes / per_pair, 1, std::max<int64_t>(pairs_, 1));
    for (const auto& buffer : program_.buffers_) {
      offsets_.push_back(bytes_);
      bytes_ += buffer.ring_degree >= 0 ? 2 * group_ * ring_size(buffer.ring_degree) * vector
                                        : buffer.vectors * vector;
    }
    for (const Place& place : places_) widest = std::max(widest, place.io.count);
    spare_ = bytes_;
    bytes_ += round_up(widest * 8);
    for (const Step& step : program_.on_rings_) {
      cost_ += step.what == Step::Do::convolve ? program_.rings_ * 8 * (step.Lx + 1) * (step.L + 1)
                                               : 2 * pairs_ * coefficients_of(step.L);
    }
    int64_t lines = 0;
    for (const Place& place : places_) {
      cost_ += 4 * place.io.count;
      lines += kernels_.lanes * place.io.count * type_size(place.io.type) / 64 + 1;
    }
    const auto steps = static_cast<int64_t>(program_.on_rings_.size());
    lines_ = steps == 0 ? lines : lines / (steps * ((pairs_ + group_ - 1) / group_)) + 1;
  }

  void advance(int64_t* index, int64_t by) const {
    index[ndim_ - 1] += by;
    for (int d = ndim_ - 1; d > 0 && index[d] >= sizes_[d]; --d) {
      index[d - 1] += index[d] / sizes_[d];
      index[d] %= sizes_[d];
    }
  }

  // This block's outputs and the next one's inputs, where they are in one piece.
  void expect(Soon& soon, const int64_t* index, const int64_t* next, bool last) const {
    soon.clear();
    const int inner = ndim_ - 1;
    const bool here = index[inner] + kernels_.lanes <= sizes_[inner];
    const bool there = !last && next[inner] + kernels_.lanes <= sizes_[inner];
    for (size_t i = 0; i < places_.size(); ++i) {
      const Place& place = places_[i];
      const bool output = program_.operands_[i].output;
      const int64_t size = type_size(place.io.type), stride = place.strides[inner];
      const int64_t bytes = kernels_.lanes * place.io.count * size;
      if (ndim_ == 2 && stride == 1 && place.io.step == sizes_[1] &&
          place.strides[0] == place.io.count * sizes_[1]) {
        // Rows of whole matrices [count, samples]: in the order of memory, a matrix ahead.
        if (index[0] + 1 >= sizes_[0]) continue;
        const int64_t ahead = (index[0] + 1) * sizes_[1] + index[1];
        soon.add(place.io.first + ahead * place.io.count * size, 64, bytes / 64 + 1, output);
        continue;
      }
      if (place.io.count == 0 || (output ? !here : !there)) continue;
      const char* p = place.io.first + offset(place, output ? index : next) * size;
      if (stride == 1) {
        soon.add(p, place.io.step * size, place.io.count, output);
      } else if (stride == place.io.count && place.io.step == 1) {
        // Short blocks are done before memory answers: further ahead.
        soon.add(p + kAhead / bytes * bytes, 64, bytes / 64 + 1, output);
      }
    }
  }

  // Where the samples of a block lie.
  void locate(const Place& place, const int64_t* index, int64_t valid, char* spare,
              BlockIo& io) const {
    const int64_t size = type_size(io.type), inner = place.strides[ndim_ - 1];
    io.even = valid == kernels_.lanes && index[ndim_ - 1] + valid <= sizes_[ndim_ - 1];
    if (io.even) {
      io.first = place.io.first + offset(place, index) * size;
      io.stride = inner * size;
      io.pattern = inner == 0                   ? Pattern::same
                   : inner == 1 && io.step != 1 ? Pattern::columns
                   : io.step == 1               ? Pattern::rows
                                                : Pattern::scattered;
      return;
    }
    io.pattern = io.step == 1 ? Pattern::rows : Pattern::scattered;
    int64_t at[kMaxDims];
    std::copy_n(index, ndim_, at);
    for (int64_t i = 0; i < kernels_.lanes; ++i) {
      if (i < valid) {
        io.lane[i] = place.io.first + offset(place, at) * size;
        advance(at, 1);
      } else {
        // Lanes beyond the last sample repeat it, and write to nowhere.
        io.lane[i] = spare == nullptr              ? io.lane[i - 1]
                     : io.pattern == Pattern::rows ? spare
                                                   : nullptr;
      }
    }
  }

  int64_t offset(const Place& place, const int64_t* index) const {
    int64_t offset = 0;
    for (int d = 0; d < ndim_; ++d) offset += index[d] * place.strides[d];
    return offset;
  }

  void single(const Step& step, char* memory, const int64_t* index, int64_t valid,
              std::vector<BlockIo>& blocks) const {
    const auto at = [&](int buffer) { return memory + offsets_[buffer]; };
    const bool add = step.store == Store::add;
    switch (step.what) {
      case Step::Do::load:
        locate(places_[step.operand], index, valid, nullptr, blocks[step.operand]);
        kernels_.load(blocks[step.operand], at(step.out));
        break;
      case Step::Do::store:
        locate(places_[step.operand], index, valid, memory + spare_, blocks[step.operand]);
        kernels_.store(blocks[step.operand], at(step.x));
        break;
      case Step::Do::weigh:
        kernels_.weigh(step.L, at(step.x), at(step.w), at(step.out), add);
        break;
      case Step::Do::dot: kernels_.dot(step.L, at(step.x), at(step.y), at(step.out), add); break;
      case Step::Do::scale: kernels_.scale(step.L, step.factor, at(step.x)); break;
      case Step::Do::contract:
        if (!add) std::memset(at(step.out), 0, step.L * kernels_.vector_bytes);
        kernels_.contract(step.terms->data(), static_cast<int64_t>(step.terms->size()), at(step.x),
                          at(step.y), at(step.w), at(step.out));
        break;
      case Step::Do::direct:
        step.direct(step.table, at(step.x), at(step.y), at(step.out), add);
        break;
      case Step::Do::transform:
        kernels_.transform(step.Lx, step.L, step.table, at(step.x), at(step.out));
        break;
      default: break;
    }
  }

  void on_rings(const Step& step, char* memory, const PairRange& pairs) const {
    const auto at = [&](int buffer) { return memory + offsets_[buffer]; };
    // The equator is its own mirror and counts once.
    const bool equator = program_.rings_ % 2 == 1 && pairs.first + pairs.count == pairs_;
    const int64_t rings = 2 * pairs.count - equator;
    if (step.what == Step::Do::synthesis) {
      step.synthesis(step.L, pairs, step.table, step.turn, at(step.x), at(step.out));
    } else if (step.what == Step::Do::convolve) {
      step.convolve(
          {step.Lx, step.Ly, step.L, at(step.x), at(step.y), at(step.out), rings, step.store});
    } else {
      const int64_t ring = ring_size(step.L) * kernels_.vector_bytes;
      if (equator) std::memset(at(step.x) + rings * ring, 0, static_cast<size_t>(ring));
      step.analysis(step.L, pairs, step.table, step.factor, at(step.x), at(step.out));
    }
  }

  const Program& program_;
  const Kernels& kernels_;
  int64_t count_;
  int ndim_ = 0;
  int64_t sizes_[kMaxDims];
  std::vector<Place> places_;
  std::vector<Memory> sums_;
  std::vector<int64_t> offsets_;
  int64_t bytes_ = 0, spare_ = 0, pairs_ = 0, group_ = 1, cost_ = 0;
  int64_t lines_ = 0;  // of memory asked for before each step on the rings
};

void Program::run(const Samples& samples, const Parallel& parallel) const {
  Runner runner(*this, samples);
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, runner.cost()));
  parallel_for(parallel, runner.blocks(), grain,
               [&](int64_t begin, int64_t end) { runner.run(begin, end); });
  runner.finish(samples, parallel);
}

}  // namespace nnkernels::gaunt
