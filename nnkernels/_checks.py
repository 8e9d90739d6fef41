"""Argument checks that all cores share.

Every text names the function, what it expects, what arrived and, where it helps, what to do.
`op` is the operator's name, such as "lmul_matmul".
"""

import numbers

import torch
from torch import Tensor
from torch.autograd import forward_ad


def short(dtype) -> str:
    return str(dtype).removeprefix("torch.")


def listed(choices) -> str:
    return ", ".join(repr(choice) for choice in choices)


def tensor(op: str, name: str, value, dtypes):
    """The value is a dense tensor of one of these dtypes."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(
            f"{op}: {name} has dtype {short(value.dtype)}, expected one of "
            f"{', '.join(map(short, dtypes))}; convert it with .to(...)"
        )
    if value.layout is not torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else short(value.layout).removeprefix("_")
        raise TypeError(f"{op}: {name} is a {kind} tensor, expected a dense one")


def same_device(op: str, name: str, value: Tensor, first_name: str, first: Tensor):
    if value.device != first.device:
        raise ValueError(
            f"{op}: {name} is on {value.device} and {first_name} on {first.device}; "
            "move both to one device"
        )


def out_dtype(op: str, dtype, dtypes):
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in dtypes):
        raise TypeError(
            f"{op}: out_dtype is {short(dtype)}, expected one of {', '.join(map(short, dtypes))}"
        )


def choice(op: str, name: str, value, choices):
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {listed(choices)}, got {value!r}")


def integer(op: str, name: str, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral | torch.SymInt):
        raise TypeError(f"{op}: {name} must be an int, got {type(value).__name__} {value!r}")


def real(op: str, name: str, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Real | torch.SymFloat):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__} {value!r}")


def boolean(op: str, name: str, value):
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a bool, got {type(value).__name__} {value!r}")


def shape(value: Tensor) -> str:
    return str(list(value.shape))


def refuse_tangents(op: str, *inputs: Tensor | None):
    """No operator has a forward-mode derivative: the tangent of an input would be lost silently."""
    if forward_ad._current_level >= 0 and any(
        value is not None and forward_ad.unpack_dual(value).tangent is not None for value in inputs
    ):
        raise NotImplementedError(
            f"{op}: forward-mode differentiation (dual tensors, torch.func.jvp and jacfwd) is not "
            "supported; use torch.autograd.grad"
        )


def refuse_functorch(op: str):
    """The autograd of operators has no torch.func form; torch's own text for that is obscure."""
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            f"{op}: the transforms of torch.func cannot differentiate it; use "
            "torch.autograd.grad or backward"
        )


def refuse_gradients(op: str, hint: str, *inputs: Tensor | None):
    """An operator without a derivative: nothing may ask for one."""
    refuse_tangents(op, *inputs)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        raise RuntimeError(f"{op}: an input requires a gradient, but it has no derivative; {hint}")


def needs_grad(op: str, grad: str | None, *inputs: Tensor | None) -> bool:
    """Whether autograd must record the call; it cannot where `grad` names no derivative."""
    refuse_tangents(op, *inputs)
    if not torch.is_grad_enabled():
        return False
    if not any(value is not None and value.requires_grad for value in inputs):
        return False
    if grad is None:
        raise RuntimeError(
            f"{op}: an input requires a gradient but grad=None; name a derivative with grad=..., "
            "detach the inputs or call under torch.no_grad()"
        )
    return True
