// The forms of packed rows that kernels read besides the words, made a panel at a time.
#pragma once

#include "lmul/cpu/choose.h"

namespace nnkernels::lmul {
namespace {

template <class F>
NNK_VEC void map_panel(RowBlock& block, int64_t panel, Form to, F&& f) {
  const uint32_t* from = block.form(kWords);
  uint32_t* into = block.form(to);
  const int64_t begin = panel * Vec::tile_rows;
  const int64_t end = begin + Vec::tile_rows < block.rows ? begin + Vec::tile_rows : block.rows;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t k = 0; k < block.kc; k += Vec::lanes) {
      const int64_t at = row * kRowStride + k;
      Vec::store(into + at, f(Vec::load(from + at)));
    }
  }
}

// The form, made if the panel has none yet.
inline const uint32_t* panel_form(const Plan& plan, RowBlock& block, int64_t panel, Form form) {
  using Int = Vec::Int;
  const auto bit = 1u << form;
  if (!(block.made[panel] & bit)) {
    const auto nonzero = [](Int x) {
      return Vec::greater(Vec::bit_and(x, Vec::set(kMagnitudeMask)), Vec::set(0u));
    };
    switch (form) {
      case kSoft: {
        const Int soft = Vec::set(soft_word(block.soft_exponent));
        map_panel(block, panel, form, [&](Int x) { return Vec::select(nonzero(x), x, soft); });
        break;
      }
      case kNonzero:
        map_panel(block, panel, form,
                  [&](Int x) { return Vec::where(nonzero(x), Vec::set(kOne)); });
        break;
      case kMagnitude:
        map_panel(block, panel, form,
                  [](Int x) { return Vec::bit_and(x, Vec::set(kMagnitudeMask)); });
        break;
      case kSign:
        map_panel(block, panel, form, [&](Int x) {
          const Int sign = Vec::bit_and(x, Vec::set(kSignBit));
          return Vec::where(nonzero(x), Vec::bit_or(sign, Vec::set(kOne)));
        });
        break;
      case kPower:
        map_panel(block, panel, form, [](Int x) { return Vec::bit_and(x, Vec::set(kPowerMask)); });
        break;
      case kCentred: {
        // X - (1 - c) P(x), both steps exact: see centred() in lmul_math.h.
        const auto one_minus_c =
            Vec::set(static_cast<float>((1u << 23) - plan.offset) * (1.0f / 8388608.0f));
        map_panel(block, panel, form, [&](Int x) {
          const auto power = Vec::as_float(Vec::bit_and(x, Vec::set(kPowerMask)));
          return Vec::as_int(Vec::sub(Vec::as_float(x), Vec::mul(one_minus_c, power)));
        });
        break;
      }
      default: break;
    }
    block.made[panel] |= bit;
  }
  return block.form(form) + panel * Vec::tile_rows * kRowStride;
}

}  // namespace
}  // namespace nnkernels::lmul
