"""Which implementation an operator runs: the compiled one, Triton's or the reference.

The compiled libraries register CPU kernels, and CUDA kernels where they can. This module fills in
from Python: Triton where there is no CUDA kernel, the reference where NNKERNELS_BACKEND asks for
it, and a clear refusal for operators that no GPU kernel exists for.
"""

import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec

import torch

from nnkernels._library import forced_backend, has_cuda_library

_library = torch.library.Library("nnkernels", "FRAGMENT")


def install(operator, *, reference, reference_grad=None, cuda=False, triton=None):
    """Registers what is not compiled for operator X and its halves X_fwd and X_bwd.

    reference       computes X from its arguments, without `grad` and `algo`
    reference_grad  computes the gradients: (g, *inputs, grad=..., **options)
    cuda            whether the CUDA library has X_fwd
    triton          module attribute path of the Triton function for X_fwd, "module:function"
    """
    forced = forced_backend()
    forward = (operator, f"{operator}_fwd")
    backward = f"{operator}_bwd"
    if forced == "reference":
        for device in ("CPU", "CUDA"):
            for name in forward:
                _override(name, _reference_forward(reference), device)
            _override(backward, _reference_backward(backward, reference_grad), device)
        return
    if torch.version.cuda is None:
        return
    compiled = cuda and has_cuda_library() and forced != "triton"
    use_triton = triton is not None and forced != "cuda" and find_spec("triton") is not None
    for name in (*forward, backward):
        if name == backward or not (compiled or use_triton):
            _override(name, _refusal(name, forced), "CUDA")
        elif not compiled:
            _override(name, _triton_forward(triton), "CUDA")


def install_plain(operator, reference=None, plain_cuda=False):
    """Registers what is not compiled for an operator without a GPU kernel or halves.

    reference   computes it from its arguments; without one NNKERNELS_BACKEND=reference runs the
                compiled kernel
    plain_cuda  whether `reference` serves CUDA tensors too, rather than a refusal
    """
    forced = forced_backend()
    if forced == "reference" and reference is not None:
        for device in ("CPU", "CUDA"):
            _override(operator, reference, device)
    elif torch.version.cuda is not None and plain_cuda and forced is None:
        _override(operator, reference, "CUDA")
    elif torch.version.cuda is not None:
        _override(operator, _refusal(operator, forced), "CUDA")


def with_autograd(function):
    """The function for use in a kernel: autograd is off in a thread below the dispatcher, a fresh
    thread has it."""

    def in_thread(*args, **kwargs):
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(function, *args, **kwargs).result()

    return in_thread


def _override(name, kernel, device):
    with warnings.catch_warnings():
        # Replacing the compiled kernel is the purpose.
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        _library.impl(name, kernel, device, allow_override=True)


def _refusal(name, forced):
    wanted = f"{forced} " if forced else ""

    def kernel(*args, **kwargs):
        raise RuntimeError(
            f"{name}: there is no {wanted}GPU kernel for it in this build; move the tensors to "
            "the CPU, or set NNKERNELS_BACKEND=reference"
        )

    return kernel


def _triton_forward(path):
    module, function = path.split(":")

    def kernel(*args, grad=None, **keywords):
        return getattr(import_module(module), function)(*args, **keywords)

    return kernel


def _reference_forward(reference):
    def kernel(*args, grad=None, algo=None, w_packed=None, **keywords):
        return reference(*args, **keywords)

    return kernel


def _reference_backward(name, reference_grad):
    arguments = getattr(torch.ops.nnkernels, name).default._schema.arguments
    needs = {a.name: a.default_value for a in arguments if a.name.startswith("need_")}
    positional = [a.name for a in arguments if not a.kwarg_only]

    def kernel(*values, **keywords):
        wanted = [keywords.pop(need, default) for need, default in needs.items()]
        named = dict(zip(positional, values, strict=False))
        g = named.pop("g")
        # The references compute the forward result again.
        named.pop("out", None)
        inputs = [named.pop(key) for key in list(named) if f"need_{key}" in needs]
        gradients = with_autograd(reference_grad)(g, *inputs, **named, **keywords)
        dtypes = [value.dtype for value in inputs] + [torch.float32]
        return tuple(
            gradient.to(dtype) if want else g.new_empty(0, dtype=dtype)
            for gradient, dtype, want in zip(gradients, dtypes, wanted, strict=False)
        )

    return kernel
