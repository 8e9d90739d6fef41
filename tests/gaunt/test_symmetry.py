"""What the products must be by their nature: equivariant, pointwise, (anti)symmetric; and the same
as e3nn's."""

import math

import pytest
import torch
from gaunt_cases import (
    NORMALIZATIONS,
    dim,
    directions,
    inversion,
    normals,
    rotation,
    rotations,
    signals,
)

from nnkernels import gaunt
from nnkernels.gaunt import reference

DEGREES = [(1, 1, 2), (2, 3, 4), (4, 4, 4), (8, 8, 8), (8, 5, 10)]
dtypes = pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"]
)


def assert_close(got, expected, bound):
    assert (got.double() - expected.double()).abs().max() <= bound * expected.abs().max()


def turned(x, L, index):
    return (x.double() @ rotation(L, index).mT).to(x.dtype)


@dtypes
@pytest.mark.parametrize("kind", ["product", "cross"])
@pytest.mark.parametrize("degrees", DEGREES, ids=str)
def test_rotation(kind, degrees, dtype, bound):
    L1, L2, L3 = degrees
    function = getattr(gaunt, kind)
    x, y = signals(L1, 9, dtype=dtype), signals(L2, 9, seed=1, dtype=dtype)
    z = function(x, y, *degrees)
    for index in range(len(rotations())):
        got = function(turned(x, L1, index), turned(y, L2, index), *degrees)
        assert_close(got, turned(z, L3, index), bound)


@dtypes
def test_rotation_of_the_others(dtype, bound):
    x, y, v = (signals(L, 9, seed=L, dtype=dtype) for L in (2, 3, 1))
    weights = normals(len(gaunt.path_list(2, 3, 4, "both")), seed=3, dtype=dtype)
    for index in range(len(rotations())):
        a, b, c = turned(x, 2, index), turned(y, 3, index), turned(v, 1, index)
        for function, L in (
            (lambda x, y, v: gaunt.nfold([x, y, v], [2, 3, 1], 4), 4),
            (lambda x, y, v: gaunt.power(x, 4, 2, 3), 3),
            (lambda x, y, v: gaunt.paths(x, y, weights, 2, 3, 4, kind="both"), 4),
        ):
            assert_close(function(a, b, c), turned(function(x, y, v), L, index), bound)


def test_rotation_of_vector_signals():
    u, v = normals(5, 3, dim(2)), normals(5, 3, dim(3), seed=1)
    matrix = rotations()[0]

    def both(t, L):
        return torch.einsum("ij,njb,ab->nia", matrix, t, rotation(L))

    for kind in ("cross", "dot"):
        z = gaunt.vector_product(u, v, 2, 3, 4, kind=kind)
        got = gaunt.vector_product(both(u, 2), both(v, 3), 2, 3, 4, kind=kind)
        assert_close(got, turned(z, 4, 0) if kind == "dot" else both(z, 4), 1e-12)


@pytest.mark.parametrize("degrees", DEGREES, ids=str)
def test_inversion(degrees):
    L1, L2, L3 = degrees
    x, y = signals(L1, 5), signals(L2, 5, seed=1)
    inverted = x * inversion(L1), y * inversion(L2)
    even = gaunt.product(*inverted, *degrees)
    assert_close(even, gaunt.product(x, y, *degrees) * inversion(L3), 1e-13)
    # {f, g} is a pseudo-scalar field: it changes sign where f g does not.
    odd = gaunt.cross(*inverted, *degrees)
    assert_close(odd, -gaunt.cross(x, y, *degrees) * inversion(L3), 1e-13)


@pytest.mark.parametrize("degrees", [(2, 3), (4, 4), (8, 8), (0, 5)], ids=str)
def test_product_is_pointwise(degrees, isa):
    L1, L2 = degrees
    x, y, points = signals(L1, 5), signals(L2, 5, seed=1), directions(40)
    z = gaunt.product(x, y, L1, L2, L1 + L2)
    got = gaunt.to_grid(z, L1 + L2, points)
    expected = gaunt.to_grid(x, L1, points) * gaunt.to_grid(y, L2, points)
    assert_close(got, expected, 1e-13)


def test_symmetry(isa):
    x, y = signals(4, 5), signals(4, 5, seed=1)
    assert_close(gaunt.product(x, y, 4, 4, 6), gaunt.product(y, x, 4, 4, 6), 1e-14)
    assert_close(gaunt.cross(x, y, 4, 4, 6), -gaunt.cross(y, x, 4, 4, 6), 1e-14)
    x, y = signals(4, 5), signals(2, 5, seed=1)
    assert_close(gaunt.product(x, y, 4, 2, 6), gaunt.product(y, x, 2, 4, 6), 1e-14)
    scale = gaunt.cross(x, signals(4, 5, seed=2), 4, 4, 7).abs().max()
    assert gaunt.cross(x, x, 4, 4, 7).abs().max() <= 1e-14 * scale


def test_jacobi_identity(isa):
    f, g, h = (signals(3, 5, seed=seed) for seed in range(3))

    def bracket(a, b, c):
        return gaunt.cross(a, gaunt.cross(b, c, 3, 3, 5), 3, 5, 7)

    terms = bracket(f, g, h), bracket(g, h, f), bracket(h, f, g)
    assert sum(terms).abs().max() <= 1e-13 * terms[0].abs().max()


