"""LMulLinear, LMulAttention and convert."""

import copy
import io

import house
import pytest
import torch
from torch import nn

import nnkernels.nn
from nnkernels import lmul
from nnkernels.nn import LMulAttention, LMulLinear


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


OPTIONS = [
    {},
    {"mantissa_bits": 4, "mode": "formula", "round": "rne", "offset": 0.5, "grad": "exact"},
    {"mantissa_bits": 3, "grad": "lmul"},
]


# ---- LMulLinear ----


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "formula", "m3"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_is_the_function(options, bias, dtype):
    layer = LMulLinear(5, 3, bias, dtype=dtype, **options)
    x = normals(2, 4, 5).to(dtype).requires_grad_()
    out = layer(x)
    expected = lmul.linear(x, layer.weight, layer.bias, **options)
    assert house.same_bits(out, expected)
    g = normals(2, 4, 3).to(dtype)
    leaves = [x, *layer.parameters()]
    ours = torch.autograd.grad(out, leaves, g)
    for a, b in zip(ours, torch.autograd.grad(expected, leaves, g), strict=True):
        assert house.same_bits(a, b)


def test_linear_has_the_state_of_nn_linear():
    torch.manual_seed(0)
    exact = nn.Linear(5, 3)
    torch.manual_seed(0)
    layer = LMulLinear(5, 3, mantissa_bits=4)
    assert exact.state_dict().keys() == layer.state_dict().keys()
    # The same initialisation from the same seed.
    assert torch.equal(exact.weight, layer.weight)
    layer.load_state_dict(nn.Linear(5, 3).state_dict())
    exact.load_state_dict(layer.state_dict())
    assert torch.equal(exact.weight, layer.weight)


def test_linear_survives_copies():
    layer = LMulLinear(5, 3, mantissa_bits=4, mode="formula")
    x = normals(2, 5)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert house.same_bits(twin(x), layer(x))


def test_linear_repr_shows_the_options():
    text = repr(LMulLinear(5, 3, mantissa_bits=4, offset=0.25))
    assert "in_features=5, out_features=3, bias=True" in text
    assert "mantissa_bits=4, mode='bits', round='trunc', offset=0.25, grad='ste'" in text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mantissa_bits": 0}, ValueError, "mantissa_bits must be between"),
        ({"mantissa_bits": 1.5}, TypeError, "mantissa_bits must be an int"),
        ({"mode": "x"}, ValueError, "mode must be one of"),
        ({"round": "x"}, ValueError, "round must be one of"),
        ({"offset": 1.0}, ValueError, "offset must be"),
        ({"grad": "x"}, ValueError, "grad must be one of"),
    ],
)
def test_linear_refuses_bad_options_at_once(options, error, message):
    with pytest.raises(error, match=f"^LMulLinear: {message}"):
        LMulLinear(5, 3, **options)


