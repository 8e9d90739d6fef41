"""Products of packed rows: equal to the reference for every shape, dtype and instruction set."""

import house
import pytest
import torch
from binary_cases import (
    FLOATS,
    KS,
    RESULTS,
    bits,
    integers,
    name,
    normals,
    pad_bits_are_zero,
    shapes,
    signs,
)
from hypothesis import given
from hypothesis import strategies as st

from nnkernels import binary
from nnkernels.binary import reference

every_shape = pytest.mark.parametrize("shape", shapes(), ids=name)


def check(got, expected):
    assert house.same_bits(got, expected)
    assert got.is_contiguous()


@every_shape
def test_matmul(isa, shape):
    M, N, K = shape
    a, b = bits(M, K), bits(N, K, seed=1)
    expected = reference.matmul(a, b, K)
    check(binary.matmul(a, b, K), expected)
    check(binary.matmul_prepacked(a, binary.prepack(b, K), N, K), expected)
    check(binary.hamming(a, b, K), reference.hamming(a, b, K))


@pytest.mark.parametrize(("N", "K"), [(70, 70_001), (3, 2_100_000)])
def test_long_sums(isa, N, K):
    # Beyond what 16-bit counters hold.
    a, b = bits(5, K), bits(N, K, seed=1)
    a[0], b[0] = -1, 0
    a[0, K // 32 :] = b[0, K // 32 :]
    expected = reference.matmul(a, b, K)
    check(binary.matmul(a, b, K), expected)
    check(binary.matmul_prepacked(a, binary.prepack(b, K), N, K), expected)


@pytest.mark.parametrize(("M", "N"), [(1, 3), (32, 64), (160, 130)])
def test_counters_do_not_overflow(isa, M, N):
    # Every bit differs.
    K = 70_001
    a, b = reference.pack(-torch.ones(1, K)).expand(M, -1), reference.pack(torch.ones(N, K))
    check(binary.matmul(a, b, K), torch.full((M, N), -K, dtype=torch.int32))
    packed = binary.prepack(b, K)
    check(binary.matmul_prepacked(a, packed, N, K), torch.full((M, N), -K, dtype=torch.int32))


# Beyond one block of rows or columns of every algorithm; results of a megabyte are written past the
# caches, and the last chunks of the lookup kernel hold 2, 6 and 10 bytes.
LARGE = [(1, 600, 1100), (40, 600, 700), (300, 320, 1500), (520, 65, 300), (1100, 320, 300)]
LARGE += [(150, 700, 3000), (200, 130, 256), (200, 130, 768), (200, 130, 1280)]


@pytest.mark.parametrize("shape", LARGE, ids=name)
def test_large(isa, shape):
    M, N, K = shape
    a, b = bits(M, K), bits(N, K, seed=1)
    expected = reference.matmul(a, b, K)
    check(binary.matmul(a, b, K), expected)
    check(binary.matmul_prepacked(a, binary.prepack(b, K), N, K), expected)


@pytest.mark.parametrize("out_dtype", RESULTS, ids=name)
@pytest.mark.parametrize("shape", [(3, 65, 257), (70, 64, 1000), (200, 130, 300)], ids=name)
def test_scales_and_dtypes(isa, shape, out_dtype):
    M, N, K = shape
    a, b = bits(M, K), bits(N, K, seed=1)
    packed = binary.prepack(b, K)
    choices = [{}]
    if out_dtype.is_floating_point:
        rows, columns, bias = normals(M, seed=2), normals(N, seed=3), normals(N, seed=4)
        choices += [
            {"row_scale": rows},
            {"col_scale": columns},
            {"bias": bias},
            {"row_scale": rows, "col_scale": columns, "bias": bias * 1e3},
        ]
    for options in choices:
        options["out_dtype"] = out_dtype
        expected = reference.matmul(a, b, K, **options)
        check(binary.matmul(a, b, K, **options), expected)
        check(binary.matmul_prepacked(a, packed, N, K, **options), expected)


def test_absent_scales_are_skipped_steps(isa):
    # A product by 1 or a sum with 0 would change none of these; a fused step would.
    a, b = bits(5, 300), bits(7, 300, seed=1)
    scale = torch.full((7,), 1 / 3)
    bias = -(reference.matmul(a, b, 300)[0].float() * scale)
    out = binary.matmul(a, b, 300, col_scale=scale, bias=bias, out_dtype=torch.float32)
    assert (out[0] == 0).all()


def test_batches(isa):
    a, b = bits(2, 3, 5, 300), bits(2, 3, 65, 300, seed=1)
    rows, bias = normals(2, 3, 5), normals(65)
    options = {"row_scale": rows, "bias": bias, "out_dtype": torch.float32}
    for other in (b, b[0, 0]):
        check(binary.matmul(a, other, 300), reference.matmul(a, other, 300))
        check(binary.matmul(a, other, 300, **options), reference.matmul(a, other, 300, **options))
        check(binary.hamming(a, other, 300), reference.hamming(a, other, 300))
    check(binary.matmul(a[0, 0, 0], b[0, 0], 300), reference.matmul(a[0, 0, 0], b[0, 0], 300))
    packed = binary.prepack(b[0, 0], 300)
    check(binary.matmul_prepacked(a, packed, 65, 300), reference.matmul(a, b[0, 0], 300))


@pytest.mark.parametrize("shape", [(0, 5, 33), (5, 0, 33), (0, 0, 1)], ids=name)
def test_empty(shape):
    M, N, K = shape
    a, b = bits(M, K), bits(N, K)
    for got in (
        binary.matmul(a, b, K),
        binary.hamming(a, b, K),
        binary.linear(torch.ones(M, K), b, K),
        binary.int8_matmul(torch.ones(M, K, dtype=torch.int8), b, K),
        binary.ternary_matmul(a, a, b, b, K),
        binary.planes_matmul(a[None], b[None], K),
    ):
        assert got.shape == (M, N)
    assert binary.matmul(bits(2, 0, 33), bits(2, 4, 33), 33).shape == (2, 0, 4)
    assert binary.matmul_sign(
        a, b, K, torch.zeros(N, dtype=torch.int32), torch.ones(N, dtype=torch.int8)
    ).shape == (M, reference.row_words(N))


def test_views(isa, canaries):
    a, b = bits(6, 300), bits(9, 300, seed=1)
    expected = reference.matmul(a, b, 300)
    for x in (canaries.embed(a), canaries.embed(a, step=2), a.mT.contiguous().mT):
        for y in (canaries.embed(b), canaries.embed(b, step=2)):
            check(binary.matmul(x, y, 300), expected)
            check(binary.matmul_prepacked(x, binary.prepack(y, 300), 9, 300), expected)
    row = a[:1].expand(6, -1)
    check(binary.matmul(row, b, 300), reference.matmul(row, b, 300))


@pytest.mark.parametrize("N", [1, 31, 64, 65, 300])
@pytest.mark.parametrize("M", [1, 5, 130])
def test_sign(isa, M, N):
    K = 257
    a, b = bits(M, K), bits(N, K, seed=1)
    thresh = integers(-20, 20, N, dtype=torch.int32)
    direction = integers(-1, 2, N, seed=1)
    # The ends of the integers, in both directions.
    least, most = -(2**31), 2**31 - 1
    ends = min(N, 4)
    thresh[:ends] = torch.tensor([least, least, most, most])[:ends]
    direction[:ends] = torch.tensor([-1, 1, -1, 1])[:ends]
    out = binary.matmul_sign(a, b, K, thresh, direction)
    check(out, reference.matmul_sign(a, b, K, thresh, direction))
    assert pad_bits_are_zero(out, N)


@pytest.mark.parametrize("dtype", FLOATS, ids=name)
@pytest.mark.parametrize("shape", [(1, 65, 31), (5, 64, 1000), (200, 70, 257)], ids=name)
def test_linear(isa, shape, dtype, canaries):
    M, N, K = shape
    x, w = normals(M, K, dtype=dtype), bits(N, K, seed=1)
    packed = binary.prepack(w, K)
    for options in ({}, {"scale": normals(N, seed=2), "bias": normals(N, seed=3)}):
        expected = reference.linear(x, w, K, **options)
        for other in (x, canaries.embed(x, step=2), x.mT.contiguous().mT):
            check(binary.linear(other, w, K, **options), expected)
            check(binary.linear_prepacked(other, packed, N, K, **options), expected)
    deep = x.expand(2, 1, M, K)
    check(binary.linear(deep, w, K), reference.linear(deep, w, K))


# ---- ternary, int8, planes ----


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 65, 257), (64, 63, 1000), (2, 5, 70_001)], ids=name
)
def test_ternary(isa, shape):
    M, N, K = shape
    planes = (
        *reference.pack_ternary(integers(-1, 2, M, K)),
        *reference.pack_ternary(integers(-1, 2, N, K, seed=1)),
    )
    check(binary.ternary_matmul(*planes, K), reference.ternary_matmul(*planes, K))


