"""The log-likelihood against the float64 reference."""

import itertools

import house
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pc_cases import FORWARD, FP32, FP64, Case, close_ll, generator

from nnkernels import pc
from nnkernels.pc import reference

CASES = [
    *(Case(D=D, h=5, K=3) for D in (1, 2, 3, 17)),
    *(Case(D=5, h=h, K=4, N=9) for h in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100, 128)),
    *(Case(D=3, h=256, K=4, N=5, dtype=dtype) for dtype in (FP32, FP64)),
    *(Case(D=4, h=6, K=K, N=8) for K in (1, 2, 255, 256, 257, 4096)),
    *(Case(D=6, h=8, K=7, N=N) for N in (0, 1, 2, 3, 7, 8, 15, 16, 17, 63, 64, 65, 130)),
    *(Case(D=17, h=16, K=256, N=20, dtype=FP64, tree=tree) for tree in ("random", "chain", "star")),
    *(Case(D=100, h=h, K=3, N=6, dtype=dtype) for h in (2, 16) for dtype in (FP32, FP64)),
    *(Case(D=9, h=h, K=5, missing=m, dtype=FP64) for h in (4, 16) for m in (0.0, 0.4, 1.0)),
    *(Case(D=9, h=h, K=5, missing=0.4) for h in (4, 32)),
    *(Case(D=5, h=6, K=2, N=30, zeros=0.4, dtype=dtype, seed=1) for dtype in (FP32, FP64)),
    Case(D=6, h=8, K=200, wide=True, missing=0.2),
]
cases = pytest.mark.parametrize("case", CASES, ids=str)


def check(case, inputs=None):
    """Returns what the operator gives, after comparing it with the reference."""
    inputs = inputs or case.inputs()
    want, want_u = reference.forward(**inputs)
    ll, u = pc.forward(**inputs)
    assert ll.dtype == u.dtype == case.dtype
    assert u.shape == want_u.shape
    close_ll(ll, want, FORWARD[case.dtype])
    # Rows are known up to a power of two; rows without a chance are zero.
    top, want_top = (rows.amax(-1, keepdim=True).double().clamp(min=1e-300) for rows in (u, want_u))
    error = (u.double() / top - want_u / want_top).abs()
    assert (error <= 1e-6 if case.dtype == FP64 else error <= 1e-4).all()
    return ll, u


@cases
def test_forward(case, isa):
    check(case)


@pytest.mark.parametrize("h", [1, 2, 5, 16])
@pytest.mark.parametrize("D", [1, 2, 3, 17, 100])
@pytest.mark.parametrize("K", [2, 3, 256])
def test_random_trees(D, h, K):
    check(Case(D=D, h=h, K=K, N=5, dtype=FP64, seed=h))


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 10**6))
def test_the_sum_over_states(D, h, K, seed):
    case = Case(D=D, h=h, K=K, N=4, dtype=FP64, seed=seed, missing=0.2, zeros=0.2)
    inputs = case.inputs()
    given = {name: inputs[name] for name in ("x", "pi", "A", "B", "parent", "mask")}
    close_ll(pc.forward(**inputs)[0], reference.enumerate_states(**given), FORWARD[FP64])


def test_rows_are_scaled_by_powers_of_two(isa):
    case = Case(D=20, h=4, K=256, tree="star", dtype=FP64)
    _, u = check(case)
    top = u.amax(-1)
    assert ((top >= 0.5) & (top < 1)).all()


@pytest.mark.parametrize("tree", ["chain", "star"])
@pytest.mark.parametrize("dtype", [FP32, FP64])
def test_thousands_of_variables_do_not_underflow(tree, dtype, isa):
    # p(x) is about 256^-3000.
    ll, _ = check(Case(D=3000, h=2, K=256, N=3, tree=tree, dtype=dtype))
    assert (ll < -10_000).all()
    assert ll.isfinite().all()


def test_probabilities_near_zero(isa):
    # A symbol of the smallest probability that float32 holds without a subnormal.
    case = Case(D=40, h=3, K=2, N=4)
    inputs = case.inputs()
    inputs["B"] = torch.tensor([1e-37, 1.0]).expand(40, 3, 2).contiguous()
    inputs["x"] = torch.zeros(4, 40, dtype=torch.uint8)
    check(case, inputs)


def test_probability_zero():
    case = Case(D=6, h=4, K=3, N=5)
    inputs = case.inputs()
    inputs["B"][2, :, 1] = 0
    inputs["x"][:, 2] = torch.tensor([0, 1, 2, 1, 0])
    ll, _ = check(case, inputs)
    assert ll.isneginf().tolist() == [False, True, False, True, False]
    # Missing, the value cannot be impossible.
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[:, 2] = True
    assert check(case, inputs | {"mask": mask})[0].isfinite().all()


