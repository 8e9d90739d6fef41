"""Products of signals on the sphere in plain PyTorch: what every kernel is tested against.

A signal of degree L is f = sum over l <= L of x_{l,m} c_l Y_{l,m} with real spherical harmonics
Y_{l,m}; its (L + 1)^2 coefficients x lie in the order (0,0), (1,-1), (1,0), (1,1), (2,-2), ... The
polar axis is y, so that degree 1 is proportional to (x, y, z).

Everything follows from Wigner 3j symbols, the Racah sum in exact integers: no grid, no quadrature
and nothing in common with the fast algorithm. Tensors are contracted path by path in float64.
"""

import functools
import itertools
import math

import torch
from torch import Tensor

# ---- Wigner 3j symbols ----


def _triangle(l1: int, l2: int, l3: int) -> bool:
    return abs(l1 - l2) <= l3 <= l1 + l2


@functools.cache
def wigner_3j(l1: int, l2: int, l3: int, m1: int, m2: int, m3: int) -> float:
    """The 3j symbol (l1 l2 l3; m1 m2 m3), correctly rounded: Racah's sum in integers.

    >>> wigner_3j(1, 1, 0, 0, 0, 0) == -(1 / 3) ** 0.5
    True
    """
    if m1 + m2 + m3 != 0 or not _triangle(l1, l2, l3):
        return 0.0
    if abs(m1) > l1 or abs(m2) > l2 or abs(m3) > l3:
        return 0.0
    a, b, c = l1 + l2 - l3, l1 - l2 + l3, -l1 + l2 + l3
    total = 0
    for t in range(min(a, l1 - m1, l2 + m2) + 1):
        term = math.comb(a, t) * math.comb(b, l1 - m1 - t) * math.comb(c, l2 + m2 - t)
        total += -term if t % 2 else term
    numerator = total * total
    for sign in (1, -1):
        for degree, order in ((l1, m1), (l2, m2), (l3, m3)):
            numerator *= math.factorial(degree + sign * order)
    denominator = math.prod(map(math.factorial, (a, b, c, l1 + l2 + l3 + 1)))
    sign = (-1) ** (l1 - l2 - m3) * (1 if total >= 0 else -1)
    # The quotient of two integers is correctly rounded however long they are.
    return sign * math.sqrt(numerator / denominator)


def _complex_3j(l1: int, l2: int, l3: int) -> Tensor:
    """The 3j symbols of one path, [2 l1 + 1, 2 l2 + 1, 2 l3 + 1]."""
    out = torch.zeros(2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1, dtype=torch.float64)
    # Reordering the columns, or the signs of all orders, changes the sign where the sum is odd.
    odd = (-1) ** (l1 + l2 + l3)
    degrees = (l1, l2, l3)
    order = sorted(range(3), key=degrees.__getitem__)
    swaps = sum(order[i] > order[j] for i in range(3) for j in range(i + 1, 3))
    ordered = [degrees[i] for i in order]
    for m1 in range(-l1, l1 + 1):
        for m2 in range(-l2, l2 + 1):
            m3 = -m1 - m2
            if abs(m3) > l3:
                continue
            orders = [(m1, m2, m3)[i] for i in order]
            sign = odd**swaps
            if next((m for m in orders if m), 0) < 0:
                orders = [-m for m in orders]
                sign *= odd
            out[l1 + m1, l2 + m2, l3 + m3] = sign * wigner_3j(*ordered, *orders)
    return out


@functools.cache
def _real_basis(degree: int) -> Tensor:
    """U with Y_real = U Y_complex, where Y_{l,-m} = (-1)^m conj(Y_{l,m})."""
    size = 2 * degree + 1
    basis = torch.zeros(size, size, dtype=torch.complex128)
    basis[degree, degree] = 1
    root = math.sqrt(0.5)
    for m in range(1, degree + 1):
        sign = (-1) ** m
        basis[degree + m, degree + m] = sign * root
        basis[degree + m, degree - m] = root
        basis[degree - m, degree + m] = -1j * sign * root
        basis[degree - m, degree - m] = 1j * root
    return basis


