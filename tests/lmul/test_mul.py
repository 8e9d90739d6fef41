"""The elementwise operator against the definition, bit for bit."""

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
    SMALLEST,
    SPECIAL,
    any_words,
    assert_same_bits,
    name,
    normals,
    oracle,
    transposed,
)

from nnkernels import lmul
from nnkernels.lmul import reference

EVERY_BFLOAT16 = torch.arange(65536).to(torch.int16).view(torch.bfloat16)
DTYPE_PAIRS = list(itertools.product(DTYPES, repeat=2))
UNIT = 2.0**-23


def assert_defined(x, y, **options):
    """mul(x, y) is the reference's, to the bit."""
    got = lmul.mul(x, y, **options)
    assert_same_bits(got, oracle.mul(x, y, **options))
    assert got.is_contiguous()
    return got


# ---- every word ----


@pytest.mark.parametrize(
    ("m", "round"), [(7, "trunc"), (4, "trunc"), (3, "rne")], ids=["m7", "m4-trunc", "m3-rne"]
)
@pytest.mark.parametrize("mode", MODES)
def test_every_bfloat16_word_with_special_values(isa, mode, m, round):
    options = {"mantissa_bits": m, "mode": mode, "round": round, "out_dtype": torch.float32}
    special = SPECIAL.to(torch.bfloat16)[:, None]
    got = assert_defined(special, EVERY_BFLOAT16, **options)
    assert set(house.raw(got[got.isnan()]).tolist()) == {0x7FC00000}
    swapped = lmul.mul(EVERY_BFLOAT16, special, **options)
    assert_same_bits(swapped, got)
    assert_same_bits(
        lmul.mul(special, EVERY_BFLOAT16, **{**options, "out_dtype": torch.bfloat16}),
        got.to(torch.bfloat16),
    )


@pytest.mark.parametrize("out_dtype", [None, *DTYPES], ids=name)
@pytest.mark.parametrize("dtypes", list(itertools.product(FLOAT8, repeat=2)), ids=name)
def test_every_pair_of_float8_words(isa, dtypes, out_dtype):
    every = torch.arange(256).to(torch.uint8)
    x, y = every.view(dtypes[0])[:, None], every.view(dtypes[1])
    for mode, m in itertools.product(MODES, (None, 1, 2)):
        for round in ROUNDS if m else ROUNDS[:1]:
            options = {"mode": mode, "mantissa_bits": m, "round": round}
            assert_defined(x, y, out_dtype=out_dtype, **options)


# ---- options ----


@pytest.mark.parametrize("round", ROUNDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("m", range(1, 24))
def test_every_number_of_mantissa_bits(isa, m, mode, round):
    x, y = any_words(2, 3000, seed=m)
    # Products of unrelated words are mostly out of range, these just in it or just not.
    wanted = torch.tensor([-1, 0, 1, 2, 252, 253, 254, 255], dtype=torch.int32).repeat(375)
    exponent = (wanted + 127 - (house.raw(x) >> 23 & 255)).clamp(0, 254)
    at_the_limits = (house.raw(y) & ~0x7F800000 | exponent << 23).view(torch.float32)
    x = torch.cat([x, x, SPECIAL])
    y = torch.cat([y, at_the_limits, SPECIAL.flip(0)])
    # No m below 23 holds the last two.
    for offset in (None, 0.0, 0.25, 5 * UNIT, 1 - UNIT):
        assert_defined(x, y, mantissa_bits=m, mode=mode, round=round, offset=offset)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=name)
def test_every_pair_of_dtypes(isa, dtypes, mode):
    x, y = (any_words(4001, dtype=d, seed=i) for i, d in enumerate(dtypes))
    # Every result dtype, so that products also leave the range of the narrow ones.
    for out_dtype in (None, *DTYPES):
        got = assert_defined(x, y, mode=mode, out_dtype=out_dtype)
    mixed = normals(4001, seed=2).to(dtypes[0])
    got = assert_defined(mixed, y, mode=mode)
    floats = [torch.float32 if d in FLOAT8 else d for d in dtypes]
    assert got.dtype == torch.promote_types(*floats)


