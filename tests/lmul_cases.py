"""Inputs, oracles and comparisons that the tests of the lmul operators share.

The oracles are built on `nnkernels.lmul.reference`, never on the operators themselves.
"""

import functools
import math
import types

import torch
from house import raw

from nnkernels.lmul import reference

INF, NAN = math.inf, math.nan
MODES = ("bits", "formula")
ROUNDS = ("trunc", "rne")
GRADS = ("ste", "lmul", "exact")
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, *FLOAT8)
SMALLEST = 2.0**-126  # normal fp32 number
LARGEST = 255 * 2.0**120  # bfloat16 number
# Terms that an operator sums in one go.
BLOCK = 256

# Exact in bfloat16: zero, subnormals, and both ends of the range, of its square root and of one
# binade, where sums of mantissas carry twice, once or not at all.
_MAGNITUDES = [
    *(0.0, 2.0**-133, 127 * 2.0**-133, SMALLEST, 255 * 2.0**-133),
    *(1.0 * 2.0**-64, 255 * 2.0**-71, 1.0 * 2.0**-63, 1.4375 * 2.0**-63),
    *(0.6640625, 0.9375, 1.0, 1.4375, 1.46875, 1.5, 1.9921875, 3.0),
    *(1.9921875 * 2.0**62, 1.0 * 2.0**63, 1.4375 * 2.0**63, 1.0 * 2.0**64),
    *(2.0**126, 1.5 * 2.0**126, 2.0**127, LARGEST, INF),
]
SPECIAL = torch.tensor([*_MAGNITUDES, *(-value for value in _MAGNITUDES), NAN])

# The rows of the definition's table, for 7 mantissa bits: x, y and L(x, y) in either mode.
EDGES = {
    "nan": (NAN, 1.0, NAN),
    "nan-inf": (NAN, INF, NAN),
    "nan-zero": (0.0, -NAN, NAN),
    "inf-zero": (-INF, 0.0, NAN),
    "inf-subnormal": (INF, 127 * 2.0**-133, NAN),
    "inf-smallest": (INF, -SMALLEST, -INF),
    "inf-finite": (-INF, -1.5, INF),
    "inf-inf": (INF, -INF, -INF),
    "zero": (-0.0, 1.5, -0.0),
    "zero-zero": (-0.0, -0.0, 0.0),
    "subnormal": (127 * 2.0**-133, -LARGEST, -0.0),
    "subnormals": (2.0**-133, 2.0**-133, 0.0),
    "smallest-product": (2.0**-63, -(2.0**-63), -1.0625 * SMALLEST),
    "underflow": (-(2.0**-63), 2.0**-64, -0.0),
    "carry-from-underflow": (1.5 * 2.0**-63, 1.4375 * 2.0**-64, SMALLEST),
    "underflow-negative-word": (2.0**-100, 2.0**-100, 0.0),
    "largest-product": (2.0**63, 2.0**64, 1.0625 * 2.0**127),
    "overflow": (-(2.0**64), 2.0**64, -INF),
    "carry-to-overflow": (1.5 * 2.0**63, 1.4375 * 2.0**64, INF),
    "overflow-33-bits": (LARGEST, LARGEST, INF),
    "one": (1.0, 1.0, 1.0625),
}

# The same where the modes differ, as s >= 2: x and y, L in mode "bits" and in mode "formula".
_LAST = 1.9921875
CARRIES_TWICE = {
    "in-range": (_LAST, _LAST, 4.1875, 3.046875),
    "to-smallest": (_LAST * 2.0**-64, -_LAST * 2.0**-64, -1.046875 * SMALLEST, -0.0),
    "to-overflow": (_LAST * 2.0**63, -_LAST * 2.0**63, -INF, -3.046875 * 2.0**126),
}


