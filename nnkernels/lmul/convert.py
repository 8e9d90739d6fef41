"""Swapping the linear layers of a model for L-Mul ones."""

from collections.abc import Callable, Iterable

from torch import nn

from nnkernels.lmul import checks
from nnkernels.lmul.module import LMulLinear


def convert(
    module: nn.Module,
    *,
    mantissa_bits: int | None = None,
    mode: str = "bits",
    round: str = "trunc",
    offset: float | None = None,
    grad: str | None = "ste",
    skip: Iterable[str] | Callable[[str, nn.Linear], bool] = (),
) -> nn.Module:
    """Replaces every torch.nn.Linear inside `module` by an LMulLinear, in place.

    Parameters are kept, not copied: optimizers, tied weights, hooks and checkpoints stay valid. An
    LMulLinear inside `module` stays the same layer and takes the new options.

    Products stay exact in subclasses of nn.Linear, which have a forward of their own; in
    torch.nn.MultiheadAttention, which reads the weights of its projections and never calls them;
    and in any module of yours that does the same. torch.nn.TransformerEncoder and its layers do it
    in their inference fast path alone: converted ones no longer take that path.

    Args:
        module: the model, or a single nn.Linear.
        mantissa_bits, mode, round, offset, grad: of every layer, see `LMulLinear`.
        skip: what to leave alone: qualified names, each standing for the module of that name and
            everything inside it, or a function of (name, layer) that returns True.

    Returns:
        `module`, or the new layer if `module` itself is an nn.Linear.

    Raises:
        ValueError: an option out of its range, or a name in `skip` that `module` does not have.
        TypeError: `module` is not a module.

    >>> import torch, nnkernels
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> nnkernels.lmul.convert(model, mantissa_bits=4, skip=["2"])
    Sequential(
      (0): LMulLinear(in_features=4, out_features=8, bias=True, mantissa_bits=4, mode='bits', \
round='trunc', offset=None, grad='ste')
      (1): ReLU()
      (2): Linear(in_features=8, out_features=2, bias=True)
    )
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"convert: module must be a torch.nn.Module, got {type(module).__name__}")
    options = {
        "mantissa_bits": mantissa_bits,
        "mode": mode,
        "round": round,
        "offset": offset,
        "grad": grad,
    }
    checks.check_options("convert", **options)
    skipped = skip if callable(skip) else _names(module, skip)
    # A layer used in several places stays one layer.
    converted = {}

    def swapped(path, child):
        if type(child) not in (nn.Linear, LMulLinear) or skipped(path, child):
            return child
        if child not in converted:
            converted[child] = LMulLinear.from_linear(child, **options)
        return converted[child]

    for prefix, parent in list(module.named_modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(parent, nn.MultiheadAttention) and name == "out_proj":
                continue
            new = swapped(f"{prefix}.{name}" if prefix else name, child)
            if new is not child:
                setattr(parent, name, new)
    _leave_fast_paths(module)
    return swapped("", module)


def _leave_fast_paths(module: nn.Module):
    """Makes torch's transformer encoders call their converted layers.

    Their fast path hands the weights of the layers to one fused operator. These are the attributes
    by which they decide whether to take it.
    """
    for child in module.modules():
        if isinstance(child, nn.TransformerEncoderLayer) and _has_lmul(child):
            child.activation_relu_or_gelu = 0
        if isinstance(child, nn.TransformerEncoder) and _has_lmul(child):
            child.use_nested_tensor = False


def _has_lmul(module: nn.Module) -> bool:
    return any(isinstance(child, LMulLinear) for child in module.modules())


def _names(module: nn.Module, names: Iterable[str]) -> Callable[[str, nn.Linear], bool]:
    if isinstance(names, str):
        raise ValueError(f"convert: skip must be a list of names or a function, got {names!r}")
    names = tuple(names)
    known = {name for name, _ in module.named_modules(remove_duplicate=False)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"convert: skip names {unknown}, which the module does not have")
    return lambda path, _: any(path == name or path.startswith(f"{name}.") for name in names)