def test_masked_values_are_not_read(isa):
    case = Case(D=6, h=8, K=5, N=20, missing=0.3, wide=True)
    inputs = case.inputs()
    want, _ = check(case, inputs)
    spoiled = inputs["x"].clone()
    spoiled[inputs["mask"]] = -1
    assert house.same_bits(pc.forward(**inputs | {"x": spoiled})[0], want)
    spoiled[inputs["mask"]] = 32767
    assert house.same_bits(pc.forward(**inputs | {"x": spoiled})[0], want)


def test_probabilities_sum_to_one(isa):
    case = Case(D=4, h=5, K=3, dtype=FP64)
    x = torch.tensor(list(itertools.product(range(3), repeat=4)), dtype=torch.uint8)
    ll, _ = pc.forward(x, **case.parameters())
    assert abs(float(ll.exp().sum()) - 1) <= 1e-12
    everything = torch.ones(1, 4, dtype=torch.bool)
    assert abs(float(pc.forward(x[:1], **case.parameters(), mask=everything)[0])) <= 1e-12


# ---- invariances ----


def test_samples_do_not_see_each_other(isa):
    case = Case(D=12, h=20, K=9, N=150, missing=0.1)
    inputs = case.inputs()
    ll, _ = check(case, inputs)
    order = torch.randperm(150, generator=generator(1))
    moved = {name: inputs[name][order] for name in ("x", "mask")}
    close_ll(pc.forward(**inputs | moved)[0], ll[order], 1e-6)
    for part in (slice(0, 1), slice(7, 70), slice(100, 150)):
        some = {name: inputs[name][part] for name in ("x", "mask")}
        close_ll(pc.forward(**inputs | some)[0], ll[part], 1e-6)


def test_states_that_are_never_reached_change_nothing(isa):
    case = Case(D=9, h=5, K=4, N=20, dtype=FP64)
    inputs = case.inputs()
    want, _ = pc.forward(**inputs)
    pad = torch.nn.functional.pad
    wide = inputs | {"pi": pad(inputs["pi"], (0, 4)), "A": pad(inputs["A"], (0, 4, 0, 4))}
    wide["B"] = pad(inputs["B"], (0, 0, 0, 4))
    close_ll(pc.forward(**wide)[0], want, FORWARD[FP64])


def test_values_that_never_occur_change_nothing(isa):
    case = Case(D=9, h=5, K=4, N=20)
    inputs = case.inputs()
    wide = inputs | {"B": torch.nn.functional.pad(inputs["B"], (0, 300))}
    want, _ = pc.forward(**inputs)
    assert house.same_bits(pc.forward(**wide)[0], want)
    assert house.same_bits(pc.forward(**wide | {"x": inputs["x"].to(torch.int16)})[0], want)


def test_any_depth_first_order_will_do():
    case = Case(D=30, h=6, K=4, dtype=FP64)
    inputs = case.inputs()
    want, _ = pc.forward(**inputs)
    children = [[] for _ in range(30)]
    for node, above in enumerate(inputs["parent"].tolist()):
        if above >= 0:
            children[above].append(node)
    order, stack = [], [int(inputs["order"][0])]
    while stack:
        order.append(stack.pop())
        stack += children[order[-1]]
    assert order != inputs["order"].tolist()
    close_ll(pc.forward(**inputs | {"order": torch.tensor(order)})[0], want, FORWARD[FP64])


def test_the_roots_rows_of_A_take_no_part(isa):
    case = Case(D=5, h=4)
    inputs = case.inputs()
    want, _ = pc.forward(**inputs)
    inputs["A"][inputs["order"][0]] = torch.nan
    assert house.same_bits(pc.forward(**inputs)[0], want)


def test_only_the_likelihood():
    inputs = Case(N=150, h=20).inputs()
    want, _ = pc.forward(**inputs)
    ll, u = pc.forward(**inputs, save_u=False)
    assert house.same_bits(ll, want)
    assert u.shape == (0,)


@pytest.mark.parametrize("case", [Case(D=20, h=33, N=300), Case(D=50, h=8, N=65, dtype=FP64)])
def test_the_same_bits_every_time(case, isa):
    inputs = case.inputs()
    with house.threads(1):
        first = pc.forward(**inputs)
    for count in (1, 2, 3, 7):
        with house.threads(count):
            for a, b in zip(pc.forward(**inputs), first, strict=True):
                assert house.same_bits(a, b)
