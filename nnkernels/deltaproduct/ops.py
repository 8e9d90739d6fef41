"""The public deltaproduct functions: check the arguments, then call the operator.

Where no input needs a gradient `scan` calls the `_fwd` operator, which is cheaper than the one that
carries the autograd; the results are the same.

Letters: B batch, T tokens, n micro-steps a token (`num_householder`), H value heads, Hk query and
key heads (value head h uses key head h // (H / Hk)), K and V sizes of a key and a value, N states:
B, or the number of sequences that `cu_seqlens` packs into one row.
"""

import torch
from torch import Tensor

from nnkernels import _checks
from nnkernels.deltaproduct import checks
from nnkernels.deltaproduct.reference import state_dtype

_SCAN = torch.ops.nnkernels.deltaproduct_scan.default
_SCAN_FWD = torch.ops.nnkernels.deltaproduct_scan_fwd.default
_STEP = torch.ops.nnkernels.deltaproduct_step.default
_STATE_MAP = torch.ops.nnkernels.deltaproduct_state_map.default

# What to do where there is no derivative.
STEP_HINT = "use scan, or call it under torch.no_grad()"
MAP_HINT = "detach the inputs or call it under torch.no_grad()"


def _autocast(*inputs: Tensor) -> tuple[Tensor, ...]:
    """Under autocast the inputs in its dtype, as for torch.matmul; float64 inputs stay."""
    first = inputs[0]
    device = first.device.type if isinstance(first, Tensor) else None
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return inputs
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() and x.itemsize <= 4 else x
        for x in inputs
    )


def _folded(op: str, name: str, value: Tensor, dims: int, tokens: int, n: int) -> Tensor:
    """`value` with tokens and micro-steps in one dimension, as the operators take it."""
    if isinstance(value, Tensor) and value.dim() == dims + 1:
        return checks.fold(op, name, value, tokens, n)
    return value


def _widened(op: str, name: str, value: Tensor | None, like: Tensor) -> Tensor | None:
    """Gates and states in the dtype that the operators take."""
    if value is None:
        return None
    _checks.tensor(op, name, value, checks.FLOATS)
    dtype = state_dtype(like.dtype)
    return value if value.dtype == dtype else value.to(dtype)


def scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    num_householder: int = 1,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    use_qk_l2norm_in_kernel: bool | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The (Gated) DeltaProduct scan of arXiv 2502.10297; n = 1 is (Gated) DeltaNet.

    With S [K, V] the state of a head, every token decays it, takes n micro-steps, and reads:

        S <- exp(g_t) S;  n times  S <- S + beta k (v - S^T k)^T;  o_t = scale * S^T q_t

    Args:
        q: [B, T, Hk, K], float32, bfloat16, float16, or float64 on the CPU. Under autocast q, k and
            v are cast as torch.matmul would.
        k: [B, T*n, Hk, K] with row t*n + j the micro-step j of token t, or [B, T, n, Hk, K].
        v: [B, T*n, H, V] or [B, T, n, H, V].
        g: [B, T, H], the log of the gate, <= 0; -inf resets the state; None for no gate.
        beta: [B, T*n, H] or [B, T, n, H], used as given: sigmoid for eigenvalues 1 - beta in
            [0, 1], twice that for [-1, 1]. In the dtype of q, or float32.
        num_householder: n.
        scale: default K^-0.5.
        initial_state: [N, H, K, V], float32 (float64 with float64 inputs) or bfloat16.
        output_final_state: whether the second result is the final state, else None.
        use_qk_l2norm: q and every k divided by sqrt(|x|^2 + 1e-6) first; also by the name
            use_qk_l2norm_in_kernel.
        cu_seqlens: int32 or int64 [N + 1], where the sequences of one row (B = 1) start, in tokens;
            tokens after the last boundary give zeros.

    Returns:
        o [B, T, H, V] in the dtype of q, and the final state [N, H, K, V] in float32 (float64), or
        None. Differentiable once in q, k, v, g, beta and initial_state.

    Raises:
        TypeError: a dtype or kind. ValueError: a shape, device or value. RuntimeError: double
        backward.

    Guarantee:
        Computed in float32 (float64 for float64 inputs), the state never rounded below that; the
        same bits from run to run and for every number of threads. With |k| <= 1, beta in [0, 2] and
        g <= 0 the relative error of a float32 result is below 5e-6 for T <= 4096 (2e-5 at beta = 2
        without gates); else growth is the caller's.

    >>> import torch, nnkernels
    >>> one = torch.ones(1, 1, 1, 1)
    >>> nnkernels.deltaproduct.scan(one, one, 3 * one, None, one[..., 0])[0]
    tensor([[[[3.]]]])
    """
    op = "deltaproduct_scan"
    if use_qk_l2norm_in_kernel is not None:
        use_qk_l2norm = use_qk_l2norm_in_kernel
    _checks.boolean(op, "use_qk_l2norm", use_qk_l2norm)
    _checks.boolean(op, "output_final_state", output_final_state)
    checks.check_num_householder(op, num_householder)
    q, k, v = _autocast(q, k, v)
    _checks.tensor(op, "q", q, checks.FLOATS)
    if q.dim() == 4:
        T, n = q.shape[1], num_householder
        k = _folded(op, "k", k, 4, T, n)
        v = _folded(op, "v", v, 4, T, n)
        beta = _folded(op, "beta", beta, 3, T, n)
        if scale is None:
            # K = 0 is refused below.
            scale = max(q.shape[3], 1) ** -0.5
    scale = 1.0 if scale is None else scale
    checks.check_scan(op, q, k, v, g, beta, initial_state, cu_seqlens, num_householder, scale)
    g = _widened(op, "g", g, q)
    initial_state = _widened(op, "initial_state", initial_state, q)
    record = _checks.needs_grad(op, "", q, k, v, g, beta, initial_state)
    operator = _SCAN if record else _SCAN_FWD
    o, final_state, _ = operator(
        *(q, k, v, g, beta, initial_state, cu_seqlens, num_householder, float(scale)),
        *(use_qk_l2norm, output_final_state, record),
    )
    return o, final_state if output_final_state else None


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    state: Tensor,
    slots: Tensor | None = None,
    scale: float | None = None,
    use_qk_l2norm: bool = False,
) -> Tensor:
    """One token of `scan` for every row of a batch, with the states updated in place: decoding.

    Args:
        q: [B, Hk, K]; k: [B, n, Hk, K]; v: [B, n, H, V]; g: [B, H] or None; beta: [B, n, H]; dtypes
            as in `scan`.
        state: [B, H, K, V], or with `slots` a pool [pool, H, K, V]: float32 or bfloat16 (rounded
            when stored), float64 with float64 inputs.
        slots: int64 [B], the state of the pool that each row uses; -1 skips the row, whose o is 0.
            No state may be used twice.
        scale, use_qk_l2norm: as in `scan`.

    Returns:
        o [B, H, V] in the dtype of q. Not differentiable.

    Raises:
        TypeError, ValueError: as `scan`, and for a state that requires a gradient. RuntimeError:
        another input that requires one.

    >>> import torch, nnkernels
    >>> one, state = torch.ones(1, 1, 1), torch.zeros(1, 1, 1, 1)
    >>> nnkernels.deltaproduct.step(one, one[None], 3 * one[None], None, one, state)
    tensor([[[3.]]])
    >>> state
    tensor([[[[3.]]]])
    """
    op = "deltaproduct_step"
    _checks.boolean(op, "use_qk_l2norm", use_qk_l2norm)
    q, k, v = _autocast(q, k, v)
    if scale is None:
        _checks.tensor(op, "q", q, checks.FLOATS)
        scale = max(q.shape[-1], 1) ** -0.5 if q.dim() > 0 else 1.0
    checks.check_step(op, q, k, v, g, beta, state, slots, scale)
    if state.requires_grad:
        raise ValueError(f"{op}: state requires a gradient, but it is updated in place; detach it")
    _checks.refuse_gradients(op, STEP_HINT, q, k, v, g, beta)
    g = _widened(op, "g", g, q)
    arguments = q, k, v, g, beta, state, slots, float(scale), use_qk_l2norm
    if torch.compiler.is_compiling():
        return _STEP(*arguments)
    # Nothing asks for a gradient: passing autograd by saves 5 us a token.
    with torch._C._AutoDispatchBelowAutograd():
        return _STEP(*arguments)


def state_map(
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    num_householder: int = 1,
    use_k_l2norm: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What a stretch of tokens does to a state S, whatever S is: S -> A S + M.

    Args:
        k, v, g, beta, num_householder, cu_seqlens: as in `scan`. use_k_l2norm: divides every k by
        its length first.

    Returns:
        A [N, H, K, K] and M [N, H, K, V] in float32 (float64 for float64 inputs). Not
        differentiable. `compose_state_maps` joins the maps of two stretches.

    Raises:
        TypeError, ValueError: as `scan`. RuntimeError: an input that requires a gradient.

    >>> import torch, nnkernels
    >>> one = torch.ones(1, 1, 1, 1)
    >>> nnkernels.deltaproduct.state_map(one, 3 * one, None, 2 * one[..., 0])
    (tensor([[[[-1.]]]]), tensor([[[[6.]]]]))
    """
    op = "deltaproduct_state_map"
    _checks.boolean(op, "use_k_l2norm", use_k_l2norm)
    checks.check_num_householder(op, num_householder)
    k, v = _autocast(k, v)
    _checks.tensor(op, "k", k, checks.FLOATS)
    n = num_householder
    T = k.shape[1] if k.dim() == 5 else k.shape[1] // n if k.dim() == 4 else 0
    k = _folded(op, "k", k, 4, T, n)
    v = _folded(op, "v", v, 4, T, n)
    beta = _folded(op, "beta", beta, 3, T, n)
    checks.check_state_map(op, k, v, g, beta, cu_seqlens, n)
    _checks.refuse_gradients(op, MAP_HINT, k, v, g, beta)
    g = _widened(op, "g", g, k)
    return _STATE_MAP(k, v, g, beta, cu_seqlens, n, use_k_l2norm)
