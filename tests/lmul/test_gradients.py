"""Gradients of the three rules against the float64 reference."""

import functools
import itertools

import house
import pytest
import torch
from lmul_cases import (
    DTYPES,
    FLOAT8,
    GRADS,
    INF,
    MODES,
    NAN,
    SPECIAL,
    any_words,
    assert_close,
    assert_same_bits,
    default_bits,
    name,
    normals,
    oracle,
    ordered_matmul,
    transposed,
    with_zeros,
)

from nnkernels import lmul

RAW = torch.ops.nnkernels
EXPECTED = {
    lmul.mul: oracle.mul_grad,
    lmul.matmul: oracle.matmul_grad,
    lmul.bmm: oracle.matmul_grad,
    lmul.linear: oracle.linear_grad,
}
every_rule = pytest.mark.parametrize("grad", GRADS)
every_mode = pytest.mark.parametrize("mode", MODES)


def gradients(function, g, *inputs, **options):
    """What autograd gives for every input."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves, **options)
    assert out.shape == g.shape
    return torch.autograd.grad(out, leaves, g)


def check(function, g, *inputs, **options):
    """The gradients are the reference's, within the rounding of sums in fp32."""
    got = gradients(function, g, *inputs, **options)
    expected = EXPECTED[function](g, *inputs[:2], **options)
    scale = EXPECTED[function](g.abs(), *(x.abs() for x in inputs[:2]), **options)
    for ours, theirs, scale_of_it, leaf in zip(got, expected, scale, inputs, strict=False):
        assert ours.dtype == leaf.dtype
        assert ours.shape == leaf.shape
        # As fp32: what float64 has room for may overflow.
        finite = theirs.float().isfinite()
        assert_close(ours[finite], theirs[finite], scale_of_it[finite])
        special = theirs[~finite].float()
        torch.testing.assert_close(ours[~finite], special, rtol=0, atol=0, equal_nan=True)
    return got


# ---- mul ----


@every_rule
@every_mode
@pytest.mark.parametrize(
    "options",
    [{"mantissa_bits": 7}, {"mantissa_bits": 3, "round": "rne"}, {"offset": 0.75}],
    ids=["m7", "m3-rne", "m23-offset"],
)
def test_mul_to_the_bit(isa, grad, mode, options):
    options = {"mode": mode, "grad": grad, **options}
    # Any words, most of whose products are out of range, and ordinary numbers.
    g, x, y = torch.cat([any_words(3, 5000), normals(3, 5000)], 1)
    for left, right in ((x, y), (SPECIAL[:, None], y[:4].repeat(20))):
        upstream = g[: right.numel()].expand(torch.broadcast_shapes(left.shape, right.shape))
        pair = left.expand_as(upstream), right.expand_as(upstream)
        expected = oracle.mul_grad(upstream, *pair, **options)
        got = RAW.lmul_mul_bwd(upstream, *pair, **options)
        for ours, theirs in zip(got, expected, strict=True):
            assert_same_bits(ours, theirs.float())
    expected = oracle.mul_grad(g, x, y, **options)
    for ours, theirs in zip(gradients(lmul.mul, g, x, y, **options), expected, strict=True):
        assert_same_bits(ours, theirs.float())


@every_mode
def test_slopes_beyond_the_largest_power_of_two(isa, mode):
    # 2^ye 2^floor(s) may be 2^128 and more; the gradient is not.
    x, y = torch.full((20,), 1.96875), torch.full((20,), -1.96875 * 2.0**127)
    g = torch.full((20,), 2.0**-20)
    expected = oracle.mul_grad(g, x, y, mode=mode, grad="exact")
    got = gradients(lmul.mul, g, x, y, mode=mode, grad="exact")
    sums = gradients(lmul.matmul, g[:, None], x[:, None], y[:1, None], mode=mode, grad="exact")
    assert_same_bits(got[0], expected[0].float())
    assert_same_bits(got[1], expected[1].float())
    assert_same_bits(sums[0][:, 0], expected[0].float())


@every_rule
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((), ()),
        ((), (300, 130)),
        ((300, 1), (1, 130)),
        ((7, 1, 65), (7, 40, 1)),
        ((3, 1, 5, 1), (2, 1, 33)),
        ((2000,), (3, 1)),
        ((1,), (1, 1)),
        ((0,), (4, 1)),
    ],
    ids=lambda shape: name(shape) or "scalar",
)
def test_mul_sums_over_broadcast_dimensions(isa, left, right, grad):
    x, y = normals(*left), normals(*right, seed=1)
    shape = torch.broadcast_shapes(left, right)
    g = normals(*shape, seed=2)
    for mode in MODES:
        options = {"mantissa_bits": 7, "mode": mode, "grad": grad}
        got = check(lmul.mul, g, x, y, **options)
        swapped = check(lmul.mul, g, y, x, **options)
        assert_close(got[0], swapped[1].double(), 2 * got[0].double().abs() + 1)
        # Terms of one sign gather rounding errors fastest.
        check(lmul.mul, g.abs(), x.abs(), y.abs(), **options)
    # An operand that the caller expanded gets a gradient of its own in every place.
    expanded = gradients(lmul.mul, g, x.expand(shape), y.expand(shape), grad=grad)
    assert [value.shape for value in expanded] == [shape, shape]


