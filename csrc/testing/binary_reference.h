// What the tests of the binary kernels share: plain +-1 matrices and loops over them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "binary/binary.h"
#include "binary/binary_math.h"
#include "common/isa.h"

namespace nnkernels::binary {
namespace {

using Ints = std::vector<int32_t>;
using Floats = std::vector<float>;

const Algo kAlgos[] = {Algo::automatic, Algo::popcount, Algo::nibble_a, Algo::nibble_b,
                       Algo::lookup_a,  Algo::lookup_b, Algo::matrix};

// Runs the ranges of a kernel one after another, in an order that no pool would choose.
inline Parallel scattered() {
  Parallel parallel;
  parallel.threads = 3;
  parallel.run = [](int64_t begin, int64_t end, int64_t grain, Parallel::Body body, void* context) {
    const int64_t step = std::max(grain, (end - begin + 2) / 3);
    for (int64_t first = begin + (end - begin - 1) / step * step; first >= begin; first -= step) {
      body(context, first, std::min(end, first + step));
    }
  };
  return parallel;
}

template <class F>
void for_each_isa(F&& f) {
  const std::string before = isa_name(active_isa());
  for (const std::string& name : isa_names()) {
    set_isa(name);
    f();
  }
  set_isa(before);
}

// ---- plain +-1 matrices
struct Signs {
  int64_t rows, K;
  std::vector<int8_t> values;  // [rows][K]
  int8_t at(int64_t row, int64_t k) const { return values[row * K + k]; }
};

inline Signs random_signs(int64_t rows, int64_t K, uint32_t seed) {
  std::mt19937 random(seed);
  Signs signs{rows, K, std::vector<int8_t>(rows * K)};
  for (int8_t& value : signs.values) value = random() & 1 ? -1 : 1;
  return signs;
}

inline Ints bits_of(const Signs& signs) {
  const int64_t width = row_words(signs.K);
  Ints bits(signs.rows * width);
  for (int64_t r = 0; r < signs.rows; ++r) {
    for (int64_t k = 0; k < signs.K; ++k) {
      bits[r * width + k / 32] |= static_cast<int32_t>((signs.at(r, k) < 0 ? 1u : 0u) << (k % 32));
    }
  }
  return bits;
}

inline Ints dots(const Signs& a, const Signs& b) {
  Ints result(a.rows * b.rows);
  for (int64_t m = 0; m < a.rows; ++m) {
    for (int64_t n = 0; n < b.rows; ++n) {
      int32_t dot = 0;
      for (int64_t k = 0; k < a.K; ++k) dot += a.at(m, k) * b.at(n, k);
      result[m * b.rows + n] = dot;
    }
  }
  return result;
}

inline Floats random_floats(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Floats values(count);
  for (float& value : values) value = normal(random);
  return values;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// ---- the definitions
inline uint32_t code_of(Type type, float x) {
  switch (type) {
    case Type::bfloat16: return word_to_bfloat16(word_of(x));
    case Type::float16: return word_to_float16(word_of(x));
    case Type::int8: return static_cast<uint8_t>(std::clamp(x * 40, -128.0f, 127.0f));
    default: return word_of(x);
  }
}

inline double value_of(Type type, uint32_t code) {
  switch (type) {
    case Type::bfloat16: return float_of(bfloat16_to_word(static_cast<uint16_t>(code)));
    case Type::float16: return float_of(float16_to_word(static_cast<uint16_t>(code)));
    case Type::int8: return static_cast<int8_t>(code);
    default: return float_of(code);
  }
}

inline bool bit_at(const Ints& bits, int64_t row, int64_t width, int64_t k) {
  return static_cast<uint32_t>(bits[row * width + k / 32]) >> (k % 32) & 1;
}

// The bytes of an output row of dots, by the definition.
inline std::vector<char> finish(const Epilogue& e, const Ints& dot, int64_t M, int64_t N) {
  std::vector<char> out(M * N * type_size(e.type));
  for (int64_t i = 0; i < M * N; ++i) {
    volatile float y = static_cast<float>(dot[i]);
    if (e.row_scale != nullptr) y = y * e.row_scale[i / N];
    if (e.column_scale != nullptr) y = y * e.column_scale[i % N];
    if (e.bias != nullptr) y = y + e.bias[i % N];
    uint32_t code = static_cast<uint32_t>(dot[i]);
    if (e.type != Type::int16 && e.type != Type::int32) code = code_of(e.type, y);
    std::memcpy(out.data() + i * type_size(e.type), &code, type_size(e.type));
  }
  return out;
}

inline Ints thresholds(int64_t N, int32_t scale) {
  std::mt19937 random(5);
  Ints thresh(N);
  for (int32_t& t : thresh) t = static_cast<int32_t>(random() % (2 * scale + 1)) - scale;
  return thresh;
}

inline std::vector<int8_t> directions(int64_t N) {
  std::vector<int8_t> dir(N);
  for (int64_t n = 0; n < N; ++n) dir[n] = static_cast<int8_t>(n % 3 - 1);
  return dir;
}

inline Ints sign_bits(const Ints& dot, int64_t M, int64_t N, const Ints& thresh,
                      const std::vector<int8_t>& dir) {
  Ints bits(M * row_words(N));
  for (int64_t i = 0; i < M * N; ++i) {
    const int64_t n = i % N;
    const bool bit = dir[n] > 0   ? dot[i] < thresh[n]
                     : dir[n] < 0 ? dot[i] > thresh[n]
                                  : thresh[n] != 0;
    bits[i / N * row_words(N) + n / 32] |= static_cast<int32_t>(uint32_t{bit} << (n % 32));
  }
  return bits;
}

}  // namespace
}  // namespace nnkernels::binary
