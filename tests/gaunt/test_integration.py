"""The gaunt operators inside PyTorch: opcheck, compile, export, torch.func, strides, empty sizes,
determinism, threads, DTensor. That the numbers are right is for test_products.py."""

import doctest
import sys
from pathlib import Path

import house
import pytest
import torch
from gaunt_cases import (
    CASES,
    GRID,
    LAYOUTS,
    PRODUCTS,
    assert_accurate,
    call_of,
    derivatives,
    dim,
    inputs,
    normals,
    signals,
    weights,
)
from torch.autograd import forward_ad

import nnkernels.nn
from nnkernels import gaunt
from nnkernels.gaunt import reference

OPS = torch.ops.nnkernels
cases = pytest.mark.parametrize("case", CASES)
products = pytest.mark.parametrize("case", PRODUCTS)


# ---- opcheck ----


def raw_calls(grad):
    """One call of every operator with autograd, and of its halves."""
    x, y = signals(2, 2, 3, grad=grad), signals(1, 2, 1, seed=1, grad=grad)
    w1, w3 = weights(2, 3, seed=2, grad=grad), weights(3, 1, seed=3, grad=grad)
    degrees, options = (2, 1, 3), ("norm", "mul_ir")
    gz, u, v = signals(3, 2, 3, seed=4), signals(2, 2, 3, seed=5), signals(1, 2, 1, seed=6)
    count = len(gaunt.path_list(*degrees, "both"))
    w = normals(count, seed=7, grad=grad)
    for name in ("gaunt_product", "gaunt_cross"):
        yield name, (x, y, *degrees, w1, None, w3, *options)
        yield name, (x, y, *degrees)
        yield f"{name}_bwd", (gz, x, y, *degrees, w1, None, w3, *options, True, True, True)
        yield f"{name}_bwd", (gz, x, y, *degrees, None, None, None, *options, False, True)
        cotangents = (u, None, w1.detach(), None, None)
        yield f"{name}_bwd_bwd", (*cotangents, gz, x, y, *degrees, w1)
        needs = (False, True, False, True)
        rest = (*degrees, w1, None, None, *options, *needs)
        yield f"{name}_bwd_bwd", (u, v, None, None, None, gz, x, y, *rest)
    xs, Ls = [x, y], [2, 1]
    yield "gaunt_nfold", (xs, Ls, 3, *options)
    yield "gaunt_nfold_bwd", (gz, xs, Ls, 3, *options, [1, 0])
    yield "gaunt_nfold_bwd_bwd", ([u, v[:0].flatten()], gz, xs, Ls, 3, *options, [1, 0, 1])
    yield "gaunt_power", (x, 3, 2, 3)
    yield "gaunt_power_bwd", (gz, x, 3, 2, 3)
    yield "gaunt_power_bwd_bwd", (u, gz, x, 3, 2, 3)
    yield "gaunt_paths", (x, y, w, *degrees, "both")
    yield "gaunt_paths_bwd", (gz, x, y, w, *degrees, "both", *options, True, False, True)
    yield "gaunt_paths_bwd_bwd", (None, v, w.detach(), gz, x, y, w, *degrees, "both")
    f = normals(2, len(GRID.points), grad=grad)
    yield "gaunt_to_grid", (x, 2, GRID.points)
    yield "gaunt_from_grid", (f, 2, GRID.points, GRID.weights)
    vectors = normals(2, 3, 9, grad=grad), normals(2, 3, 4, seed=1, grad=grad)
    yield "gaunt_vector_product", (*vectors, *degrees)


CALLS = [name for name, _ in raw_calls(False)]


@pytest.mark.parametrize("index", range(len(CALLS)), ids=lambda i: f"{CALLS[i]}-{i}")
def test_opcheck(index):
    half = "_bwd" in CALLS[index]
    name, arguments = list(raw_calls(grad=not half))[index]
    operator = getattr(OPS, name).default
    positional = [a for a in operator._schema.arguments if not a.kwarg_only]
    keywords = {"need": arguments[-1]} if len(arguments) > len(positional) else {}
    house.check_op(operator, *arguments[: len(positional)], **keywords)
    if not half and name != "gaunt_vector_product":
        detached = list(raw_calls(grad=False))[index][1]
        house.check_op(getattr(OPS, f"{name}_fwd").default, *detached)