@functools.cache
def real_3j(l1: int, l2: int, l3: int) -> Tensor:
    """The 3j tensor in the real basis, of norm 1, with the sign that e3nn.o3.wigner_3j has."""
    blocks = _complex_3j(l1, l2, l3).to(torch.complex128)
    odd = (l1 + l2 + l3) % 2 == 1
    known = wigner_3j(l1, l2, l3, 1, -1, 0) if odd else wigner_3j(l1, l2, l3, 0, 0, 0)
    blocks *= (1j if odd else 1) * math.copysign(1, known)
    for degree in (l1, l2, l3):
        # Changes the first dimension and rotates it to the end.
        blocks = torch.tensordot(blocks, _real_basis(degree), dims=([0], [1]))
    assert blocks.imag.abs().max() < 1e-14
    return blocks.real.contiguous()


# ---- coupling tensors ----

KINDS = ("even", "cross")


@functools.cache
def paths(L1: int, L2: int, L3: int, kind: str = "even") -> tuple[tuple[int, int, int], ...]:
    """The allowed (l1, l2, l3) in lexicographic order; kind is "even", "cross" or "both"."""
    even = kind in ("even", "both")
    cross = kind in ("cross", "both")
    return tuple(
        (l1, l2, l3)
        for l1, l2 in itertools.product(range(L1 + 1), range(L2 + 1))
        for l3 in range(abs(l1 - l2), min(l1 + l2, L3) + 1)
        if (even if (l1 + l2 + l3) % 2 == 0 else cross)
    )


def path_constant(l1: int, l2: int, l3: int) -> float:
    """k > 0 in G = k real_3j for an even sum of degrees, in T = k real_3j for an odd one."""
    root = math.sqrt((2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1) / (4 * math.pi))
    if (l1 + l2 + l3) % 2 == 0:
        return root * abs(wigner_3j(l1, l2, l3, 0, 0, 0))
    slope = math.sqrt(l1 * (l1 + 1) * l2 * (l2 + 1))
    return root * slope * abs(wigner_3j(l1, l2, l3, 1, -1, 0))


@functools.cache
def block(l1: int, l2: int, l3: int) -> Tensor:
    """G (even sum of degrees) or T (odd) of one path, [2 l1 + 1, 2 l2 + 1, 2 l3 + 1]."""
    return path_constant(l1, l2, l3) * real_3j(l1, l2, l3)


def basis_constant(degree: int, normalization: str) -> float:
    """c_l: what the basis functions are, in units of the orthonormal ones."""
    return {
        "integral": 1.0,
        "component": math.sqrt(4 * math.pi),
        "norm": math.sqrt(4 * math.pi / (2 * degree + 1)),
    }[normalization]


def _scale(l1, l2, l3, normalization):
    return (
        basis_constant(l1, normalization)
        * basis_constant(l2, normalization)
        / basis_constant(l3, normalization)
    )


def _at(degree: int) -> slice:
    """Where the coefficients of one degree lie."""
    return slice(degree**2, (degree + 1) ** 2)


def coefficients(
    L1: int, L2: int, L3: int, kind: str = "even", normalization: str = "integral"
) -> Tensor:
    """The whole tensor of `product` or `cross`, [d1, d2, d3]."""
    out = torch.zeros((L1 + 1) ** 2, (L2 + 1) ** 2, (L3 + 1) ** 2, dtype=torch.float64)
    for path in paths(L1, L2, L3, kind):
        value = _scale(*path, normalization) * block(*path)
        out[tuple(map(_at, path))] = value
    return out


# ---- products ----


def _channels_last(value: Tensor | None, layout: str) -> Tensor | None:
    """The coefficients as the last dimension, in float64."""
    if value is None:
        return None
    value = value.double()
    return value.movedim(-2, -1) if layout == "ir_mul" else value


def _restore(value: Tensor, layout: str, dtype) -> Tensor:
    value = value.movedim(-1, -2) if layout == "ir_mul" else value
    return value.to(dtype).contiguous()


