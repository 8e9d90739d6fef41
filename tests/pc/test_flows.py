"""Expected counts and gradients against the float64 reference."""

import house
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pc_cases import FLOWS, FORWARD, FP32, FP64, NAMES, Case, close_ll, generator, relative_error

from nnkernels import pc
from nnkernels.pc import reference

CASES = [
    *(Case(D=D, h=5, K=3) for D in (1, 2, 3, 17)),
    *(Case(D=5, h=h, K=4, N=19) for h in (1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 64, 100)),
    *(Case(D=3, h=h, K=4, N=5, dtype=FP64) for h in (128, 256)),
    *(Case(D=4, h=6, K=K, N=18) for K in (1, 2, 256, 257, 4096)),
    *(Case(D=6, h=8, K=7, N=N) for N in (0, 1, 2, 7, 8, 15, 16, 17, 64, 65, 130)),
    *(Case(D=17, h=16, K=256, N=20, dtype=FP64, tree=tree) for tree in ("random", "chain", "star")),
    *(Case(D=100, h=2, K=3, N=6, dtype=dtype) for dtype in (FP32, FP64)),
    *(Case(D=9, h=h, K=5, missing=m, dtype=FP64) for h in (4, 16) for m in (0.0, 0.4, 1.0)),
    *(Case(D=9, h=h, K=5, missing=0.4) for h in (4, 32)),
    *(Case(D=5, h=6, K=2, N=40, zeros=0.4, dtype=dtype, seed=1) for dtype in (FP32, FP64)),
    Case(D=6, h=8, K=200, wide=True, missing=0.2),
]
cases = pytest.mark.parametrize("case", CASES, ids=str)


def check(case, inputs, weights=None):
    """Counts against the reference, relative to the total of each variable."""
    ll, *counts = pc.flows(**inputs, weights=weights)
    want_ll, *want = reference.flows(**inputs, weights=weights)
    close_ll(ll, want_ll, FORWARD[case.dtype])
    for got, exact, name in zip(counts, want, NAMES, strict=True):
        assert got.dtype == case.dtype
        assert got.shape == inputs[name].shape
        dims = (0,) if name == "pi" else (1, 2)
        assert relative_error(got, exact, dims) <= FLOWS[case.dtype]
    return ll, *counts


def gradients(inputs, upstream):
    leaves = {name: inputs[name].clone().requires_grad_() for name in NAMES}
    ll, _ = pc.forward(**inputs | leaves)
    return torch.autograd.grad(ll, list(leaves.values()), upstream)


# ---- counts ----


@cases
def test_flows(case, isa):
    check(case, case.inputs())


@pytest.mark.parametrize("case", [Case(N=70), Case(N=33, h=16, dtype=FP64, missing=0.2)], ids=str)
def test_weights(case, isa):
    inputs = case.inputs()
    weights = torch.rand(case.N, generator=generator(3)).to(case.dtype)
    weights[::4] = 0
    check(case, inputs, weights)
    # A sample that counts three times is three samples.
    whole = torch.randint(4, (case.N,), generator=generator(4))
    index = torch.arange(case.N).repeat_interleave(whole)
    many = {name: None if inputs[name] is None else inputs[name][index] for name in ("x", "mask")}
    _, *got = pc.flows(**inputs, weights=whole.to(case.dtype))
    _, *want = pc.flows(**inputs | many)
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b, tuple(range(a.dim()))) <= FLOWS[case.dtype]


@cases
def test_counts_sum_to_the_samples(case):
    inputs = case.inputs()
    ll, cnt_pi, cnt_A, cnt_B = pc.flows(**inputs)
    alive = ll.isfinite()
    N, root = int(alive.sum()), int(inputs["order"][0])
    tolerance = 1e-5 if case.dtype == FP32 else 1e-12
    assert abs(float(cnt_pi.double().sum()) - N) <= tolerance * N
    below = cnt_A.double().sum((1, 2))
    assert below[root] == 0
    below[root] = N
    assert ((below - N).abs() <= tolerance * N).all()
    seen = alive[:, None].expand(-1, case.D)
    if case.missing is not None:
        seen = seen & ~inputs["mask"]
    assert ((cnt_B.double().sum((1, 2)) - seen.sum(0)).abs() <= tolerance * N).all()
    for counts in (cnt_pi, cnt_A, cnt_B):
        assert (counts >= 0).all()


def test_counts_agree_between_neighbours(isa):
    # How often a state occurs is the same seen from above, from below and from its symbols.
    case = Case(D=15, h=7, K=4, N=90, dtype=FP64)
    inputs = case.inputs()
    _, cnt_pi, cnt_A, cnt_B = pc.flows(**inputs)
    occupied = cnt_A.sum(1)
    occupied[inputs["order"][0]] = cnt_pi
    torch.testing.assert_close(cnt_B.sum(2), occupied, rtol=1e-11, atol=1e-11)
    for node, above in enumerate(inputs["parent"].tolist()):
        if above >= 0:
            torch.testing.assert_close(cnt_A[node].sum(1), occupied[above], rtol=1e-11, atol=1e-11)


def test_samples_of_probability_zero_teach_nothing(isa):
    case = Case(D=6, h=9, K=3, N=70)
    inputs = case.inputs()
    inputs["B"][2, :, 1] = 0
    dead = inputs["x"][:, 2] == 1
    assert 0 < int(dead.sum()) < 70
    ll, *counts = check(case, inputs)
    assert torch.equal(ll.isneginf(), dead)
    _, *want = pc.flows(**inputs | {"x": inputs["x"][~dead]})
    for got, exact in zip(counts, want, strict=True):
        assert relative_error(got, exact, tuple(range(got.dim()))) <= FLOWS[FP32]
    inputs["x"][:, 2] = 1
    _, *counts = pc.flows(**inputs)
    for got in counts:
        assert (got == 0).all()


