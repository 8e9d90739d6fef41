"""The modules: training, freezing, state, folding of batch norm, and the shapes of the paper."""

import copy
import io
import pickle

import house
import pytest
import torch
from binary_cases import PAD_MODES, normals
from torch import nn

import nnkernels.nn
from nnkernels import binary
from nnkernels.nn import BinaryConv2d, BinaryLinear, BiPerConv2d, BiPerLinear

LAYERS = {
    "linear": lambda **o: BinaryLinear(300, 7, **o),
    "conv2d": lambda **o: BinaryConv2d(12, 8, 3, padding=1, stride=2, groups=2, **o),
    "biper-linear": lambda **o: BiPerLinear(300, 7, omega=7.0, stage=2, **o),
    "biper-conv2d": lambda **o: BiPerConv2d(12, 8, (3, 2), padding=(1, 0), stage=2, **o),
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


def make(kind, **options):
    torch.manual_seed(0)
    return LAYERS[kind](**options)


def make_trained(kind, **options):
    """Weights that leave the first period of the wave, and an alpha of its own."""
    layer = make(kind, **options)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.alpha)
    return layer


def input_of(kind, dtype=torch.float32):
    return normals(*((4, 300) if "linear" in kind else (2, 12, 7, 6)), dtype=dtype)


# ---- training modules ----


@every_layer
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_is_its_function(kind, bias, dtype):
    layer = make_trained(kind, bias=bias, surrogate="approxsign")
    x = input_of(kind, dtype).requires_grad_()
    omega = layer.omega if "biper" in kind else None
    inputs = (x, layer.weight, layer.alpha, layer.bias, omega)
    if "linear" in kind:
        expected = binary.linear_train(*inputs, surrogate="approxsign")
    else:
        window = (layer.stride, layer.padding, layer.dilation, layer.groups, layer.pad_mode)
        expected = binary.conv2d_train(*inputs, *window, surrogate="approxsign")
    out = layer(x)
    assert house.same_bits(out, expected)
    g = normals(*out.shape, seed=1, dtype=dtype)
    given = [x, *layer.parameters()]
    for one, two in zip(
        torch.autograd.grad(out, given, g), torch.autograd.grad(expected, given, g), strict=True
    ):
        assert house.same_bits(one, two)


@every_layer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stage", [1, 2])
def test_narrow_modules(kind, dtype, stage):
    layer = binary.set_stage(make_trained(kind), stage)
    narrow = copy.deepcopy(layer).to(dtype)
    # The same numbers in float32.
    layer.load_state_dict(narrow.state_dict())
    x = input_of(kind, dtype)
    out = narrow(x)
    assert out.dtype == dtype
    if stage == 2 or "biper" not in kind:
        assert house.same_bits(out, layer(x))
        for frozen in (narrow.freeze(), layer.freeze().to(dtype)):
            assert house.same_bits(frozen(x), out)
    out.sum().backward()
    assert all(p.grad.dtype == dtype for p in narrow.parameters())


def test_modules_are_made_where_and_as_asked():
    for build in (lambda **o: BiPerLinear(8, 2, **o), lambda **o: BinaryConv2d(8, 2, 3, **o)):
        assert {p.dtype for p in build(dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
        assert {p.device.type for p in build(device="meta").parameters()} == {"meta"}


@every_layer
def test_parameters(kind):
    layer = make(kind)
    exact = nn.Linear(300, 7) if "linear" in kind else nn.Conv2d(12, 8, 3, groups=2)
    assert layer.weight.dim() == exact.weight.dim()
    assert torch.equal(layer.alpha, layer.weight.detach().abs().flatten(1).mean(1))
    names = {"weight", "alpha", "bias"} | ({"omega"} if "biper" in kind else set())
    assert set(layer.state_dict()) == names
    assert "omega" not in dict(layer.named_parameters())


def test_learnt_omega():
    layer = BiPerLinear(300, 7, learn_omega=True, stage=2)
    assert layer.omega.requires_grad
    for stage in (1, 2):
        layer.stage = stage
        layer.zero_grad()
        layer(normals(4, 300)).square().sum().backward()
        assert layer.omega.grad.abs() > 0


@pytest.mark.parametrize("pad_mode", PAD_MODES)
def test_stage_1_has_real_weights(pad_mode):
    layer = BiPerConv2d(6, 4, (3, 5), padding=(1, 2), pad_mode=pad_mode)
    x = normals(2, 6, 5, 5)
    value = {"zero": 0.0, "one": 1.0, "minus_one": -1.0}[pad_mode]
    padded = nn.functional.pad(binary.binarize(x), (2, 2, 1, 1), value=value)
    out = nn.functional.conv2d(padded, torch.sin(20 * layer.weight))
    out = out * layer.alpha[:, None, None] + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), out)
    linear = BiPerLinear(300, 7)
    y = normals(4, 300)
    out = binary.binarize(y) @ torch.sin(20 * linear.weight).mT * linear.alpha + linear.bias
    torch.testing.assert_close(linear(y), out)


