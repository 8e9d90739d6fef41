"""HCLT: how it is made, what it stores, and how it freezes."""

import copy
import doctest
import itertools
import sys

import house
import numpy as np
import pytest
import torch
from pc_cases import FP32, FP64, NAMES, Case, close_ll, generator
from safetensors.torch import load_file, save_file

import nnkernels
from nnkernels import pc
from nnkernels.pc import (
    ArgumentError,
    ModelError,
    ShapeError,
    StructureError,
    SymbolRangeError,
    reference,
)


def model_of(case) -> pc.HCLT:
    parameters = case.parameters()
    return pc.HCLT(*(parameters[name] for name in ("parent", *NAMES)))


# ---- made from parameters ----


@pytest.mark.parametrize("dtype", [FP32, FP64])
def test_attributes(dtype):
    case = Case(D=6, h=3, K=4, dtype=dtype)
    parameters = case.parameters()
    model = model_of(case)
    assert nnkernels.nn.HCLT is pc.HCLT
    assert (model.D, model.h, model.K) == (6, 3, 4)
    for name, value in parameters.items():
        own = getattr(model, name)
        assert house.same_bits(own, value)
        assert own.data_ptr() != value.data_ptr()
        assert own.requires_grad == (name in NAMES)
    assert set(model.state_dict()) == {"pi", "A", "B", "parent", "order"}
    assert repr(model) == "HCLT(D=6, h=3, K=4)"


def test_state_dict_round_trip(tmp_path):
    model, other = (model_of(Case(D=6, h=3, K=4, seed=seed)) for seed in (0, 1))
    x = Case(D=6, K=4).data()
    assert not house.same_bits(model(x), other(x))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert house.same_bits(model(x), other(x))
    assert house.same_bits(copy.deepcopy(model)(x), model(x))


def test_dtypes_of_a_module():
    model = model_of(Case(D=6, h=3, K=4))
    x = Case(D=6, K=4).data()
    want = model.log_prob(x)
    wide = copy.deepcopy(model).double()
    assert wide.parent.dtype == torch.int64
    close_ll(want, wide.log_prob(x).float(), 1e-5)


def test_log_prob(isa):
    case = Case(D=30, h=12, K=9, N=400, missing=0.2)
    inputs = case.inputs()
    model = model_of(case)
    want = reference.forward(**inputs)[0]
    ll = model.log_prob(inputs["x"], inputs["mask"])
    assert ll.requires_grad
    close_ll(ll.detach(), want, 1e-5)
    assert house.same_bits(model(inputs["x"], inputs["mask"]), ll)
    with torch.no_grad():
        assert house.same_bits(model.log_prob(inputs["x"], inputs["mask"]), ll)
        assert model.log_prob(inputs["x"][:0]).shape == (0,)
        # One mask for all samples, broadcast.
        everywhere = inputs["mask"][:1].expand(400, -1)
        close_ll(
            model.log_prob(inputs["x"], everywhere),
            reference.forward(**inputs | {"mask": everywhere})[0],
            1e-5,
        )


