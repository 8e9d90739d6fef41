"""The public gaunt functions: check the arguments, then call the operator.

Where no input needs a gradient they call the `_fwd` operator, which is cheaper than the one that
carries the autograd; the results are the same.

Options common to all products:

    normalization  the basis c_l Y_{l,m} that coefficients refer to, Y being orthonormal: "integral"
                   (c_l = 1: the integral of Y^2 is 1), "component" (c_l = sqrt(4 pi): the squares
                   of a degree sum to 2 l + 1), "norm" (c_l = sqrt(4 pi / (2 l + 1)): to 1). Not the
                   variance scaling that e3nn's ToS2Grid calls by these names.
    layout         "mul_ir": the coefficients are the last dimension, [..., d]; "ir_mul": the last
                   but one, before the channels, [..., d, C].

Shapes are given for "mul_ir", with d = (L + 1)^2. All leading dimensions broadcast, in "ir_mul" the
channels too.
"""

import torch
from torch import Tensor

from nnkernels import _checks
from nnkernels.gaunt import autograd, checks, reference
from nnkernels.gaunt.tables import Grid

_FORWARD = {
    name: getattr(torch.ops.nnkernels, f"{name}_fwd").default for name in autograd.FUNCTIONS
}
_RECORDED = {name: getattr(torch.ops.nnkernels, name).default for name in autograd.FUNCTIONS}
_DEFAULTS = ("integral", "mul_ir")


