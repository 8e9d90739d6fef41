"""Every operator, its gradients and their gradients, against the reference in float64."""

import functools

import house
import pytest
import torch
from gaunt_cases import (
    CASES,
    DTYPES,
    GRID,
    LAYOUTS,
    NORMALIZATIONS,
    PRODUCTS,
    SHORT,
    TRIPLES,
    assert_accurate,
    call_of,
    derivatives,
    dim,
    directions,
    inputs,
    name,
    normals,
    oracle,
    signals,
    weights,
)

from nnkernels import gaunt
from nnkernels.gaunt import reference

cases = pytest.mark.parametrize("case", CASES)
products = pytest.mark.parametrize("case", PRODUCTS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)
kinds = pytest.mark.parametrize("kind", ["product", "cross"])


def stored(dtype):
    """What inputs are rounded to, so that the types of 16 bits share one reference."""
    return torch.bfloat16 if dtype.itemsize == 2 else dtype


@functools.cache
def samples(L, seed, dtype):
    # Not a multiple of any vector width, and more than one vector of each.
    return signals(L, 19, seed=seed).to(dtype).double()


@functools.cache
def untruncated(kind, L1, L2, dtype):
    # Of every degree that is asked for.
    function, L3 = getattr(reference, kind), min(L1 + L2, 16)
    return function(samples(L1, 0, dtype), samples(L2, 1, dtype), L1, L2, L3)


@kinds
@dtypes
def test_all_degrees(kind, dtype, isa):
    for L1, L2, L3 in TRIPLES:
        x, y = samples(L1, 0, stored(dtype)).to(dtype), samples(L2, 1, stored(dtype)).to(dtype)
        got = getattr(gaunt, kind)(x, y, L1, L2, L3)
        assert got.dtype == dtype
        try:
            assert_accurate(got, untruncated(kind, L1, L2, stored(dtype))[:, : dim(L3)])
        except AssertionError as error:
            raise AssertionError(f"degrees {L1}, {L2}, {L3}: {error}") from None


@functools.cache
def given(degrees, dtype):
    """Tensors, upstream gradient and cotangents, and what the reference makes of them."""
    L1, L2, L3 = degrees
    tensors = [samples(L1, 0, dtype), samples(L2, 1, dtype)]
    return tensors, samples(L3, 2, dtype), [samples(L1, 3, dtype), samples(L2, 4, dtype)]


@functools.cache
def wanted_derivatives(kind, degrees, dtype):
    return derivatives(lambda x, y: getattr(oracle, kind)(x, y, *degrees), *given(degrees, dtype))


@kinds
@dtypes
@pytest.mark.parametrize("degrees", [*SHORT, (8, 8, 8), (8, 8, 16)], ids=name)
def test_gradients_of_many_degrees(kind, degrees, dtype, isa):
    tensors, g, cotangents = given(degrees, stored(dtype))
    got = derivatives(
        lambda x, y: getattr(gaunt, kind)(x, y, *degrees),
        [x.to(dtype) for x in tensors],
        g.to(dtype),
        [u.to(dtype) for u in cotangents],
    )
    for ours, theirs in zip(got, wanted_derivatives(kind, degrees, stored(dtype)), strict=True):
        assert ours.dtype == dtype
        assert_accurate(ours, theirs)


@functools.cache
def given_case(case, dtype, options):
    options = dict(options)
    tensors = inputs(case, rounded=dtype, layout=options.get("layout", "mul_ir"))
    function = call_of(case, oracle, **options)
    g = normals(*function(*tensors).shape, seed=9).to(dtype).double()
    cotangents = [x.flip(0) for x in tensors]
    return tensors, g, cotangents, derivatives(function, tensors, g, cotangents)


def compare(case, dtype, **options):
    tensors, g, cotangents, wanted = given_case(case, stored(dtype), tuple(options.items()))
    got = derivatives(
        call_of(case, **options),
        [x.to(dtype) for x in tensors],
        g.to(dtype),
        [u.to(dtype) for u in cotangents],
    )
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == dtype
        assert ours.is_contiguous()
        assert_accurate(ours, theirs)


@cases
@dtypes
def test_derivatives(case, dtype, isa):
    compare(case, dtype)


@products
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_options(case, normalization, layout, isa):
    compare(case, torch.float32, normalization=normalization, layout=layout)