def _weighted(value: Tensor, weight: Tensor | None, degree: int) -> Tensor:
    if weight is None:
        return value
    degrees = torch.tensor([l for l in range(degree + 1) for _ in range(2 * l + 1)])
    return value * weight[..., degrees.to(weight.device)]


def _contract(x: Tensor, y: Tensor, chosen, L3: int, normalization: str, w=None) -> Tensor:
    """Sum over paths of w[path] block(x, y); x and y are float64, coefficients last."""
    leading = [x.shape[:-1], y.shape[:-1]] + ([] if w is None else [w.shape[:-1]])
    leading = torch.broadcast_shapes(*leading)
    parts = [x.new_zeros(*leading, 2 * l + 1) for l in range(L3 + 1)]
    for index, (l1, l2, l3) in enumerate(chosen):
        table = (_scale(l1, l2, l3, normalization) * block(l1, l2, l3)).to(x.device)
        term = torch.einsum("...a,...b,abc->...c", x[..., _at(l1)], y[..., _at(l2)], table)
        parts[l3] = parts[l3] + (term if w is None else w[..., index, None] * term)
    return torch.cat(parts, dim=-1)


def _product(kind, x, y, L1, L2, L3, w1, w2, w3, normalization, layout):
    dtype = x.dtype
    x, y, w1, w2, w3 = (_channels_last(value, layout) for value in (x, y, w1, w2, w3))
    x, y = _weighted(x, w1, L1), _weighted(y, w2, L2)
    z = _contract(x, y, paths(L1, L2, L3, kind), L3, normalization)
    return _restore(_weighted(z, w3, L3), layout, dtype)


def product(
    x, y, L1, L2, L3, w1=None, w2=None, w3=None, normalization="integral", layout="mul_ir"
) -> Tensor:
    """Coefficients up to degree L3 of f g. x has degree L1, y has degree L2."""
    return _product("even", x, y, L1, L2, L3, w1, w2, w3, normalization, layout)


def cross(
    x, y, L1, L2, L3, w1=None, w2=None, w3=None, normalization="integral", layout="mul_ir"
) -> Tensor:
    """Coefficients up to degree L3 of {f, g} = r . (grad f x grad g)."""
    return _product("cross", x, y, L1, L2, L3, w1, w2, w3, normalization, layout)


def nfold(xs, Ls, Lout, normalization="integral", layout="mul_ir") -> Tensor:
    """Coefficients up to degree Lout of the product of all signals: a chain of binary products."""
    values = [_channels_last(x, layout) for x in xs]
    total, degree = values[0], Ls[0]
    for value, other in zip(values[1:], Ls[1:], strict=True):
        chosen = paths(degree, other, degree + other)
        total = _contract(total, value, chosen, degree + other, normalization)
        degree += other
    missing = (Lout + 1) ** 2 - total.shape[-1]
    total = torch.nn.functional.pad(total, (0, missing))
    return _restore(total, layout, xs[0].dtype)


def power(x, n, L, Lout, normalization="integral", layout="mul_ir") -> Tensor:
    """`nfold` of n times the same signal."""
    return nfold([x] * n, [L] * n, Lout, normalization, layout)


def weighted_paths(
    x, y, w, L1, L2, L3, kind="even", normalization="integral", layout="mul_ir"
) -> Tensor:
    """A weight for every allowed (l1, l2, l3), in the order of `paths`."""
    x64, y64, w64 = (
        _channels_last(value, layout if value.dim() > 1 else "mul_ir") for value in (x, y, w)
    )
    out = _contract(x64, y64, paths(L1, L2, L3, kind), L3, normalization, w64)
    return _restore(out, layout, x.dtype)


# ---- values on the sphere ----


