"""The deltaproduct operators inside PyTorch: opcheck, gradcheck, compile, export, autocast,
strides, backends, DTensor. That the numbers are right is for test_scan.py and test_step.py."""

import doctest
import sys
from pathlib import Path

import house
import pytest
import torch
from deltaproduct_cases import BF16, FP64, Case, relative_error, run
from torch.autograd import forward_ad

import nnkernels.nn
from nnkernels import deltaproduct

OPS = torch.ops.nnkernels
SCAN = ("q", "k", "v", "g", "beta", "initial_state")

CASES = {
    "gated": Case(T=5, n=2, K=4, V=3, Hk=1, H=2, l2norm=True),
    "plain": Case(T=5, n=1, K=4, V=3, g=None, initial=None),
    "long": Case(T=70, n=3, K=4, V=5, Hk=2, H=2),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def raw(case, cu_seqlens=None, grad=False):
    """Positional arguments of deltaproduct_scan."""
    tensors = [None if x is None else x.requires_grad_(grad) for x in case.inputs().values()]
    return [*tensors, cu_seqlens, case.n, 0.5, case.l2norm, True, True]


def tokens(case):
    """Positional arguments of a step: those of the first token."""
    x = case.inputs()
    n = case.n
    g = None if x["g"] is None else x["g"][:, 0]
    state = torch.ones(case.B, case.H, case.K, case.V)
    return [x["q"][:, 0], x["k"][:, :n], x["v"][:, :n], g, x["beta"][:, :n], state]


# ---- opcheck ----


@cases
def test_opcheck(case):
    house.check_op(OPS.deltaproduct_scan.default, *raw(case, grad=True))
    house.check_op(OPS.deltaproduct_scan_fwd.default, *raw(case))
    house.check_op(OPS.deltaproduct_scan_fwd.default, *raw(case)[:-2], False, False)
    house.check_op(OPS.deltaproduct_step.default, *tokens(case), None, 0.5, case.l2norm)
    k, v, g, beta = (case.inputs()[x] for x in ("k", "v", "g", "beta"))
    house.check_op(OPS.deltaproduct_state_map.default, k, v, g, beta, None, case.n, case.l2norm)


@cases
@pytest.mark.parametrize("final", [False, True])
def test_opcheck_backward(case, final):
    arguments = raw(case)
    _, state, checkpoints = OPS.deltaproduct_scan_fwd(*arguments)
    grad_o, _ = case.upstream()
    grad_final = torch.ones_like(state) if final else None
    house.check_op(
        *(OPS.deltaproduct_scan_bwd.default, grad_o, grad_final, *arguments[:7], checkpoints),
        *(case.n, 0.5, case.l2norm),
    )


def test_opcheck_packed():
    case = Case(T=9, n=2, B=1, K=4, V=3, initial=None)
    cu_seqlens = torch.tensor([0, 4, 4, 8])
    house.check_op(OPS.deltaproduct_scan.default, *raw(case, cu_seqlens, grad=True))
    k, v, g, beta = (case.inputs()[x] for x in ("k", "v", "g", "beta"))
    house.check_op(OPS.deltaproduct_state_map.default, k, v, g, beta, cu_seqlens, 2, True)
    slots = torch.tensor([1, -1])
    case = Case(T=1, B=2, K=4, V=3)
    house.check_op(OPS.deltaproduct_step.default, *tokens(case), slots, 0.5, True)


# ---- gradcheck ----


@pytest.mark.parametrize(
    "case",
    [
        Case(T=4, n=2, K=3, V=2, B=1, Hk=1, H=2, dtype=FP64, l2norm=True),
        Case(T=3, n=3, K=2, V=3, B=2, Hk=2, H=2, dtype=FP64, g=None, beta=1.9),
        Case(T=3, n=1, K=3, V=2, B=1, H=1, dtype=FP64, initial=None, g=-2.0),
    ],
    ids=str,
)
def test_gradcheck(case):
    inputs = {name: x.requires_grad_() for name, x in case.inputs().items() if x is not None}
    absent = {name: None for name in SCAN if name not in inputs}

    def function(*values):
        given = dict(zip(inputs, values, strict=True))
        return deltaproduct.scan(**given, **absent, **case.options)

    assert torch.autograd.gradcheck(function, tuple(inputs.values()))


def test_gradcheck_packed():
    case = Case(T=7, n=2, K=3, V=2, B=1, H=1, dtype=FP64, initial=None)
    inputs = {name: x.requires_grad_() for name, x in case.inputs().items() if x is not None}
    state = torch.randn(3, 1, 3, 2, dtype=FP64, requires_grad=True)

    def function(state, *values):
        given = dict(zip(inputs, values, strict=True))
        cu_seqlens = torch.tensor([0, 3, 3, 6])
        return deltaproduct.scan(
            **given, initial_state=state, cu_seqlens=cu_seqlens, **case.options
        )

    assert torch.autograd.gradcheck(function, (state, *inputs.values()))


# ---- compile and export ----


@cases
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile(case, dynamic):
    inputs = {name: x for name, x in case.inputs().items() if x is not None}
    absent = {name: None for name in SCAN if name not in inputs}

    def function(*values):
        given = dict(zip(inputs, values, strict=True))
        o, state = deltaproduct.scan(**given, **absent, **case.options)
        return o + state.sum()

    leaves = [x.requires_grad_() for x in inputs.values()]
    house.check_compiled(function, *leaves, dynamic=dynamic)


def test_compile_packed_sequences():
    case = Case(T=20, n=2, B=1)
    inputs = case.inputs() | {"initial_state": None}

    def function(cu_seqlens):
        return deltaproduct.scan(**inputs, cu_seqlens=cu_seqlens, **case.options)[0]

    house.check_compiled(function, torch.tensor([0, 7, 20]), dynamic=True)


def test_compile_step():
    case = Case(T=1, n=2)
    torch.compiler.reset()
    compiled = torch.compile(deltaproduct.step, fullgraph=True, backend="aot_eager")
    for slots in (None, torch.tensor([1, -1])):
        values, again = tokens(case), tokens(case)
        assert house.same_bits(compiled(*values, slots), deltaproduct.step(*again, slots))
        assert house.same_bits(values[-1], again[-1])


def test_compile_state_map():
    case = Case(T=20, n=2)
    rows = [case.inputs()[x] for x in ("k", "v", "g", "beta")]
    house.check_compiled(lambda *x: torch.cat(deltaproduct.state_map(*x, 2), 3), *rows)


class Block(torch.nn.Module):
    """Projections and the scan."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.project = torch.nn.Linear(6, 3 * 8, bias=False)

    def forward(self, x):
        q, k, v = self.project(x).unflatten(2, (3, 2, 4)).unbind(2)
        o, state = deltaproduct.scan(
            q, k, v, -x[..., :2].abs(), k[..., 0], output_final_state=True, use_qk_l2norm=True
        )
        return o + state.sum()


@house.needs_compiler
def test_compile_with_inductor():
    block, x = Block(), torch.randn(2, 9, 6)
    want = block(x)
    expected = torch.autograd.grad(want.sum(), block.project.weight)
    torch.compiler.reset()
    out = torch.compile(block, fullgraph=True)(x)
    torch.testing.assert_close(out, want)
    found = torch.autograd.grad(out.sum(), block.project.weight)
    assert relative_error(found[0], expected[0]) <= 1e-4


def test_export():
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time", min=2)}
    program = house.check_exported(Block(), torch.randn(2, 7, 6), dynamic_shapes=(sizes,))
    targets = {str(node.target) for node in program.graph.nodes}
    assert "nnkernels.deltaproduct_scan.default" in targets
    x = torch.randn(3, 11, 6)
    assert house.same_bits(program.module()(x), Block()(x))


def test_compile_and_export_the_layer():
    torch.manual_seed(0)
    layer = nnkernels.nn.GatedDeltaProduct(8, 2, 4)
    x = torch.randn(2, 7, 8)

    def prefill_and_step(x):
        with torch.no_grad():
            _, cache = layer(x[:, :-1])
            return layer(x[:, -1:], cache)[0]

    house.check_compiled(prefill_and_step, x)
    y, cache = torch.export.export(layer, (x,)).module()(x)
    want, want_cache = layer(x)
    assert house.same_bits(y, want)
    assert house.same_bits(cache.state, want_cache.state)


# ---- options ----


def test_shapes_with_their_own_micro_step_dimension():
    case = Case(T=6, n=3)
    inputs = case.inputs()
    want = deltaproduct.scan(**inputs, **case.options)
    unfolded = inputs | {name: inputs[name].unflatten(1, (6, 3)) for name in ("k", "v", "beta")}
    for got, expected in zip(deltaproduct.scan(**unfolded, **case.options), want, strict=True):
        assert house.same_bits(got, expected)
    rows = ("k", "v", "g", "beta")
    for got, expected in zip(
        deltaproduct.state_map(*(unfolded[x] for x in rows), 3),
        deltaproduct.state_map(*(inputs[x] for x in rows), 3),
        strict=True,
    ):
        assert house.same_bits(got, expected)


def test_options_of_scan():
    case = Case(l2norm=True)
    inputs = case.inputs()
    o, _ = deltaproduct.scan(**inputs, **case.options)
    only, none = deltaproduct.scan(**inputs, num_householder=case.n, use_qk_l2norm=True)
    assert none is None
    assert house.same_bits(only, o)
    alias = deltaproduct.scan(**inputs, num_householder=case.n, use_qk_l2norm_in_kernel=True)
    assert house.same_bits(alias[0], o)
    scaled, _ = deltaproduct.scan(**inputs, **case.options | {"scale": 0.5})
    assert relative_error(scaled, 2 * o.double()) <= 1e-6
    given, _ = deltaproduct.scan(**inputs, **case.options | {"scale": case.K**-0.5})
    assert house.same_bits(given, o)


def test_gates_and_states_are_promoted():
    case = Case(dtype=BF16, beta="one")
    inputs = case.inputs()
    narrow = inputs | {name: inputs[name].to(BF16) for name in ("g", "initial_state")}
    wide = narrow | {name: narrow[name].float() for name in ("g", "initial_state")}
    upstream = case.upstream()
    got = run(deltaproduct.scan, narrow, upstream, **case.options)
    want = run(deltaproduct.scan, wide, upstream, **case.options)
    for name in want:
        assert house.same_bits(got[name], want[name].to(got[name].dtype)), name
    assert got["dg"].dtype == got["dinitial_state"].dtype == BF16


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_autocast(compiled):
    case = Case(l2norm=True, beta="one")
    inputs = {name: x.requires_grad_() for name, x in case.inputs().items()}

    def function(**given):
        return deltaproduct.scan(**given, **case.options)[0]

    torch.compiler.reset()
    call = torch.compile(function, fullgraph=True, backend="aot_eager") if compiled else function
    with torch.autocast("cpu", BF16):
        o = call(**inputs)
    narrow = inputs | {name: inputs[name].to(BF16) for name in ("q", "k", "v")}
    assert o.dtype == BF16
    assert house.same_bits(o, function(**narrow))
    for x, g in zip(
        inputs.values(), torch.autograd.grad(o.float().sum(), inputs.values()), strict=True
    ):
        assert g.dtype == x.dtype


# ---- strides ----


def strided(x, canaries):
    """The same values with other strides."""
    order = tuple(range(x.dim()))[::-1]
    yield canaries.embed(x)
    yield canaries.embed(x, step=2)
    yield x.permute(order).contiguous().permute(order)


@pytest.mark.parametrize("name", SCAN)
def test_strides_of_inputs(name, canaries):
    case = Case(T=20, n=2, Hk=2, H=4)
    inputs, upstream = case.inputs(), case.upstream()
    want = run(deltaproduct.scan, inputs, upstream, **case.options)

    def scan(**given):
        # `run` clones its inputs: strides come here.
        return deltaproduct.scan(**given | {name: moved(given[name])}, **case.options)

    for index in range(3):

        def moved(x, index=index):
            return _Restrided.apply(x, list(strided(x.detach(), canaries))[index])

        got = run(scan, inputs, upstream)
        for key, x in want.items():
            assert house.same_bits(got[key], x), (key, index)


class _Restrided(torch.autograd.Function):
    """`other`, the same values elsewhere in memory, with the gradient of x."""

    @staticmethod
    def forward(ctx, x, other):
        return other.view_as(other)

    @staticmethod
    def backward(ctx, g):
        return g, None


def test_strides_of_upstream(canaries):
    case = Case(T=20, n=2)
    inputs, (grad_o, grad_final) = case.inputs(), case.upstream()
    want = run(deltaproduct.scan, inputs, (grad_o, grad_final), **case.options)
    for g, g_final in zip(strided(grad_o, canaries), strided(grad_final, canaries), strict=True):
        got = run(deltaproduct.scan, inputs, (g, g_final), **case.options)
        for key, x in want.items():
            assert house.same_bits(got[key], x), key
    # .sum().backward() sends an expanded gradient, stride 0 everywhere.
    one, many = torch.ones(()).expand_as(grad_o), torch.ones_like(grad_o)
    got, want = (
        run(deltaproduct.scan, inputs, (g, grad_final), **case.options) for g in (one, many)
    )
    for key, x in want.items():
        assert house.same_bits(got[key], x), key


# ---- autograd ----


def test_only_needed_gradients():
    case = Case(T=20, n=2)
    inputs = case.inputs()
    want = run(deltaproduct.scan, inputs, case.upstream(), **case.options)
    for name in SCAN:
        alone = inputs | {name: inputs[name].clone().requires_grad_()}
        out = deltaproduct.scan(**alone, **case.options)
        (gradient,) = torch.autograd.grad(out, alone[name], case.upstream())
        assert house.same_bits(gradient, want[f"d{name}"])


def test_forward_mode_and_transforms_are_refused():
    case = Case(T=3, n=1)
    inputs = case.inputs()
    message = "^deltaproduct_scan: forward-mode differentiation"
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(inputs["v"], inputs["v"])
        with pytest.raises(NotImplementedError, match=message):
            deltaproduct.scan(**inputs | {"v": dual}, **case.options)

    def total(v):
        return deltaproduct.scan(**inputs | {"v": v}, **case.options)[0].sum()

    message = "^deltaproduct_scan: the transforms of torch.func"
    with pytest.raises(NotImplementedError, match=message):
        torch.func.grad(total)(inputs["v"])


def test_checkpointing_and_saved_tensors():
    case = Case(T=20, n=2)
    inputs = {name: x.requires_grad_() for name, x in case.inputs().items()}

    def function(*values):
        return deltaproduct.scan(*values[:5], case.n, initial_state=values[5])[0]

    values = list(inputs.values())
    want = torch.autograd.grad(function(*values).sum(), values)
    out = torch.utils.checkpoint.checkpoint(function, *values, use_reentrant=False)
    for a, b in zip(torch.autograd.grad(out.sum(), values), want, strict=True):
        assert house.same_bits(a, b)
    k = inputs["k"].detach().clone()
    out = function(values[0], k, *values[2:])
    k.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


# ---- backends, processes, documentation ----

REFERENCE_BACKEND = """
import torch
from nnkernels import deltaproduct

torch.manual_seed(0)
q, k, v = torch.randn(2, 70, 1, 8), torch.randn(2, 140, 1, 8), torch.randn(2, 140, 2, 6)
g, beta = -torch.rand(2, 70, 2), torch.rand(2, 140, 2)
g[:, 30] = -torch.inf
inputs = [x.requires_grad_() for x in (q, k, v, g, beta, torch.randn(2, 2, 8, 6))]

def results(scan):
    o, state = scan(*inputs[:5], 2, initial_state=inputs[5], output_final_state=True,
                    use_qk_l2norm=True)
    return [o, state, *torch.autograd.grad(o.sum() + state.square().sum(), inputs)]

for ours, want in zip(results(deltaproduct.scan), results(deltaproduct.reference.scan)):
    assert (ours - want).norm() <= 1e-5 * want.norm()
ops = torch.ops.nnkernels
chunks = ops.deltaproduct_scan_fwd(*(x.detach() for x in inputs), None, 2, 0.5, True, False, True)
assert [x.shape[0] for x in chunks] == [2, 0, 4] and not chunks[2].any()
with torch.no_grad():
    A, M = deltaproduct.state_map(k, v, g, beta, 2, True)
    state = torch.randn(2, 2, 8, 6)
    one = q[:, 0], k[:, :2], v[:, :2], g[:, 0], beta[:, :2]
    want_state = state.clone()
    want = deltaproduct.reference.step(*one, want_state)
    assert torch.allclose(deltaproduct.step(*one, state), want, atol=1e-6)
    assert torch.allclose(state, want_state, atol=1e-6)
"""


def test_reference_backend():
    done = house.run_python(REFERENCE_BACKEND, NNKERNELS_BACKEND="reference")
    assert done.returncode == 0, done.stderr


def test_sharding():
    pytest.importorskip("torch.distributed.tensor.experimental")
    house.run_ranks(Path(__file__).parent / "sharding_ranks.py")


@pytest.mark.parametrize("documented", ["ops", "module"])
def test_examples_in_docstrings(documented):
    result = doctest.testmod(sys.modules[f"nnkernels.deltaproduct.{documented}"])
    assert result.attempted > 0
    assert result.failed == 0
