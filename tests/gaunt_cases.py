"""Inputs, bounds and rotations that the tests of the gaunt operators share."""

import functools

import torch

from nnkernels.gaunt import reference

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
NORMALIZATIONS = ("integral", "component", "norm")
LAYOUTS = ("mul_ir", "ir_mul")

# All degrees up to 6 with every degree of the product, and the large ones.
TRIPLES = [
    *((l1, l2, l3) for l1 in range(7) for l2 in range(7) for l3 in range(l1 + l2 + 1)),
    *((8, 8, 8), (8, 8, 16), (12, 12, 12)),
]
# A few of them where a test has other things to vary: unequal, truncated, padded, odd, degree 0.
SHORT = [(1, 1, 1), (2, 2, 2), (3, 1, 4), (2, 4, 3), (0, 3, 3), (4, 4, 8), (1, 2, 5)]


def name(value) -> str:
    """A readable test id of a dtype or of degrees."""
    if isinstance(value, torch.dtype):
        short = str(value).removeprefix("torch.")
        return short.replace("bfloat", "bf").replace("float", "fp")
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return str(value)


def dim(L: int) -> int:
    return (L + 1) ** 2


def normals(*shape, seed=0, dtype=torch.float64, grad=False) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.to(dtype).requires_grad_(grad)


def signals(L, *leading, seed=0, dtype=torch.float64, layout="mul_ir", grad=False) -> torch.Tensor:
    """Signals of degree L with these leading dimensions; in "ir_mul" the last one is channels."""
    shape = (*leading, dim(L)) if layout == "mul_ir" else (*leading[:-1], dim(L), leading[-1])
    return normals(*shape, seed=seed, dtype=dtype, grad=grad)


def weights(L, *leading, seed=0, dtype=torch.float64, layout="mul_ir", grad=False) -> torch.Tensor:
    """Degree weights, likewise."""
    shape = (*leading, L + 1) if layout == "mul_ir" else (*leading[:-1], L + 1, leading[-1])
    return normals(*shape, seed=seed, dtype=dtype, grad=grad)


def assert_accurate(got: torch.Tensor, expected: torch.Tensor, *, terms: float = 1.0):
    """The promised bound: 2e-13 (float64) or 2e-6 of the largest value; for storage types half a
    unit in the last place of the element more. `expected` is float64; `terms` scales the bound
    where the result sums over that many samples.
    """
    assert got.shape == expected.shape
    assert expected.dtype == torch.float64
    if not expected.numel():
        return
    scale = expected.abs().max() * terms
    allowed = (2e-13 if got.dtype == torch.float64 else 2e-6) * scale.expand(expected.shape)
    if got.dtype in (torch.bfloat16, torch.float16):
        limits = torch.finfo(got.dtype)
        magnitude = (expected.abs() + allowed).clamp(min=limits.smallest_normal)
        # The unit in the last place of a number in [2^e, 2^(e+1)) is eps 2^e.
        unit = limits.eps * 2.0 ** magnitude.log2().floor()
        allowed = allowed + unit / 2
    error = (got.double() - expected).abs()
    assert (error <= allowed).all(), f"beyond the bound by {(error - allowed).max():.3g}"


@functools.cache
def rotations(count: int = 3) -> torch.Tensor:
    """Random rotation matrices [count, 3, 3], and among them none near the identity by chance."""
    values = torch.linalg.qr(normals(count, 3, 3, seed=77)).Q
    return values * torch.det(values).sign()[:, None, None]


@functools.cache
def rotation(L: int, index: int = 0) -> torch.Tensor:
    return reference.rotation(L, rotations()[index])


def directions(count: int, seed=5) -> torch.Tensor:
    return torch.nn.functional.normalize(normals(count, 3, seed=seed), dim=-1)


def inversion(L: int) -> torch.Tensor:
    """The parity (-1)^l of every coefficient."""
    return torch.cat([torch.full((2 * l + 1,), (-1.0) ** l).double() for l in range(L + 1)])
