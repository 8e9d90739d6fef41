"""Derivatives of the binary operators: those of the training operators, refusals for the others.

Backward passes straight through the sign: the gradient with respect to the +-1 is that of the
product, and the chain rule goes on with a surrogate slope, or for BiPer with the slope of
sin(omega w).
"""

import torch
from torch import Tensor

from nnkernels import _checks
from nnkernels._registration import register_refusal, register_single_backward
from nnkernels.binary import checks

_ops = torch.ops.nnkernels
_library = torch.library.Library("nnkernels", "FRAGMENT")

_library.define("binary_binarize(Tensor x, *, str surrogate='ste') -> Tensor")
_library.define("binary_square_wave(Tensor w, Tensor omega) -> Tensor")


# ---- slopes ----


def surrogate_slope(x: Tensor, surrogate: str) -> Tensor | None:
    """What stands for the derivative of binarize at x; None for 1."""
    if surrogate == "ste":
        return (x.abs() <= 1).to(x.dtype)
    if surrogate == "approxsign":
        return (2 - 2 * x.abs()).clamp(min=0)
    return None


def _through(g: Tensor, slope: Tensor | None) -> Tensor:
    return g if slope is None else g * slope


def _through_wave(g: Tensor, w: Tensor, omega: Tensor, need_omega: bool):
    """The gradients of sin(omega w) with respect to w and omega, in float32."""
    w, omega = w.float(), omega.float()
    g = g * torch.cos(omega * w)
    # The terms of the sum cancel: float64 keeps what is left of them.
    total = (g.double() * w.double()).sum().float().reshape(omega.shape) if need_omega else None
    return g * omega, total


class _Refuse(torch.autograd.Function):
    """The same value, which refuses to be differentiated."""

    @staticmethod
    def forward(ctx, name, anchor, value):
        ctx.name = name
        return value.clone()

    @staticmethod
    def backward(ctx, g):
        raise RuntimeError(f"{ctx.name}: double backward is not supported")


def _once(name: str, gradients):
    """Gradients that cannot be differentiated again."""
    if not torch.is_grad_enabled():
        return tuple(gradients)
    anchor = torch.zeros((), requires_grad=True)
    return tuple(None if g is None else _Refuse.apply(name, anchor, g) for g in gradients)


def _recorded(name: str, *values: Tensor | None) -> bool:
    """Whether autograd must record a call of operator `name`."""
    if not _checks.needs_grad(name, "ste", *values):
        return False
    _checks.refuse_functorch(name)
    return True


# ---- products of bits have no derivative ----

for _name in (
    "binary_matmul",
    "binary_matmul_prepacked",
    "binary_linear",
    "binary_linear_prepacked",
    "binary_conv2d",
    "binary_int8_matmul",
):
    register_refusal(_name, checks.NO_GRADIENT)


# ---- binarize and the square wave as values ----


def _binarize(x, *, surrogate="ste"):
    return torch.where(x < 0, -1.0, 1.0).to(x.dtype)


def _square_wave(w, omega):
    bits = _ops.binary_pack_biper(w.reshape(1, -1), omega.item())
    return _ops.binary_unpack(bits, w.numel(), w.dtype).reshape(w.shape)


class _Binarize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, surrogate):
        ctx.surrogate = surrogate
        ctx.save_for_backward(x if surrogate != "identity" else None)
        with torch._C._AutoDispatchBelowAutograd():
            return _ops.binary_binarize(x, surrogate=surrogate)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        slope = None if x is None else surrogate_slope(x, ctx.surrogate)
        return *_once("binary_binarize", [_through(g, slope)]), None


class _SquareWave(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, omega):
        ctx.save_for_backward(w, omega)
        with torch._C._AutoDispatchBelowAutograd():
            return _ops.binary_square_wave(w, omega)

    @staticmethod
    def backward(ctx, g):
        w, omega = ctx.saved_tensors
        grad_w, grad_omega = _through_wave(g.float(), w, omega, ctx.needs_input_grad[1])
        return _once("binary_square_wave", [grad_w.to(w.dtype), grad_omega])


