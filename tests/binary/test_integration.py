"""The binary operators inside PyTorch: opcheck, compile, export, DTensor, the reference backend.
That the numbers are right is for the other files."""

import copy
import doctest
import sys
from pathlib import Path

import house
import pytest
import torch
from binary_cases import bits, normals
from torch import nn

import nnkernels.nn
from nnkernels import binary

OPS = torch.ops.nnkernels


def int8(*shape):
    return torch.ones(shape, dtype=torch.int8)


def planes(count, *shape):
    return [bits(*shape, seed=seed) for seed in range(count)]


# Arguments and options of every operator that has no derivative.
PLAIN = {
    "pack": lambda: ([normals(3, 4, 40)], {}),
    "pack-nan": lambda: ([normals(3, 40)], {"check_nan": True}),
    "pack_rowpop": lambda: ([normals(3, 4, 300)], {}),
    "unpack": lambda: ([bits(3, 4, 300), 300, torch.bfloat16], {}),
    "pack_biper": lambda: ([normals(3, 40), 20.0], {"check": True}),
    "pack_ternary": lambda: ([normals(3, 40).round()], {}),
    "popcount": lambda: ([bits(3, 40)], {}),
    "matmul": lambda: ([bits(2, 3, 300), bits(5, 300), 300], {}),
    "matmul-scaled": lambda: (
        [bits(2, 3, 300), bits(2, 5, 300), 300],
        {
            "row_scale": normals(2, 3),
            "col_scale": normals(5),
            "bias": normals(5),
            "out_dtype": torch.bfloat16,
            "check_padding": True,
        },
    ),
    "matmul_prepacked": lambda: ([bits(3, 300), OPS.binary_prepack(bits(5, 300), 300), 5, 300], {}),
    "matmul_sign": lambda: (
        [bits(3, 300), bits(5, 300), 300, torch.ones(5, dtype=torch.int32), int8(5)],
        {},
    ),
    "hamming": lambda: ([bits(3, 300), bits(5, 300), 300], {}),
    "prepack": lambda: ([bits(65, 300), 300], {}),
    "linear": lambda: ([normals(2, 3, 300), bits(5, 300), 300], {"scale": normals(5)}),
    "linear_prepacked": lambda: (
        [normals(3, 300), OPS.binary_prepack(bits(5, 300), 300), 5, 300],
        {"bias": normals(5)},
    ),
    "conv2d": lambda: (
        [bits(2, 6, 5, 40), bits(4, 3, 3, 40), 40, [2, 1], [1, 1]],
        {"scale": normals(4), "out_dtype": torch.float32, "nchw": True},
    ),
    "conv2d_sign": lambda: (
        [bits(2, 6, 5, 40), bits(4, 3, 3, 40), 40, torch.ones(4, dtype=torch.int32), int8(4)],
        {},
    ),
    "conv2d_corr": lambda: ([bits(4, 3, 2, 40), 40], {}),
    "maxpool2d": lambda: ([bits(2, 6, 5, 40), [2, 2]], {"padding": [1, 1]}),
    "ternary_matmul": lambda: ([*planes(2, 3, 300), *planes(2, 5, 300), 300], {}),
    "int8_matmul": lambda: (
        [int8(2, 3, 300), bits(5, 300), 300],
        {"w_mask": bits(5, 300, seed=1), "row_scale": normals(2, 3), "out_dtype": torch.float16},
    ),
    "planes_matmul": lambda: ([bits(2, 3, 300), bits(1, 5, 300), 300], {}),
}
# Float arguments of the training operators, and options worth a case of their own.
TRAINED = {
    "linear_train": lambda: ([normals(2, 3, 40), normals(5, 40), normals(5), normals(5)], {}),
    "linear_train-biper": lambda: (
        [normals(3, 40), normals(5, 40), normals(5), normals(5), torch.tensor(20.0)],
        {"surrogate": "approxsign"},
    ),
    "linear_train-plain": lambda: ([normals(3, 40), normals(5, 40)], {"surrogate": "identity"}),
    "conv2d_train": lambda: (
        [normals(2, 6, 7, 5), normals(4, 3, 3, 3), normals(4), normals(4), torch.tensor(20.0)],
        {"stride": [2, 1], "padding": [1, 1], "groups": 2, "pad_mode": "one"},
    ),
    "conv2d_train-plain": lambda: ([normals(2, 6, 7, 5), normals(4, 6, 3, 3)], {}),
}
plain = pytest.mark.parametrize("call", PLAIN)
trained = pytest.mark.parametrize("call", TRAINED)


