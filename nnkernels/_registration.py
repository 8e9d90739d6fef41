"""How the operators of all cores get their fake kernels and their autograd.

A differentiable operator X has two halves that know nothing of autograd: X_fwd takes X's arguments
without `grad`, X_bwd takes the gradient from upstream, the saved values and the options.
"""

import functools

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_leaves

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


class TwiceDifferentiable:
    """A function of tensors that autograd and torch.func record, up to its second derivative.

    The three parts know nothing of autograd; `options` is what they take besides tensors, and
    tensors that are not given are None.

    forward   (tensors, options) -> the result
    backward  (g, tensors, options, needed) -> the gradients of the tensors
    twice     (cotangents, g, tensors, options, needed) -> the gradient of g, then of the tensors;
              cotangents that are zero are None

    What is not `needed` comes as an empty tensor. For torch.func.vmap the leading dimensions of the
    tensors must broadcast, aligned at the right.
    """

    def __init__(self, name, forward, backward, twice):
        self._name = name
        self._forward = forward

        def first_vjp(ctx, g):
            refuse_tangents(f"{name}_bwd", g)
            needed = tuple(ctx.needs_input_grad[1:])
            options = ctx.options, needed
            if torch._C._are_functorch_transforms_active():
                gradients = SecondTransformed.apply(options, g, *ctx.saved_tensors)
            elif torch.is_grad_enabled():
                gradients = Second.apply(options, g, *ctx.saved_tensors)
            else:
                gradients = backward(g, ctx.saved_tensors, *options)
            return None, *_only(gradients, needed)

        def second_vjp(ctx, *cotangents):
            options, wanted = ctx.options
            g, *tensors = ctx.saved_tensors
            needed = tuple(ctx.needs_input_grad[1:])
            given = _only(cotangents, wanted)
            if all(u is None for u in given):
                return None, *[None for _ in needed]
            return None, *_only(twice(given, g, tensors, options, needed), needed)

        class Second(torch.autograd.Function):
            @staticmethod
            def forward(ctx, options, g, *tensors):
                ctx.options = options
                ctx.save_for_backward(g, *tensors)
                ctx.set_materialize_grads(False)
                return tuple(backward(g, tensors, *options))

            backward = staticmethod(once_differentiable(second_vjp))

        class First(torch.autograd.Function):
            # No setup_context: its argument binding costs 15 us a call.
            @staticmethod
            def forward(ctx, options, *tensors):
                ctx.options = options
                ctx.save_for_backward(*tensors)
                return forward(tensors, options)

            backward = staticmethod(first_vjp)

        # The same two in the form that torch.func needs.

        class _Transformed(torch.autograd.Function):
            @staticmethod
            def setup_context(ctx, inputs, output):
                ctx.options = inputs[0]
                ctx.save_for_backward(*inputs[1:])
                ctx.set_materialize_grads(False)

        class SecondTransformed(_Transformed):
            @staticmethod
            def forward(options, g, *tensors):
                return tuple(backward(g, tensors, *options))

            backward = staticmethod(once_differentiable(second_vjp))

            @staticmethod
            def vmap(info, in_dims, options, *tensors):
                size = info.batch_size
                # Every sample has its own gradient, also of what all of them share.
                mapped = _mapped(name, tensors, in_dims, size, expand=True)
                inside = torch._C._are_functorch_transforms_active()
                function = SecondTransformed if inside else Second
                shapes = [
                    None if value is None else _without(value.shape, dim)
                    for value, dim in zip(tensors[1:], in_dims[2:], strict=True)
                ]
                gradients = function.apply(options, *mapped)
                return (
                    tuple(
                        gradient.reshape(size, *shape) if need else gradient
                        for gradient, shape, need in zip(gradients, shapes, options[1], strict=True)
                    ),
                    tuple(0 if need else None for need in options[1]),
                )

        class FirstTransformed(_Transformed):
            @staticmethod
            def forward(options, *tensors):
                return forward(tensors, options)

            backward = staticmethod(first_vjp)

            @staticmethod
            def vmap(info, in_dims, options, *tensors):
                mapped = _mapped(name, tensors, in_dims, info.batch_size)
                inside = torch._C._are_functorch_transforms_active()
                run = self.transformed if inside else self.operator
                return run(mapped, options), 0

        self._first = First
        self._transformed = FirstTransformed

    def operator(self, tensors, options):
        """What the operator does under autograd."""
        if not needs_grad(self._name, "", *tensors):
            return self._forward(tensors, options)
        refuse_functorch(self._name)
        return self._first.apply(options, *tensors)

    def transformed(self, tensors, options):
        """What the public function does inside a transform of torch.func."""
        refuse_tangents(self._name, *tensors)
        return self._transformed.apply(options, *tensors)


def _only(values, wanted):
    return tuple(value if want else None for value, want in zip(values, wanted, strict=True))


def _without(shape, dim):
    return shape if dim is None else (*shape[:dim], *shape[dim + 1 :])


def _mapped(name, tensors, in_dims, size, expand=False):
    """The tensors with the mapped dimension first and ones below it that align the others."""
    if any(dim is not None for dim in tree_leaves(in_dims[0])):
        raise NotImplementedError(f"{name}: torch.func.vmap over a constant is not supported")
    dims = in_dims[1:]
    rank = max(
        value.dim() - (dim is not None)
        for value, dim in zip(tensors, dims, strict=True)
        if value is not None
    )
    mapped = []
    for value, dim in zip(tensors, dims, strict=True):
        if value is not None and (dim is not None or expand):
            value = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
            value = value.reshape(size, *[1] * (rank + 1 - value.dim()), *value.shape[1:])
        mapped.append(value)
    return tuple(mapped)
