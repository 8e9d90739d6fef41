"""Trees on variables: learned from data, given as a parent array, chains and stars.

A tree is a parent array: int64 [D], parent[i] the parent of variable i, -1 at the root. Everything
that walks it does so in its coding order, the depth-first preorder that visits the child with the
smallest subtree first (ties: the smaller index) and so the largest last.

Learning follows Chow and Liu, "Approximating discrete probability distributions with dependence
trees" (1968): the maximum spanning tree of the pairwise mutual information.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nnkernels import _checks
from nnkernels.pc.errors import ArgumentError, ShapeError, StructureError

# Variables whose joint counts are taken at once, which bounds memory.
_BLOCK = 128
# Mutual information is kept in multiples of this, in nats: what differs by rounding is a tie.
_QUANTUM = 2.0**-30


class Tree(NamedTuple):
    """A parent array and its coding order, int64 [D] each."""

    parent: Tensor
    order: Tensor


# ---- a given tree ----


def _parents(parent, op: str) -> list[int]:
    """The parent array as a list, whose entries are in range and hold one root."""
    parent = torch.as_tensor(parent)
    if parent.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{op}: parent has dtype {_checks.short(parent.dtype)}, expected int64")
    if parent.dim() != 1:
        raise StructureError(f"{op}: parent is {_checks.shape(parent)}, expected [D]")
    parents = parent.tolist()
    D = len(parents)
    if D == 0:
        raise ArgumentError(f"{op}: parent is empty; a circuit needs at least one variable")
    root = None
    for node, above in enumerate(parents):
        if not -1 <= above < D:
            raise StructureError(
                f"{op}: node {node} has parent {above}, expected -1 (the root) or 0 to {D - 1}"
            )
        if above == -1 and root is not None:
            raise StructureError(
                f"{op}: nodes {root} and {node} both have parent -1; a tree has one root"
            )
        if above == -1:
            root = node
    if root is None:
        raise StructureError(f"{op}: no node has parent -1; node 0 lies on or below a cycle")
    return parents


def _children(parents: list[int]) -> list[list[int]]:
    children = [[] for _ in parents]
    for node, above in enumerate(parents):
        if above >= 0:
            children[above].append(node)
    return children


def _preorder(children: list[list[int]], root: int) -> list[int]:
    order, stack = [], [root]
    while stack:
        node = stack.pop()
        order.append(node)
        stack.extend(reversed(children[node]))
    return order


def coding_order(parent) -> Tensor:
    """The coding order int64 [D] of a parent array int64 [D], a tensor or a list.

    Raises StructureError, naming a node, for what is no tree; ArgumentError for D = 0.

    >>> coding_order([-1, 0, 0, 1])
    tensor([0, 2, 1, 3])
    """
    op = "pc_coding_order"
    parents = _parents(parent, op)
    children = _children(parents)
    order = _preorder(children, parents.index(-1))
    if len(order) < len(parents):
        node = min(set(range(len(parents))) - set(order))
        raise StructureError(
            f"{op}: node {node} does not reach the root; it lies on or below a cycle"
        )
    size = [1] * len(parents)
    for node in reversed(order):
        if parents[node] >= 0:
            size[parents[node]] += size[node]
    for below in children:
        below.sort(key=lambda node: (size[node], node))
    return torch.tensor(_preorder(children, parents.index(-1)))


def make_tree(parent) -> Tree:
    """The tree of a parent array; see coding_order."""
    order = coding_order(parent)
    return Tree(torch.as_tensor(parent).to(torch.int64), order)


def depths(tree: Tree) -> Tensor:
    """int64 [D], edges between each variable and the root."""
    parents = tree.parent.tolist()
    depth = [0] * len(parents)
    for node in tree.order.tolist():
        if parents[node] >= 0:
            depth[node] = depth[parents[node]] + 1
    return torch.tensor(depth)


def _count(op: str, name: str, value):
    _checks.integer(op, name, value)
    if value < 1:
        raise ArgumentError(f"{op}: {name} is {value}, expected at least 1")


def chain(D: int) -> Tree:
    """Variable i below i - 1; the root is 0.

    >>> chain(3).parent
    tensor([-1,  0,  1])
    """
    _count("pc_chain", "D", D)
    return make_tree(torch.arange(D) - 1)


def star(D: int) -> Tree:
    """Every variable below 0.

    >>> star(3).parent
    tensor([-1,  0,  0])
    """
    _count("pc_star", "D", D)
    parent = torch.zeros(D, dtype=torch.int64)
    parent[0] = -1
    return make_tree(parent)


# ---- a learned tree ----


def mutual_information(x: Tensor, K: int, bins: int = 8) -> Tensor:
    """Mutual information of every pair of columns of x, in nats.

    Args:
        x: integers in 0..K-1, [N, D]. K: number of values. bins: values are first put into this
            many buckets of equal width (K buckets if that is fewer).

    Returns:
        float64 [D, D], symmetric, zero on the diagonal, in multiples of 2^-30 nats, so that pairs
        that are equal but for rounding tie. Joint counts are products of one-hot matrices: exact.

    >>> mutual_information(torch.tensor([[0, 0, 1], [1, 1, 1]]), 2)[0]
    tensor([0.0000, 0.6931, 0.0000], dtype=torch.float64)
    """
    N, D = x.shape
    if N >= 2**24:
        raise ArgumentError(f"pc_mutual_information: {N} rows, expected fewer than 2^24")
    q = min(bins, K)
    buckets = x.to(torch.int32) * q // K
    # c log c of every count there can be: a sum of entropies needs nothing else.
    table = torch.tensor([0.0] + [c * math.log(c) for c in range(1, N + 1)], dtype=torch.float64)
    values = torch.arange(q, dtype=torch.int32)

    def one_hot(start):
        columns = buckets[:, start : start + _BLOCK]
        return (columns[:, :, None] == values).flatten(1).float()

    information = torch.zeros(D, D, dtype=torch.float64)
    entropy = torch.empty(D, dtype=torch.float64)
    for start in range(0, D, _BLOCK):
        rows = one_hot(start)
        counts = rows.sum(0, dtype=torch.float64).long()
        entropy[start : start + _BLOCK] = table[counts].unflatten(0, (-1, q)).sum(1)
        for other in range(start, D, _BLOCK):
            columns = rows if other == start else one_hot(other)
            joint = table[(rows.T @ columns).long()].unflatten(1, (-1, q)).unflatten(0, (-1, q))
            information[start : start + _BLOCK, other : other + _BLOCK] = joint.sum((1, 3))
    information += table[N] - entropy[:, None] - entropy
    information = (information / (max(N, 1) * _QUANTUM)).round() * _QUANTUM
    upper = information.clamp(min=0).triu(1)
    return upper + upper.T


def spanning_tree(weights: Tensor) -> list[tuple[int, int]]:
    """The edges (i, j), i < j, of the maximum spanning tree of symmetric weights [D, D].

    Of equal weights the edge with the smaller i, then the smaller j, comes first; that order is
    total, so there is one such tree.

    >>> spanning_tree(torch.ones(3, 3))
    [(0, 1), (0, 2)]
    """
    weights = weights.double().numpy()
    D = len(weights)
    nodes = np.arange(D)
    outside = nodes > 0
    # The best edge from the tree to each node: its weight, and i * D + j.
    best, edge = weights[0].copy(), nodes.copy()
    edges = []
    for _ in range(D - 1):
        heaviest = outside & (best == best[outside].max())
        chosen = np.flatnonzero(heaviest)[edge[heaviest].argmin()]
        edges.append(divmod(int(edge[chosen]), D))
        outside[chosen] = False
        candidate = np.minimum(nodes, chosen) * D + np.maximum(nodes, chosen)
        offered = weights[chosen]
        better = (offered > best) | ((offered == best) & (candidate < edge))
        best = np.where(better, offered, best)
        edge = np.where(better, candidate, edge)
    return sorted(edges)


def _walk(neighbours, start):
    """The node that is reached last from `start`, and where each was reached from."""
    above = {start: -1}
    queue = [start]
    for node in queue:
        for other in neighbours[node]:
            if other not in above:
                above[other] = node
                queue.append(other)
    return queue[-1], above


def rooted_at_centre(edges: list[tuple[int, int]], D: int) -> Tensor:
    """The parent array of the tree with these edges whose root is its centre: the node (of two the
    smaller) whose farthest node is nearest.

    >>> rooted_at_centre([(0, 1), (1, 2)], 3)
    tensor([ 1, -1,  1])
    """
    neighbours = [[] for _ in range(D)]
    for i, j in edges:
        neighbours[i].append(j)
        neighbours[j].append(i)
    # The middle of a longest path.
    end, _ = _walk(neighbours, 0)
    node, above = _walk(neighbours, end)
    path = [node]
    while above[path[-1]] >= 0:
        path.append(above[path[-1]])
    centre = min(path[(len(path) - 1) // 2], path[len(path) // 2])
    _, above = _walk(neighbours, centre)
    return torch.tensor([above[node] for node in range(D)])


def learn(x: Tensor, K: int, *, bins: int = 8, rows: int = 12_000, seed: int = 0) -> Tree:
    """The tree for data x [N, D] in 0..K-1: the maximum spanning tree of the mutual information of
    at most `rows` rows, drawn with `seed`, rooted at its centre.

    Deterministic for a data set and a seed. Constant columns have no information and hang where
    ties put them; N = 0 gives a star.

    Raises TypeError or ValueError (ArgumentError, ShapeError) for arguments.

    >>> x = torch.tensor([[0, 1, 0], [1, 0, 1], [1, 1, 1], [0, 1, 0]], dtype=torch.uint8)
    >>> learn(x, 2).parent
    tensor([-1,  0,  0])
    """
    op = "pc_learn"
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: x must be a tensor, got {type(x).__name__}")
    for name, value in (("bins", bins), ("rows", rows), ("K", K)):
        _count(op, name, value)
    if x.dim() != 2 or x.shape[1] == 0:
        raise ShapeError(f"{op}: x is {_checks.shape(x)}, expected [N, D] with D at least 1")
    if x.shape[0] > rows:
        generator = torch.Generator().manual_seed(seed)
        x = x[torch.randperm(x.shape[0], generator=generator)[:rows]]
    weights = mutual_information(x, K, bins)
    return make_tree(rooted_at_centre(spanning_tree(weights), x.shape[1]))
