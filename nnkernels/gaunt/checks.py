"""What the gaunt operators accept, and the shape of what they return.

The public functions call `check_*` before any kernel, the fake kernels before they promise a
result. Errors are TypeError (kind, dtype) or ValueError (value, shape). Every check returns the
leading dimensions of the result, channels of layout "ir_mul" included as the last of them.
"""

import torch
from torch import Tensor

from nnkernels import _checks
from nnkernels.gaunt.reference import paths

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

NORMALIZATIONS = ("integral", "component", "norm")
LAYOUTS = ("mul_ir", "ir_mul")
KINDS = ("even", "cross")
PATH_KINDS = ("even", "cross", "both")
VECTOR_KINDS = ("cross", "dot", "scale")
GRIDS = ("gauss_legendre", "lebedev")

MAX_DEGREE = 24
MAX_SUM = 96
MAX_FACTORS = 6


# ---- degrees and options ----


def check_degrees(op: str, **degrees: int):
    for name, degree in degrees.items():
        if type(degree) is not int:
            _checks.integer(op, name, degree)
        if not 0 <= degree <= MAX_DEGREE:
            raise ValueError(f"{op}: {name}={degree}: degree out of range [0, {MAX_DEGREE}]")


def check_sum(op: str, total: int):
    if total > MAX_SUM:
        raise ValueError(
            f"{op}: the degrees sum to {total}: degree out of range, at most {MAX_SUM} together"
        )


def check_options(op: str, normalization: str, layout: str):
    if normalization not in NORMALIZATIONS:
        _checks.choice(op, "normalization", normalization, NORMALIZATIONS)
    if layout not in LAYOUTS:
        _checks.choice(op, "layout", layout, LAYOUTS)


# ---- tensors ----


def tensor(op: str, name: str, value, first_name: str, first):
    """A dense floating tensor with dimensions, of the first one's dtype and device."""
    if type(value) is not Tensor or value.layout is not torch.strided:
        # The dtype is for the check below.
        _checks.tensor(op, name, value, (getattr(value, "dtype", None),))
    dtype = value.dtype
    if dtype not in DTYPES or dtype != first.dtype:
        raise TypeError(
            f"{op}: expected matching floating dtypes, got {_checks.short(first.dtype)} and "
            f"{_checks.short(dtype)} ({first_name} and {name}); convert with .to(...)"
        )
    if value.device != first.device:
        raise ValueError(
            f"{op}: {first_name} is on {first.device} and {name} on {value.device}: on different "
            "devices; move both to one"
        )
    if value.dim() == 0:
        raise TypeError(f"{op}: {name} is a 0-dim tensor, expected coefficients along a dimension")


def _leading(op: str, name: str, value: Tensor, count: int, wanted: str, layout: str):
    """The leading dimensions of a signal or weight with `count` entries per channel."""
    shape = value.shape
    at = -1 if layout == "mul_ir" else -2
    if len(shape) < -at:
        raise ValueError(
            f"{op}: {name} is {_checks.shape(value)}, expected [..., {wanted}, channels] in "
            "layout 'ir_mul'"
        )
    if shape[at] != count:
        raise ValueError(_wrong_count(op, name, shape[at], count, wanted))
    return shape[:-1] if at == -1 else (*shape[:-2], shape[-1])


def _wrong_count(op, name, found, count, wanted):
    what = "coefficients" if "^" in wanted else "degree weights" if "+" in wanted else "weights"
    return f"{op}: {name} has {found} {what}, expected {wanted} = {count}"


def signal(op, name, value, degree_name, degree, layout, first_name, first):
    tensor(op, name, value, first_name, first)
    return _leading(op, name, value, (degree + 1) ** 2, f"({degree_name}+1)^2", layout)


def degree_weight(op, name, value, degree_name, degree, layout, first_name, first):
    tensor(op, name, value, first_name, first)
    return _leading(op, name, value, degree + 1, f"{degree_name}+1", layout)


def broadcast(op: str, names, values, leading):
    """The common leading dimensions, or ValueError naming the shapes."""
    result = leading[0]
    for index in range(1, len(leading)):
        # Of unequal lengths they would be compared element by element, a guard for torch.compile.
        if len(leading[index]) == len(result) and leading[index] == result:
            continue
        try:
            result = torch.broadcast_shapes(result, leading[index])
        except RuntimeError:
            shapes = " and ".join(
                f"{name} {_checks.shape(value)}"
                for name, value in zip(names[: index + 1], values[: index + 1], strict=True)
            )
            raise ValueError(f"{op}: the leading dimensions of {shapes} do not broadcast") from None
    return tuple(result)


def with_coefficients(leading, degree: int, layout: str):
    """The shape of a signal of this degree."""
    d = (degree + 1) ** 2
    if layout == "mul_ir":
        return (*leading, d)
    return (*leading[:-1], d, leading[-1])


# ---- one check per operator ----


def check_product(
    op, x, y, L1, L2, L3, w1=None, w2=None, w3=None, normalization="integral", layout="mul_ir"
):
    check_degrees(op, L1=L1, L2=L2, L3=L3)
    check_sum(op, L1 + L2 + L3)
    check_options(op, normalization, layout)
    names, values = ["x", "y"], [x, y]
    leading = [
        signal(op, "x", x, "L1", L1, layout, "x", x),
        signal(op, "y", y, "L2", L2, layout, "x", x),
    ]
    for index, (weight, degree) in enumerate(((w1, L1), (w2, L2), (w3, L3)), 1):
        if weight is not None:
            name = f"w{index}"
            own = degree_weight(op, name, weight, f"L{index}", degree, layout, "x", x)
            names.append(name)
            values.append(weight)
            leading.append(own)
    return broadcast(op, names, values, leading)


