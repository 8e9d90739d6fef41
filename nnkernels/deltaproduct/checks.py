"""What the deltaproduct operators accept, and the sizes of what they return.

The public functions call `check_*` before any kernel, the fake kernels before they promise a
result. Errors are TypeError (kind, dtype) or ValueError (value, shape).
"""

import itertools
import math

import torch
from torch import Tensor

from nnkernels import _checks
from nnkernels.deltaproduct.reference import state_dtype

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Tokens between two states that are kept for backward.
CHECKPOINT_SPACING = 64


# ---- single arguments ----


def fold(op, name, value, tokens, n):
    """k, v or beta given as [B, T, n, ...] in the layout [B, T*n, ...] of the operators."""
    if list(value.shape[1:3]) != [tokens, n]:
        raise ValueError(
            f"{op}: {name} is {_checks.shape(value)}, expected [B, T={tokens}, "
            f"num_householder={n}, ...] or the two dimensions folded into one of {tokens * n} rows"
        )
    return value.flatten(1, 2)


def check_num_householder(op, n):
    _checks.integer(op, "num_householder", n)
    if n < 1:
        raise ValueError(f"{op}: num_householder must be at least 1, got {n}")


def check_scale(op, scale):
    _checks.real(op, "scale", scale)
    # Not math.isfinite, which cannot be traced with a symbolic size.
    if not abs(scale) < math.inf:
        raise ValueError(f"{op}: scale must be finite, got {scale}")


def _like_q(op, name, value, q, dtypes=None):
    _checks.tensor(op, name, value, dtypes or (q.dtype,))
    _checks.same_device(op, name, value, "q", q)


def _first(op, name, value):
    _checks.tensor(op, name, value, FLOATS)
    if value.dtype == torch.float64 and value.device.type == "cuda":
        raise TypeError(f"{op}: {name} has dtype float64, which runs on the CPU only")


def _dims(op, name, value, expected):
    """The value has as many dimensions as this list of their letters."""
    if value.dim() != len(expected.split(", ")):
        raise ValueError(f"{op}: {name} is {_checks.shape(value)}, expected [{expected}]")


def _match(op, name, value, expected, letters):
    """The value has this shape, whose letters are named."""
    if list(value.shape) != list(expected):
        sizes = ", ".join(f"{a}={b}" for a, b in zip(letters.split(), expected, strict=True))
        raise ValueError(f"{op}: {name} is {_checks.shape(value)}, expected [{sizes}]")


def _heads(op, H, Hk):
    # Key heads that no value head uses would get no gradient.
    if (Hk == 0 < H) or Hk > H or (Hk > 0 and H % Hk != 0):
        raise ValueError(
            f"{op}: v has H={H} heads and k has Hk={Hk}, expected H to be a multiple of Hk"
        )


def _key_size(op, K, V):
    if K == 0 or V == 0:
        raise ValueError(f"{op}: K={K} and V={V}, expected both to be at least 1")


def readable(value: Tensor) -> bool:
    """Whether the values are at hand: not while tracing, and not on a GPU, which would wait."""
    return (
        not torch.compiler.is_compiling()
        and type(value) is Tensor
        and value.device.type == "cpu"
        and not torch._C._len_torch_dispatch_stack()
    )


def check_cu_seqlens(op, cu_seqlens, like_name, like):
    """Offsets of the sequences that are packed into one batch row of `tokens` tokens."""
    _checks.tensor(op, "cu_seqlens", cu_seqlens, (torch.int32, torch.int64))
    _checks.same_device(op, "cu_seqlens", cu_seqlens, like_name, like)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(f"{op}: cu_seqlens is {_checks.shape(cu_seqlens)}, expected [N + 1]")
    if like.shape[0] != 1:
        raise ValueError(
            f"{op}: cu_seqlens needs B=1, all sequences in one row, got B={like.shape[0]}"
        )


