"""How the operators get their sharding rules (torch.distributed.tensor)."""

import torch
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.experimental import register_sharding


def register(name, rules):
    """Registers an operator that may be whole on every rank or follow `rules`.

    rules(**arguments) yields (placements of the results, {argument: placement}); the arguments it
    does not name are whole.
    """
    operator = getattr(torch.ops.nnkernels, name).default
    names = [argument.name for argument in operator._schema.arguments]
    outputs = len(operator._schema.returns)

    @register_sharding(operator)
    def sharding(*positional, **options):
        arguments = dict(zip(names, positional, strict=False))

        def inputs(placements):
            def placed(key, value):
                return placements.get(key, Replicate()) if hasattr(value, "placements") else None

            given = [placed(key, value) for key, value in options.items()]
            return [
                *(placed(key, value) for key, value in arguments.items()),
                *(placement for placement in given if placement is not None),
            ]

        found = [([Replicate()] * outputs, inputs({}))]
        for results, placements in rules(**arguments, **options):
            found.append((list(results), inputs(placements)))
        return found