def name(value) -> str:
    """A readable test id of a dtype, a shape or an option."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.").replace("float8_", "").replace("float", "fp")
    if isinstance(value, tuple):
        return "x".join(map(name, value))
    return str(value)


def normals(*shape, seed=0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def any_words(*shape, dtype=torch.float32, seed=0) -> torch.Tensor:
    """Random bit patterns: every exponent is as likely as another, NaN and inf appear."""
    size = dtype.itemsize
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (*shape, size), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).squeeze(-1)


# Which elements `with_zeros` makes zero.
ZEROS = ("none", "some", "lines", "one", "all")


def with_zeros(x, where):
    """x with some of its elements zero, or its rows, or all: of either sign, or subnormal."""
    generator = torch.Generator().manual_seed(9)
    zeros = torch.tensor([0.0, -0.0, SMALLEST / 2, -SMALLEST / 4])
    zeros = zeros[torch.randint(4, x.shape, generator=generator)]
    chosen = {
        "none": torch.zeros(()),
        "some": torch.rand(x.shape, generator=generator),
        "lines": torch.rand((*x.shape[:-1], 1), generator=generator),
        "one": (torch.arange(x.numel()) == x.numel() // 2).view(x.shape),
        "all": torch.ones(()),
    }[where]
    return torch.where(chosen > 0.5, zeros, x)


def transposed(x: torch.Tensor) -> torch.Tensor:
    """x with its last two dimensions swapped in memory."""
    return x.mT.contiguous().mT


def assert_same_bits(got: torch.Tensor, expected: torch.Tensor):
    """Equal words, so that -0 differs from +0; one NaN is as good as another, except in float8."""
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    differ = raw(got) != raw(expected)
    if got.dtype.is_floating_point and got.dtype not in FLOAT8:
        differ &= ~(got.isnan() & expected.isnan())
    if differ.any():
        at = tuple(differ.nonzero()[0].tolist())
        raise AssertionError(
            f"{int(differ.sum())} of {differ.numel()} elements differ, the first at {at}: got "
            f"{got[at].item()!r}, expected {expected[at].item()!r}"
        )


def assert_close(got: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor, dtype=None):
    """|got - expected| <= 2e-6 scale, and half a unit more where the result was rounded to dtype.

    `expected` and `scale`, the sum of the terms' magnitudes, are float64.
    """
    dtype = dtype or got.dtype
    allowed = 2e-6 * scale
    if dtype != torch.float32:
        # Below the smallest normal number units no longer shrink.
        smallest = torch.finfo(dtype).smallest_normal
        allowed += torch.finfo(dtype).eps / 2 * (expected.abs() + allowed).clamp(min=smallest)
    error = (got.double() - expected).abs()
    assert (error <= allowed).all(), f"beyond the tolerance by {(error - allowed).max():.3g}"


def remembered(function):
    """The function with its results kept: each instruction set asks for the same ones."""
    results = {}

    @functools.wraps(function)
    def call(*tensors, **options):
        values = ((x.dtype, x.shape, raw(x).numpy().tobytes()) for x in tensors)
        key = hash((*values, *sorted(options.items())))
        if key not in results:
            results[key] = function(*tensors, **options)
        return results[key]

    return call


oracle = types.SimpleNamespace(
    mul=remembered(reference.mul),
    mul_grad=remembered(reference.mul_grad),
    matmul=remembered(reference.matmul),
    matmul_grad=remembered(reference.matmul_grad),
    matmul_magnitude=remembered(reference.matmul_magnitude),
    linear_grad=remembered(reference.linear_grad),
)


def default_bits(*inputs: torch.Tensor) -> int:
    return reference.default_mantissa_bits(*(x.dtype for x in inputs))


def _terms(x, y, *, mantissa_bits, mode="bits", round="trunc", offset=None):
    """The fp32 numbers that stand for L(x, y) in a sum."""
    options = {"mantissa_bits": mantissa_bits, "mode": mode, "round": round, "offset": offset}
    product = reference.mul(x, y, out_dtype=torch.float32, **options)
    if mode == "bits":
        return (product,)
    # L = Xc P(y) + P(x) Y, either part a multiple of a power of two.
    c = reference.default_offset(mantissa_bits) if offset is None else offset
    x, y = (reference.reduce_mantissa(t, mantissa_bits, round) for t in (x, y))
    px, py = reference.power(x), reference.power(y)
    parts = (x.double() - (1 - c) * px) * py, px * y.double()
    # Zeros and flushed products add nothing.
    parts = tuple(part.masked_fill(product == 0, 0) for part in parts)
    assert all(torch.equal(part, part.float().double()) for part in parts), "test data too small"
    return tuple(part.float() for part in parts)


@remembered
def ordered_matmul(a: torch.Tensor, b: torch.Tensor, **options) -> torch.Tensor:
    """The promised fp32 sum of L(a[..., m, k], b[..., k, n]), one addition after the other.

    k ascends inside blocks of 256, from +0; the sums of the blocks are added in ascending order.
    In mode "formula" (finite operands only) a term is added in two steps, which is what two fused
    multiply-adds by a power of two do.
    """
    options.setdefault("mantissa_bits", default_bits(a, b))
    shape = (*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
    total = torch.zeros(shape)
    for first in range(0, a.shape[-1], BLOCK):
        block = torch.zeros(shape)
        last = min(first + BLOCK, a.shape[-1])
        # Few columns at a time only to bound memory.
        for begin in range(first, last, 16):
            x = a[..., begin : min(begin + 16, last)].float().movedim(-1, 0)[..., None]
            y = b[..., begin : min(begin + 16, last), :].float().movedim(-2, 0)[..., None, :]
            for terms in zip(*_terms(x, y, **options), strict=True):
                for term in terms:
                    block += term
        total = block if first == 0 else total + block
    return total