def test_gradient_descent():
    # Through a softmax, as one would train by gradients.
    case = Case(D=5, h=3, K=3, N=40)
    parameters, x = case.parameters(), case.data()
    tree = parameters["parent"], parameters["order"]
    logits = [parameters[name].log().requires_grad_() for name in NAMES]
    optimizer = torch.optim.Adam(logits, lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = -pc.forward(x, *(value.softmax(-1) for value in logits), *tree)[0].mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"pi": torch.tensor([0.5, 0.6])}, ModelError, r"pi sums to 1.1, expected prob"),
        ({"pi": torch.tensor([1.5, -0.5])}, ModelError, r"pi holds -0.5"),
        ({"pi": torch.tensor([1.0, torch.nan])}, ModelError, r"pi holds a value that is not fin"),
        ({"pi": torch.tensor([1.0, torch.inf])}, ModelError, r"pi holds a value that is not fin"),
        ({"pi": torch.ones(1, 2) / 2}, ShapeError, r"pi is \[1, 2\], expected \[h\]"),
        ({"pi": torch.ones(2, dtype=FP64) / 2}, TypeError, r"A has dtype float32"),
        ({"pi": torch.ones(3) / 3}, ShapeError, r"A is \[3, 2, 2\], expected \[D=3, h=3, h=3\]"),
        ({"pi": [0.5, 0.5]}, TypeError, r"pi must be a tensor, got list"),
        ({"A": torch.full((3, 2, 2), 0.4)}, ModelError, r"A, variable=1, state=0 sums to 0.8"),
        ({"A": torch.full((2, 2, 2), 0.5)}, ShapeError, r"A is \[2, 2, 2\]"),
        ({"B": torch.zeros(3, 2, 4)}, ModelError, r"B, variable=0, state=0 sums to 0"),
        ({"B": torch.zeros(3, 2, 0)}, ArgumentError, r"K is 0, expected 1 to 4096"),
        ({"B": torch.zeros(3, 2, 4097)}, ArgumentError, r"K is 4097"),
        ({"B": torch.zeros(3, 3, 4)}, ShapeError, r"B is \[3, 3, 4\], expected \[D=3, h=2, K=4\]"),
        ({"B": torch.zeros(0, 2, 4)}, ArgumentError, r"D is 0"),
        ({"B": torch.zeros(3, 2)}, ShapeError, r"B is \[3, 2\], expected \[D, h, K\]"),
        ({"pi": torch.ones(0)}, ArgumentError, r"h is 0, expected 1 to 256"),
        ({"pi": torch.ones(257)}, ArgumentError, r"h is 257"),
        ({"parent": torch.tensor([-1, 0])}, ShapeError, r"parent is \[2\], expected \[D=3\]"),
        ({"parent": torch.tensor([-1, 2, 1])}, StructureError, r"node 1 does not reach the root"),
        ({"parent": torch.tensor([-1, -1, 0])}, StructureError, r"nodes 0 and 1 both"),
        ({"parent": torch.tensor([-1, 7, 0])}, StructureError, r"node 1 has parent 7"),
    ],
)
def test_bad_parameters(changes, error, message):
    given = {"parent": torch.tensor([-1, 0, 0]), "pi": torch.ones(2) / 2}
    given |= {"A": torch.full((3, 2, 2), 0.5), "B": torch.full((3, 2, 4), 0.25)}
    pc.HCLT(**given)
    with pytest.raises(error, match=message):
        pc.HCLT(**given | changes)


def test_sums_may_be_a_little_off_and_zeros_are_legal():
    given = {"parent": torch.tensor([-1]), "A": torch.full((1, 2, 2), torch.nan)}
    given["B"] = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    pc.HCLT(**given, pi=torch.tensor([0.5, 0.50009]))
    with pytest.raises(ModelError, match=r"pi sums to 1.0002"):
        pc.HCLT(**given, pi=torch.tensor([0.5, 0.5002]))


# ---- made from data ----


def test_from_data():
    case = Case(D=6, h=5, K=7, N=100)
    x = case.data()
    model = pc.HCLT.from_data(x, 5, seed=3)
    assert (model.D, model.h, model.K) == (6, 5, int(x.max()) + 1)
    assert torch.equal(model.parent, pc.structure.learn(x, 7, seed=3).parent)
    assert torch.equal(model.order, pc.coding_order(model.parent))
    assert (model.pi == 1 / 5).all()
    for value in (model.A, model.B):
        assert ((value.double().sum(-1) - 1).abs() <= 1e-6).all()
        assert (value > 0).all()
    # Rows of A are within 0.2 to 1 of each other, those of B near the marginals.
    assert (model.A.amax(-1) <= 5 * model.A.amin(-1)).all()
    torch.manual_seed(5)
    again = pc.HCLT.from_data(x, 5, seed=3)
    other = pc.HCLT.from_data(x, 5, seed=4)
    for name in ("A", "B"):
        assert house.same_bits(getattr(again, name), getattr(model, name))
        assert not house.same_bits(getattr(other, name), getattr(model, name))


def test_initial_symbols_follow_the_marginals():
    x = torch.zeros(1000, 2, dtype=torch.uint8)
    x[:250, 0] = 1
    x[0, 1] = 3
    model = pc.HCLT.from_data(x, 64)
    mean = model.B.detach().double().mean(1)
    np.testing.assert_allclose(mean[0, :2], [0.75, 0.25], atol=0.05)
    assert mean[1, 0] > 0.99
    assert (mean[1, 1:3] < 2e-3).all()


