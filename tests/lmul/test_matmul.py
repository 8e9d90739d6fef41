"""Sums of products: each product exact, added in the promised order, bit for bit."""

import functools
import itertools

import house
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lmul_cases import (
    CARRIES_TWICE,
    DTYPES,
    EDGES,
    FLOAT8,
    INF,
    MODES,
    NAN,
    ROUNDS,
    ZEROS,
    any_words,
    assert_close,
    assert_same_bits,
    name,
    normals,
    oracle,
    ordered_matmul,
    transposed,
    with_zeros,
)

from nnkernels import _host, lmul

SIZES = (1, 7, 16, 33, 128, 257)
ALGOS = {"bits": ("auto", "word", "guarded"), "formula": ("auto", "gemm2")}


def assert_no_negative_zero(x):
    assert not (x.signbit() & (x == 0)).any()


@functools.cache
def case(rows, inner, columns, mode, dtype=torch.float32):
    """Operands, their sum in the promised order, the float64 reference, the scale of its error."""
    a, b = normals(rows, inner, dtype=dtype), normals(inner, columns, seed=1, dtype=dtype)
    expected = oracle.matmul(a, b, mode=mode, out_dtype=torch.float32).double()
    scale = oracle.matmul_magnitude(a, b, mode=mode)
    return a, b, ordered_matmul(a, b, mode=mode), expected, scale


# ---- shapes ----


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("inner", SIZES)
def test_every_shape(isa, inner, mode):
    # A sum depends on its own row and column only: every shape is a part of the largest.
    a, b, ordered, expected, scale = case(SIZES[-1], inner, SIZES[-1], mode)
    for m, n in itertools.product(SIZES, repeat=2):
        got = lmul.matmul(a[:m], b[:, :n], mode=mode)
        assert got.is_contiguous()
        assert_same_bits(got, ordered[:m, :n])
        assert_close(got, expected[:m, :n], scale[:m, :n])
    for m, n in zip(SIZES, (*SIZES[2:], *SIZES[:2]), strict=True):
        assert_same_bits(lmul.linear(a[:m], b[:, :n].mT, mode=mode), ordered[:m, :n])
        batch = lmul.bmm(a[:m].expand(2, -1, -1), b[:, :n].expand(2, -1, -1), mode=mode)
        assert_same_bits(batch, ordered[:m, :n].expand(2, -1, -1))


@pytest.mark.parametrize("mode", MODES)
def test_long_sums(isa, mode):
    a, b, ordered, expected, scale = case(5, 16384, 9, mode)
    got = lmul.matmul(a, b, mode=mode)
    assert_same_bits(got, ordered)
    assert_close(got, expected, scale)


@pytest.mark.parametrize("mode", MODES)
def test_long_sums_of_one_sign(mode):
    a, b = normals(3, 16384).abs(), normals(16384, 5, seed=1).abs()
    got = lmul.matmul(a, b, mode=mode)
    assert_close(
        got, oracle.matmul(a, b, mode=mode).double(), oracle.matmul_magnitude(a, b, mode=mode)
    )


@pytest.mark.parametrize("rows", [1, 3])
def test_matrices_that_are_packed_in_parts(rows):
    a, b = normals(rows, 1025, dtype=torch.bfloat16), normals(1025, 8209, dtype=torch.bfloat16)
    got = lmul.matmul(a, b)
    for first in (0, 4000, 8150, 8192):
        part = lmul.matmul(a, b[:, first : first + 60])
        assert_same_bits(got[:, first : first + 60].contiguous(), part)
    assert_same_bits(got[:, -3:].float(), ordered_matmul(a, b[:, -3:]).bfloat16().float())
    c = normals(1024, 1024, seed=2).expand(9, -1, -1)
    scale = (2.0 ** torch.arange(9))[:, None, None]
    a = a[:, :1024].float()
    assert_same_bits(
        lmul.bmm(a * scale, c * scale, mantissa_bits=7),
        lmul.matmul(a, c[0], mantissa_bits=7) * scale**2,
    )


