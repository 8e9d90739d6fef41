"""Writes the ring convolution kernels for degrees known at build time.

    python generate.py L FILE

The header FILE then holds Degree<V, L>: the products of rings (L, L, L), (L, L, 2L) and
(L, 2L, L), and synthesis and analysis for degree L and, beyond the single degrees, 2L. It does
step by step what AnyRings in rings.h does in loops, in the same order, so results agree bit for
bit.
"""

import math
import sys
from pathlib import Path

# Up to this degree the sum over the non-zero coefficients is shorter than the way over the rings.
DIRECT_DEGREES = 2
SINGLE_DEGREES = 8  # L of 1 to 8
# Frequencies of a product summed side by side: each has a cosine and a sine sum, and 8 sums hide
# the latency of a fused multiply-add.
OUTPUTS = 4
# Degrees projected side by side, a cosine and a sine sum each: with the folded rings and a table
# entry they fill 16 registers.
CHUNK = 5


def cosine(m):
    return f"{m} * V::lanes"


def sine(L, m):
    return f"{L + m} * V::lanes"


def coefficient(l, m):
    return f"{l * l + l + m} * V::lanes"


def multiply_pair(k, r, s, sign_p, sign_s):
    """Adds (p - i q) (r - i s) to frequency k; the signs are those of q and s."""
    real = "fnma" if sign_p * sign_s > 0 else "fma"
    steps = [f"c{k} = V::fma(p, {r}, c{k});"]
    if s is None:
        return [steps, [f"s{k} = V::{'fma' if sign_p > 0 else 'fnma'}(q, {r}, s{k});"]]
    steps.append(f"s{k} = V::{'fma' if sign_s > 0 else 'fnma'}(p, {s}, s{k});")
    return [
        steps,
        [
            f"c{k} = V::{real}(q, {s}, c{k});",
            f"s{k} = V::{'fma' if sign_p > 0 else 'fnma'}(q, {r}, s{k});",
        ],
    ]


def convolve_order(a, b, outputs, m):
    """What orders m and -m of f add to these frequencies."""
    if 0 in outputs and m <= b:
        yield f"twice = V::fma(p, V::load(g + {cosine(m)}), twice);"
        yield f"twice = V::fma(q, V::load(g + {sine(b, m)}), twice);"
    for sign in (1, -1):
        orders, early, late = [], [], []
        for k in outputs:
            n = k - sign * m
            if k == 0 or abs(n) > b:
                continue
            if abs(n) not in orders:
                orders.append(abs(n))
            s = f"t{abs(n)}" if n else None
            pair = multiply_pair(k, f"r{abs(n)}", s, sign, 1 if n > 0 else -1)
            early += pair[0]
            late += pair[1]
        if not orders:
            continue
        yield "{"
        for n in orders:
            yield f"const Value r{n} = V::load(g + {cosine(n)});"
            if n:
                yield f"const Value t{n} = V::load(g + {sine(b, n)});"
        yield from early
        yield from late
        yield "}"


def convolve_outputs(a, b, c, first):
    """Frequencies first, first + 1, ... of a product of rings."""
    outputs = [k for k in range(first, first + OUTPUTS) if k <= c]
    yield "{"
    if first <= b:
        yield f"const Value p = V::load(f + {cosine(0)});"
    for k in outputs:
        if k <= b:
            yield f"Value c{k} = V::mul(p, V::load(g + {cosine(k)}));"
        else:
            yield f"Value c{k} = V::set(0);"
        if 0 < k <= b:
            yield f"Value s{k} = V::mul(p, V::load(g + {sine(b, k)}));"
        elif k > 0:
            yield f"Value s{k} = V::set(0);"
    if first == 0:
        yield "Value twice = V::set(0);"
    for m in range(1, a + 1):
        body = list(convolve_order(a, b, outputs, m))
        if body:
            # The barrier makes the compiler load g again rather than spill it.
            yield 'asm volatile("" ::: "memory");'
            yield "{"
            for name, at in (("p", cosine(m)), ("q", sine(a, m))):
                if any(f"({name}," in line for line in body):
                    yield f"const Value {name} = V::load(f + {at});"
            yield from body
            yield "}"
    for k in outputs:
        if k == 0:
            yield "c0 = V::fma(V::set(2), twice, c0);"
        yield f"put<V>(store, c{k}, h + {cosine(k)});"
        if k:
            yield f"put<V>(store, s{k}, h + {sine(c, k)});"
    yield "}"


