"""Frozen models and data for the codec's tests, made from integers alone.

Every weight is an integer over 2^24, so it and all running sums are binary32 numbers: the tables
are the same with any NumPy or torch, and golden hashes of what they code can be kept.
"""

import numpy as np
import torch

ONE = 1 << 24
_MASK = (1 << 64) - 1


def random_integers(seed, *shape):
    """splitmix64: unsigned 64-bit integers that depend on the seed and the position alone."""
    count = int(np.prod(shape, dtype=np.int64))
    start = (seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & _MASK
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).reshape(shape)


def distributions(seed, *shape, sharp=1):
    """Rows that sum to 2^24 with every entry at least 1; `sharp` > 1 makes them uneven."""
    raw = (random_integers(seed, *shape) >> np.uint64(64 - 10)).astype(np.int64)
    raw = raw**sharp + 1
    rows = np.maximum(raw * ONE // raw.sum(-1, keepdims=True), 1)
    flat = rows.reshape(-1, shape[-1])
    flat[np.arange(len(flat)), flat.argmax(1)] += ONE - flat.sum(1)
    return rows


def coding_order(parent):
    """Depth-first preorder; children by subtree size ascending, ties by index."""
    children = {i: [] for i in range(-1, len(parent))}
    for i, p in enumerate(parent):
        children[p].append(i)

    def size(i):
        return 1 + sum(size(c) for c in children[i])

    def visit(i):
        yield i
        for c in sorted(children[i], key=lambda c: (size(c), c)):
            yield from visit(c)

    return list(visit(children[-1][0]))


def random_parent(D, seed=0):
    """A tree whose nodes are numbered at random."""
    draws = random_integers(seed + 1000, 2, D)
    label = np.argsort(draws[0], kind="stable")
    parent = np.full(D, -1, dtype=np.int64)
    for i in range(1, D):
        # Near the previous node, so that trees are deep and have branches.
        back = int(draws[1, i] % np.uint64(min(i, 4)))
        parent[label[i]] = label[i - 1 - back]
    return parent


def tables(D, h, K, seed=0, parent=None):
    """[pi, A, B, C, parent, order] of a frozen model, as tensors."""
    parent = random_parent(D, seed) if parent is None else np.asarray(parent, dtype=np.int64)
    pi = distributions(seed + 1, h)
    A = distributions(seed + 2, D, h, h, sharp=2)
    B = distributions(seed + 3, D, h, K, sharp=4)
    C = np.zeros((D, h, K + 1), dtype=np.int64)
    C[..., 1:] = np.cumsum(B, axis=-1)
    weights = [torch.from_numpy((w / ONE).astype(np.float32)) for w in (pi, A, B, C)]
    order = coding_order(parent.tolist())
    return [*weights, torch.from_numpy(parent), torch.tensor(order, dtype=torch.int64)]


def samples(N, model, seed=0, dtype=None):
    """Data drawn from the model by integers: x [N, D] of uint8 (K <= 256) or int16."""
    _pi, A, _B, C, parent, order = (table.numpy() for table in model)
    D, _h, K = C.shape[0], C.shape[1], C.shape[2] - 1
    draws = (random_integers(seed + 77, 2, D, N) >> np.uint64(40)).astype(np.int64)
    # Running sums as integers below 2^24, exactly.
    cumulative = (C.astype(np.float64) * ONE).astype(np.int64)
    moves = np.cumsum((A.astype(np.float64) * ONE).astype(np.int64), axis=-1)
    start = np.cumsum((_pi.astype(np.float64) * ONE).astype(np.int64))
    z = np.zeros((D, N), dtype=np.int64)
    x = np.zeros((N, D), dtype=np.int64)
    for i in order:
        rows = start[None].repeat(N, 0) if parent[i] < 0 else moves[i][z[parent[i]]]
        z[i] = (rows <= draws[0, i][:, None]).sum(-1)
        x[:, i] = (cumulative[i][z[i]][:, 1:] <= draws[1, i][:, None]).sum(-1)
    assert x.max(initial=0) < K
    x = torch.from_numpy(x)
    return x.to(dtype or (torch.uint8 if K <= 256 else torch.int16))
