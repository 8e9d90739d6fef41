"""Sharding rules: the lmul operators on DTensors. Importing `nnkernels.distributed` registers them.

Results may be sharded along batch, row, column and head dimensions, never along the summed one: a
sum over shards would leave the promised order, and a product that spans two shards has no owner.
Gradients that sum over a sharded dimension come as partial sums, as those of torch's own matmul.
"""

import torch
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

_ops = torch.ops.nnkernels


def _rule(outputs, inputs):
    return list(outputs), list(inputs)


def _replicated(outputs, inputs):
    return _rule([Replicate()] * outputs, [None if x is None else Replicate() for x in inputs])


def _where_needed(placements, needed):
    """A gradient that is not needed is an empty tensor, the same everywhere."""
    return [
        placement if need else Replicate()
        for placement, need in zip(placements, needed, strict=True)
    ]


def _along(dim, ndim, value):
    """Shard `value` along dimension `dim` of a broadcast result with `ndim` dimensions."""
    own = dim - (ndim - value.ndim)
    return Shard(own) if own >= 0 and value.shape[own] != 1 else Replicate()


# ---- mul ----


@register_sharding([_ops.lmul_mul.default, _ops.lmul_mul_fwd.default])
def _mul(x, y, **_):
    ndim = max(x.ndim, y.ndim)
    rules = [_replicated(1, (x, y))]
    for dim in range(ndim):
        placements = _along(dim, ndim, x), _along(dim, ndim, y)
        if any(placement.is_shard() for placement in placements):
            rules.append(_rule([Shard(dim)], placements))
    return rules


@register_sharding(_ops.lmul_mul_bwd.default)
def _mul_bwd(g, x, y, need_x=True, need_y=True, **_):
    rules = [_replicated(2, (g, x, y))]
    for dim in range(g.ndim):
        placements = _along(dim, g.ndim, x), _along(dim, g.ndim, y)
        if any(placement.is_shard() for placement in placements):
            gradients = [p if p.is_shard() else Partial() for p in placements]
            gradients = _where_needed(gradients, (need_x, need_y))
            rules.append(_rule(gradients, [Shard(dim), *placements]))
    return rules


# ---- matmul, bmm ----
# Each row of a table: placements of the result, of a and of b.

_MATMUL = (
    (Shard(0), Shard(0), Replicate()),
    (Shard(1), Replicate(), Shard(1)),
)
_BMM = (
    (Shard(0), Shard(0), Shard(0)),
    (Shard(1), Shard(1), Replicate()),
    (Shard(2), Replicate(), Shard(2)),
)


def _register_matmul(name, table):
    @register_sharding([getattr(_ops, name).default, getattr(_ops, f"{name}_fwd").default])
    def forward(a, b, **_):
        return [_replicated(1, (a, b)), *(_rule([out], (pa, pb)) for out, pa, pb in table)]

    @register_sharding(getattr(_ops, f"{name}_bwd").default)
    def backward(g, a, b, need_a=True, need_b=True, **_):
        rules = [_replicated(2, (g, a, b))]
        for out, pa, pb in table:
            gradients = [p if p.is_shard() else Partial() for p in (pa, pb)]
            rules.append(_rule(_where_needed(gradients, (need_a, need_b)), (out, pa, pb)))
        return rules


_register_matmul("lmul_matmul", _MATMUL)
_register_matmul("lmul_bmm", _BMM)

# ---- linear, pack ----


@register_sharding([_ops.lmul_linear.default, _ops.lmul_linear_fwd.default])
def _linear(x, w, bias=None, w_packed=None, **_):
    given = [value for value in (w_packed,) if value is not None]
    rules = [_replicated(1, (x, w, bias, *given))]
    replicated_bias = None if bias is None else Replicate()
    for dim in range(x.ndim - 1):
        inputs = (Shard(dim), Replicate(), replicated_bias, *(Replicate() for _ in given))
        rules.append(_rule([Shard(dim)], inputs))
    if w_packed is None:
        sharded_bias = None if bias is None else Shard(0)
        rules.append(_rule([Shard(x.ndim - 1)], (Replicate(), Shard(0), sharded_bias)))
    return rules


@register_sharding(_ops.lmul_linear_bwd.default)
def _linear_bwd(g, x, w, need_x=True, need_w=True, need_bias=False, **_):
    needed = (need_x, need_w, need_bias)
    rules = [_replicated(3, (g, x, w))]
    for dim in range(x.ndim - 1):
        gradients = _where_needed((Shard(dim), Partial(), Partial()), needed)
        rules.append(_rule(gradients, (Shard(dim), Shard(dim), Replicate())))
    gradients = _where_needed((Partial(), Shard(0), Shard(0)), needed)
    rules.append(_rule(gradients, (Shard(x.ndim - 1), Replicate(), Shard(0))))
    return rules


@register_sharding(_ops.lmul_pack.default)
def _pack(w, **_):
    return [_replicated(1, (w,))]


# ---- attention ----


def _batch_or_heads(q, k):
    """The dimensions along which the shards of q, k and v fit together."""
    # Equal chunks of query heads meet the key heads they need only if those divide evenly too.
    return (0, 1) if k.shape[1] % q.mesh.size() == 0 else (0,)


@register_sharding([_ops.lmul_attention.default, _ops.lmul_attention_fwd.default])
def _attention(q, k, v, attn_mask=None, **_):
    masks = [] if attn_mask is None else [attn_mask]
    rules = [_replicated(1, (q, k, v, *masks))]
    for dim in _batch_or_heads(q, k):
        mask_placements = [_along(dim, 4, mask) for mask in masks]
        rules.append(_rule([Shard(dim)], [*[Shard(dim)] * 3, *mask_placements]))
    return rules


@register_sharding(_ops.lmul_attention_bwd.default)
def _attention_bwd(g, q, k, v, out, attn_mask=None, need_q=True, need_k=True, need_v=True, **_):
    rules = [_replicated(3, (g, q, k, v, out, attn_mask))]
    for dim in _batch_or_heads(q, k):
        gradients = _where_needed([Shard(dim)] * 3, (need_q, need_k, need_v))
        mask = None if attn_mask is None else _along(dim, 4, attn_mask)
        rules.append(_rule(gradients, [*[Shard(dim)] * 5, mask]))
    return rules
