"""Binarisation and the training operators: values, gradients, and what is kept for backward."""

import house
import pytest
import torch
from binary_cases import (
    FLOATS,
    PAD_MODES,
    SURROGATES,
    name,
    normals,
    pair,
    relative_error,
    windows,
)

from nnkernels import binary
from nnkernels.binary import reference

# Relative error of gradients in float32 and bfloat16; float16 has more bits than bfloat16.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
latent = pytest.mark.parametrize("omega", [None, 20.0], ids=["sign", "biper"])
every_surrogate = pytest.mark.parametrize("surrogate", SURROGATES)
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=name)


def leaves(*values):
    return [None if v is None else v.clone().requires_grad_() for v in values]


def check_gradients(out, inputs, g, expected, tolerance):
    given = [value for value in inputs if value is not None]
    got = iter(torch.autograd.grad(out, given, g))
    for value, want in zip(inputs, expected, strict=True):
        if value is None:
            continue
        gradient = next(got)
        assert gradient.dtype == value.dtype
        assert gradient.shape == value.shape
        assert relative_error(gradient, want.reshape(gradient.shape)) <= tolerance


# ---- linear ----


@every_dtype
@every_surrogate
@latent
def test_linear_train(isa, omega, surrogate, dtype):
    for sizes, N, K in (
        ((5,), 7, 33),
        ((2, 3), 65, 257),
        ((130,), 64, 1000),
        ((), 3, 300),
        # Beyond a block of columns, of rows and of terms of a sum.
        ((3,), 5, 1100),
        ((300,), 270, 40),
    ):
        x, w = normals(*sizes, K, dtype=dtype), (normals(N, K, seed=1) / 4).to(dtype)
        # The edge of the surrogates and the number beyond it.
        beyond = 1 + torch.finfo(dtype).eps
        x[..., :4] = torch.tensor([1.0, -1.0, beyond, -beyond])
        alpha, bias = normals(N, seed=2), normals(N, seed=3)
        wave = None if omega is None else torch.tensor(omega)
        inputs = leaves(x, w, alpha, bias, wave)
        out = binary.linear_train(*inputs, surrogate=surrogate)
        assert house.same_bits(out, reference.linear_train(x, w, alpha, bias, wave))
        g = normals(*sizes, N, seed=4, dtype=dtype)
        kept = x.bfloat16().to(dtype) if surrogate == "approxsign" else x
        expected = reference.linear_train_grad(g, kept, w, alpha, bias, wave, surrogate=surrogate)
        check_gradients(out, inputs, g, expected, TOLERANCE[dtype])


@latent
def test_linear_train_without_alpha_and_bias(omega):
    x, w, g = normals(4, 300), normals(5, 300, seed=1), normals(4, 5, seed=2)
    wave = None if omega is None else torch.tensor(omega)
    inputs = leaves(x, w)
    out = binary.linear_train(*inputs, omega=wave)
    expected = reference.linear_train_grad(g, x, w, None, None, wave)
    check_gradients(out, inputs, g, expected[:2], 1e-5)


# ---- convolution ----