# ---- sums ----


def operands(function, m, k, n, dtypes=(torch.float32, torch.float32), seed=0):
    """g and the inputs of a sum with these sizes; linear gets a bias, bmm a batch of 2."""
    batch = (2,) if function is lmul.bmm else ()
    a = normals(*batch, m, k, seed=seed).to(dtypes[0])
    b = normals(*batch, k, n, seed=seed + 1).to(dtypes[1])
    g = normals(*batch, m, n, seed=seed + 2)
    if function is not lmul.linear:
        return g, a, b
    return g, a, normals(n, k, seed=seed + 1).to(dtypes[1]), normals(n, seed=seed + 3)


every_sum = pytest.mark.parametrize("function", [lmul.matmul, lmul.linear, lmul.bmm])
SHAPES = [
    *((1, 1, 1), (7, 16, 33), (16, 33, 128), (33, 257, 7), (128, 1, 257)),
    *((257, 128, 16), (1, 257, 33), (257, 7, 1), (16, 16, 300)),
]


@every_rule
@every_mode
@every_sum
@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_sums(isa, shape, function, mode, grad):
    check(function, *operands(function, *shape), mode=mode, grad=grad)


@every_rule
@every_mode
@pytest.mark.parametrize(
    "options",
    [{"mantissa_bits": 1}, {"mantissa_bits": 3, "round": "rne"}, {"offset": 0.0}],
    ids=["m1", "m3-rne", "offset0"],
)
@every_sum
def test_options(isa, function, options, mode, grad):
    check(function, *operands(function, 5, 30, 20), mode=mode, grad=grad, **options)


@pytest.mark.parametrize("m", [2, 7, 23])
def test_the_lmul_rule_is_lmul_of_the_same_order(isa, m):
    a, b, g = normals(30, 270), normals(270, 300, seed=1), normals(30, 300, seed=2)
    options = {"mantissa_bits": m, "round": "rne"}
    ga, gb = gradients(lmul.matmul, g, a, b, grad="lmul", **options)
    assert_same_bits(ga, ordered_matmul(g, b.mT, **options))
    assert_same_bits(gb, ordered_matmul(a.mT, g, **options))


@every_rule
@every_mode
@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, repeat=2)), ids=name)
def test_dtypes(dtypes, mode, grad):
    # Computed in fp32 from the exact inputs and rounded once.
    for function in (lmul.mul, lmul.matmul, lmul.linear):
        if function is lmul.mul:
            g, x, y = normals(3, 40, 33)
            inputs = x.to(dtypes[0]), y[:1].to(dtypes[1])
        else:
            g, *inputs = operands(function, 9, 40, 17, dtypes)
        options = {"mode": mode, "grad": grad}
        g = g.to(function(*inputs, **options).dtype)
        options["mantissa_bits"] = default_bits(*inputs[:2])
        got = gradients(function, g, *inputs, **options)
        wide = gradients(function, g.float(), *(x.float() for x in inputs), **options)
        for ours, theirs, leaf in zip(got, wide, inputs, strict=True):
            assert_same_bits(ours, theirs.to(leaf.dtype))


@every_mode
def test_bias(isa, mode):
    x, w = normals(2, 150, 40), normals(33, 40, seed=1)
    for dtype in DTYPES:
        bias = normals(33, seed=2).to(dtype)
        g = normals(2, 150, 33, seed=3).abs()
        got = gradients(lmul.linear, g, x, w, bias, mode=mode)[2]
        assert got.dtype == dtype
        total = g.double().sum((0, 1))
        if dtype in FLOAT8:
            wide = gradients(lmul.linear, g, x, w, bias.float(), mode=mode)[2]
            assert_same_bits(got, wide.to(dtype))
        else:
            assert_close(got, total, total)


