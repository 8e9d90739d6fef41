"""opcheck, torch.compile, torch.export, strides, autograd's edges, backends, sharding."""

from pathlib import Path

import house
import pytest
import torch
from pc_cases import FP32, FP64, NAMES, Case, close_ll, generator
from torch.autograd import forward_ad

from nnkernels import pc

OPS = torch.ops.nnkernels

CASES = [
    Case(D=4, h=3, K=5, N=6),
    Case(D=3, h=2, K=300, N=4, dtype=FP64, missing=0.3),
    Case(D=1, h=1, K=2, N=0),
]
cases = pytest.mark.parametrize("case", CASES, ids=str)


def raw(case, grad=False):
    """The arguments of the operators up to the mask."""
    inputs = case.inputs()
    return [x.requires_grad_() if grad and name in NAMES else x for name, x in inputs.items()]


def model_of(case) -> pc.HCLT:
    parameters = case.parameters()
    return pc.HCLT(*(parameters[name] for name in ("parent", *NAMES)))


def tables(case):
    return model_of(case).freeze().tables


# ---- opcheck ----


@cases
def test_opcheck(case):
    house.check_op(OPS.pc_forward.default, *raw(case, grad=True))
    house.check_op(OPS.pc_forward_fwd.default, *raw(case))
    house.check_op(OPS.pc_forward_fwd.default, *raw(case), False)
    house.check_op(OPS.pc_forward_bwd.default, torch.ones(case.N, dtype=case.dtype), *raw(case))
    house.check_op(OPS.pc_flows.default, *raw(case))
    house.check_op(OPS.pc_flows.default, *raw(case), torch.ones(case.N, dtype=case.dtype))
    theta, counts = torch.rand(3, 4, dtype=case.dtype), torch.rand(3, 4, dtype=case.dtype)
    house.check_op(OPS.pc_em_update.default, theta, counts, 0.1, 0.5)


@cases
def test_opcheck_of_the_codec(case):
    x, model = case.data(), tables(case)
    house.check_op(OPS.pc_conditional_cdf.default, x, model, case.D - 1, 16)
    house.check_op(OPS.pc_intervals.default, x, model)
    house.check_op(OPS.pc_encode.default, x, model, 2)
    words, counts = pc.encode(x, model, 2)
    house.check_op(OPS.pc_decode.default, words, counts, case.N, model)
    low, width = pc.intervals(x, model)
    house.check_op(OPS.rans_encode.default, low, width, 2)
    cdf = (torch.arange(5) * 2**18).int().expand(case.D, 5)
    low = torch.zeros(case.N, case.D, dtype=torch.int32)
    words, counts = pc.rans_encode(low, low + 2**18, 2)
    house.check_op(OPS.rans_decode.default, words, counts, cdf, case.N)
    state = torch.zeros(2, dtype=torch.int64)
    step = (torch.arange(5) * 2**18).int().expand(2, 5)
    if case.N > 0:
        house.check_op(OPS.rans_decode_step.default, state, state.clone(), words, counts, step)


# ---- compile and export ----


@cases
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile(case, dynamic):
    inputs = case.inputs()
    if case.N == 0 and dynamic:
        # A size of 0 is never symbolic.
        return
    leaves = [inputs[name].requires_grad_() for name in NAMES]

    def function(x, *values):
        given = inputs | dict(zip(NAMES, values, strict=True)) | {"x": x}
        return pc.forward(**given)[0]

    house.check_compiled(function, inputs["x"], *leaves, dynamic=dynamic)


def test_compile_without_gradients():
    model = model_of(Case(D=5, h=3, K=4)).requires_grad_(False)
    house.check_compiled(model, Case(D=5, K=4).data())


