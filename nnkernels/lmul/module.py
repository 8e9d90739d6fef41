"""Modules with L-Mul products: LMulLinear and LMulAttention."""

from torch import Tensor, nn

from nnkernels._checks import boolean, choice, integer
from nnkernels.lmul import checks, ops


class LMulLinear(nn.Linear):
    """torch.nn.Linear with L-Mul products; the same arguments, parameters and state_dict.

    Args:
        in_features, out_features, bias, device, dtype: as torch.nn.Linear.
        mantissa_bits, mode, round, offset, grad: see `nnkernels.lmul.ops`.

    Shapes: [..., in_features] -> [..., out_features]. Raises and guarantees: as `lmul.linear`.

    >>> import torch, nnkernels
    >>> layer = nnkernels.nn.LMulLinear(3, 2, mantissa_bits=4)
    >>> layer(torch.ones(5, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device=None,
        dtype=None,
        *,
        mantissa_bits: int | None = None,
        mode: str = "bits",
        round: str = "trunc",
        offset: float | None = None,
        grad: str | None = "ste",
    ):
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._set_options(mantissa_bits, mode, round, offset, grad)

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options) -> "LMulLinear":
        """The layer in the place of `linear`: shares its parameters, hooks and training flag. An
        LMulLinear is returned itself, with these options."""
        if type(linear) is cls:
            linear._set_options(**options)
            return linear
        layer = cls.__new__(cls)
        layer.__dict__.update(linear.__dict__)
        layer._set_options(**options)
        return layer

    def _set_options(self, mantissa_bits=None, mode="bits", round="trunc", offset=None, grad="ste"):
        checks.check_options("LMulLinear", mantissa_bits, mode, round, offset, grad)
        self.mantissa_bits = mantissa_bits
        self.mode = mode
        self.round = round
        self.offset = offset
        self.grad = grad

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(
            x,
            self.weight,
            self.bias,
            mantissa_bits=self.mantissa_bits,
            mode=self.mode,
            round=self.round,
            offset=self.offset,
            grad=self.grad,
        )

    def extra_repr(self) -> str:
        options = f"mantissa_bits={self.mantissa_bits}, mode={self.mode!r}, round={self.round!r}"
        return f"{super().extra_repr()}, {options}, offset={self.offset}, grad={self.grad!r}"


class LMulAttention(nn.Module):
    """Multi-head self-attention whose two matrix products are L-Mul; projections are exact.

    Args:
        embed_dim: E, a multiple of num_heads; E / num_heads up to 256.
        num_heads: H query heads.
        num_kv_heads: Hk key and value heads, a divisor of H; default H.
        bias: whether the projections have one.
        normalize, mantissa_bits, mode, round, grad: see `lmul.attention`.
        is_causal: query i sees keys j <= i.

    Parameters: q_proj, k_proj, v_proj and out_proj, plain torch.nn.Linear layers.
    Shapes: x [B, T, E] -> [B, T, E]. Raises ValueError for sizes that do not fit.

    >>> import torch, nnkernels
    >>> attention = nnkernels.nn.LMulAttention(32, 4, num_kv_heads=2, mantissa_bits=4)
    >>> attention(torch.randn(2, 7, 32)).shape
    torch.Size([2, 7, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        bias: bool = True,
        *,
        normalize: str = "before",
        mantissa_bits: int | None = None,
        mode: str = "bits",
        round: str = "trunc",
        grad: str | None = "ste",
        is_causal: bool = False,
    ):
        super().__init__()
        name = "LMulAttention"
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        for argument, value in (
            ("embed_dim", embed_dim),
            ("num_heads", num_heads),
            ("num_kv_heads", num_kv_heads),
        ):
            integer(name, argument, value)
        boolean(name, "is_causal", is_causal)
        checks.check_options(name, mantissa_bits, mode, round, None, grad)
        choice(name, "normalize", normalize, checks.NORMALIZES)
        if num_heads < 1 or embed_dim % num_heads != 0:
            raise ValueError(
                f"{name}: embed_dim={embed_dim} is not a multiple of num_heads={num_heads}"
            )
        if num_kv_heads < 1 or num_heads % num_kv_heads != 0:
            raise ValueError(
                f"{name}: num_heads={num_heads} is not a multiple of num_kv_heads={num_kv_heads}"
            )
        self.head_dim = embed_dim // num_heads
        if self.head_dim > checks.MAX_HEAD_DIM:
            raise ValueError(
                f"{name}: embed_dim / num_heads is {self.head_dim}, expected up to "
                f"{checks.MAX_HEAD_DIM}"
            )
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias)
        self.k_proj = nn.Linear(embed_dim, num_kv_heads * self.head_dim, bias)
        self.v_proj = nn.Linear(embed_dim, num_kv_heads * self.head_dim, bias)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias)
        self.normalize = normalize
        self.mantissa_bits = mantissa_bits
        self.mode = mode
        self.round = round
        self.grad = grad
        self.is_causal = is_causal

    def _heads(self, projected: Tensor) -> Tensor:
        # [B, T, heads * D] -> [B, heads, T, D]
        return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 3 or x.shape[-1] != self.q_proj.in_features:
            raise ValueError(
                f"LMulAttention: x is {list(x.shape)}, expected [B, T, {self.q_proj.in_features}]"
            )
        out = ops.attention(
            self._heads(self.q_proj(x)),
            self._heads(self.k_proj(x)),
            self._heads(self.v_proj(x)),
            is_causal=self.is_causal,
            normalize=self.normalize,
            mantissa_bits=self.mantissa_bits,
            mode=self.mode,
            round=self.round,
            grad=self.grad,
        )
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        return (
            f"normalize={self.normalize!r}, mantissa_bits={self.mantissa_bits}, "
            f"mode={self.mode!r}, round={self.round!r}, grad={self.grad!r}, "
            f"is_causal={self.is_causal}"
        )
