"""The (Gated) DeltaProduct scan in plain PyTorch: the definition every kernel is tested against.

DeltaProduct ("Improving State-Tracking in Linear RNNs via Householder Products", arXiv 2502.10297)
keeps a matrix S [K, V] per head. A token decays it once, then takes n micro-steps, each a
generalised Householder reflection of S and a rank-one write, and reads the result:

    S <- exp(g_t) S
    for j = 1..n:  S <- S + beta_tj k_tj (v_tj - S^T k_tj)^T  =  (I - beta k k^T) S + beta k v^T
    o_t = scale * S^T q_t

n = 1 is (Gated) DeltaNet. `scan` is this loop and nothing else. `chunk_scan` is the same map with a
chunk of tokens at a time as matrix products and one triangular solve: what to run in plain torch.
Both are differentiable by autograd.

Shapes, with value head h of H using key head h // (H / Hk):

    q [B, T, Hk, K]        k [B, T*n, Hk, K]      v [B, T*n, H, V]      row t*n + j is micro-step j
    g [B, T, H] or None    beta [B, T*n, H]       initial_state [N, H, K, V] or None
    o [B, T, H, V]         final_state [N, H, K, V]

N is B, or with `cu_seqlens` [N+1] (which counts tokens and needs B = 1) the number of sequences.
Tokens after the last boundary give zeros.

`dtype` is what is computed in, float64 by default. o comes in the dtype of q, a state in float32,
or float64 where q is float64.
"""

import itertools

import torch
from torch import Tensor

