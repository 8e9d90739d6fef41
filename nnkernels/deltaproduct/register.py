"""Fake kernels of the deltaproduct operators, whose schemas and CPU kernels are C++."""

from nnkernels._registration import register_fake
from nnkernels.deltaproduct import checks
from nnkernels.deltaproduct.reference import state_dtype


def _scan(*arguments):
    q, k, v, g, beta, initial_state, cu_seqlens, n, scale, _, final, save = arguments
    name = "deltaproduct_scan"
    checks.check_scan(name, q, k, v, g, beta, initial_state, cu_seqlens, n, scale)
    (B, T, _, K), (H, V) = q.shape, v.shape[2:]
    wide = state_dtype(q.dtype)
    N, P = checks.sequences(B, cu_seqlens), checks.checkpoints(B, T, cu_seqlens)
    return (
        q.new_empty((B, T, H, V)),
        q.new_empty((N, H, K, V) if final else (0,), dtype=wide),
        q.new_empty((P, H, K, V) if save else (0,), dtype=wide),
    )


def _scan_bwd(grad_o, grad_final, *arguments):
    q, k, v, g, beta, initial_state, cu_seqlens, checkpoints, n, scale, _ = arguments
    name = "deltaproduct_scan_bwd"
    checks.check_scan(name, q, k, v, g, beta, initial_state, cu_seqlens, n, scale)
    checks.check_scan_bwd(name, grad_o, grad_final, q, k, v, cu_seqlens, checkpoints)
    absent = q.new_empty((0,), dtype=state_dtype(q.dtype))
    inputs = (q, k, v, g, beta, initial_state)
    return tuple(absent.clone() if x is None else x.new_empty(x.shape) for x in inputs)


def _step(q, k, v, g, beta, state, slots, scale, _):
    checks.check_step("deltaproduct_step", q, k, v, g, beta, state, slots, scale)
    return q.new_empty((q.shape[0], *v.shape[2:]))


def _state_map(k, v, g, beta, cu_seqlens, n, _):
    checks.check_state_map("deltaproduct_state_map", k, v, g, beta, cu_seqlens, n)
    K, (H, V), N = k.shape[3], v.shape[2:], checks.sequences(k.shape[0], cu_seqlens)
    wide = state_dtype(k.dtype)
    return k.new_empty((N, H, K, K), dtype=wide), k.new_empty((N, H, K, V), dtype=wide)


register_fake(("deltaproduct_scan", "deltaproduct_scan_fwd"), _scan)
register_fake(("deltaproduct_scan_bwd",), _scan_bwd)
register_fake(("deltaproduct_step",), _step)
register_fake(("deltaproduct_state_map",), _state_map)