@pytest.mark.parametrize("mode", MODES)
def test_sums_of_nothing(isa, mode):
    def run(function, *shapes, **options):
        return function(*(normals(*shape) for shape in shapes), mode=mode, **options)

    assert run(lmul.matmul, (0, 3), (3, 2)).shape == (0, 2)
    assert run(lmul.matmul, (2, 3), (3, 0)).shape == (2, 0)
    assert run(lmul.bmm, (0, 2, 3), (0, 3, 4)).shape == (0, 2, 4)
    assert run(lmul.linear, (4, 0, 3), (5, 3)).shape == (4, 0, 5)
    for got in (
        run(lmul.matmul, (3, 0), (0, 17)),
        run(lmul.bmm, (2, 3, 0), (2, 0, 17))[1],
        run(lmul.linear, (3, 0), (17, 0)),
        run(lmul.matmul, (3, 0), (0, 17), out_dtype=torch.float16).float(),
    ):
        assert_same_bits(got, torch.zeros(3, 17))
    bias = torch.tensor([1.5, -0.0])
    got = lmul.linear(torch.ones(3, 0), torch.ones(2, 0), bias, mode=mode)
    assert_same_bits(got, torch.tensor([1.5, 0.0]).expand(3, 2).contiguous())


# ---- dtypes ----


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, repeat=2)), ids=name)
def test_every_pair_of_dtypes(isa, dtypes, mode):
    # Some sums are beyond the range of float16, none of the operands beyond that of float8.
    a = normals(19, 270).mul(64).to(dtypes[0])
    b = normals(270, 37, seed=1).mul(64).to(dtypes[1])
    ordered = ordered_matmul(a, b, mode=mode)
    floats = [torch.float32 if d in FLOAT8 else d for d in dtypes]
    assert lmul.matmul(a, b, mode=mode).dtype == torch.promote_types(*floats)
    for out_dtype in DTYPES:
        # One more rounding to nearest even.
        got = lmul.matmul(a, b, mode=mode, out_dtype=out_dtype)
        assert_same_bits(got, ordered.to(out_dtype))


@pytest.mark.parametrize("out_dtype", DTYPES, ids=name)
@pytest.mark.parametrize("mode", MODES)
def test_every_number_of_mantissa_bits(isa, mode, out_dtype):
    a, b = normals(7, 40), normals(40, 18, seed=1)
    for m, round in itertools.product(range(1, 24), ROUNDS):
        for offset in (None, 0.0, 5 * 2.0**-23, 0.75):
            if offset is not None and m % 7 != 2:
                continue
            options = {"mantissa_bits": m, "mode": mode, "round": round, "offset": offset}
            got = lmul.matmul(a, b, out_dtype=out_dtype, **options)
            assert_same_bits(got, ordered_matmul(a, b, **options).to(out_dtype))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("m", range(1, 24))
def test_one_is_not_the_identity(isa, m, mode):
    c = {1: 1 / 2, 2: 1 / 4, 3: 1 / 8, 4: 1 / 8}.get(m, 1 / 16)
    one, options = torch.ones(1, 1), {"mantissa_bits": m, "mode": mode}
    packed = lmul.pack(one, **options)
    for got in (
        lmul.matmul(one, one, **options),
        lmul.linear(one, one, **options),
        lmul.linear(one, one, w_packed=packed, **options),
        lmul.bmm(one[None], one[None], **options),
        # One key has the weight 1.
        lmul.attention(one[None, None], one[None, None], one[None, None], **options),
        *(lmul.matmul(one, one, algo=algo, **options) for algo in ALGOS[mode]),
    ):
        assert got.flatten().tolist() == [1 + c]


# ---- zeros, and the ends of the exponent range ----


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("m", [7, 23])
@pytest.mark.parametrize(("left", "right"), list(itertools.product(ZEROS, repeat=2)))
def test_zeros(isa, left, right, m, mode):
    a = with_zeros(normals(31, 300), left)
    b = with_zeros(normals(41, 300, seed=1), right).mT
    expected = ordered_matmul(a, b, mantissa_bits=m, mode=mode)
    for algo in ALGOS[mode]:
        if algo == "word" and "none" not in (left, right):
            continue
        got = lmul.matmul(a, b, mantissa_bits=m, mode=mode, algo=algo)
        assert_same_bits(got, expected)
        assert_no_negative_zero(got)