_NORM_EPS = 1e-6


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states and gates that go with q, k and v of this dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def l2norm(x: Tensor) -> Tensor:
    """x / sqrt(sum x^2 + 1e-6) along the last dimension; a zero vector stays zero.

    >>> l2norm(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _NORM_EPS)


def compose_state_maps(A2: Tensor, M2: Tensor, A1: Tensor, M1: Tensor) -> tuple[Tensor, Tensor]:
    """The map S -> A2 (A1 S + M1) + M2 as (A2 A1, A2 M1 + M2)."""
    return A2 @ A1, A2 @ M1 + M2


# ---- one stretch of tokens, heads first ----
# q [B, H, T, K], k [B, H, T*n, K], v [B, H, T*n, V], decay [B, H, T], beta [B, H, T*n, 1]


def _loop(q, k, v, decay, beta, S, n):
    """The definition, token by token and micro-step by micro-step."""
    out = []
    for t in range(q.shape[2]):
        if decay is not None:
            S = decay[:, :, t, None, None] * S
        for row in range(t * n, (t + 1) * n):
            key = k[:, :, row, :, None]
            error = v[:, :, row, None, :] - key.mT @ S
            S = S + (beta[:, :, row, None] * key) @ error
        out.append(q[:, :, t, None, :] @ S)
    o = torch.cat(out, 2) if out else v[:, :, :0]
    return o, S


def _span_decays(decay, T):
    """exp(g_{s+1} + ... + g_t) for s <= t, else 0, as running products: exp(g) may be 0."""
    later = torch.ones(T, T, dtype=torch.bool, device=decay.device).tril(-1)
    steps = torch.where(later, decay[..., :, None], 1)
    return torch.cumprod(steps, -2).tril()


def _chunk(q, k, v, decay, beta, S, n):
    """The same for a few tokens at once: D solves (I + L) D = beta (V - exp(G) K S)."""
    T = q.shape[2]
    if decay is None:
        spans = torch.ones(T, T, dtype=q.dtype, device=q.device).tril()
        since_start = torch.ones(T, 1, dtype=q.dtype, device=q.device)
    else:
        spans = _span_decays(decay, T)
        since_start = torch.cumprod(decay, -1)[..., None]
    to_rows = spans.repeat_interleave(n, -1)
    from_rows = to_rows.repeat_interleave(n, -2)
    L = (beta * (k @ k.mT) * from_rows).tril(-1)
    rows_since_start = since_start.repeat_interleave(n, -2)
    R = beta * (v - rows_since_start * (k @ S))
    unit = torch.eye(T * n, dtype=q.dtype, device=q.device)
    D = torch.linalg.solve_triangular(unit + L, R, upper=False, unitriangular=True)
    o = since_start * (q @ S) + (q @ k.mT * to_rows) @ D
    to_end = to_rows[..., -1, :, None]
    S = since_start[..., -1:, :] * S + (to_end * k).mT @ D
    return o, S


def _chunks(q, k, v, decay, beta, S, n, size):
    out = [v[:, :, :0]]
    for start in range(0, q.shape[2], size):
        tokens = slice(start, start + size)
        rows = slice(start * n, (start + size) * n)
        gates = None if decay is None else decay[:, :, tokens]
        o, S = _chunk(q[:, :, tokens], k[:, :, rows], v[:, :, rows], gates, beta[:, :, rows], S, n)
        out.append(o)
    return torch.cat(out, 2), S


# ---- a whole call ----


def _heads_first(x, heads):
    return x.transpose(1, 2).repeat_interleave(heads // max(x.shape[2], 1), 1)


def _run(stretch, q, k, v, g, beta, n, scale, initial_state, l2, cu_seqlens, dtype):
    (B, T, _, K), (H, V) = q.shape, v.shape[2:]
    scale = K**-0.5 if scale is None else scale
    bounds = None if cu_seqlens is None else cu_seqlens.tolist()
    if bounds is not None:
        # What comes after the last sequence takes no part, NaN or not.
        q, g = q[:, : bounds[-1]], None if g is None else g[:, : bounds[-1]]
        k, v, beta = (x[:, : bounds[-1] * n] for x in (k, v, beta))
    q, k, v, beta = (x.to(dtype) for x in (q, k, v, beta))
    if l2:
        q, k = l2norm(q), l2norm(k)
    q, k, v = (_heads_first(x, H) for x in (q * scale, k, v))
    beta = beta.transpose(1, 2)[..., None]
    decay = None if g is None else g.to(dtype).exp().transpose(1, 2)
    count = B if bounds is None else len(bounds) - 1
    S = q.new_zeros(count, H, K, V) if initial_state is None else initial_state.to(dtype)
    if bounds is None:
        return stretch(q, k, v, decay, beta, S, n)
    out, states = [], [S[:0]]
    for index, (start, end) in enumerate(itertools.pairwise(bounds)):
        rows = slice(start * n, end * n)
        o, state = stretch(
            q[:, :, start:end],
            k[:, :, rows],
            v[:, :, rows],
            None if decay is None else decay[:, :, start:end],
            beta[:, :, rows],
            S[index : index + 1],
            n,
        )
        out.append(o)
        states.append(state)
    out.append(q.new_zeros(B, H, T - bounds[-1], V))
    return torch.cat(out, 2), torch.cat(states)


def _result(o, S, dtype, output_final_state):
    final = S.to(state_dtype(dtype)) if output_final_state else None
    return o.transpose(1, 2).to(dtype), final


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
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor | None]:
    """(o, final_state or None) by the loop over tokens; see the module.

    >>> one = torch.ones(1, 1, 1, 1)
    >>> scan(one, one, 3 * one, None, one[..., 0])[0]
    tensor([[[[3.]]]])
    """
    o, S = _run(
        *(_loop, q, k, v, g, beta, num_householder, scale),
        *(initial_state, use_qk_l2norm, cu_seqlens, dtype),
    )
    return _result(o, S, q.dtype, output_final_state)


def chunk_scan(
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
    dtype: torch.dtype | None = None,
    chunk: int = 16,
) -> tuple[Tensor, Tensor | None]:
    """`scan` by chunks of `chunk` tokens, in float32 (float64 for float64 inputs) by default."""

    def stretch(*arguments):
        return _chunks(*arguments, size=chunk)

    o, S = _run(
        *(stretch, q, k, v, g, beta, num_householder, scale),
        *(initial_state, use_qk_l2norm, cu_seqlens, dtype or state_dtype(q.dtype)),
    )
    return _result(o, S, q.dtype, output_final_state)


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
    *,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """One token for every row of the batch; `state` [pool, H, K, V] is updated in place.

    q [B, Hk, K], k [B, n, Hk, K], v [B, n, H, V], g [B, H] or None, beta [B, n, H] -> o [B, H, V].
    Row b uses state[slots[b]], or state[b] without `slots`; a slot of -1 skips the row (o = 0).
    """
    chosen = torch.arange(q.shape[0]) if slots is None else slots.long()
    live = chosen >= 0
    chosen = chosen[live]
    o = q.new_zeros(q.shape[0], *v.shape[2:])
    gates = None if g is None else g[live, None]
    out, S = _run(
        *(_loop, q[live, None], k[live], v[live], gates, beta[live], k.shape[1], scale),
        *(state[chosen], use_qk_l2norm, None, dtype),
    )
    o[live] = out[:, :, 0].to(q.dtype)
    state[chosen] = S.to(state.dtype)
    return o


def state_map(
    k: Tensor,
    v: Tensor,
    g: Tensor | None,
    beta: Tensor,
    num_householder: int = 1,
    use_k_l2norm: bool = False,
    cu_seqlens: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """(A [N, H, K, K], M [N, H, K, V]) such that a sequence takes the state S to A S + M."""
    K, n = k.shape[3], num_householder
    k = l2norm(k.to(dtype)) if use_k_l2norm else k.to(dtype)
    out = state_dtype(v.dtype)
    v = v.to(dtype)
    q = k[:, ::n]
    count = k.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    unit = torch.eye(K, dtype=dtype, device=k.device).expand(count, v.shape[2], K, K)
    no_write = v.new_zeros(*v.shape[:3], K)
    options = {"num_householder": n, "output_final_state": True, "cu_seqlens": cu_seqlens}
    A = scan(q, k, no_write, g, beta, initial_state=unit, dtype=dtype, **options)[1]
    M = scan(q, k, v, g, beta, dtype=dtype, **options)[1]
    return A.to(out), M.to(out)
