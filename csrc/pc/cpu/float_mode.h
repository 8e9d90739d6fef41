// Floating point as IEEE has it, whatever the caller's thread was set to.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace nnkernels::pc {

// While it lives, its thread rounds to nearest and keeps subnormal numbers.
class StandardFloats {
 public:
#if defined(__x86_64__)
  StandardFloats() : before_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
  ~StandardFloats() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
  StandardFloats() = default;
#endif

 public:
  StandardFloats(const StandardFloats&) = delete;
  StandardFloats& operator=(const StandardFloats&) = delete;
};

}  // namespace nnkernels::pc