@products
def test_layouts_agree(case, isa):
    wanted = call_of(case)(*inputs(case, torch.float32))
    moved = [x if x.dim() == 1 else x.mT.contiguous() for x in inputs(case, torch.float32)]
    # Weights for all samples gain the dimension that in "mul_ir" broadcasting adds.
    got = call_of(case, layout="ir_mul")(*moved)
    torch.testing.assert_close(got.mT, wanted, rtol=2e-6, atol=2e-6 * wanted.abs().max().item())


@cases
def test_gradcheck(case):
    tensors = inputs(case, grad=True)
    assert torch.autograd.gradcheck(call_of(case), tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(call_of(case), tensors, fast_mode=True)


@products
def test_gradcheck_ir_mul(case):
    tensors = inputs(case, layout="ir_mul", grad=True)
    function = call_of(case, layout="ir_mul", normalization="component")
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_third_derivatives_are_refused():
    x, y = signals(1, 3, grad=True), signals(1, 3, seed=1, grad=True)
    (first,) = torch.autograd.grad(gaunt.product(x, y, 1, 1, 1).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), y, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(second.sum(), y)


# ---- many factors ----


@dtypes
@pytest.mark.parametrize("n", range(1, 7))
def test_powers(n, dtype, isa):
    x = samples(2, 0, stored(dtype))
    for Lout in (0, 2, 2 * n, 2 * n + 1):
        got = gaunt.power(x.to(dtype), n, 2, Lout)
        assert_accurate(got, oracle.power(x, n, 2, Lout))
        same = gaunt.nfold([x.to(dtype)] * n, [2] * n, Lout)
        assert_accurate(same, oracle.power(x, n, 2, Lout))


@pytest.mark.parametrize("Ls", [[3], [0, 0], [4, 1, 2, 0], [1, 2, 3, 2, 1], [2, 1, 1, 2, 1, 1]])
def test_nfold(Ls, isa):
    xs = [samples(L, i, torch.float64) for i, L in enumerate(Ls)]
    for Lout in (0, 3, sum(Ls)):
        assert_accurate(gaunt.nfold(xs, Ls, Lout), oracle.nfold(xs, Ls, Lout))


def test_power_is_not_a_truncated_chain():
    x = samples(2, 0, torch.float64)
    chain = gaunt.product(gaunt.product(x, x, 2, 2, 2), x, 2, 2, 2)
    assert (gaunt.power(x, 3, 2, 2) - chain).abs().max() > 0.1


# ---- path weights ----


@pytest.mark.parametrize("kind", ["even", "cross", "both"])
@pytest.mark.parametrize("degrees", SHORT, ids=name)
def test_each_path(kind, degrees, isa):
    x, y = (samples(L, i, torch.float64)[:3] for i, L in enumerate(degrees[:2]))
    listed = gaunt.path_list(*degrees, kind)
    w = torch.eye(len(listed), dtype=torch.float64)[:, None]
    got = gaunt.paths(x, y, w, *degrees, kind=kind)
    assert_accurate(got, oracle.paths(x, y, w, *degrees, kind=kind))
    # One path alone reaches one degree.
    for values, (_, _, l3) in zip(got, listed, strict=True):
        inside = values[:, l3**2 : (l3 + 1) ** 2]
        assert inside.abs().max() > 0
        inside.zero_()
        assert torch.equal(values, torch.zeros_like(values))


def test_equal_path_weights_are_the_product(isa):
    x, y = samples(3, 0, torch.float64), samples(2, 1, torch.float64)
    for kind, function in (("even", gaunt.product), ("cross", gaunt.cross)):
        ones = torch.ones(len(gaunt.path_list(3, 2, 4, kind)), dtype=torch.float64)
        got = gaunt.paths(x, y, ones, 3, 2, 4, kind=kind)
        assert_accurate(got, function(x, y, 3, 2, 4).double())


# ---- degree 0, padding ----


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_constant_signals(normalization, isa):
    x, y = signals(0, 7), signals(4, 7, seed=1)
    got = gaunt.product(x, y, 0, 4, 4, normalization=normalization)
    constant = reference.basis_constant(0, normalization) * (4 * torch.pi) ** -0.5
    assert_accurate(got, constant * x * y)
    assert torch.equal(gaunt.cross(x, y, 0, 4, 4), torch.zeros_like(y))


def test_degrees_beyond_the_sum_are_zero(isa):
    x, y = signals(2, 7), signals(1, 7, seed=1)
    got = gaunt.product(x, y, 2, 1, 6)
    assert torch.equal(got[:, dim(3) :], torch.zeros(7, dim(6) - dim(3)).double())
    assert_accurate(got[:, : dim(3)].contiguous(), oracle.product(x, y, 2, 1, 3))


def test_largest_degrees():
    x, y = samples(24, 0, torch.float32).float(), samples(1, 1, torch.float32).float()
    wanted = oracle.product(x.double(), y.double(), 24, 1, 24)
    assert_accurate(gaunt.product(x, y, 24, 1, 24), wanted)
    # Too large for a dense table: the product at random points instead.
    x, y = samples(24, 0, torch.float64)[:3], samples(24, 1, torch.float64)[:3]
    grid, points = gaunt.grid(72), directions(5)
    values = [gaunt.to_grid(v, 24, grid) for v in (x, y)]
    wanted = reference.from_grid(values[0] * values[1], 24, grid.points, grid.weights)
    got = gaunt.product(x, y, 24, 24, 24)
    assert_accurate(got, wanted)
    assert torch.isfinite(gaunt.to_grid(got, 24, points)).all()


# ---- grids ----


@pytest.mark.parametrize("L", [0, 1, 6, 24])
def test_grid_round_trip(L, isa):
    x, grid = samples(L, 0, torch.float64), gaunt.grid(2 * L)
    values = gaunt.to_grid(x, L, grid)
    assert_accurate(values, oracle.to_grid(x, L, grid))
    assert_accurate(gaunt.from_grid(values, L, grid), x)


def test_grid_of_lebedev():
    pytest.importorskip("scipy", "1.15", reason="lebedev rules come from SciPy")
    x, grid = samples(5, 0, torch.float64), gaunt.grid(11, "lebedev")
    assert_accurate(gaunt.from_grid(gaunt.to_grid(x, 5, grid), 5, grid), x)


def test_points_in_float32():
    x = samples(3, 0, torch.float32).float()
    points = GRID.points.float()
    wanted = reference.to_grid(x.double(), 3, points.double())
    assert_accurate(gaunt.to_grid(x, 3, points), wanted)


# ---- vector signals ----


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vector_products_are_pointwise(layout):
    L1, L2 = 2, 3
    points = directions(20)

    def values(t, L):
        t = t.mT if layout == "ir_mul" else t
        return gaunt.to_grid(t, L, points)

    def vectors(L):
        last = (dim(L),) if layout == "mul_ir" else (dim(L), 2)
        return normals(4, 3, *last, seed=L)

    u, v = vectors(L1), vectors(L2)
    options, along = {"layout": layout}, 1
    fu, fv = values(u, L1), values(v, L2)
    cross = values(gaunt.vector_product(u, v, L1, L2, L1 + L2, **options), L1 + L2)
    torch.testing.assert_close(cross, torch.linalg.cross(fu, fv, dim=along), rtol=0, atol=1e-12)
    dot = values(gaunt.vector_product(u, v, L1, L2, L1 + L2, kind="dot", **options), L1 + L2)
    torch.testing.assert_close(dot, (fu * fv).sum(along), rtol=0, atol=1e-12)
    s = u.select(along, 0)
    scaled = gaunt.vector_product(s, v, L1, L2, L1 + L2, kind="scale", **options)
    wanted = values(s, L1).unsqueeze(along) * fv
    torch.testing.assert_close(values(scaled, L1 + L2), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["cross", "dot", "scale"])
def test_vector_product_operator(kind):
    u, v = normals(2, 3, 9, grad=True), normals(2, 3, 4, seed=1, grad=True)
    if kind == "scale":
        u = normals(2, 9, grad=True)

    def function(u, v):
        return gaunt.vector_product(u, v, 2, 1, 2, kind=kind)

    raw = torch.ops.nnkernels.gaunt_vector_product(u, v, 2, 1, 2, kind)
    assert house.same_bits(function(u, v), raw)
    assert torch.autograd.gradcheck(function, (u, v), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (u, v), fast_mode=True)


# ---- weights ----


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_scale_degrees(layout, isa):
    x, y = signals(2, 3, 4, layout=layout), signals(2, 3, 4, seed=1, layout=layout)
    w = [weights(L, 4, seed=2 + L, layout=layout) for L in (2, 2, 3)]
    degrees = [torch.tensor([l for l in range(L + 1) for _ in range(2 * l + 1)]) for L in (2, 2, 3)]
    along = -1 if layout == "mul_ir" else -2
    full = [t.index_select(along, at) for t, at in zip(w, degrees, strict=True)]
    plain = gaunt.product(x * full[0], y * full[1], 2, 2, 3, layout=layout) * full[2]
    got = gaunt.product(x, y, 2, 2, 3, *w, layout=layout)
    torch.testing.assert_close(got, plain, rtol=0, atol=1e-12)