def convolve(a, b, c):
    yield f"static void convolve_{a}_{b}_{c}(const ConvArgs& args) {{"
    yield "const T* f = static_cast<const T*>(args.f);"
    yield "const T* g = static_cast<const T*>(args.g);"
    yield "T* h = static_cast<T*>(args.h);"
    yield "const Store store = args.store;"
    yield "for (int64_t ring = 0; ring < args.rings; ++ring) {"
    for first in range(0, c + 1, OUTPUTS):
        yield from convolve_outputs(a, b, c, first)
    for name, L in (("f", a), ("g", b), ("h", c)):
        yield f"{name} += {2 * L + 1} * V::lanes;"
    yield "}"
    yield "}"


def synthesis_order(L, m):
    """The rings' coefficients of order m."""
    yield "{"
    kinds = "cs" if m else "c"
    for kind in kinds:
        order = -m if kind == "s" else m
        for l in range(m, L + 1):
            yield f"const Value {kind}{l} = V::load(from + {coefficient(l, order)});"
    yield "for (int64_t i = 0; i < range.count; ++i) {"
    yield f"const T* p = row + (range.first + i) * {L - m + 1};"
    yield f"T* north = to + i * {2 * (2 * L + 1)} * V::lanes;"
    for l in range(m, L + 1):
        yield f"const Value p{l} = V::set(p[{l - m}]);"
        for kind in kinds:
            total = f"{'even' if (l - m) % 2 == 0 else 'odd'}_{kind}"
            if l - m < 2:
                yield f"Value {total} = V::mul(p{l}, {kind}{l});"
            else:
                yield f"{total} = V::fma(p{l}, {kind}{l}, {total});"
    for kind in kinds:
        if m == 0:
            at, negate = cosine(0), "false"
        elif kind == "c":
            at, negate = f"(turn ? {L + m} : {m}) * V::lanes", "turn"
        else:
            at, negate = f"(turn ? {m} : {L + m}) * V::lanes", "false"
        odd = f"odd_{kind}" if m < L else None
        for ring, operation in ((0, "add"), (2 * L + 1, "sub")):
            value = f"V::{operation}(even_{kind}, {odd})" if odd else f"even_{kind}"
            yield f"V::store(north + {ring} * V::lanes + {at}, signed_as<{negate}>({value}));"
    yield "}"
    yield f"row += range.pairs * {L - m + 1};"
    yield "}"


def synthesis(L):
    yield "template <bool turn>"
    yield f"static void synthesis_{L}(const PairRange& range, const T* row, const T* from,"
    yield "T* to) {"
    for m in range(L + 1):
        yield from synthesis_order(L, m)
    yield "}"
    yield f"static void synthesis_{L}(int64_t, const PairRange& range, const void* table,"
    yield "bool turn, const void* x, void* grid) {"
    yield f"(turn ? synthesis_{L}<true> : synthesis_{L}<false>)("
    yield "range, static_cast<const T*>(table), static_cast<const T*>(x), static_cast<T*>(grid));"
    yield "}"


