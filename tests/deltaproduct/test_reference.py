"""The reference against closed forms, and its chunk form against its loop."""

import doctest
import itertools

import deltaproduct_cases
import pytest
import torch
from deltaproduct_cases import FP64, Case, part, relative_error
from hypothesis import given
from hypothesis import strategies as st

from nnkernels.deltaproduct import reference

SCANS = {"loop": reference.scan, "chunks": reference.chunk_scan}
scans = pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=FP64, generator=torch.Generator().manual_seed(seed))


def orthonormal(count, size):
    return torch.linalg.qr(draw(size, size))[0][:count]


def ones(*shape):
    return torch.ones(shape, dtype=FP64)


def close(a, b, bound=1e-13):
    assert relative_error(a, b) <= bound


def single(rows):
    """[rows, size] as one head of one sequence."""
    return rows[None, :, None]


def householder(k, beta):
    return torch.eye(len(k), dtype=FP64) - beta * torch.outer(k, k)


# ---- closed forms ----


@scans
def test_orthonormal_keys_store_their_values(scan):
    k, v = orthonormal(6, 8), draw(6, 5)
    q = single(k[[0, 0, 1, 3, 4, 2]])
    o, state = scan(
        q, single(k), single(v), None, ones(1, 6, 1), scale=1.0, output_final_state=True
    )
    close(o[0, :, 0], v[[0, 0, 1, 3, 4, 2]])
    close(state[0, 0], k.T @ v)


@scans
def test_scale_defaults_to_the_root_of_the_key_size(scan):
    k, v = orthonormal(3, 16), draw(3, 5)
    o, _ = scan(single(k), single(k), single(v), None, ones(1, 3, 1))
    close(o[0, :, 0], v / 4)


@scans
def test_one_key_written_again_forgets_its_value(scan):
    k, v = orthonormal(1, 8).expand(4, 8), draw(4, 5)
    o, _ = scan(single(k), single(k), single(v), None, ones(1, 4, 1), scale=1.0)
    close(o[0, :, 0], v)


@scans
def test_beta_two_is_a_product_of_reflections(scan):
    n, T = 3, 5
    k = torch.nn.functional.normalize(draw(T * n, 7), dim=-1)
    start = draw(1, 1, 7, 4)
    beta = 2 * ones(1, T * n, 1)
    o, state = scan(
        *(single(draw(T, 7)), single(k), single(torch.zeros(T * n, 4, dtype=FP64)), None, beta, n),
        initial_state=start,
        output_final_state=True,
    )
    want = start[0, 0]
    for row in k:
        want = householder(row, 2) @ want
    close(state[0, 0], want)
    # Reflections keep lengths.
    close(state[0, 0].norm(0), start[0, 0].norm(0))
    assert o.shape == (1, T, 1, 4)


@scans
def test_reflections_permute(scan):
    """The group S3: a transposition of basis vectors is one reflection, a 3-cycle two."""
    unit = torch.eye(3, dtype=FP64)

    def swap(a, b):
        return (unit[a] - unit[b]) / 2**0.5

    # A transposition, a cycle, another transposition: 012 -> 102 -> 120 -> 210 -> 201.
    k = torch.stack([swap(0, 1), unit[0], swap(1, 2), swap(0, 1), swap(1, 2), unit[0]])
    beta = torch.tensor([2, 0, 2, 2, 2, 0], dtype=FP64)[None, :, None]
    v = torch.zeros(6, 3, dtype=FP64)
    _, state = scan(
        *(single(draw(3, 3)), single(k), single(v), None, beta, 2),
        initial_state=unit[None, None],
        output_final_state=True,
    )
    close(state[0, 0] @ torch.arange(3, dtype=FP64), torch.tensor([2.0, 0.0, 1.0]))


@scans
def test_gates_decay_once_per_token(scan):
    g = -torch.rand(1, 6, 1, dtype=FP64)
    start = draw(1, 1, 4, 3)
    k, v = torch.zeros(1, 18, 1, 4, dtype=FP64), draw(1, 18, 1, 3)
    q = single(draw(6, 4))
    o, state = scan(
        q, k, v, g, ones(1, 18, 1), 3, scale=1.0, initial_state=start, output_final_state=True
    )
    close(state, g.sum().exp() * start)
    close(o[0, :, 0], g[0].cumsum(0).exp() * (q[0, :, 0] @ start[0, 0]))


@scans
def test_the_decay_precedes_the_error(scan):
    # One write of v = 0 along k: what it removes is the decayed state.
    start, k = draw(1, 1, 4, 3), orthonormal(1, 4)
    g = torch.full((1, 1, 1), -0.7, dtype=FP64)
    _, state = scan(
        *(single(k), single(k), torch.zeros(1, 1, 1, 3, dtype=FP64), g, ones(1, 1, 1)),
        initial_state=start,
        output_final_state=True,
    )
    close(state[0, 0], householder(k[0], 1) @ (g.exp() * start)[0, 0])


@scans
def test_beta_zero_does_nothing(scan):
    case = Case(beta=0.0, g=None, dtype=FP64)
    _, state = scan(**case.inputs(), **case.options)
    assert torch.equal(state, case.inputs()["initial_state"])


@scans
def test_minus_infinity_resets(scan):
    case = Case(T=40, g="reset", dtype=FP64)
    inputs = case.inputs()
    o, state = scan(**inputs, **case.options)
    o_later, state_later = scan(**part(inputs, case.n, 20, 40), **case.options)
    close(o[:, 20:], o_later)
    close(state, state_later)
    assert state.isfinite().all()


