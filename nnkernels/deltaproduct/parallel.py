"""One sequence over the ranks of a process group: `nnkernels.distributed.deltaproduct_cp`.

Every rank holds consecutive tokens. What its tokens do to a state is a map S -> A S + M that does
not depend on the state, so the ranks can find out at once: all gather all maps and compose those
before their own ("gather"). The gradient of a state goes back by the transposed maps. The other way
is to hand the state from rank to rank, one group of heads after the other ("chain"), which needs no
maps and no second look at the tokens, but as many groups as there are ranks to keep all of them
busy.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from nnkernels import _checks
from nnkernels.deltaproduct import checks
from nnkernels.deltaproduct.reference import state_dtype

METHODS = ("gather", "chain")
_ops = torch.ops.nnkernels


def deltaproduct_cp(
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
    *,
    group: dist.ProcessGroup | None = None,
    method: str = "gather",
) -> tuple[Tensor, Tensor | None]:
    """`deltaproduct.scan` of a sequence whose tokens lie on the ranks of a group, in their order.

    Args:
        q, k, v, g, beta, num_householder, scale, use_qk_l2norm: as in `scan`, this rank's tokens;
            ranks may have different numbers of them.
        initial_state: the state before the first rank's tokens; other ranks may leave it out.
        output_final_state: whether to return the state after this rank's tokens.
        group: the process group; default all ranks.
        method: "gather" exchanges (K + V) K numbers per head at once; "chain" hands states on, for
            at least four times as many key heads as ranks.

    Returns:
        o of this rank's tokens and the state after them, or None. Differentiable as `scan`; all
        ranks must take part in backward, from o or the state.

    Raises: as `scan`; ValueError for another method.
    """
    op = "deltaproduct_cp"
    _checks.choice(op, "method", method, METHODS)
    scale = max(q.shape[-1], 1) ** -0.5 if scale is None else float(scale)
    rank = dist.get_rank(group)
    if rank > 0:
        initial_state = None
    checks.check_scan(op, q, k, v, g, beta, initial_state, None, num_householder, scale)
    wide = state_dtype(q.dtype)
    g = None if g is None else g.to(wide)
    (B, _, _, K), (H, V) = q.shape, v.shape[2:]
    if initial_state is None:
        initial_state = q.new_zeros((B, H, K, V), dtype=wide)
    else:
        initial_state = initial_state.to(wide)
    options = num_householder, scale, use_qk_l2norm
    function = _Gather if method == "gather" else _Chain
    # Every rank must be asked for its share of backward, whichever inputs need gradients.
    anchor = torch.zeros((), requires_grad=torch.is_grad_enabled())
    o, final_state = function.apply(anchor, group, options, q, k, v, g, beta, initial_state)
    return o, final_state if output_final_state else None


def _forward(options, tensors, state):
    """o, the final state and the checkpoints of this rank's tokens."""
    return _ops.deltaproduct_scan_fwd(*tensors, state, None, *options, True, True)