def test_ternary_batches(isa):
    a = reference.pack_ternary(integers(-1, 2, 2, 5, 300))
    b = reference.pack_ternary(integers(-1, 2, 2, 7, 300, seed=1))
    check(binary.ternary_matmul(*a, *b, 300), reference.ternary_matmul(*a, *b, 300))
    flat = [plane[0] for plane in b]
    check(binary.ternary_matmul(*a, *flat, 300), reference.ternary_matmul(*a, *flat, 300))


@pytest.mark.parametrize("out_dtype", [None, *FLOATS], ids=name)
@pytest.mark.parametrize("shape", [(1, 65, 31), (5, 64, 1000), (130, 70, 257)], ids=name)
def test_int8(isa, shape, out_dtype):
    M, N, K = shape
    x = integers(-128, 128, M, K)
    mask, sign = reference.pack_ternary(integers(-1, 2, N, K, seed=1))
    options = {"out_dtype": out_dtype}
    if out_dtype is not None:
        options |= {"row_scale": normals(M, seed=2), "col_scale": normals(N, seed=3)}
    for planes in ({}, {"w_mask": mask}):
        got = binary.int8_matmul(x, sign, K, **planes, **options)
        check(got, reference.int8_matmul(x, sign, K, **planes, **options))


def test_int8_extremes(isa):
    K = 200_000
    x = torch.full((2, K), -128, dtype=torch.int8)
    x[1] = 127
    w = reference.pack(torch.stack([torch.ones(K), -torch.ones(K)]))
    assert binary.int8_matmul(x, w, K).tolist() == [[-128 * K, 128 * K], [127 * K, -127 * K]]


