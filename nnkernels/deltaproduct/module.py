"""The layer around the scan: GatedDeltaProduct, its short convolutions and its cache."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnkernels import _checks
from nnkernels.deltaproduct import checks, ops
from nnkernels.deltaproduct.reference import state_dtype


class DeltaProductCache(NamedTuple):
    """What a GatedDeltaProduct carries from one call to the next: of fixed size, whatever T.

    state: [N, H, K, V] float32. conv: the last inputs of the convolutions of q, k and v, each
    [N, conv_size - 1, channels], or None without convolutions.
    """

    state: Tensor
    conv: tuple[Tensor, Tensor, Tensor] | None


class _Window(NamedTuple):
    """Which rows of the packed inputs a convolution reads: [T, size] for the tokens and
    [N, size - 1] for the next cache, as rows of the cached inputs followed by those of x."""

    tokens: Tensor
    state: Tensor

    @classmethod
    def of(cls, cu_seqlens: Tensor, T: int, size: int) -> "_Window":
        N, kept = cu_seqlens.shape[0] - 1, size - 1
        bounds = cu_seqlens.long()
        starts, lengths = bounds[:-1], bounds.diff()

        def rows(sequence, position):
            """The row of a position in its sequence; negative ones are cached."""
            cached = sequence * kept + kept + position
            return torch.where(position < 0, cached, N * kept + starts[sequence] + position)

        token = torch.arange(T, device=bounds.device)
        # Tokens after the last boundary read the last sequence; their results are dropped.
        sequence = torch.searchsorted(bounds[1:], token, right=True).clamp(max=N - 1)
        lags = torch.arange(-kept, 1, device=bounds.device)
        tokens = rows(sequence[:, None], (token - starts[sequence])[:, None] + lags)
        every = torch.arange(N, device=bounds.device)[:, None]
        return cls(tokens, rows(every, lengths[:, None] + lags[:-1]))


class ShortConvolution(nn.Conv1d):
    """Causal depthwise convolution along time, then silu; weight [channels, 1, size], no bias."""

    def __init__(self, channels: int, size: int):
        super().__init__(channels, channels, size, groups=channels, bias=False)

    def forward(
        self, x: Tensor, cached: Tensor | None, window: _Window | None
    ) -> tuple[Tensor, Tensor]:
        """x [B, T, channels] after the inputs `cached` [N, size - 1, channels] (None for zeros) ->
        (the result, the inputs to be cached)."""
        kept, T = self.kernel_size[0] - 1, x.shape[1]
        if cached is None:
            count = x.shape[0] if window is None else window.state.shape[0]
            cached = x.new_zeros(count, kept, x.shape[2])
        cached = cached.to(x.dtype)
        if window is None:
            rows = torch.cat([cached, x], 1)
            # conv1d refuses an empty result.
            y = super().forward(rows.mT).mT if T > 0 else x
            # A view would keep the whole of x alive.
            return functional.silu(y), rows[:, T:].clone()
        rows = torch.cat([cached.flatten(0, 1), x[0]])
        taps = self.weight[:, 0].unbind(1)
        y = sum(tap * rows[index] for tap, index in zip(taps, window.tokens.unbind(1), strict=True))
        return functional.silu(y)[None], rows[window.state]


class GatedDeltaProduct(nn.Module):
    """The (Gated) DeltaProduct layer (arXiv 2502.10297), a linear RNN with a matrix state.

    Args:
        hidden_size: D.
        num_heads: Hk query and key heads. num_v_heads: H value heads, a multiple; default Hk.
        head_dim: K. expand_v: V / K.
        num_householder: n, reflections of the state per token; 1 gives (Gated) DeltaNet.
        allow_neg_eigval: beta in [0, 2] instead of [0, 1]; needed to track states.
        use_forget_gate: whether the state decays.
        use_short_conv, conv_size: causal convolutions of q, k and v over the last tokens.
        use_output_gate, norm_eps: RMS norm of the result, times silu of a projection of x.

    Parameters have the names and layout of the public layer of flash-linear-attention, whose
    checkpoints load: {q,k,v,b,a,g,o}_proj, {q,k,v}_conv1d, A_log, dt_bias, o_norm.

    Shapes: x [B, T, D] -> (y [B, T, D], cache). Passing the cache on continues the sequences: a
    prefill and steps of T = 1 give what one long call gives. In steps without gradients the state
    in the cache is updated in place. `cu_seqlens` as in `deltaproduct.scan`; the cache then has one
    entry per sequence.

    Raises ValueError for sizes that do not fit; guarantees: as `deltaproduct.scan`.

    >>> import torch, nnkernels
    >>> layer = nnkernels.nn.GatedDeltaProduct(64, num_heads=2, head_dim=16)
    >>> with torch.no_grad():
    ...     y, cache = layer(torch.randn(1, 10, 64))
    ...     y, cache = layer(torch.randn(1, 1, 64), cache)
    >>> y.shape, cache.state.shape
    (torch.Size([1, 1, 64]), torch.Size([1, 2, 16, 16]))
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        *,
        expand_v: float = 1.0,
        num_v_heads: int | None = None,
        num_householder: int = 2,
        allow_neg_eigval: bool = True,
        use_forget_gate: bool = True,
        use_short_conv: bool = True,
        conv_size: int = 4,
        use_output_gate: bool = True,
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        num_v_heads = num_heads if num_v_heads is None else num_v_heads
        _check_sizes(
            hidden_size=hidden_size,
            num_heads=num_heads,
            head_dim=head_dim,
            num_v_heads=num_v_heads,
            conv_size=conv_size,
        )
        checks.check_num_householder(_NAME, num_householder)
        _checks.real(_NAME, "expand_v", expand_v)
        for name, value in (
            ("allow_neg_eigval", allow_neg_eigval),
            ("use_forget_gate", use_forget_gate),
            ("use_short_conv", use_short_conv),
            ("use_output_gate", use_output_gate),
        ):
            _checks.boolean(_NAME, name, value)
        if num_v_heads % num_heads != 0:
            raise ValueError(
                f"{_NAME}: num_v_heads={num_v_heads} is not a multiple of num_heads={num_heads}"
            )
        value_dim = round(head_dim * expand_v)
        if value_dim < 1 or not math.isclose(value_dim, head_dim * expand_v, rel_tol=1e-5):
            raise ValueError(
                f"{_NAME}: head_dim={head_dim} times expand_v={expand_v} is not a positive integer"
            )
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.num_v_heads = num_v_heads
        self.head_dim = head_dim
        self.value_dim = value_dim
        self.num_householder = num_householder
        self.allow_neg_eigval = allow_neg_eigval
        self.use_forget_gate = use_forget_gate
        self.use_short_conv = use_short_conv
        self.conv_size = conv_size
        self.use_output_gate = use_output_gate

        keys, values = num_heads * head_dim, num_v_heads * value_dim
        widths = {"q": keys, "k": keys * num_householder, "v": values * num_householder}
        for name, width in widths.items():
            setattr(self, f"{name}_proj", nn.Linear(hidden_size, width, bias=False))
            if use_short_conv:
                setattr(self, f"{name}_conv1d", ShortConvolution(width, conv_size))
        self.b_proj = nn.Linear(hidden_size, num_v_heads * num_householder, bias=False)
        if use_forget_gate:
            self.a_proj = nn.Linear(hidden_size, num_v_heads, bias=False)
            self.A_log = nn.Parameter(torch.empty(num_v_heads).uniform_(0, 16).log())
            # softplus(dt_bias) is between 0.001 and 0.1, evenly in its logarithm.
            dt = torch.empty(num_v_heads).uniform_(math.log(1e-3), math.log(1e-1)).exp()
            self.dt_bias = nn.Parameter(dt.expm1().log())
            for parameter in (self.A_log, self.dt_bias):
                parameter._no_weight_decay = True
        if use_output_gate:
            self.g_proj = nn.Linear(hidden_size, values, bias=False)
        self.o_norm = nn.RMSNorm(value_dim, eps=norm_eps)
        self.o_proj = nn.Linear(values, hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        cache: DeltaProductCache | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, DeltaProductCache]:
        self._check_input(x, cache, cu_seqlens)
        q, k, v, conv = self._qkv(x, cache, cu_seqlens)
        n = self.num_householder
        beta = self.b_proj(x).sigmoid().unflatten(-1, (n, self.num_v_heads))
        if self.allow_neg_eigval:
            beta = 2 * beta
        g = None
        if self.use_forget_gate:
            wide = state_dtype(x.dtype)
            step_size = functional.softplus(self.a_proj(x).to(wide) + self.dt_bias.to(wide))
            g = -self.A_log.to(wide).exp() * step_size
        stepping = (
            cache is not None
            and cu_seqlens is None
            and x.shape[1] == 1
            and not cache.state.requires_grad
            and not (torch.is_grad_enabled() and q.requires_grad)
        )
        if stepping:
            state = cache.state
            gate = None if g is None else g[:, 0]
            o = ops.step(
                q[:, 0], k[:, 0], v[:, 0], gate, beta[:, 0], state, use_qk_l2norm=True
            ).unsqueeze(1)
        else:
            o, state = ops.scan(
                *(q, k, v, g, beta, n),
                initial_state=None if cache is None else cache.state,
                output_final_state=True,
                use_qk_l2norm=True,
                cu_seqlens=cu_seqlens,
            )
        o = self.o_norm(o)
        if self.use_output_gate:
            o = o * functional.silu(self.g_proj(x)).unflatten(-1, (-1, self.value_dim))
        return self.o_proj(o.flatten(2).to(x.dtype)), DeltaProductCache(state, conv)

    def _qkv(self, x, cache, cu_seqlens):
        """q [B, T, Hk, K], k [B, T, n, Hk, K], v [B, T, n, H, V] and what their convolutions
        cache."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        conv = None
        if self.use_short_conv:
            window = None
            if cu_seqlens is not None:
                window = _Window.of(cu_seqlens, x.shape[1], self.conv_size)
            cached = (None,) * 3 if cache is None else cache.conv
            q, q_last = self.q_conv1d(q, cached[0], window)
            k, k_last = self.k_conv1d(k, cached[1], window)
            v, v_last = self.v_conv1d(v, cached[2], window)
            conv = q_last, k_last, v_last
        else:
            q, k, v = functional.silu(q), functional.silu(k), functional.silu(v)
        n = self.num_householder
        q = q.unflatten(-1, (self.num_heads, self.head_dim))
        k = k.unflatten(-1, (n, self.num_heads, self.head_dim))
        v = v.unflatten(-1, (n, self.num_v_heads, self.value_dim))
        return q, k, v, conv

    def _check_input(self, x, cache, cu_seqlens):
        if x.dim() != 3 or x.shape[-1] != self.hidden_size:
            raise ValueError(f"{_NAME}: x is {list(x.shape)}, expected [B, T, {self.hidden_size}]")
        if cu_seqlens is not None:
            checks.check_cu_seqlens(_NAME, cu_seqlens, "x", x)
            checks.check_bounds(_NAME, cu_seqlens, x.shape[1])
        if cache is None:
            return
        if not isinstance(cache, DeltaProductCache):
            raise TypeError(
                f"{_NAME}: cache must be what an earlier call returned, got {type(cache).__name__}"
            )
        N = checks.sequences(x.shape[0], cu_seqlens)
        if cache.state.shape[0] != N or (cache.conv is not None) != self.use_short_conv:
            raise ValueError(
                f"{_NAME}: cache is of {cache.state.shape[0]} sequences and "
                f"{'has' if cache.conv is not None else 'has no'} convolution inputs, expected "
                f"{N} sequences and use_short_conv={self.use_short_conv}"
            )

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, num_v_heads={self.num_v_heads}, "
            f"head_dim={self.head_dim}, value_dim={self.value_dim}, "
            f"num_householder={self.num_householder}, allow_neg_eigval={self.allow_neg_eigval}"
        )


_NAME = "GatedDeltaProduct"


def _check_sizes(**sizes):
    for name, value in sizes.items():
        _checks.integer(_NAME, name, value)
        if value < 1:
            raise ValueError(f"{_NAME}: {name} must be at least 1, got {value}")