def test_compile_flows_and_the_codec():
    case = Case(D=5, h=3, K=4, N=9)
    inputs, model = case.inputs(), tables(case)

    def function(x):
        ll, cnt_pi, cnt_A, cnt_B = pc.flows(**inputs | {"x": x})
        words, counts = pc.encode(x, model, 2)
        decoded = pc.decode(words, counts, x.shape[0], model)
        low, width = pc.intervals(x, model)
        cdf = pc.conditional_cdf(x, model, 1)
        parts = (ll, cnt_pi, cnt_A, cnt_B, words, decoded, low, width, cdf)
        return torch.cat([part.flatten().double() for part in parts])

    for dynamic in (False, True):
        house.check_compiled(function, inputs["x"], dynamic=dynamic)


@house.needs_compiler
def test_compile_with_inductor():
    model = model_of(Case(D=5, h=3, K=4))
    x = Case(D=5, K=4).data()
    want = torch.autograd.grad(model(x).mean(), list(model.parameters()))
    torch.compiler.reset()
    compiled = torch.compile(lambda x: model(x).mean(), fullgraph=True)
    found = torch.autograd.grad(compiled(x), list(model.parameters()))
    for got, exact in zip(found, want, strict=True):
        torch.testing.assert_close(got, exact)


def test_export():
    model = model_of(Case(D=5, h=3, K=4))
    sizes = {0: torch.export.Dim("samples", min=2)}
    x = Case(D=5, K=4, N=7).data()
    program = house.check_exported(model, x, dynamic_shapes=(sizes,))
    targets = {str(node.target) for node in program.graph.nodes}
    assert targets & {"nnkernels.pc_forward.default", "nnkernels.pc_forward_fwd.default"}
    other = Case(D=5, K=4, N=20).data()
    assert house.same_bits(program.module()(other), model(other))


# ---- strides, devices ----


def strided(x, canaries):
    """The same values with other strides."""
    order = tuple(range(x.dim()))[::-1]
    yield canaries.embed(x)
    yield canaries.embed(x, step=2)
    yield x.permute(order).contiguous().permute(order)


@pytest.mark.parametrize("name", ["x", *NAMES, "parent", "order", "mask"])
def test_strides(name, canaries):
    case = Case(D=7, h=9, K=6, N=20, missing=0.2, wide=True)
    inputs = case.inputs()
    want = pc.forward(**inputs), pc.flows(**inputs)
    leaves = {key: inputs[key].clone().requires_grad_() for key in NAMES}
    exact = torch.autograd.grad(pc.forward(**inputs | leaves)[0].sum(), list(leaves.values()))
    # NaN is no integer: canaries around indices are what NaN becomes.
    for moved in strided(inputs[name], canaries):
        given = inputs | {name: moved}
        got = pc.forward(**given), pc.flows(**given)
        for a, b in zip(got, want, strict=True):
            for one, other in zip(a, b, strict=True):
                assert house.same_bits(one, other)
        leaves = {key: given[key].detach().requires_grad_() for key in NAMES}
        found = torch.autograd.grad(pc.forward(**given | leaves)[0].sum(), list(leaves.values()))
        for one, other in zip(found, exact, strict=True):
            assert house.same_bits(one, other)


