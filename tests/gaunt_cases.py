"""Inputs, bounds and rotations that the tests of the gaunt operators share."""

import functools
import types
from collections.abc import Callable
from typing import NamedTuple

import torch

from nnkernels import gaunt
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


# ---- one call of every operator ----


class Case(NamedTuple):
    """inputs(make, weight) gives the tensors of call(operators, *tensors, **options); `make` and
    `weight` are `signals` and `weights` with a dtype and a layout."""

    inputs: Callable
    call: Callable


# The reference under the names of the public functions.
oracle = types.SimpleNamespace(
    product=reference.product,
    cross=reference.cross,
    nfold=reference.nfold,
    power=reference.power,
    paths=reference.weighted_paths,
    to_grid=lambda x, L, grid: reference.to_grid(x, L, grid.points),
    from_grid=lambda f, L, grid: reference.from_grid(f, L, grid.points, grid.weights),
)

GRID = gaunt.grid(6)


CASES = {
    "product": Case(
        lambda make, weight: [make(3, 2, 5), make(2, 2, 5, seed=1)],
        lambda ops, x, y, **options: ops.product(x, y, 3, 2, 4, **options),
    ),
    "product-weights": Case(
        lambda make, weight: [
            make(2, 3, 4),
            make(2, 3, 1, seed=1),
            *(weight(2, 4, seed=2), weight(2, 3, 1, seed=3), weight(2, 3, 4, seed=4)),
        ],
        lambda ops, x, y, *w, **options: ops.product(x, y, 2, 2, 2, *w, **options),
    ),
    "product-broadcast": Case(
        lambda make, weight: [make(2, 3, 1, 4), make(3, 5, 1, seed=1), weight(3, 4, seed=2)],
        lambda ops, x, y, w, **options: ops.product(x, y, 2, 3, 3, None, w, **options),
    ),
    "cross": Case(
        lambda make, weight: [make(3, 2, 5), make(2, 2, 1, seed=1), weight(4, 5, seed=2)],
        lambda ops, x, y, w, **options: ops.cross(x, y, 3, 2, 4, w3=w, **options),
    ),
    "nfold": Case(
        lambda make, weight: [make(2, 2, 3), make(1, 2, 1, seed=1), make(3, 3, seed=2)],
        lambda ops, x, y, v, **options: ops.nfold([x, y, v], [2, 1, 3], 3, **options),
    ),
    "power": Case(
        lambda make, weight: [make(2, 3, 4)],
        lambda ops, x, **options: ops.power(x, 3, 2, 3, **options),
    ),
    "paths": Case(
        # Degrees 2, 1 and 3 have 10 paths, 2, 2 and 2 have 11.
        lambda make, weight: [make(2, 2, 3), make(1, 2, 1, seed=1), weight(9, 2, 3, seed=2)],
        lambda ops, x, y, w, **options: ops.paths(x, y, w, 2, 1, 3, kind="both", **options),
    ),
    "paths-shared": Case(
        lambda make, weight: [make(2, 2, 3), make(2, 2, 3, seed=1), normals(11, seed=2)],
        lambda ops, x, y, w, **options: ops.paths(
            x, y, w.to(x.dtype), 2, 2, 2, kind="even", **options
        ),
    ),
    "to_grid": Case(
        lambda make, weight: [make(3, 2, 5)],
        lambda ops, x: ops.to_grid(x, 3, GRID),
    ),
    "from_grid": Case(
        lambda make, weight: [normals(2, 5, len(GRID.points))],
        lambda ops, f: ops.from_grid(f, 3, GRID),
    ),
}
# The operators on a grid know one layout and one basis.
PRODUCTS = [case for case in CASES if "grid" not in case]


def inputs(case: str, dtype=torch.float64, layout="mul_ir", grad=False, rounded=None):
    """The tensors of a case; `rounded` first rounds them to another dtype."""
    make = functools.partial(signals, layout=layout)
    weight = functools.partial(weights, layout=layout)
    values = CASES[case].inputs(make, weight)
    return [x.to(rounded or dtype).to(dtype).requires_grad_(grad) for x in values]


def call_of(case: str, operators=gaunt, **options):
    """The case as a function of its tensors."""
    return functools.partial(CASES[case].call, operators, **options)


def derivatives(function, tensors, g, cotangents):
    """The result of function(*tensors), its gradients and those of their product with cotangents:
    for the tensors, then for g."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    g = g.detach().requires_grad_()
    out = function(*leaves)
    # A result that does not depend on them still has derivatives: zeros.
    options = {"allow_unused": True, "materialize_grads": True}
    connected = out if out.requires_grad else out + sum(0 * x.sum() for x in leaves)
    first = torch.autograd.grad(connected, leaves, g, create_graph=True)
    first = [x if x.requires_grad else x + 0 * g.sum() for x in first]
    second = torch.autograd.grad(first, [*leaves, g], cotangents, **options)
    return [x.detach() for x in (out, *first, *second)]
