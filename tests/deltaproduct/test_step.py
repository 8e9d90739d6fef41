"""One step of decoding, state pools, and maps of states."""

import house
import pytest
import torch
from deltaproduct_cases import BF16, FP16, FP32, FP64, TOLERANCES, Case, relative_error

from nnkernels import deltaproduct
from nnkernels.deltaproduct import reference

SHAPES = [(1, 1, 1, 4, 4), (2, 2, 4, 16, 20), (3, 1, 3, 64, 60), (5, 1, 2, 100, 7)]
SHAPES += [(2, 1, 1, 256, 16), (4, 1, 1, 20, 256)]


def inputs(n, Hk, H, K, V, B=3, dtype=FP32, beta="two", g="random"):
    """q [B, Hk, K], k, v, g [B, H], beta and a state [B, H, K, V]."""
    case = Case(T=1, n=n, Hk=Hk, H=H, K=K, V=V, B=B, dtype=dtype, beta=beta, g=g)
    x = case.inputs()
    g = None if x["g"] is None else x["g"][:, 0]
    return [x["q"][:, 0], x["k"], x["v"], g, x["beta"]], x["initial_state"]


def check(tokens, state, tolerance, state_tolerance=None, **options):
    """The step against its float64 reference; returns o and the new state."""
    wide = [None if x is None else x.to(FP64) for x in tokens]
    want_state = state.to(FP64, copy=True)
    want = reference.step(*wide, want_state, **options)
    got_state = state.clone()
    o = deltaproduct.step(*tokens, got_state, **options)
    assert o.dtype == tokens[0].dtype
    assert relative_error(o, want) <= tolerance
    assert relative_error(got_state, want_state) <= (state_tolerance or tolerance)
    return o, got_state


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("g", [None, "random", "reset", -50.0])
def test_step(shape, g, isa):
    check(*inputs(*shape, g=g), TOLERANCES[FP32, "two"][0])
    check(*inputs(*shape, g=g), TOLERANCES[FP32, "two"][0], use_qk_l2norm=True, scale=0.3)


@pytest.mark.parametrize("dtype", [FP64, BF16, FP16])
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_dtypes(shape, dtype, isa):
    tokens, state = inputs(*shape, dtype=dtype, beta="one")
    tolerance = TOLERANCES[dtype, "one"][0]
    check(tokens, state, tolerance, use_qk_l2norm=True)
    if dtype == BF16:
        # A step computes in float32 and rounds the state once.
        _, narrow = check(tokens, state.to(BF16), tolerance, 2.0**-8, use_qk_l2norm=True)
        wide = state.to(BF16).float()
        deltaproduct.step(*tokens, wide, use_qk_l2norm=True)
        assert torch.equal(narrow, wide.to(BF16))


def test_a_pool_of_states(isa):
    tokens, _ = inputs(2, 1, 2, 16, 20, B=4)
    pool = torch.randn(7, 2, 16, 20)
    slots = torch.tensor([5, -1, 0, 3])
    o, after = check(tokens, pool, TOLERANCES[FP32, "two"][0], slots=slots)
    assert (o[1] == 0).all()
    for unused in (1, 2, 4, 6):
        assert house.same_bits(after[unused], pool[unused])


def test_skipped_rows_may_hold_anything():
    tokens, state = inputs(2, 1, 2, 16, 20)
    for x in tokens:
        x[1] = torch.nan
    state[1] = torch.nan
    before = state.clone()
    o = deltaproduct.step(*tokens, state, slots=torch.tensor([0, -1, 2]))
    assert o.isfinite().all()
    assert house.same_bits(state[1], before[1])
    assert state[[0, 2]].isfinite().all()
    # Rows that are all skipped leave the pool alone.
    deltaproduct.step(*tokens, state, slots=torch.tensor([-1, -1, -1]))