def analysis_degrees(L, m, degrees, all_degrees):
    """Projects order m on some degrees of one parity."""
    kinds = "cs" if m else "c"
    yield "{"
    for kind in kinds:
        order = -m if kind == "s" else m
        for l in degrees:
            at = f"to + {coefficient(l, order)}"
            yield f"Value {kind}{l} = range.first == 0 ? V::set(0) : V::load({at});"
    yield "for (int64_t i = 0; i < range.count; ++i) {"
    width = len(all_degrees)
    start = all_degrees.index(degrees[0])
    yield f"const T* p = row + (range.first + i) * {width} + {start};"
    yield f"const T* north = from + i * {2 * (2 * L + 1)} * V::lanes;"
    fold = "fma" if (degrees[0] - m) % 2 == 0 else "fnma"
    for kind in kinds:
        at = sine(L, m) if kind == "s" else cosine(m)
        yield f"const Value n{kind} = V::load(north + {at});"
        yield f"const Value m{kind} = V::load(north + {2 * L + 1} * V::lanes + {at});"
        yield f"const Value f{kind} = V::{fold}(sign, m{kind}, n{kind});"
    for i, l in enumerate(degrees):
        yield f"const Value p{l} = V::set(p[{i}]);"
        for kind in kinds:
            yield f"{kind}{l} = V::fma(p{l}, f{kind}, {kind}{l});"
    yield "}"
    for kind in kinds:
        order = -m if kind == "s" else m
        for l in degrees:
            yield f"V::store(to + {coefficient(l, order)}, {kind}{l});"
    yield "}"


def analysis(L):
    yield f"static void analysis_{L}(int64_t, const PairRange& range, const void* table,"
    yield "double mirror, const void* grid, void* x) {"
    yield "const T* row = static_cast<const T*>(table);"
    yield "const T* from = static_cast<const T*>(grid);"
    yield "T* to = static_cast<T*>(x);"
    yield "const Value sign = V::set(static_cast<T>(mirror));"
    for m in range(L + 1):
        for parity in range(2):
            degrees = list(range(m + parity, L + 1, 2))
            for first in range(0, len(degrees), CHUNK):
                yield from analysis_degrees(L, m, degrees[first : first + CHUNK], degrees)
            if degrees:
                yield f"row += range.pairs * {len(degrees)};"
    yield "}"


def gauss_legendre(count):
    """Nodes and weights, by Newton's method."""
    for i in range(count):
        x = math.cos(math.pi * (i + 0.75) / (count + 0.5))
        for _ in range(10):
            previous, value = 1.0, x
            for n in range(2, count + 1):
                previous, value = value, ((2 * n - 1) * x * value - (n - 1) * previous) / n
            slope = count * (previous - x * value) / (1 - x * x)
            x -= value / slope
        yield x, 2 / ((1 - x * x) * slope * slope)


def legendre(l, m, x):
    """N_lm of tables.h at cos(theta) = x."""
    value = math.sqrt(1 / (4 * math.pi))
    for k in range(1, m + 1):
        value *= math.sqrt((2 * k + 1) / (2 * k) * (1 - x * x))
    previous = 0.0
    for k in range(m + 1, l + 1):
        last = math.sqrt(((k - 1) ** 2 - m * m) / (4 * (k - 1) ** 2 - 1)) * previous
        factor = math.sqrt((4 * k * k - 1) / (k * k - m * m))
        previous, value = value, factor * (x * value - last)
    return value


def circle(orders):
    """The integral of three functions cos(m alpha), m >= 0, or sin(-m alpha)."""
    signs = [-1 if m < 0 else 1 for m in orders]
    if signs[0] * signs[1] * signs[2] < 0:
        return 0.0
    total = 0
    for second in (1, -1):
        for third in (1, -1):
            if abs(orders[0]) + second * abs(orders[1]) + third * abs(orders[2]) != 0:
                continue
            # sin a sin b = (cos(a - b) - cos(a + b)) / 2
            flips = (1, second, third)
            sines = [flip for flip, sign in zip(flips, signs, strict=True) if sign < 0]
            total += -sines[0] * sines[1] if sines else 1
    return total * math.pi / 2