@pytest.mark.parametrize("position", range(6))
def test_strides_of_a_frozen_model(position, canaries):
    case = Case(D=5, h=9, K=6, N=20)
    x, model = case.data(), tables(case)
    words, counts = pc.encode(x, model, 3)
    intervals, cdf = pc.intervals(x, model), pc.conditional_cdf(x, model, 2)
    for moved in strided(model[position], canaries):
        other = [moved if index == position else t for index, t in enumerate(model)]
        for a, b in zip(pc.encode(x, other, 3), (words, counts), strict=True):
            assert torch.equal(a, b)
        for a, b in zip(pc.intervals(x, other), intervals, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(pc.conditional_cdf(x, other, 2), cdf)
        assert torch.equal(pc.decode(words, counts, 20, other), x)


def test_strides_of_symbols_and_words(canaries):
    case = Case(D=5, h=9, K=6, N=20)
    x, model = case.data(), tables(case)
    words, counts = pc.encode(x, model, 3)
    low, width = pc.intervals(x, model)
    for moved in strided(x, canaries):
        assert torch.equal(pc.encode(moved, model, 3)[0], words)
        assert torch.equal(pc.intervals(moved, model)[0], low)
    for a, b in zip(strided(words, canaries), strided(counts, canaries), strict=True):
        assert torch.equal(pc.decode(a, b, 20, model), x)
    for a, b in zip(strided(low, canaries), strided(width, canaries), strict=True):
        assert torch.equal(pc.rans_encode(a, b, 3)[0], words)


# ---- autograd's edges ----


def test_double_backward():
    inputs = Case().inputs()
    B = inputs["B"].requires_grad_()
    ll, _ = pc.forward(**inputs)
    (gradient,) = torch.autograd.grad(ll.square().sum(), B, create_graph=True)
    with pytest.raises(RuntimeError, match="pc_forward: double backward is not supported"):
        gradient.sum().backward()


def test_forward_mode_and_transforms_are_refused():
    inputs = Case().inputs()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(inputs["B"], inputs["B"])
        for function in (pc.forward, pc.flows):
            with pytest.raises(NotImplementedError, match=r"forward-mode .*torch\.autograd\.grad"):
                function(**inputs | {"B": dual})

    def total(B):
        return pc.forward(**inputs | {"B": B})[0].sum()

    message = r"^pc_forward: the transforms of torch\.func .* pass all samples in one call"
    with pytest.raises(NotImplementedError, match=message):
        torch.func.grad(total)(inputs["B"])
    with pytest.raises(NotImplementedError, match=message):
        torch.func.jvp(total, (inputs["B"],), (inputs["B"],))
    with pytest.raises(NotImplementedError, match=message):
        torch.vmap(lambda x: pc.forward(**inputs | {"x": x[None]})[0])(inputs["x"])
    model = tables(Case())
    with pytest.raises(NotImplementedError, match=r"^pc_encode: the transforms of torch\.func"):
        torch.vmap(lambda x: pc.encode(x[None], model, 1))(inputs["x"])


def test_no_derivative():
    case = Case()
    inputs = case.inputs()
    message = "{}: an input requires a gradient, but it has no derivative; {}"
    for name in NAMES:
        wanted = inputs | {name: inputs[name].clone().requires_grad_()}
        for call in (pc.flows, lambda **given: OPS.pc_flows(*given.values())):
            with pytest.raises(RuntimeError, match=message.format("pc_flows", "differentiate")):
                call(**wanted)
            with torch.no_grad():
                call(**wanted)
    x, model = case.data(), tables(case)
    words, counts = pc.encode(x, model, 2)
    calls = {
        "pc_conditional_cdf": lambda model: (x, model, 0),
        "pc_intervals": lambda model: (x, model),
        "pc_encode": lambda model: (x, model, 2),
        "pc_decode": lambda model: (words, counts, case.N, model),
    }
    for position in range(4):
        grads = [t.clone().requires_grad_() if i == position else t for i, t in enumerate(model)]
        for name, arguments in calls.items():
            for call in (getattr(pc, name.removeprefix("pc_")), getattr(OPS, name)):
                with pytest.raises(RuntimeError, match=message.format(name, "detach the tables")):
                    call(*arguments(grads))
                with torch.no_grad():
                    call(*arguments(grads))


def test_checkpointing_and_saved_tensors():
    inputs = Case(N=20).inputs()
    leaves = [inputs[name].requires_grad_() for name in NAMES]

    def function(*values):
        return pc.forward(**inputs | dict(zip(NAMES, values, strict=True)))[0]

    want = torch.autograd.grad(function(*leaves).sum(), leaves)
    out = torch.utils.checkpoint.checkpoint(function, *leaves, use_reentrant=False)
    for a, b in zip(torch.autograd.grad(out.sum(), leaves), want, strict=True):
        assert house.same_bits(a, b)
    A = inputs["A"].detach().clone()
    out = function(leaves[0], A, leaves[2])
    A.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_training_data_parallel_sums():
    """Gradients of parts of the samples add up to those of all."""
    case = Case(N=30, dtype=FP64)
    inputs = case.inputs()
    leaves = {name: inputs[name].clone().requires_grad_() for name in NAMES}
    pc.forward(**inputs | leaves)[0].sum().backward()
    parts = {name: inputs[name].clone().requires_grad_() for name in NAMES}
    for part in (slice(0, 13), slice(13, 30)):
        pc.forward(**inputs | parts | {"x": inputs["x"][part]})[0].sum().backward()
    for name in NAMES:
        torch.testing.assert_close(parts[name].grad, leaves[name].grad, rtol=1e-11, atol=1e-11)


# ---- a step of decoding ----


def test_step_by_step():
    # A model whose CDF depends on what was decoded: two coins, the second like the first.
    draw = generator(3)
    x = torch.randint(2, (40, 1), generator=draw).expand(40, 2).clone()
    x[::10, 1] ^= 1
    first = torch.tensor([[0, 2**19, 2**20]]).int()
    second = torch.tensor([[0, 9 * 2**16, 2**20], [0, 2**16, 2**20]]).int()
    cdfs = torch.stack((first.expand(40, 3), second[x[:, 0]]), 1)
    low = cdfs.gather(2, x[:, :, None])[:, :, 0]
    width = cdfs.gather(2, x[:, :, None] + 1)[:, :, 0] - low
    words, counts = pc.rans_encode(low, width, 8)
    assert torch.equal(pc.rans_decode(words, counts, cdfs, 40), x.int())
    state, position = (torch.zeros(8, dtype=torch.int64) for _ in range(2))
    for start in range(0, 40, 8):
        rows = x[start : start + 8]
        a = pc.rans_decode_step(state, position, words, counts, first.expand(8, 3))
        assert torch.equal(a, rows[:, 0].int())
        b = pc.rans_decode_step(state, position, words, counts, second[a.long()])
        assert torch.equal(b, rows[:, 1].int())
    assert torch.equal(position, counts.long())
    assert (state == 2**32).all()


# ---- backends, processes ----

REFERENCE_BACKEND = """
import torch
from nnkernels import pc

torch.manual_seed(0)
x = torch.randint(4, (30, 6), dtype=torch.uint8)
mask = torch.rand(30, 6) < 0.2
model = pc.HCLT.from_data(x, 3)
given = x, model.pi, model.A, model.B, model.parent, model.order, mask
ll, u = pc.forward(*given)
want = pc.reference.forward(*given)
assert torch.equal(ll, want[0].float()) and torch.equal(u, want[1].float())
gradients = torch.autograd.grad(ll.sum(), [model.pi, model.A, model.B])
exact = pc.reference.gradients(torch.ones(30), *given)
for a, b in zip(gradients, exact):
    assert torch.equal(a, b.float())
before = model.log_prob(x).sum()
model.fit(x, epochs=3)
assert model.log_prob(x).sum() > before
assert torch.equal(model.freeze().decompress(model.freeze().compress(x)), x)
"""


def test_reference_backend():
    done = house.run_python(REFERENCE_BACKEND, NNKERNELS_BACKEND="reference")
    assert done.returncode == 0, done.stderr


def test_sharding():
    pytest.importorskip("torch.distributed.tensor.experimental")
    house.run_ranks(Path(__file__).parent / "sharding_ranks.py")


@pytest.mark.parametrize("dtype", [FP32, FP64])
def test_the_kernels_are_the_reference(dtype):
    # The whole of a module, in one place: what the backends above must agree with.
    case = Case(D=12, h=6, K=5, N=30, dtype=dtype)
    model = model_of(case)
    want = pc.reference.forward(**case.inputs())[0]
    close_ll(model.log_prob(case.data()).detach(), want, 1e-5 if dtype == FP32 else 1e-12)