def test_narrow_results_overflow_to_infinity():
    x = torch.tensor([256.0, -256.0, 255.875, 2.0**-24])
    y = torch.tensor([256.0, 256.0, 255.875, 0.5])
    # 2^-25 (1 + c) is more than half of the smallest subnormal.
    expected = torch.tensor([INF, -INF, INF, 2.0**-24]).half()
    assert_same_bits(assert_defined(x.half(), y.half()), expected)


# ---- the rows of the definition's table ----


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("edge", EDGES)
def test_edges(isa, edge, mode):
    x, y, expected = (torch.tensor(value) for value in EDGES[edge])
    for left, right in ((x, y), (y, x)):
        got = lmul.mul(left, right, mantissa_bits=7, mode=mode)
        assert got.shape == ()
        assert_same_bits(got, expected)


@pytest.mark.parametrize("edge", CARRIES_TWICE)
def test_modes_differ_where_the_mantissas_carry_twice(isa, edge):
    x, y, *expected = CARRIES_TWICE[edge]
    for mode, value in zip(MODES, expected, strict=True):
        got = lmul.mul(torch.full((19,), x), torch.full((19,), y), mantissa_bits=7, mode=mode)
        assert_same_bits(got, torch.full((19,), value))


@pytest.mark.parametrize("mode", MODES)
def test_operands_are_reduced_before_they_are_judged(isa, mode):
    largest = torch.finfo(torch.float32).max
    x = torch.tensor([largest, -largest, SMALLEST * (1 - UNIT * 2), SMALLEST * (1 - UNIT * 2)])
    y = torch.tensor([0.0, 1.0, 1.0, -INF])
    options = {"mantissa_bits": 7, "mode": mode}
    rounded = lmul.mul(x, y, round="rne", **options)
    assert_same_bits(rounded, torch.tensor([NAN, -INF, 1.0625 * SMALLEST, -INF]))
    cut = lmul.mul(x, y, round="trunc", **options)
    assert_same_bits(cut, torch.tensor([0.0, -INF, 0.0, NAN]))


# ---- shapes and strides ----


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_every_length_up_to_a_few_vectors(isa, dtype):
    x, y = any_words(2, 130, dtype=dtype)
    expected = oracle.mul(x, y)
    for size in (*range(70), 127, 129):
        assert_same_bits(lmul.mul(x[:size], y[:size]), expected[:size])
        # Off the alignment of the allocation.
        if size:
            assert_same_bits(lmul.mul(x[1:size], y[1:size]), expected[1:size])
            assert_same_bits(lmul.mul(x[:size], y[0]), oracle.mul(x[:size], y[0]))


@pytest.mark.parametrize("dtypes", DTYPE_PAIRS, ids=name)
def test_layouts(canaries, dtypes):
    x, y = (any_words(5, 33, 18, dtype=d, seed=i) for i, d in enumerate(dtypes))
    expected = oracle.mul(x, y)
    layouts = (torch.clone, transposed, canaries.embed, functools.partial(canaries.embed, step=2))
    for left, right in itertools.product(layouts, repeat=2):
        assert_same_bits(lmul.mul(left(x), right(y)), expected)
    permuted = lmul.mul(x.permute(2, 0, 1), y.permute(2, 0, 1))
    assert_same_bits(permuted, expected.permute(2, 0, 1).contiguous())


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((), ()),
        ((), (5,)),
        ((33, 1), (1, 34)),
        ((2, 1, 3, 1), (7, 1, 5)),
        ((1,), (2, 3, 70)),
        ((4, 1), (4, 65)),
        ((0,), (1,)),
        ((3, 0, 2), (1, 2)),
        ((1,) * 9, (2,) * 9),
    ],
    ids=lambda shape: name(shape) or "scalar",
)
def test_broadcasting(isa, left, right):
    x, y = normals(*left), normals(*right, seed=1)
    expected = assert_defined(x, y, mantissa_bits=7)
    assert_same_bits(lmul.mul(y, x, mantissa_bits=7), expected)
    # What broadcasting means, spelt out with strides of 0.
    shape = torch.broadcast_shapes(left, right)
    expanded = lmul.mul(x.expand(shape), y.expand(shape), mantissa_bits=7)
    assert_same_bits(expanded, expected)


