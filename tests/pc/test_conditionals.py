"""The codec's conditionals are those of the circuit: they chain to the likelihood."""

import math

import pytest
import torch
from pc_cases import NAMES, Case

from nnkernels import pc
from nnkernels.pc import reference

P = 24


def tables(case):
    parameters = case.parameters()
    return pc.HCLT(*(parameters[name] for name in ("parent", *NAMES))).freeze().tables


@pytest.mark.parametrize("h", [1, 2, 5, 16])
@pytest.mark.parametrize("D", [1, 2, 3, 17, 100])
@pytest.mark.parametrize("K", [2, 3, 256])
def test_conditionals_chain_to_the_likelihood(D, h, K):
    case = Case(D=D, h=h, K=K, N=6, seed=h)
    x, model = case.data(), tables(case)
    _, width = pc.intervals(x, model, P)
    assert (width >= 1).all()
    bits = (P - width.double().log2()).sum(1)
    pi, A, B, _, parent, order = model
    ll, _ = reference.forward(x, pi, A, B, parent, order)
    want = -ll / math.log(2)
    # A width is off by the K units that every value has for certain, and by rounding to an integer
    # and in float32: by so much at most, of what it is.
    units = (K * width / 2**P + 2 + width * 2.0**-18) / width
    assert ((bits - want).abs() <= (units / math.log(2)).sum(1) * 1.01).all()


@pytest.mark.parametrize(
    "case",
    [
        Case(D=1, h=3, K=4, N=3),
        Case(D=5, h=3, K=4, N=5),
        Case(D=6, h=16, K=7, N=4, tree="star"),
        Case(D=6, h=5, K=3, N=4, tree="chain"),
        Case(D=4, h=2, K=300, N=2),
        Case(D=7, h=9, K=2, N=5, seed=5),
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", [12, 20, 24])
def test_conditional_cdfs(case, precision, isa):
    if 2**precision < 4 * case.K:
        return
    x, model = case.data(), tables(case)
    pi, A, B, _, parent, order = model
    low, width = pc.intervals(x, model, precision)
    for place, i in enumerate(order.tolist()):
        cdf = pc.conditional_cdf(x, model, i, precision)
        assert cdf.shape == (case.N, case.K + 1)
        assert (cdf[:, 0] == 0).all()
        assert (cdf[:, -1] == 2**precision).all()
        assert (cdf.diff(dim=1) >= 1).all()
        # Every value has one unit, and the rest is shared by probability.
        sums = reference.conditional(x, pi, A, B, parent, order, i).exp().cumsum(1)
        exact = sums * (2**precision - case.K) + torch.arange(1, case.K + 1)
        error = (cdf[:, 1:] - exact).abs()
        assert (error <= 1 + 2.0**precision * 1e-6).all()
        symbol = x[:, i : i + 1].long()
        assert torch.equal(cdf.gather(1, symbol)[:, 0], low[:, place])
        assert torch.equal(
            (cdf.gather(1, symbol + 1) - cdf.gather(1, symbol))[:, 0], width[:, place]
        )
