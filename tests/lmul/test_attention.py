"""Fused attention and its gradients against the float64 reference."""

import sys

import house
import pytest
import torch
from lmul_cases import (
    FLOAT8,
    GRADS,
    INF,
    MODES,
    NAN,
    ROUNDS,
    assert_same_bits,
    name,
    normals,
    transposed,
)

from nnkernels import lmul
from nnkernels.lmul import reference

NORMALIZE = ("before", "after")
every_normalize = pytest.mark.parametrize("normalize", NORMALIZE)
every_mode = pytest.mark.parametrize("mode", MODES)
every_rule = pytest.mark.parametrize("grad", GRADS)

# heads, key heads, queries, keys, D, Dv
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 1, 7, 33, 16, 5),
    (4, 2, 33, 7, 8, 17),
    (1, 1, 128, 1, 32, 16),
    (2, 2, 1, 257, 64, 64),
    (2, 1, 257, 128, 7, 33),
    (1, 1, 257, 257, 16, 8),
    (1, 1, 33, 33, 256, 256),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=name)


def inputs(heads, key_heads, queries, keys, dim, value_dim, batch=1, seed=0, dtype=torch.float32):
    sizes = [(heads, queries, dim), (key_heads, keys, dim), (key_heads, keys, value_dim)]
    return [normals(batch, *s, seed=3 * seed + i, dtype=dtype) for i, s in enumerate(sizes)]


def error_of(got, expected, scale=1e-30):
    """L2 error relative to the norm of the reference, or to `scale` if that is larger.

    Where the reference has no finite number, neither has the result.
    """
    finite = expected.isfinite()
    assert torch.equal(finite, got.isfinite())
    difference = (got.double() - expected.double())[finite].norm()
    return (difference / expected[finite].double().norm().clamp(min=scale)).item()


def tolerance(bits, dtype=torch.float32):
    """At m < 23 an ulp of a weight may flip a bit that counts; a narrow dtype rounds once more."""
    return (2e-3 if bits < 23 else 1e-5) + (0 if dtype == torch.float32 else torch.finfo(dtype).eps)


def check(q, k, v, **options):
    bits = options.get("mantissa_bits") or reference.default_mantissa_bits(
        q.dtype, k.dtype, v.dtype
    )
    got = lmul.attention(q, k, v, **options)
    expected = reference.attention(q, k, v, **options)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert got.is_contiguous()
    assert error_of(got, expected) <= tolerance(bits, got.dtype)


def gradients(g, q, k, v, **options):
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = lmul.attention(*leaves, **options)
    return torch.autograd.grad(out, leaves, g.to(out.dtype).expand_as(out))


def check_gradients(g, q, k, v, **options):
    bits = options.get("mantissa_bits") or reference.default_mantissa_bits(
        q.dtype, k.dtype, v.dtype
    )
    got = gradients(g, q, k, v, **options)
    expected = reference.attention_grad(g, q, k, v, **options)
    # Of a key alone, dS is the difference of two equal sums.
    scale = (g.norm() * v.norm()).item() if k.shape[2] == 1 else 1e-30
    for ours, theirs, leaf in zip(got, expected, (q, k, v), strict=True):
        assert ours.dtype == leaf.dtype
        assert ours.shape == leaf.shape
        assert error_of(ours, theirs, scale) <= tolerance(bits, leaf.dtype)


# ---- against the reference ----


@every_normalize
@every_shape
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_shapes(shape, normalize, causal):
    check(*inputs(*shape), normalize=normalize, is_causal=causal)
    check(*inputs(*shape), normalize=normalize, is_causal=causal, mantissa_bits=4)


@every_normalize
@every_mode
@pytest.mark.parametrize("bits", [1, 3, 4, 7, 23])
@pytest.mark.parametrize("round", ROUNDS)
def test_options(normalize, mode, bits, round):
    q, k, v = inputs(2, 1, 40, 50, 24, 8, batch=2, seed=bits)
    options = {"normalize": normalize, "mode": mode, "mantissa_bits": bits, "round": round}
    check(q, k, v, **options)
    check(q, k, v, scale=-0.7, offset=0.25, **options)


