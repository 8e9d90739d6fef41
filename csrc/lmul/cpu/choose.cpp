#include "lmul/cpu/choose.h"

#include <cmath>
#include <stdexcept>
#include <string>

namespace nnkernels::lmul {
namespace {

[[noreturn]] void refuse(const Plan& plan, const std::string& condition) {
  const char* name = plan.algo == Algo::word ? "word" : "gemm2";
  throw std::runtime_error(std::string("algo='") + name + "' cannot be exact here: " + condition +
                           "; use algo='auto'");
}

std::string exponents(const char* which, int a, int b, const char* what) {
  return std::string("the ") + which + " exponents of a (" + std::to_string(a) + ") and b (" +
         std::to_string(b) + ") " + what;
}

}  // namespace

// Soft zeros. Only one operand of the tile has zeros, say x. All products of nonzero pairs, and so
// all their fp32 partial sums, are multiples of 2^q, q = exmin + eymin - product_bits. A zero x is
// replaced by 2^a; its products are below 2^(a + eymax + 2), all together below 2^(q - 25). Added
// to a sum that is not zero, they are less than half of its last place (or of the place below, next
// to a power of two): the sum does not change. What a sum of zeros has gathered is likewise lost
// when the first nonzero product is added, and what remains of it at the end is below 2^(q - 1),
// which no true sum but zero is.
Choice choose(const Plan& plan, const Range& rows, const Range& columns, int soft_rows,
              int soft_columns) {
  if (plan.term == Term::exact) return {Kernel::exact};
  const bool forced = plan.algo == Algo::word || plan.algo == Algo::gemm2;
  if (rows.nonfinite || columns.nonfinite) {
    if (forced) refuse(plan, "non-finite values");
    return {Kernel::oracle};
  }
  // Exponents, unbiased. An operand of zeros alone has no product to go out of range.
  const bool products = rows.low <= rows.high && columns.low <= columns.high;
  const int row_low = rows.low - 127, row_high = rows.high - 127;
  const int column_low = columns.low - 127, column_high = columns.high - 127;
  const bool overflow = products && row_high + column_high > 125;
  const bool underflow = products && row_low + column_low < -126;
  if (overflow) {
    if (forced) refuse(plan, exponents("highest", row_high, column_high, "may overflow"));
    return {Kernel::oracle};
  }
  if (underflow && forced) {
    refuse(plan, exponents("lowest", row_low, column_low, "may underflow"));
  }
  if (plan.term == Term::formula) {
    return {underflow ? Kernel::formula_guarded : Kernel::formula};
  }
  if (underflow) return {Kernel::guarded};

  const bool row_zeros = rows.zero, column_zeros = columns.zero;
  if (plan.algo != Algo::guarded) {
    if (!row_zeros && !column_zeros) return {Kernel::word};
    if (row_zeros != column_zeros) {
      const int q = products ? row_low + column_low - plan.product_bits : 127;
      const int tiny = row_zeros ? soft_rows - 127 + column_high : soft_columns - 127 + row_high;
      // log2 of kSumBlock is 8.
      if (tiny + 2 + 8 <= q - 25) {
        return {Kernel::word, row_zeros, column_zeros, std::ldexp(1.0f, q - 1)};
      }
    }
    if (plan.algo == Algo::word) {
      refuse(plan, row_zeros && column_zeros ? "zeros in both operands"
                                             : "zeros, and exponents too far apart");
    }
  }
  // The zeros kernel multiplies the product of a soft zero by 0: it must be a number.
  return {row_zeros && soft_rows - 127 + column_high > 125 ? Kernel::guarded : Kernel::zeros};
}

}  // namespace nnkernels::lmul
