#include <algorithm>

#include "gaunt/cpu/program.h"

namespace nnkernels::gaunt {
namespace {

// One of the operands x, y, gz with its weight, and their tangents.
struct Slot {
  int64_t L, used;  // degree; degree up to which it takes part
  Scale scale;
  const Array *array, *weight;            // inputs
  const Array *tangent, *weight_tangent;  // nullptr: first derivatives
  const Array *out, *weight_out;          // derivatives
  int raw = -1, w = -1, u = -1, s = -1;   // buffers of the above
  Signal value, slope;                    // w x and its tangent
};

int64_t used_degree(Kind kind, int64_t L, int64_t others) {
  return std::min(L, others - (kind == Kind::cross ? 1 : 0));
}

void load(Program& program, Slot& slot) {
  const int64_t L = slot.used, count = coefficients_of(L);
  slot.raw = program.load(*slot.array, count);
  slot.w = program.load(*slot.weight, L + 1);
  slot.value = {slot.w < 0 ? slot.raw : program.weigh(L, slot.raw, slot.w), L, slot.scale};
  slot.slope = {-1, L, slot.scale};
  if (slot.tangent == nullptr) return;
  slot.u = program.load(*slot.tangent, count);
  slot.s = program.load(*slot.weight_tangent, L + 1);
  const int weighed = slot.w < 0 ? slot.u : program.weigh(L, slot.u, slot.w);
  slot.slope.x = program.weigh(L, slot.raw, slot.s, weighed);
}

// The derivatives by slot `c` and its weight; `a`, `b`, `c` is an even permutation of the slots.
void derive(Program& program, Kind kind, Slot& a, Slot& b, Slot& c) {
  if (!*c.out && !*c.weight_out) return;
  const int64_t L = c.used;
  int by_value = -1, out = -1, weight_out = -1;
  const bool second = c.tangent != nullptr;
  const bool direct = kind == Kind::even && program.direct_is_faster(a.used, b.used, L);
  if (!second || c.s >= 0 || (*c.weight_out && c.u >= 0)) {
    if (direct) {
      by_value = program.direct(a.value, b.value, L, c.scale);
    } else {
      const int grid = program.product(kind, a.value, b.value, L);
      by_value = program.analysis(kind, L, c.scale, grid);
    }
  }
  int by_slope = by_value;
  if (second && direct) {
    by_slope = program.direct(a.slope, b.value, L, c.scale);
    by_slope = program.direct(a.value, b.slope, L, c.scale, by_slope);
  } else if (second) {
    int grid = program.product(kind, a.slope, b.value, L);
    grid = program.product(kind, a.value, b.slope, L, grid);
    by_slope = program.analysis(kind, L, c.scale, grid);
  }
  if (*c.weight_out) {
    weight_out = program.dot(L, c.raw, by_slope);
    if (second) weight_out = program.dot(L, c.u, by_value, weight_out);
    program.store(*c.weight_out, weight_out, c.L + 1);
  }
  if (*c.out) {
    out = c.w < 0 ? by_slope : program.weigh(L, by_slope, c.w);
    if (second) out = program.weigh(L, by_value, c.s, out);
    program.store(*c.out, out, coefficients_of(c.L));
  }
}

void derivatives(const ProductArgs& args, bool second, const Parallel& parallel) {
  const auto slot = [&](Array Trilinear::* array, Array Trilinear::* weight, int64_t L,
                        int64_t others, bool inverse) {
    const Trilinear &in = args.in, &tangent = args.tangent, &out = args.out;
    return Slot{L,
                used_degree(args.kind, L, others),
                scale_of(args.basis, inverse),
                &(in.*array),
                &(in.*weight),
                second ? &(tangent.*array) : nullptr,
                second ? &(tangent.*weight) : nullptr,
                &(out.*array),
                &(out.*weight)};
  };
  Slot x = slot(&Trilinear::x, &Trilinear::w1, args.L1, args.L2 + args.L3, false);
  Slot y = slot(&Trilinear::y, &Trilinear::w2, args.L2, args.L1 + args.L3, false);
  Slot z = slot(&Trilinear::z, &Trilinear::w3, args.L3, args.L1 + args.L2, true);
  const bool vanishes = args.kind == Kind::cross && (args.L1 == 0 || args.L2 == 0 || args.L3 == 0);
  const int64_t sum = x.used + y.used + z.used - (args.kind == Kind::cross ? 1 : 0);
  Program program(args.samples.type, vanishes ? 0 : sum / 2 + 1);
  for (Slot* s : {&x, &y, &z}) {
    if (!vanishes) {
      load(program, *s);
      continue;
    }
    program.store(*s->out, -1, coefficients_of(s->L));
    program.store(*s->weight_out, -1, s->L + 1);
  }
  if (!vanishes) {
    derive(program, args.kind, x, y, z);
    derive(program, args.kind, y, z, x);
    derive(program, args.kind, z, x, y);
  }
  program.run(args.samples, parallel);
}

}  // namespace

void product(const ProductArgs& args, const Parallel& parallel) {
  derivatives(args, false, parallel);
}
void product_grad(const ProductArgs& args, const Parallel& parallel) {
  derivatives(args, false, parallel);
}
void product_grad_grad(const ProductArgs& args, const Parallel& parallel) {
  derivatives(args, true, parallel);
}

}  // namespace nnkernels::gaunt
