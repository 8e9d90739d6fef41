// The loops of peak.h for vectors of `lanes` floats; included once per instruction set, by files
// compiled with -ffp-contract=fast, so that a * b + c is one instruction where there is one.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace {

constexpr int kChains = 12;  // independent sums: enough to hide the latency of an add or an fma
constexpr int kSteps = 4096;
constexpr int kRounds = 60;

// The fastest of many short rounds, as items per second: interruptions only ever slow a round.
template <class Round>
double best_rate(int lanes, Round round) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9;
  for (int i = 0; i < kRounds; ++i) {
    const auto start = Clock::now();
    round();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return double{kChains} * kSteps * lanes / best;
}

// Makes the compiler forget a value in a vector register, so that it can neither hoist a step out
// of its loop nor drop it.
#if defined(__x86_64__)
#define NNK_FORGET(value) asm volatile("" : "+x"(value))
#else
#define NNK_FORGET(value) asm volatile("" : "+w"(value))
#endif

template <int lanes>
struct Peak {
  typedef float Floats __attribute__((vector_size(4 * lanes)));
  typedef int32_t Words __attribute__((vector_size(4 * lanes)));

  static double fma() {
    return best_rate(lanes, [] {
      Floats sums[kChains] = {};
      Floats factor = Floats{} + 0.5f;
      for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
        for (int i = 0; i < kChains; ++i) {
          NNK_FORGET(factor);
          sums[i] = factor * factor + sums[i];
          NNK_FORGET(sums[i]);
        }
      }
    });
  }

  static double add_pair() {
    return best_rate(lanes, [] {
      Floats sums[kChains] = {};
      Words word = Words{} + 0x3F000000;
      for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
        for (int i = 0; i < kChains; ++i) {
          NNK_FORGET(word);
          sums[i] += reinterpret_cast<Floats>(word + word);
          NNK_FORGET(sums[i]);
        }
      }
    });
  }
};

}  // namespace