# ---- compile and export ----


@cases
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile(case, dynamic):
    if "broadcast" in case and dynamic:
        dynamic = None
    house.check_compiled(call_of(case), *inputs(case, grad=True), dynamic=dynamic)


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.product = nnkernels.nn.GauntTensorProduct(2, 1, 2, channels=4)
        self.power = nnkernels.nn.GauntPower(2, 1, order=3, channels=4)

    def forward(self, x, y):
        return self.power(self.product(x, y))


@house.needs_compiler
def test_compile_with_inductor():
    block = Block().double()
    x, y = signals(2, 5, 4), signals(1, 5, 1, seed=1)
    compiled = torch.compile(block, fullgraph=True)
    out = compiled(x, y)
    gradients = torch.autograd.grad(out.square().sum(), list(block.parameters()))
    expected = block(x, y)
    torch.testing.assert_close(out, expected)
    wanted = torch.autograd.grad(expected.square().sum(), list(block.parameters()))
    torch.testing.assert_close(gradients, wanted)


def test_export_with_dynamic_sizes():
    block = Block().double()
    batch = {0: torch.export.Dim("batch", min=2)}
    given = signals(2, 5, 4), signals(1, 5, 1, seed=1)
    program = house.check_exported(block, *given, dynamic_shapes=(batch, batch))
    targets = {str(node.target) for node in program.graph.nodes}
    assert {"nnkernels.gaunt_product.default", "nnkernels.gaunt_power.default"} <= targets
    other = signals(2, 11, 4), signals(1, 11, 1, seed=1)
    assert house.same_bits(program.module()(*other), block(*other))


# ---- torch.func ----


@cases
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_vmap(case, compiled):
    function = call_of(case)
    tensors = inputs(case)
    batched = torch.stack([tensors[0], 2 * tensors[0], tensors[0].flip(0)], dim=1)
    dims = (1, *[None] * (len(tensors) - 1))
    mapped = torch.func.vmap(function, dims)
    if compiled and case == "nfold":
        # Traced, vmap needs a batching rule for lists, which torch cannot make up.
        return
    if compiled:
        torch.compiler.reset()
        mapped = torch.compile(mapped, fullgraph=True, backend="aot_eager")
    expected = torch.stack([function(x, *tensors[1:]) for x in batched.unbind(1)])
    torch.testing.assert_close(mapped(batched, *tensors[1:]), expected, rtol=0, atol=1e-13)


@products
@pytest.mark.parametrize("layout", LAYOUTS)
def test_vmap_over_everything(case, layout):
    function = call_of(case, layout=layout)
    tensors = inputs(case, layout=layout)
    batched = [torch.stack((x, -x.flip(0)), dim=x.dim()) for x in tensors]
    mapped = torch.func.vmap(function, tuple(x.dim() - 1 for x in batched))
    expected = [function(*each) for each in zip(*(x.unbind(-1) for x in batched), strict=True)]
    torch.testing.assert_close(mapped(*batched), torch.stack(expected), rtol=0, atol=1e-13)
    # Nested, and outside of it autograd.
    leaves = [x.requires_grad_() for x in batched]
    out = torch.func.vmap(mapped, 0)(*(torch.stack((x, x)) for x in leaves))
    gradients = torch.autograd.grad(out.square().sum(), leaves)
    total = sum(
        2 * value.square().sum() for value in map(function, *(x.unbind(-1) for x in leaves))
    )
    wanted = torch.autograd.grad(total, leaves)
    torch.testing.assert_close(gradients, wanted, rtol=1e-12, atol=1e-12)