def test_leibniz_rule(isa):
    # {f, g h} = {f, g} h + g {f, h}
    f, g, h = (signals(2, 5, seed=seed) for seed in range(3))
    left = gaunt.cross(f, gaunt.product(g, h, 2, 2, 4), 2, 4, 5)
    right = gaunt.product(gaunt.cross(f, g, 2, 2, 3), h, 3, 2, 5)
    right = right + gaunt.product(g, gaunt.cross(f, h, 2, 2, 3), 2, 3, 5)
    assert_close(left, right, 1e-13)


@pytest.mark.parametrize("kind", ["product", "cross"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_normalizations_agree_after_conversion(kind, normalization, isa):
    # f = sum x_a c_l Y_a: the same signals have coefficients x / c.
    def constants(L):
        values = [reference.basis_constant(l, normalization) for l in range(L + 1)]
        repeats = torch.tensor([2 * l + 1 for l in range(L + 1)])
        return torch.tensor(values, dtype=torch.float64).repeat_interleave(repeats)

    function = getattr(gaunt, kind)
    x, y = signals(3, 5), signals(2, 5, seed=1)
    expected = function(x, y, 3, 2, 4) / constants(4)
    got = function(x / constants(3), y / constants(2), 3, 2, 4, normalization=normalization)
    assert_close(got, expected, 1e-13)


def test_derivative_of_a_rotated_energy_is_zero():
    # An invariant: the degree 0 of a product of three signals.
    x = signals(3, 1).requires_grad_()
    points = torch.linspace(0, 0.1, 2)
    energy = gaunt.nfold([x, x, x], [3, 3, 3], 0).sum()
    (gradient,) = torch.autograd.grad(energy, x)
    for axis in range(3):
        generator = torch.zeros(3, 3, dtype=torch.float64)
        generator[axis - 1, axis - 2], generator[axis - 2, axis - 1] = 1, -1
        angle = points[1].item() * 1e-2
        matrix = torch.matrix_exp(angle * generator)
        moved = x.detach() @ reference.rotation(3, matrix).mT
        slope = (gradient * (moved - x.detach())).sum() / angle
        assert abs(slope) <= 1e-2 * gradient.norm() * x.norm()


# ---- e3nn ----


@pytest.fixture
def double_tables():
    """e3nn makes its tables in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("kind", ["even", "cross"])
@pytest.mark.parametrize("degrees", [(2, 2, 2), (3, 2, 4), (4, 4, 4)], ids=str)
def test_agrees_with_e3nn(kind, degrees, double_tables):
    o3 = pytest.importorskip("e3nn.o3", reason="e3nn is not installed")
    L1, L2, L3 = degrees
    channels = 5
    listed = gaunt.path_list(*degrees, kind)
    irreps = [o3.Irreps([(channels, (l, (-1) ** l)) for l in range(L + 1)]) for L in (L1, L2)]
    out = o3.Irreps([(channels, (l3, (-1) ** (l1 + l2))) for l1, l2, l3 in listed])
    instructions = [(l1, l2, index, "uuu", False) for index, (l1, l2, _) in enumerate(listed)]
    theirs = o3.TensorProduct(
        *irreps,
        out,
        instructions,
        irrep_normalization="none",
        path_normalization="none",
    )
    x, y = signals(L1, 7, channels), signals(L2, 7, channels, seed=1)

    def flat(t, L):
        # [N, C, d] -> [N, C (2l + 1) for each l]
        blocks = [t[..., l**2 : (l + 1) ** 2].flatten(1) for l in range(L + 1)]
        return torch.cat(blocks, dim=1)

    result = theirs(flat(x, L1), flat(y, L2))
    z = torch.zeros(7, channels, dim(L3), dtype=torch.float64)
    at = 0
    for l1, l2, l3 in listed:
        size = channels * (2 * l3 + 1)
        value = result[:, at : at + size].view(7, channels, 2 * l3 + 1)
        # e3nn couples by the 3j tensor of norm 1.
        z[..., l3**2 : (l3 + 1) ** 2] += reference.path_constant(l1, l2, l3) * value
        at += size
    got = (gaunt.product if kind == "even" else gaunt.cross)(x, y, *degrees)
    assert_close(got, z, 1e-12)


def test_agrees_with_e3nn_grids(double_tables):
    pytest.importorskip("e3nn", reason="e3nn is not installed")
    from e3nn.o3 import FromS2Grid, ToS2Grid

    L, total = 3, 9
    resolution = (2 * (total + 1), 2 * total + 1)
    to_grid = ToS2Grid(L, resolution, normalization="integral", dtype=torch.float64)
    from_grid = FromS2Grid(resolution, L, normalization="integral", dtype=torch.float64)
    x, y = signals(L, 5), signals(L, 5, seed=1)
    expected = from_grid(to_grid(x) * to_grid(y))
    assert_close(gaunt.product(x, y, L, L, L), expected, 1e-12)


def test_unit_of_the_volume_element():
    # The signal 1 is sqrt(4 pi) Y_00: the unit of the product.
    x = signals(4, 3)
    one = torch.tensor([math.sqrt(4 * math.pi)], dtype=torch.float64)
    assert_close(gaunt.product(x, one, 4, 0, 4), x, 1e-14)