@scans
def test_value_heads_share_key_heads(scan):
    case = Case(Hk=2, H=6, dtype=FP64)
    inputs = case.inputs()
    o, state = scan(**inputs, **case.options)
    inputs |= {name: inputs[name].repeat_interleave(3, 2) for name in ("q", "k")}
    repeated, repeated_state = scan(**inputs, **case.options)
    close(o, repeated)
    close(state, repeated_state)


@scans
def test_l2norm(scan):
    case = Case(l2norm=True, dtype=FP64)
    inputs = case.inputs()
    inputs["k"][0, 3] = 0
    o, state = scan(**inputs, **case.options)
    for name in ("q", "k"):
        length = (inputs[name].square().sum(-1, keepdim=True) + 1e-6).sqrt()
        inputs[name] = inputs[name] / length
    given, given_state = scan(**inputs, **case.options | {"use_qk_l2norm": False})
    close(o, given)
    close(state, given_state)


@scans
def test_packed_sequences(scan):
    case = Case(T=30, B=1, n=2, dtype=FP64, g="random")
    inputs = case.inputs()
    bounds = [0, 0, 7, 8, 25, 25]
    inputs["initial_state"] = draw(5, case.H, case.K, case.V)
    o, states = scan(**inputs, **case.options, cu_seqlens=torch.tensor(bounds))
    for index, (start, end) in enumerate(itertools.pairwise(bounds)):
        one = part(inputs, case.n, start, end)
        first = inputs["initial_state"][index : index + 1]
        want, state = scan(**one, initial_state=first, **case.options)
        close(o[:, start:end], want)
        close(states[index], state[0])
    assert (o[:, 25:] == 0).all()


# ---- chunks, steps and maps against the loop ----


@pytest.mark.parametrize("g", [None, "random", "reset", -50.0])
@pytest.mark.parametrize("chunk", [1, 5, 16, 100])
def test_chunks_equal_the_loop(g, chunk):
    case = Case(T=37, n=3, K=8, V=6, Hk=1, H=2, g=g, dtype=FP64)
    want = deltaproduct_cases.expected(case)

    def chunks(**arguments):
        return reference.chunk_scan(**arguments, chunk=chunk)

    got = deltaproduct_cases.run(chunks, case.inputs(), case.upstream(), **case.options)
    for name, x in want.items():
        close(got[name], x)


def test_long_chunks_equal_the_loop():
    # What the oracle of long sequences rests on.
    case = Case(T=1000, n=2, K=4, V=4, B=1, H=1, g=None, beta=2.0, dtype=FP64)
    inputs = case.inputs()
    o, state = reference.scan(**inputs, **case.options)
    chunks, chunks_state = reference.chunk_scan(**inputs, **case.options)
    close(chunks, o, 1e-12)
    close(chunks_state, state, 1e-12)


@given(T=st.integers(0, 20), n=st.integers(1, 4), split=st.integers(0, 20), l2norm=st.booleans())
def test_a_sequence_may_be_split_anywhere(T, n, split, l2norm):
    case = Case(T=T, n=n, K=5, V=3, dtype=FP64, l2norm=l2norm)
    inputs, options = case.inputs(), case.options
    o, state = reference.scan(**inputs, **options)
    cut = min(split, T)
    first, second = part(inputs, n, 0, cut), part(inputs, n, cut, T)
    o1, state1 = reference.scan(**first, initial_state=inputs["initial_state"], **options)
    o2, state2 = reference.scan(**second, initial_state=state1, **options)
    assert torch.equal(torch.cat([o1, o2], 1), o)
    assert torch.equal(state2, state)
    maps = [
        reference.state_map(*(half[x] for x in ("k", "v", "g", "beta")), n, l2norm)
        for half in (second, first)
    ]
    A, M = reference.compose_state_maps(*maps[0], *maps[1])
    close(A @ inputs["initial_state"] + M, state)


def test_steps_equal_the_loop():
    case = Case(T=9, n=2, Hk=2, H=4, dtype=FP64, l2norm=True)
    x = case.inputs()
    o, want = reference.scan(**x, **case.options)
    state = x["initial_state"].clone()
    for t in range(case.T):
        one = part(x, case.n, t, t + 1)
        one |= {"q": one["q"][:, 0], "g": one["g"][:, 0]}
        close(reference.step(**one, state=state, use_qk_l2norm=True), o[:, t])
    close(state, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_of_results(dtype):
    case = Case(dtype=dtype)
    for scan in SCANS.values():
        o, state = scan(**case.inputs(), **case.options)
        assert (o.dtype, state.dtype) == (dtype, torch.float32)
    assert reference.scan(**case.inputs(), num_householder=case.n)[1] is None


@scans
def test_gradients_of_the_definition(scan):
    case = Case(T=3, n=2, K=3, V=2, B=1, H=2, dtype=FP64, l2norm=True)
    inputs = {name: x.requires_grad_() for name, x in case.inputs().items()}

    def function(*values):
        return scan(**dict(zip(inputs, values, strict=True)), **case.options)

    assert torch.autograd.gradcheck(function, tuple(inputs.values()))


def test_examples_in_docstrings():
    result = doctest.testmod(reference)
    assert result.attempted > 0
    assert result.failed == 0