@pytest.mark.parametrize("dtype", [FP32, FP64])
def test_options_of_from_data(dtype):
    x = Case(D=4, K=7, N=100).data()
    parent = pc.chain(4).parent
    model = pc.HCLT.from_data(x, 2, K=300, parent=parent, dtype=dtype)
    assert model.K == 300
    assert model.B.dtype == dtype
    assert torch.equal(model.parent, parent)
    some = pc.HCLT.from_data(x.to(torch.int16), 2, bins=2)
    assert torch.equal(some.parent, pc.structure.learn(x, 7, bins=2).parent)


def test_clusters():
    """Three clusters of samples are told apart before any training."""
    draw = generator(1)
    centres = torch.randint(8, (3, 10), generator=draw)
    kind = torch.randint(3, (500,), generator=draw)
    x = (centres[kind] + torch.randint(2, (500, 10), generator=draw)).to(torch.uint8)
    ll = {}
    for init in ("random", "clusters"):
        model = pc.HCLT.from_data(x, 6, seed=2, init=init)
        for name in NAMES:
            value = getattr(model, name).detach()
            assert (value > 0).all()
            assert ((value.double().sum(-1) - 1).abs() <= 1e-6).all()
        ll[init] = model.log_prob(x).mean().item()
        again = pc.HCLT.from_data(x, 6, seed=2, init=init)
        assert house.same_bits(again.B, model.B)
        assert torch.equal(again.parent, model.parent)
    # Nats; the states of parent and child confused would gain 1.3, not 4.9.
    assert ll["clusters"] > ll["random"] + 3
    with pytest.raises(ValueError, match=r"^HCLT.from_data: init must be one of 'random', 'clust"):
        pc.HCLT.from_data(x, 6, init="zeros")
    with pytest.raises(ShapeError, match=r"^HCLT.from_data: parent is \[3\], expected \[D=10\]"):
        pc.HCLT.from_data(x, 6, init="clusters", parent=pc.chain(3).parent)


@pytest.mark.parametrize("init", ["random", "clusters"])
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (5, 1), (1, 4)], ids=str)
def test_small_data(shape, init):
    x = torch.zeros(shape, dtype=torch.uint8)
    model = pc.HCLT.from_data(x, 2, init=init)
    assert model.K == 1
    if shape[0] > 0:
        model.fit(x, epochs=2)
        assert (model.log_prob(x).abs() <= 1e-6).all()


def test_constant_columns():
    x = Case(D=8, K=4, N=200).data()
    x[:, 2] = 3
    x[:, 5] = 0
    model = pc.HCLT.from_data(x, 4)
    reports = model.fit(x, epochs=3, batch=64, pseudo_count=0)
    assert np.isfinite([report.train_bpd for report in reports]).all()
    assert model.log_prob(x).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"h": 0}, ArgumentError, "h is 0, expected 1 to 256"),
        ({"h": 257}, ArgumentError, "h is 257"),
        ({"h": 2.0}, TypeError, "h must be an int"),
        ({"K": 0}, ArgumentError, "K is 0"),
        ({"K": 5000}, ArgumentError, "K is 5000, expected 1 to 4096"),
        ({"K": 2}, SymbolRangeError, "sample 0, variable 1 is 2, expected 0 to 1"),
        ({"x": torch.ones(2, 3)}, SymbolRangeError, "x has dtype float32"),
        ({"x": torch.full((2, 3), torch.nan)}, SymbolRangeError, "sample 0, variable 0 is nan"),
        ({"x": torch.ones(2, 3).long()}, ShapeError, "x has dtype int64"),
        ({"x": torch.ones(2).byte()}, ShapeError, r"x is \[2\]"),
        ({"x": -torch.ones(2, 3).short()}, SymbolRangeError, "sample 0, variable 0 is -1"),
        ({"x": [[0, 1]]}, TypeError, "x must be a tensor, got list"),
        ({"parent": torch.tensor([1, -1, 0])}, None, ""),
        ({"parent": torch.tensor([1, 0, -1])}, StructureError, "node 0 does not reach"),
    ],
)
def test_bad_arguments_of_from_data(changes, error, message):
    given = {"x": torch.tensor([[0, 2, 1], [1, 1, 0]], dtype=torch.uint8), "h": 2} | changes
    if error is None:
        pc.HCLT.from_data(**given)
        return
    with pytest.raises(error, match=message):
        pc.HCLT.from_data(**given)