@pytest.mark.parametrize("pad_mode", PAD_MODES)
@pytest.mark.parametrize("window", windows(), ids=name)
def test_conv2d_train(isa, window, pad_mode):
    H, W, C, O, KH, KW, stride, padding, dilation, groups = window  # noqa: E741
    x, w = normals(2, C, H, W), normals(O, C // groups, KH, KW, seed=1) / 4
    alpha, bias = normals(O, seed=2), normals(O, seed=3)
    options = (pair(stride), pair(padding), pair(dilation), groups, pad_mode)
    names = ("stride", "padding", "dilation", "groups", "pad_mode")
    for omega, surrogate in ((None, "ste"), (torch.tensor(20.0), "approxsign")):
        inputs = leaves(x, w, alpha, bias, omega)
        out = binary.conv2d_train(*inputs, *options, surrogate=surrogate)
        expected = reference.conv2d_train(x, w, alpha, bias, omega, *options)
        assert house.same_bits(out, expected)
        g = normals(*out.shape, seed=4)
        kept = x.bfloat16().float() if surrogate == "approxsign" else x
        expected = reference.conv2d_train_grad(
            g,
            kept,
            w,
            alpha,
            bias,
            omega,
            **dict(zip(names, options, strict=True)),
            surrogate=surrogate,
        )
        check_gradients(out, inputs, g, expected, 1e-5)


@every_dtype
def test_conv2d_train_of_layouts(isa, dtype):
    x, w = normals(2, 8, 6, 5, dtype=dtype), normals(7, 8, 3, 3, seed=1, dtype=dtype)
    g = normals(2, 7, 6, 5, seed=2, dtype=dtype)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        inputs = leaves(x.to(memory_format=layout), w.to(memory_format=layout))
        out = binary.conv2d_train(*inputs, None, None, None, 1, 1)
        results.append((out, *torch.autograd.grad(out, inputs, g.to(memory_format=layout))))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


# ---- what autograd does with them ----


def both_layers():
    x, w = normals(3, 40), normals(5, 40, seed=1)
    yield lambda *v: binary.linear_train(*v), [x, w, normals(5, seed=2), normals(5, seed=3)]
    images, kernels = normals(2, 6, 5, 5), normals(4, 6, 3, 3, seed=1)
    yield (
        lambda *v: binary.conv2d_train(*v, None, 1, 1),
        [images, kernels, normals(4, seed=2), normals(4, seed=3)],
    )
    omega = torch.tensor(20.0)
    yield (
        lambda *v: binary.linear_train(*v),
        [x, w, normals(5, seed=2), normals(5, seed=3), omega],
    )


def test_only_needed_gradients():
    for function, values in both_layers():
        inputs = leaves(*values)
        everything = torch.autograd.grad(function(*inputs).sum(), inputs)
        for position, expected in enumerate(everything):
            alone = [value.clone() for value in values]
            alone[position].requires_grad_()
            (got,) = torch.autograd.grad(function(*alone).sum(), alone[position])
            assert house.same_bits(got, expected)


def test_zero_strides_of_the_gradient():
    for function, values in both_layers():
        inputs = leaves(*values)
        out = function(*inputs)
        ours = torch.autograd.grad(out.sum(), inputs, retain_graph=True)
        dense = torch.autograd.grad(out, inputs, torch.ones_like(out))
        for one, two in zip(ours, dense, strict=True):
            assert house.same_bits(one, two)


def test_threads_do_not_change_gradients():
    x, w = normals(150, 530), normals(170, 530, seed=1)
    images, kernels = normals(3, 40, 14, 14), normals(70, 40, 3, 3, seed=1)
    results = []
    for count in (1, 2, 3):
        with house.threads(count):
            inputs = leaves(x, w, normals(170), images, kernels)
            out = binary.linear_train(*inputs[:3]), binary.conv2d_train(*inputs[3:], padding=1)
            gradients = torch.autograd.grad([out[0].sum(), out[1].square().sum()], inputs)
            results.append([*out, *gradients])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert house.same_bits(one, two)


@latent
def test_double_backward_raises(omega):
    wave = None if omega is None else torch.tensor(omega)
    for function, name_ in (
        (lambda x, w: binary.linear_train(x, w, omega=wave), "linear_train"),
        (
            lambda x, w: binary.conv2d_train(x[:, :, None, None], w[:, :, None, None], omega=wave),
            "conv2d_train",
        ),
    ):
        inputs = leaves(normals(3, 40), normals(5, 40))
        out = function(*inputs)
        for position in range(2):
            gradients = torch.autograd.grad(out.sum(), inputs, create_graph=True, retain_graph=True)
            message = f"binary_{name_}.*: double backward is not supported"
            with pytest.raises(RuntimeError, match=message):
                gradients[position].sum().backward()


def saved_bytes(function, parameters):
    """What autograd keeps of a call beside the parameters."""
    kept = {}
    own = {p.untyped_storage().data_ptr() for p in parameters}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function()
    return sum(kept.values()), out


def test_what_is_kept_for_backward_is_bits():
    x = normals(4096, 1024).requires_grad_()
    layer = binary.BinaryLinear(1024, 16)
    ours, _out = saved_bytes(lambda: layer(x), layer.parameters())
    exact = torch.nn.Linear(1024, 16)
    theirs, _out = saved_bytes(lambda: exact(x), exact.parameters())
    assert theirs == 4 * x.numel()
    # Two bits a value of x, and the packed weight.
    assert ours == x.numel() // 4 + layer.weight.numel() // 8
    assert ours <= theirs / 15
    layer = binary.BinaryLinear(1024, 16, surrogate="approxsign")
    ours, _out = saved_bytes(lambda: layer(x), layer.parameters())
    # The signs, and x in bfloat16.
    assert ours == x.numel() // 8 + 2 * x.numel() + layer.weight.numel() // 8
    images = normals(8, 64, 14, 14).requires_grad_()
    layer = binary.BinaryConv2d(64, 8, 3, padding=1)
    ours, _out = saved_bytes(lambda: layer(images), layer.parameters())
    # 64 channels fill a quarter of the 256 bits of a row.
    assert ours <= 4 * (images.numel() // 4) + layer.weight.numel()


# ---- binarize and biper ----


@every_dtype
@every_surrogate
def test_binarize(surrogate, dtype):
    x = normals(200, dtype=dtype).requires_grad_()
    out = binary.binarize(x, surrogate=surrogate)
    assert torch.equal(out, reference.square_wave(x.detach(), None).to(dtype))
    assert out.dtype == dtype
    g = normals(200, seed=1, dtype=dtype)
    out.backward(g)
    leaf = x.detach().double().requires_grad_()
    reference.binarize(leaf, surrogate).backward(g.double())
    assert relative_error(x.grad, leaf.grad) <= TOLERANCE[dtype]


def test_binarize_zeros_and_nan():
    x = torch.tensor([0.0, -0.0, float("nan"), -1e-45, float("-inf")])
    assert binary.binarize(x).tolist() == [1, 1, 1, -1, -1]


@every_dtype
@pytest.mark.parametrize("stage", [1, 2])
def test_biper(stage, dtype):
    w = normals(7, 50, dtype=dtype).requires_grad_()
    omega = torch.tensor(20.0, requires_grad=True)
    out = binary.biper(w, omega, stage=stage)
    assert out.dtype == dtype
    p = (torch.tensor(20.0) * w.detach().float()).double()
    if stage == 1:
        # sin in float32 of the float32 phase.
        assert relative_error(out, torch.sin(p)) <= TOLERANCE[dtype]
    else:
        assert torch.equal(out.double(), reference.square_wave(w.detach(), torch.tensor(20.0)))
    g = normals(7, 50, seed=1, dtype=dtype)
    out.backward(g)
    slope = g.double() * torch.cos(p)
    assert relative_error(w.grad, 20 * slope) <= TOLERANCE[dtype]
    want = (slope * w.detach().double()).sum()
    size = (slope * w.detach().double()).abs().sum()
    assert abs(omega.grad.item() - want) <= TOLERANCE[dtype] * size


def test_the_gradient_of_omega_survives_cancellation():
    w, g = normals(5000), normals(5000, seed=1)
    w, g = torch.cat([w, w, torch.tensor([1e-6])]), torch.cat([g, -g, torch.ones(1)])
    order = torch.randperm(w.numel(), generator=torch.Generator().manual_seed(2))
    omega = torch.tensor(20.0, requires_grad=True)
    binary.biper(w[order], omega, stage=2).backward(g[order])
    assert omega.grad.item() == pytest.approx(1e-6, rel=1e-5)


def test_biper_stage_1_can_be_differentiated_twice():
    w = (normals(20) / 4).double().float().requires_grad_()
    (first,) = torch.autograd.grad(binary.biper(w, 20.0).sum(), w, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), w)
    torch.testing.assert_close(second, -400 * torch.sin(20 * w.detach()), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (lambda x: binary.binarize(x), "binary_binarize"),
        (lambda x: binary.binarize(x, surrogate="approxsign"), "binary_binarize"),
        (lambda x: binary.biper(x, 20.0, stage=2), "binary_square_wave"),
    ],
)
def test_double_backward_through_the_sign_raises(function, op):
    x = normals(20).requires_grad_()
    (first,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{op}: double backward is not supported"):
        first.sum().backward()


def test_prescale():
    x = normals(3, 4, 5, 6) * torch.tensor([0.1, 1.0, 30.0])[:, None, None, None]
    out = binary.prescale(x)
    for sample, scaled in zip(x, out, strict=True):
        torch.testing.assert_close(scaled, sample / (sample.var() + 1e-5).sqrt())
    assert torch.equal(binary.pack(out), binary.pack(x))
    small = normals(2, 3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(binary.prescale, small)


# ---- quantisation error ----


@pytest.mark.parametrize(
    ("a", "qe", "relative"),
    [(0.5, 0.0888, None), (1.0, 0.1028, None), (3.0, 0.0966, None), (200.0, 0.0947, 0.189)],
)
def test_the_quantisation_error_of_laplace_weights(a, qe, relative):
    # Quantiles of Laplace(1) in the place of a draw: the mean is an integral.
    count = 4_000_000
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    w = -torch.log(1 - u)
    found = binary.biper_qe(w, a)
    power = 2 * a**2 / (1 + 4 * a**2)
    gamma = a / (1 + a**2) / torch.tanh(torch.tensor(torch.pi / (2 * a), dtype=torch.float64))
    assert found.gamma == pytest.approx(gamma.item(), abs=2e-4)
    assert found.qe == pytest.approx(power - gamma.item() ** 2, abs=3e-4)
    assert found.qe == pytest.approx(qe, abs=4e-4)
    if relative is not None:
        assert found.relative == pytest.approx(relative, abs=1e-3)


def test_the_quantisation_error_by_hand():
    w = torch.tensor([0.0, torch.pi / 6, -torch.pi / 2])
    gamma, qe, relative, l1 = binary.biper_qe(w, 1.0)
    assert gamma == pytest.approx(0.5, abs=1e-6)
    assert qe == pytest.approx(1.25 / 3 - 0.25, abs=1e-6)
    assert relative == pytest.approx(1 - 0.25 * 3 / 1.25, abs=1e-6)
    assert l1 == pytest.approx(0.5, abs=1e-6)