def check_bounds(op, cu_seqlens, tokens):
    if not readable(cu_seqlens):
        return
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0:
        raise ValueError(f"{op}: cu_seqlens starts with {bounds[0]}, expected 0")
    for index, (start, end) in enumerate(itertools.pairwise(bounds)):
        if end < start:
            raise ValueError(
                f"{op}: cu_seqlens decreases from {start} to {end} at index {index + 1}"
            )
    if bounds[-1] > tokens:
        raise ValueError(
            f"{op}: cu_seqlens ends with {bounds[-1]}, expected at most T={tokens} (tokens, not "
            "micro-steps)"
        )


def check_gate(op, g, shape, n, like_name, like):
    _checks.tensor(op, "g", g, FLOATS)
    _checks.same_device(op, "g", g, like_name, like)
    B, T, H = shape
    if list(g.shape) != [B, T, H]:
        hint = ""
        if n > 1 and list(g.shape) in ([B, T * n, H], [B, T, n, H]):
            hint = "; there is one gate per token, not one per micro-step"
        raise ValueError(f"{op}: g is {_checks.shape(g)}, expected [B={B}, T={T}, H={H}]{hint}")


def check_initial_state(op, state, q, shape):
    wide = (torch.float64,) if q.dtype == torch.float64 else ()
    _checks.tensor(op, "initial_state", state, (torch.float32, torch.bfloat16, *wide))
    _checks.same_device(op, "initial_state", state, "q", q)
    _match(op, "initial_state", state, shape, "N H K V")


# ---- one check per operator ----


def sequences(B, cu_seqlens):
    return B if cu_seqlens is None else cu_seqlens.shape[0] - 1


