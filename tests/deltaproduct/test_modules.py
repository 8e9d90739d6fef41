"""GatedDeltaProduct: its definition, decoding, packed sequences, checkpoints."""

import copy
import itertools

import pytest
import torch
from deltaproduct_cases import relative_error
from torch.nn import functional

import nnkernels.nn
from nnkernels import deltaproduct

SETTINGS = {
    "default": {},
    "n1": {"num_householder": 1},
    "n3-grouped": {"num_householder": 3, "num_v_heads": 4, "expand_v": 1.5},
    "plain": {
        "allow_neg_eigval": False,
        "use_forget_gate": False,
        "use_short_conv": False,
        "use_output_gate": False,
    },
    "wide-conv": {"conv_size": 7, "expand_v": 0.5},
    "no-window": {"conv_size": 1},
}
settings = pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
HIDDEN = 24


def layer(**options):
    torch.manual_seed(0)
    return nnkernels.nn.GatedDeltaProduct(HIDDEN, 2, 8, **options)


def inputs(B, T):
    return torch.randn(B, T, HIDDEN, generator=torch.Generator().manual_seed(T))


def by_definition(module, x):
    """A float64 layer written out with the reference."""
    n, Hk, H = module.num_householder, module.num_heads, module.num_v_heads

    def mixed(name):
        projected = getattr(module, f"{name}_proj")(x)
        if module.use_short_conv:
            weight = getattr(module, f"{name}_conv1d").weight
            padded = functional.pad(projected.mT, (weight.shape[2] - 1, 0))
            projected = functional.conv1d(padded, weight, groups=weight.shape[0]).mT
        return functional.silu(projected)

    q = mixed("q").unflatten(2, (Hk, -1))
    k = mixed("k").unflatten(2, (n, Hk, -1)).flatten(1, 2)
    v = mixed("v").unflatten(2, (n, H, -1)).flatten(1, 2)
    beta = torch.sigmoid(module.b_proj(x)).unflatten(2, (n, H)).flatten(1, 2)
    beta = beta * (2 if module.allow_neg_eigval else 1)
    g = None
    if module.use_forget_gate:
        g = -module.A_log.exp() * functional.softplus(module.a_proj(x) + module.dt_bias)
    o, _ = deltaproduct.reference.scan(q, k, v, g, beta, n, use_qk_l2norm=True)
    o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + 1e-5) * module.o_norm.weight
    if module.use_output_gate:
        o = o * functional.silu(module.g_proj(x)).unflatten(2, (H, -1))
    return module.o_proj(o.flatten(2))


def wide(module, x):
    """by_definition of a float64 copy."""
    return by_definition(copy.deepcopy(module).double(), x.double()).detach()


@settings
def test_the_definition(options):
    module, x = layer(**options), inputs(2, 20)
    y, cache = module(x)
    assert y.shape == x.shape
    assert relative_error(y.detach(), wide(module, x)) <= 1e-5
    assert cache.state.shape == (2, module.num_v_heads, 8, module.value_dim)


@settings
def test_gradients(options):
    module, x = layer(**options), inputs(2, 20)
    exact_module = copy.deepcopy(module).double()
    g = torch.randn(x.shape)

    def gradients(one, forward, dtype):
        leaf = x.to(dtype).requires_grad_()
        return torch.autograd.grad(forward(leaf), [leaf, *one.parameters()], g.to(dtype))

    found = gradients(module, lambda leaf: module(leaf)[0], torch.float32)
    want = gradients(exact_module, lambda leaf: by_definition(exact_module, leaf), torch.float64)
    for ours, exact in zip(found, want, strict=True):
        assert exact.norm() > 0
        assert relative_error(ours, exact) <= 1e-4


# ---- decoding ----


