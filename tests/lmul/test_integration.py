"""The lmul operators inside PyTorch: opcheck, compile, export, autocast, strides, empty sizes,
determinism, threads, DTensor. That the numbers are right is for test_ops.py."""

import copy
import doctest
import sys
import warnings
from pathlib import Path

import house
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import nnkernels.nn
from nnkernels import lmul
from nnkernels.lmul import checks

OPS = torch.ops.nnkernels
DTYPES = list(checks.MANTISSA_BITS)
MASK = torch.ones(5, 6, dtype=torch.bool).tril()


def normals(*shape, grad=False, dtype=torch.float32):
    seed = sum((i + 1) * size for i, size in enumerate(shape))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.requires_grad_(grad)


def qkv(grad=False):
    return [
        normals(2, 4, 5, 8, grad=grad),
        normals(2, 2, 6, 8, grad=grad),
        normals(2, 2, 6, 3, grad=grad),
    ]


# Positional arguments of each differentiable function, and options worth a case of their own.
CALLS = {
    "mul": (lambda grad=False: [normals(3, 4, grad=grad), normals(4, grad=grad)], {}),
    "matmul": (lambda grad=False: [normals(3, 4, grad=grad), normals(4, 5, grad=grad)], {}),
    "matmul-formula": (
        lambda grad=False: [normals(3, 4, grad=grad), normals(4, 5, grad=grad)],
        {"mode": "formula", "mantissa_bits": 4, "grad": "exact", "out_dtype": torch.bfloat16},
    ),
    "bmm": (lambda grad=False: [normals(2, 3, 4, grad=grad), normals(2, 4, 5, grad=grad)], {}),
    "linear": (
        lambda grad=False: [
            normals(2, 3, 4, grad=grad),
            normals(5, 4, grad=grad),
            normals(5, grad=grad),
        ],
        {"round": "rne", "mantissa_bits": 3, "grad": "lmul"},
    ),
    "linear-no_bias": (
        lambda grad=False: [normals(2, 3, 4, grad=grad), normals(5, 4, grad=grad)],
        {},
    ),
    "attention": (qkv, {}),
    "attention-causal": (qkv, {"is_causal": True, "normalize": "after"}),
    "attention-mask": (qkv, {"attn_mask": MASK, "scale": 0.5}),
}
calls = pytest.mark.parametrize("call", CALLS)


def function_of(call):
    return getattr(lmul, call.split("-")[0])