def checkpoints(B, T, cu_seqlens):
    """P: the states that forward keeps for backward."""
    if cu_seqlens is None:
        return B * ((T + CHECKPOINT_SPACING - 1) // CHECKPOINT_SPACING)
    return T // CHECKPOINT_SPACING + sequences(B, cu_seqlens)


def check_scan(op, q, k, v, g, beta, initial_state, cu_seqlens, num_householder, scale):
    """q [B, T, Hk, K], k [B, T*n, Hk, K], v [B, T*n, H, V], g [B, T, H], beta [B, T*n, H]."""
    check_num_householder(op, num_householder)
    check_scale(op, scale)
    _first(op, "q", q)
    _like_q(op, "k", k, q)
    _like_q(op, "v", v, q)
    _like_q(op, "beta", beta, q, (q.dtype, torch.float32))
    _dims(op, "q", q, "B, T, Hk, K")
    _dims(op, "v", v, "B, T*n, H, V")
    (B, T, Hk, K), n = q.shape, num_householder
    H, V = v.shape[2:]
    _match(op, "k", k, (B, T * n, Hk, K), "B T*num_householder Hk K")
    _match(op, "v", v, (B, T * n, H, V), "B T*num_householder H V")
    _match(op, "beta", beta, (B, T * n, H), "B T*num_householder H")
    _heads(op, H, Hk)
    _key_size(op, K, V)
    if g is not None:
        check_gate(op, g, (B, T, H), n, "q", q)
    if cu_seqlens is not None:
        check_cu_seqlens(op, cu_seqlens, "q", q)
        check_bounds(op, cu_seqlens, T)
    if initial_state is not None:
        check_initial_state(op, initial_state, q, (sequences(B, cu_seqlens), H, K, V))


def check_scan_bwd(op, grad_o, grad_final, q, k, v, cu_seqlens, checkpoint_states):
    """What backward takes beyond the arguments of the forward."""
    (B, T, _, K), (H, V) = q.shape, v.shape[2:]
    _like_q(op, "grad_o", grad_o, q)
    _match(op, "grad_o", grad_o, (B, T, H, V), "B T H V")
    wide = (state_dtype(q.dtype),)
    _like_q(op, "checkpoints", checkpoint_states, q, wide)
    kept = (checkpoints(B, T, cu_seqlens), H, K, V)
    _match(op, "checkpoints", checkpoint_states, kept, "P H K V")
    if grad_final is not None:
        _like_q(op, "grad_final", grad_final, q, wide)
        shape = (sequences(B, cu_seqlens), H, K, V)
        _match(op, "grad_final", grad_final, shape, "N H K V")


def check_step(op, q, k, v, g, beta, state, slots, scale):
    """q [B, Hk, K], k [B, n, Hk, K], v [B, n, H, V], g [B, H], beta [B, n, H]."""
    check_scale(op, scale)
    _first(op, "q", q)
    _like_q(op, "k", k, q)
    _like_q(op, "v", v, q)
    _like_q(op, "beta", beta, q, (q.dtype, torch.float32))
    _dims(op, "q", q, "B, Hk, K")
    _dims(op, "v", v, "B, n, H, V")
    (B, Hk, K), (n, H, V) = q.shape, v.shape[1:]
    check_num_householder(op, n)
    _match(op, "k", k, (B, n, Hk, K), "B n Hk K")
    _match(op, "v", v, (B, n, H, V), "B n H V")
    _match(op, "beta", beta, (B, n, H), "B n H")
    _heads(op, H, Hk)
    _key_size(op, K, V)
    if g is not None:
        _checks.tensor(op, "g", g, FLOATS)
        _checks.same_device(op, "g", g, "q", q)
        hint = "; there is one gate per token, not one per micro-step" if g.dim() == 3 else ""
        if list(g.shape) != [B, H]:
            raise ValueError(f"{op}: g is {_checks.shape(g)}, expected [B={B}, H={H}]{hint}")
    states = (torch.float64,) if q.dtype == torch.float64 else (torch.float32, torch.bfloat16)
    _like_q(op, "state", state, q, states)
    pool = state.shape[0] if slots is not None and state.dim() == 4 else B
    _match(op, "state", state, (pool, H, K, V), "B H K V" if slots is None else "pool H K V")
    if slots is not None:
        _like_q(op, "slots", slots, q, (torch.int64,))
        _match(op, "slots", slots, (B,), "B")
        check_slots(op, slots, pool)


def check_slots(op, slots, pool):
    if not readable(slots):
        return
    seen = set()
    for slot in slots.tolist():
        if not -1 <= slot < pool:
            raise ValueError(f"{op}: slots holds {slot}, expected -1 to {pool - 1}")
        if slot in seen:
            raise ValueError(f"{op}: slots holds {slot} twice; a state can be updated once")
        if slot >= 0:
            seen.add(slot)


def check_state_map(op, k, v, g, beta, cu_seqlens, num_householder):
    """k [B, T*n, Hk, K], v [B, T*n, H, V], g [B, T, H], beta [B, T*n, H]."""
    check_num_householder(op, num_householder)
    _first(op, "k", k)
    for name, value, dtypes in (("v", v, (k.dtype,)), ("beta", beta, (k.dtype, torch.float32))):
        _checks.tensor(op, name, value, dtypes)
        _checks.same_device(op, name, value, "k", k)
    _dims(op, "k", k, "B, T*n, Hk, K")
    _dims(op, "v", v, "B, T*n, H, V")
    (B, rows, Hk, K), (H, V), n = k.shape, v.shape[2:], num_householder
    if rows % n != 0:
        raise ValueError(f"{op}: k has {rows} rows, expected a multiple of num_householder={n}")
    _match(op, "v", v, (B, rows, H, V), "B T*num_householder H V")
    _match(op, "beta", beta, (B, rows, H), "B T*num_householder H")
    _heads(op, H, Hk)
    _key_size(op, K, V)
    if g is not None:
        check_gate(op, g, (B, rows // n, H), n, "k", k)
    if cu_seqlens is not None:
        check_cu_seqlens(op, cu_seqlens, "k", k)
        check_bounds(op, cu_seqlens, rows // n)
