"""The reference and the tables, against closed forms, quadrature and e3nn."""

import math

import pytest
import torch
from gaunt_cases import dim, directions, normals, rotation, rotations

from nnkernels import gaunt
from nnkernels.gaunt import reference

# ---- 3j symbols ----


@pytest.mark.parametrize(
    ("symbol", "square"),
    [
        ((1, 1, 0, 0, 0, 0), -1 / 3),
        ((1, 1, 2, 0, 0, 0), 2 / 15),
        ((2, 2, 2, 0, 0, 0), -2 / 35),
        ((1, 1, 1, 1, -1, 0), 1 / 6),
        ((2, 1, 1, 0, 1, -1), 1 / 30),
        ((3, 2, 1, 0, 0, 0), -3 / 35),
        ((4, 4, 4, 0, 0, 0), 18 / 1001),
        ((2, 2, 4, 2, 2, -4), 1 / 9),
    ],
)
def test_known_symbols(symbol, square):
    value = reference.wigner_3j(*symbol)
    assert value == pytest.approx(math.copysign(math.sqrt(abs(square)), square), rel=1e-15)


@pytest.mark.parametrize("symbol", [(1, 1, 3, 0, 0, 0), (1, 1, 1, 0, 0, 0), (1, 1, 2, 1, 1, 0)])
def test_vanishing_symbols(symbol):
    assert reference.wigner_3j(*symbol) == 0


def test_symbols_are_orthogonal():
    l1, l2 = 5, 7
    for m1, m2 in ((0, 0), (3, -2), (-5, 7)):
        # sum over l3 of (2 l3 + 1) (3j)^2 = 1
        total = sum(
            (2 * l3 + 1) * reference.wigner_3j(l1, l2, l3, m1, m2, -m1 - m2) ** 2
            for l3 in range(2, 13)
        )
        assert total == pytest.approx(1, rel=1e-14)