def test_stage_2_begins_with_the_weights_of_stage_1():
    layer = BiPerLinear(300, 7)
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    binary.set_stage(nn.Sequential(nn.Sequential(layer)), 2)
    assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())
    signs = torch.where(torch.sin(20 * layer.weight) < 0, -1.0, 1.0)
    x = normals(4, 300)
    torch.testing.assert_close(
        layer(x), binary.binarize(x) @ signs.mT * layer.alpha + layer.bias, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("surrogate", ["ste", "approxsign"])
def test_both_stages_learn(surrogate):
    torch.manual_seed(0)
    model = nn.Sequential(
        BiPerConv2d(3, 16, 3, padding=1, surrogate=surrogate),
        nn.BatchNorm2d(16),
        nn.MaxPool2d(2),
        BiPerConv2d(16, 16, 3, padding=1, surrogate=surrogate),
        nn.BatchNorm2d(16),
        nn.Flatten(),
        BiPerLinear(16 * 8 * 8, 4, surrogate=surrogate),
    )
    # Images of the size of CIFAR's, told apart by a pattern.
    labels = torch.arange(64) % 4
    patterns = normals(4, 3, 16, 16, seed=1)
    images = patterns[labels] + 0.5 * normals(64, 3, 16, 16)
    for stage in (1, 2):
        binary.set_stage(model, stage)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        losses = []
        for _ in range(15):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]


# ---- freezing ----


@every_layer
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_frozen_layer_gives_the_same_bits(kind, bias, dtype, isa):
    layer = make_trained(kind, bias=bias)
    x = input_of(kind, dtype)
    frozen = layer.freeze()
    assert house.same_bits(frozen(x), layer(x))
    assert not list(frozen.parameters())


@every_layer
def test_the_state_of_a_frozen_layer_is_bits(kind):
    layer = make(kind)
    frozen = layer.freeze()
    assert set(frozen.state_dict()) == {"bits", "scale", "bias"}
    assert frozen.bits.dtype == torch.int32


def test_a_frozen_weight_is_32_times_smaller():
    layer = BinaryLinear(4096, 64)
    assert layer.freeze().bits.nbytes * 32 == layer.weight.nbytes


def round_trips():
    def torch_file(state):
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def safetensors_file(state):
        safetensors = pytest.importorskip("safetensors.torch")
        return safetensors.load(safetensors.save(state))

    return {"torch": torch_file, "safetensors": safetensors_file}


@every_layer
@pytest.mark.parametrize("file", ["torch", "safetensors"])
def test_a_frozen_layer_survives_a_file(kind, file):
    frozen, x = make_trained(kind).freeze(), input_of(kind)
    state = round_trips()[file](frozen.state_dict())
    fresh = make(kind, bias=True).freeze()
    fresh.bits.zero_()
    fresh.load_state_dict(state)
    assert house.same_bits(fresh(x), frozen(x))
    # Into a module made from sizes alone.
    if kind == "linear":
        empty = nnkernels.nn.PackedLinear(300, 7)
    elif kind == "conv2d":
        empty = nnkernels.nn.PackedConv2d(12, 8, 3, padding=1, stride=2, groups=2)
    else:
        return
    for assign in (False, True):
        empty.load_state_dict(state, assign=assign)
        assert house.same_bits(empty(x), frozen(x))


@every_layer
def test_copies_of_frozen_layers(kind):
    frozen, x = make(kind).freeze(), input_of(kind)
    file = io.BytesIO()
    torch.save(frozen, file)
    file.seek(0)
    for twin in (copy.deepcopy(frozen), torch.load(file, weights_only=False)):
        assert house.same_bits(twin(x), frozen(x))
    # What is made for this machine stays out of files.
    assert len(pickle.dumps(frozen)) < frozen.bits.nbytes + 10_000


@every_layer
def test_bits_that_do_not_fit_are_not_loaded(kind):
    frozen, x = make(kind).freeze(), input_of(kind)
    expected, state = frozen(x), frozen.state_dict()
    full = torch.full_like(state["bits"], -1)
    for bits, message in ((state["bits"].float(), "bits has dtype float32"), (full, "set pad bit")):
        with pytest.raises(RuntimeError, match=message):
            frozen.load_state_dict(state | {"bits": bits})
        assert house.same_bits(frozen(x), expected)
    with pytest.raises(RuntimeError, match="size mismatch for bits"):
        frozen.load_state_dict(state | {"bits": state["bits"][1:]})
    with pytest.raises(RuntimeError, match=r'Missing key.* "bits"'):
        frozen.load_state_dict({key: state[key] for key in ("scale", "bias")})


