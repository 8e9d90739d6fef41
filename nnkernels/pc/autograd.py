"""Derivatives of the pc operators: that of the log-likelihood, refusals for the others."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nnkernels import _checks
from nnkernels._registration import register_single_backward
from nnkernels.pc.ops import CODEC_HINT, FLOWS_HINT

_ops = torch.ops.nnkernels
_library = torch.library.Library("nnkernels", "FRAGMENT")


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, pi, A, B, parent, order, mask):
        ll, u = _ops.pc_forward_fwd(x, pi, A, B, parent, order, mask)
        ctx.save_for_backward(x, pi, A, B, parent, order, mask)
        ctx.mark_non_differentiable(u)
        ctx.set_materialize_grads(False)
        return ll, u

    @staticmethod
    def backward(ctx, grad_ll, _):
        if grad_ll is None:
            return (None,) * 7
        _checks.refuse_tangents("pc_forward_bwd", grad_ll)
        gradients = _ops.pc_forward_bwd(grad_ll, *ctx.saved_tensors)
        needed = zip(gradients, ctx.needs_input_grad[1:4], strict=True)
        return None, *(g if need else None for g, need in needed), None, None, None


def _forward(x, pi, A, B, parent, order, mask=None):
    if not _checks.needs_grad("pc_forward", "", pi, A, B):
        return _ops.pc_forward_fwd(x, pi, A, B, parent, order, mask)
    _checks.refuse_functorch("pc_forward")
    return _Forward.apply(x, pi, A, B, parent, order, mask)


def _register_refusal(name, hint):
    """Makes operator `name` refuse tensors, also those in lists, that require a gradient."""
    operator = getattr(_ops, name).default

    def kernel(*inputs, **options):
        given = tree_leaves((inputs, options))
        _checks.refuse_gradients(name, hint, *(x for x in given if isinstance(x, Tensor)))
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*inputs, **options)

    _library.impl(name, kernel, "Autograd")


_library.impl("pc_forward", _forward, "Autograd")
register_single_backward("pc_forward")
_register_refusal("pc_flows", FLOWS_HINT)
_register_refusal("pc_em_update", FLOWS_HINT)
for _name in ("conditional_cdf", "intervals", "encode", "decode"):
    _register_refusal(f"pc_{_name}", CODEC_HINT)