def test_linear_learns():
    torch.manual_seed(0)
    layer = LMulLinear(8, 1, mantissa_bits=4)
    x, target = normals(64, 8), normals(64, 8) @ normals(8, 1, seed=1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


# ---- LMulAttention ----


@pytest.mark.parametrize("normalize", ["before", "after"])
@pytest.mark.parametrize("kv_heads", [None, 2, 1])
@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_is_its_parts(normalize, kv_heads, is_causal):
    torch.manual_seed(0)
    module = LMulAttention(
        12, 4, kv_heads, normalize=normalize, mantissa_bits=4, is_causal=is_causal
    )
    x = normals(2, 5, 12)
    out = module(x)
    assert out.shape == (2, 5, 12)
    q, k, v = (
        projection(x).view(2, 5, -1, 3).transpose(1, 2)
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    assert k.shape[1] == (kv_heads or 4)
    heads = lmul.attention(q, k, v, normalize=normalize, mantissa_bits=4, is_causal=is_causal)
    assert torch.equal(out, module.out_proj(heads.transpose(1, 2).reshape(2, 5, 12)))


def test_attention_is_near_the_exact_one():
    torch.manual_seed(0)
    module = LMulAttention(32, 4, is_causal=True)
    x = normals(2, 16, 32)
    q, k, v = (
        projection(x).unflatten(-1, (4, 8)).transpose(1, 2)
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    exact = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    exact = module.out_proj(exact.transpose(1, 2).flatten(2))
    assert (module(x) - exact).norm() < 0.15 * exact.norm()


def test_attention_trains_every_parameter():
    torch.manual_seed(0)
    module = LMulAttention(12, 4, 2, mantissa_bits=4)
    module(normals(2, 5, 12)).square().sum().backward()
    assert sorted(module.state_dict()) == sorted(
        f"{name}.{kind}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj")
        for kind in ("weight", "bias")
    )
    for name, parameter in module.named_parameters():
        assert parameter.grad.isfinite().all(), name
        # A bias of k shifts all scores of a query: the softmax does not see it.
        assert parameter.grad.norm() > 1e-4 or name == "k_proj.bias", name
    assert LMulAttention(12, 4, bias=False).state_dict().keys() == {
        "q_proj.weight",
        "k_proj.weight",
        "v_proj.weight",
        "out_proj.weight",
    }


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((10, 4), {}, "embed_dim=10 is not a multiple of num_heads=4"),
        ((12, 0), {}, "embed_dim=12 is not a multiple of num_heads=0"),
        ((12, 4, 3), {}, "num_heads=4 is not a multiple of num_kv_heads=3"),
        ((12, 4, 0), {}, "num_heads=4 is not a multiple of num_kv_heads=0"),
        ((1028, 4), {}, "is 257, expected up to 256"),
        ((12, 4), {"normalize": "x"}, "normalize must be one of"),
        ((12, 4), {"mode": "x"}, "mode must be one of"),
        ((12, 4), {"grad": "x"}, "grad must be one of"),
    ],
)
def test_attention_refuses_at_once(arguments, options, message):
    with pytest.raises(ValueError, match=f"^LMulAttention: .*{message}"):
        LMulAttention(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((None, 4), {}, "embed_dim must be an int, got NoneType"),
        ((12, 4.0), {}, "num_heads must be an int, got float"),
        ((12, 4, "2"), {}, "num_kv_heads must be an int, got str"),
        ((12, 4), {"is_causal": 1}, "is_causal must be a bool, got int"),
    ],
)
def test_attention_refuses_other_kinds(arguments, options, message):
    with pytest.raises(TypeError, match=f"^LMulAttention: {message}"):
        LMulAttention(*arguments, **options)


@pytest.mark.parametrize("shape", [(5, 12), (2, 5, 11), (1, 2, 5, 12)])
def test_attention_checks_its_input(shape):
    with pytest.raises(ValueError, match=r"^LMulAttention: x is .*expected \[B, T, 12\]"):
        LMulAttention(12, 4)(torch.ones(shape))


# ---- convert ----


def model():
    return nn.ModuleDict(
        {
            "first": nn.Linear(4, 4),
            "block": nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
            "head": nn.Linear(4, 2),
        }
    )


def kinds(module):
    return {
        name: type(child) for name, child in module.named_modules() if isinstance(child, nn.Linear)
    }


def test_convert_swaps_every_linear_in_place():
    net = model()
    parameters = dict(net.named_parameters())
    assert lmul.convert(net, mantissa_bits=4, round="rne") is net
    assert set(kinds(net).values()) == {LMulLinear}
    assert len(kinds(net)) == 4
    assert all(parameters[name] is parameter for name, parameter in net.named_parameters())
    assert net["head"].mantissa_bits == 4
    assert net["head"].round == "rne"


def test_convert_of_a_linear_returns_the_new_layer():
    linear = nn.Linear(4, 3).eval()
    layer = lmul.convert(linear, mantissa_bits=3)
    assert type(layer) is LMulLinear
    assert layer.weight is linear.weight
    assert not layer.training
    assert lmul.convert(linear, skip=lambda name, child: True) is linear


@pytest.mark.parametrize(
    ("skip", "kept"),
    [
        (["head"], {"head"}),
        (["block"], {"block.0", "block.2"}),
        (["block.2", "first"], {"block.2", "first"}),
        (lambda name, child: child.out_features == 2, {"head"}),
        (lambda name, child: name.endswith("0"), {"block.0"}),
        ((), set()),
    ],
)
def test_convert_skips(skip, kept):
    net = lmul.convert(model(), skip=skip)
    assert {name for name, kind in kinds(net).items() if kind is nn.Linear} == kept


def test_convert_again_changes_the_options():
    net = lmul.convert(model(), mantissa_bits=4, round="rne")
    layers = dict(net.named_modules())
    lmul.convert(net, mantissa_bits=7, skip=["head"])
    assert all(layers[name] is child for name, child in net.named_modules())
    assert (net["first"].mantissa_bits, net["first"].round) == (7, "trunc")
    assert (net["head"].mantissa_bits, net["head"].round) == (4, "rne")
    assert lmul.convert(net["head"], mantissa_bits=3) is net["head"]
    assert net["head"].mantissa_bits == 3