def operator_of(call, suffix=""):
    return getattr(OPS, f"binary_{call.split('-')[0]}{suffix}").default


def gradients(values):
    return [value.clone().requires_grad_() for value in values]


# ---- opcheck ----


@plain
def test_opcheck(call):
    values, options = PLAIN[call]()
    house.check_op(operator_of(call), *values, **options)


@trained
def test_opcheck_of_training(call):
    values, options = TRAINED[call]()
    house.check_op(operator_of(call), *gradients(values), **options)
    house.check_op(operator_of(call, "_fwd"), *values, **options)


@pytest.mark.parametrize("needed", [(True, True, True), (False, True, False)])
@trained
def test_opcheck_of_backward(call, needed):
    values, options = TRAINED[call]()
    out, *kept = operator_of(call, "_fwd")(*values, **options)
    alpha = values[2] if len(values) > 2 else None
    options = {key: value for key, value in options.items() if key != "surrogate"}
    options["K" if "linear" in call else "C"] = values[0].shape[-1 if "linear" in call else 1]
    options |= dict(zip(("need_x", "need_w", "need_alpha"), needed, strict=True))
    backward = operator_of(call, "_bwd")
    house.check_op(backward, torch.ones_like(out), *kept, alpha, **options)


@pytest.mark.parametrize("surrogate", ["ste", "approxsign", "identity"])
def test_opcheck_of_values(surrogate):
    x = normals(3, 40).requires_grad_()
    house.check_op(OPS.binary_binarize.default, x, surrogate=surrogate)
    omega = torch.tensor(20.0, requires_grad=True)
    house.check_op(OPS.binary_square_wave.default, x, omega)


# ---- compile and export ----


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@plain
def test_compile(call, dynamic):
    values, options = PLAIN[call]()
    name = call.split("-")[0]
    function = getattr(binary, name)
    torch.compiler.reset()
    compiled = torch.compile(
        lambda *x: function(*x, **options), fullgraph=True, backend="aot_eager", dynamic=dynamic
    )
    got, expected = compiled(*values), function(*values, **options)
    if isinstance(expected, torch.Tensor):
        got, expected = [got], [expected]
    for one, two in zip(got, expected, strict=True):
        assert house.same_bits(one, two)
        assert one.stride() == two.stride()


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@trained
def test_compile_of_training(call, dynamic):
    values, options = TRAINED[call]()
    function = getattr(binary, call.split("-")[0])
    house.check_compiled(lambda *x: function(*x, **options), *gradients(values), dynamic=dynamic)


@pytest.mark.parametrize("stage", [1, 2])
def test_compile_of_values(stage):
    w = normals(3, 40).requires_grad_()
    house.check_compiled(lambda w: binary.biper(w, 20.0, stage=stage), w)
    house.check_compiled(lambda x: binary.binarize(binary.prescale(x)), w)


class Net(nn.Module):
    def __init__(self, stage=2):
        super().__init__()
        torch.manual_seed(0)
        options = {"surrogate": "approxsign", "stage": stage}
        self.conv = nnkernels.nn.BiPerConv2d(3, 8, 3, padding=1, **options)
        self.norm = nn.BatchNorm2d(8).eval()
        self.linear = nnkernels.nn.BinaryLinear(8 * 36, 5)

    def forward(self, x):
        return self.linear(self.norm(self.conv(x)).flatten(1))


