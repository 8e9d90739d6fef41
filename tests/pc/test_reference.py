"""The reference against the definition, by hand and by enumeration."""

import doctest
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pc_cases import FP64, Case, close_ll, relative_error

from nnkernels.pc import reference, structure

TINY = [
    Case(D=1, h=3, K=4, N=4, dtype=FP64),
    Case(D=2, h=2, K=3, N=6, dtype=FP64, missing=0.3),
    Case(D=4, h=3, K=2, N=9, dtype=FP64),
    Case(D=4, h=1, K=5, N=7, dtype=FP64, missing=0.5),
    Case(D=5, h=2, K=3, N=9, tree="chain", dtype=FP64, zeros=0.3, seed=2),
    Case(D=5, h=2, K=3, N=9, tree="star", dtype=FP64, zeros=0.3, missing=0.2),
    Case(D=3, h=4, K=1, N=3, dtype=FP64),
]
tiny = pytest.mark.parametrize("case", TINY, ids=str)


def test_by_hand():
    # A coin whose bias is hidden, seen twice: 0.6 (0.9, 0.1) and 0.4 (0.2, 0.8).
    pi = torch.tensor([0.6, 0.4], dtype=FP64)
    A = torch.eye(2, dtype=FP64).expand(2, 2, 2)
    B = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=FP64).expand(2, 2, 2)
    tree = structure.chain(2)
    x = torch.tensor([[0, 0], [0, 1], [1, 1]], dtype=torch.uint8)
    want = torch.tensor([0.6 * 0.81 + 0.4 * 0.04, 0.6 * 0.09 + 0.4 * 0.16, 0.006 + 0.4 * 0.64])
    ll, _ = reference.forward(x, pi, A, B, *tree)
    torch.testing.assert_close(ll.exp(), want.double(), rtol=1e-7, atol=0)
    _, cnt_pi, _, cnt_B = reference.flows(x[:1], pi, A, B, *tree)
    share = 0.6 * 0.81 / (0.6 * 0.81 + 0.4 * 0.04)
    torch.testing.assert_close(cnt_pi, torch.tensor([share, 1 - share], dtype=FP64))
    torch.testing.assert_close(cnt_B[1][:, 0], cnt_pi)
    assert (cnt_B[1][:, 1] == 0).all()
    first, second = (reference.conditional(x[:1], pi, A, B, *tree, i).exp() for i in (0, 1))
    torch.testing.assert_close(first, torch.tensor([[0.62, 0.38]], dtype=FP64))
    torch.testing.assert_close(second[0, 0], want[0].double() / 0.62, rtol=1e-7, atol=0)


@tiny
def test_forward_is_the_sum_over_states(case):
    inputs = case.inputs()
    want = reference.enumerate_states(
        *(inputs[name] for name in ("x", "pi", "A", "B", "parent", "mask"))
    )
    ll, u = reference.forward(**inputs)
    close_ll(ll, want, 1e-13)
    assert u.shape == (case.D, case.N, case.h)
    top = u.amax(-1)
    assert ((top >= 0.5 - 1e-12) & (top <= 1) | (u == 0).all(-1)).all()


@tiny
def test_probabilities_sum_to_one(case):
    parameters = case.parameters()
    values = itertools.product(range(case.K), repeat=case.D)
    x = torch.tensor(list(values), dtype=torch.uint8)
    ll, _ = reference.forward(x, **parameters)
    assert abs(float(ll.exp().sum()) - 1) <= 1e-12
    everything = torch.ones(1, case.D, dtype=torch.bool)
    assert abs(float(reference.forward(x[:1], **parameters, mask=everything)[0])) <= 1e-12


@tiny
def test_gradients_are_differences_of_the_sum_over_states(case):
    """p(x) is linear in a parameter, so a difference quotient of p has no truncation error."""
    inputs = case.inputs()
    names = ("x", "pi", "A", "B", "parent", "mask")
    p = reference.enumerate_states(*(inputs[name] for name in names)).exp()
    weight = torch.where(p > 0, torch.linspace(1, 2, case.N, dtype=FP64), 0.0)
    found = reference.gradients(weight, **inputs)
    for name, gradient in zip(("pi", "A", "B"), found, strict=True):
        want = torch.zeros_like(gradient)
        for index in range(gradient.numel()):
            moved = inputs[name].clone()
            moved.view(-1)[index] += 1
            q = reference.enumerate_states(*((inputs | {name: moved})[key] for key in names)).exp()
            want.view(-1)[index] = (weight * (q - p) / torch.where(p > 0, p, 1.0)).sum()
        torch.testing.assert_close(gradient, want, rtol=1e-9, atol=1e-9)