def check_nfold(op, xs, Ls, Lout, normalization="integral", layout="mul_ir"):
    if not isinstance(xs, list | tuple):
        raise TypeError(f"{op}: xs must be a list of tensors, got {type(xs).__name__}")
    if not isinstance(Ls, list | tuple):
        raise TypeError(f"{op}: Ls must be a list of degrees, got {type(Ls).__name__}")
    check_factors(op, "the number of signals", len(xs))
    if len(Ls) != len(xs):
        raise ValueError(f"{op}: Ls has {len(Ls)} degrees for {len(xs)} signals in xs")
    check_degrees(op, **{f"Ls[{i}]": degree for i, degree in enumerate(Ls)}, Lout=Lout)
    check_sum(op, sum(Ls) + Lout)
    check_options(op, normalization, layout)
    names = [f"xs[{i}]" for i in range(len(xs))]
    leading = [
        signal(op, name, x, f"Ls[{i}]", degree, layout, "xs[0]", xs[0])
        for i, (name, x, degree) in enumerate(zip(names, xs, Ls, strict=True))
    ]
    return broadcast(op, names, xs, leading)


def check_factors(op: str, what: str, count: int):
    if not 1 <= count <= MAX_FACTORS:
        raise ValueError(f"{op}: {what} must be in 1..{MAX_FACTORS}, got {count}")


def check_power(op, x, n, L, Lout, normalization="integral", layout="mul_ir"):
    _checks.integer(op, "n", n)
    check_factors(op, "n", n)
    check_degrees(op, L=L, Lout=Lout)
    check_sum(op, n * L + Lout)
    check_options(op, normalization, layout)
    return tuple(signal(op, "x", x, "L", L, layout, "x", x))


def check_paths(op, x, y, w, L1, L2, L3, kind="even", normalization="integral", layout="mul_ir"):
    """w [P] or, like a signal with P coefficients, [..., P] or [..., P, channels]."""
    check_degrees(op, L1=L1, L2=L2, L3=L3)
    check_sum(op, L1 + L2 + L3)
    check_options(op, normalization, layout)
    _checks.choice(op, "kind", kind, PATH_KINDS)
    count = len(paths(L1, L2, L3, kind))
    leading = [
        signal(op, "x", x, "L1", L1, layout, "x", x),
        signal(op, "y", y, "L2", L2, layout, "x", x),
    ]
    tensor(op, "w", w, "x", x)
    leading.append(
        _leading(op, "w", w, count, "one per path, P", layout if w.dim() > 1 else "mul_ir")
    )
    return broadcast(op, ("x", "y", "w"), (x, y, w), leading)


def check_vector_product(
    op, u, v, L1, L2, L3, kind="cross", normalization="integral", layout="mul_ir"
):
    """u, v [..., 3, d] (layout "ir_mul": [..., 3, d, C]); with kind="scale" u is [..., d]."""
    _checks.choice(op, "kind", kind, VECTOR_KINDS)
    check_degrees(op, L1=L1, L2=L2, L3=L3)
    check_sum(op, L1 + L2 + L3)
    check_options(op, normalization, layout)
    signal(op, "u", u, "L1", L1, layout, "u", u)
    signal(op, "v", v, "L2", L2, layout, "u", u)
    at = -2 if layout == "mul_ir" else -3
    vectors = (("v", v),) if kind == "scale" else (("u", u), ("v", v))
    for name, value in vectors:
        if value.dim() < -at or value.shape[at] != 3:
            raise ValueError(
                f"{op}: {name} is {_checks.shape(value)}, expected its x, y, z components along "
                f"dimension {at}"
            )


def check_to_grid(op, x, L, points, weights=None):
    """x [..., d]; points [P, 3] and weights [P] are float64 or float32 whatever x is."""
    check_degrees(op, L=L)
    leading = signal(op, "x", x, "L", L, "mul_ir", "x", x)
    check_rule(op, points, weights, "x", x)
    return tuple(leading)


def check_rule(op, points, weights, first_name, first):
    for name, value in (("points", points), ("weights", weights)):
        if value is not None:
            _checks.tensor(op, name, value, (torch.float64, torch.float32))
            _checks.same_device(op, name, value, first_name, first)
    if points.dim() != 2 or points.shape[1] != 3:
        raise ValueError(f"{op}: points is {_checks.shape(points)}, expected [P, 3]")
    count = points.shape[0]
    if weights is not None and (weights.dim() != 1 or weights.shape[0] != count):
        raise ValueError(f"{op}: weights is {_checks.shape(weights)}, expected [{count}]")


def check_from_grid(op, f, L, points, weights=None):
    check_degrees(op, L=L)
    tensor(op, "f", f, "f", f)
    check_rule(op, points, weights, "f", f)
    if f.shape[-1] != points.shape[0]:
        raise ValueError(
            f"{op}: f has {f.shape[-1]} values, expected one per point, {points.shape[0]}"
        )
    return tuple(f.shape[:-1])