def _binarize_recorded(x, *, surrogate="ste"):
    if _recorded("binary_binarize", x):
        return _Binarize.apply(x, surrogate)
    with torch._C._AutoDispatchBelowAutograd():
        return _ops.binary_binarize(x, surrogate=surrogate)


def _square_wave_recorded(w, omega):
    if _recorded("binary_square_wave", w, omega):
        return _SquareWave.apply(w, omega)
    with torch._C._AutoDispatchBelowAutograd():
        return _ops.binary_square_wave(w, omega)


for _name, _kernel, _recorded_kernel in (
    ("binary_binarize", _binarize, _binarize_recorded),
    ("binary_square_wave", _square_wave, _square_wave_recorded),
):
    for _device in ("CPU", "CUDA"):
        _library.impl(_name, _kernel, _device)
    _library.impl(_name, _recorded_kernel, "Autograd")
    torch.library.register_fake(
        f"nnkernels::{_name}", lambda x, *_, **__: x.new_empty(x.shape), lib=_library
    )


# ---- layers ----


def _sum_over(g: Tensor, dims: list[int]) -> Tensor:
    # No dimensions would mean all of them.
    return g.sum(dims) if dims else g


def _register_layer(name, extent, channel):
    """Makes operator `name` run its halves under autograd.

    extent   which argument of the backward is the length of x's packed dimension, "K" or "C"
    channel  the dimension of the result that alpha and bias run along
    """
    forward = getattr(_ops, f"{name}_fwd").default
    backward = getattr(_ops, f"{name}_bwd").default

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, window, surrogate, x, w, alpha, bias, omega):
            out, x_bits, x_inside, w_bits = forward(
                x, w, alpha, bias, omega, *window, surrogate=surrogate
            )
            # Everything that is kept of x: bits, and for this slope two bytes a value.
            narrow = x.to(torch.bfloat16) if surrogate == "approxsign" else None
            ctx.save_for_backward(x_bits, x_inside, w_bits, narrow, w, alpha, omega)
            ctx.window = dict(
                zip(("stride", "padding", "dilation", "groups", "pad_mode"), window, strict=False)
            )
            ctx.surrogate = surrogate
            ctx.extent = x.shape[channel]
            ctx.dtype = x.dtype
            return out

        @staticmethod
        def backward(ctx, g):
            x_bits, x_inside, w_bits, narrow, w, alpha, omega = ctx.saved_tensors
            need_x, need_w, need_alpha, need_bias, need_omega = ctx.needs_input_grad[2:]
            grad_x, grad_w, grad_alpha = backward(
                g,
                x_bits,
                x_inside,
                w_bits,
                alpha,
                need_x=need_x,
                need_w=need_w or need_omega,
                need_alpha=need_alpha,
                **{extent: ctx.extent},
                **ctx.window,
            )
            grad_omega = None
            if need_x and narrow is not None:
                grad_x = grad_x * surrogate_slope(narrow.float(), ctx.surrogate)
            if omega is not None and (need_w or need_omega):
                grad_w, grad_omega = _through_wave(grad_w, w, omega, need_omega)
            elif need_w:
                grad_w = _through(grad_w, surrogate_slope(w.float(), ctx.surrogate))
            others = [d for d in range(g.dim()) if d != channel % g.dim()]
            gradients = (
                grad_x.to(ctx.dtype) if need_x else None,
                grad_w.to(w.dtype) if need_w else None,
                grad_alpha if need_alpha else None,
                _sum_over(g.float(), others) if need_bias else None,
                grad_omega,
            )
            return None, None, *_once(name, gradients)

    def kernel(x, w, alpha=None, bias=None, omega=None, *window, surrogate="ste"):
        if _recorded(name, x, w, alpha, bias, omega):
            return Function.apply(window, surrogate, x, w, alpha, bias, omega)
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(_ops, name)(x, w, alpha, bias, omega, *window, surrogate=surrogate)

    _library.impl(name, kernel, "Autograd")
    register_single_backward(name)


_register_layer("binary_linear_train", extent="K", channel=-1)
_register_layer("binary_conv2d_train", extent="C", channel=1)
