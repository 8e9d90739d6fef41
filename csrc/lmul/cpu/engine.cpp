#include "lmul/cpu/engine.h"

#include <cstdlib>
#include <new>

#include "common/isa.h"

namespace nnkernels::lmul {

extern const Kernels scalar_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels, avx512_kernels;
#endif

const Kernels& kernels() {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::avx512: return avx512_kernels;
    case Isa::avx2: return avx2_kernels;
    case Isa::scalar: break;
  }
#endif
  return scalar_kernels;
}

Plan make_plan(const Options& options, Algo algo) {
  Plan plan;
  plan.term = options.mode == Mode::bits ? Term::bits : Term::formula;
  plan.algo = algo;
  plan.round = options.round;
  plan.a_bits = plan.b_bits = options.mantissa_bits;
  plan.offset = options.offset;
  // Products have the bits of the operands and of c.
  const int offset_bits = options.offset == 0 ? 0 : 23 - __builtin_ctz(options.offset);
  plan.product_bits = options.mantissa_bits > offset_bits ? options.mantissa_bits : offset_bits;
  return plan;
}

Buffer::~Buffer() { std::free(data_); }

uint32_t* Buffer::words(int64_t count) {
  if (count > count_) {
    std::free(data_);
    count_ = 0;
    const int64_t bytes = (count * 4 + 63) / 64 * 64;
    data_ = std::aligned_alloc(64, static_cast<size_t>(bytes));
    if (data_ == nullptr) throw std::bad_alloc();
    count_ = bytes / 4;
  }
  return static_cast<uint32_t*>(data_);
}

uint32_t* RowBlock::form(Form form) { return forms_[form].words(kMaxRows * kRowStride); }

}  // namespace nnkernels::lmul
