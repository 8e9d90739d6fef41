"""What runs the gaunt operators where the compiled kernels do not."""

from concurrent.futures import ThreadPoolExecutor

import torch

from nnkernels._backend import install_plain
from nnkernels.gaunt import reference


def _in_thread(function, *arguments):
    # The reference differentiates by autograd, which is off in this thread below the dispatcher; a
    # fresh thread has it.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *arguments).result()


def _install(name, forward, tensors):
    """Registers operator X and its halves: `tensors` are those of X's arguments with gradients."""
    fwd, bwd, bwd_bwd = (
        getattr(torch.ops.nnkernels, f"{name}_{half}").default for half in ("fwd", "bwd", "bwd_bwd")
    )

    def named(operator, values, keywords):
        arguments = operator._schema.arguments
        defaults = {argument.name: argument.default_value for argument in arguments}
        given = dict(zip((argument.name for argument in arguments), values, strict=False))
        return defaults | given | keywords

    def split(given):
        """A function of the tensors alone, the tensors, and which gradients are needed."""
        options = {a.name: given[a.name] for a in fwd._schema.arguments if a.name not in tensors}
        if tensors == ("xs",):
            return lambda *xs: forward(list(xs), **options), given["xs"], given["need"]

        def function(*values):
            return forward(**dict(zip(tensors, values, strict=True)), **options)

        needed = [given.get(f"need_{key}", True) for key in tensors]
        if "need_gz" in given:
            needed.insert(0, given["need_gz"])
        return function, [given[key] for key in tensors], needed

    def backward(*values, **keywords):
        given = named(bwd, values, keywords)
        function, inputs, needed = split(given)
        result = _in_thread(reference.gradients, function, inputs, given["gz"], needed)
        return result if tensors != ("x",) else result[0]

    def twice(*values, **keywords):
        given = named(bwd_bwd, values, keywords)
        function, inputs, needed = split(given)
        cotangents = given["us"] if "us" in given else list(given.values())[: len(inputs)]
        cotangents = [None if u is None or u.shape == (0,) else u for u in cotangents]
        return _in_thread(
            reference.gradients_twice, function, inputs, given["gz"], cotangents, needed
        )

    install_plain(name, reference=forward)
    install_plain(f"{name}_fwd", reference=forward)
    install_plain(f"{name}_bwd", reference=backward)
    install_plain(f"{name}_bwd_bwd", reference=twice)


_install("gaunt_product", reference.product, ("x", "y", "w1", "w2", "w3"))
_install("gaunt_cross", reference.cross, ("x", "y", "w1", "w2", "w3"))
_install("gaunt_nfold", reference.nfold, ("xs",))
_install("gaunt_power", reference.power, ("x",))
_install("gaunt_paths", reference.weighted_paths, ("x", "y", "w"))
for _name, _reference in (
    ("gaunt_to_grid", reference.to_grid),
    ("gaunt_from_grid", reference.from_grid),
):
    install_plain(_name, reference=_reference)
    install_plain(f"{_name}_fwd", reference=_reference)
