"""Inference modules that hold bits: what `.freeze()` of the training modules gives.

The state_dict is bits (int32), scale and bias: 32 times smaller than float32 weights, and the same
on every machine. What the kernels of this one want beside it is made when it is loaded. No gradient
passes: an input that requires one is refused (RuntimeError). Bits that are loaded are checked: of
another dtype, or with a set pad bit, they are refused.
"""

import torch
from torch import Tensor, nn

from nnkernels.binary import checks, ops
from nnkernels.binary.reference import row_words


def as_float(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.float()


class _Packed(nn.Module):
    """bits, scale [O], bias [O] or None.

    A subclass has _prepare(), which makes what its kernels want beside the bits, and _row_bits(),
    the length of a row.
    """

    def __init__(self, sizes: tuple[int, ...], bias: bool):
        super().__init__()
        self.register_buffer("bits", torch.zeros(sizes, dtype=torch.int32))
        self.register_buffer("scale", torch.ones(sizes[0]))
        self.register_buffer("bias", torch.zeros(sizes[0]) if bias else None)
        self._prepare()

    def _load_from_state_dict(self, state, prefix, metadata, strict, missing, unexpected, errors):
        bits = state.get(f"{prefix}bits")
        if bits is not None:
            try:
                checks.check_loaded_bits(f"{prefix}bits", bits, self._row_bits())
            except (TypeError, ValueError) as error:
                errors.append(str(error))
                return
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, unexpected, errors)
        self._prepare()

    def __getstate__(self):
        # What _prepare() makes belongs to this machine and version.
        transient = self._non_persistent_buffers_set
        kept = {key: value for key, value in self._buffers.items() if key not in transient}
        return self.__dict__ | {"_buffers": kept}

    def __setstate__(self, state):
        super().__setstate__(state)
        self._prepare()

    def fill(self, bits: Tensor, scale: Tensor, bias: Tensor | None):
        """Copies a layer's bits and vectors into the module; returns it."""
        self.bits.copy_(bits)
        self.scale.copy_(scale)
        if bias is not None:
            self.bias.copy_(bias)
        self._prepare()
        return self


class PackedLinear(_Packed):
    """Linear layer of +-1 for inference: y = scale * (binarize(x) times bits^T) + bias.

    Args:
        in_features, out_features, bias: as `BinaryLinear`.

    Buffers: bits int32 [out, W(in)], scale [out], bias [out] or None; all +1 until they are loaded.
    Shapes: [..., in_features] -> [..., out_features] in the dtype of x.

    >>> import torch, nnkernels
    >>> layer = nnkernels.nn.PackedLinear(3, 1)
    >>> layer(torch.tensor([1.0, -2.0, 3.0]))
    tensor([1.])
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True):
        checks.check_features(type(self).__name__, in_features, out_features)
        self.in_features = in_features
        self.out_features = out_features
        super().__init__((out_features, row_words(in_features)), bias)

    def _row_bits(self):
        return self.in_features

    def _prepare(self):
        packed = ops.prepack(self.bits, self.in_features)
        self.register_buffer("packed", packed, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear_prepacked(
            x,
            self.packed,
            self.out_features,
            self.in_features,
            scale=self.scale.float(),
            bias=as_float(self.bias),
        )

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class Window:
    """Sizes and options of a convolution layer, as attributes of the module that has it."""

    def _set_window(
        self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, pad_mode
    ):
        name = type(self).__name__
        checks.check_length(name, in_channels, name="in_channels")
        checks.check_length(name, out_channels, name="out_channels")
        checks.check_groups(name, in_channels, out_channels, groups)
        checks.check_pad_mode(name, pad_mode)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = checks.pair(name, "kernel_size", kernel_size, 1)
        self.stride = checks.pair(name, "stride", stride, 1)
        self.padding = checks.pair(name, "padding", padding, 0)
        self.dilation = checks.pair(name, "dilation", dilation, 1)
        self.groups = groups
        self.pad_mode = pad_mode

    @property
    def _window(self) -> tuple:
        return self.stride, self.padding, self.dilation, self.groups, self.pad_mode

    def _sizes(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, pad_mode={self.pad_mode!r}"
        )


class PackedConv2d(Window, _Packed):
    """Convolution of +-1 for inference: y = scale * conv2d(binarize(x), bits) + bias.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, pad_mode, bias:
            as `BinaryConv2d`.

    Buffers: bits int32 [out, KH, KW, W(in / groups)], scale [out], bias [out] or None; all +1 until
    they are loaded.
    Shapes: x [batch, in, H, W] -> [batch, out, OH, OW] in the dtype of x.
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
    ):
        self._set_window(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, pad_mode
        )
        words = row_words(in_channels // groups)
        super().__init__((out_channels, *self.kernel_size, words), bias)

    def _row_bits(self):
        return self.in_channels // self.groups

    def _prepare(self):
        corr = ops.conv2d_corr(self.bits, self.in_channels, self.groups)
        self.register_buffer("corr", corr, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"PackedConv2d: x is {list(x.shape)}, expected [batch, {self.in_channels}, H, W]"
            )
        checks.refuse_gradients("PackedConv2d", x)
        pixels = x.unflatten(1, (self.groups, -1)).permute(0, 3, 4, 1, 2)
        return ops.conv2d(
            ops.pack(pixels).flatten(3),
            self.bits,
            self.in_channels,
            *self._window,
            corr=self.corr,
            scale=self.scale.float(),
            bias=as_float(self.bias),
            out_dtype=x.dtype,
            nchw=True,
        )

    def extra_repr(self) -> str:
        return f"{self._sizes()}, bias={self.bias is not None}"
