// rANS: round trips over lanes, precisions and threads, a state written out by hand, refusals.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "pc/rans.h"
#include "testing/check.h"
#include "testing/machine.h"

namespace nnkernels::pc {
namespace {

struct Stream {
  int64_t N, D, K, lanes;
  int precision;
  bool own_rows = true;  // every sample has its own frequencies
  std::vector<int32_t> cdf, symbols, low, width, words, counts;

  int64_t row() const { return rans_capacity(N, D, lanes); }
  int64_t sample_stride() const { return own_rows ? D * (K + 1) : 0; }

  void encode(const Parallel& parallel, int64_t chunk = 0) {
    words.assign(static_cast<size_t>(lanes * row()), -1);
    counts.assign(static_cast<size_t>(lanes), -1);
    RansEncoder encoder(N, D, lanes, precision, words.data());
    const int64_t step = chunk > 0 ? chunk : std::max<int64_t>(N, 1);
    for (int64_t end = N; end > 0;) {
      const int64_t begin = std::max<int64_t>(end - step, 0);
      encoder.push(low.data() + begin * D, width.data() + begin * D, begin, end, parallel);
      end = begin;
    }
    encoder.finish(counts.data(), parallel);
  }

  RansDecodeArgs decode_args(std::vector<int32_t>& out) const {
    out.assign(static_cast<size_t>(N * D), -1);
    return {words.data(), lanes,     row(), counts.data(), cdf.data(), sample_stride(), N, D, K,
            precision,    out.data()};
  }

  std::vector<int32_t> decode(const Parallel& parallel) const {
    std::vector<int32_t> out;
    rans_decode(decode_args(out), parallel);
    return out;
  }
};

Stream random_stream(int64_t N, int64_t D, int64_t K, int64_t lanes, int precision, bool own_rows,
                     unsigned seed) {
  std::mt19937 random(seed);
  Stream stream{N, D, K, lanes, precision, own_rows, {}, {}, {}, {}, {}, {}};
  const int64_t whole = int64_t{1} << precision, rows = own_rows ? N * D : D;
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<double> weight(static_cast<size_t>(K));
    double sum = 0;
    for (double& w : weight)
      sum += w = std::exp(6.0 * (static_cast<double>(random()) / 4294967296.0));
    double running = 0;
    stream.cdf.push_back(0);
    for (int64_t v = 0; v < K; ++v) {
      running += weight[static_cast<size_t>(v)];
      const double share = std::min(running / sum, 1.0) * static_cast<double>(whole - K);
      stream.cdf.push_back(v + 1 == K ? static_cast<int32_t>(whole)
                                      : static_cast<int32_t>(share) + static_cast<int32_t>(v) + 1);
    }
  }
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t k = 0; k < D; ++k) {
      const int32_t* row = stream.cdf.data() + n * stream.sample_stride() + k * (K + 1);
      const auto slot = static_cast<int32_t>(random() & static_cast<unsigned>(whole - 1));
      const int64_t v = std::upper_bound(row, row + K, slot) - row - 1;
      stream.symbols.push_back(static_cast<int32_t>(v));
      stream.low.push_back(row[v]);
      stream.width.push_back(row[v + 1] - row[v]);
    }
  }
  return stream;
}

TEST(round_trips) {
  unsigned seed = 0;
  for (const int64_t K : {1, 2, 3, 7, 16, 17, 256, 1024}) {
    for (const int64_t N : {0, 1, 7, 8, 33, 100}) {
      for (const int64_t lanes : {1, 2, 8, 9, 13, 64}) {
        const int precision = 12 + static_cast<int>(seed % 13);
        if (int64_t{1} << precision < 4 * K) {
          ++seed;
          continue;
        }
        Stream stream = random_stream(N, 1 + seed % 5, K, lanes, precision, seed % 2 == 0, seed);
        stream.encode(threads(1));
        CHECK(stream.decode(threads(1)) == stream.symbols);
        const std::vector<int32_t> words = stream.words, counts = stream.counts;
        for (int64_t l = 0; l < lanes; ++l) {
          for (int64_t i = counts[static_cast<size_t>(l)]; i < stream.row(); ++i) {
            CHECK_EQ(words[static_cast<size_t>(l * stream.row() + i)], 0);
          }
        }
        for (const int count : {2, 4}) {
          stream.encode(threads(count), 1 + seed % 20);
          CHECK(stream.words == words && stream.counts == counts);
          CHECK(stream.decode(threads(count)) == stream.symbols);
        }
        ++seed;
      }
    }
  }
}

TEST(threads_do_not_matter) {
  // Work enough for several.
  Stream stream = random_stream(4000, 30, 17, 61, 16, false, 2);
  stream.encode(threads(1));
  const std::vector<int32_t> words = stream.words, counts = stream.counts;
  for (const int count : {2, 4}) {
    stream.encode(threads(count), 1000);
    CHECK(stream.words == words && stream.counts == counts);
    CHECK(stream.decode(threads(count)) == stream.symbols);
  }
}