def test_int8_views(isa, canaries):
    x, w = integers(-128, 128, 2, 6, 300), bits(9, 300, seed=1)
    expected = reference.int8_matmul(x, w, 300)
    for other in (
        canaries.embed(x),
        x.mT.contiguous().mT,
        x.transpose(0, 1).contiguous().transpose(0, 1),
    ):
        check(binary.int8_matmul(other, w, 300), expected)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (8, 8)])
@pytest.mark.parametrize("shape", [(3, 65, 257), (64, 5, 1000)], ids=name)
def test_planes(isa, shape, n, m):
    M, N, K = shape
    a, b = bits(n, M, K), bits(m, N, K, seed=1)
    check(binary.planes_matmul(a, b, K), reference.planes_matmul(a, b, K))


# ---- the same bits from everyone ----


@given(
    M=st.integers(0, 70), N=st.integers(0, 140), K=st.integers(1, 700), seed=st.integers(0, 2**31)
)
def test_any_shape(M, N, K, seed):
    a, b = bits(M, K, seed=seed), bits(N, K, seed=seed + 1)
    expected = reference.matmul(a, b, K)
    check(binary.matmul(a, b, K), expected)
    # Symmetric, and of the parity of K.
    assert torch.equal(binary.matmul(b, a, K), expected.mT)
    assert ((expected - K) % 2 == 0).all()


def test_threads_do_not_change_anything():
    x, w = normals(300, 1000), bits(330, 1000, seed=1)
    packed = binary.prepack(w, 1000)
    a = reference.pack(x)
    results = []
    for count in (1, 2, 3):
        with house.threads(count):
            results.append(
                [
                    binary.matmul(a, w, 1000),
                    binary.matmul_prepacked(a, packed, 330, 1000, out_dtype=torch.bfloat16),
                    binary.linear(x, w, 1000),
                    binary.int8_matmul(x.to(torch.int8), w, 1000),
                    binary.prepack(w, 1000),
                ]
            )
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert house.same_bits(one, two)


def test_prepacked_weights_serve_every_instruction_set():
    a, b = bits(33, 300), bits(70, 300, seed=1)
    expected = reference.matmul(a, b, 300)
    packed = []
    for made in house._host.isa_names():
        with house.isa(made):
            packed.append(binary.prepack(b, 300))
    assert all(torch.equal(one, packed[0]) for one in packed)
    for used in house._host.isa_names():
        with house.isa(used):
            check(binary.matmul_prepacked(a, packed[0], 70, 300), expected)


def test_row_counts_are_hints():
    a, b = signs(5, 300), signs(7, 300, seed=1)
    a_bits, a_pop = binary.pack_rowpop(a)
    b_bits, b_pop = binary.pack_rowpop(b)
    got = binary.matmul(a_bits, b_bits, 300, a_pop=a_pop, b_pop=b_pop)
    check(got, reference.matmul(a_bits, b_bits, 300))


@pytest.mark.parametrize("K", KS)
def test_packed_size(K):
    for N in (0, 1, 64, 65):
        assert binary.prepack(bits(N, K), K).numel() == binary.checks.packed_size(N, K)
