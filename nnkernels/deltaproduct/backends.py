"""What runs the deltaproduct operators where the compiled kernels do not: plain torch."""

import torch

from nnkernels._backend import install_plain, with_autograd
from nnkernels.deltaproduct import checks, reference


def _scan(*arguments):
    *inputs, n, scale, l2norm, output_final_state, save = arguments
    q, k, v, g, beta, initial_state, cu_seqlens = inputs
    o, state = reference.chunk_scan(
        *(q, k, v, g, beta, n, scale, initial_state, True, l2norm, cu_seqlens)
    )
    # Backward runs forward again and needs no states; the operator promises their shape.
    P = checks.checkpoints(*q.shape[:2], cu_seqlens)
    kept = state.new_zeros((P, *state.shape[1:]) if save else (0,))
    return o.contiguous(), state if output_final_state else state.new_empty(0), kept


def _scan_bwd(grad_o, grad_final, *arguments):
    *inputs, cu_seqlens, _checkpoints, n, scale, l2norm = arguments
    given = [x is not None for x in inputs]
    leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
    o, state = reference.chunk_scan(*leaves[:5], n, scale, leaves[5], True, l2norm, cu_seqlens)
    upstream = (grad_o, torch.zeros_like(state) if grad_final is None else grad_final)
    found = iter(
        torch.autograd.grad(
            (o, state), [x for x in leaves if x is not None], upstream, materialize_grads=True
        )
    )
    return tuple(next(found).contiguous() if present else state.new_empty(0) for present in given)


def _step(q, k, v, g, beta, state, slots, scale, l2norm):
    return reference.step(
        q, k, v, g, beta, state, slots, scale, l2norm, dtype=reference.state_dtype(q.dtype)
    )


def _state_map(k, v, g, beta, cu_seqlens, n, l2norm):
    return reference.state_map(
        k, v, g, beta, n, l2norm, cu_seqlens, dtype=reference.state_dtype(k.dtype)
    )


install_plain("deltaproduct_scan", _scan, plain_cuda=True)
install_plain("deltaproduct_scan_fwd", _scan, plain_cuda=True)
install_plain("deltaproduct_scan_bwd", with_autograd(_scan_bwd), plain_cuda=True)
install_plain("deltaproduct_step", _step, plain_cuda=True)
install_plain("deltaproduct_state_map", _state_map, plain_cuda=True)