# Each changes the result of every function that takes it.
OPTIONS = {
    "mantissa_bits": 3,
    "mode": "formula",
    "round": "rne",
    "offset": 0.5,
    "out_dtype": torch.bfloat16,
    "is_causal": True,
    "scale": 0.25,
    "normalize": "after",
    "attn_mask": MASK,
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("op", ["mul", "matmul", "bmm", "linear", "attention"])
def test_options_reach_the_operator(op, option):
    forward = getattr(OPS, f"lmul_{op}_fwd")
    if option not in {argument.name for argument in forward.default._schema.arguments}:
        return
    # Rounding to 7 bits is not the identity.
    given = {"mantissa_bits": 7, option: OPTIONS[option]}
    make = CALLS[op][0]
    values = make()
    out = getattr(lmul, op)(*values, **given)
    assert house.same_bits(out, forward(*values, **given))
    assert not house.same_bits(out, forward(*values, mantissa_bits=7))
    recorded = getattr(lmul, op)(*make(grad=True), **given)
    assert house.same_bits(recorded, out)


@calls
def test_grad_reaches_the_operator(call):
    make, options = CALLS[call]
    values = make(grad=True)
    g = None
    seen = []
    for grad in checks.GRADS:
        out = function_of(call)(*values, **(options | {"grad": grad, "mantissa_bits": 4}))
        g = normals(*out.shape).to(out.dtype) if g is None else g
        seen.append(torch.autograd.grad(out, values[:2], g))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        for one, two in zip(seen[first], seen[second], strict=True):
            assert not torch.equal(one, two)


# ---- opcheck ----


@calls
def test_opcheck(call):
    make, options = CALLS[call]
    name = f"lmul_{call.split('-')[0]}"
    house.check_op(getattr(OPS, name).default, *make(grad=True), **options)
    forward = {key: value for key, value in options.items() if key != "grad"}
    house.check_op(getattr(OPS, f"{name}_fwd").default, *make(), **forward)


@pytest.mark.parametrize("needed", [(True, True, True), (False, True, False)])
@calls
def test_opcheck_backward(call, needed):
    make, options = CALLS[call]
    name = call.split("-")[0]
    values = make()
    out = getattr(lmul, name)(*values, **options)
    backward = getattr(OPS, f"lmul_{name}_bwd").default
    accepted = {argument.name for argument in backward._schema.arguments}
    options = {key: value for key, value in options.items() if key in accepted}
    needs = [argument.name for argument in backward._schema.arguments if "need_" in argument.name]
    options |= dict(zip(needs, needed, strict=False))
    saved = values[:2] if name == "linear" else values
    if name == "attention":
        saved = [*saved, out, options.pop("attn_mask", None)]
    house.check_op(backward, torch.ones_like(out), *saved, **options)


@pytest.mark.parametrize("shape", [(5, 4), (1, 1), (0, 4), (5, 0), (17, 300), (16, 256), (33, 257)])
def test_opcheck_pack(shape):
    # The length that the fake kernel promises is the length of the format.
    house.check_op(OPS.lmul_pack.default, normals(*shape))


# ---- compile and export ----


@calls
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile(call, dynamic):
    make, options = CALLS[call]
    function = function_of(call)
    house.check_compiled(lambda *x: function(*x, **options), *make(grad=True), dynamic=dynamic)


def test_compile_serves_other_sizes():
    compiled = house.check_compiled(
        lambda x, w: lmul.linear(x, w), normals(3, 4), normals(5, 4, grad=True), dynamic=True
    )
    with torch.compiler.set_stance("fail_on_recompile"):
        for rows in (2, 7, 33):
            x, w = normals(rows, 4), normals(5, 4, grad=True)
            assert house.same_bits(compiled(x, w), lmul.linear(x, w))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nnkernels.nn.LMulAttention(12, 4, 2, mantissa_bits=4, is_causal=True)
        self.linear = nnkernels.nn.LMulLinear(12, 5, mantissa_bits=7)

    def forward(self, x):
        return lmul.mul(self.linear(x + self.attention(x)), x[..., :5])


@house.needs_compiler
def test_compile_with_inductor():
    block = Block()
    x = normals(2, 7, 12)
    compiled = torch.compile(copy.deepcopy(block), fullgraph=True)
    out = compiled(x)
    out.square().sum().backward()
    expected = block(x)
    expected.square().sum().backward()
    torch.testing.assert_close(out, expected)
    for ours, theirs in zip(compiled.parameters(), block.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_export_with_dynamic_sizes():
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time", min=2)}
    program = house.check_exported(Block(), normals(2, 7, 12), dynamic_shapes=(sizes,))
    targets = {str(node.target) for node in program.graph.nodes}
    assert {"nnkernels.lmul_attention.default", "nnkernels.lmul_linear.default"} <= targets
    other = normals(3, 11, 12)
    assert house.same_bits(program.module()(other), Block()(other))


# ---- autocast ----


@calls
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_autocast(call, compiled):
    make, options = CALLS[call]
    if "out_dtype" in options:
        options = {key: value for key, value in options.items() if key != "out_dtype"}
    values = make(grad=True)

    def function(*x):
        return function_of(call)(*x, **options)

    torch.compiler.reset()
    with torch.autocast("cpu", torch.bfloat16):
        run = torch.compile(function, fullgraph=True, backend="aot_eager") if compiled else function
        out = run(*values)
    if call == "mul":
        # As torch.mul: autocast leaves it alone.
        assert out.dtype == torch.float32
        return
    assert out.dtype == torch.bfloat16
    # A bias is added in float32 and stays what it is.
    narrow = [x.to(torch.bfloat16) for x in values[:2]] + [
        x.to(torch.bfloat16) if "attention" in call else x for x in values[2:]
    ]
    assert house.same_bits(out, function(*narrow))
    for x, gradient in zip(values, torch.autograd.grad(out.float().sum(), values), strict=True):
        assert gradient.dtype == x.dtype


def test_autocast_leaves_float8():
    a, b = normals(3, 4).to(torch.float8_e5m2), normals(4, 5).to(torch.float8_e4m3fn)
    with torch.autocast("cpu", torch.bfloat16):
        out = lmul.matmul(a, b)
    assert house.same_bits(out, lmul.matmul(a, b))


# ---- strides ----


def variants(x, canaries):
    """The same values with other strides."""
    yield "transposed", x.mT.contiguous().mT if x.dim() > 1 else x
    yield "offset", canaries.embed(x)
    yield "gaps", canaries.embed(x, step=2)
    yield (
        "reversed_dims",
        x.permute(*range(x.dim())[::-1]).contiguous().permute(*range(x.dim())[::-1]),
    )


@calls
@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_strides_of_inputs(call, dtype, canaries):
    make, options = CALLS[call]
    function = function_of(call)
    values = [x.to(dtype) for x in make()]
    expected = function(*values, **options)
    assert expected.is_contiguous()
    for position, value in enumerate(values):
        for name, other in variants(value, canaries):
            moved = [*values[:position], other, *values[position + 1 :]]
            out = function(*moved, **options)
            assert house.same_bits(out, expected), name
            assert out.is_contiguous()


@pytest.mark.parametrize(
    "shape", [(), (6,), (1,), (5, 6), (5, 1), (4, 1, 6), (2, 1, 5, 6), (2, 4, 1, 1), (2, 4, 5, 6)]
)
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.bfloat16])
def test_masks_broadcast(shape, dtype):
    mask = normals(*shape).to(dtype) if dtype.is_floating_point else normals(*shape) > -0.5
    values = qkv(grad=True)
    outs = [
        lmul.attention(*values, attn_mask=m)
        for m in (mask, mask.expand(2, 4, 5, 6), mask.expand(2, 4, 5, 6).contiguous())
    ]
    gradients = [torch.autograd.grad(out.sum(), values) for out in outs]
    for out, other in zip(outs[1:], gradients[1:], strict=True):
        assert house.same_bits(out, outs[0])
        assert all(map(house.same_bits, other, gradients[0]))