@every_rule
@every_mode
@every_sum
@pytest.mark.parametrize("value", [0.0, 2.0**-130, 2.0**-120, 2.0**125, INF, -INF, NAN])
def test_special_values(isa, value, function, mode, grad):
    for position in range(3):
        g, *inputs = operands(function, 9, 34, 21)
        chosen = (g, *inputs)[position]
        chosen.view(-1)[chosen.numel() // 2] = value
        check(function, g, *inputs, mantissa_bits=7, mode=mode, grad=grad)


@every_rule
@every_mode
@every_sum
@pytest.mark.parametrize("where", ["some", "lines", "all"])
def test_zeros(isa, where, function, mode, grad):
    # A sum whose terms are all zero is +0, whatever the slopes and the other operand.
    for position in range(3):
        g, *inputs = operands(function, 9, 34, 21)
        tensors = [g, *inputs]
        tensors[position] = with_zeros(tensors[position], where)
        got = check(function, *tensors, mode=mode, grad=grad)
        assert not any((x.signbit() & (x == 0)).any() for x in got)


@every_rule
@every_sum
def test_sums_of_nothing(isa, function, grad):
    for m, k, n in itertools.product((0, 3), repeat=3):
        g, *inputs = operands(function, m, k, n)
        for mode in MODES:
            got = gradients(function, g, *inputs, mode=mode, grad=grad)
            if 0 in (m, n):
                for ours, leaf in zip(got, inputs, strict=True):
                    assert_same_bits(ours, torch.zeros_like(leaf))


# ---- how the operators are called ----


@every_rule
@every_mode
@every_sum
def test_layouts(canaries, function, mode, grad):
    g, *inputs = operands(function, 20, 35, 50)
    options = {"mode": mode, "grad": grad}
    expected = gradients(function, g, *inputs, **options)
    for layout in (transposed, canaries.embed, functools.partial(canaries.embed, step=2)):
        got = gradients(function, layout(g), *map(layout, inputs[:2]), *inputs[2:], **options)
        for ours, theirs in zip(got, expected, strict=True):
            assert_same_bits(ours, theirs)


@every_rule
@pytest.mark.parametrize("function", EXPECTED)
def test_upstream_gradients_with_strides_of_zero(isa, function, grad):
    g, *inputs = operands(function, 20, 35, 50)
    if function is lmul.mul:
        inputs[1] = normals(20, 1)
        g = normals(20, 35)
    row = g[..., :1, :]
    for ones in (row[..., :1].expand_as(g), row.expand_as(g), g[..., :1].expand_as(g)):
        got = gradients(function, ones, *inputs, grad=grad)
        expected = gradients(function, ones.clone(), *inputs, grad=grad)
        for ours, theirs in zip(got, expected, strict=True):
            assert_same_bits(ours, theirs)
    leaves = [x.requires_grad_() for x in inputs]
    function(*leaves, grad=grad).sum().backward()
    expected = gradients(function, torch.ones_like(g), *inputs, grad=grad)
    for leaf, theirs in zip(leaves, expected, strict=True):
        assert_same_bits(leaf.grad, theirs)


@every_rule
@every_mode
@pytest.mark.parametrize("function", EXPECTED)
def test_only_what_is_needed(function, mode, grad):
    g, *inputs = operands(function, 20, 35, 50)
    if function is lmul.mul:
        g, *inputs = normals(3, 20, 35)
    backward = getattr(RAW, f"lmul_{function.__name__}_bwd")
    options = {"mode": mode, "grad": grad}
    names = {lmul.mul: "xy", lmul.linear: ("x", "w", "bias")}.get(function, "ab")
    everything = backward(g, *inputs[:2], **options, **{f"need_{key}": True for key in names})
    for wanted in itertools.product((True, False), repeat=len(names)):
        needs = {f"need_{key}": need for key, need in zip(names, wanted, strict=True)}
        got = backward(g, *inputs[:2], **options, **needs)
        for ours, theirs, need in zip(got, everything, wanted, strict=True):
            assert_same_bits(ours, theirs if need else torch.empty(0))
    for i, leaf in enumerate(inputs):
        leaves = [x.detach() for x in inputs]
        leaves[i] = leaf.detach().requires_grad_()
        (got,) = torch.autograd.grad(function(*leaves, **options), leaves[i], g)
        assert_same_bits(got, everything[i])


@every_rule
@every_mode
@pytest.mark.parametrize("function", EXPECTED)
def test_runs_and_threads_agree(function, mode, grad):
    if function is lmul.mul:
        g, inputs = normals(150, 200, 10), (normals(200, 1), normals(150, 1, 10))
    else:
        g, *inputs = operands(function, 150, 130, 270)
    options = {"mode": mode, "grad": grad}
    with house.threads(1):
        expected = gradients(function, g, *inputs, **options)
    for count in (1, 2, 2):
        with house.threads(count):
            got = gradients(function, g, *inputs, **options)
        for ours, theirs in zip(got, expected, strict=True):
            assert_same_bits(ours, theirs)


@every_rule
@every_sum
def test_the_result_with_autograd_is_that_without(function, grad):
    _, *inputs = operands(function, 20, 35, 50)
    expected = function(*inputs)
    leaves = [x.detach().requires_grad_() for x in inputs]
    assert_same_bits(function(*leaves, grad=grad).detach(), expected)
    with torch.no_grad():
        assert_same_bits(function(*leaves, grad=grad), expected)
