// rANS: entropy coding of symbols whose cumulative frequencies are integers out of 2^precision.
// Entry points without torch.
//
// A lane is one stream of 32-bit words: the decoder's first state (low word, high word), then the
// words it reads one by one. Lane l of L holds samples l, l + L, ... one after another, each of D
// symbols. The decoder ends in the state the encoder began with.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "common/hd.h"
#include "common/parallel.h"

namespace nnkernels::pc {

constexpr int kMinPrecision = 12, kMaxPrecision = 24;
// A state at rest lies in [2^32, 2^64). The encoder starts with the smallest.
constexpr uint64_t kFirstState = uint64_t{1} << 32;
// Words of a lane before any symbol: one state.
constexpr int64_t kStateWords = 2;

// A stream that no encoder wrote, or tables other than its encoder's.
struct CorruptStream : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Whether the state must give a word away before a symbol of this width (1..2^precision) goes in.
// Never more than one: without its low word it is below 2^32.
NNK_HD bool rans_is_full(uint64_t state, uint32_t width, int precision) {
  return (state >> (64 - precision)) >= width;
}

NNK_HD uint64_t rans_push(uint64_t state, uint32_t low, uint32_t width, int precision) {
  const uint64_t quotient = state / width;
  return (quotient << precision) + (state - quotient * width) + low;
}

// Where in [0, 2^precision) the next symbol's interval [low, low + width) lies.
NNK_HD uint32_t rans_slot(uint64_t state, int precision) {
  return static_cast<uint32_t>(state) & ((uint32_t{1} << precision) - 1);
}

// The state without its symbol; below 2^32 it wants a word.
NNK_HD uint64_t rans_pop(uint64_t state, uint32_t low, uint32_t width, int precision) {
  return width * (state >> precision) + rans_slot(state, precision) - low;
}

// Words that a lane takes at most, of N samples of D symbols in `lanes` lanes.
constexpr int64_t rans_capacity(int64_t N, int64_t D, int64_t lanes) {
  return (N + lanes - 1) / lanes * D + kStateWords;
}

// Throws std::invalid_argument for sizes that no stream can have.
void check_rans_sizes(int64_t N, int64_t D, int64_t lanes, int64_t precision);

// Encodes samples last to first.
class RansEncoder {
 public:
  // words [lanes, rans_capacity(N, D, lanes)].
  RansEncoder(int64_t N, int64_t D, int64_t lanes, int precision, int32_t* words);

  // Samples [begin, end), where `end` is the `begin` of the last call (first: N). low, width
  // [end - begin, D]; throws std::invalid_argument where they are no interval.
  void push(const int32_t* low, const int32_t* width, int64_t begin, int64_t end,
            const Parallel& parallel);

  // Moves the words to the front of their rows, zeros behind them; counts [lanes].
  void finish(int32_t* counts, const Parallel& parallel);

 private:
  template <int group>
  void push_lanes(const int32_t* low, const int32_t* width, int64_t begin, int64_t end,
                  int64_t lane);

  int64_t D_, lanes_, capacity_;
  int precision_;
  int32_t* words_;
  std::vector<uint64_t> states_;
  std::vector<int64_t> starts_;  // of the words written so far
};

struct RansDecodeArgs {
  const int32_t* words = nullptr;  // [lanes, row]
  int64_t lanes = 0, row = 0;
  const int32_t* counts = nullptr;  // [lanes]
  // F(0) = 0 < F(1) < ... < F(K) = 2^precision of symbol k of sample n is at
  // cdf + n * sample_stride + k * (K + 1).
  const int32_t* cdf = nullptr;
  int64_t sample_stride = 0;
  int64_t N = 0, D = 0, K = 0;
  int precision = 0;
  int32_t* symbols = nullptr;  // [N, D]
};
// Throws CorruptStream where words or frequencies are not what an encoder wrote.
void rans_decode(const RansDecodeArgs& args, const Parallel& parallel);

struct RansDecodeStepArgs {
  int64_t* states = nullptr;     // [lanes], bits of the state
  int64_t* positions = nullptr;  // [lanes], of the next word; 0: not begun
  const int32_t* words = nullptr;
  int64_t lanes = 0, row = 0;
  const int32_t* counts = nullptr;
  const int32_t* cdf = nullptr;  // [lanes, K + 1]
  int64_t K = 0;
  int precision = 0;
  int32_t* symbols = nullptr;  // [lanes]
};
// One symbol of every lane. On CorruptStream the states and positions of earlier lanes have moved.
void rans_decode_step(const RansDecodeStepArgs& args);

// Throws CorruptStream unless 2 <= counts[l] <= row for every lane.
void check_counts(const int32_t* counts, int64_t lanes, int64_t row);

inline uint64_t rans_first_state(const int32_t* words) {
  return static_cast<uint32_t>(words[0]) | uint64_t{static_cast<uint32_t>(words[1])} << 32;
}

}  // namespace nnkernels::pc