def test_nan_stays_in_its_row_and_head(isa):
    tokens, state = inputs(2, 3, 3, 16, 20)
    clean = state.clone()
    want = deltaproduct.step(*tokens, clean)
    spoiled = [x.clone() for x in tokens]
    spoiled[1][1, :, 1] = torch.nan
    o = deltaproduct.step(*spoiled, state)
    others = torch.ones(3, 3, dtype=torch.bool)
    others[1, 1] = False
    assert house.same_bits(o[others], want[others])
    assert house.same_bits(state[others], clean[others])
    assert o[1, 1].isnan().all()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_threads_give_the_same_bits(count, isa):
    tokens, state = inputs(2, 2, 4, 64, 100)
    with house.threads(1):
        want_state = state.clone()
        want = deltaproduct.step(*tokens, want_state)
    with house.threads(count):
        assert house.same_bits(deltaproduct.step(*tokens, state), want)
        assert house.same_bits(state, want_state)


def test_state_is_written_in_place(canaries):
    tokens, state = inputs(2, 1, 2, 16, 20)
    want_state = state.clone()
    want = deltaproduct.step(*tokens, want_state)
    # A pool whose states lie apart, inside memory that must not change.
    buffer = torch.full((3, 4, 18, 24), torch.nan)
    inside = buffer[:, 1:3, 1:17, 2:22]
    inside.copy_(state)
    o = deltaproduct.step(*(canaries.embed(x) for x in tokens), inside)
    assert house.same_bits(o, want)
    assert house.same_bits(inside, want_state)
    inside.fill_(torch.nan)
    assert buffer.isnan().all()


def test_no_rows():
    tokens, state = inputs(2, 1, 2, 16, 20, B=0)
    assert deltaproduct.step(*tokens, state).shape == (0, 2, 20)


# ---- state maps ----


@pytest.mark.parametrize("l2norm", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        {"T": 1, "n": 3, "K": 4},
        {"T": 65, "n": 2, "K": 64, "V": 20},
        {"T": 40, "n": 1, "K": 100, "V": 128},
        {"T": 33, "n": 3, "Hk": 2, "H": 4, "g": "reset"},
        {"T": 50, "n": 2, "g": None, "beta": 2.0},
        {"T": 0},
    ],
    ids=str,
)
def test_state_map(sizes, l2norm, isa):
    case = Case(l2norm=l2norm, **sizes)
    x = case.inputs()
    rows = [x[name] for name in ("k", "v", "g", "beta")]
    wide = [None if y is None else y.to(FP64) for y in rows]
    A, M = deltaproduct.state_map(*rows, case.n, l2norm)
    want = reference.state_map(*wide, case.n, l2norm)
    for got, exact in zip((A, M), want, strict=True):
        assert got.dtype == FP32
        assert relative_error(got, exact) <= case.tolerances[0]
    _, state = deltaproduct.scan(**x, **case.options)
    assert relative_error(A @ x["initial_state"] + M, state) <= 4 * case.tolerances[0]


def test_maps_of_packed_sequences():
    case = Case(T=60, n=2, B=1, dtype=FP64)
    x = case.inputs()
    rows = [x[name] for name in ("k", "v", "g", "beta")]
    A, M = deltaproduct.state_map(*rows, case.n, cu_seqlens=torch.tensor([0, 0, 25, 60]))
    assert torch.equal(A[0], torch.eye(case.K, dtype=FP64).expand(case.H, -1, -1))
    assert (M[0] == 0).all()
    whole = deltaproduct.state_map(*rows, case.n)
    joined = deltaproduct.compose_state_maps(A[2], M[2], A[1], M[1])
    for a, b in zip(joined, whole, strict=True):
        assert relative_error(a, b[0]) <= 1e-12


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_maps_of_narrow_inputs_are_float32(dtype):
    case = Case(T=20, dtype=dtype, beta="one")
    rows = [case.inputs()[name] for name in ("k", "v", "g", "beta")]
    want = reference.state_map(*(x.to(FP64) for x in rows), case.n)
    for got, exact in zip(deltaproduct.state_map(*rows, case.n), want, strict=True):
        assert got.dtype == FP32
        # Only the inputs are narrow.
        assert relative_error(got, exact) <= 5e-6
