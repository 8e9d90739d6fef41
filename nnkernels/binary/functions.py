"""Binarisation of values, BiPer and folded batch norm: functions around the packed operators."""

from typing import NamedTuple

import torch
from torch import Tensor

from nnkernels import _checks
from nnkernels.binary import checks

_ops = torch.ops.nnkernels


def binarize(x: Tensor, *, surrogate: str = "ste", check_nan: bool = False) -> Tensor:
    """-1 where x < 0, else +1 (zeros of both signs and NaN too), in the dtype of x.

    Args:
        x: float32, bfloat16 or float16, any shape.
        surrogate: what stands for the derivative, see `linear_train`.
        check_nan: raise ValueError with the first index of a NaN.

    Double backward raises RuntimeError.

    >>> import torch, nnkernels
    >>> nnkernels.binary.binarize(torch.tensor([-2.0, -0.0, 3.0]))
    tensor([-1.,  1.,  1.])
    """
    op = "binary_binarize"
    _checks.tensor(op, "x", x, checks.FLOATS)
    checks.check_surrogate(op, surrogate)
    if check_nan and (nan := x.isnan()).any():
        raise ValueError(f"{op}: x is NaN at {nan.nonzero()[0].tolist()}")
    return _ops.binary_binarize(x, surrogate=surrogate)


def biper(w: Tensor, omega: float | Tensor, *, stage: int = 1, check: bool = False) -> Tensor:
    """The periodic function of BiPer (arXiv 2404.01278), with p = float32(omega) * float32(w).

    Args:
        w: latent weights, float32, bfloat16 or float16, any shape.
        omega: finite and positive; a float32 tensor of one number may be learnt.
        stage: 1 gives sin(p), real weights; 2 gives its sign, the square wave +-1 (0 is +1).
        check: raise ValueError where |p| > 2^20.

    Returns:
        The shape and dtype of w. In both stages the gradients are those of sin(p): omega * cos(p)
        for w, the sum of w * cos(p) for omega. Stage 1 can be differentiated again, stage 2 raises
        RuntimeError.

    >>> import torch, nnkernels
    >>> nnkernels.binary.biper(torch.tensor([0.1, 0.2, -0.1]), 20.0, stage=2)
    tensor([ 1., -1., -1.])
    """
    op = "binary_biper"
    _checks.tensor(op, "w", w, checks.FLOATS)
    checks.check_stage(op, stage)
    omega = omega_tensor(op, omega, w)
    p = omega * w.float()
    if check and (beyond := ~(p.abs() <= checks.MAX_PHASE)).any():
        index = beyond.nonzero()[0].tolist()
        raise ValueError(f"{op}: |omega * w| exceeds 2^20 or is NaN at {index}")
    return torch.sin(p).to(w.dtype) if stage == 1 else _ops.binary_square_wave(w, omega)


def omega_tensor(op: str, omega: float | Tensor, like: Tensor) -> Tensor:
    """omega as a float32 tensor of one number."""
    if not isinstance(omega, Tensor):
        checks.check_omega(op, omega)
        return torch.tensor(float(omega), device=like.device)
    _checks.tensor(op, "omega", omega, (torch.float32,))
    _checks.same_device(op, "omega", omega, "w", like)
    if omega.numel() != 1:
        raise ValueError(f"{op}: omega is {_checks.shape(omega)}, expected one number")
    return omega.reshape(())


def prescale(x: Tensor) -> Tensor:
    """x / sqrt(var + 1e-5), the unbiased variance of every sample over all but dimension 0.

    The step that BiPer takes before binarising activations: bits do not see it, gradients do.
    """
    over = list(range(1, x.dim()))
    return x / torch.sqrt(x.var(over, keepdim=True) + 1e-5)


def fold_bn(
    g: Tensor,
    beta: Tensor,
    mu: Tensor,
    var: Tensor,
    eps: float,
    K: int,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Thresholds (thresh int32 [N], dir int8 [N]) that stand for batch norm and binarisation.

    For y = g * ((scale * dot + bias - mu) / sqrt(var + eps)) + beta, evaluated in float32 in this
    order, the bit y < 0 is dot < thresh where dir is 1, dot > thresh where dir is -1, and thresh
    where dir is 0. Found by bisection over every dot in [-K, K], since each step is monotone: the
    folding is exact.

    Args:
        g, beta, mu, var: weight, bias, running mean and variance of the batch norm, float32 [N].
        eps: its eps.
        K: length of the sums; C / groups * KH * KW for a convolution.
        scale, bias: float32 [N] of the layer before, or None.

    >>> import torch, nnkernels
    >>> one, zero = torch.ones(1), torch.zeros(1)
    >>> nnkernels.binary.fold_bn(one, zero, 2.5 * one, one, 0.0, 10)
    (tensor([3], dtype=torch.int32), tensor([1], dtype=torch.int8))
    """
    op = "fold_bn"
    for name, value in (("g", g), ("beta", beta), ("mu", mu), ("var", var)):
        _checks.tensor(op, name, value, (torch.float32,))
        checks.check_vector(op, name, value, g.shape, "g", g)
    checks.check_vector(op, "scale", scale, g.shape, "g", g)
    checks.check_vector(op, "bias", bias, g.shape, "g", g)
    checks.check_length(op, K, checks.MAX_FLOAT_K, "for float32 values of a sum")
    if g.dim() != 1:
        raise ValueError(f"{op}: g is {_checks.shape(g)}, expected [N]")
    with torch.no_grad():
        sigma = torch.sqrt(var + eps)

        def negative(dot: Tensor) -> Tensor:
            y = dot.to(torch.float32)
            y = y if scale is None else y * scale
            y = y if bias is None else y + bias
            return g * ((y - mu) / sigma) + beta < 0

        slope = torch.sign(g) * (1 if scale is None else torch.sign(scale))
        rising = slope > 0
        # The first dot of [-K, K] with y >= 0 on a rising line, with y < 0 on a falling one.
        low = torch.full(g.shape, -K, dtype=torch.int64, device=g.device)
        high = torch.full_like(low, K + 1)
        while (low < high).any():
            middle = (low + high) // 2
            beyond = negative(middle) != rising
            # A search that has ended stays where it is.
            high = torch.where(beyond, middle, high)
            low = torch.where(beyond | (low >= high), low, middle + 1)
        constant = negative(torch.zeros_like(low)).to(torch.int64)
        thresh = torch.where(slope == 0, constant, torch.where(rising, low, low - 1))
        return thresh.to(torch.int32), slope.to(torch.int8)


class QuantizationError(NamedTuple):
    """What binarising v = sin(omega w) loses.

    gamma: mean |v|, the best scale. qe: mean v^2 - gamma^2. relative: qe / mean v^2.
    l1: mean |v - sign v|.
    """

    gamma: float
    qe: float
    relative: float
    l1: float


def biper_qe(w: Tensor, omega: float) -> QuantizationError:
    """The quantisation error of BiPer for latent weights w, in float64.

    >>> import torch, nnkernels
    >>> round(nnkernels.binary.biper_qe(torch.tensor([0.0, torch.pi / 2]), 1.0).gamma, 6)
    0.5
    """
    op = "biper_qe"
    _checks.tensor(op, "w", w, (*checks.FLOATS, torch.float64))
    checks.check_omega(op, omega)
    v = torch.sin(omega * w.detach().double())
    gamma, power = v.abs().mean(), v.square().mean()
    qe = power - gamma.square()
    return QuantizationError(
        gamma.item(), qe.item(), (qe / power).item(), (1 - v.abs()).mean().item()
    )