def test_freezing_stage_1_is_refused():
    for layer in (BiPerLinear(8, 2), BiPerConv2d(8, 2, 3)):
        with pytest.raises(ValueError, match=r"^BiPer\w+: freeze\(\) needs stage 2"):
            layer.freeze()
        with pytest.raises(ValueError, match=r"freeze\(\) needs stage 2"):
            binary.freeze(nn.Sequential(layer))


def test_freeze_of_a_model():
    torch.manual_seed(0)
    model = nn.Sequential(
        BiPerConv2d(3, 8, 3, padding=1, stage=2),
        nn.BatchNorm2d(8),
        nn.ModuleDict({"head": nn.Flatten()})["head"],
        BinaryLinear(8 * 36, 4),
    )
    model(normals(5, 3, 6, 6))
    frozen = binary.freeze(model)
    model.eval()
    x = normals(2, 3, 6, 6, seed=1)
    assert house.same_bits(frozen(x), model(x))
    assert isinstance(model[0], BiPerConv2d)
    assert isinstance(frozen[0], nnkernels.nn.PackedConv2d)
    assert not any(module.training for module in frozen.modules())
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not binary.freeze(model[3]).training


# ---- errors, repr ----


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: BinaryLinear(3, 2, surrogate="x"), ValueError, "surrogate must be one of 'ste'"),
        (lambda: BiPerLinear(3, 2, stage=3), ValueError, "stage must be one of 1, 2"),
        (lambda: BiPerLinear(3, 2, omega=0.0), ValueError, "omega must be finite and positive"),
        (lambda: BiPerLinear(3, 2, omega=float("nan")), ValueError, "omega must be finite"),
        (lambda: BiPerLinear(3, 2, omega="20"), TypeError, "omega must be a number"),
        (lambda: BinaryConv2d(3, 2, 3, groups=2), ValueError, "not divisible by groups=2"),
        (lambda: BinaryConv2d(3, 2, 3, groups=0), ValueError, "not divisible by groups=0"),
        (lambda: BinaryConv2d(3, 2, 0), ValueError, "kernel_size must be"),
        (lambda: BinaryConv2d(3, 2, 3, stride=0), ValueError, "stride must be"),
        (lambda: BinaryConv2d(3, 2, 3, padding=-1), ValueError, "padding must be"),
        (lambda: BinaryConv2d(3, 2, 3, dilation=0), ValueError, "dilation must be"),
        (lambda: BinaryConv2d(3, 2, 3, pad_mode="same"), ValueError, "pad_mode must be one of"),
        (lambda: BinaryLinear(0, 2), ValueError, "in_features is 0"),
        (lambda: BiPerLinear(2, -1), ValueError, "out_features is -1"),
        (lambda: BinaryLinear("3", 2), TypeError, "in_features must be an int"),
        (lambda: BinaryConv2d(3, 0, 3), ValueError, "out_channels is 0"),
        (lambda: nnkernels.nn.PackedLinear(0, 2), ValueError, "in_features is 0"),
        (lambda: nnkernels.nn.PackedLinear(3, 0), ValueError, "out_features is 0"),
        (lambda: nnkernels.nn.PackedConv2d(3, 2, 3, groups=2), ValueError, "not divisible"),
    ],
)
def test_bad_options_are_refused_at_once(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_a_stage_that_does_not_exist_is_refused():
    layer = BiPerLinear(3, 2)
    with pytest.raises(ValueError, match=r"^BiPerLinear: stage must be one of 1, 2, got 3"):
        layer.stage = 3
    assert layer.stage == 1


@every_layer
def test_inputs_that_do_not_fit(kind):
    x = torch.ones(4, 301) if "linear" in kind else torch.ones(2, 11, 7, 6)
    layer = make(kind)
    for module in (layer, layer.freeze()):
        with pytest.raises(ValueError, match=r"expected|not divisible"):
            module(x)


@every_layer
def test_a_frozen_layer_refuses_gradients(kind):
    frozen, x = make(kind).freeze(), input_of(kind).requires_grad_()
    with pytest.raises(RuntimeError, match="an input requires a gradient"):
        frozen(x)
    with torch.no_grad():
        frozen(x)


def test_repr_shows_the_options():
    assert "surrogate='ste'" in repr(BinaryLinear(5, 3))
    text = repr(BiPerConv2d(4, 6, 3, omega=10.0, learn_omega=True))
    assert "kernel_size=(3, 3)" in text
    assert "omega=10, learn_omega=True, stage=1" in text


# ---- folded batch norm ----


@pytest.mark.parametrize("scaled", [False, True])
def test_folding_is_exact_for_every_sum(scaled):
    N, K, eps = 400, 301, 0.5
    g, beta, mu = (normals(N, seed=seed) * 3 for seed in (1, 2, 3))
    mu = mu * 20
    var = normals(N, seed=4).square() * 100
    g[:5], var[5:8] = 0, 0
    g[8:16], beta[8:16], mu[8:16] = 1, 0, torch.arange(-4.0, 4.0)
    scale, bias = (normals(N, seed=5), normals(N, seed=6)) if scaled else (None, None)
    thresh, direction = binary.fold_bn(g, beta, mu, var, eps, K, scale, bias)
    assert thresh.dtype == torch.int32
    assert direction.dtype == torch.int8
    dot = torch.arange(-K, K + 1)[:, None]
    y = dot.float()
    if scaled:
        y = y * scale + bias
    y = g * ((y - mu) / torch.sqrt(var + eps)) + beta
    bit = torch.where(
        direction > 0, dot < thresh, torch.where(direction < 0, dot > thresh, thresh != 0)
    )
    assert torch.equal(bit, y < 0)
    assert set(direction.tolist()) == {-1, 0, 1}


def test_a_folded_network_gives_the_bits_of_the_float_one(isa):
    """conv, batch norm, sign, max-pool, conv: on bits alone, against the modules."""
    torch.manual_seed(0)
    first, second = BinaryConv2d(16, 40, 3, padding=1), BinaryConv2d(40, 6, 3, padding=1)
    norm = nn.BatchNorm2d(40)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = normals(4, 16, 8, 8)
    norm(first(x))
    for module in (first, second, norm):
        module.eval()
    with torch.no_grad():
        hidden = norm(first(x))
        expected = second(nn.functional.max_pool2d(binary.binarize(hidden), 2))
        a, b = first.freeze(), second.freeze()
        thresh, direction = binary.fold_bn(
            norm.weight,
            norm.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            16 * 9,
            a.scale,
            a.bias,
        )
        bits = binary.pack(x.permute(0, 2, 3, 1))
        bits = binary.conv2d_sign(bits, a.bits, 16, thresh, direction, 1, 1, corr=a.corr)
        bits = binary.maxpool2d(bits, 2)
        out = binary.conv2d(
            bits, b.bits, 40, 1, 1, scale=b.scale, bias=b.bias, out_dtype=torch.float32, nchw=True
        )
    assert torch.equal(out, expected)


# ---- the paper's ResNet-20 ----


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        options = {"padding": 1, "bias": False, "stage": 2}
        self.conv1 = BiPerConv2d(inputs, outputs, 3, stride=stride, **options)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = BiPerConv2d(outputs, outputs, 3, **options)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.added = outputs - inputs

    def shortcut(self, x):
        x = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(x, (0, 0, 0, 0, 0, self.added))

    def forward(self, x):
        out = nn.functional.hardtanh(self.norm1(self.conv1(x)) + self.shortcut(x))
        return nn.functional.hardtanh(self.norm2(self.conv2(out)) + out)


def resnet20():
    layers = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)]
    channels = 16
    for outputs, stride in ((16, 1), (32, 2), (64, 2)):
        for block in range(3):
            layers.append(Block(channels, outputs, stride if block == 0 else 1))
            channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class FloatConv(nn.Module):
    """What BiPer's code runs: torch's convolution of +-1, zero padding."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        layer = self.layer
        weight = binary.biper(layer.weight, layer.omega, stage=2)
        out = nn.functional.conv2d(binary.binarize(x), weight, None, layer.stride, layer.padding)
        return out * layer.alpha[:, None, None]


def test_resnet20_has_the_logits_of_float_convolutions():
    torch.manual_seed(0)
    model = resnet20()
    x = normals(8, 3, 32, 32)
    model(x)
    model.eval()
    exact = copy.deepcopy(model)
    for parent in list(exact.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, BiPerConv2d):
                setattr(parent, name, FloatConv(child))
    with torch.no_grad():
        logits = model(x)
        # Sums of +-1 are exact in float32, so no sign ever differs.
        torch.testing.assert_close(logits, exact(x), rtol=1e-5, atol=1e-5)
        assert house.same_bits(binary.freeze(model)(x), logits)
