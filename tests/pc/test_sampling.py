"""Samples have the distribution of the circuit, free and given some values."""

import functools
import itertools

import pytest
import torch
from pc_cases import FP64, NAMES, Case, generator

from nnkernels import pc
from nnkernels.pc import ArgumentError, ShapeError, SymbolRangeError, reference, sampling


def model_of(case) -> pc.HCLT:
    parameters = case.parameters()
    return pc.HCLT(*(parameters[name] for name in ("parent", *NAMES)))


def codes(x, K):
    """Every row as one number."""
    return (x.long() * K ** torch.arange(x.shape[1])).sum(1)


def check_frequencies(drawn, probabilities):
    """Counts within 5 standard deviations, and none of what is impossible."""
    counts = torch.bincount(drawn, minlength=len(probabilities)).double()
    n = len(drawn)
    deviation = (n * probabilities * (1 - probabilities)).sqrt()
    assert ((counts - n * probabilities).abs() <= 5 * deviation + 1e-9).all()


@functools.cache
def all_values(D, K):
    x = torch.tensor(list(itertools.product(range(K), repeat=D)), dtype=torch.uint8)
    return x[codes(x, K).argsort()]


CASES = [
    Case(D=1, h=3, K=4),
    Case(D=4, h=3, K=3, dtype=FP64),
    Case(D=5, h=2, K=2, tree="star", zeros=0.3),
    Case(D=4, h=2, K=3, tree="chain", zeros=0.3, seed=3),
    Case(D=3, h=1, K=1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_samples(case):
    model = model_of(case)
    x = model.sample(20_000, generator(1))
    assert x.dtype == torch.uint8
    assert x.shape == (20_000, case.D)
    values = all_values(case.D, case.K)
    given = [case.parameters()[name] for name in (*NAMES, "parent")]
    check_frequencies(codes(x, case.K), reference.enumerate_states(values, *given).exp())


@pytest.mark.parametrize("case", [c for c in CASES if c.D > 1], ids=str)
@pytest.mark.parametrize("missing", [(0,), (1, 2), (0, 2), "all"], ids=str)
def test_conditional_samples(case, missing):
    model = model_of(case)
    hidden = list(range(case.D)) if missing == "all" else list(missing)
    # Values that the circuit can have, since they are its samples.
    seen = model.sample(1, generator(5))
    mask = torch.zeros(1, case.D, dtype=torch.bool)
    mask[:, hidden] = True
    x, many = seen.expand(20_000, -1), mask.expand(20_000, -1)
    drawn = model.conditional_sample(x, many, generator(2))
    shown = [i for i in range(case.D) if i not in hidden]
    assert torch.equal(drawn[:, shown], x[:, shown])
    given = [case.parameters()[name] for name in (*NAMES, "parent")]
    # Its columns have the first missing variable as the highest digit.
    want = reference.posterior(seen, *given, mask=mask)[0]
    check_frequencies(codes(drawn[:, hidden].flip(1), case.K), want)


def test_nothing_missing_and_everything():
    model = model_of(Case(D=4, h=3, K=3))
    x = model.sample(50, generator(1))
    none = torch.zeros(50, 4, dtype=torch.bool)
    assert torch.equal(model.conditional_sample(x, none), x)
    before = x.clone()
    model.conditional_sample(x, ~none, generator(1))
    assert torch.equal(x, before)


def test_every_sample_has_its_own_mask():
    model = model_of(Case(D=6, h=3, K=5))
    x = model.sample(300, generator(1))
    mask = torch.rand(300, 6, generator=generator(2)) < 0.5
    drawn = model.conditional_sample(x, mask, generator(3))
    assert torch.equal(drawn[~mask], x[~mask])
    assert not torch.equal(drawn[mask], x[mask])


def test_what_is_missing_may_hold_anything():
    model = model_of(Case(D=6, h=3, K=5))
    x = model.sample(100, generator(1))
    mask = torch.rand(100, 6, generator=generator(2)) < 0.5
    spoiled = torch.where(mask, 255, x.int()).to(torch.uint8)
    a, b = (model.conditional_sample(y, mask, generator(3)) for y in (x, spoiled))
    assert torch.equal(a, b)


def test_generators():
    model = model_of(Case(D=6, h=3, K=5))
    assert torch.equal(model.sample(9, generator(1)), model.sample(9, generator(1)))
    assert not torch.equal(model.sample(9, generator(1)), model.sample(9, generator(2)))
    torch.manual_seed(0)
    first = model.sample(9)
    assert not torch.equal(model.sample(9), first)
    torch.manual_seed(0)
    assert torch.equal(model.sample(9), first)


def test_pieces(monkeypatch):
    model = model_of(Case(D=4, h=2, K=3))
    monkeypatch.setattr(sampling, "_PIECE", 1)
    assert len(sampling.pieces(300, 4, 2)) == 5
    x = model.sample(300, generator(1))
    mask = torch.zeros(300, 4, dtype=torch.bool)
    mask[:, 1] = True
    drawn = model.conditional_sample(x, mask, generator(3))
    assert drawn.shape == (300, 4)
    assert torch.equal(drawn[~mask], x[~mask])
    assert (drawn[64:] != x[64:]).any()


def test_dtypes_and_sizes():
    assert model_of(Case(D=2, K=257)).sample(3).dtype == torch.int16
    assert model_of(Case(D=2, K=256)).sample(0).shape == (0, 2)
    wide = model_of(Case(D=2, K=5))
    x = torch.zeros(3, 2, dtype=torch.int16)
    mask = torch.ones(3, 2, dtype=torch.bool)
    assert wide.conditional_sample(x, mask).dtype == torch.int16
    assert wide.conditional_sample(x[:0], mask[:0]).shape == (0, 2)


def test_zero_weights_are_never_chosen(monkeypatch):
    weights = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).expand(50_000, -1)
    chosen = sampling._choose(weights, generator(1))
    assert set(chosen.tolist()) == {1, 3}
    # The ends of the random numbers.
    for end in (0.0, 1 - 2.0**-53):
        monkeypatch.setattr(
            torch, "rand", lambda *size, end=end, **_: torch.full(size, end, dtype=FP64)
        )
        assert sampling._choose(weights[:1], None).item() == (1 if end == 0 else 3)
    monkeypatch.undo()
    tiny = torch.tensor([[0.0, 1e-300, 0.0]], dtype=FP64).expand(1000, -1)
    assert (sampling._choose(tiny, generator(1)) == 1).all()


def test_bad_arguments():
    model = model_of(Case(D=2, h=2, K=2))
    x = torch.zeros(3, 2, dtype=torch.uint8)
    mask = torch.zeros(3, 2, dtype=torch.bool)
    with pytest.raises(ArgumentError, match=r"^HCLT.sample: N is -1, expected at least 0"):
        model.sample(-1)
    with pytest.raises(TypeError, match=r"^HCLT.sample: N must be an int"):
        model.sample(2.0)
    with pytest.raises(TypeError, match=r"^HCLT.conditional_sample: mask must be a tensor"):
        model.conditional_sample(x, None)
    with pytest.raises(ShapeError, match=r"^HCLT.conditional_sample: mask is \[3, 1\]"):
        model.conditional_sample(x, mask[:, :1])
    with pytest.raises(SymbolRangeError, match=r"^HCLT.conditional_sample: sample 0, variable 0"):
        model.conditional_sample(x + 7, mask)
    with torch.no_grad():
        model.B[0] = torch.tensor([0.0, 1.0])
    x[:2, 0] = 1
    with pytest.raises(ArgumentError, match=r"sample 2 has probability 0 given its observed"):
        model.conditional_sample(x, mask)