@products
def test_transforms_of_torch_func(case):
    tensors = inputs(case)
    positions = tuple(range(len(tensors)))

    def energy(*tensors):
        return call_of(case)(*tensors).square().sum()

    leaves = [x.clone().requires_grad_() for x in tensors]
    first = torch.autograd.grad(energy(*leaves), leaves, create_graph=True)
    assert all(map(torch.equal, torch.func.grad(energy, positions)(*tensors), first))
    # Gradients for each sample, of what all share too.
    stacked = torch.stack((tensors[0], 2 * tensors[0]))
    dims = (0, *[None] * (len(tensors) - 1))
    each = torch.func.vmap(torch.func.grad(energy, positions), dims)(stacked, *tensors[1:])
    for index in range(2):
        single = torch.func.grad(energy, positions)(stacked[index], *tensors[1:])
        for ours, theirs in zip(each, single, strict=True):
            torch.testing.assert_close(ours[index], theirs, rtol=0, atol=1e-11)
    # A product of the Hessian with a vector, by grad of grad.
    vector = normals(*tensors[0].shape, seed=31)

    def slope(x):
        return (torch.func.grad(energy)(x, *tensors[1:]) * vector).sum()

    wanted = torch.autograd.grad((first[0] * vector).sum(), leaves[0])[0]
    torch.testing.assert_close(torch.func.grad(slope)(tensors[0]), wanted, rtol=0, atol=1e-10)


# The loop that torch makes of an operator without a batching rule takes no lists.
@pytest.mark.parametrize("case", [case for case in CASES if case != "nfold"])
def test_batched_gradients(case):
    tensors = inputs(case, grad=True)
    out = call_of(case)(*tensors)
    g = normals(3, *out.shape, seed=8)
    got = torch.autograd.grad(out, tensors, g, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(out, tensors, one, retain_graph=True) for one in g]
    for ours, theirs in zip(got, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.stack(theirs), rtol=0, atol=1e-12)


def test_raw_operators_under_torch_func():
    x, y = signals(1, 3), signals(1, 3, seed=1)
    with pytest.raises(NotImplementedError, match=r"^gaunt_product: the transforms of torch\.func"):
        torch.func.grad(lambda x: OPS.gaunt_product(x, y, 1, 1, 1).sum())(x)


@cases
def test_forward_mode_is_refused(case):
    tensors = inputs(case)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(tensors[0], tensors[0])
        with pytest.raises(NotImplementedError, match="forward-mode"):
            call_of(case)(dual, *tensors[1:])
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda x: call_of(case)(x, *tensors[1:]), (tensors[0],), (tensors[0],))


# ---- autograd ----


@cases
def test_only_needed_gradients(case):
    tensors = inputs(case, grad=True)
    function = call_of(case)
    out = function(*tensors)
    g = normals(*out.shape, seed=8)
    everything = torch.autograd.grad(out, tensors, g)
    for position, tensor in enumerate(tensors):
        alone = [x.detach() for x in tensors]
        alone[position] = tensor
        (gradient,) = torch.autograd.grad(function(*alone), tensor, g)
        torch.testing.assert_close(gradient, everything[position], rtol=0, atol=1e-13)


@cases
def test_without_gradients_the_forward_operator_runs(case, monkeypatch):
    from nnkernels.gaunt import ops

    name = f"gaunt_{case.split('-')[0]}"
    seen = []
    for table in ("_FORWARD", "_RECORDED"):
        plain = getattr(ops, table)[name]
        monkeypatch.setitem(
            getattr(ops, table), name, lambda *a, t=table, f=plain: (seen.append(t), f(*a))[1]
        )
    plain = call_of(case)(*inputs(case))
    recorded = call_of(case)(*inputs(case, grad=True))
    assert seen == ["_FORWARD", "_RECORDED"]
    assert not plain.requires_grad
    assert recorded.requires_grad
    assert house.same_bits(plain, recorded.detach())


# ---- strides, sizes, memory ----


