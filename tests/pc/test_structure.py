"""Trees: given as parent arrays, and learned from data."""

import doctest
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnkernels.pc import ArgumentError, ShapeError, StructureError, structure


@st.composite
def parents(draw, largest=12):
    """A random tree whose nodes are numbered at random."""
    D = draw(st.integers(1, largest))
    names = draw(st.permutations(range(D)))
    parent = [-1] * D
    for node in range(1, D):
        parent[names[node]] = names[draw(st.integers(0, node - 1))]
    return parent


def subtree(parent, node):
    below = [node]
    for other in below:
        below += [child for child, above in enumerate(parent) if above == other]
    return below


# ---- coding order ----


@given(parents())
def test_coding_order_is_a_preorder_with_the_largest_child_last(parent):
    order = structure.coding_order(parent).tolist()
    assert sorted(order) == list(range(len(parent)))
    place = {node: index for index, node in enumerate(order)}
    for node in order:
        below = subtree(parent, node)
        # A subtree is one stretch that starts with its root.
        stretch = range(place[node], place[node] + len(below))
        assert sorted(place[other] for other in below) == list(stretch)
        children = [child for child, above in enumerate(parent) if above == node]
        children.sort(key=place.get)
        keys = [(len(subtree(parent, child)), child) for child in children]
        assert keys == sorted(keys)