def test_large_symbols():
    # (2l 2l 2l; 0 0 0) in closed form, far beyond what floating factorials reach.
    l, p = 24, 36
    square = math.factorial(l) ** 3 * math.factorial(p) ** 2
    square = square / (math.factorial(3 * l + 1) * math.factorial(l // 2) ** 6)
    assert reference.wigner_3j(l, l, l, 0, 0, 0) == pytest.approx(math.sqrt(square), rel=1e-14)


@pytest.mark.parametrize("path", [(1, 1, 1), (2, 1, 3), (3, 3, 4), (2, 4, 5)])
def test_real_tensor_is_invariant_and_normalised(path):
    table = reference.real_3j(*path)
    assert table.norm() == pytest.approx(1, rel=1e-14)
    turned = table
    for degree in path:
        matrix = reference.rotation(degree, rotations()[0])[degree**2 :, degree**2 :]
        turned = torch.tensordot(turned, matrix, dims=([0], [1]))
    torch.testing.assert_close(turned, table, rtol=0, atol=1e-13)


# ---- coupling tensors ----


def test_unit_vectors_cross():
    table = gaunt.coefficients(1, 1, 1, "cross")[1:, 1:, 1:]
    x, y = normals(2, 3)
    expected = math.sqrt(3 / (4 * math.pi)) * torch.linalg.cross(x, y)
    got = torch.einsum("abc,a,b->c", table, x, y)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-15)


def quadrature(L1, L2, L3, rings, points):
    """The even tensor by a product rule with this many Gauss-Legendre rings and points on each."""
    heights, weights, _ = gaunt.grid(2 * rings - 2)
    heights = heights.view(rings, 2 * rings - 1, 3)[:, 0, 1]
    weights = weights.view(rings, -1).sum(1) / points
    angles = 2 * math.pi / points * torch.arange(points, dtype=torch.float64)
    radius = (1 - heights**2).sqrt()[:, None]
    y = heights[:, None].expand(-1, points)
    at = torch.stack((radius * angles.sin(), y, radius * angles.cos()), dim=-1)
    values = reference.spherical_harmonics(max(L1, L2, L3), at).flatten(0, 1)
    weights = weights.repeat_interleave(points)
    factors = [values[:, : dim(L)] for L in (L1, L2, L3)]
    return torch.einsum("p,pa,pb,pc->abc", weights, *factors)


@pytest.mark.parametrize(
    "degrees", [(0, 0, 0), (1, 0, 1), (1, 1, 1), (2, 2, 2), (3, 2, 4), (4, 4, 4), (3, 3, 6)]
)
def test_quadrature_is_exact_and_no_smaller_rule_is(degrees):
    table = gaunt.coefficients(*degrees)
    total = sum(degrees)
    rings, points = total // 2 + 1, total + 1

    def error(rings, points):
        return (quadrature(*degrees, rings, points) - table).abs().max()

    assert error(rings, points) <= 1e-14
    if rings > 1:
        assert error(rings - 1, points) > 1e-2
    if total > 0:
        assert error(rings, points - 1) > 1e-2


def derivative(x, L, points):
    """The gradient in space of the signal, extended along rays as a constant."""
    points = points.clone().requires_grad_()
    directions = points / points.norm(dim=-1, keepdim=True)
    values = reference.spherical_harmonics(L, directions) @ x
    return torch.autograd.grad(values.sum(), points)[0]


@pytest.mark.parametrize("degrees", [(1, 1), (2, 3), (4, 4)])
def test_cross_is_the_poisson_bracket(degrees):
    L1, L2 = degrees
    x, y, points = normals(dim(L1)), normals(dim(L2), seed=1), directions(40)
    bracket = torch.linalg.cross(derivative(x, L1, points), derivative(y, L2, points))
    bracket = (points * bracket).sum(-1)
    z = reference.cross(x, y, L1, L2, L1 + L2 - 1)
    got = reference.to_grid(z, L1 + L2 - 1, points)
    torch.testing.assert_close(got, bracket, rtol=0, atol=1e-13 * bracket.abs().max().item())


def test_product_is_pointwise():
    x, y, points = normals(dim(5)), normals(dim(3), seed=1), directions(40)
    values = [reference.to_grid(v, L, points) for v, L in ((x, 5), (y, 3))]
    z = reference.to_grid(reference.product(x, y, 5, 3, 8), 8, points)
    torch.testing.assert_close(z, values[0] * values[1], rtol=0, atol=1e-12)
    third = normals(dim(2), seed=2)
    z = reference.to_grid(reference.nfold([x, y, third], [5, 3, 2], 10), 10, points)
    values.append(reference.to_grid(third, 2, points))
    torch.testing.assert_close(z, values[0] * values[1] * values[2], rtol=0, atol=1e-11)


def test_symmetries_of_the_tensors():
    even, odd = gaunt.coefficients(3, 3, 3), gaunt.coefficients(3, 3, 3, "cross")
    for order in ((1, 0, 2), (0, 2, 1), (2, 1, 0)):
        torch.testing.assert_close(even.permute(order), even, rtol=0, atol=1e-15)
        torch.testing.assert_close(odd.permute(order), -odd, rtol=0, atol=1e-15)


@pytest.mark.parametrize("normalization", ["integral", "component", "norm"])
def test_normalization_names_the_basis(normalization):
    # The constant function 1 and the function y, written in this basis.
    harmonics = reference.spherical_harmonics(1, directions(1))[0]
    constants = [reference.basis_constant(l, normalization) for l in (0, 1)]
    squares = {
        "integral": (1 / (4 * math.pi), 3 / (4 * math.pi)),
        "component": (1, 3),
        "norm": (1, 1),
    }[normalization]
    assert (constants[0] * harmonics[:1]).square().sum().item() == pytest.approx(squares[0])
    assert (constants[1] * harmonics[1:]).square().sum().item() == pytest.approx(squares[1])
    one = torch.tensor([1 / (constants[0] * harmonics[0].item())]).double()
    signal = normals(9)
    table = gaunt.coefficients(0, 2, 2, normalization=normalization)
    torch.testing.assert_close(torch.einsum("abc,a,b->c", table, one, signal), signal)


def test_rotation_matrices():
    points = directions(30)
    for index in range(3):
        turned = reference.spherical_harmonics(8, points @ rotations()[index].mT)
        expected = reference.spherical_harmonics(8, points) @ rotation(8, index).mT
        torch.testing.assert_close(turned, expected, rtol=0, atol=1e-13)


# ---- grids ----


@pytest.mark.parametrize(
    ("degree", "kind"),
    [
        *((degree, "gauss_legendre") for degree in (0, 1, 9, 48)),
        *((degree, "lebedev") for degree in (3, 15, 29)),
    ],
)
def test_grid_is_exact(degree, kind):
    if kind == "lebedev":
        pytest.importorskip("scipy", "1.15", reason="lebedev rules come from SciPy")
    points, weights, reached = gaunt.grid(degree, kind)
    assert reached == degree
    assert points.dtype == weights.dtype == torch.float64
    torch.testing.assert_close(points.norm(dim=-1), torch.ones(len(points)).double())
    assert (weights > 0).all()
    integrals = weights @ reference.spherical_harmonics(degree, points)
    integrals[0] -= math.sqrt(4 * math.pi)
    assert integrals.abs().max() < 1e-12
    above = weights @ reference.spherical_harmonics(degree + 1, points)[:, dim(degree) :]
    # Odd degrees come for free by symmetry.
    if degree % 2:
        assert above.abs().max() > 1e-2


def test_lebedev_degrees_are_those_of_scipy():
    pytest.importorskip("scipy", "1.15", reason="lebedev rules come from SciPy")
    from scipy.integrate import lebedev_rule

    from nnkernels.gaunt import tables

    for degree in range(1, 132, 2):
        try:
            _, weights = lebedev_rule(degree)
        except NotImplementedError:
            assert degree not in tables._LEBEDEV
            continue
        assert (degree in tables._LEBEDEV) == bool((weights > 0).all()), degree


# ---- vector spherical harmonics ----


@pytest.mark.parametrize("L", [0, 1, 4])
def test_vector_harmonics(L):
    to_xyz, to_vsh = gaunt.vsh_to_xyz(L), gaunt.xyz_to_vsh(L)
    size = 3 * dim(L)
    identity = torch.einsum("kia,ian->kn", to_vsh, to_xyz)
    torch.testing.assert_close(identity, torch.eye(size).double(), rtol=0, atol=1e-14)
    # A rotated vector field: components turn among each other, blocks (l, j) by degree j.
    turned = torch.einsum("ij,ab,jbk->iak", rotations()[0], rotation(L), to_xyz)
    blocks = [
        reference.rotation(j, rotations()[0])[j**2 :, j**2 :]
        for l in range(L + 1)
        for j in range(abs(l - 1), l + 2)
    ]
    torch.testing.assert_close(turned, to_xyz @ torch.block_diag(*blocks), rtol=0, atol=1e-13)


def test_radial_vector_harmonic():
    # The field r has the coefficients of x, y and z: degree j = 0 of l = 1 alone.
    radial = torch.zeros(3, 4, dtype=torch.float64)
    radial[:, 1:] = torch.eye(3) * math.sqrt(4 * math.pi / 3)
    v = torch.einsum("kia,ia->k", gaunt.xyz_to_vsh(1), radial)
    # l = 0 brings j = 1: three coefficients come before.
    assert v[3].abs().item() == pytest.approx(math.sqrt(4 * math.pi))
    assert v.abs().sum().item() == pytest.approx(math.sqrt(4 * math.pi))


# ---- e3nn ----


def test_agrees_with_e3nn():
    o3 = pytest.importorskip("e3nn.o3", reason="e3nn is not installed")
    for path in [(1, 1, 1), (2, 1, 1), (2, 2, 3), (3, 4, 4), (6, 5, 3)]:
        theirs = o3.wigner_3j(*path, dtype=torch.float64)
        torch.testing.assert_close(reference.real_3j(*path), theirs, rtol=0, atol=1e-13)
    points = directions(50)
    for normalization in ("integral", "component", "norm"):
        theirs = o3.spherical_harmonics(
            list(range(9)), points, normalize=True, normalization=normalization
        )
        ours = reference.spherical_harmonics(8, points)
        for l in range(9):
            ours[:, l**2 : (l + 1) ** 2] *= reference.basis_constant(l, normalization)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
