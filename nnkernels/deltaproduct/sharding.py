"""Sharding rules of the deltaproduct operators; importing `nnkernels.distributed` registers them.

Batch rows and heads are independent, so everything may be sharded along either. Time may not: a
state passes through it.
"""

from torch.distributed.tensor import Replicate, Shard

from nnkernels._sharding import register


def _fits(*sizes, mesh):
    """Shards of equal length: value heads must meet their key heads, states their batch rows."""
    return all(size % mesh.size() == 0 for size in sizes)


# The dimension of batch and of heads in each argument of a sequence, and in a state.
_SEQUENCE = dict.fromkeys(("grad_o", "q", "k", "v", "g", "beta"), (0, 2))
_STATE = dict.fromkeys(("initial_state", "grad_final", "checkpoints", "state"), (0, 1))
_TOKEN = {"q": (0, 1), "k": (0, 2), "v": (0, 2), "g": (0, 1), "beta": (0, 2)}


def _choices(first, batch, Hk, packed):
    """0 to shard the batch, 1 to shard heads: what these sizes allow."""
    if not packed and _fits(batch, mesh=first.mesh):
        yield 0
    if _fits(Hk, mesh=first.mesh):
        yield 1


def _placements(dims, choice):
    return {name: Shard(dim[choice]) for name, dim in dims.items()}


def _or_whole(placement, present):
    """An absent result is an empty tensor, the same everywhere."""
    return placement if present else Replicate()


def _scan(q, k, cu_seqlens, output_final_state, save_for_backward, **_):
    for choice in _choices(q, q.shape[0], k.shape[2], cu_seqlens is not None):
        state = Shard(choice)
        out = [Shard((0, 2)[choice])]
        out += [_or_whole(state, output_final_state), _or_whole(state, save_for_backward)]
        yield out, _placements(_SEQUENCE | _STATE, choice)


def _scan_bwd(q, k, g, initial_state, cu_seqlens, **_):
    for choice in _choices(q, q.shape[0], k.shape[2], cu_seqlens is not None):
        one = Shard((0, 2)[choice])
        gate, initial = _or_whole(one, g is not None), Shard(choice)
        out = [one, one, one, gate, one, _or_whole(initial, initial_state is not None)]
        yield out, _placements(_SEQUENCE | _STATE, choice)


def _state_map(k, cu_seqlens, **_):
    for choice in _choices(k, k.shape[0], k.shape[2], cu_seqlens is not None):
        yield [Shard(choice)] * 2, _placements(_SEQUENCE, choice)


def _step(q, k, slots, **_):
    for choice in _choices(q, q.shape[0], k.shape[2], slots is not None):
        yield [Shard(choice)], _placements(_TOKEN | _STATE, choice)


register("deltaproduct_scan", _scan)
register("deltaproduct_scan_fwd", _scan)
register("deltaproduct_scan_bwd", _scan_bwd)
register("deltaproduct_state_map", _state_map)
register("deltaproduct_step", _step)