def test_alpha_vectors_stay_few():
    # Largest child last: a node that waits for its last child has at least halved the subtree.
    parent = torch.tensor([-1] + [(i - 1) // 2 for i in range(1, 255)])
    parents_list = parent.tolist()
    waiting, most = [], 0
    last = {}
    for node in structure.coding_order(parent).tolist():
        if parents_list[node] >= 0:
            last[parents_list[node]] = node
    for node in structure.coding_order(parent).tolist():
        waiting = [w for w in waiting if last.get(w) != node]
        if node in last:
            waiting.append(node)
        most = max(most, len(waiting))
    assert most <= math.floor(math.log2(255)) + 1


def test_builders():
    tree = structure.chain(4)
    assert tree.parent.tolist() == [-1, 0, 1, 2]
    assert tree.order.tolist() == [0, 1, 2, 3]
    assert structure.depths(tree).tolist() == [0, 1, 2, 3]
    tree = structure.star(4)
    assert tree.parent.tolist() == [-1, 0, 0, 0]
    assert tree.order.tolist() == [0, 1, 2, 3]
    assert structure.depths(tree).tolist() == [0, 1, 1, 1]
    assert structure.chain(1).parent.tolist() == structure.star(1).parent.tolist() == [-1]
    # No recursion: a long chain is a tree like any other.
    assert structure.chain(20_000).order.tolist() == list(range(20_000))


@pytest.mark.parametrize(
    ("parent", "message"),
    [
        ([-1, 5, 0], "node 1 has parent 5, expected -1 .* or 0 to 2"),
        ([-1, -2, 0], "node 1 has parent -2"),
        ([-1, 0, -1], "nodes 0 and 2 both have parent -1"),
        ([1, 0], "no node has parent -1; node 0"),
        ([-1, 2, 1, 0], "node 1 does not reach the root"),
        ([-1, 0, 2], "node 2 does not reach the root"),
        ([[-1]], r"parent is \[1, 1\], expected \[D\]"),
    ],
)
def test_no_tree(parent, message):
    with pytest.raises(StructureError, match=f"^pc_coding_order: {message}"):
        structure.coding_order(parent)


def test_bad_arguments():
    with pytest.raises(ArgumentError, match=r"^pc_coding_order: parent is empty"):
        structure.coding_order(torch.empty(0, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"^pc_coding_order: parent has dtype float32"):
        structure.coding_order(torch.tensor([-1.0]))
    for builder in (structure.chain, structure.star):
        with pytest.raises(ArgumentError, match="D is 0, expected at least 1"):
            builder(0)
    x = torch.zeros(3, 2, dtype=torch.uint8)
    with pytest.raises(ShapeError, match=r"^pc_learn: x is \[3\], expected \[N, D\]"):
        structure.learn(x[:, 0], 2)
    with pytest.raises(ShapeError, match=r"D at least 1"):
        structure.learn(x[:, :0], 2)
    with pytest.raises(TypeError, match=r"^pc_learn: x must be a tensor, got list"):
        structure.learn([[0]], 2)
    for name in ("bins", "rows"):
        with pytest.raises(ArgumentError, match=f"^pc_learn: {name} is 0"):
            structure.learn(x, 2, **{name: 0})


# ---- mutual information ----


def plain_information(x, K, bins):
    """From the definition, a pair of columns at a time."""
    x = (x.numpy().astype(np.int64) * bins) // K if bins < K else x.numpy().astype(np.int64)
    D = x.shape[1]
    out = np.zeros((D, D))
    for i, j in itertools.permutations(range(D), 2):
        for a, b in itertools.product(range(min(bins, K)), repeat=2):
            both = np.mean((x[:, i] == a) & (x[:, j] == b))
            if both > 0:
                out[i, j] += both * np.log(both / (np.mean(x[:, i] == a) * np.mean(x[:, j] == b)))
    return out


@pytest.mark.parametrize(
    ("K", "bins", "dtype"),
    [(2, 8, torch.uint8), (256, 8, torch.uint8), (1000, 5, torch.int16), (5, 5, torch.uint8)],
)
def test_mutual_information(K, bins, dtype):
    generator = torch.Generator().manual_seed(K)
    x = torch.randint(K, (200, 7), generator=generator)
    x[:, 3] = (x[:, 1] + x[:, 2]) // 2
    x[:, 5] = K - 1
    x = x.to(dtype)
    got = structure.mutual_information(x, K, bins)
    np.testing.assert_allclose(got.numpy(), plain_information(x, K, bins), rtol=0, atol=2.0**-30)
    assert torch.equal(got, got.T)
    assert (got[5] == 0).all()


def test_blocks_of_variables_agree(monkeypatch):
    x = torch.randint(256, (50, 9), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    whole = structure.mutual_information(x, 256)
    monkeypatch.setattr(structure, "_BLOCK", 4)
    assert torch.equal(structure.mutual_information(x, 256), whole)


def test_reordered_rows_give_the_same_information():
    x = torch.randint(6, (301, 5), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    shuffled = x[torch.randperm(301, generator=torch.Generator().manual_seed(2))]
    assert torch.equal(
        structure.mutual_information(x, 6), structure.mutual_information(shuffled, 6)
    )


# ---- spanning trees ----


def kruskal(weights):
    """Edges by weight, ties by (i, j), taken when they join two parts."""
    D = len(weights)
    part = list(range(D))
    chosen = []
    for i, j in sorted(itertools.combinations(range(D), 2), key=lambda e: (-float(weights[e]), e)):
        if part[i] != part[j]:
            chosen.append((i, j))
            old = part[j]
            part = [part[i] if p == old else p for p in part]
    return sorted(chosen)


@given(st.integers(1, 9), st.integers(0, 2**31), st.integers(1, 4))
def test_spanning_tree_with_ties(D, seed, levels):
    weights = torch.randint(levels, (D, D), generator=torch.Generator().manual_seed(seed)).triu(1)
    weights = weights + weights.T
    assert structure.spanning_tree(weights) == kruskal(weights)


@given(parents())
def test_root_is_the_smaller_centre(parent):
    D = len(parent)
    edges = [(min(i, p), max(i, p)) for i, p in enumerate(parent) if p >= 0]
    distance = torch.full((D, D), float(D))
    distance.fill_diagonal_(0)
    for i, j in edges:
        distance[i, j] = distance[j, i] = 1
    for k in range(D):
        distance = torch.minimum(distance, distance[:, k : k + 1] + distance[k])
    farthest = distance.max(1).values
    centre = int((farthest == farthest.min()).nonzero()[0])
    found = structure.rooted_at_centre(edges, D).tolist()
    assert found[centre] == -1
    assert sorted((min(i, p), max(i, p)) for i, p in enumerate(found) if p >= 0) == sorted(edges)


# ---- learning ----


def test_learns_a_chain():
    # A copy of the left neighbour with noise: neighbours know most about each other.
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(4, (4000,), generator=generator)]
    for _ in range(6):
        noise = torch.rand(4000, generator=generator) < 0.2
        other = torch.randint(4, (4000,), generator=generator)
        columns.append(torch.where(noise, other, columns[-1]))
    tree = structure.learn(torch.stack(columns, 1).to(torch.uint8), 4)
    assert tree.parent.tolist() == [1, 2, 3, -1, 3, 4, 5]


def test_same_data_and_seed_give_the_same_tree():
    x = torch.randint(256, (300, 20), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    first = structure.learn(x, 256, rows=100, seed=3)
    torch.manual_seed(99)
    again = structure.learn(x, 256, rows=100, seed=3)
    assert torch.equal(first.parent, again.parent)
    assert torch.equal(first.order, again.order)
    other = structure.learn(x, 256, rows=100, seed=4)
    assert not torch.equal(first.parent, other.parent)


@pytest.mark.parametrize("N", [0, 1, 5])
def test_columns_without_information(N):
    # Everything ties: the edges (0, 1), (0, 2), ... come first.
    tree = structure.learn(torch.zeros(N, 5, dtype=torch.uint8), 1)
    assert tree.parent.tolist() == [-1, 0, 0, 0, 0]
    x = torch.arange(N)[:, None].expand(N, 5).to(torch.int16)
    assert structure.learn(x, 8).parent.tolist() == [-1, 0, 0, 0, 0]


@pytest.mark.parametrize("N", [0, 3])
def test_one_variable(N):
    tree = structure.learn(torch.zeros(N, 1, dtype=torch.uint8), 2)
    assert tree.parent.tolist() == [-1]
    assert tree.order.tolist() == [0]


def test_examples_in_docstrings():
    result = doctest.testmod(structure)
    assert result.attempted > 0
    assert result.failed == 0