def _transformed() -> bool:
    """Whether a transform of torch.func is at work (inside torch.compile it is traced instead)."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def _run(name: str, tensors: tuple, arguments: tuple) -> Tensor:
    """The operator with autograd where an input needs a gradient, else the one without."""
    recorded = _checks.needs_grad(name, "", *tensors)
    return (_RECORDED if recorded else _FORWARD)[name](*arguments)


def _product(name, x, y, L1, L2, L3, w1, w2, w3, normalization, layout):
    checks.check_product(name, x, y, L1, L2, L3, w1, w2, w3, normalization, layout)
    if _transformed():
        options = ((L1, L2, L3), (normalization, layout))
        return autograd.FUNCTIONS[name].transformed((x, y, w1, w2, w3), options)
    # Every option that torch parses costs 0.4 us.
    rest = () if (normalization, layout) == _DEFAULTS else (normalization, layout)
    if w1 is None and w2 is None and w3 is None and not rest:
        return _run(name, (x, y), (x, y, L1, L2, L3))
    return _run(name, (x, y, w1, w2, w3), (x, y, L1, L2, L3, w1, w2, w3, *rest))


def product(
    x: Tensor,
    y: Tensor,
    L1: int,
    L2: int,
    L3: int,
    w1: Tensor | None = None,
    w2: Tensor | None = None,
    w3: Tensor | None = None,
    *,
    normalization: str = "integral",
    layout: str = "mul_ir",
) -> Tensor:
    """Gaunt product: the coefficients of f g up to degree L3, where x and y are those of f and g.

    z_c = sum over a, b of G_abc x_a y_b with G_abc the integral of Y_a Y_b Y_c over the sphere: all
    couplings of degrees with even l1 + l2 + l3 at once, which makes it equivariant under rotations
    and inversion.

    Args:
        x: [..., d1], coefficients of degree L1; float32, float64, bfloat16 or float16.
        y: [..., d2] of degree L2; the same dtype.
        L1, L2, L3: degrees from 0 to 24, of sum at most 96. Beyond L1 + L2 the result is zero.
        w1, w2, w3: [..., L + 1] or None: factors for each degree of x, of y and of the result.
        normalization, layout: see the module.

    Returns:
        [..., d3], contiguous, of the inputs' dtype. Twice differentiable in all tensors.

    Raises:
        TypeError: dtypes that differ or are not floating, no dense tensor, degrees that are no int.
        ValueError: sizes, degrees and options that do not fit, different devices.

    Guarantee:
        Error at most 2e-6 (float64: 2e-13) of the largest coefficient; bfloat16 and float16 compute
        in float32 and round once. A sample's result is the same bits in every batch, at every
        position and with any number of threads.

    >>> import torch, nnkernels
    >>> one = torch.tensor([[2.0, 0.0, 0.0, 0.0]])
    >>> nnkernels.gaunt.product(one, one, 1, 1, 1)
    tensor([[1.1284, 0.0000, 0.0000, 0.0000]])
    """
    return _product("gaunt_product", x, y, L1, L2, L3, w1, w2, w3, normalization, layout)


def cross(
    x: Tensor,
    y: Tensor,
    L1: int,
    L2: int,
    L3: int,
    w1: Tensor | None = None,
    w2: Tensor | None = None,
    w3: Tensor | None = None,
    *,
    normalization: str = "integral",
    layout: str = "mul_ir",
) -> Tensor:
    """The coefficients up to degree L3 of the Poisson bracket {f, g} = r . (grad f x grad g).

    These are the couplings with odd l1 + l2 + l3, which `product` lacks: antisymmetric in x and y,
    a pseudo-tensor under inversion. {f, g} has degree L1 + L2 - 1.

    Args, returns, raises and guarantee: as `product`.

    >>> import torch, nnkernels
    >>> x, y = torch.eye(4)[1:3]
    >>> nnkernels.gaunt.cross(x, y, 1, 1, 1)
    tensor([0.0000, 0.0000, 0.0000, 0.4886])
    """
    return _product("gaunt_cross", x, y, L1, L2, L3, w1, w2, w3, normalization, layout)


def nfold(
    xs: list[Tensor],
    Ls: list[int],
    Lout: int,
    *,
    normalization: str = "integral",
    layout: str = "mul_ir",
) -> Tensor:
    """The coefficients up to degree Lout of the pointwise product of one to six signals.

    Args:
        xs: tensors [..., (Ls[i] + 1)^2]; dtypes as in `product`.
        Ls: their degrees.
        Lout, normalization, layout: as `product`; the degrees sum to at most 96 with Lout.

    Returns:
        [..., (Lout + 1)^2]. Nothing between is truncated: not the same as a chain of `product`
        calls with smaller degrees.

    Raises and guarantee: as `product`.

    >>> import torch, nnkernels
    >>> one = torch.tensor([2.0])
    >>> nnkernels.gaunt.nfold([one, one, one], [0, 0, 0], 0)
    tensor([0.6366])
    """
    name = "gaunt_nfold"
    checks.check_nfold(name, xs, Ls, Lout, normalization, layout)
    if _transformed():
        options = (list(Ls), Lout, normalization, layout)
        return autograd.FUNCTIONS[name].transformed(tuple(xs), options)
    return _run(name, tuple(xs), (list(xs), list(Ls), Lout, normalization, layout))


def power(
    x: Tensor,
    n: int,
    L: int,
    Lout: int,
    *,
    normalization: str = "integral",
    layout: str = "mul_ir",
) -> Tensor:
    """The coefficients up to degree Lout of f^n, with x those of f: `nfold` of n equal signals.

    Args:
        x: [..., (L + 1)^2]; dtypes as in `product`.
        n: from 1 to 6.
        L, Lout, normalization, layout: as `product`; n L + Lout is at most 96.

    Returns:
        [..., (Lout + 1)^2].

    Raises and guarantee: as `product`.

    >>> import torch, nnkernels
    >>> nnkernels.gaunt.power(torch.tensor([2.0]), 3, 0, 0)
    tensor([0.6366])
    """
    name = "gaunt_power"
    checks.check_power(name, x, n, L, Lout, normalization, layout)
    if _transformed():
        options = (n, L, Lout, normalization, layout)
        return autograd.FUNCTIONS[name].transformed((x,), options)
    rest = () if (normalization, layout) == _DEFAULTS else (normalization, layout)
    return _run(name, (x,), (x, n, L, Lout, *rest))


def paths(
    x: Tensor,
    y: Tensor,
    w: Tensor,
    L1: int,
    L2: int,
    L3: int,
    *,
    kind: str = "even",
    normalization: str = "integral",
    layout: str = "mul_ir",
) -> Tensor:
    """Every coupling (l1, l2, l3) with a weight of its own: a sparse contraction.

    Its cost grows as L^5, that of `product` as L^3: prefer the degree weights of
    `product` where they suffice.

    Args:
        x, y: as `product`.
        w: [P] or [..., P], a weight for every allowed (l1, l2, l3) in lexicographic order; see
            `path_list`. In layout "ir_mul" [P] or [..., P, C].
        kind: "even" (as `product`), "cross" (as `cross`) or "both".
        L1, L2, L3, normalization, layout: as `product`.

    Returns:
        [..., d3].

    Raises and guarantee: as `product`.

    >>> import torch, nnkernels
    >>> x = torch.eye(4)[1]
    >>> nnkernels.gaunt.paths(x, x, torch.ones(4), 1, 1, 1)[0]
    tensor(0.2821)
    """
    name = "gaunt_paths"
    checks.check_paths(name, x, y, w, L1, L2, L3, kind, normalization, layout)
    if _transformed():
        if layout == "ir_mul" and w.dim() == 1:
            w = w[:, None]
        options = (L1, L2, L3, kind, normalization, layout)
        return autograd.FUNCTIONS[name].transformed((x, y, w), options)
    return _run(name, (x, y, w), (x, y, w, L1, L2, L3, kind, normalization, layout))


def path_list(L1: int, L2: int, L3: int, kind: str = "even") -> list[tuple[int, int, int]]:
    """The (l1, l2, l3) that the weights of `paths` belong to, in order.

    >>> import nnkernels
    >>> nnkernels.gaunt.path_list(1, 1, 1)
    [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)]
    """
    checks.check_degrees("gaunt_path_list", L1=L1, L2=L2, L3=L3)
    _checks.choice("gaunt_path_list", "kind", kind, checks.PATH_KINDS)
    return list(reference.paths(L1, L2, L3, kind))


def vector_product(
    u: Tensor,
    v: Tensor,
    L1: int,
    L2: int,
    L3: int,
    *,
    kind: str = "cross",
    normalization: str = "integral",
    layout: str = "mul_ir",
) -> Tensor:
    """Pointwise products of vector signals, given by their x, y and z components.

    Args:
        u: [..., 3, d1]; with kind="scale" a scalar signal [..., d1]. Layout "ir_mul": [..., C].
        v: [..., 3, d2].
        kind: "cross" (u x v), "dot" (u . v) or "scale" (u v).
        L1, L2, L3, normalization, layout: as `product`.

    Returns:
        [..., 3, d3]; with kind="dot" [..., d3]. `vsh_to_xyz` and `xyz_to_vsh` change to vector
        spherical harmonics and back.

    Raises and guarantee: as `product`.

    >>> import torch, nnkernels
    >>> u = torch.tensor([[2.0], [0.0], [0.0]])
    >>> nnkernels.gaunt.vector_product(u, u.roll(1, 0), 0, 0, 0).flatten()
    tensor([0.0000, 0.0000, 1.1284])
    """
    checks.check_vector_product(
        "gaunt_vector_product", u, v, L1, L2, L3, kind, normalization, layout
    )
    along = -2 if layout == "mul_ir" else -3

    def multiply(a, b):
        return product(a, b, L1, L2, L3, normalization=normalization, layout=layout)

    if kind == "scale":
        return multiply(u.unsqueeze(along), v)
    if kind == "dot":
        return multiply(u, v).sum(along)
    # Components (1, 2, 0) times (2, 0, 1), less those of the reverse.
    u1, u2, v1, v2 = (t.roll(-by, along) for t in (u, v) for by in (1, 2))
    return multiply(u1, v2) - multiply(u2, v1)


def _vector_product(u, v, L1, L2, L3, kind="cross", normalization="integral", layout="mul_ir"):
    """The operator: like every other it refuses with a RuntimeError."""
    options = {"kind": kind, "normalization": normalization, "layout": layout}
    try:
        return vector_product(u, v, L1, L2, L3, **options)
    except (TypeError, ValueError) as error:
        raise RuntimeError(str(error)) from None


torch.library.impl("nnkernels::gaunt_vector_product", "CompositeImplicitAutograd", _vector_product)


def _rule(grid) -> tuple[Tensor, Tensor | None]:
    return (grid.points, grid.weights) if isinstance(grid, Grid) else (grid, None)


def to_grid(x: Tensor, L: int, grid: Grid | Tensor) -> Tensor:
    """Values of signals at points of the sphere.

    Args:
        x: [..., (L + 1)^2], coefficients in the basis "integral"; dtypes as in `product`.
        L: degree.
        grid: a Grid, or unit vectors [P, 3] of float64 or float32. They get no gradient.

    Returns:
        [..., P], contiguous, of x's dtype.

    Raises and guarantee: as `product`.

    >>> import math, torch, nnkernels
    >>> x = torch.tensor([math.sqrt(4 * math.pi), 0.0, 0.0, 0.0])
    >>> nnkernels.gaunt.to_grid(x, 1, nnkernels.gaunt.grid(2))[:3].round(decimals=5)
    tensor([1., 1., 1.])
    """
    name = "gaunt_to_grid"
    points, _ = _rule(grid)
    checks.check_to_grid(name, x, L, points)
    if _transformed():
        return autograd.FUNCTIONS[name].transformed((x,), (L, points, None))
    return _run(name, (x,), (x, L, points))


def from_grid(f: Tensor, L: int, grid: Grid) -> Tensor:
    """Coefficients up to degree L of signals given by their values on a grid.

    Args:
        f: [..., P], values at the points of the grid; dtypes as in `product`.
        L: degree.
        grid: a Grid of degree at least 2 L: it integrates a signal of degree L times each Y of
            degree L exactly. The projection of a product of degree M needs degree M + L.

    Returns:
        [..., (L + 1)^2], contiguous: for signals of degree L the inverse of `to_grid`.

    Raises: as `product`; ValueError for a grid that is too coarse. Guarantee: as `product`.

    >>> import torch, nnkernels
    >>> grid = nnkernels.gaunt.grid(2)
    >>> x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    >>> nnkernels.gaunt.from_grid(nnkernels.gaunt.to_grid(x, 1, grid), 1, grid)
    tensor([1.0000, 2.0000, 3.0000, 4.0000])
    """
    name = "gaunt_from_grid"
    if not isinstance(grid, Grid):
        raise TypeError(f"{name}: grid must be a Grid, got {type(grid).__name__}")
    checks.check_degrees(name, L=L)
    if grid.degree < 2 * L:
        raise ValueError(
            f"{name}: grid of degree {grid.degree} cannot integrate degree 2L = {2 * L} exactly"
        )
    checks.check_from_grid(name, f, L, grid.points, grid.weights)
    if _transformed():
        return autograd.FUNCTIONS[name].transformed((f,), (L, grid.points, grid.weights))
    return _run(name, (f,), (f, L, grid.points, grid.weights))