# ---- frozen ----


def plain_tables(values):
    """Frozen rows and their running sums, number by number."""
    rows = np.empty(values.shape, np.float32)
    sums = np.zeros((*values.shape[:-1], values.shape[-1] + 1), np.float32)
    for index in itertools.product(*map(range, values.shape[:-1])):
        row = [max(float(v), 2.0**-30) for v in values[index]]
        total = 0.0
        for v in row:
            total += v
        running = 0.0
        for k, v in enumerate(row):
            rows[(*index, k)] = np.float32(v / total)
            running += float(rows[(*index, k)])
            sums[(*index, k + 1)] = np.float32(min(np.float32(running), 1.0))
        sums[(*index, -1)] = 1
    return rows, sums


@pytest.mark.parametrize(
    "case",
    [
        Case(D=5, h=3, K=7, zeros=0.3),
        Case(D=5, h=3, K=7, dtype=FP64),
        Case(D=1, h=1, K=1),
        Case(D=3, h=2, K=300),
        Case(D=70, h=2, K=3),
    ],
    ids=str,
)
def test_freeze(case):
    model = model_of(case)
    before = {name: getattr(model, name).detach().clone() for name in NAMES}
    pi, A, B, C, parent, order = model.freeze().tables
    assert torch.equal(parent, model.parent)
    assert torch.equal(order, model.order)
    want_pi, _ = plain_tables(before["pi"].numpy()[None])
    want_B, want_C = plain_tables(before["B"].numpy())
    want_A, _ = plain_tables(before["A"].numpy())
    rest = [i for i in range(case.D) if i != order[0]]
    assert np.array_equal(pi.numpy(), want_pi[0])
    assert np.array_equal(A.numpy()[rest], want_A[rest])
    assert np.array_equal(B.numpy(), want_B)
    assert np.array_equal(C.numpy(), want_C)
    for table in (pi, A[rest], B):
        assert table.dtype == FP32
        assert (table >= 2.0**-31).all()
    assert (C[..., 0] == 0).all()
    assert (C[..., -1] == 1).all()
    assert (C.diff(dim=-1) >= 0).all()
    for name in NAMES:
        assert house.same_bits(getattr(model, name), before[name])


def test_frozen_likelihoods(isa):
    case = Case(D=20, h=6, K=9, N=50)
    model = model_of(case)
    pi, A, B, _, parent, order = model.freeze().tables
    ll, _ = pc.forward(case.data(), pi, A, B, parent, order)
    close_ll(ll, model.log_prob(case.data()).detach(), 1e-5)


def test_freezing_repairs_zeros():
    case = Case(D=4, h=3, K=5, N=40, zeros=0.5, seed=4)
    model = model_of(case)
    x = case.data()
    assert model.log_prob(x).isneginf().any()
    pi, A, B, _, parent, order = model.freeze().tables
    assert pc.forward(x, pi, A, B, parent, order)[0].isfinite().all()


def test_the_roots_rows_do_not_change_the_frozen_model():
    case = Case(D=4, h=3, K=5)
    model = model_of(case)
    want = model.freeze().model_id
    with torch.no_grad():
        model.A[model.order[0]] = torch.rand(3, 3, generator=generator(0))
    assert model.freeze().model_id == want
    with torch.no_grad():
        model.B[0, 0] = torch.tensor([0.2] * 5)
    assert model.freeze().model_id != want


@pytest.mark.parametrize(("value", "message"), [(torch.nan, "not finite"), (-0.5, "holds -0.5")])
def test_freezing_does_not_repair_the_rest(value, message):
    model = model_of(Case(D=4, h=3, K=5))
    with torch.no_grad():
        model.B[2, 1, 0] = value
    with pytest.raises(ModelError, match=rf"^HCLT.freeze: B, variable=2, state=1 .*{message}"):
        model.freeze()


@pytest.mark.parametrize("documented", ["ops", "module"])
def test_examples_in_docstrings(documented):
    result = doctest.testmod(sys.modules[f"nnkernels.pc.{documented}"])
    assert result.attempted > 0
    assert result.failed == 0
