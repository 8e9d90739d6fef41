"""Quadrature rules and coupling tables: plain Python in float64, no operators."""

import math
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from nnkernels._checks import choice, integer
from nnkernels.gaunt import checks, reference


class Grid(NamedTuple):
    """A quadrature rule on the sphere, exact for polynomials up to `degree`.

    points   [P, 3] unit vectors, float64
    weights  [P], of sum 4 pi, float64
    """

    points: Tensor
    weights: Tensor
    degree: int


def grid(degree: int, kind: str = "gauss_legendre") -> Grid:
    """A quadrature rule that integrates every polynomial of this degree exactly.

    Args:
        degree: 2 L for `from_grid` of a signal of degree L; the degrees of all factors of an
            integrand together.
        kind: "gauss_legendre" (any degree; floor(degree / 2) + 1 rings of degree + 1 points) or
            "lebedev" (about two thirds of the points; degrees 3, 5, ..., 131 with gaps). Lebedev
            rules come from SciPy (1.15 or later); those with negative weights are left out.

    Returns:
        Grid(points, weights, degree).

    Raises:
        TypeError, ValueError: a degree that is not an int or negative, an unknown kind, a degree
        without a Lebedev rule. ImportError: "lebedev" without SciPy.

    >>> import nnkernels
    >>> points, weights, degree = nnkernels.gaunt.grid(4)
    >>> points.shape
    torch.Size([15, 3])
    """
    integer("gaunt_grid", "degree", degree)
    choice("gaunt_grid", "kind", kind, checks.GRIDS)
    if degree < 0:
        raise ValueError(f"gaunt_grid: degree must not be negative, got {degree}")
    return (_lebedev if kind == "lebedev" else _gauss_legendre)(int(degree))


def _gauss_legendre(degree: int) -> Grid:
    heights, weights = numpy.polynomial.legendre.leggauss(degree // 2 + 1)
    angles = 2 * math.pi / (degree + 1) * torch.arange(degree + 1, dtype=torch.float64)
    y = torch.from_numpy(heights)[:, None].expand(-1, degree + 1)
    radius = (1 - y * y).sqrt()
    points = torch.stack((radius * angles.sin(), y, radius * angles.cos()), dim=-1)
    weights = torch.from_numpy(weights) * (2 * math.pi / (degree + 1))
    return Grid(points.flatten(0, 1), weights.repeat_interleave(degree + 1), degree)


# The degrees up to 131 that have a rule whose weights are all positive.
_LEBEDEV = (
    *(3, 5, 7, 9, 11, 15, 17, 19, 21, 23, 29, 31, 35, 41, 47, 53, 59, 65),
    *(71, 77, 83, 89, 95, 101, 107, 113, 119, 125, 131),
)


def _lebedev(degree: int) -> Grid:
    if degree not in _LEBEDEV:
        following = next((other for other in _LEBEDEV if other > degree), None)
        remedy = (
            f"the next one available is {following}"
            if following
            else f"the last one is {_LEBEDEV[-1]}; use kind='gauss_legendre'"
        )
        raise ValueError(f"gaunt_grid: there is no lebedev rule of degree {degree}; {remedy}")
    try:
        from scipy.integrate import lebedev_rule
    except ImportError:
        raise ImportError(
            "gaunt_grid: lebedev rules come from SciPy 1.15 or later, which is not installed; "
            "pip install 'scipy>=1.15' or use kind='gauss_legendre'"
        ) from None
    points, weights = lebedev_rule(degree)
    return Grid(torch.from_numpy(points.T.copy()), torch.from_numpy(weights), degree)


def coefficients(
    L1: int, L2: int, L3: int, kind: str = "even", normalization: str = "integral"
) -> Tensor:
    """The tensor of a product in closed form: z_c = coefficients[a, b, c] x_a y_b.

    Args:
        L1, L2, L3: degrees of the two factors and of the product.
        kind: "even" (`product`) or "cross" (`cross`).
        normalization: the basis the coefficients refer to, see `product`.

    Returns:
        float64 [(L1 + 1)^2, (L2 + 1)^2, (L3 + 1)^2]; from Wigner 3j symbols in exact integers,
        each value within a few units of float64's last place.

    Raises:
        TypeError, ValueError: as `product`; an unknown kind.

    >>> import nnkernels
    >>> nnkernels.gaunt.coefficients(1, 1, 1, "cross").abs().max()
    tensor(0.4886, dtype=torch.float64)
    """
    op = "gaunt_coefficients"
    checks.check_degrees(op, L1=L1, L2=L2, L3=L3)
    choice(op, "kind", kind, checks.KINDS)
    choice(op, "normalization", normalization, checks.NORMALIZATIONS)
    return reference.coefficients(L1, L2, L3, kind, normalization)


def vsh_to_xyz(L: int) -> Tensor:
    """The map from vector spherical harmonic coefficients to those of the x, y, z components.

    A vector signal whose components have degree L is also a sum of vector spherical harmonics
    of degree j, each built from scalar ones of degree l <= L. Their coefficients v lie in the order
    (l, j, m): l = 0 .. L, then j = |l - 1| .. l + 1 (l = 0: j = 1 only), then m = -j .. j.

    Returns:
        V, float64 [3, d, 3 d] with d = (L + 1)^2, orthogonal as a 3 d by 3 d matrix: the components
        are u[i, a] = sum over k of V[i, a, k] v[k], built from the real 3j tensors of (1, l, j).
        Under a rotation the block (l, j) of v turns with the Wigner matrix of degree j.

    Raises:
        TypeError, ValueError: a degree that is not an int in [0, 24].

    >>> import nnkernels
    >>> nnkernels.gaunt.vsh_to_xyz(2).shape
    torch.Size([3, 9, 27])
    """
    return _vsh("gaunt_vsh_to_xyz", L)


def xyz_to_vsh(L: int) -> Tensor:
    """The inverse of `vsh_to_xyz`, float64 [3 d, 3, d]: its transpose.

    >>> import torch
    >>> from nnkernels import gaunt
    >>> both = torch.einsum("kia,ian->kn", gaunt.xyz_to_vsh(1), gaunt.vsh_to_xyz(1))
    >>> torch.allclose(both, torch.eye(12, dtype=torch.float64))
    True
    """
    return _vsh("gaunt_xyz_to_vsh", L).movedim(-1, 0).contiguous()


def _vsh(op: str, L: int) -> Tensor:
    checks.check_degrees(op, L=L)
    d = (L + 1) ** 2
    table = torch.zeros(3, d, 3 * d, dtype=torch.float64)
    at = 0
    for l in range(L + 1):
        for j in range(abs(l - 1), l + 2):
            block = math.sqrt(2 * j + 1) * reference.real_3j(1, l, j)
            table[:, l**2 : (l + 1) ** 2, at : at + 2 * j + 1] = block
            at += 2 * j + 1
    return table