TEST(one_symbol_by_hand) {
  // State 2^32, a symbol [5, 7) of 2^12: 2^31 remainder 0, so 2^31 2^12 + 5 without a word.
  Stream stream{1, 1, 3, 1, 12, false, {0, 5, 7, 4096}, {1}, {5}, {2}, {}, {}};
  stream.encode({});
  CHECK_EQ(stream.counts[0], 2);
  CHECK_EQ(rans_first_state(stream.words.data()), (uint64_t{1} << 43) + 5);
  CHECK(stream.decode({}) == stream.symbols);
}

TEST(a_certain_symbol_costs_nothing) {
  Stream stream = random_stream(1000, 3, 1, 2, 12, false, 1);
  stream.encode({});
  CHECK_EQ(stream.counts[0], 2);
  CHECK_EQ(rans_first_state(stream.words.data()), kFirstState);
}

TEST(length_is_near_the_information) {
  Stream stream = random_stream(2000, 8, 256, 1, 20, false, 5);
  stream.encode({});
  double bits = 0;
  for (const int32_t width : stream.width) bits += 20 - std::log2(width);
  CHECK(stream.counts[0] * 32.0 >= bits);
  CHECK(stream.counts[0] * 32.0 <= bits * 1.0001 + 96);
}

TEST(steps_decode_the_same) {
  Stream stream = random_stream(9, 4, 50, 9, 16, true, 3);
  stream.encode({});
  std::vector<int64_t> states(9), positions(9);
  std::vector<int32_t> symbols(9), cdf;
  for (int64_t k = 0; k < 4; ++k) {
    cdf.clear();
    for (int64_t n = 0; n < 9; ++n) {
      const auto row = stream.cdf.begin() + (n * 4 + k) * 51;
      cdf.insert(cdf.end(), row, row + 51);
    }
    rans_decode_step({states.data(), positions.data(), stream.words.data(), 9, stream.row(),
                      stream.counts.data(), cdf.data(), 50, 16, symbols.data()});
    for (int64_t n = 0; n < 9; ++n) {
      CHECK_EQ(symbols[static_cast<size_t>(n)], stream.symbols[static_cast<size_t>(n * 4 + k)]);
    }
  }
  for (size_t l = 0; l < 9; ++l) {
    CHECK_EQ(static_cast<uint64_t>(states[l]), kFirstState);
    CHECK_EQ(positions[l], stream.counts[l]);
  }
}

TEST(bad_arguments) {
  for (const auto& [low, width] : {std::pair{0, 0},
                                   {1, 4096},
                                   {4095, 2},
                                   {-1, 1},
                                   {0, -5},
                                   {0, 5000},
                                   {std::numeric_limits<int32_t>::min(), 1}}) {
    Stream stream{1, 1, 1, 1, 12, false, {}, {}, {low}, {width}, {}, {}};
    CHECK_THROWS(stream.encode({}), "no interval");
  }
  CHECK_THROWS(check_rans_sizes(1, 1, 1, 11), "12..24");
  CHECK_THROWS(check_rans_sizes(1, 1, 1, 25), "12..24");
  CHECK_THROWS(check_rans_sizes(1, 1, 0, 20), "at least 1");
  CHECK_THROWS(check_rans_sizes(int64_t{1} << 40, int64_t{1} << 40, 1, 20), "more lanes");
  CHECK_THROWS(check_rans_sizes(int64_t{1} << 30, 4, 2, 20), "more lanes");
}

TEST(corrupt_streams) {
  std::mt19937 random(11);
  Stream stream = random_stream(20, 6, 200, 4, 14, false, 9);
  stream.encode({});
  const Stream good = stream;
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    stream.words = good.words;
    stream.counts = good.counts;
    stream.cdf = good.cdf;
    switch (random() % 3) {
      case 0:
        stream.words[random() % stream.words.size()] ^= static_cast<int32_t>(1u << (random() % 32));
        break;
      case 1: stream.counts[random() % 4] = static_cast<int32_t>(random() % 70) - 10; break;
      default: stream.cdf[random() % stream.cdf.size()] = static_cast<int32_t>(random());
    }
    try {
      // What is accepted must be the words of an encoder for these symbols.
      const std::vector<int32_t> symbols = stream.decode({});
      Stream again = stream;
      for (size_t s = 0; s < symbols.size(); ++s) {
        const int32_t* row = again.cdf.data() + static_cast<int64_t>(s) % 6 * 201 + symbols[s];
        again.low[s] = row[0];
        again.width[s] = row[1] - row[0];
      }
      again.encode({});
      CHECK(again.counts == stream.counts);
      for (int64_t l = 0; l < 4; ++l) {
        const auto begin = again.words.begin() + l * again.row();
        CHECK(std::equal(begin, begin + again.counts[static_cast<size_t>(l)],
                         stream.words.begin() + l * again.row()));
      }
    } catch (const CorruptStream&) {
      ++refused;
    }
  }
  CHECK(refused > 5000);
}

}  // namespace
}  // namespace nnkernels::pc