@pytest.mark.parametrize("others", ["alike", "ordinary"])
@pytest.mark.parametrize("inner", [1, 33])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("edge", EDGES)
def test_edges(isa, edge, mode, inner, others):
    x, y, _ = EDGES[edge]
    a, b = torch.full((5, inner), x), torch.full((inner, 19), y)
    if others == "ordinary":
        # The edge in one row and one column, and not in the first term.
        a = normals(5, inner)
        b = normals(inner, 19, seed=1)
        a[3, inner // 2], b[inner // 2, 17] = x, y
    options = {"mantissa_bits": 7, "mode": mode}
    got = lmul.matmul(a, b, **options)
    assert_no_negative_zero(got)
    assert_no_negative_zero(lmul.linear(a, b.mT, torch.full((19,), -0.0), **options))
    expected = oracle.matmul(a, b, **options).double()
    scale = oracle.matmul_magnitude(a, b, **options)
    finite = expected.isfinite()
    assert_close(got[finite], expected[finite], scale[finite])
    torch.testing.assert_close(
        got[~finite].double(), expected[~finite], rtol=0, atol=0, equal_nan=True
    )
    if mode == "bits":
        assert_same_bits(got, ordered_matmul(a, b, **options))


@pytest.mark.parametrize("mode", MODES)
def test_edges_among_each_other(isa, mode):
    x, y, _ = zip(*EDGES.values(), strict=True)
    options = {"mantissa_bits": 7, "mode": mode}
    got = lmul.matmul(torch.tensor(x)[:, None], torch.tensor(y)[None], **options)
    products = oracle.mul(torch.tensor(x)[:, None], torch.tensor(y), **options)
    assert_same_bits(got, 0.0 + products)


@pytest.mark.parametrize("inner", [1, 33])
@pytest.mark.parametrize("edge", CARRIES_TWICE)
def test_modes_differ_where_the_mantissas_carry_twice(isa, edge, inner):
    x, y, *expected = CARRIES_TWICE[edge]
    # One such product among zeros, in the last place.
    a, b = torch.zeros(7, inner), torch.zeros(inner, 19)
    a[:, -1], b[-1] = x, y
    for mode, value in zip(MODES, expected, strict=True):
        got = lmul.matmul(a, b, mantissa_bits=7, mode=mode)
        assert_same_bits(got, torch.full((7, 19), 0.0 + value))


def test_formula_sums_that_round_to_zero(isa):
    # The products cancel, but the fp32 sum of their four parts is -2^-150, which rounds to a zero.
    x = torch.tensor([[2.0**-63, -(2.0**-63)]]).expand(5, 2)
    y = torch.full((2, 19), (1.9375 + 2.0**-23) * 2.0**-64)
    assert_same_bits(lmul.matmul(x, y, mode="formula"), torch.zeros(5, 19))


@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize("mode", MODES)
def test_rows_and_columns_without_special_values_do_not_see_them(isa, mode, value):
    a, b, ordered, *_ = case(33, 300, 40, mode)
    a, b = a.clone(), b.clone()
    a[11, 290] = value
    got = lmul.matmul(a, b, mode=mode)
    other = torch.arange(33) != 11
    assert not got[11].isfinite().any()
    assert_same_bits(got[other], ordered[other])
    b[5, 22] = value
    got = lmul.matmul(a, b, mode=mode)
    assert not got[:, 22].isfinite().any()
    there = torch.arange(40) != 22
    assert_same_bits(got[other][:, there], ordered[other][:, there])
    if mode == "bits":
        assert_same_bits(got, ordered_matmul(a, b, mode=mode))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("m", [1, 7, 23])
def test_a_nan_of_any_word_stays_one(isa, m, mode):
    # The last words of either sign would become zeros by rounding, the first infinities.
    nans = torch.tensor([0x7F800001, 0x7FBFFFFF, 0x7FFFFFFF, -0x7FFFFF, -1]).to(torch.int32)
    a, b = normals(5, 20), normals(20, 33, seed=1)
    a[:, 9] = nans.view(torch.float32)
    for round in ROUNDS:
        options = {"mantissa_bits": m, "mode": mode, "round": round}
        assert lmul.matmul(a, b, **options).isnan().all()
        assert lmul.matmul(b.mT, a.mT, **options).isnan().all()
        assert lmul.mul(a[:, 9:10], b[:1], **options).isnan().all()


@pytest.mark.parametrize("value", [2.0**-126, 2.0**-100, 2.0**100, 2.0**127])
@pytest.mark.parametrize("mode", MODES)
def test_rows_and_columns_do_not_see_each_others_range(isa, mode, value):
    a, b, ordered, *_ = case(33, 300, 40, mode)
    a, b = a.clone(), b.clone()
    a[11], b[:, 22] = value * a[11].sign(), value * b[:, 22].sign()
    got = lmul.matmul(a, b, mode=mode)
    other, there = torch.arange(33) != 11, torch.arange(40) != 22
    assert_same_bits(got[other][:, there], ordered[other][:, there])
    if mode == "bits":
        assert_same_bits(got, ordered_matmul(a, b, mode=mode))


@pytest.mark.parametrize("span", [0, 40])
@pytest.mark.parametrize("m", [1, 2, 7, 23])
def test_soft_zeros(isa, m, span):
    # Where zeros may stand for products too small to change a sum, and where just not any more:
    # the smallest products and their differences, before and after many zeros times large numbers.
    y_low = -45
    for beyond in range(-14, 4):
        # The limit: x_low + 2 y_low - y_high = m - 90.
        x_low = m - 90 + beyond + span - y_low
        x, next_x = 2.0**x_low, (1 + 2.0**-m) * 2.0**x_low
        a = torch.zeros(8, 256)
        rows = [
            *((x, 0, 0, 0), (0, 0, 0, x), (next_x, -x, 0, 0), (x, 0, 0, -next_x)),
            *((0, 0, next_x, -x), (0, 0, x, -x), (x, -x, 0, 0), (0, 0, 0, 0)),
        ]
        a[:, [0, 1, -2, -1]] = torch.tensor(rows)
        b = torch.full((256, 35), (2 - 2.0**-m) * 2.0 ** (y_low + span))
        b[[0, 1, -2, -1]] = 2.0**y_low
        expected = ordered_matmul(a, b, mantissa_bits=m)
        for algo in ("auto", "guarded", *(["word"] if beyond >= 0 else [])):
            options = {"mantissa_bits": m, "algo": algo}
            assert_same_bits(lmul.matmul(a, b, **options), expected)
            assert_same_bits(lmul.matmul(b.mT, a.mT, **options), expected.mT)


def with_exponents(shape, low, high, generator, mantissa):
    """Random signs; exponents from low to high, both of which occur."""
    exponent = torch.randint(low, high + 1, shape, generator=generator)
    at = torch.randperm(exponent.numel(), generator=generator)
    exponent.view(-1)[at[:1]] = low
    exponent.view(-1)[at[-1:]] = high
    fraction = {
        "zero": torch.zeros(shape, dtype=torch.int64),
        "any": torch.randint(2**23, shape, generator=generator),
        "ones": torch.full(shape, 2**23 - 1),
    }[mantissa]
    sign = torch.randint(2, shape, generator=generator)
    word = sign << 31 | (exponent + 127) << 23 | fraction
    return (word - (word >> 31 << 32)).to(torch.int32).view(torch.float32)


exponents = st.integers(-126, 127)


@st.composite
def ranges_at_a_limit(draw, limit, m):
    """Lowest and highest exponents of two operands, close to this limit of some kernel."""
    x_low, y_low = draw(exponents), draw(exponents)
    span = st.integers(0, 12) | st.integers(0, 253)
    x_span, y_span = draw(span), draw(span)
    beyond = draw(st.integers(-3, 3))
    match limit:
        case "underflow":
            y_low = -126 - x_low + beyond
        case "overflow":
            y_low = 125 - x_low - x_span - y_span + beyond
        case "soft zeros":
            # Zeros among x are soft while x_low + 2 y_low - y_high >= m - 90.
            y_low = m - 90 - x_low + y_span + beyond
            if draw(st.booleans()):
                x_low, y_low, x_span, y_span = y_low, x_low, y_span, x_span
    x_low, y_low = (max(-126, min(127, low)) for low in (x_low, y_low))
    return x_low, min(127, x_low + x_span), y_low, min(127, y_low + y_span)


def check_word_sums(a, b, word_is_legal, **options):
    expected = ordered_matmul(a, b, **options)
    for algo in ALGOS["bits"]:
        try:
            got = lmul.matmul(a, b, algo=algo, **options)
        except RuntimeError:
            if algo != "word" or word_is_legal:
                raise
            continue
        assert_same_bits(got, expected)
        assert_no_negative_zero(got)


def check_formula_sums(a, b, **options):
    options["mode"] = "formula"
    got = lmul.matmul(a, b, **options)
    expected = oracle.matmul(a, b, **options).double()
    scale = oracle.matmul_magnitude(a, b, **options)
    # Partial sums that overflow are left out: float64 has room for them.
    safe = scale < 2.0**127
    assert_close(got[safe], expected[safe], scale[safe])
    assert_no_negative_zero(got)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("limit", ["underflow", "overflow", "soft zeros", "none"])
@given(data=st.data())
def test_any_exponents(limit, mode, data):
    m = data.draw(st.integers(1, 23), "m")
    x_low, x_high, y_low, y_high = data.draw(ranges_at_a_limit(limit, m), "exponents")
    rows, inner, columns = (data.draw(st.integers(1, size)) for size in (20, 40, 40))
    mantissa = data.draw(st.sampled_from(["zero", "any", "ones"]), "mantissas")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99), "seed"))
    a = with_exponents((rows, inner), x_low, x_high, generator, mantissa)
    b = with_exponents((columns, inner), y_low, y_high, generator, mantissa)
    # Rounding to nearest even may raise an exponent.
    word_is_legal = x_low + y_low >= -126 and x_high + y_high <= 124 and max(x_high, y_high) < 127
    if data.draw(st.booleans(), "cancelling"):
        # Sums that are exactly zero, or one smallest product.
        a, b = torch.cat([a, -a], 1), torch.cat([b, b], 1)
        a[:, :1] *= (torch.rand(rows, 1, generator=generator) > 0.5).float()
        word_is_legal = False
    if data.draw(st.booleans(), "uneven columns"):
        # Tiles with limits of their own, and values beyond the range.
        b *= 2.0 ** torch.randint(-60, 60, (columns, 1), generator=generator)
        word_is_legal = False
    zeros = [data.draw(st.sampled_from(ZEROS), "zeros") for _ in range(2)]
    word_is_legal &= zeros == ["none", "none"]
    a, b = with_zeros(a, zeros[0]), with_zeros(b, zeros[1]).mT
    options = {
        "mantissa_bits": m,
        "round": data.draw(st.sampled_from(ROUNDS)),
        "offset": data.draw(st.sampled_from([None, 0.0, 2.0**-23, 1 - 2.0**-23])),
    }
    with house.isa(data.draw(st.sampled_from(_host.isa_names()), "isa")):
        if mode == "bits":
            check_word_sums(a, b, word_is_legal, **options)
        else:
            check_formula_sums(a, b, **options)