@cases
@pytest.mark.parametrize("step", [1, 2], ids=["offset", "gaps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_strided_inputs(case, step, dtype, canaries, isa):
    tensors = inputs(case, dtype)
    function = call_of(case)
    g = normals(*function(*tensors).shape, seed=8, dtype=dtype)
    expected = derivatives(function, tensors, g, tensors)
    moved = [canaries.embed(x, step) for x in tensors]
    got = derivatives(function, moved, canaries.embed(g, step), moved)
    assert all(map(house.same_bits, got, expected))
    for x, y in zip(moved, tensors, strict=True):
        assert house.same_bits(x.contiguous(), y)


@products
def test_transposed_and_expanded_inputs(case, isa):
    tensors = inputs(case, torch.float32)
    function = call_of(case)
    transposed = [x.movedim(0, -1).contiguous().movedim(-1, 0) for x in tensors]
    expanded = [x[:1].expand(x.shape) if x.dim() > 1 else x for x in tensors]
    dense = [x.contiguous() for x in expanded]
    for given, same in ((transposed, tensors), (expanded, dense)):
        leaves = [[x.detach().requires_grad_() for x in each] for each in (given, same)]
        outs = [function(*each) for each in leaves]
        assert house.same_bits(outs[0], outs[1])
        # .sum() sends an expanded gradient, stride 0 everywhere.
        gradients = [
            torch.autograd.grad(out.sum(), each) for out, each in zip(outs, leaves, strict=True)
        ]
        assert all(map(house.same_bits, *gradients))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("leading", [(0,), (1,), (7,), (2, 0), (0, 3), (3, 1), (33,)], ids=str)
def test_small_and_empty_sizes(leading, layout, isa):
    shape = (*leading, 1) if layout == "ir_mul" and len(leading) == 1 else leading
    x, y, v = (
        signals(L, *shape, seed=L, dtype=torch.float32, layout=layout, grad=True) for L in (2, 1, 2)
    )
    w = weights(2, 1, dtype=torch.float32, layout=layout, grad=True)
    options = {"layout": layout}
    count = len(gaunt.path_list(2, 1, 3, "both"))
    p = normals(count, dtype=torch.float32, grad=True)
    for function, tensors in (
        (lambda x, y, w: gaunt.product(x, y, 2, 1, 3, w, **options), (x, y, w)),
        (lambda x, y, w: gaunt.cross(x, y, 2, 1, 3, w, **options), (x, y, w)),
        (lambda x, y, v: gaunt.nfold([x, y, v], [2, 1, 2], 3, **options), (x, y, v)),
        (lambda x: gaunt.power(x, 3, 2, 3, **options), (x,)),
        (lambda x, y, p: gaunt.paths(x, y, p, 2, 1, 3, kind="both", **options), (x, y, p)),
    ):
        out = function(*tensors)
        assert out.shape == signals(3, *shape, layout=layout).shape
        g = torch.ones_like(out)
        for value in derivatives(function, tensors, g, [torch.ones_like(x) for x in tensors]):
            assert value.isfinite().all()
        if 0 in leading:
            gradients = torch.autograd.grad(out, tensors, g)
            assert all(not gradient.any() for gradient in gradients)


# ---- samples are independent ----

MANY = 37


def many(function, *Ls, dtype=torch.float32):
    tensors = [signals(L, MANY, seed=L + i, dtype=dtype) for i, L in enumerate(Ls)]
    return function, tensors


BATCHES = {
    "product-222": (lambda x, y: gaunt.product(x, y, 2, 2, 2), (2, 2)),
    "product-448": (lambda x, y: gaunt.product(x, y, 4, 4, 8), (4, 4)),
    "product-315": (lambda x, y: gaunt.product(x, y, 3, 1, 5), (3, 1)),
    "cross-333": (lambda x, y: gaunt.cross(x, y, 3, 3, 3), (3, 3)),
    "nfold": (lambda x, y, v: gaunt.nfold([x, y, v], [2, 1, 3], 3), (2, 1, 3)),
    "power": (lambda x: gaunt.power(x, 3, 2, 2), (2,)),
    "to_grid": (lambda x: gaunt.to_grid(x, 3, GRID), (3,)),
}
batches = pytest.mark.parametrize("batch", BATCHES)


def everything(function, tensors):
    """Result, gradients and their gradients."""
    shape = function(*tensors).shape
    g = torch.cos(torch.arange(shape[-1])).expand(shape).to(tensors[0].dtype)
    return derivatives(function, tensors, g, tensors)


@batches
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_sample_is_the_same_in_every_batch(batch, dtype, isa):
    function, Ls = BATCHES[batch]
    function, tensors = many(function, *Ls, dtype=dtype)
    whole = everything(function, tensors)
    for first, last in ((0, 1), (5, 6), (3, 11), (1, 36), (36, 37), (8, 24)):
        part = everything(function, [x[first:last] for x in tensors])
        for ours, full in zip(part, whole, strict=True):
            assert house.same_bits(ours, full[first:last].contiguous())


@batches
def test_threads_change_nothing(batch, isa):
    function, Ls = BATCHES[batch]
    tensors = [signals(L, 4099, seed=i, dtype=torch.float32) for i, L in enumerate(Ls)]
    results = []
    for count in (1, 2, 3):
        with house.threads(count):
            results.append(everything(function, tensors))
    for other in results[1:]:
        assert all(map(house.same_bits, results[0], other))


@cases
def test_runs_are_identical(case, isa):
    # Sums over what is broadcast have a fixed order too.
    tensors = inputs(case, torch.float32)
    function = call_of(case)
    g = normals(*function(*tensors).shape, seed=8, dtype=torch.float32)
    with house.threads(2):
        first = derivatives(function, tensors, g, tensors)
        for _ in range(3):
            assert all(map(house.same_bits, first, derivatives(function, tensors, g, tensors)))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@batches
def test_bad_values_stay_in_their_sample(batch, bad, isa):
    function, Ls = BATCHES[batch]
    function, tensors = many(function, *Ls)
    clean = everything(function, tensors)
    spoilt = [x.clone() for x in tensors]
    for x in spoilt:
        x[13] = bad
    kept = [i for i in range(MANY) if i != 13]
    for ours, full in zip(everything(function, spoilt), clean, strict=True):
        assert house.same_bits(ours[kept], full[kept])


def test_gradients_of_shared_operands_sum_over_many(isa):
    x, y = signals(2, 5000, dtype=torch.float32), signals(2, 1, seed=1, dtype=torch.float32)
    w = weights(2, 1, seed=2, dtype=torch.float32)
    g = torch.ones(5000, dim(2))

    def function(operators):
        return lambda x, y, w: operators.product(x, y, 2, 2, 2, None, w)

    wide = [t.double() for t in (x, y, w)]
    wanted = torch.autograd.grad(
        function(reference)(*[t.requires_grad_() for t in wide]), wide, g.double()
    )
    leaves = [t.requires_grad_() for t in (x, y, w)]
    got = torch.autograd.grad(function(gaunt)(*leaves), leaves, g)
    for ours, theirs in zip(got, wanted, strict=True):
        # The terms of a sum are as large as their number's root times its value.
        assert_accurate(ours, theirs, terms=10)


# ---- everything else ----


def test_reference_backend():
    run = house.run_python(
        """
        import torch
        from nnkernels import gaunt
        x = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
        y = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
        w = torch.randn(3, dtype=torch.float64, requires_grad=True)
        p = torch.randn(7, dtype=torch.float64, requires_grad=True)
        grid = gaunt.grid(4)
        for function, tensors in (
            (lambda x, y, w: gaunt.product(x, y, 2, 1, 2, w), (x, y, w)),
            (lambda x, y, w: gaunt.cross(x, y, 2, 1, 2, w), (x, y, w)),
            (lambda x, y: gaunt.nfold([x, y], [2, 1], 2), (x, y)),
            (lambda x: gaunt.power(x, 2, 2, 2), (x,)),
            (lambda x, y, p: gaunt.paths(x, y, p, 2, 1, 2), (x, y, p)),
            (lambda x: gaunt.from_grid(gaunt.to_grid(x, 2, grid), 2, grid), (x,)),
        ):
            assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
            assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)
        """,
        NNKERNELS_BACKEND="reference",
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("module", ["ops", "tables", "module", "reference"])
def test_examples_in_docstrings(module):
    result = doctest.testmod(sys.modules[f"nnkernels.gaunt.{module}"])
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch is built without torch.distributed"
)
def test_sharding():
    house.run_ranks(Path(__file__).with_name("sharding_ranks.py"))