@calls
def test_zero_strides(call):
    make, options = CALLS[call]
    values = make(grad=True)
    expanded = [x.detach()[..., :1].expand(x.shape).requires_grad_() for x in values]
    dense = [x.detach().contiguous().requires_grad_() for x in expanded]
    function = function_of(call)
    outs = [function(*x, **options) for x in (expanded, dense)]
    assert house.same_bits(*outs)
    # .sum().backward() sends an expanded gradient, stride 0 everywhere.
    gradients = [
        torch.autograd.grad(out.sum(), x) for out, x in zip(outs, (expanded, dense), strict=True)
    ]
    ones = torch.autograd.grad(function(*dense, **options), dense, torch.ones_like(outs[1]))
    for a, b, c in zip(*gradients, ones, strict=True):
        assert house.same_bits(a, b)
        assert house.same_bits(b, c)


@calls
@pytest.mark.parametrize("kind", ["transposed", "gaps", "offset"])
def test_strides_of_upstream(call, kind, canaries):
    make, options = CALLS[call]
    values = make(grad=True)
    out = function_of(call)(*values, **options)
    g = normals(*out.shape).to(out.dtype)
    expected = torch.autograd.grad(out, values, g, retain_graph=True)
    moved = dict(variants(g, canaries))[kind]
    for a, b in zip(torch.autograd.grad(out, values, moved), expected, strict=True):
        assert house.same_bits(a, b)


# ---- sizes ----