@every_normalize
@every_rule
@every_shape
def test_gradient_shapes(shape, normalize, grad):
    q, k, v = inputs(*shape, seed=1)
    g = normals(1, shape[0], shape[2], shape[5], seed=9)
    # Exact slopes jump where mantissas add up to 1: with 23 bits an ulp of a weight can do that.
    options = {"mantissa_bits": 7 if grad == "exact" else 23, "is_causal": shape[2] % 2 == 1}
    check_gradients(g, q, k, v, normalize=normalize, grad=grad, **options)


@every_normalize
@every_mode
@every_rule
@pytest.mark.parametrize("bits", [3, 7])
def test_gradient_options(normalize, mode, grad, bits):
    q, k, v = inputs(4, 2, 40, 50, 24, 8, batch=2, seed=bits)
    g = normals(2, 4, 40, 8, seed=9)
    options = {"normalize": normalize, "mode": mode, "mantissa_bits": bits, "round": "rne"}
    check_gradients(g, q, k, v, grad=grad, scale=0.3, **options)


@every_normalize
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.bfloat16,) * 3,
        (torch.float16,) * 3,
        (torch.float32, torch.bfloat16, torch.float16),
        (FLOAT8[0],) * 3,
        (FLOAT8[1], torch.float16, FLOAT8[0]),
    ],
    ids=lambda dtypes: "-".join(map(name, dtypes)),
)
def test_dtypes(dtypes, normalize):
    q, k, v = (x.to(t) for x, t in zip(inputs(2, 1, 33, 65, 16, 8), dtypes, strict=True))
    check(q, k, v, normalize=normalize)
    check(q, k, v, normalize=normalize, out_dtype=torch.bfloat16)
    if not any(dtype in FLOAT8 for dtype in dtypes):
        g = normals(1, 2, 33, 8, seed=9, dtype=torch.bfloat16)
        check_gradients(g, q, k, v, normalize=normalize)


@every_normalize
def test_gradient_of_narrow_output(normalize):
    """The gradient does not lose what rounding the output to bfloat16 lost."""
    q, k, v = inputs(1, 1, 40, 50, 16, 16)
    options = {"normalize": normalize, "mantissa_bits": 23}
    g = normals(1, 1, 40, 16, seed=9, dtype=torch.bfloat16)
    narrow = gradients(g, q, k, v, out_dtype=torch.bfloat16, **options)
    for ours, theirs in zip(narrow, gradients(g, q, k, v, **options), strict=True):
        assert error_of(ours, theirs) <= 1e-6


# ---- masks ----

MASKS = {
    "keys": (50,),
    "queries-keys": (40, 50),
    "batch": (2, 1, 1, 50),
    "queries": (40, 1),
    "all": (2, 4, 40, 50),
}


@every_normalize
@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("kind", ["bool", "float32", "bfloat16", "float16"])
def test_masks(normalize, shape, kind):
    q, k, v = inputs(4, 2, 40, 50, 8, 12, batch=2)
    mask = normals(*shape, seed=5)
    mask = mask < 0.4 if kind == "bool" else mask.masked_fill(mask > 0.8, -INF)
    if kind not in ("bool", "float32"):
        mask = mask.to(getattr(torch, kind))
    check(q, k, v, normalize=normalize, attn_mask=mask)
    options = {"normalize": normalize, "mantissa_bits": 7}
    expected = lmul.attention(q, k, v, attn_mask=mask.expand(2, 4, 40, 50).clone(), **options)
    assert_same_bits(lmul.attention(q, k, v, attn_mask=mask, **options), expected)
    odd = torch.stack([mask, ~mask if kind == "bool" else -mask], -1)[..., 0]
    assert_same_bits(lmul.attention(q, k, v, attn_mask=odd, **options), expected)


@every_normalize
@every_rule
def test_gradient_masks(normalize, grad):
    q, k, v = inputs(4, 2, 40, 50, 8, 12, batch=2)
    g = normals(2, 4, 40, 12, seed=9)
    mask = normals(2, 1, 40, 50, seed=5) < 0.4
    mask[1, :, 3] = False
    options = {"normalize": normalize, "grad": grad}
    check_gradients(g, q, k, v, attn_mask=mask, **options)
    bias = normals(40, 50, seed=6)
    check_gradients(g, q, k, v, attn_mask=bias, **options)
    assert gradients(g, q, k, v, attn_mask=mask, **options)[0][1, :, 3].eq(0).all()


