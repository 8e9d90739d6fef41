"""Derivatives of the deltaproduct operators: that of the scan, refusals for the others."""

import torch

from nnkernels import _checks
from nnkernels._registration import register_refusal, register_single_backward
from nnkernels.deltaproduct.ops import MAP_HINT, STEP_HINT

_ops = torch.ops.nnkernels
_library = torch.library.Library("nnkernels", "FRAGMENT")


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, options, *tensors):
        n, scale, l2norm, output_final_state = options
        out = _ops.deltaproduct_scan_fwd(*tensors, *options, True)
        o, final_state, checkpoints = out
        ctx.save_for_backward(*tensors, checkpoints)
        ctx.options = n, scale, l2norm
        ctx.mark_non_differentiable(checkpoints, *(() if output_final_state else (final_state,)))
        ctx.set_materialize_grads(False)
        return o, final_state, checkpoints

    @staticmethod
    def backward(ctx, grad_o, grad_final, _):
        _checks.refuse_tangents("deltaproduct_scan_bwd", grad_o, grad_final)
        *tensors, checkpoints = ctx.saved_tensors
        q, _, v, *_ = tensors
        if grad_o is None:
            grad_o = q.new_zeros((*q.shape[:2], *v.shape[2:]))
        gradients = _ops.deltaproduct_scan_bwd(
            grad_o, grad_final, *tensors, checkpoints, *ctx.options
        )
        dq, dk, dv, dg, dbeta, dinitial = gradients
        given = zip(
            (dq, dk, dv, dg, dbeta, dinitial), tensors, ctx.needs_input_grad[1:], strict=False
        )
        return (
            None,
            *(gradient.to(value.dtype) if need else None for gradient, value, need in given),
            None,
        )


def _scan(*arguments):
    tensors, (*options, save) = arguments[:7], arguments[7:]
    if not _checks.needs_grad("deltaproduct_scan", "", *tensors[:6]):
        return _ops.deltaproduct_scan_fwd(*tensors, *options, save)
    _checks.refuse_functorch("deltaproduct_scan")
    return _Scan.apply(options, *tensors)


_library.impl("deltaproduct_scan", _scan, "Autograd")
register_single_backward("deltaproduct_scan")
register_refusal("deltaproduct_step", STEP_HINT)
register_refusal("deltaproduct_state_map", MAP_HINT)
