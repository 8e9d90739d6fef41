"""The L-Mul reference against the definition written out anew, closed forms and known numbers."""

import doctest
import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch

from nnkernels.lmul import reference

INF = math.inf
NAN = math.nan
SMALLEST_NORMAL = 2.0**-126
MODES = ("bits", "formula")
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
# Fits 7 mantissa bits: an exact bfloat16.
LARGEST = (2 - 2**-7) * 2.0**127
TINY = [0.0, 2.0**-133, 2.0**-127, SMALLEST_NORMAL, 1.9921875 * SMALLEST_NORMAL]
SMALL = [2.0**-63, 1.5 * 2.0**-63, 1.9375 * 2.0**-64]
MEDIUM = [0.6640625, 1.0, 1.46875, 1.4765625, 1.9921875]
LARGE = [1.5 * 2.0**63, 1.9375 * 2.0**64, 2.0**127, LARGEST, INF]
SPECIAL = torch.tensor([*TINY, *SMALL, *MEDIUM, *LARGE])
SPECIAL = torch.cat([SPECIAL, -SPECIAL, torch.tensor([NAN])])


def words(x):
    return x.to(torch.float32).view(torch.int32)


def assert_same_bits(got, expected):
    torch.testing.assert_close(words(got), words(expected), rtol=0, atol=0)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(got, exact):
    return ((got.double() - exact).norm() / exact.norm()).item()


def defined_product(x, y, c, mode):
    """L of fp32 arrays that need no reduction, by real-number arithmetic on their parts."""
    x, y = np.broadcast_arrays(x, y)
    negative = np.signbit(x) ^ np.signbit(y)
    with np.errstate(invalid="ignore", over="ignore"):
        x_half, x_exponent = np.frexp(np.abs(x).astype(np.float64))
        y_half, y_exponent = np.frexp(np.abs(y).astype(np.float64))
        s = (2 * x_half - 1) + (2 * y_half - 1) + c
        carry = np.floor(s) if mode == "bits" else 0
        value = np.ldexp((1 + s - carry) * 2.0**carry, x_exponent + y_exponent - 2)
        value[value >= 2.0**128] = INF
        value[value < SMALLEST_NORMAL] = 0
        value[np.isinf(x) | np.isinf(y)] = INF
        zero = (np.abs(x) < SMALLEST_NORMAL) | (np.abs(y) < SMALLEST_NORMAL)
        infinite = np.isinf(x) | np.isinf(y)
        value[zero] = 0
        value = np.where(negative, -value, value).astype(np.float32)
    value[np.isnan(x) | np.isnan(y) | (zero & infinite)] = NAN
    return torch.from_numpy(value)


# ---- constants and reduction ----


def test_default_constants():
    adder = {1: 0x3F400000, 2: 0x3F600000, 3: 0x3F700000, 4: 0x3F700000}
    for m in range(1, 24):
        c = reference.default_offset(m)
        assert 0x3F800000 - c * 2**23 == adder.get(m, 0x3F780000)


@pytest.mark.parametrize(
    ("dtypes", "m"),
    [
        ([torch.float8_e5m2], 2),
        ([torch.float8_e4m3fn], 3),
        ([torch.bfloat16], 7),
        ([torch.float16], 10),
        ([torch.float32], 23),
        ([torch.float8_e4m3fn, torch.float8_e5m2], 3),
        ([torch.bfloat16, torch.float16], 10),
    ],
)
def test_default_mantissa_bits(dtypes, m):
    assert reference.default_mantissa_bits(*dtypes) == m
    assert reference.default_mantissa_bits(*reversed(dtypes)) == m


def test_unsupported_arguments_are_refused():
    one = torch.ones(1)
    for dtype in (torch.float64, torch.int32, torch.bool, torch.complex64):
        with pytest.raises(TypeError, match="is not supported"):
            reference.mul(one.to(dtype), one)
    for bad in ({"mode": "words"}, {"round": "up"}, {"grad": "none"}, {"mantissa_bits": 24}):
        with pytest.raises(ValueError, match="lmul reference"):
            reference.mul(one, one, **bad)
    for offset in (1.0, -0.5, 2.0**-24, NAN):
        with pytest.raises(ValueError, match="offset"):
            reference.mul(one, one, offset=offset)


