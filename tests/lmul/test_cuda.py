"""The CUDA kernels of lmul give the bits of the CPU, on the stream and device of the caller."""

import pytest
import torch
from lmul_cases import (
    DTYPES,
    MODES,
    ROUNDS,
    SPECIAL,
    any_words,
    assert_same_bits,
    name,
    normals,
)

from nnkernels import lmul

pytestmark = pytest.mark.gpu


def check(x: torch.Tensor, y: torch.Tensor, **options):
    """mul on the device gives the bits of mul on the CPU."""
    got = lmul.mul(x, y, **options)
    assert got.is_cuda
    assert got.is_contiguous()
    assert_same_bits(got.cpu(), lmul.mul(x.cpu(), y.cpu(), **options))


@pytest.mark.parametrize("rounding", ROUNDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_mul_bits(dtype, mode, rounding):
    for size in (1, 7, 4097, 1_000_003):
        for draw in (any_words, normals):
            x, y = (draw(size, dtype=dtype, seed=seed).cuda() for seed in (1, 2))
            for m in (None, 4):
                check(x, y, mantissa_bits=m, mode=mode, round=rounding)


@pytest.mark.parametrize("mode", MODES)
def test_mul_special_pairs(mode):
    x, y = torch.broadcast_tensors(SPECIAL.cuda()[:, None], SPECIAL.cuda())
    for m in (1, 7, 23):
        check(x, y, mantissa_bits=m, mode=mode)
        check(x.contiguous(), y.contiguous(), mantissa_bits=m, mode=mode, round="rne")


def test_mul_strides_and_dtypes():
    for x_dtype in DTYPES:
        for y_dtype in DTYPES:
            x = normals(33, 2, 34, dtype=x_dtype).cuda()[:, 1:, ::2]
            y = normals(5, 17, dtype=y_dtype, seed=1).cuda()
            check(x, y)
            check(x.contiguous(), y.mT.contiguous().mT)
            check(x[:, 0, 1:], y[:1, 1:])
            check(x[0, 0, 0], y)
            check(x[:, :, :0], y[:, :0])


def test_mul_out_dtype():
    x, y = normals(999).cuda(), normals(999, seed=1).cuda()
    for out_dtype in DTYPES:
        check(x, y, out_dtype=out_dtype)


def test_mul_beyond_32_bit_indices():
    count = 2**32 + 8
    if torch.cuda.mem_get_info()[0] < 5 * count:
        pytest.skip("needs 20 GB of device memory")
    x = torch.zeros(count, dtype=torch.float8_e5m2, device="cuda")
    x[-1] = 1
    one = torch.ones(1, dtype=torch.float8_e5m2, device="cuda")
    out = lmul.mul(x, one, out_dtype=torch.bfloat16)
    assert out[-1].item() == 1.25
    assert out[: 2**20].count_nonzero() == 0


def test_mul_in_a_graph_and_on_a_side_stream():
    x, y = normals(5000).cuda(), normals(5000, seed=1).cuda()
    expected = lmul.mul(x, y)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        on_stream = lmul.mul(x, y)
    torch.cuda.current_stream().wait_stream(stream)
    assert_same_bits(on_stream, expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = lmul.mul(x, y)
    x.neg_()
    graph.replay()
    assert_same_bits(captured, -expected)


def test_mul_is_the_same_twice():
    x, y = any_words(100_000).cuda(), any_words(100_000, seed=1).cuda()
    assert_same_bits(lmul.mul(x, y), lmul.mul(x, y))
