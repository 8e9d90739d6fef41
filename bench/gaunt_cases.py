"""What the bench of gaunt is made of: inputs, counted work, checks and the peers' calls."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from common import Run, Work, WrongResult
from rows import Row

from nnkernels import gaunt
from nnkernels.demo.gaunt_peers import DenseGrid, e3nn_layout, e3nn_product
from nnkernels.gaunt import reference

N = 65536

# FLOP of one sample by ring convolution, counted from its three steps.
FLOP = {
    (1, 1): 78,
    (2, 2): 384,
    (3, 3): 964,
    (4, 4): 2118,
    (5, 5): 3384,
    (6, 6): 5840,
    (8, 8): 13086,
    (10, 10): 23808,
    (12, 12): 40406,
    (4, 8): 3694,
    (8, 16): 23502,
}

# What gradients and their gradients cost beside the forward's 2 syntheses and 1 analysis.
PASSES = {"forward": 1.0, "backward": 5 / 3, "double": 8 / 3}


def dim(L: int) -> int:
    return (L + 1) ** 2


def signals(L: int, *leading: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 10 * L)
    return torch.randn(*leading, dim(L), generator=generator).to(dtype)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def work(L: int, L3: int, count: int, size: int = 4, what: str = "forward") -> Work | None:
    """Two inputs are read and a result written once; a gradient is as large as its tensor."""
    if (L, L3) not in FLOP:
        return None
    moved = {
        "forward": 2 * dim(L) + dim(L3),
        "backward": 4 * dim(L) + dim(L3),
        # x, y, g and two cotangents in; the gradients of x, y and g out.
        "double": 6 * dim(L) + 2 * dim(L3),
    }[what]
    # A MAC is two FLOP.
    operations = count * FLOP[L, L3] * PASSES[what] / 2
    return Work(ops=operations, bytes=count * moved * size)


def close(got: torch.Tensor, want: torch.Tensor, rounding: float = 0.0) -> None:
    """The core's own bound: 2e-6 of the largest value, and `rounding` of each."""
    error = (got.double() - want.double()).abs()
    allowed = 2e-6 * want.abs().max() + rounding * want.abs()
    if not (error <= allowed).all():
        raise WrongResult(f"off by {error.max():.2g} where {want.abs().max():.2g} is the largest")


def some(count: int) -> torch.Tensor:
    return torch.linspace(0, count - 1, 9).round().long()


def check_product(x, y, L: int, L3: int, kind="product", rounding=0.0) -> Callable[[], None]:
    def check() -> None:
        at = some(len(x))
        want = getattr(reference, kind)(x[at].double(), y[at].double(), L, L, L3)
        close(getattr(gaunt, kind)(x, y, L, L, L3)[at], want, rounding)

    return check


def compare_product(
    run: Run, id: str, L: int, L3: int, *, count: int = N, dtype=torch.float32, **row
) -> Row:
    """One row of the product of two signals of degree L beside torch's dense grid."""
    x, y = signals(L, count, dtype=dtype), signals(L, count, seed=1, dtype=dtype)
    baselines = {"torch dense grid": lambda: DenseGrid.product(x, y, L, L, L3)}
    if run.level == "full":
        compiled = torch.compile(DenseGrid.product)
        baselines["the same, compiled"] = lambda: compiled(x, y, L, L, L3)
    return run.compare(
        id,
        f"product {L}, {L} -> {L3}",
        shape=f"N={count}",
        dtype=dtype_name(dtype),
        ours=lambda: gaunt.product(x, y, L, L, L3),
        baselines=baselines,
        check=check_product(x, y, L, L3),
        work=work(L, L3, count),
        **row,
    )


def gradient_call(function, L: int, L3: int, count: int, what: str) -> Callable:
    """Backward, or backward of the backward, of a recorded product."""
    x, y = (signals(L, count, seed=seed).requires_grad_() for seed in (0, 1))
    g = signals(L3, count, seed=2).requires_grad_(what == "double")
    out = function(x, y, L, L, L3)
    if what == "backward":
        return lambda: torch.autograd.grad(out, (x, y), g, retain_graph=True)
    first = torch.autograd.grad(out, (x, y), g, create_graph=True)
    cotangents = [signals(L, count, seed=seed) for seed in (3, 4)]
    return lambda: torch.autograd.grad(first, (x, y, g), cotangents, retain_graph=True)


def compare_gradients(run: Run, id: str, L: int, L3: int, what: str, **row) -> Row:
    ours = gradient_call(gaunt.product, L, L3, N, what)
    dense = gradient_call(DenseGrid.product, L, L3, N, what)

    def check() -> None:
        # The dense grid is exact too, and autograd knows its derivatives.
        for mine, theirs in zip(ours(), dense(), strict=True):
            error = (mine - theirs).abs().max() / theirs.abs().max()
            if not error <= 1e-5:
                raise WrongResult(f"relative error {error:.2g}, expected at most 1e-5")

    name = {"backward": "backward", "double": "double backward"}[what]
    return run.compare(
        id,
        f"{name} {L}, {L} -> {L3}",
        shape=f"N={N}",
        dtype="float32",
        ours=ours,
        baselines={"torch dense grid": dense},
        check=check,
        work=work(L, L3, N, what=what),
        **row,
    )


def e3nn_call(L: int, channels: int, samples: int) -> tuple[Callable, torch.Tensor, torch.Tensor]:
    """e3nn's product in its own layout, without conversions, and the inputs in ours."""
    x, y = (signals(L, samples, channels, seed=seed) for seed in (0, 1))
    module = e3nn_product(L, L, L, channels)
    left, right = e3nn_layout(x, L), e3nn_layout(y, L)
    return lambda: module(left, right), x, y


def has_e3nn() -> bool:
    return importlib.util.find_spec("e3nn") is not None
