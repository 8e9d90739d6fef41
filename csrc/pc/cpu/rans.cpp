#include "pc/rans.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace nnkernels::pc {
namespace {

// Lanes that take turns, so that the division or the search of one hides behind the others'.
constexpr int kGroup = 8;

// Lanes of so many symbols each that are worth a thread of their own.
int64_t lanes_per_thread(int64_t symbols) {
  constexpr int64_t worth = 1 << 15;
  return std::max<int64_t>(kGroup, worth / std::max<int64_t>(symbols, 1));
}

std::string at(int64_t sample, int64_t symbol) {
  return "sample " + std::to_string(sample) + ", symbol " + std::to_string(symbol);
}

// The largest v < K with row[v] <= slot, for each lane of a group.
template <int group>
void search(const int32_t* const* rows, const uint32_t* slots, int64_t K, int64_t* found) {
  for (int g = 0; g < group; ++g) found[g] = 0;
  for (int64_t length = K; length > 1;) {
    const int64_t half = length / 2;
    for (int g = 0; g < group; ++g) {
      const bool above = static_cast<uint32_t>(rows[g][found[g] + half]) <= slots[g];
      found[g] += half & -static_cast<int64_t>(above);
    }
    length -= half;
  }
}

struct Lane {
  uint64_t state;
  const int32_t* words;
  int64_t position, count;

  void load() {
    state = rans_first_state(words);
    position = kStateWords;
  }

  // Takes a symbol [low, high) out of the state; false where that cannot be.
  bool pop(uint32_t slot, uint32_t low, uint32_t high, int precision) {
    if (low > slot || slot >= high || high > uint32_t{1} << precision) return false;
    state = rans_pop(state, low, high - low, precision);
    if (state < kFirstState) {
      if (position >= count) return false;
      state = state << 32 | static_cast<uint32_t>(words[position++]);
    }
    return true;
  }
};

template <int group>
void decode_lanes(const RansDecodeArgs& args, int64_t first_lane) {
  Lane lanes[group];
  for (int g = 0; g < group; ++g) {
    const int64_t l = first_lane + g;
    lanes[g] = {
        .state = 0, .words = args.words + l * args.row, .position = 0, .count = args.counts[l]};
    lanes[g].load();
  }
  const int precision = args.precision;
  // Sample n of lane `first` of the group, and those after it in the next lanes.
  const auto samples = [&]<int active>(int64_t n, int first) {
    Lane* const active_lanes = lanes + first;
    for (int64_t k = 0; k < args.D; ++k) {
      const int32_t* rows[active];
      uint32_t slots[active];
      int64_t found[active];
      for (int g = 0; g < active; ++g) {
        rows[g] = args.cdf + (n + g) * args.sample_stride + k * (args.K + 1);
        slots[g] = rans_slot(active_lanes[g].state, precision);
      }
      search<active>(rows, slots, args.K, found);
      for (int g = 0; g < active; ++g) {
        const int32_t* row = rows[g] + found[g];
        if (!active_lanes[g].pop(slots[g], static_cast<uint32_t>(row[0]),
                                 static_cast<uint32_t>(row[1]), precision)) {
          throw CorruptStream("corrupt stream or frequencies in lane " +
                              std::to_string(first_lane + first + g) + " at " + at(n + g, k));
        }
        args.symbols[(n + g) * args.D + k] = static_cast<int32_t>(found[g]);
      }
    }
  };
  for (int64_t n = first_lane; n < args.N; n += args.lanes) {
    if (n + group <= args.N) {
      samples.template operator()<group>(n, 0);
    } else {
      for (int g = 0; n + g < args.N; ++g) samples.template operator()<1>(n + g, g);
    }
  }
  for (int g = 0; g < group; ++g) {
    if (lanes[g].state == kFirstState && lanes[g].position == lanes[g].count) continue;
    throw CorruptStream("corrupt stream in lane " + std::to_string(first_lane + g) +
                        ": it does not end where an encoder begins");
  }
}

}  // namespace

void check_rans_sizes(int64_t N, int64_t D, int64_t lanes, int64_t precision) {
  if (precision < kMinPrecision || precision > kMaxPrecision) {
    throw std::invalid_argument("precision must be in 12..24, got " + std::to_string(precision));
  }
  if (lanes < 1) {
    throw std::invalid_argument("lanes must be at least 1, got " + std::to_string(lanes));
  }
  int64_t words = 0;
  if (N < 0 || D < 0 || lanes > INT64_MAX / 2 - N ||
      __builtin_mul_overflow((N + lanes - 1) / lanes, D, &words) ||
      words > INT32_MAX - kStateWords) {
    throw std::invalid_argument(std::to_string(N) + " samples of " + std::to_string(D) +
                                " symbols need more lanes than " + std::to_string(lanes));
  }
}

void check_counts(const int32_t* counts, int64_t lanes, int64_t row) {
  for (int64_t l = 0; l < lanes; ++l) {
    if (counts[l] >= kStateWords && counts[l] <= row) continue;
    throw CorruptStream("corrupt stream: counts[" + std::to_string(l) + "] is " +
                        std::to_string(counts[l]) + ", expected 2.." + std::to_string(row));
  }
}

RansEncoder::RansEncoder(int64_t N, int64_t D, int64_t lanes, int precision, int32_t* words)
    : D_(D),
      lanes_(lanes),
      capacity_(rans_capacity(N, D, lanes)),
      precision_(precision),
      words_(words),
      states_(static_cast<size_t>(lanes), kFirstState),
      starts_(static_cast<size_t>(lanes), capacity_) {}