@pytest.mark.parametrize(
    ("op", "shapes", "result"),
    [
        ("mul", ((), ()), ()),
        ("mul", ((), (3,)), (3,)),
        ("mul", ((0,), (1,)), (0,)),
        ("mul", ((2, 0, 3), (3,)), (2, 0, 3)),
        ("mul", ((2, 1, 3), (4, 1)), (2, 4, 3)),
        ("mul", ((1,) * 15 + (2,), (3, 1)), (1,) * 14 + (3, 2)),
        ("matmul", ((0, 4), (4, 3)), (0, 3)),
        ("matmul", ((2, 4), (4, 0)), (2, 0)),
        ("matmul", ((2, 0), (0, 3)), (2, 3)),
        ("matmul", ((0, 0), (0, 0)), (0, 0)),
        ("bmm", ((0, 2, 4), (0, 4, 3)), (0, 2, 3)),
        ("bmm", ((2, 2, 0), (2, 0, 3)), (2, 2, 3)),
        ("linear", ((4,), (3, 4), (3,)), (3,)),
        ("linear", ((0, 4), (3, 4), (3,)), (0, 3)),
        ("linear", ((2, 0, 4), (3, 4)), (2, 0, 3)),
        ("linear", ((2, 4), (0, 4), (0,)), (2, 0)),
        ("linear", ((2, 0), (3, 0), (3,)), (2, 3)),
        ("linear", ((0,), (3, 0)), (3,)),
        ("attention", ((0, 4, 3, 8), (0, 2, 5, 8), (0, 2, 5, 6)), (0, 4, 3, 6)),
        ("attention", ((2, 4, 0, 8), (2, 2, 5, 8), (2, 2, 5, 6)), (2, 4, 0, 6)),
        ("attention", ((2, 4, 3, 8), (2, 2, 0, 8), (2, 2, 0, 6)), (2, 4, 3, 6)),
        ("attention", ((2, 4, 3, 8), (2, 2, 5, 8), (2, 2, 5, 0)), (2, 4, 3, 0)),
        ("attention", ((2, 4, 3, 0), (2, 2, 5, 0), (2, 2, 5, 6)), (2, 4, 3, 6)),
        ("attention", ((2, 0, 3, 8), (2, 0, 5, 8), (2, 0, 5, 6)), (2, 0, 3, 6)),
    ],
)
def test_small_and_empty_sizes(op, shapes, result):
    values = [normals(*shape, grad=True) for shape in shapes]
    out = getattr(lmul, op)(*values)
    assert out.shape == result
    assert out.is_contiguous()
    assert out.isfinite().all()
    for x, gradient in zip(values, torch.autograd.grad(out.sum(), values), strict=True):
        assert gradient.shape == x.shape
        assert gradient.isfinite().all()


def test_empty_sums_are_the_bias():
    bias = normals(3)
    assert torch.equal(lmul.matmul(normals(2, 0), normals(0, 3)), torch.zeros(2, 3))
    assert torch.equal(lmul.linear(normals(2, 0), normals(3, 0), bias), bias.expand(2, 3))
    out = lmul.attention(normals(1, 1, 2, 4), normals(1, 1, 0, 4), normals(1, 1, 0, 4))
    assert torch.equal(out, torch.zeros(1, 1, 2, 4))


# ---- dtypes ----


def promoted(*dtypes):
    if any(dtype in checks.FLOAT8 for dtype in dtypes):
        return torch.float32
    result = dtypes[0]
    for dtype in dtypes[1:]:
        result = torch.promote_types(result, dtype)
    return result


@pytest.mark.parametrize("first", DTYPES)
@pytest.mark.parametrize("second", DTYPES)
def test_result_dtypes(first, second):
    a, b = normals(3, 4).to(first), normals(4, 5).to(second)
    for out in (
        lmul.mul(a, a.to(second)),
        lmul.matmul(a, b),
        lmul.bmm(a[None], b[None]),
        lmul.linear(a, b.mT, normals(5)),
        lmul.attention(*(x.to(d) for x, d in zip(qkv(), (first, second, first), strict=True))),
    ):
        assert out.dtype == promoted(first, second)


@pytest.mark.parametrize("wanted", DTYPES)
@calls
def test_out_dtype(call, wanted):
    make, options = CALLS[call]
    values = make(grad=True)
    function = function_of(call)
    wide = function(*values, **(options | {"out_dtype": torch.float32}))
    out = function(*values, **(options | {"out_dtype": wanted}))
    # Also float8 is rounded as the running torch rounds.
    assert house.same_bits(out, wide.to(wanted))
    g = normals(*out.shape)
    if wanted not in checks.FLOAT8:
        gradients = torch.autograd.grad(out, values, g.to(wanted))
        assert all(x.dtype == torch.float32 for x in gradients)


def test_a_number_gives_way_in_mul():
    # torch's promotion: the dtype of a 0-dimensional tensor does not widen the result.
    x = normals(3).to(torch.bfloat16)
    for a, b in ((x, torch.tensor(2.0)), (torch.tensor(2.0), x)):
        assert lmul.mul(a, b).dtype == torch.mul(a, b).dtype == torch.bfloat16
        assert OPS.lmul_mul(a.to("meta"), b.to("meta")).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_have_the_dtype_of_their_input(dtype):
    for call in ("mul", "matmul", "bmm", "linear", "attention"):
        values = [x.to(dtype) for x in CALLS[call][0]()]
        if call == "linear":
            values[2] = values[2].float()
        values = [x.requires_grad_() for x in values]
        out = function_of(call)(*values)
        gradients = torch.autograd.grad(out, values, torch.ones_like(out))
        assert [g.dtype for g in gradients] == [x.dtype for x in values]