@every_normalize
def test_equal_masks(normalize):
    """A boolean mask, -inf added, and is_causal say the same."""
    q, k, v = inputs(2, 1, 130, 270, 16, 8)
    mask = torch.ones(130, 270, dtype=torch.bool).tril()
    expected = lmul.attention(q, k, v, attn_mask=mask, normalize=normalize)
    bias = torch.zeros(130, 270).masked_fill(~mask, -INF)
    assert_same_bits(lmul.attention(q, k, v, attn_mask=bias, normalize=normalize), expected)
    assert_same_bits(lmul.attention(q, k, v, is_causal=True, normalize=normalize), expected)


@every_normalize
def test_lowest_number_masks_like_infinity(normalize):
    """The most negative number, added to scores, leaves other keys as -inf does."""
    q, k, v = inputs(2, 1, 20, 300, 16, 8)
    hidden = normals(20, 300, seed=5) > 0.4
    lowest = torch.zeros(20, 300).masked_fill(hidden, torch.finfo(torch.float32).min)
    expected = lmul.attention(q, k, v, attn_mask=~hidden, normalize=normalize)
    assert_same_bits(lmul.attention(q, k, v, attn_mask=lowest, normalize=normalize), expected)
    by_reference = reference.attention(q, k, v, attn_mask=lowest, normalize=normalize)
    assert error_of(expected, by_reference) <= 1e-5
    # Where no other key is left, all count the same.
    alike = lmul.attention(q, k, v, normalize=normalize, attn_mask=lowest.fill_(lowest.min()))
    assert error_of(alike, reference.attention(0 * q, k, v, normalize=normalize)) <= 1e-5


@every_normalize
def test_nothing_to_attend_to(normalize):
    q, k, v = inputs(2, 1, 5, 300, 16, 8)
    mask = torch.ones(5, 300, dtype=torch.bool)
    mask[2] = False
    out = lmul.attention(q, k, v, attn_mask=mask, normalize=normalize)
    assert_same_bits(out[:, :, 2], torch.zeros(1, 2, 8))
    assert_same_bits(
        lmul.attention(q, k[:, :, :0], v[:, :, :0], normalize=normalize), torch.zeros(1, 2, 5, 8)
    )
    assert lmul.attention(q[:, :, :0], k, v, normalize=normalize).shape == (1, 2, 0, 8)
    assert lmul.attention(q, k, v[..., :0], normalize=normalize).shape == (1, 2, 5, 0)


@every_normalize
@every_mode
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_special_values_stay_with_who_sees_them(normalize, mode, value):
    q, k, v = inputs(1, 1, 60, 300, 8, 16)
    v[0, 0, 5, 3] = value
    k[0, 0, 290, 2] = value
    mask = normals(60, 300, seed=5) < 0.4
    mask[:, 290] = False
    mask[7, 5], mask[8, 5] = True, False
    options = {"normalize": normalize, "mode": mode, "mantissa_bits": 7}
    check(q, k, v, attn_mask=mask, **options)
    out = lmul.attention(q, k, v, attn_mask=mask, **options)
    assert out[0, 0, 8].isfinite().all()
    assert not out[0, 0, 7, 3].isfinite()
    causal = lmul.attention(q, k, v, is_causal=True, **options)
    assert causal[0, 0, :5].isfinite().all()
    assert not causal[0, 0, 5:, 3].isfinite().any()
    # Key 290 is masked for all: its NaN reaches no gradient.
    v[0, 0, 5, 3] = 1.0
    v[0, 0, 290] = value
    for gradient in gradients(normals(1, 1, 60, 16), q, k, v, attn_mask=mask, **options):
        assert gradient.isfinite().all()


# ---- the same result whatever the way to it ----


def everything(q, k, v, g, **options):
    return [lmul.attention(q, k, v, **options), *gradients(g, q, k, v, **options)]


