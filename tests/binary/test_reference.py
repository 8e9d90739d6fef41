"""The reference against torch's own arithmetic, closed forms and the paper's identities."""

import doctest
import math

import pytest
import torch
from binary_cases import (
    EDGES,
    KS,
    PAD_MODES,
    SURROGATES,
    convolution,
    direct_convolution,
    integers,
    normals,
    packed_convolution,
    pad_bits_are_zero,
    signs,
    windows,
)

from nnkernels.binary import reference


@pytest.mark.parametrize("K", KS)
def test_a_bit_is_where_the_format_says(K):
    x = signs(3, K)
    words = reference.pack(x)
    assert words.dtype == torch.int32
    assert words.shape == (3, 8 * math.ceil(K / 256))
    memory = words.contiguous().view(torch.uint8)
    for k in {0, K // 2, K - 1}:
        # Little-endian: the same memory as bytes has the same bit order.
        assert torch.equal(memory[:, k // 8] >> (k % 8) & 1 == 1, x[:, k] < 0)
    assert pad_bits_are_zero(words, K)
    assert torch.equal(reference.unpack(words, K, torch.float32), x)


def test_signs_of_special_values():
    negative = [False, False, False, True, False, True, False, True, False, True, False, False]
    bits = reference.pack(torch.tensor(EDGES))
    assert (reference.unpack(bits, len(EDGES), torch.int8) < 0).tolist() == negative


@pytest.mark.parametrize("K", KS)
def test_products_are_those_of_numbers(K):
    a, b = signs(2, 5, K), signs(7, K, seed=1)
    dot = (a.double() @ b.double().mT).int()
    packed = reference.pack(a), reference.pack(b)
    assert torch.equal(reference.matmul(*packed, K), dot)
    assert torch.equal(reference.hamming(*packed, K), (a[..., None, :] != b).sum(-1).int())
    t, u = integers(-1, 2, 5, K), integers(-1, 2, 7, K, seed=1)
    planes = (*reference.pack_ternary(t), *reference.pack_ternary(u))
    assert torch.equal(reference.ternary_matmul(*planes, K), t.int() @ u.int().mT)
    x = integers(-128, 128, 5, K, seed=2)
    assert torch.equal(
        reference.int8_matmul(x, planes[3], K, w_mask=planes[2]), x.int() @ u.int().mT
    )
    p, q = integers(0, 8, 5, K, seed=3), integers(0, 4, 7, K, seed=4)
    bits = (
        torch.stack([reference.pack(-(v.int() >> i & 1).to(torch.int8)) for i in range(n)])
        for v, n in ((p, 3), (q, 2))
    )
    assert torch.equal(reference.planes_matmul(*bits, K), p.int() @ q.int().mT)


@pytest.mark.parametrize("pad_mode", PAD_MODES)
@pytest.mark.parametrize("window", windows())
def test_convolutions_are_those_of_torch(window, pad_mode):
    x, w, options = convolution(window)
    want = direct_convolution(x, w, *options, pad_mode)
    packed = packed_convolution(x, w, options[-1])
    got = reference.conv2d(*packed, x.shape[1], *options, pad_mode, nchw=True)
    assert torch.equal(got.long(), want)


def test_the_square_wave_is_the_sign_of_the_sine():
    w = normals(4000, seed=3).double() * 3
    for omega in (1.0, 20.0, 1000.0):
        p = (w.float() * torch.tensor(omega)).double()
        far = torch.sin(p).abs() > 1e-6
        assert torch.equal(reference.biper_negative(w, omega)[far], (torch.sin(p) < 0)[far])
    # 0 and -0 are +1, and so is everything up to pi.
    assert not reference.biper_negative(torch.tensor([0.0, -0.0, 3.1415925]), 1.0).any()
    assert reference.biper_negative(torch.tensor([-1e-30, 3.1415930, -3.0]), 1.0).all()


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_surrogates(surrogate):
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 1.5], dtype=torch.float64)
    slopes = {
        "ste": [0, 1, 1, 1, 1, 1, 0],
        "approxsign": [0, 0, 1, 2, 1.5, 0, 0],
        "identity": [1] * 7,
    }
    leaf = x.clone().requires_grad_()
    out = reference.binarize(leaf, surrogate)
    assert out.tolist() == [-1, -1, -1, 1, 1, 1, 1]
    out.sum().backward()
    assert leaf.grad.tolist() == slopes[surrogate]


def test_the_gradient_of_biper_is_that_of_the_sine():
    w = normals(50).double().requires_grad_()
    omega = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    g = normals(50, seed=1).double()
    reference.biper(w, omega).backward(g)
    torch.testing.assert_close(w.grad, g * 20 * torch.cos(20 * w.detach()))
    torch.testing.assert_close(omega.grad, (g * w.detach() * torch.cos(20 * w.detach())).sum())


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("omega", [None, 20.0])
def test_the_kept_bits_give_the_gradients(surrogate, omega):
    # The halves of the operators against float64 autograd of the whole.
    omega = None if omega is None else torch.tensor(omega)
    x, w = normals(2, 6, 5, 4), normals(4, 3, 3, 2, seed=1)
    alpha, g = normals(4, seed=2).abs(), normals(2, 4, 5, 5, seed=3)
    window = {"padding": (1, 1), "stride": (1, 1), "groups": 2, "pad_mode": "minus_one"}
    _, *kept = reference.conv2d_train_fwd(x, w, alpha, None, omega, surrogate=surrogate, **window)
    got = reference.conv2d_train_bwd(g, *kept, alpha, C=6, **window)
    want = reference.conv2d_train_grad(
        g, x, w, alpha, None, omega, dilation=(1, 1), surrogate=surrogate, **window
    )
    slope = reference.surrogate_slope(x, surrogate) if surrogate == "approxsign" else 1
    torch.testing.assert_close(got[0] * slope, want[0].float())
    torch.testing.assert_close(got[2], want[2].float())
    through = reference.surrogate_slope(w, surrogate)
    if omega is not None:
        through = omega * torch.cos(omega * w)
    torch.testing.assert_close(got[1] * through, want[1].float(), rtol=1e-4, atol=1e-4)


def test_examples_in_the_docstrings():
    result = doctest.testmod(reference, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