@house.needs_compiler
@pytest.mark.parametrize("stage", [1, 2])
def test_compile_with_inductor(stage):
    net, x = Net(stage), normals(4, 3, 6, 6)
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True)
    out = compiled(x)
    out.square().sum().backward()
    expected = net(x)
    expected.square().sum().backward()
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(compiled.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_export_with_a_dynamic_batch():
    x = normals(4, 3, 6, 6)
    batch = ({0: torch.export.Dim("batch", min=2)},)
    for net in (Net().requires_grad_(False), binary.freeze(Net())):
        program = house.check_exported(net, x, dynamic_shapes=batch)
        other = normals(9, 3, 6, 6)
        assert house.same_bits(program.module()(other), net(other))


def test_frozen_networks_compile():
    house.check_compiled(binary.freeze(Net()), normals(4, 3, 6, 6))


# ---- autograd around the operators ----


@trained
def test_with_and_without_autograd(call):
    values, options = TRAINED[call]()
    function = getattr(binary, call.split("-")[0])
    recorded = function(*gradients(values), **options)
    assert recorded.requires_grad
    with torch.no_grad():
        assert house.same_bits(function(*gradients(values), **options), recorded)
    with torch.inference_mode():
        assert house.same_bits(function(*values, **options).clone(), recorded)


def test_checkpointing():
    x, layer = normals(3, 40).requires_grad_(), nnkernels.nn.BinaryLinear(40, 5)
    expected = torch.autograd.grad(layer(x).sum(), [x, *layer.parameters()])
    out = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    got = torch.autograd.grad(out.sum(), [x, *layer.parameters()])
    for one, two in zip(got, expected, strict=True):
        assert house.same_bits(one, two)


def test_autocast_leaves_signs_alone():
    layer, x = nnkernels.nn.BinaryLinear(40, 5), normals(3, 40) * 1e-30
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert house.same_bits(layer(x), expected)


# ---- processes, documentation ----


def test_sharding():
    pytest.importorskip("torch.distributed.tensor.experimental")
    house.run_ranks(Path(__file__).parent / "sharding_ranks.py")


REFERENCE_BACKEND = """
import torch, nnkernels
from nnkernels import binary
assert nnkernels.build_info()["backend"] == "reference"
called = []
reference = binary.reference.matmul
x, w = torch.randn(4, 300), torch.randn(5, 300)
a, b = binary.pack(x), binary.pack(w)
signs = binary.binarize(x) @ binary.binarize(w).T
assert torch.equal(binary.matmul(a, b, 300), signs.int())
assert torch.equal(binary.matmul_prepacked(a, binary.prepack(b, 300), 5, 300), signs.int())
assert torch.equal(binary.linear(x, b, 300), signs)
for layer, value in (
    (binary.BiPerLinear(300, 5, stage=2), x),
    (binary.BinaryConv2d(6, 4, 3, padding=1, groups=2), torch.randn(2, 6, 5, 5)),
):
    leaf = value.clone().requires_grad_()
    out = layer(leaf)
    out.square().sum().backward()
    assert leaf.grad.abs().sum() > 0 and layer.weight.grad.abs().sum() > 0
    assert torch.equal(layer.freeze()(value), out)
    print(out.double().sum().item(), leaf.grad.double().sum().item())
"""


def test_the_reference_backend_runs_every_operator_by_its_reference():
    outputs = []
    for backend in ("reference", ""):
        code = "import torch; torch.manual_seed(0)" + REFERENCE_BACKEND
        if not backend:
            code = code.replace('== "reference"', '== "auto"')
        run = house.run_python(code, NNKERNELS_BACKEND=backend)
        assert run.returncode == 0, run.stderr
        outputs.append([float(value) for value in run.stdout.split()])
    assert outputs[0] == pytest.approx(outputs[1], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("documented", ["ops", "functions", "tensor", "module", "packed"])
def test_examples_in_docstrings(documented):
    result = doctest.testmod(sys.modules[f"nnkernels.binary.{documented}"])
    assert result.attempted > 0
    assert result.failed == 0