@tiny
def test_flows_count_every_sample_at_every_variable(case):
    inputs = case.inputs()
    weights = torch.linspace(0.5, 2, case.N, dtype=FP64)
    ll, cnt_pi, cnt_A, cnt_B = reference.flows(**inputs, weights=weights)
    alive = ll.isfinite()
    total = weights[alive].sum()
    root = inputs["order"][0]
    assert relative_error(cnt_pi.sum(), total) <= 1e-12
    rest = torch.arange(case.D) != root
    assert relative_error(cnt_A[rest].sum((1, 2)), total.expand(case.D - 1)) <= 1e-12
    assert (cnt_A[root] == 0).all()
    seen = alive[:, None].expand(-1, case.D)
    if case.missing is not None:
        seen = seen & ~inputs["mask"]
    assert relative_error(cnt_B.sum((1, 2)), (weights[:, None] * seen).sum(0)) <= 1e-12


@tiny
def test_conditionals_chain_to_the_likelihood(case):
    inputs = case.inputs() | {"mask": None}
    x = inputs["x"]
    ll, _ = reference.forward(**inputs)
    parts = []
    for i in range(case.D):
        given = {name: inputs[name] for name in ("pi", "A", "B", "parent", "order")}
        conditional = reference.conditional(x, **given, i=i)
        alive = ll.isfinite()
        torch.testing.assert_close(
            conditional.exp().sum(1)[alive], torch.ones(int(alive.sum()), dtype=FP64)
        )
        parts.append(conditional.gather(1, x[:, i : i + 1].long())[:, 0])
    total = torch.stack(parts).sum(0)
    close_ll(torch.where(ll.isfinite(), total, ll), ll, 1e-12)


@given(st.integers(0, 1000))
def test_masks_marginalise(seed):
    case = Case(D=4, h=2, K=3, N=3, dtype=FP64, seed=seed)
    inputs = case.inputs()
    i = seed % case.D
    mask = torch.zeros(case.N, case.D, dtype=torch.bool)
    mask[:, i] = True
    total = torch.zeros(case.N, dtype=FP64)
    for v in range(case.K):
        x = inputs["x"].clone()
        x[:, i] = v
        total += reference.forward(**inputs | {"x": x})[0].exp()
    masked = inputs | {"mask": mask}
    masked["x"] = inputs["x"].clone()
    masked["x"][:, i] = 255
    assert relative_error(reference.forward(**masked)[0].exp(), total, ()) <= 1e-12


def test_posterior():
    case = Case(D=4, h=2, K=3, N=2, dtype=FP64)
    inputs = case.inputs()
    mask = torch.tensor([[False, True, False, True]]).expand(2, -1)
    given = {name: inputs[name] for name in ("x", "pi", "A", "B", "parent")}
    found = reference.posterior(**given, mask=mask)
    assert found.shape == (2, 9)
    # p(x_1, x_3 | rest) = p(all) / p(rest).
    ll = reference.forward(**inputs | {"mask": None})[0]
    rest = reference.forward(**inputs | {"mask": mask})[0]
    index = 3 * inputs["x"][:, 1].long() + inputs["x"][:, 3].long()
    torch.testing.assert_close(found.gather(1, index[:, None])[:, 0], (ll - rest).exp())


def test_bits_per_dimension():
    ll = torch.tensor([-2.0, -4.0, -math.inf]) * math.log(2)
    assert math.isclose(reference.bits_per_dimension(ll, 3), 1.0, rel_tol=1e-6)
    assert math.isnan(reference.bits_per_dimension(ll[2:], 3))


def test_examples_in_docstrings():
    result = doctest.testmod(reference)
    assert result.attempted > 0
    assert result.failed == 0
