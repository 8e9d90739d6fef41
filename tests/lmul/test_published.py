"""Published and computed numbers, reproduced with the operators on more data than the reference."""

import math

import pytest
import torch
from lmul_cases import FLOAT8, normals

from nnkernels import lmul


@pytest.fixture(scope="module")
def pairs():
    return normals(2, 2_000_000)


def relative_errors(x, y, **options):
    product = lmul.mul(x, y, **options)
    return product.double() / (x.double() * y.double()) - 1


# mode, m, RMS, mean
SINGLE_PRODUCTS = [
    ("bits", 2, 0.085, None),
    ("bits", 3, 0.059, -0.037),
    ("bits", 4, 0.037, 0.005),
    ("bits", 7, 0.031, -0.001),
    ("formula", 3, 0.103, None),
    ("formula", 4, 0.084, None),
    ("formula", 7, 0.084, None),
]


@pytest.mark.parametrize(("mode", "m", "rms", "mean"), SINGLE_PRODUCTS)
def test_error_of_one_product(pairs, mode, m, rms, mean):
    error = relative_errors(*pairs, mantissa_bits=m, mode=mode)
    assert error.square().mean().sqrt().item() == pytest.approx(rms, abs=1e-3)
    if mean is not None:
        assert error.mean().item() == pytest.approx(mean, abs=1e-3)


def test_order_of_lmul_and_float8(pairs):
    # The abstract's comparison: m = 4 is like e4m3, m = 3 better than e5m2. Of the fp8 formats only
    # the mantissas count here: numbers of one binade, so that none is out of range.
    x, y = (pair.frexp().mantissa for pair in pairs)
    exact = x.double() * y.double()

    def cast_error(dtype):
        product = x.to(dtype).double() * y.to(dtype).double()
        return (product / exact - 1).square().mean().sqrt().item()

    e4m3, e5m2 = map(cast_error, FLOAT8)
    assert e4m3 == pytest.approx(0.037, abs=1e-3)
    assert e5m2 == pytest.approx(0.074, abs=1e-3)
    three, four = (
        relative_errors(x, y, mantissa_bits=m).square().mean().sqrt().item() for m in (3, 4)
    )
    assert four == pytest.approx(e4m3, abs=2e-3)
    assert three < e5m2


@pytest.mark.parametrize("mode", ["bits", "formula"])
def test_a_sum_averages_the_errors_of_its_products(mode):
    # Independent errors: relative to the length of the sums, the error is that of one product.
    a, b = normals(200, 1000), normals(1000, 200, seed=1)
    exact = a.double() @ b.double()
    error = (lmul.matmul(a, b, mantissa_bits=7, mode=mode) - exact).norm() / exact.norm()
    product = lmul.mul(a, b.mT, mantissa_bits=7, mode=mode).double()
    exact = a.double() * b.mT.double()
    assert error.item() == pytest.approx(((product - exact).norm() / exact.norm()).item(), rel=0.05)


@pytest.fixture(scope="module")
def attention_inputs():
    return normals(3, 2, 8, 256, 64).unbind(0)


@pytest.mark.parametrize("normalize", ["before", "after"])
@pytest.mark.parametrize(("m", "published"), [(3, 0.097), (4, 0.058), (7, 0.047)])
def test_error_of_attention(attention_inputs, m, published, normalize):
    q, k, v = (x.double() for x in attention_inputs)
    exact = torch.softmax(q @ k.mT / math.sqrt(64), -1) @ v
    got = lmul.attention(*attention_inputs, mantissa_bits=m, normalize=normalize)
    error = ((got - exact).norm() / exact.norm()).item()
    assert error == pytest.approx(published, abs=0.006)


def test_the_constant_of_the_words():
    # The offsets that the packed formats subtract, seen from outside: |word(L)| of 1 and 1.
    for dtype, word in zip(
        (torch.bfloat16, torch.float16, *FLOAT8), (0x3F78, 0x3BC0, 0x37, 0x3B), strict=True
    ):
        one = torch.ones(1).to(dtype)
        integer = torch.int16 if dtype.itemsize == 2 else torch.uint8
        got = lmul.mul(one, one, out_dtype=dtype).view(integer).item()
        assert 2 * one.view(integer).item() - got == word
