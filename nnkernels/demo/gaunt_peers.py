"""What people run instead of nnkernels.gaunt, with the same results: the yardstick of the demo, the
benches and the example."""

import functools
import math

import torch
from torch import Tensor

from nnkernels.gaunt import grid, reference

# ---- the dense grid ----


@functools.cache
def _rule(degree: int):
    return grid(degree)


@functools.cache
def synthesis(L: int, degree: int, dtype=torch.float32) -> Tensor:
    """[d, P]: a matrix product with it gives values on the Gauss-Legendre grid of this degree."""
    points, _, _ = _rule(degree)
    return reference.spherical_harmonics(L, points).T.to(dtype).contiguous()


@functools.cache
def analysis(L: int, degree: int, dtype=torch.float32) -> Tensor:
    """[P, d]: back to coefficients."""
    points, weights, _ = _rule(degree)
    return (reference.spherical_harmonics(L, points) * weights[:, None]).to(dtype)


def _weighted(x: Tensor, weight: Tensor | None, L: int) -> Tensor:
    return x if weight is None else x * weight[..., degrees(L)]


@functools.cache
def degrees(L: int) -> Tensor:
    """The degree of every coefficient, [d]."""
    return torch.tensor([l for l in range(L + 1) for _ in range(2 * l + 1)])


class DenseGrid:
    """gaunt.product and gaunt.power by two matrix products around a pointwise one."""

    @staticmethod
    def product(x, y, L1, L2, L3, w1=None, w2=None, w3=None) -> Tensor:
        total = L1 + L2 + L3
        f = _weighted(x, w1, L1) @ synthesis(L1, total, x.dtype)
        g = _weighted(y, w2, L2) @ synthesis(L2, total, x.dtype)
        return _weighted((f * g) @ analysis(L3, total, x.dtype), w3, L3)

    @staticmethod
    def power(x, n, L, Lout) -> Tensor:
        total = n * L + Lout
        f = x @ synthesis(L, total, x.dtype)
        power = f
        for _ in range(n - 1):
            power = power * f
        return power @ analysis(Lout, total, x.dtype)


# ---- e3nn ----


def e3nn_layout(x: Tensor, L: int) -> Tensor:
    """[..., C, d] -> [..., C d] as e3nn orders it: all channels of degree 0, then of degree 1."""
    return torch.cat([x[..., l**2 : (l + 1) ** 2].flatten(-2) for l in range(L + 1)], dim=-1)


def from_e3nn_layout(x: Tensor, L: int, channels: int) -> Tensor:
    """Its inverse."""
    blocks, at = [], 0
    for l in range(L + 1):
        size = channels * (2 * l + 1)
        blocks.append(x[..., at : at + size].unflatten(-1, (channels, 2 * l + 1)))
        at += size
    return torch.cat(blocks, dim=-1)


@functools.cache
def e3nn_product(L1: int, L2: int, L3: int, channels: int):
    """e3nn's TensorProduct of the even paths, "uuu", with the constants of the Gaunt product: takes
    and gives what `e3nn_layout` makes."""
    from e3nn import o3

    listed = reference.paths(L1, L2, L3)
    irreps = [o3.Irreps([(channels, (l, (-1) ** l)) for l in range(L + 1)]) for L in (L1, L2, L3)]
    # e3nn scales every coupling to 3j times sqrt(path weight).
    instructions = [
        (l1, l2, l3, "uuu", False, reference.path_constant(l1, l2, l3) ** 2)
        for l1, l2, l3 in listed
    ]
    return o3.TensorProduct(
        *irreps, instructions, irrep_normalization="none", path_normalization="none"
    )


class E3nn:
    """gaunt.product and gaunt.power by e3nn, powers as chains that truncate nothing between."""

    @staticmethod
    def product(x, y, L1, L2, L3, w1=None, w2=None, w3=None) -> Tensor:
        x, y = _weighted(x, w1, L1), _weighted(y, w2, L2)
        channels = max(x.shape[-2], y.shape[-2])
        x, y = (
            e3nn_layout(t.expand(*t.shape[:-2], channels, t.shape[-1]), L)
            for t, L in ((x, L1), (y, L2))
        )
        z = e3nn_product(L1, L2, L3, channels)(x, y)
        return _weighted(from_e3nn_layout(z, L3, channels), w3, L3)

    @staticmethod
    def power(x, n, L, Lout) -> Tensor:
        out = x
        for k in range(2, n + 1):
            reached = Lout if k == n else k * L
            out = E3nn.product(out, x, (k - 1) * L, L, reached)
        size = (Lout + 1) ** 2
        return torch.nn.functional.pad(out[..., :size], (0, max(0, size - out.shape[-1])))


def sphere_constant() -> float:
    """The coefficient of the signal that is 1 everywhere."""
    return math.sqrt(4 * math.pi)