def _upstream(ctx, grad_o, grad_final, q, v, state):
    _checks.refuse_tangents("deltaproduct_cp", grad_o, grad_final)
    if grad_o is None:
        grad_o = q.new_zeros((*q.shape[:2], *v.shape[2:]))
    return grad_o, torch.zeros_like(state) if grad_final is None else grad_final


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchor, group, options, *inputs):
        *tensors, state = inputs
        n, _, l2norm = options
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        A, M = _ops.deltaproduct_state_map(*tensors[1:], None, n, l2norm)
        own = torch.cat([A, M], 3)
        maps = [torch.empty_like(own) for _ in range(size)]
        dist.all_gather(maps, own, group=group)
        # The first rank alone has a state to start from.
        state = state.contiguous()
        dist.broadcast(state, dist.get_global_rank(group or dist.group.WORLD, 0), group=group)
        K = A.shape[3]
        for other in maps[:rank]:
            state = other[..., :K] @ state + other[..., K:]
        o, final_state, checkpoints = _forward(options, tensors, state)
        later = [other[..., :K].clone() for other in maps[rank + 1 :]]
        ctx.save_for_backward(*tensors, state, checkpoints, *later)
        ctx.options, ctx.group = options, group
        ctx.set_materialize_grads(False)
        return o, final_state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_o, grad_final):
        q, k, v, g, beta, state, checkpoints, *later = ctx.saved_tensors
        rank, size = dist.get_rank(ctx.group), dist.get_world_size(ctx.group)
        grad_o, grad_final = _upstream(ctx, grad_o, grad_final, q, v, state)

        def gradients(end):
            return _ops.deltaproduct_scan_bwd(
                grad_o, end, q, k, v, g, beta, state, None, checkpoints, *ctx.options
            )

        found = gradients(grad_final)
        own = found[-1].contiguous()
        starts = [torch.empty_like(own) for _ in range(size)]
        dist.all_gather(starts, own, group=ctx.group)
        # What later ranks ask of the state after this one's tokens.
        end = torch.zeros_like(own)
        for A, start in zip(reversed(later), reversed(starts[rank + 1 :]), strict=True):
            end = A.mT @ end + start
        if later:
            found = gradients(grad_final + end)
        return _returned(rank, g, found)


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchor, group, options, *inputs):
        *tensors, state = inputs
        previous, following = _neighbours(group)
        parts, sent = [], []
        for part in _head_parts(tensors, state):
            *own, start = part
            if previous is not None:
                start = torch.empty_like(start).contiguous()
                dist.recv(start, previous, group=group)
            o, end, checkpoints = _forward(options, own, start)
            if following is not None:
                sent.append((dist.isend(end, following, group=group), end))
            parts.append((o, end, checkpoints, start))
        for work, _ in sent:
            work.wait()
        o, final_state, checkpoints, start = (
            torch.cat(values, dim)
            for values, dim in zip(zip(*parts, strict=True), (2, 1, 1, 1), strict=True)
        )
        ctx.save_for_backward(*tensors, start, checkpoints)
        ctx.options, ctx.group = options, group
        ctx.set_materialize_grads(False)
        return o, final_state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_o, grad_final):
        *tensors, state, checkpoints = ctx.saved_tensors
        previous, following = _neighbours(ctx.group)
        grad_o, grad_final = _upstream(ctx, grad_o, grad_final, tensors[0], tensors[2], state)
        parts, sent = [], []
        for *own, start, kept, end, g_o in _head_parts(
            tensors, state, checkpoints, grad_final, grad_o=grad_o
        ):
            if following is not None:
                later = torch.empty_like(end).contiguous()
                dist.recv(later, following, group=ctx.group)
                end = end + later
            kept = kept.contiguous()
            found = _ops.deltaproduct_scan_bwd(g_o, end, *own, start, None, kept, *ctx.options)
            if previous is not None:
                start = found[-1].contiguous()
                sent.append((dist.isend(start, previous, group=ctx.group), start))
            parts.append(found)
        for work, _ in sent:
            work.wait()
        g = tensors[3]
        dims = (2, 2, 2, 0 if g is None else 2, 2, 1)
        found = [torch.cat(x, dim) for x, dim in zip(zip(*parts, strict=True), dims, strict=True)]
        return _returned(dist.get_rank(ctx.group), g, found)


def _returned(rank, g, found):
    """The gradients of _Gather's and _Chain's inputs; the first rank alone has an initial state."""
    *found, dinitial = found
    if g is None:
        found[3] = None
    return None, None, None, *found, dinitial if rank == 0 else None


def _neighbours(group):
    """The global ranks before and after this one, None at the ends."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    whole = group or dist.group.WORLD
    return (
        dist.get_global_rank(whole, rank - 1) if rank > 0 else None,
        dist.get_global_rank(whole, rank + 1) if rank + 1 < size else None,
    )


def _head_parts(tensors, *states, grad_o=None):
    """The arguments of every key head, with the value heads that share it."""
    q, k, v, g, beta = tensors
    Hk = q.shape[2]
    share = v.shape[2] // Hk if Hk else 0
    for head in range(Hk):
        one, many = slice(head, head + 1), slice(head * share, (head + 1) * share)
        gate = None if g is None else g[:, :, many]
        part = [q[:, :, one], k[:, :, one], v[:, :, many], gate, beta[:, :, many]]
        part += [state[:, many] for state in states]
        yield part if grad_o is None else [*part, grad_o[:, :, many]]
