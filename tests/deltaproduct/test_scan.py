"""The scan against its reference: every size, kind of gate, key and beta, by every instruction set;
splits, packed sequences, isolation of NaN, determinism."""

import dataclasses
import itertools
import mmap

import house
import pytest
import torch
from deltaproduct_cases import (
    BF16,
    FP16,
    FP32,
    FP64,
    Case,
    check,
    check_close,
    expected,
    part,
    relative_error,
    run,
)

from nnkernels import deltaproduct

TIMES = (1, 2, 15, 16, 17, 63, 64, 65)
SIZES = (4, 16, 60, 64, 100, 128, 256)


def named(cases):
    return pytest.mark.parametrize("case", list(dict.fromkeys(cases)), ids=str)


def sizes():
    """Every length with every n, and every K and V among them."""
    for index, (T, n) in enumerate(itertools.product(TIMES, range(1, 6))):
        # Where the reference is slow, the smaller sizes.
        few = SIZES[:3] if T * n > 100 else SIZES
        K, V = few[index % len(few)], few[(index // 3 + 1) % len(few)]
        yield Case(T=T, n=n, K=K, V=V, B=1 + index % 2, Hk=1, H=1 + index % 2)
    for K, V in zip(SIZES, reversed(SIZES), strict=True):
        yield Case(T=9, n=2, K=K, V=V, B=1, H=1)
        yield Case(T=5, n=3, K=K, V=K, B=1, H=1)
    for Hk, H in ((1, 3), (2, 4), (3, 3)):
        yield Case(T=20, n=2, Hk=Hk, H=H, l2norm=True)


def values():
    """Everything that is special about values."""
    base = Case(T=40, n=2, K=16, V=12, B=1, Hk=1, H=2)
    for keys, beta in itertools.product(
        ("random", "equal", "correlated"), ("one", "two", 0.0, 1.0, 2.0)
    ):
        yield dataclasses.replace(base, keys=keys, beta=beta, g=None)
    for g in (None, 0.0, -1e-3, "strong", "reset", "random"):
        for n in (1, 3):
            yield dataclasses.replace(base, g=g, n=n)
    for initial in (None, 1e4, 1e-4):
        yield dataclasses.replace(base, initial=initial, g=-1e-3)
    yield dataclasses.replace(base, l2norm=True, keys="correlated")


@named(sizes())
def test_sizes(case, isa):
    check(case)


@named(values())
def test_values(case, isa):
    check(case)


@named(
    Case(T=T, n=n, K=K, V=20, B=1, Hk=1, H=2, dtype=dtype, beta=beta, g=g, l2norm=True)
    for dtype, betas in (
        (FP64, ("one", "two", 2.0)),
        (BF16, ("one", "two", 1.95)),
        (FP16, ("one",)),
    )
    for beta in betas
    for T, n, K in ((1, 3, 16), (33, 1, 64), (70, 2, 20))
    for g in ((None,) if isinstance(beta, float) else ("random", None))
)
def test_dtypes(case, isa):
    check(case)


@named(
    [
        Case(T=1000, n=2, K=16, V=16, B=1, H=1, g=None),
        Case(T=1000, n=1, K=64, V=32, B=1, H=1, g="random", l2norm=True),
        Case(T=1000, n=2, K=16, V=16, B=1, H=1, g=None, beta=2.0),
        Case(T=1000, n=3, K=16, V=16, B=1, H=1, g=None, beta=1.0, keys="correlated"),
        Case(T=1000, n=2, K=16, V=16, B=1, H=1, g=None, beta=1.95, dtype=BF16, l2norm=True),
        Case(T=1000, n=4, K=16, V=16, B=1, H=1, g=-1e-3, dtype=FP64),
    ]
)
def test_long_sequences(case):
    check(case)


@pytest.mark.parametrize("n", [1, 3])
def test_gates_that_forget_everything(n, isa):
    case = Case(T=40, n=n, g=-50.0)
    got = run(deltaproduct.scan, case.inputs(), case.upstream(), **case.options)
    want = dict(expected(case))
    # The gradient of such a gate is 1e-22; it is a difference of terms of the size of k dk.
    dg = want.pop("dg")
    scale = (case.inputs()["k"] * want["dk"]).sum(-1).abs().max()
    assert (got["dg"] - dg).abs().max() <= 5e-6 * scale
    check_close(got, want, case.tolerances)


def test_float32_beta_with_narrow_inputs():
    case = Case(T=20, dtype=BF16, beta="one")
    inputs = case.inputs() | {"beta": Case(T=20, beta="one").inputs()["beta"]}
    wide = {name: x.to(FP64) for name, x in inputs.items()}
    upstream = case.upstream()
    want = run(
        deltaproduct.reference.scan, wide, tuple(x.to(FP64) for x in upstream), **case.options
    )
    got = run(deltaproduct.scan, inputs, upstream, **case.options)
    assert got["dbeta"].dtype == FP32
    check_close(got, want, case.tolerances)


def test_a_zero_key_stays_zero():
    case = Case(l2norm=True)
    inputs = case.inputs()
    inputs["k"][0, 3] = 0
    inputs["q"][0, 2] = 0
    wide = {name: x.to(FP64) for name, x in inputs.items()}
    upstream = case.upstream()
    want = run(
        deltaproduct.reference.scan, wide, tuple(x.to(FP64) for x in upstream), **case.options
    )
    check_close(run(deltaproduct.scan, inputs, upstream, **case.options), want, case.tolerances)


@pytest.mark.parametrize("n", [1, 3])
def test_no_tokens(n):
    case = Case(T=0, n=n)
    inputs = case.inputs()
    got = run(deltaproduct.scan, inputs, case.upstream(), **case.options)
    assert got["o"].shape == (case.B, 0, case.H, case.V)
    assert torch.equal(got["final_state"], inputs["initial_state"])
    assert torch.equal(got["dinitial_state"], case.upstream()[1])
    _, state = deltaproduct.scan(
        **inputs | {"initial_state": None}, num_householder=n, output_final_state=True
    )
    assert (state == 0).all()


@pytest.mark.parametrize("sizes", [{"B": 0}, {"Hk": 0, "H": 0}])
def test_no_sequences_and_no_heads(sizes):
    case = Case(**sizes)
    got = run(deltaproduct.scan, case.inputs(), case.upstream(), **case.options)
    for name, x in case.inputs().items():
        assert got[f"d{name}"].shape == x.shape
        assert (got[f"d{name}"] == 0).all()


def test_only_the_state_or_only_the_result_is_used():
    case = Case(T=20)
    inputs = {name: x.requires_grad_() for name, x in case.inputs().items()}
    grad_o, grad_final = case.upstream()
    whole = expected(case)
    found = []
    for which, g in ((0, grad_o), (1, grad_final)):
        out = deltaproduct.scan(**inputs, **case.options)[which]
        # The last query does not touch the state.
        found.append(torch.autograd.grad(out, list(inputs.values()), g, materialize_grads=True))
    for name, a, b in zip(inputs, *found, strict=True):
        assert relative_error(a + b, whole[f"d{name}"]) <= case.tolerances[2]


# ---- splits ----


@named(
    [
        Case(T=90, n=2, K=16, V=20, dtype=FP64, g=None),
        Case(T=90, n=3, K=20, V=8, dtype=FP64, l2norm=True),
        Case(T=90, n=1, K=16, V=20, g=None, beta=2.0),
    ]
)
@pytest.mark.parametrize("cut", [1, 16, 37, 64, 89])
def test_a_sequence_may_be_split(case, cut, isa):
    inputs, options = case.inputs(), case.options

    def split(**given):
        state = given["initial_state"]
        first, second = (part(given, case.n, *span) for span in ((0, cut), (cut, case.T)))
        o1, state = deltaproduct.scan(**first, initial_state=state, **options)
        o2, state = deltaproduct.scan(**second, initial_state=state, **options)
        return torch.cat([o1, o2], 1), state

    got = run(split, inputs, case.upstream())
    check_close(got, expected(case), case.tolerances)


def test_a_sequence_is_steps_and_a_map():
    case = Case(T=50, n=2, Hk=2, H=4, dtype=FP64, l2norm=True, g="random")
    inputs = case.inputs()
    o, final_state = deltaproduct.scan(**inputs, **case.options)
    state = inputs["initial_state"].clone()
    for t in range(case.T):
        one = part(inputs, case.n, t, t + 1)
        one |= {"q": one["q"][:, 0], "g": one["g"][:, 0]}
        out = deltaproduct.step(**one, state=state, use_qk_l2norm=True)
        assert relative_error(out, o[:, t]) <= 1e-12
    assert relative_error(state, final_state) <= 1e-12
    rows = [inputs[name] for name in ("k", "v", "g", "beta")]
    A, M = deltaproduct.state_map(*rows, case.n, use_k_l2norm=True)
    assert relative_error(A @ inputs["initial_state"] + M, final_state) <= 1e-12


# ---- packed sequences ----

BOUNDS = ([0, 30], [0, 0, 7, 8, 72, 72, 100], [0, 64, 128], [0], [0, 3, 3], list(range(40)))


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_packed_sequences_are_separate_calls(bounds, index, isa):
    T = bounds[-1] + 5
    case = Case(T=T, n=2, B=1, K=16, V=12, g="random", l2norm=True)
    inputs = case.inputs()
    N = len(bounds) - 1
    inputs["initial_state"] = torch.randn(N, case.H, case.K, case.V)
    grad_o, _ = case.upstream()
    grad_final = torch.randn(N, case.H, case.K, case.V)
    # What comes after the last sequence takes no part.
    inputs["q"][:, bounds[-1] + 1 :] = torch.nan
    inputs["v"][:, -1] = torch.inf
    cu_seqlens = torch.tensor(bounds, dtype=index)
    got = run(
        deltaproduct.scan, inputs, (grad_o, grad_final), **case.options, cu_seqlens=cu_seqlens
    )
    assert (got["o"][:, bounds[-1] :] == 0).all()
    for name, rows in (("q", 1), ("k", case.n), ("v", case.n), ("beta", case.n), ("g", 1)):
        assert (got[f"d{name}"][:, bounds[-1] * rows :] == 0).all()
    for s, (start, end) in enumerate(itertools.pairwise(bounds)):
        one = part(inputs, case.n, start, end)
        one["initial_state"] = inputs["initial_state"][s : s + 1]
        upstream = grad_o[:, start:end], grad_final[s : s + 1]
        want = run(deltaproduct.scan, one, upstream, **case.options)
        found = {
            f"d{name}": x
            for name, x in part(
                {name: got.get(f"d{name}") for name in one}, case.n, start, end
            ).items()
        }
        found |= {"o": got["o"][:, start:end], "final_state": got["final_state"][s : s + 1]}
        found["dinitial_state"] = got["dinitial_state"][s : s + 1]
        check_close(found, want, case.tolerances)


# ---- isolation ----


@pytest.mark.parametrize("name", ["q", "k", "v", "g", "beta", "initial_state"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_stays_in_its_head_and_sequence(name, bad, isa):
    case = Case(T=70, n=2, B=3, Hk=3, H=3, K=20, V=36)
    clean = case.inputs()
    want = run(deltaproduct.scan, clean, case.upstream(), **case.options)
    spoiled = {key: x.clone() for key, x in clean.items()}
    if name == "initial_state":
        spoiled[name][1, 1] = bad
    else:
        spoiled[name][1, :, 1] = bad
    got = run(deltaproduct.scan, spoiled, case.upstream(), **case.options)
    for key, x in want.items():
        heads = 1 if key.endswith("state") else 2
        others = torch.ones(3, 3, dtype=torch.bool)
        others[1, 1] = False
        a, b = (y.movedim(heads, 1)[others] for y in (got[key], x))
        assert house.same_bits(a, b), key
    if name != "g":
        assert not got["o"][1, :, 1].isfinite().all()


def test_nan_stays_in_its_packed_sequence(isa):
    case = Case(T=60, n=2, B=1, g=None)
    inputs = case.inputs() | {"initial_state": None}
    cu_seqlens = torch.tensor([0, 20, 41, 60])
    grad_final = torch.ones(3, case.H, case.K, case.V)
    upstream = case.upstream()[0], grad_final
    options = case.options | {"cu_seqlens": cu_seqlens}
    want = run(deltaproduct.scan, inputs, upstream, **options)
    inputs["v"][:, 60] = torch.nan
    got = run(deltaproduct.scan, inputs, upstream, **options)
    for key in ("o", "dq", "dk"):
        rows = case.n if key == "dk" else 1
        clean = torch.ones(60 * rows, dtype=torch.bool)
        clean[20 * rows : 41 * rows] = False
        assert house.same_bits(got[key][:, clean], want[key][:, clean])
    assert house.same_bits(got["final_state"][[0, 2]], want["final_state"][[0, 2]])


def test_a_reset_hides_what_was_before():
    # exp(-inf) = 0 forgets a finite state entirely, however large.
    case = Case(T=30, g="reset", initial=1e30)
    inputs = case.inputs()
    o, state = deltaproduct.scan(**inputs, **case.options)
    later = part(inputs, case.n, 15, 30)
    o_later, state_later = deltaproduct.scan(**later, **case.options)
    assert relative_error(o[:, 15:], o_later) <= 5e-6
    assert relative_error(state, state_later) <= 5e-6


# ---- determinism, memory ----


@named(
    [
        Case(T=150, n=2, B=1, Hk=1, H=1, K=64, V=100),
        Case(T=70, n=3, B=3, Hk=2, H=4, K=20, V=40, l2norm=True),
        Case(T=70, n=1, B=2, dtype=BF16, beta="one"),
    ]
)
def test_the_same_bits_every_time(case, isa):
    first = run(deltaproduct.scan, case.inputs(), case.upstream(), **case.options)
    for count in (1, 2, 3, 7):
        with house.threads(count):
            again = run(deltaproduct.scan, case.inputs(), case.upstream(), **case.options)
            for name, x in first.items():
                assert house.same_bits(again[name], x), name


def test_packed_sequences_give_the_same_bits_on_threads(isa):
    case = Case(T=200, n=2, B=1, Hk=1, H=1)
    inputs = case.inputs() | {"initial_state": None}
    cu_seqlens = torch.arange(0, 201, 5)
    upstream = case.upstream()[0], torch.ones(40, 1, case.K, case.V)
    results = []
    for count in (1, 2, 5):
        with house.threads(count):
            results.append(
                run(deltaproduct.scan, inputs, upstream, **case.options, cu_seqlens=cu_seqlens)
            )
    for other in results[1:]:
        for name, x in results[0].items():
            assert house.same_bits(other[name], x), name


def test_without_gradients_the_same_bits():
    case = Case(T=70, n=2)
    recorded = run(deltaproduct.scan, case.inputs(), case.upstream(), **case.options)
    with torch.no_grad():
        o, state = deltaproduct.scan(**case.inputs(), **case.options)
    assert house.same_bits(o, recorded["o"])
    assert house.same_bits(state, recorded["final_state"])


def test_offsets_beyond_32_bits():
    """Strides of 2^30 elements, in memory of which only the touched pages exist."""
    stride = 2**30 + 64
    space = mmap.mmap(-1, 2 * (3 * stride + 64))
    case = Case(T=3, n=1, B=1, H=1, dtype=BF16, beta="one", g=None, l2norm=True)
    inputs = case.inputs()
    far = torch.frombuffer(space, dtype=BF16).as_strided(inputs["v"].shape, (0, stride, 0, 1))
    far.copy_(inputs["v"])
    want = deltaproduct.scan(**inputs, **case.options)
    got = deltaproduct.scan(**inputs | {"v": far}, **case.options)
    for a, b in zip(got, want, strict=True):
        assert house.same_bits(a, b)