@every_normalize
def test_every_isa_and_thread_count_agree(isa, normalize):
    q, k, v = inputs(2, 1, 150, 270, 24, 40)
    g = normals(1, 2, 150, 40, seed=9)
    options = {"normalize": normalize, "is_causal": True, "mantissa_bits": 7}
    with house.isa("scalar"), house.threads(1):
        expected = everything(q, k, v, g, **options)
    for count in (1, 2, 3):
        with house.threads(count):
            for ours, theirs in zip(everything(q, k, v, g, **options), expected, strict=True):
                assert_same_bits(ours, theirs)


@every_normalize
def test_layouts(normalize, canaries):
    q, k, v = inputs(4, 2, 50, 60, 16, 24, batch=2)
    g = normals(2, 4, 50, 24, seed=9)
    expected = everything(q, k, v, g, normalize=normalize)
    for layout in (
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        transposed,
        lambda x: canaries.embed(x, step=3),
    ):
        for ours, theirs in zip(
            everything(*map(layout, (q, k, v, g)), normalize=normalize), expected, strict=True
        ):
            assert_same_bits(ours, theirs)
    one = everything(q, k, v, torch.ones_like(g), normalize=normalize)
    for ours, theirs in zip(
        everything(q, k, v, torch.ones(()), normalize=normalize), one, strict=True
    ):
        assert_same_bits(ours, theirs)


@every_normalize
def test_shared_key_heads(normalize):
    """Grouped heads give what repeated ones give; their gradients add up."""
    q, k, v = inputs(6, 2, 50, 60, 16, 24)
    g = normals(1, 6, 50, 24, seed=9)
    repeated = [x.repeat_interleave(3, dim=1) for x in (k, v)]
    expanded = [x[:, :1].expand(-1, 6, -1, -1) for x in (k, v)]
    expected = everything(q, *repeated, g, normalize=normalize)
    got = everything(q, k, v, g, normalize=normalize)
    assert_same_bits(got[0], expected[0])
    assert_same_bits(got[1], expected[1])
    for ours, theirs in zip(got[2:], expected[2:], strict=True):
        assert error_of(ours, theirs.unflatten(1, (2, 3)).double().sum(2)) <= 1e-6
    assert_same_bits(
        lmul.attention(q, *expanded, normalize=normalize),
        lmul.attention(q, k[:, :1], v[:, :1], normalize=normalize),
    )


@pytest.mark.parametrize("algo", ["guarded", "word"])
def test_algorithms(algo):
    """A forced algorithm gives the same bits or refuses."""
    q, k, v = inputs(1, 1, 50, 60, 16, 24)
    options = {"normalize": "after", "mantissa_bits": 7}
    assert_same_bits(
        lmul.attention(q, k, v, algo=algo, **options), lmul.attention(q, k, v, **options)
    )
    v[0, 0, 3] = NAN
    if algo == "word":
        with pytest.raises(RuntimeError, match="non-finite"):
            lmul.attention(q, k, v, algo=algo, **options)


def test_only_wanted_gradients():
    q, k, v = inputs(2, 1, 50, 60, 16, 24)
    g = normals(1, 2, 50, 24, seed=9)
    expected = gradients(g, q, k, v)
    for i in range(3):
        leaves = [q, k, v]
        leaves[i] = leaves[i].detach().requires_grad_()
        (got,) = torch.autograd.grad(lmul.attention(*leaves), leaves[i], g)
        assert_same_bits(got, expected[i])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory():
    """Neither direction holds a matrix of scores: at 6144 queries and keys that is 151 MB."""
    script = """
        import torch, nnkernels
        from pathlib import Path
        ops = torch.ops.nnkernels
        torch.set_num_threads(1)
        def peak():
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) / 1024
        def both(length):
            x = torch.randn(1, 1, length, 16)
            for normalize in ("before", "after"):
                out = ops.lmul_attention_fwd(x, x, x, normalize=normalize, mantissa_bits=7)
                ops.lmul_attention_bwd(out, x, x, x, out, normalize=normalize, mantissa_bits=7)
        both(256)
        before = peak()
        both(6144)
        print(peak() - before)
    """
    done = house.run_python(script)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 24
