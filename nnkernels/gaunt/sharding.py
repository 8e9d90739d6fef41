"""Sharding rules of the gaunt operators; importing `nnkernels.distributed` registers them.

Leading dimensions may be sharded, and with layout "ir_mul" the channels; coefficients never: each
one of a result depends on all those of the inputs. Gradients of what is broadcast along a sharded
dimension come as partial sums.
"""

import torch
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

_ops = torch.ops.nnkernels


def _along(dim, ndim, value):
    """Shard `value` along dimension `dim` of a broadcast result with `ndim` dimensions."""
    own = dim - (ndim - value.ndim)
    return Shard(own) if own >= 0 and value.shape[own] != 1 else Replicate()


def _register(name, operands, results):
    """Registers an operator whose leading dimensions may be sharded.

    operands  the names of its tensors, which broadcast against each other
    results   (need_*, the operand it is the gradient of) of each result; None for the product
    """
    operator = getattr(_ops, name).default
    arguments = operator._schema.arguments
    names = [argument.name for argument in arguments]
    defaults = {argument.name: argument.default_value for argument in arguments}

    @register_sharding(operator)
    def sharding(*positional, **options):
        given = defaults | dict(zip(names, positional, strict=False)) | options
        shapes = [given[key] for key in operands if given[key] is not None]
        ndim = max(value.ndim for value in shapes)
        coefficients = ndim - (1 if given.get("layout", "mul_ir") == "mul_ir" else 2)

        def rule(place):
            # Weights for all samples, such as those of `paths`, may have fewer dimensions.
            inputs = [
                None if key not in operands or given[key] is None else place(given[key])
                for key in names[: len(positional)]
            ]
            inputs += [place(value) for key, value in options.items() if key in operands]
            outputs = []
            for result in results:
                if result is None:
                    outputs.append(place(None))
                elif not given.get(result[0], True) or given[result[1]] is None:
                    outputs.append(Replicate())
                else:
                    placement = place(given[result[1]])
                    summed = place(None).is_shard() and not placement.is_shard()
                    outputs.append(Partial() if summed else placement)
            return outputs, inputs

        rules = [rule(lambda value: Replicate())]
        for dim in range(ndim):
            if dim != coefficients:

                def place(value, dim=dim):
                    return Shard(dim) if value is None else _along(dim, ndim, value)

                if any(place(value).is_shard() for value in shapes):
                    rules.append(rule(place))
        return rules


def _register_family(name, tensors, cotangents):
    needs = [(f"need_{key}", key) for key in tensors]
    for half in (name, f"{name}_fwd"):
        _register(half, tensors, [None])
    _register(f"{name}_bwd", ("gz", *tensors), needs)
    _register(f"{name}_bwd_bwd", (*cotangents, "gz", *tensors), [("need_gz", "gz"), *needs])


for _name in ("gaunt_product", "gaunt_cross"):
    _register_family(_name, ("x", "y", "w1", "w2", "w3"), ("ux", "uy", "uw1", "uw2", "uw3"))
_register_family("gaunt_power", ("x",), ("u",))
_register_family("gaunt_paths", ("x", "y", "w"), ("ux", "uy", "uw"))
for _name in ("gaunt_to_grid", "gaunt_from_grid"):
    for _half in (_name, f"{_name}_fwd"):
        _register(_half, ("x",) if "to_grid" in _name else ("f",), [None])
