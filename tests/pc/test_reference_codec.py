"""The exact codec: its rounding, its conditionals against float64, its round trip."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pc_models
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnkernels.pc import CorruptError, reference_codec

SHAPES = [
    (1, 1, 2),
    (1, 3, 4),
    (2, 2, 3),
    (3, 5, 2),
    (5, 2, 16),
    (9, 4, 5),
    (17, 3, 3),
    (4, 2, 1),
]


def ids(shape):
    return "D{}-h{}-K{}".format(*shape)


normal = st.floats(min_value=2.0**-120, max_value=2.0**120)


@given(normal, normal)
def test_rounding_is_that_of_binary32(a, b):
    a, b = np.float32(a), np.float32(b)
    assert reference_codec.rounded(Fraction(float(a)) + Fraction(float(b))) == float(a + b)
    product = float(a) * float(b)
    if 2.0**-126 <= product < 2.0**127:
        assert reference_codec.rounded(Fraction(float(a)) * Fraction(float(b))) == float(a * b)
    with np.errstate(all="ignore"):
        quotient = a / b
    if 2.0**-126 <= quotient < 2.0**127:
        assert reference_codec.rounded(Fraction(float(a)) / Fraction(float(b))) == float(quotient)


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (Fraction((1 << 24) + 1), 1 << 24),
        (Fraction((1 << 24) + 3), (1 << 24) + 4),
        (Fraction((1 << 25) + 2), 1 << 25),
        (Fraction((1 << 25) - 1), 1 << 25),
        (Fraction(1, 3), Fraction(11184811, 1 << 25)),
    ],
)
def test_ties_go_to_even(value, want):
    assert reference_codec.rounded(value) == want


def test_a_dot_product_rounds_once_a_term():
    x = Fraction((1 << 12) + 1, 1 << 12)
    # x * x = 1 + 2^-11 + 2^-24, of which a rounded product keeps no 2^-24.
    found = reference_codec.dot([Fraction(1), x], [Fraction(-1), x])
    assert found == Fraction(1, 1 << 11) + Fraction(1, 1 << 24)


def test_the_cdf_stays_below_its_end_where_products_round_up():
    total = (1 << 24) - 2
    for odd in range(1, 200, 2):
        alpha = Fraction((1 << 24) - odd, 1 << 24)
        r = reference_codec.rounded(total / alpha)
        if int(reference_codec.rounded(alpha * r)) > total:
            break
    else:
        raise AssertionError("no product rounds up: this test tests nothing")
    one = [Fraction(1)]
    cdf = reference_codec.integer_cdf([alpha], [[Fraction(0)], one, one], 24)
    assert cdf == [0, total + 1, 1 << 24]


def conditionals(x, model):
    """p(x_i | coded before i) in coding order, float64, by marginals of the joint distribution."""
    pi, A, B, _C, parent, order = (table.double().tolist() for table in model)

    def marginal(known):
        """p(x[known]) by the upward pass with all other leaves summed out."""
        u = {}
        for i in reversed([int(i) for i in order]):
            u[i] = np.array([row[x[i]] if i in known else 1.0 for row in B[i]])
            for c in [int(c) for c in order if parent[int(c)] == i]:
                u[i] = u[i] * (np.array(A[c]) @ u[c])
        return float(np.array(pi) @ u[int(order[0])])

    known, before, found = set(), marginal(set()), []
    for i in order:
        known.add(int(i))
        now = marginal(known)
        found.append(now / before)
        before = now
    return found, before


@pytest.mark.parametrize("shape", SHAPES, ids=ids)
def test_widths_are_the_conditional_probabilities(shape):
    model = pc_models.tables(*shape, seed=3)
    x = pc_models.samples(3, model)
    for sample, row in zip(x.tolist(), reference_codec.intervals(x, model, 24), strict=True):
        want, likelihood = conditionals(sample, model)
        # Every symbol keeps a width of at least 1, K of 2^24 in all; sums round h times.
        for (_low, width), p in zip(row, want, strict=True):
            assert width / 2**24 == pytest.approx(p, rel=1e-5, abs=2 * shape[2] / 2**24)
        total = sum(math.log(width / 2**24) for _low, width in row)
        assert total == pytest.approx(math.log(likelihood), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("precision", [12, 20, 24])
def test_the_integer_cdf_is_a_partition(precision):
    model = pc_models.tables(3, 4, 16, seed=5)
    tables = reference_codec._Tables(model)

    def check(i, cdf):
        assert cdf[0] == 0
        assert cdf[-1] == 1 << precision
        assert all(low < high for low, high in itertools.pairwise(cdf))
        return 3

    reference_codec.walk(tables, precision, check)


@pytest.mark.parametrize("lanes", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=ids)
def test_round_trip(shape, lanes):
    model = pc_models.tables(*shape, seed=1)
    x = pc_models.samples(4, model)
    words = reference_codec.encode(x, model, lanes, 16)
    assert reference_codec.decode(words, len(x), model, 16) == x.tolist()
    if shape[2] == 1 or lanes == 5:
        # No symbols, or none worth a bit: the state alone.
        assert words[-1] == [0, 1]


def test_a_changed_word_is_noticed():
    model = pc_models.tables(5, 2, 16, seed=1)
    x = pc_models.samples(6, model)
    words = reference_codec.encode(x, model, 1, 16)
    for change in ([words[0][:-1]], [[*words[0], 0]], [[words[0][0] ^ 1, *words[0][1:]]]):
        with pytest.raises(CorruptError):
            reference_codec.decode(change, len(x), model, 16)


def test_a_dead_row_is_refused():
    with pytest.raises(CorruptError, match="died"):
        reference_codec.rescaled([Fraction(0), Fraction(0)])


def test_models_are_exact():
    _pi, A, B, C, parent, order = pc_models.tables(9, 4, 300, seed=2)
    assert torch.equal(C[..., -1], torch.ones(9, 4))
    assert torch.equal(B.double().cumsum(-1), C[..., 1:].double())
    assert torch.equal(A.double().sum(-1), torch.ones(9, 4, dtype=torch.float64))
    assert sorted(order.tolist()) == list(range(9))
    assert (parent == -1).sum() == 1
