"""Where training starts: tables at random, or from clusters of the data."""

import torch
from torch import Tensor

# Samples that are clustered, passes of k-means, and the most variables of a neighbourhood.
_ROWS = 6000
_PASSES = 6
_NEIGHBOURS = 16
# The share of random tables that the counts of clusters are mixed with.
_RANDOM = 0.3


def _normalised(table: Tensor) -> Tensor:
    return table / table.sum(-1, keepdim=True)


def random(x: Tensor, h: int, K: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """pi uniform, A [D, h, h] near uniform, B [D, h, K] near the marginals of x."""
    D = x.shape[1]
    generator = torch.Generator().manual_seed(seed)
    pi = torch.full((h,), 1 / h, dtype=dtype)
    A = 0.2 + 0.8 * torch.rand(D, h, h, generator=generator, dtype=dtype)
    flat = (x.long() + K * torch.arange(D)).flatten()
    marginal = torch.bincount(flat, minlength=D * K).view(D, 1, K).to(dtype)
    marginal = (marginal + 1 / K) / (len(x) + 1)
    B = marginal * (0.1 + 0.9 * torch.rand(D, h, K, generator=generator, dtype=dtype))
    return pi, _normalised(A), _normalised(B)


def _neighbourhoods(parents: list[int]) -> list[list[int]]:
    """Of every variable: itself, its parent and its children."""
    near = [[node] for node in range(len(parents))]
    for node, above in enumerate(parents):
        if above >= 0:
            near[node].append(above)
            near[above].append(node)
    return [nodes[:_NEIGHBOURS] for nodes in near]


def _k_means(points: Tensor, h: int, generator: torch.Generator) -> Tensor:
    """The cluster, 0 to h-1, of every point [n, features]."""
    n = len(points)

    def some(count):
        rows = points[torch.randint(n, (count,), generator=generator)]
        # Equal points must not make equal centres.
        return rows + 1e-3 * torch.rand(rows.shape, generator=generator)

    centres = some(h)
    for _ in range(_PASSES):
        nearest = torch.cdist(points, centres).argmin(1)
        size = torch.bincount(nearest, minlength=h)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = sums / size.clamp(min=1)[:, None]
        empty = size == 0
        centres[empty] = some(int(empty.sum()))
    return torch.cdist(points, centres).argmin(1)


def clusters(
    x: Tensor, h: int, K: int, seed: int, dtype: torch.dtype, parent: Tensor
) -> tuple[Tensor, ...]:
    """pi, A and B as counts over samples whose hidden states are guessed: the state of a variable
    is the cluster (k-means) of its value and those of its neighbours in the tree, taken for
    numbers. A share of `random` is mixed in.
    """
    pi, A, B = random(x, h, K, seed, dtype)
    if len(x) == 0:
        return pi, A, B
    generator = torch.Generator().manual_seed(seed)
    x = x[torch.randperm(len(x), generator=generator)[:_ROWS]]
    values = x.float() / max(K - 1, 1)
    parents = parent.tolist()
    states = [_k_means(values[:, nodes], h, generator) for nodes in _neighbourhoods(parents)]

    def mixed(start: Tensor, index: Tensor) -> Tensor:
        counts = torch.bincount(index, minlength=start.numel()).view(start.shape).to(dtype)
        return _normalised((1 - _RANDOM) * _normalised(counts + start) + _RANDOM * start)

    for node, above in enumerate(parents):
        if above >= 0:
            A[node] = mixed(A[node], states[above] * h + states[node])
        else:
            pi = mixed(pi, states[node])
        B[node] = mixed(B[node], states[node] * K + x[:, node].long())
    return pi, A, B