def test_a_scalar_gives_way_as_in_torch():
    x, y = normals(5, dtype=torch.bfloat16), torch.tensor(1.5)
    got = lmul.mul(x, y)
    assert got.dtype == torch.result_type(x, y) == torch.bfloat16
    # All 23 bits of the scalar's format take part.
    assert_same_bits(got, oracle.mul(x, y, out_dtype=torch.bfloat16, mantissa_bits=23))


@given(st.data())
def test_any_view(data):
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))

    def view(seed):
        """Operand that broadcasts to `sizes`, cut out of a larger tensor in some order."""
        order = data.draw(st.permutations(range(len(sizes))))
        steps = [data.draw(st.integers(1, 3)) for _ in sizes]
        kept = [data.draw(st.booleans()) for _ in sizes]
        shape = [size if keep else 1 for size, keep in zip(sizes, kept, strict=True)]
        memory = any_words(*(shape[i] * steps[i] for i in order), seed=seed)
        x = memory[tuple(slice(0, None, steps[i]) for i in order)]
        x = x.permute(*(order.index(i) for i in range(len(sizes))))
        assert list(x.shape) == shape
        if data.draw(st.booleans()):
            x = x.expand(sizes)
        drop = data.draw(st.integers(0, len(sizes) - 1))
        return x[(0,) * drop] if all(size == 1 for size in x.shape[:drop]) else x

    x, y = view(0), view(1)
    assert_same_bits(lmul.mul(x, y), oracle.mul(x, y))


# ---- what follows from the definition ----


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("m", range(1, 24))
def test_one_is_not_the_identity(isa, m, mode):
    one = torch.ones(40)
    c = {1: 1 / 2, 2: 1 / 4, 3: 1 / 8, 4: 1 / 8}.get(m, 1 / 16)
    assert lmul.mul(one, one, mantissa_bits=m, mode=mode).tolist() == [1 + c] * 40


floats = st.floats(width=32, allow_nan=False) | st.floats(-4, 4, width=32)
bits_kept = st.integers(1, 23)


@given(floats, floats, bits_kept, st.sampled_from(MODES), st.sampled_from(ROUNDS))
def test_commutative_and_odd(x, y, m, mode, round):
    x, y = torch.tensor([x, y, -x]), torch.tensor([y, x, y])
    got = lmul.mul(x, y, mantissa_bits=m, mode=mode, round=round)
    assert_same_bits(got[1], got[0])
    assert_same_bits(got[2], -got[0])


normal_floats = st.floats(2.0**-40, 2.0**40, width=32)


@given(normal_floats, normal_floats, st.integers(-30, 30), bits_kept, st.sampled_from(MODES))
def test_powers_of_two_scale(x, y, k, m, mode):
    x, y = torch.tensor([x, x * 2.0**k]), torch.tensor(y)
    got = lmul.mul(x, y, mantissa_bits=m, mode=mode)
    assert_same_bits(got[1], got[0] * 2.0**k)


@given(normal_floats, normal_floats, bits_kept, st.sampled_from(ROUNDS))
def test_products_fit_the_mantissa(x, y, m, round):
    got = lmul.mul(torch.tensor(x), torch.tensor(y), mantissa_bits=m, round=round)
    assert_same_bits(reference.reduce_mantissa(got, m), got)


@given(st.lists(st.tuples(floats, floats), min_size=1, max_size=70), st.data())
def test_any_value_with_any_options(pairs, data):
    x, y = torch.tensor(pairs).unbind(-1)
    assert_defined(
        x,
        y,
        mantissa_bits=data.draw(bits_kept),
        mode=data.draw(st.sampled_from(MODES)),
        round=data.draw(st.sampled_from(ROUNDS)),
        offset=data.draw(st.none() | st.integers(0, 2**23 - 1).map(lambda c: c * UNIT)),
        out_dtype=data.draw(st.sampled_from([None, *DTYPES])),
    )


# ---- runs ----


@pytest.mark.parametrize("mode", MODES)
def test_runs_and_threads_agree(mode):
    x, y = any_words(2, 300_007)
    with house.threads(1):
        expected = lmul.mul(x, y, mode=mode)
    with house.threads(2):
        for _ in range(2):
            assert_same_bits(lmul.mul(x, y, mode=mode), expected)
            assert_same_bits(lmul.mul(x[1::2], y[1::2], mode=mode), expected[1::2].clone())
    assert_same_bits(expected, oracle.mul(x, y, mode=mode))
