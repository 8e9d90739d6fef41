"""Modules that train latent float weights of binary layers: y = alpha * op(bx, bw) + bias.

bx are the signs of x. bw are the signs of the weight (BinaryLinear, BinaryConv2d) or BiPer's
periodic function of it (BiPerLinear, BiPerConv2d): in stage 1 sin(omega * weight), real numbers, in
stage 2 its sign. `.freeze()` gives the packed module of the same results.

Modules may be float32, bfloat16 or float16, whatever the dtype of x: alpha, bias and omega enter as
float32, and the result has the dtype of x.
"""

import copy

import torch
from torch import Tensor, nn

from nnkernels.binary import checks, functions, ops
from nnkernels.binary.packed import PackedConv2d, PackedLinear, Window, as_float

# ---- what the layers share ----


class _Layer(nn.Module):
    """A latent weight, alpha [O] and bias [O] or None.

    Subclasses tell how weight and input meet: `_train` with packed +-1, `_exact` with numbers.
    """

    def __init__(self, sizes: torch.Size, bias: bool, surrogate: str, device, dtype):
        super().__init__()
        checks.check_surrogate(type(self).__name__, surrogate)
        self.surrogate = surrogate

        # As torch.nn.Linear and torch.nn.Conv2d begin.
        def uniform(*sizes_):
            values = torch.empty(sizes_, device=device, dtype=dtype)
            return nn.Parameter(values.uniform_(-bound, bound))

        bound = sizes[1:].numel() ** -0.5
        self.weight = uniform(*sizes)
        self.alpha = nn.Parameter(self.weight.detach().abs().flatten(1).mean(1))
        self.bias = uniform(sizes[0]) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return self._train(x, None)

    def freeze(self) -> nn.Module:
        """The packed module, in eval mode, that computes the same; its state_dict holds bits."""
        with torch.no_grad():
            packed = self._packed().fill(self._bits(self._rows()), self.alpha, self.bias)
        return packed.eval()

    def _bits(self, rows: Tensor) -> Tensor:
        return ops.pack(rows)

    def extra_repr(self) -> str:
        return f"{self._sizes()}, bias={self.bias is not None}, surrogate={self.surrogate!r}"


class _BiPer(_Layer):
    """The periodic function of BiPer in the place of the weight's sign."""

    def _set_biper(self, omega: float, learn_omega: bool, stage: int, device, dtype):
        name = type(self).__name__
        checks.check_omega(name, omega)
        self.stage = stage
        value = torch.tensor(float(omega), device=device, dtype=dtype)
        if learn_omega:
            self.omega = nn.Parameter(value)
        else:
            self.register_buffer("omega", value)

    def __setattr__(self, name, value):
        if name == "stage":
            checks.check_stage(type(self).__name__, value)
        super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        omega = self.omega.float()
        if self.stage == 2:
            return self._train(x, omega)
        values = functions.binarize(x, surrogate=self.surrogate)
        return self._exact(values, functions.biper(self.weight, omega))

    def freeze(self) -> nn.Module:
        if self.stage != 2:
            raise ValueError(
                f"{type(self).__name__}: freeze() needs stage 2, where weights are +-1; this layer "
                "is in stage 1"
            )
        return super().freeze()

    def _bits(self, rows: Tensor) -> Tensor:
        return ops.pack_biper(rows, self.omega.item())

    def extra_repr(self) -> str:
        learnt = isinstance(self.omega, nn.Parameter)
        omega = f"omega={self.omega.item():g}, learn_omega={learnt}"
        return f"{super().extra_repr()}, {omega}, stage={self.stage}"


# ---- linear ----


class _Linear(_Layer):
    def __init__(self, in_features, out_features, bias, surrogate, device, dtype):
        checks.check_features(type(self).__name__, in_features, out_features)
        sizes = torch.Size((out_features, in_features))
        super().__init__(sizes, bias, surrogate, device, dtype)
        self.in_features = in_features
        self.out_features = out_features

    def _train(self, x: Tensor, omega: Tensor | None) -> Tensor:
        inputs = (x, self.weight, self.alpha.float(), as_float(self.bias), omega)
        return ops.linear_train(*inputs, surrogate=self.surrogate)

    def _exact(self, x: Tensor, weight: Tensor) -> Tensor:
        return _affine(nn.functional.linear(x, weight.to(x.dtype)), self.alpha, self.bias)

    def _rows(self) -> Tensor:
        return self.weight

    def _packed(self) -> PackedLinear:
        return PackedLinear(self.in_features, self.out_features, bias=self.bias is not None)

    def _sizes(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def _affine(dot: Tensor, alpha: Tensor, bias: Tensor | None) -> Tensor:
    out = dot * alpha.to(dot.dtype)
    return out if bias is None else out + bias.to(dot.dtype)


class BinaryLinear(_Linear):
    """Linear layer of +-1: y = alpha * (binarize(x) times binarize(weight)^T) + bias.

    Args:
        in_features, out_features, bias, device, dtype: as torch.nn.Linear.
        surrogate: the derivative of binarize, for x and for the weight: "ste", "approxsign" or
            "identity", see `binary.linear_train`.

    Parameters: weight [out, in], alpha [out] (mean |weight| at first), bias [out] or None.
    Shapes: [..., in_features] -> [..., out_features]. Raises as `binary.linear_train`.

    >>> import torch, nnkernels
    >>> layer = nnkernels.nn.BinaryLinear(300, 2)
    >>> x = torch.randn(5, 300)
    >>> torch.equal(layer.freeze()(x), layer(x))
    True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        surrogate: str = "ste",
        device=None,
        dtype=None,
    ):
        super().__init__(in_features, out_features, bias, surrogate, device, dtype)


class BiPerLinear(_BiPer, _Linear):
    """Linear layer of BiPer: binarised x, weights that are a periodic function of latent ones.

    Args:
        in_features, out_features, bias, device, dtype: as torch.nn.Linear.
        surrogate: the derivative of binarize for x; the paper takes "approxsign".
        omega: frequency, positive; with learn_omega a parameter, else a buffer.
        stage: 1 trains real weights sin(omega * weight), 2 their signs. Set `.stage` to go on.

    Parameters and shapes: as `BinaryLinear`.

    >>> import nnkernels
    >>> layer = nnkernels.nn.BiPerLinear(300, 2)
    >>> layer.stage = 2
    >>> layer.freeze()
    PackedLinear(in_features=300, out_features=2, bias=True)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        surrogate: str = "ste",
        omega: float = 20.0,
        learn_omega: bool = False,
        stage: int = 1,
        device=None,
        dtype=None,
    ):
        super().__init__(in_features, out_features, bias, surrogate, device, dtype)
        self._set_biper(omega, learn_omega, stage, device, dtype)


