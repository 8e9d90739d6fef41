// The codec's kernels of one instruction set, gathered.
#pragma once

#include "pc/cpu/codec_search.h"

namespace nnkernels::pc {
namespace {

// Calls f with the vectors in a row of h numbers, 0: known at run time only.
template <class Call>
NNK_VEC auto with_vectors(int64_t h, Call&& call) {
  const int64_t count = (h + F::lanes - 1) / F::lanes;
  const int64_t width = count * F::lanes;
  switch (count) {
    case 1: return call.template operator()<1>(width);
    case 2: return call.template operator()<2>(width);
    case 4: return call.template operator()<4>(width);
    case 8: return call.template operator()<8>(width);
    default: return call.template operator()<0>(width);
  }
}

void start(const float* pi, int64_t h, int64_t rows, float* alpha) {
  const int64_t width = (h + F::lanes - 1) / F::lanes * F::lanes;
  for (int64_t r = 0; r < rows; ++r) {
    float* to = alpha + r * width;
    std::copy(pi, pi + h, to);
    std::fill(to + h, to + width, 0.0f);
    rescale_row<0>(width, to);
  }
}

void descend(const float* alpha, const float* A, int64_t h, int64_t rows, float* out,
             CodecScratch& scratch) {
  with_vectors(h, [&]<int vectors>(int64_t width) {
    descend_rows<vectors>(alpha, A, h, rows, width, out, scratch);
  });
}

void observe(const float* B, int64_t h, int64_t K, const uint16_t* symbols, int64_t rows,
             float* alpha, float* u, CodecScratch& scratch) {
  with_vectors(h, [&]<int vectors>(int64_t width) {
    observe_rows<vectors>(B, h, K, symbols, rows, width, alpha, u, scratch);
  });
}

void absorb(const float* below, const float* A, int64_t h, int64_t rows, float* alpha, float* u,
            CodecScratch& scratch) {
  with_vectors(h, [&]<int vectors>(int64_t width) {
    absorb_rows<vectors>(below, A, h, rows, width, alpha, u, scratch);
  });
}

int64_t decode(DecodeStep& step, CodecScratch& scratch) {
  return with_vectors(step.h, [&]<int vectors>(int64_t width) {
    return decode_rows<vectors>(step, width, scratch);
  });
}

int64_t measure(MeasureStep& step) {
  return with_vectors(
      step.h, [&]<int vectors>(int64_t width) { return measure_rows<vectors>(step, width); });
}

constexpr CodecKernels kCodecKernels = {
    .lanes = F::lanes,
    .start = start,
    .descend = descend,
    .observe = observe,
    .absorb = absorb,
    .decode = decode,
    .measure = measure,
};

}  // namespace
}  // namespace nnkernels::pc