def gaunt(degrees, orders):
    """The integral of three orthonormal real harmonics."""
    angle = circle(orders)
    if angle == 0:
        return 0.0
    angle *= math.sqrt(2) ** sum(m != 0 for m in orders)
    total = 0.0
    for x, weight in gauss_legendre(sum(degrees) // 2 + 1):
        values = [legendre(l, abs(m), x) for l, m in zip(degrees, orders, strict=True)]
        total += weight * math.prod(values)
    return angle * total


def direct(a, b, c):
    """The product without rings: for each result, terms with one coefficient up to sign at once."""
    groups = []
    body = []
    for l3 in range(c + 1):
        for m3 in range(-l3, l3 + 1):
            terms = {}
            for l1 in range(a + 1):
                for l2 in range(abs(l1 - l3), min(b, l1 + l3) + 1, 2):
                    for m1 in range(-l1, l1 + 1):
                        for m2 in range(-l2, l2 + 1):
                            value = gaunt((l1, l2, l3), (m1, m2, m3))
                            if abs(value) > 1e-12:
                                key = (l1, l2, l3, round(abs(value), 12))
                                terms.setdefault(key, []).append((value, l1, m1, l2, m2))
            total = None
            body.append("{")
            for key, members in terms.items():
                name = f"t{len(groups)}"
                # The first term has sign +, so that its product starts the sum.
                members.sort(key=lambda member: member[0] < 0)
                first_sign = 1 if members[0][0] > 0 else -1
                for i, (value, l1, m1, l2, m2) in enumerate(members):
                    x = f"V::load(f + {coefficient(l1, m1)})"
                    y = f"V::load(g + {coefficient(l2, m2)})"
                    if i == 0:
                        body.append(f"Value {name} = V::mul({x}, {y});")
                    else:
                        step = "fma" if value * first_sign > 0 else "fnma"
                        body.append(f"{name} = V::{step}({x}, {y}, {name});")
                constant = f"V::set(k[{len(groups)}])"
                if total is None:
                    body.append(f"Value z = V::mul({constant}, {name});")
                else:
                    body.append(f"z = V::fma({constant}, {name}, z);")
                total = name
                groups.append((*key[:3], members[0][0]))
            at = f"h + {coefficient(l3, m3)}"
            body.append(f"put<V>(add ? Store::add : Store::set, z, {at});")
            body.append("}")
    name = f"{a}_{b}_{c}"
    yield f"static constexpr Group groups_{name}[] = {{"
    for l1, l2, l3, value in groups:
        yield f"{{{l1}, {l2}, {l3}, {value!r}}},"
    yield "};"
    yield f"static void direct_{name}(const void* table, const void* x, const void* y, void* out,"
    yield "bool add) {"
    yield "const T* k = static_cast<const T*>(table);"
    yield "const T* f = static_cast<const T*>(x);"
    yield "const T* g = static_cast<const T*>(y);"
    yield "T* h = static_cast<T*>(out);"
    yield from body
    yield "}"


def direct_kernel(L, product):
    if L > DIRECT_DEGREES:
        return "{}"
    name = "{}_{}_{}".format(*product)
    return f"{{direct_{name}, groups_{name}, std::size(groups_{name})}}"


def header(L):
    yield f"// Written by generate.py for degree {L}."
    yield "#pragma once"
    yield '#include "gaunt/cpu/degree.h"'
    yield "namespace nnkernels::gaunt { namespace {"
    yield "template <class V> struct Degree {"
    yield "using T = typename V::T; using Value = typename V::Value;"
    yield "template <bool negate> static NNK_VEC Value signed_as(Value x) {"
    yield "if constexpr (negate) return V::sub(V::set(0), x); else return x; }"
    products = [(L, L, L), (L, L, 2 * L), (L, 2 * L, L)]
    for product in products:
        yield from convolve(*product)
    if L <= DIRECT_DEGREES:
        for product in products:
            yield from direct(*product)
    degrees = [L, 2 * L] if 2 * L > SINGLE_DEGREES else [L]
    for degree in degrees:
        yield from synthesis(degree)
        yield from analysis(degree)
    names = ", ".join("convolve_{}_{}_{}".format(*product) for product in products)
    rings = ", ".join(f"synthesis_{degree}, analysis_{degree}" for degree in degrees)
    if len(degrees) == 1:
        rings += ", nullptr, nullptr"
    directs = ", ".join(direct_kernel(L, product) for product in products)
    yield f"static constexpr DegreeKernels kernels = {{{rings}, {names}, {directs}}};"
    yield "};"
    yield "}  }"


def main():
    L, path = int(sys.argv[1]), Path(sys.argv[2])
    path.write_text("\n".join(header(L)) + "\n")


if __name__ == "__main__":
    main()