# ---- autograd ----


@calls
def test_only_needed_gradients(call):
    make, options = CALLS[call]
    function = function_of(call)
    values = make(grad=True)
    everything = torch.autograd.grad(function(*values, **options).float().sum(), values)
    for position in range(len(values)):
        alone = [x.detach() for x in values]
        alone[position].requires_grad_()
        out = function(*alone, **options)
        (gradient,) = torch.autograd.grad(out.float().sum(), alone[position])
        assert house.same_bits(gradient, everything[position])


@calls
def test_with_and_without_autograd(call):
    make, options = CALLS[call]
    function = function_of(call)
    recorded = function(*make(grad=True), **options)
    assert recorded.requires_grad
    with torch.no_grad():
        plain = function(*make(grad=True), **options)
    with torch.inference_mode():
        raw = getattr(OPS, f"lmul_{call.split('-')[0]}")(*make(), **options)
    assert not plain.requires_grad
    assert house.same_bits(plain, recorded)
    assert house.same_bits(raw.clone(), recorded)


@pytest.mark.parametrize("mode", checks.MODES)
def test_exact_gradient_is_the_slope(mode):
    # Mantissas far from the breakpoints of floor(s); the step moves them by less than that.
    x = torch.tensor([[1.25, -2.25], [0.53125, 4.5]])
    y = torch.tensor([[-1.125, 2.5], [1.25, 0.5625]])
    options = {"mode": mode, "grad": "exact"}
    house.check_gradient(lambda a, b: lmul.mul(a, b, **options), x, y)
    house.check_gradient(lambda a, b: lmul.matmul(a, b, **options), x, y)
    house.check_gradient(lambda a, b, c: lmul.linear(a, b, c, **options), x, y, torch.ones(2))
    house.check_gradient(lambda a, b: lmul.bmm(a, b, **options), x[None], y[None])


FORWARD_MODE = "forward-mode differentiation .* is not supported"


@calls
def test_forward_mode_is_refused(call):
    # It would give a tangent of zero.
    make, options = CALLS[call]
    name = call.split("-")[0]
    values = make()
    for position, value in enumerate(values):

        def with_dual(function, x, position=position):
            return function(*values[:position], x, *values[position + 1 :], **options)

        for function in (function_of(call), getattr(OPS, f"lmul_{name}")):
            with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=FORWARD_MODE):
                with_dual(function, forward_ad.make_dual(value, torch.ones_like(value)))
            with pytest.raises(NotImplementedError, match=f"^lmul_{name}: {FORWARD_MODE}"):
                torch.func.jvp(
                    lambda x, f=function: with_dual(f, x), (value,), (torch.ones_like(value),)
                )
    with torch.no_grad(), pytest.raises(NotImplementedError, match=FORWARD_MODE):
        torch.func.jacfwd(lambda x: function_of(call)(x, *values[1:], **options))(values[0])


def test_forward_mode_of_mask_and_upstream_is_refused():
    mask = normals(5, 6)
    x = normals(3, 4, grad=True)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(mask, mask)
        for function in (lmul.attention, OPS.lmul_attention):
            with pytest.raises(NotImplementedError, match=FORWARD_MODE):
                function(*qkv(), attn_mask=dual)
        out = lmul.mul(x, x.detach()) * forward_ad.make_dual(normals(3, 4), normals(3, 4))
        with pytest.raises(NotImplementedError, match=f"^lmul_mul_bwd: {FORWARD_MODE}"):
            torch.autograd.grad(out.sum(), x)
        # Others may have tangents.
        plain = lmul.mul(x.detach(), x.detach()) * forward_ad.make_dual(mask[0, 0], mask[0, 1])
        assert forward_ad.unpack_dual(plain).tangent is not None


