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

// Soft zeros. All products of nonzero pairs, and so all their fp32 partial sums, are multiples of
// 2^q, q = exmin + eymin - product_bits. A zero x is replaced by 2^a; its products are below
// 2^(a + eymax + 2), all kSumBlock of them together below 2^(q - 25). Added to a sum that is not
// zero, they are less than half of its last place (or of the place below, next to a power of two):
// the sum does not change. What a sum of zeros has gathered is likewise lost when the first nonzero
// product is added, and what remains of it at the end is below 2^(q - 1), which no true sum but
// zero is. With zeros in both operands the same holds for the products of two soft zeros, 2^a and
// 2^b, if a + b does not underflow: only narrow ranges leave room for that.
namespace {

// The largest exponent (unbiased) that soft zeros may have beside an operand up to `other_high`.
int soft_limit(int q, int other_high) { return q - 25 - 8 - 2 - other_high; }

int lowest_bit(const Plan& plan, const Range& rows, const Range& columns) {
  return rows.low - 127 + columns.low - 127 - plan.product_bits;
}

bool is_empty(const Range& range) { return range.low > range.high; }

}  // namespace

SoftExponents soft_exponents(const Plan& plan, const Range& rows, const Range& columns) {
  // The smallest exponents whose products do not underflow.
  const int a = -125 - (columns.low - 127), b = -125 - (rows.low - 127);
  if (rows.zero && columns.zero && !is_empty(rows) && !is_empty(columns)) {
    const int q = lowest_bit(plan, rows, columns);
    const int high_a = soft_limit(q, columns.high - 127), high_b = soft_limit(q, rows.high - 127);
    if (high_a >= a && high_b >= b && high_a + high_b >= -126) return {high_a + 127, high_b + 127};
  }
  return {a + 127, b + 127};
}

Choice choose(const Plan& plan, const Range& rows, const Range& columns,
              const SoftExponents& soft) {
  if (plan.term == Term::exact) return {Kernel::exact};
  const bool forced = plan.algo == Algo::word || plan.algo == Algo::gemm2;
  if (rows.nonfinite || columns.nonfinite) {
    if (forced) refuse(plan, "non-finite values");
    return {Kernel::oracle};
  }
  // Exponents, unbiased. An operand of zeros alone has no product to go out of range.
  const bool products = !is_empty(rows) && !is_empty(columns);
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
  const int a = soft.rows - 127, b = soft.columns - 127;
  if (plan.algo != Algo::guarded) {
    if (!row_zeros && !column_zeros) return {Kernel::word};
    const int q = products ? lowest_bit(plan, rows, columns) : 127;
    const bool rows_fit = !row_zeros || a <= soft_limit(q, column_high);
    const bool columns_fit = !column_zeros || b <= soft_limit(q, row_high);
    const bool both_fit = !row_zeros || !column_zeros || (a + b >= -126 && a <= soft_limit(q, b));
    if (rows_fit && columns_fit && both_fit) {
      return {Kernel::word, row_zeros, column_zeros, std::ldexp(1.0f, q - 1)};
    }
    if (plan.algo == Algo::word) {
      refuse(plan, row_zeros && column_zeros ? "zeros in both operands"
                                             : "zeros, and exponents too far apart");
    }
  }
  // The zeros kernel multiplies the product of a soft zero by 0: it must be a number.
  return {row_zeros && a + column_high > 125 ? Kernel::guarded : Kernel::zeros};
}

}  // namespace nnkernels::lmul