# ---- convolution ----


class _Conv2d(Window, _Layer):
    def __init__(self, in_channels, out_channels, kernel_size, *window, **options):
        self._set_window(in_channels, out_channels, kernel_size, *window)
        sizes = torch.Size((out_channels, in_channels // self.groups, *self.kernel_size))
        super().__init__(sizes, **options)

    def _train(self, x: Tensor, omega: Tensor | None) -> Tensor:
        inputs = (x, self.weight, self.alpha.float(), as_float(self.bias), omega)
        return ops.conv2d_train(*inputs, *self._window, surrogate=self.surrogate)

    def _exact(self, x: Tensor, weight: Tensor) -> Tensor:
        top, left = self.padding
        if self.pad_mode != "zero":
            value = 1.0 if self.pad_mode == "one" else -1.0
            x = nn.functional.pad(x, (left, left, top, top), value=value)
            top = left = 0
        out = nn.functional.conv2d(
            x, weight.to(x.dtype), None, self.stride, (top, left), self.dilation, self.groups
        )
        return _affine(out.movedim(1, -1), self.alpha, self.bias).movedim(-1, 1)

    def _rows(self) -> Tensor:
        return self.weight.permute(0, 2, 3, 1)

    def _packed(self) -> PackedConv2d:
        stride, padding, dilation, groups, pad_mode = self._window
        return PackedConv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            pad_mode=pad_mode,
            bias=self.bias is not None,
        )


class BinaryConv2d(_Conv2d):
    """Convolution of +-1: y = alpha * conv2d(binarize(x), binarize(weight)) + bias.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, device,
            dtype: as torch.nn.Conv2d.
        pad_mode: what a tap outside the image sees: "zero", "one" (+1) or "minus_one".
        surrogate: as `BinaryLinear`.

    Parameters: weight [out, in / groups, KH, KW], alpha [out], bias [out] or None.
    Shapes: x [batch, in, H, W] -> [batch, out, OH, OW]. Raises as `binary.conv2d_train`.

    >>> import torch, nnkernels
    >>> layer = nnkernels.nn.BinaryConv2d(16, 8, 3, padding=1)
    >>> layer(torch.randn(2, 16, 5, 5)).shape
    torch.Size([2, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        pad_mode: str = "zero",
        bias: bool = True,
        surrogate: str = "ste",
        device=None,
        dtype=None,
    ):
        window = (stride, padding, dilation, groups, pad_mode)
        options = {"bias": bias, "surrogate": surrogate, "device": device, "dtype": dtype}
        super().__init__(in_channels, out_channels, kernel_size, *window, **options)


class BiPerConv2d(_BiPer, _Conv2d):
    """Convolution of BiPer; arguments as `BinaryConv2d` and `BiPerLinear`.

    >>> import torch, nnkernels
    >>> layer = nnkernels.nn.BiPerConv2d(16, 8, 3, padding=1, stage=2)
    >>> x = torch.randn(2, 16, 5, 5)
    >>> torch.equal(layer.freeze()(x), layer(x))
    True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        pad_mode: str = "zero",
        bias: bool = True,
        surrogate: str = "ste",
        omega: float = 20.0,
        learn_omega: bool = False,
        stage: int = 1,
        device=None,
        dtype=None,
    ):
        window = (stride, padding, dilation, groups, pad_mode)
        options = {"bias": bias, "surrogate": surrogate, "device": device, "dtype": dtype}
        super().__init__(in_channels, out_channels, kernel_size, *window, **options)
        self._set_biper(omega, learn_omega, stage, device, dtype)


# ---- whole models ----


def set_stage(model: nn.Module, stage: int) -> nn.Module:
    """Puts every BiPer layer inside `model` into this stage; returns `model`."""
    for module in model.modules():
        if isinstance(module, _BiPer):
            module.stage = stage
    return model


def freeze(model: nn.Module) -> nn.Module:
    """A copy of `model` for inference, whose binary layers are their packed modules.

    It is in eval mode and none of its parameters requires a gradient. Raises ValueError if a BiPer
    layer is in stage 1.
    """
    if isinstance(model, _Layer):
        return model.freeze()
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    for parent in list(frozen.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, _Layer):
                setattr(parent, name, child.freeze())
    return frozen