@calls
def test_transforms_of_torch_func(call):
    make, options = CALLS[call]
    values = make()
    name = f"lmul_{call.split('-')[0]}"

    def total(x):
        return function_of(call)(x, *values[1:], **options).sum()

    for transform in (torch.func.grad, torch.func.jacrev, torch.func.hessian):
        with pytest.raises(NotImplementedError, match=f"^{name}: the transforms of torch.func"):
            transform(total)(values[0])
    # What needs no derivative of the operator works.
    scale = torch.ones(())
    assert torch.equal(torch.func.grad(lambda s: total(values[0]) * s)(scale), total(values[0]))


def test_vmap_and_jacobian():
    a, b = normals(6, 3, 4), normals(4, 5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        out = torch.vmap(lambda x: lmul.matmul(x, b))(a)
        jacobian, vectorized = (
            torch.autograd.functional.jacobian(lambda x: lmul.matmul(x, b), a[0], vectorize=v)
            for v in (False, True)
        )
    assert house.same_bits(out, lmul.bmm(a, b.expand(6, 4, 5)))
    assert house.same_bits(jacobian, vectorized)
    assert torch.equal(jacobian[1, :, 1], b.mT)


def test_checkpointing_and_hooks():
    x = normals(3, 4, grad=True)
    w = normals(5, 4, grad=True)
    expected = torch.autograd.grad(lmul.linear(x, w).sum(), (x, w))
    out = torch.utils.checkpoint.checkpoint(lmul.linear, x, w, use_reentrant=False)
    for a, b in zip(torch.autograd.grad(out.sum(), (x, w)), expected, strict=True):
        assert house.same_bits(a, b)


def test_saved_tensors_may_not_change():
    x, w = normals(3, 4, grad=True), normals(4, 5)
    out = lmul.matmul(x, w)
    w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


# ---- determinism ----


@calls
def test_the_same_bits_every_time(call, isa):
    make, options = CALLS[call]
    function = function_of(call)

    def run():
        values = make(grad=True)
        out = function(*values, **options)
        return [out, *torch.autograd.grad(out, values, torch.ones_like(out))]

    first = run()
    for count in (1, 2, 5):
        with house.threads(count):
            for a, b in zip(run(), first, strict=True):
                assert house.same_bits(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_do_not_change_large_results(dtype):
    a, b = normals(150, 530).to(dtype), normals(530, 170).to(dtype)
    x = normals(300, 257).to(dtype)
    results = []
    for count in (1, 2, 3):
        with house.threads(count):
            a_, b_ = a.clone().requires_grad_(), b.clone().requires_grad_()
            out = lmul.matmul(a_, b_)
            gradients = torch.autograd.grad(out, (a_, b_), torch.ones_like(out))
            results.append([out, *gradients, lmul.mul(x, x), lmul.pack(b.mT)])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert house.same_bits(one, two)


def test_an_error_inside_the_pool_keeps_its_text():
    wide = torch.full((256, 256), 2.0**100)
    with house.threads(2), pytest.raises(RuntimeError, match="algo='word'"):
        lmul.matmul(wide, wide, algo="word")


def test_packed_weights_give_the_same_bits():
    for shape in ((5, 4), (33, 300), (64, 512)):
        w, bias = normals(*shape), normals(shape[0])
        packed = lmul.pack(w)
        for rows in (1, 3, 40):
            x = normals(rows, shape[1])
            out = lmul.linear(x, w, bias, w_packed=packed)
            assert house.same_bits(out, lmul.linear(x, w, bias))


def test_packed_weight_passes_gradients():
    x, w = normals(3, 4, grad=True), normals(5, 4, grad=True)
    packed = lmul.pack(w)
    assert not packed.requires_grad
    expected = torch.autograd.grad(lmul.linear(x, w).sum(), (x, w))
    out = lmul.linear(x, w, w_packed=packed)
    for a, b in zip(torch.autograd.grad(out.sum(), (x, w)), expected, strict=True):
        assert house.same_bits(a, b)


# ---- processes, documentation ----


def test_sharding():
    pytest.importorskip("torch.distributed.tensor.experimental")
    house.run_ranks(Path(__file__).parent / "sharding_ranks.py")


def test_import_leaves_distributed_tensors_alone():
    run = house.run_python(
        "import sys, nnkernels; assert 'torch.distributed.tensor' not in sys.modules"
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("documented", ["ops", "module", "convert"])
def test_examples_in_docstrings(documented):
    result = doctest.testmod(sys.modules[f"nnkernels.lmul.{documented}"])
    assert result.attempted > 0
    assert result.failed == 0