def test_reordered_and_split_samples(isa):
    case = Case(D=12, h=20, K=9, N=150, missing=0.1, dtype=FP64)
    inputs = case.inputs()
    _, *want = pc.flows(**inputs)
    order = torch.randperm(150, generator=generator(1))
    moved = {name: inputs[name][order] for name in ("x", "mask")}
    _, *got = pc.flows(**inputs | moved)
    parts = [
        pc.flows(**inputs | {name: inputs[name][part] for name in ("x", "mask")})[1:]
        for part in (slice(0, 1), slice(1, 65), slice(65, 150))
    ]
    for a, b, split in zip(got, want, zip(*parts, strict=True), strict=True):
        assert relative_error(a, b, tuple(range(a.dim()))) <= FLOWS[FP64]
        assert relative_error(sum(split), b, tuple(range(b.dim()))) <= FLOWS[FP64]


@pytest.mark.parametrize("case", [Case(D=20, h=33, N=300, missing=0.1), Case(h=8, dtype=FP64)])
def test_the_same_bits_every_time(case, isa):
    inputs = case.inputs()
    for count in (1, 2, 3):
        with house.threads(count):
            first = pc.flows(**inputs)
            for a, b in zip(pc.flows(**inputs), first, strict=True):
                assert house.same_bits(a, b)


# ---- gradients ----


@cases
def test_gradients(case, isa):
    inputs = case.inputs()
    upstream = torch.randn(case.N, generator=generator(5)).to(case.dtype)
    want = reference.gradients(upstream, **inputs)
    # What cancels is not small: errors are relative to the sum of absolute terms.
    scale = reference.gradients(upstream.abs(), **inputs)
    for got, exact, size in zip(gradients(inputs, upstream), want, scale, strict=True):
        assert got.dtype == case.dtype
        assert got.isfinite().all()
        assert ((got - exact).abs() <= FLOWS[case.dtype] * size.abs()).all()


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 10**6))
def test_flows_are_parameters_times_gradients(D, h, K, seed):
    case = Case(D=D, h=h, K=K, N=6, dtype=FP64, seed=seed, missing=0.2, zeros=0.2)
    inputs = case.inputs()
    _, *counts = pc.flows(**inputs)
    for name, count, g in zip(NAMES, counts, gradients(inputs, torch.ones(6)), strict=True):
        torch.testing.assert_close(count, inputs[name] * g, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "case",
    [
        Case(D=4, h=3, K=3, N=4, dtype=FP64),
        Case(D=1, h=2, K=3, N=3, dtype=FP64),
        Case(D=5, h=2, K=2, N=3, dtype=FP64, missing=0.3, tree="star"),
    ],
    ids=str,
)
def test_gradcheck(case):
    inputs = case.inputs()
    leaves = tuple(inputs[name].clone().requires_grad_() for name in NAMES)

    def function(*values):
        return pc.forward(**inputs | dict(zip(NAMES, values, strict=True)))[0]

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("dtype", [FP32, FP64])
def test_gradients_of_parameters_that_are_zero(dtype, isa):
    """Also where every path through a state needs them, so that beta is 0."""
    case = Case(D=4, h=4, K=3, N=9, dtype=dtype)
    inputs = case.inputs()
    child = int(inputs["order"][-1])
    inputs["A"][child, 1] = 0
    inputs["A"][child, :, 2] = 0
    inputs["pi"][0] = 0
    inputs["B"][0, 1:, 2] = 0
    want = reference.gradients(torch.ones(9), **inputs)
    assert (want[1][child, 1] > 0).any()
    for got, exact in zip(gradients(inputs, torch.ones(9)), want, strict=True):
        assert ((got - exact).abs() <= FLOWS[dtype] * exact.abs()).all()


def test_samples_of_probability_zero_have_no_gradient(isa):
    case = Case(D=6, h=9, K=3, N=20)
    inputs = case.inputs()
    inputs["B"][2, :, 1] = 0
    inputs["x"][:, 2] = 1
    upstream = torch.ones(20)
    for g in gradients(inputs, upstream):
        assert (g == 0).all()
    inputs["x"][3:9, 2] = 0
    alive = inputs | {"x": inputs["x"][3:9]}
    for got, want in zip(gradients(inputs, upstream), gradients(alive, upstream[:6]), strict=True):
        assert relative_error(got, want, tuple(range(got.dim()))) <= FLOWS[FP32]
    # What comes from upstream for a dead sample, such as the inf of its square, does not matter.
    upstream[0] = torch.inf
    upstream[1] = torch.nan
    for got, want in zip(gradients(inputs, upstream), gradients(alive, upstream[3:9]), strict=True):
        assert relative_error(got, want, tuple(range(got.dim()))) <= FLOWS[FP32]


def test_gradients_of_expanded_and_strided_upstream():
    inputs = Case(N=12).inputs()
    wide = torch.arange(24.0)[::2]
    for strided, plain in ((wide, wide.clone()), (torch.ones(()).expand(12), torch.ones(12))):
        for a, b in zip(gradients(inputs, strided), gradients(inputs, plain), strict=True):
            assert house.same_bits(a, b)


def test_only_needed_gradients():
    inputs = Case().inputs()
    want = gradients(inputs, torch.ones(11))
    for name, exact in zip(NAMES, want, strict=True):
        leaf = inputs[name].clone().requires_grad_()
        ll, u = pc.forward(**inputs | {name: leaf})
        assert not u.requires_grad
        (got,) = torch.autograd.grad(ll.sum(), leaf)
        assert house.same_bits(got, exact)
