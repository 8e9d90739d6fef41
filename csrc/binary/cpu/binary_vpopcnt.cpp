// The popcount kernel with AVX-512 VPOPCNTDQ: one instruction counts the ones of 8 words.
#include <immintrin.h>

#include "binary/cpu/engine.h"

namespace nnkernels::binary {
namespace {

struct Vec {
  struct Counter {
    static constexpr int64_t block = 64, flush_blocks = INT32_MAX;
    __m512i totals = _mm512_setzero_si512();

    void add_difference(const uint8_t* a, const uint8_t* b) {
      const __m512i x = _mm512_xor_si512(_mm512_loadu_si512(a), _mm512_loadu_si512(b));
      totals = _mm512_add_epi64(totals, _mm512_popcnt_epi64(x));
    }
    void flush() {}
    int64_t count() const { return _mm512_reduce_add_epi64(totals); }
  };
  static constexpr int count_rows = 4, count_columns = 4;
  static int64_t ones(uint64_t x) { return __builtin_popcountll(x); }
};

}  // namespace
}  // namespace nnkernels::binary

#include "binary/cpu/count.h"

namespace nnkernels::binary {

using Popcount = decltype(Kernels::popcount);
extern const Popcount vpopcnt_popcount;
const Popcount vpopcnt_popcount = popcount;

}  // namespace nnkernels::binary
