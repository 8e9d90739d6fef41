"""Sharding rules of the pc operators; importing `nnkernels.distributed` registers them.

Samples are independent and may be sharded; parameters are whole, and their gradients and counts
come as partial sums. Coded words belong to lanes, and which samples a lane holds depends on all of
them: only a step of decoding may be sharded, by lanes.
"""

import torch
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding
from torch.utils._pytree import tree_leaves

from nnkernels._sharding import register


def _samples(outputs):
    def rules(save_u=True, **_):
        # A u that is not saved is an empty tensor, the same everywhere.
        found = outputs if save_u else [outputs[0], Replicate()]
        yield found, dict.fromkeys(("x", "mask", "weights", "grad_ll"), Shard(0))

    return rules


register("pc_forward", _samples([Shard(0), Shard(1)]))
register("pc_forward_fwd", _samples([Shard(0), Shard(1)]))
register("pc_forward_bwd", _samples([Partial()] * 3))
register("pc_flows", _samples([Shard(0), Partial(), Partial(), Partial()]))
register("rans_encode", lambda **_: ())
register("rans_decode", lambda **_: ())
register(
    "rans_decode_step",
    lambda **_: [
        (
            [Shard(0)],
            dict.fromkeys(("state", "position", "words", "counts", "cdf"), Shard(0)),
        )
    ],
)


def _register_codec(name, by_samples):
    """An operator that takes the list of a model's tables."""
    operator = getattr(torch.ops.nnkernels, name).default
    outputs = len(operator._schema.returns)

    @register_sharding(operator)
    def sharding(*positional, **options):
        def rule(result, samples):
            # One placement per tensor, those of the list among the others.
            tensors = [x for x in tree_leaves((positional, options)) if hasattr(x, "placements")]
            return [result] * outputs, [samples] + [Replicate()] * (len(tensors) - 1)

        rules = [rule(Replicate(), Replicate())]
        return [*rules, rule(Shard(0), Shard(0))] if by_samples else rules

    return sharding


_register_codec("pc_conditional_cdf", True)
_register_codec("pc_intervals", True)
_register_codec("pc_encode", False)
_register_codec("pc_decode", False)