def spherical_harmonics(L: int, points: Tensor) -> Tensor:
    """The orthonormal Y_{l,m} at unit vectors [..., 3]: [..., (L + 1)^2], float64."""
    x, y, z = points.double().unbind(-1)
    # legendre[m][l - m] is P_lm(y) without its factor sin(beta)^m, which (x, z) bring in.
    legendre = []
    start = torch.full_like(y, math.sqrt(1 / (4 * math.pi)))
    for m in range(L + 1):
        if m > 0:
            start = start * math.sqrt((2 * m + 1) / (2 * m))
        column = [start]
        for l in range(m + 1, L + 1):
            value = y * column[-1]
            if l > m + 1:
                below = ((l - 1) ** 2 - m**2) / (4 * (l - 1) ** 2 - 1)
                value = value - math.sqrt(below) * column[-2]
            column.append(value / math.sqrt((l**2 - m**2) / (4 * l**2 - 1)))
        legendre.append(column)
    cosines, sines = [torch.ones_like(y)], [torch.zeros_like(y)]
    for _ in range(L):
        cosine, sine = cosines[-1], sines[-1]
        cosines.append(z * cosine - x * sine)
        sines.append(z * sine + x * cosine)
    root = math.sqrt(2)
    values = []
    for l in range(L + 1):
        for m in range(-l, l + 1):
            wave = cosines[m] if m >= 0 else sines[-m]
            value = legendre[abs(m)][l - abs(m)] * wave
            values.append(value if m == 0 else root * value)
    return torch.stack(values, dim=-1)


def to_grid(x, L, points, weights=None) -> Tensor:
    """Values of signals [..., d] at unit vectors [P, 3], times the weights: [..., P]."""
    values = x.double() @ spherical_harmonics(L, points).mT
    return (values if weights is None else values * weights.double()).to(x.dtype)


def from_grid(f, L, points, weights=None) -> Tensor:
    """Coefficients [..., d] of the signals whose values at the points are f [..., P]."""
    values = f.double() if weights is None else f.double() * weights.double()
    return (values @ spherical_harmonics(L, points)).to(f.dtype)


# ---- rotations ----


def rotation(L: int, matrix: Tensor) -> Tensor:
    """D with Y(R r) = D Y(r) for an orthogonal matrix R of determinant 1: [d, d], float64.

    Degree l + 1 follows from degrees 1 and l by the 3j tensor that couples them.
    """
    first = matrix.double()
    blocks = [torch.ones(1, 1, dtype=torch.float64), first][: L + 1]
    for l in range(2, L + 1):
        table = real_3j(1, l - 1, l)
        value = torch.einsum("abc,ad,be,def->cf", table, first, blocks[-1], table)
        blocks.append((2 * l + 1) * value)
    return torch.block_diag(*blocks)


# ---- derivatives ----


def gradients(function, tensors, g, needed) -> list[Tensor]:
    """The gradients of function(*tensors) by autograd, empty where they are not needed."""
    leaves = [t if t is None else t.detach().requires_grad_() for t in tensors]
    with torch.enable_grad():
        out = function(*leaves)
        wanted = [leaf for leaf, need in zip(leaves, needed, strict=True) if need]
        # Of a result that does not depend on them, such as the cross product of degree 0.
        found = torch.autograd.grad(out, wanted, g, allow_unused=True, materialize_grads=True)
    found = iter(found)
    return [next(found) if need else g.new_empty(0) for need in needed]


def gradients_twice(function, tensors, g, cotangents, needed) -> list[Tensor]:
    """The gradients of the sum of cotangent times gradient: for g, then for the tensors."""
    leaves = [t if t is None else t.detach().requires_grad_() for t in (g, *tensors)]
    # What does not depend on anything still has a zero gradient.
    options = {"allow_unused": True, "materialize_grads": True}
    with torch.enable_grad():
        out = function(*leaves[1:])
        used = [(leaf, u) for leaf, u in zip(leaves[1:], cotangents, strict=True) if u is not None]
        inner, cotangents = zip(*used, strict=True)
        first = torch.autograd.grad(out, inner, leaves[0], create_graph=True, **options)
        total = sum((u * v).sum() for u, v in zip(cotangents, first, strict=True))
        total = total + 0 * leaves[0].sum()
        wanted = [leaf for leaf, need in zip(leaves, needed, strict=True) if need]
        found = iter(torch.autograd.grad(total, wanted, **options))
    return [next(found) if need else g.new_empty(0) for need in needed]