@settings
@pytest.mark.parametrize("prefill", [1, 2, 9])
def test_prefill_then_steps_equal_one_call(options, prefill, monkeypatch):
    module, x = layer(**options), inputs(3, 12)
    steps = []
    step = deltaproduct.ops.step
    monkeypatch.setattr(
        deltaproduct.ops, "step", lambda *a, **kw: steps.append(1) or step(*a, **kw)
    )
    with torch.no_grad():
        want, want_cache = module(x)
        y, cache = module(x[:, :prefill])
        out = [y]
        for t in range(prefill, 12):
            y, cache = module(x[:, t : t + 1], cache)
            out.append(y)
    assert len(steps) == 12 - prefill
    assert relative_error(torch.cat(out, 1), want) <= 1e-5
    assert relative_error(cache.state, want_cache.state) <= 1e-5
    for a, b in zip(cache.conv or (), want_cache.conv or (), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("lengths", [(5, 7), (0, 12), (1, 1, 10), (6, 0, 6)])
def test_calls_continue(lengths):
    module, x = layer(), inputs(2, 12)
    want, _ = module(x)
    cache, out = None, []
    for part in x.split(lengths, 1):
        # With gradients a part of one token takes the scan too.
        y, cache = module(part, cache)
        out.append(y)
    assert relative_error(torch.cat(out, 1).detach(), want.detach()) <= 1e-5
    weight = module.k_proj.weight
    whole, parts = (torch.autograd.grad(y.sum(), weight)[0] for y in (want, torch.cat(out, 1)))
    assert relative_error(parts, whole) <= 1e-4


def test_steps_write_the_state_in_place():
    module, x = layer(), inputs(2, 3)
    with torch.no_grad():
        _, cache = module(x)
        _, after = module(x[:, :1], cache)
    assert after.state.data_ptr() == cache.state.data_ptr()


def test_a_cache_with_gradients_is_not_written():
    module, x = layer(), inputs(2, 3)
    y, cache = module(x)
    before = cache.state.detach().clone()
    with torch.no_grad():
        module(x[:, :1], cache)
    assert torch.equal(cache.state.detach(), before)
    y.sum().backward()


def test_the_size_of_the_cache_does_not_depend_on_time():
    module = layer()
    sizes = []
    for T in (5, 500):
        _, cache = module(inputs(1, T))
        tensors = (cache.state, *cache.conv)
        sizes.append([(x.shape, x.untyped_storage().nbytes()) for x in tensors])
    assert sizes[0] == sizes[1]


# ---- packed sequences ----


@settings
def test_packed_sequences_are_separate_calls(options):
    module, bounds = layer(**options), [0, 1, 1, 3, 20, 26]
    x = inputs(1, 30)
    first = inputs(5, 4)
    with torch.no_grad():
        _, start = module(first)
    y, cache = module(x, start, torch.tensor(bounds))
    assert (y[:, 26:] == 0).all()
    for index, (begin, end) in enumerate(itertools.pairwise(bounds)):
        one = slice(index, index + 1)
        conv = None if start.conv is None else tuple(c[one] for c in start.conv)
        own = deltaproduct.DeltaProductCache(start.state[one], conv)
        want, after = module(x[:, begin:end], own)
        torch.testing.assert_close(y[:, begin:end], want, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(cache.state[one], after.state, rtol=1e-4, atol=1e-6)
        for a, b in zip(cache.conv or (), after.conv or (), strict=True):
            torch.testing.assert_close(a[one], b)


def test_packed_sequences_do_not_leak():
    module, x = layer(), inputs(1, 10).requires_grad_()
    y, _ = module(x, None, torch.tensor([0, 4, 8]))
    (gradient,) = torch.autograd.grad(y[:, 4:].sum(), x)
    assert (gradient[:, :4] == 0).all()
    assert (gradient[:, 8:] == 0).all()
    assert (gradient[:, 4:8] != 0).all()


def test_prefill_packed_then_decode_a_batch():
    module, x = layer(), inputs(1, 12)
    with torch.no_grad():
        _, cache = module(x, None, torch.tensor([0, 5, 12]))
        token = inputs(2, 1)
        y, _ = module(token, cache)
        for row, (begin, end) in enumerate(((0, 5), (5, 12))):
            want, _ = module(torch.cat([x[:, begin:end], token[row : row + 1]], 1))
            torch.testing.assert_close(y[row, 0], want[0, -1], rtol=1e-4, atol=1e-6)


# ---- parameters ----


def test_names_and_shapes_of_parameters():
    module = layer(num_householder=3, num_v_heads=4, expand_v=2.0)
    assert {name: tuple(x.shape) for name, x in module.state_dict().items()} == {
        "q_proj.weight": (16, HIDDEN),
        "k_proj.weight": (48, HIDDEN),
        "v_proj.weight": (192, HIDDEN),
        "b_proj.weight": (12, HIDDEN),
        "a_proj.weight": (4, HIDDEN),
        "A_log": (4,),
        "dt_bias": (4,),
        "q_conv1d.weight": (16, 1, 4),
        "k_conv1d.weight": (48, 1, 4),
        "v_conv1d.weight": (192, 1, 4),
        "g_proj.weight": (64, HIDDEN),
        "o_norm.weight": (16,),
        "o_proj.weight": (HIDDEN, 64),
    }


def test_initial_step_sizes():
    module = nnkernels.nn.GatedDeltaProduct(8, 200, 2)
    dt = functional.softplus(module.dt_bias)
    assert dt.min() >= 0.99e-3
    assert dt.max() <= 1.01e-1
    assert module.A_log.exp().max() <= 16


@settings
def test_checkpoints_round_trip(options, tmp_path):
    module, x = layer(**options), inputs(2, 9)
    torch.save(module.state_dict(), tmp_path / "layer.pt")
    torch.manual_seed(1)
    other = nnkernels.nn.GatedDeltaProduct(HIDDEN, 2, 8, **options)
    assert not torch.equal(other(x)[0], module(x)[0])
    other.load_state_dict(torch.load(tmp_path / "layer.pt"))
    assert torch.equal(other(x)[0], module(x)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    module, x = layer().to(dtype), inputs(2, 20).to(dtype)
    with torch.no_grad():
        y, cache = module(x)
        want = wide(module, x)
        assert relative_error(y, want) <= (3e-2 if dtype == torch.bfloat16 else 1e-12)
        one, _ = module(x[:, :1], cache)
    assert (y.dtype, one.dtype) == (dtype, dtype)


def test_autocast():
    module, x = layer(), inputs(2, 20)
    with torch.autocast("cpu", torch.bfloat16):
        y, cache = module(x)
        y.float().sum().backward()
        with torch.no_grad():
            module(x[:, :1], deltaproduct.DeltaProductCache(cache.state.detach(), cache.conv))
    assert cache.state.dtype == torch.float32
    assert relative_error(y.detach(), wide(module, x)) <= 5e-2


# ---- errors ----


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "num_v_heads=3 is not a multiple of num_heads=2", {"num_v_heads": 3}),
        (ValueError, "head_dim=8 times expand_v=0.3 is not", {"expand_v": 0.3}),
        (ValueError, "head_dim=8 times expand_v=0 is not", {"expand_v": 0}),
        (ValueError, "num_householder must be at least 1", {"num_householder": 0}),
        (TypeError, "num_householder must be an int", {"num_householder": 2.0}),
        (ValueError, "conv_size must be at least 1", {"conv_size": 0}),
        (TypeError, "use_forget_gate must be a bool", {"use_forget_gate": 1}),
        (TypeError, "expand_v must be a number", {"expand_v": "2"}),
    ],
)
def test_bad_settings(error, message, options):
    with pytest.raises(error, match=f"^GatedDeltaProduct: {message}"):
        layer(**options)


def test_bad_inputs():
    module, x = layer(), inputs(2, 5)
    with pytest.raises(ValueError, match=r"GatedDeltaProduct: x is \[2, 5\]"):
        module(x[..., 0])
    with pytest.raises(ValueError, match=r"GatedDeltaProduct: x is \[2, 5, 3\]"):
        module(x[..., :3])
    with pytest.raises(ValueError, match="cu_seqlens needs B=1"):
        module(x, None, torch.tensor([0, 5]))
    with pytest.raises(ValueError, match="cu_seqlens ends with 6, expected at most T=5"):
        module(x[:1], None, torch.tensor([0, 6]))
    _, cache = module(x)
    with pytest.raises(ValueError, match="cache is of 2 sequences"):
        module(x[:1], cache)
    with pytest.raises(ValueError, match="has no convolution inputs"):
        module(x, deltaproduct.DeltaProductCache(cache.state, None))
    with pytest.raises(TypeError, match="cache must be what an earlier call returned"):
        module(x, cache.state)