@pytest.mark.parametrize("m", [1, 2, 3, 7, 10, 22, 23])
def test_trunc_clears_the_low_bits(m):
    x = torch.cat([SPECIAL, normals(1000)])
    mask = -1 << (23 - m)
    expected = torch.where(x.isnan(), words(x), words(x) & mask)
    assert torch.equal(words(reference.reduce_mantissa(x, m, "trunc")), expected)


def test_rne_is_the_rounding_of_the_narrow_formats():
    word = torch.arange(-(2**31), 2**31, 65521, dtype=torch.int64).to(torch.int32)
    x = torch.cat([word.view(torch.float32), SPECIAL])
    x = x[~x.isnan()]
    assert_same_bits(reference.reduce_mantissa(x, 7, "rne"), x.to(torch.bfloat16))
    x = normals(10000)
    x = x[x.abs() > 2.0**-14]
    assert_same_bits(reference.reduce_mantissa(x, 10, "rne"), x.to(torch.float16))


def test_rne_ties_and_carries():
    largest = torch.finfo(torch.float32).max
    x = torch.tensor([1.125, 1.375, 1.875, largest, -largest, SMALLEST_NORMAL * (1 - 2**-23), NAN])
    expected = torch.tensor([1.0, 1.5, 2.0, INF, -INF, SMALLEST_NORMAL, NAN])
    assert_same_bits(reference.reduce_mantissa(x, 2, "rne"), expected)
    assert_same_bits(reference.reduce_mantissa(x, 23, "rne"), x)
    # The rows of the special values speak of reduced operands.
    product = reference.mul(x[3:6], torch.tensor([0.0, 1.0, 1.0]), mantissa_bits=2, round="rne")
    assert_same_bits(product, torch.tensor([NAN, -INF, 1.25 * SMALLEST_NORMAL]))


# ---- one product ----


@pytest.mark.parametrize("mode", MODES)
def test_every_bfloat16_word_with_special_values(mode):
    x = torch.arange(65536).to(torch.int16).view(torch.bfloat16).float()[:, None]
    expected = defined_product(x.numpy(), SPECIAL.numpy(), 1 / 16, mode)
    assert_same_bits(reference.mul(x, SPECIAL, mantissa_bits=7, mode=mode), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("x_dtype", "y_dtype"), list(itertools.product(FLOAT8, repeat=2)))
