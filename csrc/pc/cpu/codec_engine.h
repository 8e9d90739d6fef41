// What the driver (codec.cpp) asks of the codec's kernels of one instruction set.
//
// Rows are padded with zeros to `width` numbers, whole vectors. All vectors run over the states b
// of an output or over values v, never over the states a of a sum.
#pragma once

#include <cstdint>

#include "pc/cpu/buffer.h"
#include "pc/rans.h"

namespace nnkernels::pc {

// Values that one step of the search compares: 16 x 16 x 16 = 4096.
constexpr int64_t kColumns = 16;

// The search compares slot with the columns stride, 2 stride, .. first, 16 at a time: K <= 16, <=
// 256 and <= 4096 take one, two and three steps.
constexpr int search_steps(int64_t K) { return K <= 16 ? 1 : K <= 256 ? 2 : 3; }
constexpr int64_t search_stride(int64_t K) { return K <= 16 ? 1 : K <= 256 ? 16 : 256; }

struct LaneState {
  uint64_t state = 0;
  const int32_t* next = nullptr;  // word to read
  const int32_t* end = nullptr;
};

// Tables of the next node, which are asked for while this one is worked on: a node's tables are too
// many and too short for the processor to foresee. A few lines at a time: more would wait for each
// other.
class Ahead {
 public:
  void add(const float* table, int64_t count, int64_t rows) {
    const auto* bytes = reinterpret_cast<const char*>(table);
    const int64_t size = count * static_cast<int64_t>(sizeof(float));
    // Few samples use few columns of a table: at most so much for each of them.
    constexpr int64_t most = 512;
    const int64_t share = (size + rows - 1) / rows;
    ranges_[used_++] = {bytes, bytes + size, share < most ? share : most, 0};
  }

  // Called for each row and each of the ranges.
  void fetch(int range) {
    Range& of = ranges_[range];
    for (of.due += of.share; of.due > 0 && of.at < of.end; of.due -= 64, of.at += 64) {
      __builtin_prefetch(of.at, 0, 2);
    }
  }

 private:
  struct Range {
    const char* at = nullptr;
    const char* end = nullptr;
    int64_t share = 0;  // of a row, in bytes
    int64_t due = 0;
  };
  Range ranges_[3];
  int used_ = 0;
};

// Next variable of `rows` samples.
struct CodecStep {
  int64_t rows = 0, h = 0, K = 0;
  int precision = 0;
  const float* alpha = nullptr;  // [rows, width]
  const float* C = nullptr;      // [h, K + 1]
  Ahead ahead;
};

struct DecodeStep : CodecStep {
  // Columns of C, column K from there on: search_stride(K), twice that, ..; and, where the search
  // takes three steps, 0, 16, 32, .., 16 groups.
  const float* top = nullptr;     // [h, 16]
  const float* middle = nullptr;  // [h, groups + 1]
  int64_t groups = 0;
  LaneState* lanes = nullptr;   // [rows]
  uint16_t* symbols = nullptr;  // [rows]
};

struct MeasureStep : CodecStep {
  const uint16_t* symbols = nullptr;  // [rows]
  int32_t* low = nullptr;             // of row r at low + r * row, likewise width
  int32_t* width = nullptr;
  int64_t row = 0;
};

// Scratch of one thread.
struct CodecScratch {
  Buffer<float> weights, leaf, rows;
};

struct CodecKernels {
  int64_t lanes;  // of a vector
  // alpha[r] = pi, rescaled.
  void (*start)(const float* pi, int64_t h, int64_t rows, float* alpha);
  // out[r] = alpha[r] A, rescaled.
  void (*descend)(const float* alpha, const float* A, int64_t h, int64_t rows, float* out,
                  CodecScratch& scratch);
  // u[r] = B[:, symbols[r]], and alpha[r] *= that, rescaled; either may be nullptr.
  void (*observe)(const float* B, int64_t h, int64_t K, const uint16_t* symbols, int64_t rows,
                  float* alpha, float* u, CodecScratch& scratch);
  // alpha[r] and u[r] *= beta[r] = A below[r], all rescaled; either may be nullptr.
  void (*absorb)(const float* below, const float* A, int64_t h, int64_t rows, float* alpha,
                 float* u, CodecScratch& scratch);
  // Both return the first row that cannot be, or -1.
  int64_t (*decode)(DecodeStep& step, CodecScratch& scratch);
  int64_t (*measure)(MeasureStep& step);
};

// The kernels of active_isa() for h states.
const CodecKernels& codec_kernels(int64_t h);

}  // namespace nnkernels::pc
