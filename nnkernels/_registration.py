"""How the operators of all cores get their fake kernels and their autograd.

A differentiable operator X has two halves that know nothing of autograd: X_fwd takes X's arguments
without `grad`, X_bwd takes the gradient from upstream, the saved values and the options.
"""

import functools

import torch
from torch import Tensor

from nnkernels._checks import needs_grad, refuse_functorch, refuse_gradients, refuse_tangents

_library = torch.library.Library("nnkernels", "FRAGMENT")


def register_fake(names, fake):
    """One fake kernel for these operators; like the real ones it refuses with a RuntimeError."""

    @functools.wraps(fake)
    def kernel(*args, **kwargs):
        try:
            return fake(*args, **kwargs)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise RuntimeError(str(error)) from None

    for name in names:
        torch.library.register_fake(f"nnkernels::{name}", kernel, lib=_library)


def register_refusal(name, hint):
    """Makes operator `name`, which has no derivative, refuse inputs that require a gradient."""
    operator = getattr(torch.ops.nnkernels, name).default

    def kernel(*inputs, **options):
        given = (*inputs, *options.values())
        refuse_gradients(name, hint, *(x for x in given if isinstance(x, Tensor)))
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*inputs, **options)

    _library.impl(name, kernel, "Autograd")


def register_single_backward(name):
    """Makes the gradients that operator `name`_bwd computes refuse to be differentiated again."""

    def refuse(ctx, *gradients):
        raise RuntimeError(f"{name}: double backward is not supported")

    torch.library.register_autograd(f"nnkernels::{name}_bwd", refuse, lib=_library)


def register_autograd(name, *, inputs, saved, choices, constants=()):
    """Makes operator `name` run its halves under autograd.

    inputs     its positional arguments, which get gradients
    saved      what X_bwd takes after the gradient from upstream: names of arguments, or "out"
    choices    the values of `grad`, besides None
    constants  its keyword tensors, which get no gradient

    (`torch.library.register_autograd` does not take operators with keyword tensors.)
    """
    forward = getattr(torch.ops.nnkernels, f"{name}_fwd").default
    backward = getattr(torch.ops.nnkernels, f"{name}_bwd").default
    options = {argument.name for argument in backward._schema.arguments} - {*saved, "g"}

    class Function(torch.autograd.Function):
        # No setup_context: its argument binding costs 15 us a call.
        @staticmethod
        def forward(ctx, grad, keywords, *tensors):
            output = forward(*tensors, **keywords)
            values = {**keywords, **dict(zip(inputs, tensors, strict=False)), "out": output}
            ctx.save_for_backward(*(values.get(key) for key in saved))
            ctx.options = {key: keywords[key] for key in options & keywords.keys()}
            ctx.options["grad"] = grad
            ctx.dtypes = [None if value is None else value.dtype for value in tensors]
            return output

        @staticmethod
        def backward(ctx, g):
            refuse_tangents(f"{name}_bwd", g)
            needed = ctx.needs_input_grad[2:]
            needs = {f"need_{key}": need for key, need in zip(inputs, needed, strict=False)}
            gradients = backward(g, *ctx.saved_tensors, **needs, **ctx.options)
            return (
                None,
                None,
                *(
                    gradient.to(dtype) if need else None
                    for gradient, dtype, need in zip(gradients, ctx.dtypes, needed, strict=False)
                ),
            )

    def kernel(*tensors, grad="ste", **keywords):
        if grad is not None and grad not in choices:
            raise RuntimeError(f"{name}: grad must be one of {', '.join(map(repr, choices))}")
        for key in constants:
            constant = keywords.get(key)
            refuse_tangents(name, constant)
            if torch.is_grad_enabled() and constant is not None and constant.requires_grad:
                raise RuntimeError(f"{name}: {key} gets no gradient; detach it")
        if not needs_grad(name, grad, *tensors):
            return forward(*tensors, **keywords)
        refuse_functorch(name)
        return Function.apply(grad, keywords, *tensors)

    _library.impl(name, kernel, "Autograd")
    register_single_backward(name)