def test_every_pair_of_float8_words(x_dtype, y_dtype, mode):
    word = torch.arange(256).to(torch.uint8)
    x, y = word.view(x_dtype)[:, None], word.view(y_dtype)
    c = reference.default_offset(reference.default_mantissa_bits(x_dtype, y_dtype))
    expected = defined_product(x.float().numpy(), y.float().numpy(), c, mode)
    got = reference.mul(x, y, mode=mode)
    assert got.dtype == torch.float32
    assert_same_bits(got, expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("offset", [None, 0.0, 0.40625, 1 - 2.0**-23])
@pytest.mark.parametrize("m", [1, 4, 10, 23])
def test_rational_arithmetic(m, offset, mode):
    generator = random.Random(m)
    x, y = torch.tensor([generator.randrange(2**32) - 2**31 for _ in range(1000)]).view(2, 500)
    x, y = (w.to(torch.int32).view(torch.float32) for w in (x, y))
    # Every exponent of y pairs with one that keeps the product in range.
    exponent = (254 - (words(x) >> 23 & 255)).clamp(1, 254)
    y = (words(y) & ~0x7F800000 | exponent << 23).view(torch.float32)
    got = reference.mul(x, y, mantissa_bits=m, mode=mode, offset=offset)
    c = Fraction(reference.default_offset(m) if offset is None else offset)
    for product, *operands in zip(got.tolist(), x.tolist(), y.tolist(), strict=True):
        if not all(math.isfinite(v) and abs(v) >= SMALLEST_NORMAL for v in operands):
            continue
        exponent, s = 0, c
        for v in operands:
            half, e = math.frexp(abs(v))
            exponent += e - 1
            s += Fraction(math.floor((2 * half - 1) * 2**m), 2**m)
        carry = math.floor(s) if mode == "bits" else 0
        value = (1 + s - carry) * Fraction(2) ** (exponent + carry)
        if value < SMALLEST_NORMAL:
            value = 0
        sign = math.copysign(1, operands[0]) * math.copysign(1, operands[1])
        # A double holds the exact value; its only rounding is the one to fp32.
        assert float(value) == value
        assert product == np.float32(sign * float(value))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("m", range(1, 24))
def test_one_times_one_is_one_plus_the_constant(m, mode):
    one = torch.ones(())
    c = reference.default_offset(m)
    assert reference.mul(one, one, mantissa_bits=m, mode=mode).item() == 1 + c
    assert reference.mul(one, one, mantissa_bits=m, mode=mode, offset=0.0).item() == 1
    assert reference.mul(one, one, mantissa_bits=m, mode=mode, offset=0.25).item() == 1.25


@pytest.mark.parametrize("mode", MODES)
def test_special_values(mode):
    rows = [
        (NAN, 1.0, NAN),
        (-1.0, -NAN, NAN),
        (NAN, INF, NAN),
        (NAN, 0.0, NAN),
        (INF, 0.0, NAN),
        (INF, -(2.0**-127), NAN),
        (INF, -SMALLEST_NORMAL, -INF),
        (-INF, -INF, INF),
        (0.0, -1.0, -0.0),
        (-0.0, -0.0, 0.0),
        (-(2.0**-127), 3.0, -0.0),
        # 2^-126 * (1 + c) just holds, half of it does not.
        (2.0**-63, 2.0**-63, SMALLEST_NORMAL * 1.0625),
        (-(2.0**-63), 2.0**-64, -0.0),
        (SMALLEST_NORMAL, SMALLEST_NORMAL, 0.0),
        # 2^127 * (1 + c) just holds, twice it does not.
        (2.0**63, -(2.0**64), -(2.0**127) * 1.0625),
        (2.0**64, -(2.0**64), -INF),
        (LARGEST, LARGEST, INF),
        # s = 1: both modes give 2^-127 * 2.
        (1.5 * 2.0**-63, 1.4375 * 2.0**-64, SMALLEST_NORMAL),
        (1.5 * 2.0**63, 1.4375 * 2.0**64, INF),
    ]
    x, y, expected = torch.tensor(rows).T
    # The sign of a NaN literal is not part of the definition, the canonical NaN is.
    expected = expected.masked_fill(expected.isnan(), NAN)
    assert_same_bits(reference.mul(x, y, mantissa_bits=7, mode=mode), expected)
    assert_same_bits(reference.mul(y, x, mantissa_bits=7, mode=mode), expected)
    # Through a sum of one product: the same, but never -0.
    sums = reference.matmul(x[:, None, None], y[:, None, None], mantissa_bits=7, mode=mode)
    torch.testing.assert_close(sums.flatten(), expected, rtol=0, atol=0, equal_nan=True)
    assert not (sums.signbit() & (sums == 0)).any()


@pytest.mark.parametrize("round", ["trunc", "rne"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("m", [1, 4, 7, 23])
def test_symmetries(m, mode, round):
    options = {"mantissa_bits": m, "mode": mode, "round": round}
    x, y = normals(2, 2000, seed=m)
    product = reference.mul(x, y, **options)
    assert_same_bits(reference.mul(y, x, **options), product)
    assert_same_bits(reference.mul(-x, y, **options), -product)
    for k in (-40, -1, 3, 50):
        assert_same_bits(reference.mul(x * 2.0**k, y, **options), product * 2.0**k)
    if mode == "bits":
        assert_same_bits(reference.reduce_mantissa(product, m), product)


@pytest.mark.parametrize("m", [1, 3, 7, 22])
def test_formula_is_a_matrix_product_twice_as_long(m):
    x, y = (reference.reduce_mantissa(t, m) for t in normals(2, 2000, seed=m))
    x[:3], y[2:5] = 0, 0
    px, py = reference.power(x), reference.power(y)
    xc = x.double() - (1 - reference.default_offset(m)) * px
    expected = (xc * py + px * y.double()).float()
    got = reference.mul(x, y, mantissa_bits=m, mode="formula")
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("m", "percent"), list(zip(range(1, 8), [25, 38, 44, 53, 52, 54, 55], strict=True))
)
def test_share_of_pairs_where_the_modes_differ(m, percent):
    x = 1 + torch.arange(2**m) / 2**m
    bits, formula = (
        reference.mul(x[:, None], x, mantissa_bits=m, mode=mode, out_dtype=torch.float32)
        for mode in MODES
    )
    assert round((bits != formula).double().mean().item() * 100) == percent


def test_result_dtypes():
    x = {d: torch.ones(2, 2).to(d) for d in (*FLOAT8, torch.bfloat16, torch.float16, torch.float32)}
    for a, b in itertools.product(x, repeat=2):
        expected = torch.promote_types(*(torch.float32 if d in FLOAT8 else d for d in (a, b)))
        for function in (reference.mul, reference.matmul, reference.linear):
            assert function(x[a], x[b]).dtype == expected
    y = torch.cat([SPECIAL, normals(1000) * 200])
    product = reference.mul(y, y.flip(0), mantissa_bits=7)
    for dtype in (*FLOAT8, torch.bfloat16, torch.float16):
        got = reference.mul(y, y.flip(0), mantissa_bits=7, out_dtype=dtype)
        assert got.dtype == dtype
        assert_same_bits(got, product.to(dtype))


# ---- published and computed numbers ----


@pytest.fixture(scope="module")
def pairs():
    return normals(2, 1_000_000)


@pytest.mark.parametrize(
    ("mode", "m", "rms", "bias"),
    [
        ("bits", 2, 0.085, None),
        ("bits", 3, 0.059, -0.037),
        ("bits", 4, 0.037, 0.005),
        ("bits", 7, 0.031, -0.001),
        ("formula", 3, 0.103, None),
        ("formula", 4, 0.084, None),
        ("formula", 7, 0.084, None),
    ],
)
def test_error_of_one_product(pairs, mode, m, rms, bias):
    x, y = pairs
    error = reference.mul(x, y, mantissa_bits=m, mode=mode) / (x.double() * y.double()) - 1
    assert error.pow(2).mean().sqrt().item() == pytest.approx(rms, abs=1e-3)
    if bias is not None:
        assert error.mean().item() == pytest.approx(bias, abs=1e-3)


@pytest.mark.parametrize(("m", "rms"), [(3, 0.037), (2, 0.074)])
def test_error_of_one_exact_product_of_float8_mantissas(pairs, m, rms):
    # The exponent range of the fp8 formats is left out: a scale would take care of it.
    x, y = (reference.reduce_mantissa(t, m, "rne").double() for t in pairs)
    error = x * y / (pairs[0].double() * pairs[1].double()) - 1
    assert error.pow(2).mean().sqrt().item() == pytest.approx(rms, abs=1e-3)


@pytest.mark.parametrize(("m", "best"), [(4, 0.113), (7, 0.0625)])
def test_best_constant(pairs, m, best):
    x, y = pairs[:, :200_000]

    def rms(c):
        product = reference.mul(x, y, mantissa_bits=m, offset=c)
        return (product / (x.double() * y.double()) - 1).pow(2).mean()

    constants = [round(best * 2**9 + step) / 2**9 for step in (-6, -3, 0, 3, 6)]
    assert min(constants, key=rms) == constants[2]


@pytest.fixture(scope="module")
def attention_inputs():
    return normals(3, 2, 1, 256, 64, seed=1).unbind(0)


def exact_attention(q, k, v, cast=torch.Tensor.double):
    weights = torch.softmax(cast(q) @ cast(k).mT / 8, -1)
    return cast(weights) @ cast(v)


@pytest.mark.parametrize(
    ("m", "error", "apart"), [(3, 0.097, 0.055), (4, 0.058, 0.041), (7, 0.047, 0.037)]
)
def test_error_of_attention(attention_inputs, m, error, apart):
    exact = exact_attention(*attention_inputs)
    before = reference.attention(*attention_inputs, mantissa_bits=m)
    after = reference.attention(*attention_inputs, mantissa_bits=m, normalize="after")
    assert relative_error(before, exact) == pytest.approx(error, abs=0.006)
    assert relative_error(after, exact) == pytest.approx(error, abs=0.006)
    assert relative_error(after, before.double()) == pytest.approx(apart, abs=0.006)


@pytest.mark.parametrize(("dtype", "error"), list(zip(FLOAT8, (0.107, 0.110), strict=True)))
def test_error_of_attention_with_float8_casts(attention_inputs, dtype, error):
    got = exact_attention(*attention_inputs, cast=lambda x: x.to(dtype).double())
    exact = exact_attention(*attention_inputs)
    assert relative_error(got, exact) == pytest.approx(error, abs=0.006)


# ---- sums ----


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("rows", "inner", "columns"), [(3, 5, 4), (2, 33, 1), (1, 100, 3)])
def test_matmul_is_the_sum_of_products(rows, inner, columns, mode):
    a, b = normals(rows, inner), normals(inner, columns, seed=1)
    options = {"mantissa_bits": 5, "mode": mode}
    got = reference.matmul(a, b, **options)
    magnitude = reference.matmul_magnitude(a, b, **options)
    for i, j in itertools.product(range(rows), range(columns)):
        products = reference.mul(a[i], b[:, j], **options).tolist()
        assert got[i, j].item() == np.float32(math.fsum(products))
        assert magnitude[i, j].item() == pytest.approx(math.fsum(map(abs, products)), rel=1e-14)
    batch = reference.bmm(a.expand(2, -1, -1), b.expand(2, -1, -1), **options)
    assert torch.equal(batch, got.expand(2, -1, -1))
    assert torch.equal(reference.linear(a, b.mT, **options), got)
    assert torch.equal(reference.linear(a[0], b.mT, **options), got[0])


def test_sums_without_terms_and_of_zeros():
    assert reference.matmul(torch.ones(2, 0), torch.ones(0, 3)).tolist() == [[0.0] * 3] * 2
    assert reference.matmul(torch.ones(0, 2), torch.ones(2, 3)).shape == (0, 3)
    assert reference.linear(torch.ones(4, 0, 2), torch.ones(3, 2)).shape == (4, 0, 3)
    zeros = reference.matmul(-torch.zeros(2, 5), torch.ones(5, 3))
    assert not zeros.signbit().any()
    zeros = reference.linear(-torch.zeros(2, 5), torch.ones(3, 5), -torch.zeros(3))
    assert not zeros.signbit().any()
    for gradient in reference.matmul_grad(torch.ones(2, 3), torch.ones(2, 0), torch.ones(0, 3)):
        assert gradient.numel() == 0


def test_sums_with_special_values():
    a = torch.tensor([[INF, 1.0], [INF, -INF], [NAN, 1.0], [INF, 1.0]])
    b = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    got = reference.matmul(a, b)
    assert got[:, 0].tolist()[0] == INF
    assert got[1:3, 0].isnan().all()
    assert got[:, 1].isnan().all()


def test_bias_is_added_in_float32_between_two_roundings():
    # The sum is 2^-25 above an fp32 number and the bias 2^-25 more: unrounded, they would carry.
    x, bias = torch.tensor([[1.0, 2.0**-10, 2.0**-25]]), torch.tensor([2.0**-25])
    assert reference.linear(x, torch.ones(1, 3), bias).item() == 1.0625 * (1 + 2.0**-10)
    x, w = torch.ones(1, 1, dtype=torch.bfloat16), torch.ones(2, 1, dtype=torch.bfloat16)
    bias = torch.tensor([2.0**-30, 2.0**-7])
    got = reference.linear(x, w, bias, out_dtype=torch.float32)
    assert got.tolist() == [[1.0625, 1.0625 + 2.0**-7]]
    # 1.0625 + 2^-8 is a tie between two bfloat16 numbers, which 2^-20 more decides.
    bias = torch.tensor([2.0**-8, 2.0**-8 + 2.0**-20])
    got = reference.linear(x, w, bias)
    assert got.dtype == torch.bfloat16
    assert got.tolist() == [[1.0625, 1.0625 + 2.0**-7]]


# ---- attention ----


@pytest.mark.parametrize("normalize", ["before", "after"])
def test_attention_to_one_key(normalize):
    q, k, v = normals(1, 2, 50, 8), normals(1, 2, 1, 8, seed=1), normals(1, 2, 1, 3, seed=2)
    weight = torch.ones(1, 2, 50, 1)
    if normalize == "after":
        t = reference.matmul(q, k.mT) * torch.tensor(0.1) * torch.tensor(math.log2(math.e))
        weight = torch.exp2(t.double() - t.floor()).float()
    got = reference.attention(q, k, v, scale=0.1, normalize=normalize)
    assert_same_bits(got, reference.mul(weight, v) / weight)


@pytest.mark.parametrize("normalize", ["before", "after"])
def test_attention_to_equal_keys(normalize):
    v = normals(1, 1, 8, 4)
    q, k = torch.zeros(1, 1, 3, 2), normals(1, 1, 8, 2)
    weight = torch.tensor(1 / 8 if normalize == "before" else 1.0)
    expected = reference.mul(weight, v, mantissa_bits=7).double().sum(2).float()
    expected = expected if normalize == "before" else expected / 8
    got = reference.attention(q, k, v, mantissa_bits=7, normalize=normalize)
    assert_same_bits(got, expected.expand(1, 1, 3, 4))


@pytest.mark.parametrize("normalize", ["before", "after"])
def test_attention_groups_masks_and_dtypes(normalize):
    def run(q, k, v, **options):
        return reference.attention(q, k, v, normalize=normalize, **options)

    q, k, v = normals(2, 4, 5, 8), normals(2, 2, 7, 8, seed=1), normals(2, 2, 7, 6, seed=2)
    plain = run(q, k, v)
    assert plain.shape == (2, 4, 5, 6)
    for head in range(4):
        alone = run(*(x[:, i].unsqueeze(1) for x, i in ((q, head), (k, head // 2), (v, head // 2))))
        assert torch.equal(plain[:, head].unsqueeze(1), alone)

    keep = torch.ones(5, 7, dtype=torch.bool).tril()
    causal = run(q, k, v, is_causal=True)
    assert torch.equal(causal, run(q, k, v, attn_mask=keep))
    added = torch.zeros(5, 7).masked_fill(~keep, -INF)
    assert torch.equal(causal, run(q, k, v, attn_mask=added))
    assert torch.equal(causal[:, :, 4:], run(q[:, :, 4:], k[:, :, :5], v[:, :, :5]))
    bias = normals(2, 1, 5, 7, seed=3)
    assert not torch.equal(plain, run(q, k, v, attn_mask=bias))
    assert not torch.equal(plain, run(q, k, v, scale=0.25))

    half = [x.half() for x in (q, k, v)]
    assert run(*half).dtype == torch.float16
    assert torch.equal(run(*half), run(*(x.float() for x in half), mantissa_bits=10).half())
    assert run(*(x.to(torch.float8_e4m3fn) for x in (q, k, v))).dtype == torch.float32

    with pytest.raises(ValueError, match="attn_mask or is_causal"):
        run(q, k, v, attn_mask=keep, is_causal=True)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("normalize", ["before", "after"])
def test_masked_keys_take_no_part(normalize, kind):
    q, k, v = normals(3, 1, 1, 4, 8)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]]).bool()
    if kind == "float":
        # Far below 0 and, for "after", by a whole power of two: the weights are to stay the same.
        mask = torch.full((4, 4), -1024 * math.log(2)).masked_fill(~mask, -INF)
    options = {"attn_mask": mask, "normalize": normalize, "mantissa_bits": 7}
    got = reference.attention(q, k, v, **options)
    assert got[0, 0, 1].tolist() == [0.0] * 8
    assert not got[0, 0, 1].signbit().any()
    first = q[:, :, :1], k[:, :, :2], v[:, :, :2]
    alone = reference.attention(*first, normalize=normalize, mantissa_bits=7)
    # Scores near -710 keep 14 fraction bits, and a weight may lose the last of its 7.
    assert relative_error(got[:, :, :1], alone.double()) < 2**-7
    for grad in ("ste", "lmul", "exact"):
        gradients = reference.attention_grad(torch.ones_like(v), q, k, v, grad=grad, **options)
        assert all(x.isfinite().all() for x in gradients)
        assert gradients[0][0, 0, 1].tolist() == [0.0] * 8
        assert gradients[2][0, 0, 2:].tolist() == [[0.0] * 8] * 2
    v[..., 2:, :] = INF
    if kind == "bool":
        k[..., 2:, :] = NAN
    assert torch.equal(reference.attention(q, k, v, **options), got)
    # A float mask is added, which does not hide a NaN score; a bool mask replaces it.
    k[..., 0, :] = NAN
    nan_rows = reference.attention(q, k, v, **options).isnan().all(-1).flatten().tolist()
    assert nan_rows == ([True, False, True, False] if kind == "bool" else [True] * 4)


@pytest.mark.parametrize("normalize", ["before", "after"])
def test_attention_without_keys_is_zero(normalize):
    q, nothing = normals(1, 1, 4, 8), torch.ones(1, 1, 0, 8)
    got = reference.attention(q, nothing, nothing, normalize=normalize)
    assert torch.equal(got, torch.zeros(1, 1, 4, 8))


# ---- gradients ----


def test_straight_through_gradients_are_ordinary_products():
    a, b, g = normals(2, 3, 5), normals(2, 5, 4, seed=1), normals(2, 3, 4, seed=2)
    options = {"mantissa_bits": 3, "round": "rne"}
    ra, rb = (reference.reduce_mantissa(t, 3, "rne").double() for t in (a, b))
    ga, gb = reference.matmul_grad(g, a, b, **options)
    torch.testing.assert_close(ga, g.double() @ rb.mT)
    torch.testing.assert_close(gb, ra.mT @ g.double())
    gx, gw, gbias = reference.linear_grad(g, a, b[0].mT, **options)
    torch.testing.assert_close(gx, g.double() @ rb[0].mT)
    torch.testing.assert_close(gw, (g.double().mT @ ra).sum(0))
    torch.testing.assert_close(gbias, g.double().sum((0, 1)))


@pytest.mark.parametrize("mode", MODES)
def test_lmul_gradients_are_lmul_products(mode):
    a, b, g = normals(3, 5), normals(5, 4, seed=1), normals(3, 4, seed=2)
    options = {"mantissa_bits": 4, "mode": mode}
    ga, gb = reference.matmul_grad(g, a, b, grad="lmul", **options)
    assert torch.equal(ga.float(), reference.matmul(g, b.mT, **options))
    assert torch.equal(gb.float(), reference.matmul(a.mT, g, **options))


def test_exact_gradients_of_the_formula_are_products_with_powers_of_two():
    a, b, g = normals(3, 5), normals(5, 4, seed=1), normals(3, 4, seed=2).double()
    a[1, 2], b[2, 3] = 0, 0
    ga, gb = reference.matmul_grad(g, a, b, mode="formula", grad="exact")
    torch.testing.assert_close(ga, g @ reference.power(b).mT)
    torch.testing.assert_close(gb, reference.power(a).mT @ g)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("offset", [None, 0.875])
def test_exact_gradient_is_the_slope(mode, offset):
    # With 16 bits every product of these operands is exact in fp32, and so is each difference.
    x, y = (reference.reduce_mantissa(t, 16) for t in normals(2, 5000))
    step = reference.power(x).float() * 2.0**-10
    options = {"mantissa_bits": 23, "mode": mode, "offset": offset}
    low, middle, high = (
        reference.mul(x + h, y, **options).double() for h in (-step, torch.zeros(()), step)
    )
    affine = high - middle == middle - low
    assert affine.double().mean() > 0.99
    gx, gy = reference.mul_grad(torch.ones_like(x), x, y, grad="exact", **options)
    slope = (high - low) / (2 * step.double())
    assert torch.equal(gx[affine], slope[affine])
    # The other operand's slope follows from symmetry.
    assert torch.equal(gy, reference.mul_grad(torch.ones_like(x), y, x, grad="exact", **options)[0])


def test_exact_gradient_at_special_operands():
    # c = 1/16. 1.9375 carries on its own, 1.5 does not; mantissas of x = 0 and inf count as 0.
    x = torch.tensor([0.0, 2.0**-130, INF, 0.0, 1.5, 1.5, 1.5, NAN])
    y = torch.tensor([1.5, 1.9375, 1.9375, 0.0, 0.0, -INF, NAN, 1.5])
    expected = torch.tensor([1.0, 2.0, 2.0, 0.0, 0.0, -INF, NAN, 1.0], dtype=torch.float64)
    gx, _ = reference.mul_grad(torch.ones(8), x, y, mantissa_bits=7, grad="exact")
    torch.testing.assert_close(gx, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("grad", ["ste", "lmul"])
@pytest.mark.parametrize("normalize", ["before", "after"])
def test_attention_gradients_are_those_of_the_docstring(normalize, grad):
    m, scale = 5, 0.3
    q, k, v, g = normals(4, 1, 1, 6, 4)
    options = {"mantissa_bits": m, "scale": scale, "normalize": normalize}

    def product(a, b):
        if grad == "lmul":
            return reference.matmul(a.float(), b.float(), mantissa_bits=m).double()
        return a @ b

    def reduced(x):
        return reference.reduce_mantissa(x, m).double()

    s = reference.matmul(q, k.mT, mantissa_bits=m) * torch.tensor(scale)
    a = torch.softmax(s.double(), -1)
    if normalize == "before":
        da = product(g.double(), reduced(v).mT)
        correction = (a * da).sum(-1, keepdim=True)
        gv = product(reduced(a).mT, g.double())
    else:
        t = (s * torch.tensor(math.log2(math.e))).double()
        w = torch.exp2(t - t.floor().amax(-1, keepdim=True))
        total = w.sum(-1, keepdim=True)
        out = reference.attention(q, k, v, **options)
        da = product(g / total, reduced(v).mT) * total
        correction = (g * out).sum(-1, keepdim=True)
        gv = product(reduced(w).mT, g / total)
    ds = a * (da - correction) * scale
    expected = product(ds, reduced(k)), product(ds.mT, reduced(q)), gv

    got = reference.attention_grad(g, q, k, v, grad=grad, **options)
    # fp32 rounding may flip the last kept bit of an operand of "lmul", by 2^-m of one product.
    tolerance = 1e-6 if grad == "ste" else 2e-3
    for ours, theirs in zip(got, expected, strict=True):
        assert relative_error(ours, theirs) < tolerance


@pytest.mark.parametrize("normalize", ["before", "after"])
def test_exact_attention_gradient_by_differences(normalize):
    # Bits mode is continuous and piecewise affine in its operands, so that differences over a
    # short step tend to the derivative.
    inputs = normals(3, 2, 2, 5, 4).unbind(0)
    directions = normals(3, 2, 2, 5, 4, seed=1).unbind(0)
    g = normals(2, 2, 5, 4, seed=2)
    options = {"normalize": normalize, "is_causal": True}
    gradients = reference.attention_grad(g, *inputs, grad="exact", **options)
    step = 2.0**-14

    def value(sign):
        moved = (x + sign * step * d for x, d in zip(inputs, directions, strict=True))
        return (reference.attention(*moved, **options).double() * g).sum()

    slope = (value(1) - value(-1)) / (2 * step)
    expected = sum((x * d).sum() for x, d in zip(gradients, directions, strict=True))
    assert slope.item() == pytest.approx(expected.item(), rel=2e-3)


def test_autograd_gives_the_same_gradients_and_refuses_a_second_derivative():
    x, y = normals(3, 1, seed=4).requires_grad_(), normals(2, seed=5).requires_grad_()
    g = normals(3, 2)
    out = reference.mul(x, y, grad="exact")
    gx, gy = torch.autograd.grad(out, (x, y), g, retain_graph=True)
    expected = reference.mul_grad(g, x, y, grad="exact")
    torch.testing.assert_close((gx.double(), gy.double()), expected)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(out, (x, y), g, create_graph=True)


def test_examples_in_the_docstrings():
    result = doctest.testmod(reference, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
