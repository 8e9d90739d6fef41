"""Convolution and pooling of packed images: exact for every window, padding, instruction set."""

import itertools

import house
import pytest
import torch
from binary_cases import (
    PAD_MODES,
    RESULTS,
    bits,
    convolution,
    direct_convolution,
    integers,
    name,
    normals,
    packed_convolution,
    pad_bits_are_zero,
    windows,
)

from nnkernels import binary
from nnkernels.binary import reference

every_window = pytest.mark.parametrize("window", windows(), ids=name)
every_padding = pytest.mark.parametrize("pad_mode", PAD_MODES)


def check(got, expected):
    assert house.same_bits(got, expected)
    assert got.is_contiguous()


@every_padding
@every_window
def test_conv2d(isa, window, pad_mode):
    x, w, options = convolution(window)
    x_bits, w_bits = packed_convolution(x, w, options[-1])
    call = (x_bits, w_bits, x.shape[1], *options, pad_mode)
    expected = direct_convolution(x, w, *options, pad_mode).int()
    check(binary.conv2d(*call, nchw=True), expected)
    check(binary.conv2d(*call), expected.permute(0, 2, 3, 1).contiguous())
    corr = binary.conv2d_corr(w_bits, x.shape[1], options[-1])
    check(corr, reference.conv2d_corr(w_bits, x.shape[1], options[-1]))
    check(binary.conv2d(*call, corr=corr, nchw=True), expected)


@every_padding
@pytest.mark.parametrize("out_dtype", RESULTS, ids=name)
def test_scales_and_dtypes(isa, out_dtype, pad_mode):
    for window in ((9, 9, 80, 72, 3, 3, 1, 1, 1, 2), (5, 7, 12, 9, 3, 3, 2, 1, 1, 3)):
        x, w, options = convolution(window)
        packed = packed_convolution(x, w, options[-1])
        call = (*packed, x.shape[1], *options, pad_mode)
        choices = [{}]
        if out_dtype.is_floating_point:
            scale, bias = normals(w.shape[0], seed=3), normals(w.shape[0], seed=4)
            choices += [{"scale": scale}, {"bias": bias}, {"scale": scale, "bias": bias}]
        for chosen in choices:
            for nchw in (False, True):
                keywords = {**chosen, "out_dtype": out_dtype, "nchw": nchw}
                check(binary.conv2d(*call, **keywords), reference.conv2d(*call, **keywords))


@every_padding
@every_window
def test_sign(isa, window, pad_mode):
    x, w, options = convolution(window, batch=1)
    x_bits, w_bits = packed_convolution(x, w, options[-1])
    O = w.shape[0]  # noqa: E741
    direction = integers(-1, 2, O, seed=5)
    thresh = integers(-4, 5, O, seed=6, dtype=torch.int32)
    thresh = torch.where(direction == 0, thresh.remainder(2), thresh)
    call = (x_bits, w_bits, x.shape[1], thresh, direction, *options, pad_mode)
    got = binary.conv2d_sign(*call)
    check(got, reference.conv2d_sign(*call))
    assert pad_bits_are_zero(got, O)
    corr = binary.conv2d_corr(w_bits, x.shape[1], options[-1])
    check(binary.conv2d_sign(*call, corr=corr), got)


def test_the_identities_of_padding():
    x, w, options = convolution((5, 7, 40, 9, 3, 3, 1, 1, 1, 1))
    call = (*packed_convolution(x, w, 1), 40, *options)
    one, zero, minus = (binary.conv2d(*call, mode) for mode in ("one", "zero", "minus_one"))
    assert torch.equal(one - zero, zero - minus)
    assert torch.equal(one[:, 1:-1, 1:-1], zero[:, 1:-1, 1:-1])


def test_a_1x1_convolution_is_a_matmul(isa):
    x, w = bits(2, 5, 7, 300), bits(70, 1, 1, 300, seed=1)
    check(binary.conv2d(x, w, 300), binary.matmul(x, w[:, 0, 0], 300))


@pytest.mark.parametrize("batch", [0, 1, 8])
def test_batches(isa, batch):
    x, w, options = convolution((7, 7, 64, 33, 3, 3, 1, 1, 1, 1), batch=batch)
    call = (*packed_convolution(x, w, 1), 64, *options)
    check(binary.conv2d(*call), reference.conv2d(*call))


MANY_PIXELS = [(30, 32, 8, 96, 3, 3, 1, 1, 1, 1), (30, 32, 8, 96, 3, 3, 1, 1, 1, 2)]
MANY_PIXELS += [(30, 32, 8, 96, 1, 1, 1, 0, 1, 2), (40, 41, 64, 32, 3, 3, 1, 1, 1, 1)]


@pytest.mark.parametrize("window", MANY_PIXELS, ids=name)
def test_many_pixels(isa, window):
    # More than a block of pixels or images, which ends within an image or the batch, and a result
    # of over a megabyte.
    C, O, groups = window[2], window[3], window[-1]  # noqa: E741
    x, w, options = convolution(window, batch=6 if C == 64 else 3)
    call = (*packed_convolution(x, w, groups), C)
    expected = direct_convolution(x, w, *options, "zero").int()
    check(binary.conv2d(*call, *options, nchw=True), expected)
    check(binary.conv2d(*call, *options), expected.permute(0, 2, 3, 1).contiguous())
    thresh, direction = torch.zeros(O, dtype=torch.int32), torch.ones(O, dtype=torch.int8)
    got = binary.conv2d_sign(*call, thresh, direction, *options)
    assert torch.equal(got, reference.pack(expected.permute(0, 2, 3, 1).float()))


def test_views(canaries):
    x, w, options = convolution((6, 5, 40, 9, 3, 3, 1, 1, 1, 1))
    x_bits, w_bits = packed_convolution(x, w, 1)
    expected = binary.conv2d(x_bits, w_bits, 40, *options)
    for other in (canaries.embed(x_bits, step=2), x_bits.mT.contiguous().mT):
        check(binary.conv2d(other, w_bits, 40, *options), expected)
    check(binary.conv2d(x_bits, canaries.embed(w_bits), 40, *options), expected)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        ((4, 4), 2, None, 0),
        ((7, 5), 3, 2, 1),
        ((5, 6), (3, 2), (1, 2), (1, 1)),
        ((1, 1), 1, 1, 0),
        ((3, 3), 3, 1, 1),
    ],
)
def test_maxpool2d(isa, size, kernel, stride, padding):
    x = bits(2, *size, 300)
    got = binary.maxpool2d(x, kernel, stride, padding)
    check(got, reference.maxpool2d(x, kernel, stride, padding))
    values = reference.unpack(x, 300, torch.float32).permute(0, 3, 1, 2)
    pooled = torch.nn.functional.max_pool2d(values, kernel, stride, padding)
    assert torch.equal(binary.unpack(got, 300), pooled.permute(0, 2, 3, 1))


def test_threads_do_not_change_anything():
    x, w, options = convolution((20, 20, 100, 70, 3, 3, 1, 1, 1, 1))
    call = (*packed_convolution(x, w, 1), 100, *options)
    results = []
    for count in (1, 2, 3):
        with house.threads(count):
            results.append((binary.conv2d(*call), binary.maxpool2d(call[0], 2)))
    for one, two in itertools.pairwise(results):
        assert all(house.same_bits(a, b) for a, b in zip(one, two, strict=True))
