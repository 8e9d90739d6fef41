"""GauntTensorProduct and GauntPower, alone and in the place of e3nn's modules."""

import copy

import house
import pytest
import torch
from gaunt_cases import LAYOUTS, dim, normals, rotation, signals

import nnkernels.nn
from nnkernels import gaunt


def filled(module):
    """The module in float64 with random weights."""
    module = module.double()
    with torch.no_grad():
        for index, weight in enumerate(module.parameters()):
            weight.copy_(normals(*weight.shape, seed=40 + index))
    return module


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["even", "cross"])
def test_tensor_product(kind, layout):
    options = {"channels": 4, "kind": kind, "normalization": "component", "layout": layout}
    layer = filled(gaunt.GauntTensorProduct(2, 1, 3, **options))
    x, y = (signals(L, 5, 4, seed=L, layout=layout) for L in (2, 1))
    function = gaunt.product if kind == "even" else gaunt.cross
    got = layer(x, y)
    expected = function(
        x, y, 2, 1, 3, layer.w1, layer.w2, layer.w3, normalization="component", layout=layout
    )
    assert house.same_bits(got.detach(), expected.detach())
    gradients = torch.autograd.grad(got.square().sum(), list(layer.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_tensor_product_without_weights_or_channels():
    x, y = signals(2, 5), signals(1, 5, seed=1)
    plain = gaunt.GauntTensorProduct(2, 1, 3, weighted=False)
    assert list(plain.parameters()) == []
    assert house.same_bits(plain(x, y), gaunt.product(x, y, 2, 1, 3))
    shared = gaunt.GauntTensorProduct(2, 1, 3).double()
    assert shared.w1.shape == (3,)
    assert torch.equal(shared(x, y), plain(x, y))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kinds", [None, 3])
def test_power(kinds, layout):
    options = {"order": 3, "channels": 4, "kinds": kinds, "layout": layout}
    layer = filled(gaunt.GauntPower(2, 1, **options))
    x = signals(2, 5, 4, layout=layout)
    kind = None if kinds is None else torch.tensor([0, 2, 1, 1, 0])
    got = layer(x, kind)
    weight = layer.weight if kind is None else layer.weight[kind]
    along = -1 if layout == "mul_ir" else -2
    weight = weight.index_select(along, torch.tensor([0, 1, 1, 1]))
    terms = [gaunt.power(x, n, 2, 1, layout=layout) for n in (1, 2, 3)]
    expected = sum(weight[..., n, :, :] * term for n, term in enumerate(terms))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


def test_modules_commute_with_rotations():
    turn = {L: rotation(L) for L in (1, 2, 3)}
    product = filled(gaunt.GauntTensorProduct(2, 1, 3, channels=4))
    power = filled(gaunt.GauntPower(3, 2, order=3, channels=4))
    x, y = signals(2, 5, 4), signals(1, 5, 1, seed=1)
    out = power(product(x, y))
    turned = power(product(x @ turn[2].mT, y @ turn[1].mT))
    expected = out @ turn[2].mT
    assert (turned - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize(
    "module",
    [gaunt.GauntTensorProduct(2, 1, 3, channels=4), gaunt.GauntPower(2, 1, order=2, channels=4)],
    ids=lambda module: type(module).__name__,
)
def test_state(module):
    filled(module)
    state = module.state_dict()
    # Tables are no state.
    assert set(state) == {name for name, _ in module.named_parameters()}
    other = copy.deepcopy(module)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    other.load_state_dict(state)
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert type(module).__name__ in repr(module)
    assert getattr(nnkernels.nn, type(module).__name__) is type(module)


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (ValueError, "L1=25: degree out of range", lambda: gaunt.GauntTensorProduct(25, 1, 1)),
        (TypeError, "L2 must be an int", lambda: gaunt.GauntTensorProduct(1, 1.0, 1)),
        (ValueError, "kind must be", lambda: gaunt.GauntTensorProduct(1, 1, 1, kind="both")),
        (ValueError, "layout must be", lambda: gaunt.GauntTensorProduct(1, 1, 1, layout="x")),
        (ValueError, "needs channels", lambda: gaunt.GauntTensorProduct(1, 1, 1, layout="ir_mul")),
        (ValueError, "channels must be", lambda: gaunt.GauntTensorProduct(1, 1, 1, channels=0)),
        (TypeError, "weighted must be", lambda: gaunt.GauntTensorProduct(1, 1, 1, weighted=1)),
        (ValueError, "order must be in", lambda: gaunt.GauntPower(1, 1, order=7, channels=1)),
        (ValueError, "sum to 97", lambda: gaunt.GauntPower(24, 1, order=4, channels=1)),
        (TypeError, "kinds must be an int", lambda: gaunt.GauntPower(1, 1, order=2, channels=1,
                                                                      kinds=1.5)),
    ],
)  # fmt: skip
def test_bad_arguments(error, message, make):
    with pytest.raises(error, match=f"^Gaunt.*: .*{message}"):
        make()


def test_kinds_are_asked_for():
    x = signals(1, 5, 4)
    with pytest.raises(ValueError, match=r"^GauntPower: expected kind, one of 3"):
        gaunt.GauntPower(1, 1, order=2, channels=4, kinds=3)(x)
    with pytest.raises(ValueError, match=r"^GauntPower: expected no kind"):
        gaunt.GauntPower(1, 1, order=2, channels=4)(x, torch.zeros(5).long())


def test_takes_the_place_of_e3nn():
    """The swap that docs/gaunt.md shows: a FullTensorProduct of one channel, its even paths."""
    o3 = pytest.importorskip("e3nn.o3", reason="e3nn is not installed")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        irreps = o3.Irreps.spherical_harmonics(2)
        full = o3.FullTensorProduct(irreps, irreps)
        x, y = signals(2, 7), signals(2, 7, seed=1)
        theirs = full(x, y)
    finally:
        torch.set_default_dtype(before)
    z = gaunt.product(x, y, 2, 2, 4)
    # e3nn keeps every path apart; the product sums those of one degree with its constants.
    expected = torch.zeros(7, dim(4), dtype=torch.float64)
    for instruction in full.instructions:
        l1, l2 = irreps[instruction.i_in1].ir.l, irreps[instruction.i_in2].ir.l
        ir_out = full.irreps_out[instruction.i_out].ir
        if (l1 + l2 + ir_out.l) % 2:
            continue
        value = theirs[:, full.irreps_out.slices()[instruction.i_out]]
        # "component" normalization: e3nn's path is sqrt(2 l + 1) times the 3j tensor.
        constant = gaunt.reference.path_constant(l1, l2, ir_out.l) / (2 * ir_out.l + 1) ** 0.5
        expected[:, ir_out.l**2 : (ir_out.l + 1) ** 2] += constant * value
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-12)