def test_convert_keeps_hooks_ties_and_sharing():
    shared = nn.Linear(4, 4)
    net = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 4))
    net[3].weight = shared.weight
    calls = []
    shared.register_forward_hook(lambda module, *_: calls.append(type(module)))
    lmul.convert(net)
    assert net[0] is net[2]
    assert net[3].weight is net[0].weight
    net(normals(2, 4))
    assert calls == [LMulLinear, LMulLinear]


def test_convert_leaves_subclasses_and_multihead_attention_alone():
    net = nn.MultiheadAttention(8, 2)
    # As models do that change its initialisation: it is not called here either.
    net.out_proj = nn.Linear(8, 8)
    lmul.convert(net)
    assert not any(isinstance(child, LMulLinear) for child in net.modules())


def encoder_layer(**options):
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, **options)


ENCODERS = {
    "layer": encoder_layer,
    "layer-gelu": lambda: encoder_layer(activation="gelu", norm_first=True),
    "encoder": lambda: nn.TransformerEncoder(encoder_layer(), 2),
    "transformer": lambda: nn.Sequential(nn.TransformerEncoder(encoder_layer(), 2)),
}


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("kind", ENCODERS)
def test_converted_encoders_leave_the_fast_path(kind, copied):
    exact = ENCODERS[kind]().eval()
    net = lmul.convert(copy.deepcopy(exact), mantissa_bits=2)
    net = copy.deepcopy(net) if copied else net
    x = normals(2, 5, 32)
    recorded = net(x)
    assert recorded.requires_grad
    with torch.no_grad():
        assert (net(x) - exact(x)).abs().max() > 0.01
        # In the fast path the result had nothing of the converted layers.
        torch.testing.assert_close(net(x), recorded.detach())
    with torch.inference_mode():
        torch.testing.assert_close(net(x).clone(), recorded.detach())


def test_converted_encoder_takes_padding():
    exact = nn.TransformerEncoder(encoder_layer(), 2).eval()
    net = lmul.convert(copy.deepcopy(exact), mantissa_bits=2)
    x = normals(2, 5, 32)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    recorded = net(x, src_key_padding_mask=padding).detach()
    with torch.no_grad():
        out = net(x, src_key_padding_mask=padding)
    torch.testing.assert_close(out[~padding], recorded[~padding])


def test_unconverted_encoders_keep_the_fast_path():
    net = nn.Sequential(nn.TransformerEncoder(encoder_layer(), 2), nn.Linear(32, 2))
    lmul.convert(net, skip=["0"])
    assert net[0].use_nested_tensor
    assert net[0].layers[0].activation_relu_or_gelu == 1
    assert kinds(net)["1"] is LMulLinear


def test_converted_decoders_and_transformers():
    torch.manual_seed(0)
    exact = nn.Transformer(32, 4, 1, 1, 64, batch_first=True).eval()
    net = lmul.convert(copy.deepcopy(exact), mantissa_bits=2)
    for part in ("encoder", "decoder"):
        assert {type(getattr(getattr(net, part).layers[0], f"linear{i}")) for i in (1, 2)} == {
            LMulLinear
        }
    x, y = normals(2, 5, 32), normals(2, 3, 32, seed=1)
    recorded = net(x, y).detach()
    with torch.no_grad():
        torch.testing.assert_close(net(x, y), recorded)
        assert (net(x, y) - exact(x, y)).abs().max() > 0.01


def test_converted_model_is_near_and_trains():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    x = normals(8, 16)
    exact = net(x)
    lmul.convert(net, mantissa_bits=7)
    out = net(x)
    assert (out - exact).norm() < 0.1 * exact.norm()
    out.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"skip": ["tail"]}, ValueError, r"skip names \['tail'\], which"),
        ({"skip": "head"}, ValueError, "skip must be a list of names"),
        ({"mode": "x"}, ValueError, "mode must be one of"),
        ({"mantissa_bits": 24}, ValueError, "mantissa_bits must be between"),
    ],
)
def test_convert_refuses(arguments, error, message):
    net = model()
    with pytest.raises(error, match=message):
        lmul.convert(net, **arguments)
    assert set(kinds(net).values()) == {nn.Linear}


def test_convert_wants_a_module():
    with pytest.raises(TypeError, match=r"^convert: module must be a torch.nn.Module, got Tensor"):
        lmul.convert(torch.ones(2))


def test_nn_has_the_modules():
    assert nnkernels.nn.LMulLinear is lmul.LMulLinear
    assert nnkernels.nn.LMulAttention is lmul.LMulAttention