# ---- algorithms, instruction sets, threads, layouts: the same bits ----


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_every_algorithm_gives_the_same_bits(isa, dtype, mode):
    a, b = normals(50, 600).add(4).to(dtype), normals(600, 70, seed=1).sub(5).to(dtype)
    # No zeros: the kernel for zeros and the one without them are both exact.
    a, b = (torch.where(x.float() == 0, torch.ones_like(x), x) for x in (a.float(), b.float()))
    a, b = a.to(dtype), b.to(dtype)
    expected = ordered_matmul(a, b, mode=mode).to(lmul.matmul(a[:1], b[:, :1]).dtype)
    for algo in ALGOS[mode]:
        assert_same_bits(lmul.matmul(a, b, mode=mode, algo=algo), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(257, 300, 130), (1, 300, 700), (700, 64, 3)], ids=name)
def test_runs_and_threads_agree(isa, shape, mode):
    a, b = normals(*shape[:2]), normals(*shape[1:], seed=1)
    a, bias = with_zeros(a, "some"), normals(shape[2], seed=2)
    packed = lmul.pack(b.mT, mode=mode)
    with house.threads(1):
        expected = lmul.linear(a, b.mT, bias, mode=mode)
    for count in (1, 2, 2):
        with house.threads(count):
            assert_same_bits(lmul.linear(a, b.mT, bias, mode=mode), expected)
            assert_same_bits(lmul.linear(a, b.mT, bias, w_packed=packed, mode=mode), expected)
            batch = lmul.bmm(a.view(shape[0], 1, -1), b.expand(shape[0], -1, -1), mode=mode)
            assert_same_bits(batch[:, 0] + bias, expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("rows", [1, 4, 33])
def test_layouts(isa, canaries, rows, dtype, mode):
    a = normals(rows, 290).to(dtype)
    b = normals(290, 45, seed=1).to(dtype)
    expected = lmul.matmul(a, b, mode=mode)
    assert_same_bits(expected.float(), ordered_matmul(a, b, mode=mode).to(expected.dtype).float())
    layouts = (torch.clone, transposed, canaries.embed, functools.partial(canaries.embed, step=2))
    for left, right in itertools.product(layouts, repeat=2):
        assert_same_bits(lmul.matmul(left(a), right(b), mode=mode), expected)
    # Rows, columns or both that are one and the same.
    row, column = a[:1].expand(rows, -1), b[:, :1].expand(-1, 45)
    for x, y in ((row, b), (a, column), (row, column), (a[:, :1].expand(-1, 290), b)):
        got = lmul.matmul(x, y, mode=mode)
        assert_same_bits(got, lmul.matmul(x.clone(), y.clone(), mode=mode))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("zeros", ZEROS)
def test_a_row_alone_and_a_column_alone(isa, zeros, mode):
    a = with_zeros(normals(97, 520), zeros)
    b = normals(520, 83, seed=1)
    full = lmul.matmul(a, b, mode=mode)
    for first, count in ((0, 1), (96, 1), (13, 2), (40, 3), (50, 7), (10, 13), (0, 96)):
        rows = slice(first, first + count)
        assert_same_bits(lmul.matmul(a[rows], b, mode=mode), full[rows])
    for first, count in ((0, 1), (82, 1), (13, 2), (40, 15), (16, 16), (5, 17), (30, 33)):
        columns = slice(first, first + count)
        assert_same_bits(lmul.matmul(a, b[:, columns], mode=mode), full[:, columns].contiguous())
        assert_same_bits(
            lmul.matmul(a[9:10], b[:, columns], mode=mode), full[9:10, columns].contiguous()
        )


# ---- linear and bmm ----


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("lead", [(), (1,), (3,), (2, 17), (40,)], ids=lambda x: name(x) or "1d")
def test_linear(isa, lead, dtype, mode):
    x, w = normals(*lead, 270).to(dtype), normals(35, 270, seed=1).to(dtype)
    packed = lmul.pack(w, mode=mode)
    ordered = ordered_matmul(x.view(-1, 270), w.mT, mode=mode).view(*lead, 35)
    result = torch.float32 if dtype.itemsize == 1 else dtype
    for bias_dtype in (None, *DTYPES):
        bias = None if bias_dtype is None else normals(35, seed=2).to(bias_dtype)
        expected = (ordered if bias is None else ordered + bias.float()).to(result)
        for extra in ({}, {"w_packed": packed}):
            assert_same_bits(lmul.linear(x, w, bias, mode=mode, **extra), expected)
        assert_same_bits(lmul.linear(x, transposed(w), bias, mode=mode), expected)


@pytest.mark.parametrize("m", [2, 7, 23])
@pytest.mark.parametrize("round", ROUNDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("zeros", ZEROS)
def test_packed_weights(isa, canaries, zeros, mode, round, m):
    x, w = normals(29, 300), with_zeros(normals(50, 300, seed=1), zeros)
    x[5, 7], w[9, 11] = 2.0**-80, -(2.0**-90)
    options = {"mantissa_bits": m, "mode": mode, "round": round}
    packed = lmul.pack(w, **options)
    assert_same_bits(packed, lmul.pack(canaries.embed(w, step=2), **options))
    for rows in (1, 2, 29):
        expected = lmul.linear(x[:rows], w, **options)
        assert_same_bits(lmul.linear(x[:rows], w, w_packed=packed, **options), expected)
    w[20, 3] = INF
    packed = lmul.pack(w, **options)
    expected = lmul.linear(x, w, **options)
    assert_same_bits(lmul.linear(x, w, w_packed=packed, **options), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_bmm(isa, canaries, dtype, mode):
    a, b = normals(3, 21, 70).to(dtype), normals(3, 70, 34, seed=1).to(dtype)
    one_by_one = [lmul.matmul(x, y, mode=mode) for x, y in zip(a, b, strict=True)]
    expected = torch.stack(one_by_one)
    for left, right in itertools.product((torch.clone, canaries.embed, transposed), repeat=2):
        assert_same_bits(lmul.bmm(left(a), right(b), mode=mode), expected)
    for x, y in ((a, b[:1].expand(3, -1, -1)), (a[:1].expand(3, -1, -1), b)):
        got = lmul.bmm(x, y, mode=mode)
        assert_same_bits(got, lmul.bmm(x.clone(), y.clone(), mode=mode))
    # Dimensions in another order.
    batch_last = lmul.bmm(
        a.permute(1, 2, 0).clone().permute(2, 0, 1), b.permute(2, 0, 1).clone().permute(1, 2, 0)
    )
    assert_same_bits(batch_last, lmul.bmm(a, b))
    # A batch of other zeros and ranges does not change its neighbours.
    a = a.float()
    a[1] *= 2.0**60
    a[2, :, ::3] = 0
    b = b.float()
    b[0] *= 2.0**-70
    got = lmul.bmm(a, b, mantissa_bits=7, mode=mode)
    for i in range(3):
        assert_same_bits(got[i], lmul.matmul(a[i], b[i], mantissa_bits=7, mode=mode))


# ---- what follows from the definition ----


@given(st.data())
def test_any_matrices(data):
    """Any bit pattern, any options: the promised sum of the defined products."""
    dtypes = [data.draw(st.sampled_from(DTYPES)) for _ in range(2)]
    rows, inner, columns = (data.draw(st.integers(1, 20)) for _ in range(3))
    seed = data.draw(st.integers(0, 99))
    a = any_words(rows, inner, dtype=dtypes[0], seed=seed)
    b = any_words(inner, columns, dtype=dtypes[1], seed=seed + 1)
    options = {
        "mantissa_bits": data.draw(st.none() | st.integers(1, 23)),
        "round": data.draw(st.sampled_from(ROUNDS)),
        "offset": data.draw(st.none() | st.integers(0, 2**23 - 1).map(lambda c: c * 2.0**-23)),
    }
    if options["mantissa_bits"] is None:
        del options["mantissa_bits"]
    with house.isa(data.draw(st.sampled_from(_host.isa_names()), "isa")):
        got = lmul.matmul(a, b, out_dtype=torch.float32, **options)
    assert_same_bits(got, ordered_matmul(a, b, **options))


@given(st.integers(1, 23), st.sampled_from(MODES), st.sampled_from(ROUNDS), st.integers(0, 99))
def test_algebra(m, mode, round, seed):
    options = {"mantissa_bits": m, "mode": mode, "round": round}
    a, b = normals(6, 40, seed=seed), normals(40, 9, seed=seed + 100)
    got = lmul.matmul(a, b, **options)
    assert_same_bits(lmul.matmul(-a, b, **options), -got)
    assert_same_bits(lmul.matmul(a, b * 2.0**-20, **options), got * 2.0**-20)
    if mode == "bits":
        # In mode "formula" the two parts of a term change places.
        assert_same_bits(lmul.matmul(b.mT, a.mT, **options), got.mT.contiguous())
    selected = torch.eye(6)[[4, 0, 3]]
    assert_same_bits(
        lmul.matmul(selected, a, **options),
        0.0 + lmul.mul(torch.ones(()), a[[4, 0, 3]], **options),
    )
