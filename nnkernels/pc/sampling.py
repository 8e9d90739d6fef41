"""Exact samples of a circuit, free or given some values: from the root down."""

import torch
from torch import Tensor

from nnkernels import _checks
from nnkernels.pc import checks, ops
from nnkernels.pc.errors import ArgumentError

# Numbers that the messages of one piece of the samples may take.
_PIECE = 2**24


def pieces(N: int, D: int, h: int) -> list[slice]:
    """Stretches of samples whose upward messages stay small."""
    size = max(64, _PIECE // (D * h))
    return [slice(start, start + size) for start in range(0, N, size)]


def symbol_dtype(K: int) -> torch.dtype:
    return torch.uint8 if K <= 256 else torch.int16


def _choose(weights: Tensor, generator: torch.Generator | None) -> Tensor:
    """One index per row of weights [n, m], with probability proportional to the weight."""
    sums = weights.double().cumsum(-1)
    total = sums[:, -1:]
    level = torch.rand(len(sums), 1, dtype=torch.float64, generator=generator) * total
    # Strictly below the total, so that no weight of zero is chosen.
    level = torch.minimum(level, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(sums, level, right=True)[:, 0]


def _draw(x, u, pi, A, B, parents, order, mask, generator):
    """Fills x [N, D] where `mask` (None: everywhere); u [D, N, h] or None for all ones."""
    states = [None] * len(parents)
    for i in order:
        above = parents[i]
        prior = pi.expand(len(x), -1) if above < 0 else A[i][states[above]]
        states[i] = _choose(prior if u is None else prior * u[i], generator)
        rows = slice(None) if mask is None else mask[:, i]
        drawn = _choose(B[i][states[i][rows]], generator)
        x[rows, i] = drawn.to(x.dtype)
    return x


def sample(model, n: int, generator: torch.Generator | None = None) -> Tensor:
    """See HCLT.sample."""
    op = "HCLT.sample"
    checks.check_samples(op, n)
    x = torch.zeros(n, model.D, dtype=symbol_dtype(model.K))
    parents, order = model.parent.tolist(), model.order.tolist()
    for piece in pieces(n, 1, model.K):
        _draw(x[piece], None, model.pi, model.A, model.B, parents, order, None, generator)
    return x


def conditional_sample(model, x: Tensor, mask: Tensor, generator=None) -> Tensor:
    """See HCLT.conditional_sample."""
    op = "HCLT.conditional_sample"
    checks.check_data(op, x, model.D, model.K, mask)
    if mask is None:
        raise TypeError(f"{op}: mask must be a tensor, got NoneType")
    _checks.same_device(op, "x", x, "pi", model.pi)
    x = x.clone(memory_format=torch.contiguous_format)
    tables = model.pi, model.A, model.B
    parents, order = model.parent.tolist(), model.order.tolist()
    for piece in pieces(len(x), model.D, model.h):
        ll, u = ops.forward(x[piece], *tables, model.parent, model.order, mask[piece])
        impossible = ll.isneginf().nonzero()
        if len(impossible) > 0:
            raise ArgumentError(
                f"{op}: sample {piece.start + int(impossible[0])} has probability 0 given its "
                "observed values; nothing can be drawn"
            )
        _draw(x[piece], u, *tables, parents, order, mask[piece], generator)
    return x
