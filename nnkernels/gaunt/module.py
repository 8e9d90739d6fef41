"""Modules of products on the sphere: GauntTensorProduct and GauntPower."""

import torch
from torch import Tensor, nn

from nnkernels._checks import boolean, choice, integer
from nnkernels.gaunt import checks, ops


def _degree_weights(channels: int | None, L: int, layout: str, options: dict) -> nn.Parameter:
    shape = (L + 1,) if channels is None else (channels, L + 1)
    if layout == "ir_mul":
        shape = (L + 1, channels)
    return nn.Parameter(torch.ones(shape, **options))


def _check_channels(name: str, channels, layout: str):
    if channels is None:
        if layout == "ir_mul":
            raise ValueError(f"{name}: layout 'ir_mul' needs channels")
        return
    integer(name, "channels", channels)
    if channels < 1:
        raise ValueError(f"{name}: channels must be positive, got {channels}")


class GauntTensorProduct(nn.Module):
    """The Gaunt product of two signals with a learnt weight for each degree and channel.

    Path (l1, l2, l3) is weighted by w1[l1] w2[l2] w3[l3]. Components lie in e3nn's order: the
    module takes the place of an e3nn "uuu" product of the even paths, whose weights it factorises.

    Args:
        L1, L2, L3: degrees of the two inputs and of the result.
        channels: C; weights are then [C, L + 1] (layout "ir_mul": [L + 1, C]). None: [L + 1].
        kind: "even" (`gaunt.product`) or "cross" (`gaunt.cross`).
        weighted: whether there are weights; they start as ones.
        normalization, layout: see `nnkernels.gaunt.ops`.
        device, dtype: of the weights.

    Parameters: w1, w2, w3, or none.
    Shapes: x [..., C, d1], y [..., C, d2] or [..., 1, d2] -> [..., C, d3]; layout "ir_mul":
        x [..., d1, C], y [..., d2, C] or [..., d2, 1] -> [..., d3, C]. Raises as `gaunt.product`.

    >>> import torch, nnkernels
    >>> layer = nnkernels.nn.GauntTensorProduct(2, 2, 3, channels=16)
    >>> layer(torch.randn(5, 16, 9), torch.randn(5, 1, 9)).shape
    torch.Size([5, 16, 16])
    """

    def __init__(
        self,
        L1: int,
        L2: int,
        L3: int,
        *,
        channels: int | None = None,
        kind: str = "even",
        weighted: bool = True,
        normalization: str = "integral",
        layout: str = "mul_ir",
        device=None,
        dtype=None,
    ):
        super().__init__()
        name = type(self).__name__
        checks.check_degrees(name, L1=L1, L2=L2, L3=L3)
        checks.check_sum(name, L1 + L2 + L3)
        choice(name, "kind", kind, checks.KINDS)
        checks.check_options(name, normalization, layout)
        boolean(name, "weighted", weighted)
        _check_channels(name, channels, layout)
        self.degrees = (L1, L2, L3)
        self.channels = channels
        self.kind = kind
        self.normalization = normalization
        self.layout = layout
        for index, degree in enumerate(self.degrees, 1):
            weight = None
            if weighted:
                options = {"device": device, "dtype": dtype}
                weight = _degree_weights(channels, degree, layout, options)
            self.register_parameter(f"w{index}", weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        function = ops.product if self.kind == "even" else ops.cross
        return function(
            x,
            y,
            *self.degrees,
            self.w1,
            self.w2,
            self.w3,
            normalization=self.normalization,
            layout=self.layout,
        )

    def extra_repr(self) -> str:
        L1, L2, L3 = self.degrees
        return (
            f"{L1}, {L2}, {L3}, channels={self.channels}, kind={self.kind!r}, "
            f"weighted={self.w1 is not None}, normalization={self.normalization!r}, "
            f"layout={self.layout!r}"
        )


class GauntPower(nn.Module):
    """Many-body features: the sum over n of w_n times the n-th power of a signal, as MACE builds.

    Every power is the pointwise product of n equal signals and so couples n neighbourhoods at once;
    w_n weighs its degrees, for each channel and, where given, each kind of atom.

    Args:
        L: degree of the input. Lout: degree of the result.
        order: the highest power, from 1 to 6.
        channels: C.
        kinds: number of kinds of atoms with weights of their own; None for one set of weights.
        normalization, layout: see `nnkernels.gaunt.ops`.
        device, dtype: of the weights.

    Parameters: weight [order, C, Lout + 1] (layout "ir_mul": [order, Lout + 1, C]), with kinds
        [kinds, order, ...]; normal deviates of variance 1 / order.
    Shapes: x [..., C, d], kind int64 [...] with kinds -> [..., C, d_out]; layout "ir_mul" with the
        last two dimensions exchanged. Raises as `gaunt.power`; ValueError for a kind that is
        missing or not wanted.

    >>> import torch, nnkernels
    >>> layer = nnkernels.nn.GauntPower(2, 1, order=3, channels=16)
    >>> layer(torch.randn(5, 16, 9)).shape
    torch.Size([5, 16, 4])
    """

    def __init__(
        self,
        L: int,
        Lout: int,
        *,
        order: int,
        channels: int,
        kinds: int | None = None,
        normalization: str = "integral",
        layout: str = "mul_ir",
        device=None,
        dtype=None,
    ):
        super().__init__()
        name = type(self).__name__
        checks.check_degrees(name, L=L, Lout=Lout)
        integer(name, "order", order)
        checks.check_factors(name, "order", order)
        checks.check_sum(name, order * L + Lout)
        checks.check_options(name, normalization, layout)
        integer(name, "channels", channels)
        _check_channels(name, channels, layout)
        if kinds is not None:
            integer(name, "kinds", kinds)
        self.L = L
        self.Lout = Lout
        self.order = order
        self.channels = channels
        self.kinds = kinds
        self.normalization = normalization
        self.layout = layout
        shape = (channels, Lout + 1) if layout == "mul_ir" else (Lout + 1, channels)
        shape = (order, *shape) if kinds is None else (kinds, order, *shape)
        weight = torch.empty(shape, device=device, dtype=dtype)
        self.weight = nn.Parameter(weight.normal_(std=order**-0.5))
        degrees = [l for l in range(Lout + 1) for _ in range(2 * l + 1)]
        self.register_buffer("_degrees", torch.tensor(degrees, device=device), persistent=False)

    def forward(self, x: Tensor, kind: Tensor | None = None) -> Tensor:
        if (kind is None) != (self.kinds is None):
            wanted = "no kind" if self.kinds is None else f"kind, one of {self.kinds} for each atom"
            raise ValueError(f"GauntPower: expected {wanted}")
        weight = self.weight if kind is None else self.weight[kind]
        along = -1 if self.layout == "mul_ir" else -2
        # One factor for each coefficient.
        weight = weight.index_select(along, self._degrees)
        options = {"normalization": self.normalization, "layout": self.layout}
        out = None
        for n in range(self.order):
            term = weight[..., n, :, :] * ops.power(x, n + 1, self.L, self.Lout, **options)
            out = term if out is None else out + term
        return out

    def extra_repr(self) -> str:
        return (
            f"{self.L}, {self.Lout}, order={self.order}, channels={self.channels}, "
            f"kinds={self.kinds}, normalization={self.normalization!r}, layout={self.layout!r}"
        )