template <int group>
void RansEncoder::push_lanes(const int32_t* low, const int32_t* width, int64_t begin, int64_t end,
                             int64_t lane) {
  const int precision = precision_;
  const uint32_t whole = uint32_t{1} << precision;
  uint64_t states[group];
  int32_t* heads[group];
  for (int g = 0; g < group; ++g) {
    states[g] = states_[static_cast<size_t>(lane + g)];
    heads[g] = words_ + (lane + g) * capacity_ + starts_[static_cast<size_t>(lane + g)];
  }
  // Sample n of lane `first` of the group, and those after it in the next lanes.
  const auto samples = [&]<int active>(int64_t n, int first) {
    for (int64_t k = D_ - 1; k >= 0; --k) {
      for (int g = 0; g < active; ++g) {
        const int64_t i = (n - begin + g) * D_ + k;
        const auto from = static_cast<uint32_t>(low[i]), size = static_cast<uint32_t>(width[i]);
        if (size - 1 >= whole || from > whole - size) {
          throw std::invalid_argument("low " + std::to_string(low[i]) + " and width " +
                                      std::to_string(width[i]) + " of " + at(n + g, k) +
                                      " are no interval within 2^" + std::to_string(precision));
        }
        uint64_t& state = states[first + g];
        int32_t*& head = heads[first + g];
        // Written in any case, kept where the state is full, which is random.
        const bool full = rans_is_full(state, size, precision);
        head[-1] = static_cast<int32_t>(state);
        head -= full;
        state = rans_push(full ? state >> 32 : state, from, size, precision);
      }
    }
  };
  for (int64_t pass = (end - 1) / lanes_; pass >= begin / lanes_; --pass) {
    const int64_t n = pass * lanes_ + lane;
    if (n >= begin && n + group <= end) {
      samples.template operator()<group>(n, 0);
    } else {
      for (int g = 0; g < group; ++g) {
        if (n + g >= begin && n + g < end) samples.template operator()<1>(n + g, g);
      }
    }
  }
  for (int g = 0; g < group; ++g) {
    states_[static_cast<size_t>(lane + g)] = states[g];
    starts_[static_cast<size_t>(lane + g)] = heads[g] - (words_ + (lane + g) * capacity_);
  }
}

void RansEncoder::push(const int32_t* low, const int32_t* width, int64_t begin, int64_t end,
                       const Parallel& parallel) {
  if (begin >= end) return;
  const int64_t grain = lanes_per_thread((end - begin + lanes_ - 1) / lanes_ * D_);
  parallel_for(parallel, lanes_, grain, [&](int64_t from, int64_t to) {
    int64_t lane = from;
    for (; lane + kGroup <= to; lane += kGroup) push_lanes<kGroup>(low, width, begin, end, lane);
    for (; lane < to; ++lane) push_lanes<1>(low, width, begin, end, lane);
  });
}

void RansEncoder::finish(int32_t* counts, const Parallel& parallel) {
  parallel_for(parallel, lanes_, 64, [&](int64_t from, int64_t to) {
    for (int64_t lane = from; lane < to; ++lane) {
      int32_t* row = words_ + lane * capacity_;
      const int64_t start = starts_[static_cast<size_t>(lane)] - kStateWords;
      const uint64_t state = states_[static_cast<size_t>(lane)];
      row[start] = static_cast<int32_t>(state);
      row[start + 1] = static_cast<int32_t>(state >> 32);
      const int64_t count = capacity_ - start;
      std::memmove(row, row + start, static_cast<size_t>(count) * sizeof(int32_t));
      std::fill(row + count, row + capacity_, 0);
      counts[lane] = static_cast<int32_t>(count);
    }
  });
}

void rans_decode(const RansDecodeArgs& args, const Parallel& parallel) {
  check_counts(args.counts, args.lanes, args.row);
  const int64_t grain = lanes_per_thread((args.N + args.lanes - 1) / args.lanes * args.D);
  parallel_for(parallel, args.lanes, grain, [&](int64_t from, int64_t to) {
    int64_t lane = from;
    for (; lane + kGroup <= to; lane += kGroup) decode_lanes<kGroup>(args, lane);
    for (; lane < to; ++lane) decode_lanes<1>(args, lane);
  });
}

void rans_decode_step(const RansDecodeStepArgs& args) {
  check_counts(args.counts, args.lanes, args.row);
  for (int64_t l = 0; l < args.lanes; ++l) {
    Lane lane{.state = static_cast<uint64_t>(args.states[l]),
              .words = args.words + l * args.row,
              .position = args.positions[l],
              .count = args.counts[l]};
    if (lane.position == 0) lane.load();
    const int32_t* row = args.cdf + l * (args.K + 1);
    const uint32_t slot = rans_slot(lane.state, args.precision);
    int64_t found;
    search<1>(&row, &slot, args.K, &found);
    row += found;
    if (lane.position < kStateWords || !lane.pop(slot, static_cast<uint32_t>(row[0]),
                                                 static_cast<uint32_t>(row[1]), args.precision)) {
      throw CorruptStream("corrupt stream, state or frequencies in lane " + std::to_string(l));
    }
    args.states[l] = static_cast<int64_t>(lane.state);
    args.positions[l] = lane.position;
    args.symbols[l] = static_cast<int32_t>(found);
  }
}

}  // namespace nnkernels::pc
