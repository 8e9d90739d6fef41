"""Circuits, data and tolerances that the tests of the pc operators share.

The oracle is `nnkernels.pc.reference` in float64 on the same rounded parameters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nnkernels.pc import structure

FP32, FP64 = torch.float32, torch.float64
NAMES = ("pi", "A", "B")
# Relative error of log p(x), and of counts and gradients relative to those of their variable.
FORWARD = {FP32: 1e-5, FP64: 1e-12}
FLOWS = {FP32: 1e-4, FP64: 1e-11}


def generator(*seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(31**i * s for i, s in enumerate(seed)) % 2**31)


def random_tree(D: int, seed: int = 0) -> structure.Tree:
    """A random tree whose variables are numbered at random."""
    draw = generator(D, seed)
    names = torch.randperm(D, generator=draw).tolist()
    parent = torch.full((D,), -1)
    for node in range(1, D):
        parent[names[node]] = names[int(torch.randint(node, (1,), generator=draw))]
    return structure.make_tree(parent)


@dataclass(frozen=True)
class Case:
    """A circuit and data."""

    D: int = 7
    h: int = 4
    K: int = 5
    N: int = 11
    # "random", "chain" or "star".
    tree: str = "random"
    dtype: torch.dtype = FP32
    # The share of parameters that are zero, and of values that are missing (None: no mask).
    zeros: float = 0.0
    missing: float | None = None
    seed: int = 0
    wide: bool = False

    def __str__(self) -> str:
        name = f"{self.tree}-D{self.D}-h{self.h}-K{self.K}-N{self.N}-{str(self.dtype)[6:]}"
        for field in ("zeros", "missing", "seed", "wide"):
            if getattr(self, field) != type(self).__dataclass_fields__[field].default:
                name += f"-{field}={getattr(self, field)}"
        return name

    def structure(self) -> structure.Tree:
        if self.tree == "random":
            return random_tree(self.D, self.seed)
        return {"chain": structure.chain, "star": structure.star}[self.tree](self.D)

    def parameters(self) -> dict[str, Tensor]:
        """pi, A, B, parent and order."""
        draw = generator(self.D, self.h, self.K, self.seed)

        def rows(*shape):
            values = torch.rand(shape, generator=draw, dtype=FP64) + 0.01
            values *= torch.rand(shape, generator=draw) >= self.zeros
            # A row of zeros alone would be no distribution.
            values[..., 0] += (values.sum(-1) == 0).double()
            return (values / values.sum(-1, keepdim=True)).to(self.dtype)

        tree = self.structure()
        h = self.h
        pi, A, B = rows(h), rows(self.D, h, h), rows(self.D, h, self.K)
        return {"pi": pi, "A": A, "B": B, "parent": tree.parent, "order": tree.order}

    def data(self) -> Tensor:
        """x [N, D]: int16 where K needs it or `wide`, else uint8."""
        x = torch.randint(self.K, (self.N, self.D), generator=generator(self.N, self.D, self.seed))
        return x.to(torch.int16 if self.K > 256 or self.wide else torch.uint8)

    def mask(self) -> Tensor | None:
        if self.missing is None:
            return None
        return torch.rand(self.N, self.D, generator=generator(self.N, 3)) < self.missing

    def inputs(self) -> dict[str, Tensor | None]:
        """All arguments of `pc.forward`."""
        return {"x": self.data(), **self.parameters(), "mask": self.mask()}


def relative_error(got: Tensor, want: Tensor, dim=None) -> float:
    """The largest error relative to the sum of absolute values along `dim` (all but the first)."""
    got, want = got.double(), want.double()
    dims = tuple(range(1, want.dim())) if dim is None else dim
    scale = want.abs().sum(dims, keepdim=True) if dims else want.abs()
    error = (got - want).abs() / scale.clamp(min=torch.finfo(FP64).tiny)
    error = torch.where(got == want, 0.0, error)
    return float(error.max()) if error.numel() > 0 else 0.0


def close_ll(got: Tensor, want: Tensor, tolerance: float):
    """-inf in the same places, and within a relative tolerance elsewhere."""
    assert torch.equal(got.isneginf(), want.isneginf())
    finite = want.isfinite()
    error = (got.double() - want.double()).abs()[finite]
    # log p near 0 is as exact as p near 1.
    assert (error <= tolerance * want.abs()[finite].clamp(min=1)).all(), float(error.max())
