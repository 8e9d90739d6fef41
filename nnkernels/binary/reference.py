"""Binary (XNOR) arithmetic in plain PyTorch: what every kernel of this package is tested against.

A value of -1 is the bit 1, +1 is the bit 0. A row of K values is W(K) = 8 * ceil(K / 256) int32
words, least significant bit first, pad bits 0. Everything here favours being obviously right over
being fast: bits are unpacked to int64 numbers, sums are int64, and a float result is

    y = float32(dot) * row_scale[m] * col_scale[n] + bias[n]

in this order, each step rounded to float32 (an absent vector is a skipped step), then one rounding
to the result's dtype. BiPer (Vargas et al., "BiPer: Binary Neural Networks using a Periodic
Function", CVPR 2024, arXiv 2404.01278) binarises w to the sign of sin(omega w).

Functions bear the names of the operators; those named `*_grad` return gradients in float64.
"""

import math

import torch
from torch import Tensor


def row_words(K: int) -> int:
    """W(K), the words of a packed row of K values.

    >>> [row_words(K) for K in (1, 256, 257)]
    [8, 8, 16]
    """
    return (K + 255) // 256 * 8


# ---- packing ----


def _to_words(ones: Tensor) -> Tensor:
    """Booleans [..., K] as words [..., W(K)]."""
    K = ones.shape[-1]
    padded = torch.nn.functional.pad(ones.to(torch.int64), (0, 32 * row_words(K) - K))
    values = padded.unflatten(-1, (-1, 32)) << torch.arange(32, device=ones.device)
    words = values.sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def _from_words(words: Tensor, K: int) -> Tensor:
    """The first K bits of words [..., W(K)], as int64 zeros and ones."""
    places = torch.arange(32, device=words.device)
    return (words.to(torch.int64).unsqueeze(-1) >> places & 1).flatten(-2)[..., :K]


def _signs(words: Tensor, K: int) -> Tensor:
    return 1 - 2 * _from_words(words, K)


def _refuse(op: str, bad: Tensor, what: str):
    if bad.any():
        raise ValueError(f"{op}: {what} at {bad.nonzero()[0].tolist()}")


def pack(x: Tensor, *, check_nan: bool = False) -> Tensor:
    """The bits of x: 1 where x < 0, so that zeros of both signs and NaN count as +1.

    >>> pack(torch.tensor([-1.0, 2.0, -0.0, -3.0]))[0].item()
    9
    """
    if check_nan and x.is_floating_point():
        _refuse("binary_pack", x.isnan(), "x is NaN")
    return _to_words(x < 0)


def pack_rowpop(x: Tensor, *, check_nan: bool = False) -> tuple[Tensor, Tensor]:
    """`pack` and the number of -1s of every row."""
    return pack(x, check_nan=check_nan), (x < 0).sum(-1, dtype=torch.int32)


def unpack(bits: Tensor, K: int, dtype: torch.dtype) -> Tensor:
    """The values +1 and -1 of packed rows."""
    return _signs(bits, K).to(dtype)


def biper_negative(w: Tensor, omega: float) -> Tensor:
    """Where sin(p) < 0 for p = float32(omega) * float32(w): floor(p / pi) is odd, in float64."""
    p = w.to(torch.float32) * torch.tensor(omega, dtype=torch.float32)
    return torch.floor(p.to(torch.float64) / math.pi) % 2 == 1


def pack_biper(w: Tensor, omega: float, *, check: bool = False) -> Tensor:
    """The bits of the square wave sign(sin(omega w))."""
    if check:
        p = w.to(torch.float32) * torch.tensor(omega, dtype=torch.float32)
        _refuse("binary_pack_biper", ~(p.abs() <= 2.0**20), "|omega * w| exceeds 2^20 or is NaN")
    return _to_words(biper_negative(w, omega))


def pack_ternary(t: Tensor) -> tuple[Tensor, Tensor]:
    """Two planes of t in {-1, 0, 1}: where it is not 0, and where it is negative."""
    return _to_words(t != 0), _to_words(t < 0)


def popcount(t: Tensor) -> Tensor:
    """The number of ones of every word.

    >>> popcount(torch.tensor([0, 7, -1], dtype=torch.int32)).tolist()
    [0, 3, 32]
    """
    return _from_words(t.unsqueeze(-1), 32).sum(-1, dtype=torch.int32)


# ---- results ----


def _integer_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a [..., M, K] times b [..., N, K], exact: sums of K terms stay far below 2^53."""
    return (a.to(torch.float64) @ b.to(torch.float64).mT).to(torch.int64)


def _store(dot: Tensor, row_scale, col_scale, bias, out_dtype) -> Tensor:
    """Integers [..., N] as the result of the module's formula."""
    if out_dtype is None or not out_dtype.is_floating_point:
        return dot.to(out_dtype or torch.int32)
    y = dot.to(torch.float32)
    if row_scale is not None:
        y = y * row_scale.unsqueeze(-1)
    if col_scale is not None:
        y = y * col_scale
    if bias is not None:
        y = y + bias
    return y.to(out_dtype)


def _threshold(dot: Tensor, thresh: Tensor, direction: Tensor) -> Tensor:
    """Bits along the last dimension: dot against the threshold of its channel."""
    ones = torch.where(
        direction > 0, dot < thresh, torch.where(direction < 0, dot > thresh, thresh != 0)
    )
    return _to_words(ones)


# ---- products ----


def matmul(
    a: Tensor,
    b: Tensor,
    K: int,
    *,
    row_scale: Tensor | None = None,
    col_scale: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    a_pop: Tensor | None = None,
    b_pop: Tensor | None = None,
    check_padding: bool = False,
) -> Tensor:
    """dot[..., m, n] = sum over k of a[..., m, k] * b[..., n, k] of packed rows of +-1.

    >>> a = pack(torch.tensor([[1.0, -1.0, -1.0]]))
    >>> matmul(a, a, 3)
    tensor([[3]], dtype=torch.int32)
    """
    if check_padding:
        for name, bits in (("a", a), ("b", b)):
            every = _from_words(bits, 32 * bits.shape[-1])
            _refuse("binary_matmul", every[..., K:] != 0, f"{name} has a set pad bit")
    dot = _integer_matmul(_signs(a, K), _signs(b, K))
    return _store(dot, row_scale, col_scale, bias, out_dtype)


def rows_of_packed(packed: Tensor, N: int, K: int) -> Tensor:
    """The bits [N, W(K)] that a prepacked weight holds behind its header of 64 bytes."""
    header = packed[:32].clone().view(torch.int64)
    if packed[:8].tolist() != list(b"nnkbincp") or header[2:].tolist() != [N, K]:
        raise ValueError(f"binary reference: not a weight prepacked with N={N}, K={K}")
    words = N * row_words(K)
    return packed[64 : 64 + 4 * words].clone().view(torch.int32).view(N, row_words(K))


def matmul_prepacked(a: Tensor, b_packed: Tensor, N: int, K: int, **options) -> Tensor:
    """`matmul` with a prepacked b."""
    return matmul(a, rows_of_packed(b_packed, N, K), K, **options)


def matmul_sign(a: Tensor, b: Tensor, K: int, thresh: Tensor, dir: Tensor) -> Tensor:
    """Bits [..., W(N)] of `matmul` against a threshold for every column, see `fold_bn`."""
    return _threshold(matmul(a, b, K), thresh, dir)


def hamming(a: Tensor, b: Tensor, K: int) -> Tensor:
    """The number of places in which packed rows differ, [..., M, N]."""
    return (K - matmul(a, b, K)) // 2


def linear(
    x: Tensor, w_bits: Tensor, K: int, *, scale: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """`matmul` of float rows x [..., K], binarised on the way, in the dtype of x."""
    return matmul(pack(x), w_bits, K, col_scale=scale, bias=bias, out_dtype=x.dtype)


def linear_prepacked(x: Tensor, w_packed: Tensor, N: int, K: int, **options) -> Tensor:
    """`linear` with a prepacked weight."""
    return linear(x, rows_of_packed(w_packed, N, K), K, **options)


def ternary_matmul(
    a_mask: Tensor, a_sign: Tensor, b_mask: Tensor, b_sign: Tensor, K: int
) -> Tensor:
    """Sums of products of ternary rows given as planes."""
    a, b = (
        _from_words(mask, K) * _signs(sign, K)
        for mask, sign in ((a_mask, a_sign), (b_mask, b_sign))
    )
    return _integer_matmul(a, b).to(torch.int32)


def int8_matmul(
    x: Tensor,
    w_bits: Tensor,
    K: int,
    *,
    w_mask: Tensor | None = None,
    row_scale: Tensor | None = None,
    col_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Products of int8 rows x [..., K] with binary rows, or ternary ones where w_mask is given."""
    w = _signs(w_bits, K)
    if w_mask is not None:
        w = w * _from_words(w_mask, K)
    return _store(_integer_matmul(x, w), row_scale, col_scale, None, out_dtype)


def planes_matmul(a_planes: Tensor, b_planes: Tensor, K: int) -> Tensor:
    """Products of rows of unsigned integers given as bit planes, least significant first."""
    a, b = (
        (_from_words(planes, K) << torch.arange(planes.shape[0])[:, None, None]).sum(0)
        for planes in (a_planes, b_planes)
    )
    return _integer_matmul(a, b).to(torch.int32)


# ---- convolution ----


def _tap(image: Tensor, y: int, x: int, height: int, width: int, stride) -> Tensor:
    """Every stride-th pixel of [batch, C, H, W] from (y, x) on, height by width of them."""
    return image[:, :, y :: stride[0], x :: stride[1]][:, :, :height, :width]


def _padded(x: Tensor, padding, pad_mode: str) -> Tensor:
    value = {"zero": 0, "one": 1, "minus_one": -1}[pad_mode]
    pads = (padding[1], padding[1], padding[0], padding[0])
    return torch.nn.functional.pad(x.to(torch.float64), pads, value=value)


def _out_size(image: Tensor, kernel, stride, dilation) -> list[int]:
    return [
        (image.shape[2 + d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in range(2)
    ]


def conv2d_dot(x: Tensor, w: Tensor, stride, padding, dilation, groups, pad_mode) -> Tensor:
    """Cross-correlation of numbers x [batch, C, H, W] and w [O, C / groups, KH, KW] in float64.

    A tap outside the image sees 0, +1 or -1 as pad_mode says.
    """
    image = _padded(x, padding, pad_mode)
    outputs, channels, KH, KW = w.shape
    size = _out_size(image, (KH, KW), stride, dilation)
    taps = w.to(torch.float64).unflatten(0, (groups, outputs // groups))
    total = 0
    for i in range(KH):
        for j in range(KW):
            seen = _tap(image, i * dilation[0], j * dilation[1], *size, stride)
            seen = seen.unflatten(1, (groups, channels))
            total = total + torch.einsum("bgchw,goc->bgohw", seen, taps[..., i, j])
    return total.flatten(1, 2)


def _conv2d_dot_grad(g, x, w, stride, padding, dilation, groups, pad_mode):
    """The gradients of `conv2d_dot` with respect to x and w, tap by tap."""
    image = _padded(x, padding, pad_mode)
    outputs, channels, KH, KW = w.shape
    g = g.to(torch.float64).unflatten(1, (groups, outputs // groups))
    taps = w.to(torch.float64).unflatten(0, (groups, outputs // groups))
    grad_image, grad_w = torch.zeros_like(image), torch.zeros_like(taps)
    for i in range(KH):
        for j in range(KW):
            at = (i * dilation[0], j * dilation[1], *g.shape[3:], stride)
            seen = _tap(image, *at).unflatten(1, (groups, channels))
            grad_w[..., i, j] = torch.einsum("bgohw,bgchw->goc", g, seen)
            share = torch.einsum("bgohw,goc->bgchw", g, taps[..., i, j])
            _tap(grad_image, *at).add_(share.flatten(1, 2))
    height, width = x.shape[2:]
    top, left = padding
    return grad_image[:, :, top : top + height, left : left + width], grad_w.flatten(0, 1)


def _images(bits: Tensor, C: int, groups: int) -> Tensor:
    """The +-1 of packed images as numbers [batch, C, H, W]."""
    values = _signs(bits.unflatten(-1, (groups, -1)), C // groups)
    return values.flatten(-2).permute(0, 3, 1, 2)


def _kernels(bits: Tensor, C: int, groups: int) -> Tensor:
    """The +-1 of packed weights as numbers [O, C / groups, KH, KW]."""
    return _signs(bits, C // groups).permute(0, 3, 1, 2)


def _conv2d_of_bits(x, w, C, stride, padding, dilation, groups, pad_mode) -> Tensor:
    """The integers [batch, OH, OW, O] of a convolution of packed images with packed weights."""
    window = [
        pair if isinstance(pair, list | tuple) else (pair, pair)
        for pair in (stride, padding, dilation)
    ]
    dot = conv2d_dot(_images(x, C, groups), _kernels(w, C, groups), *window, groups, pad_mode)
    return dot.to(torch.int64).permute(0, 2, 3, 1)


def conv2d(
    x: Tensor,
    w: Tensor,
    C: int,
    stride=1,
    padding=0,
    dilation=1,
    groups: int = 1,
    pad_mode: str = "zero",
    *,
    corr: Tensor | None = None,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    nchw: bool = False,
) -> Tensor:
    """Convolution of packed images [batch, H, W, groups * W(C / groups)] with packed weights."""
    dot = _conv2d_of_bits(x, w, C, stride, padding, dilation, groups, pad_mode)
    out = _store(dot, None, scale, bias, out_dtype)
    return (out.permute(0, 3, 1, 2) if nchw else out).contiguous()


def conv2d_sign(
    x: Tensor,
    w: Tensor,
    C: int,
    thresh: Tensor,
    dir: Tensor,
    stride=1,
    padding=0,
    dilation=1,
    groups: int = 1,
    pad_mode: str = "zero",
    *,
    corr: Tensor | None = None,
) -> Tensor:
    """Bits [batch, OH, OW, W(O)] of `conv2d` against a threshold for every channel."""
    dot = _conv2d_of_bits(x, w, C, stride, padding, dilation, groups, pad_mode)
    return _threshold(dot, thresh, dir)


def conv2d_corr(w: Tensor, C: int, groups: int = 1) -> Tensor:
    """Sums of weights over the taps before (i, j), [KH + 1, KW + 1, O]."""
    sums = _signs(w, C // groups).sum(-1).permute(1, 2, 0)
    before = torch.nn.functional.pad(sums.cumsum(0).cumsum(1), (0, 0, 1, 0, 1, 0))
    return before.to(torch.int32)


def maxpool2d(bits: Tensor, kernel_size, stride=None, padding=0) -> Tensor:
    """Maximum of +-1 over windows of packed images: -1 only where every tap in the image is."""
    K = 32 * bits.shape[-1]
    values = _signs(bits, K).to(torch.float64).permute(0, 3, 1, 2)
    out = torch.nn.functional.max_pool2d(values, kernel_size, stride or None, padding)
    ones = _from_words(_to_words(out.permute(0, 2, 3, 1) < 0), K)
    return _to_words(ones != 0)[..., : bits.shape[-1]]


# ---- training ----


def square_wave(w: Tensor, omega: Tensor | None) -> Tensor:
    """The +-1 of latent weights in float64: their signs, or those of sin(omega w)."""
    negative = w < 0 if omega is None else biper_negative(w, omega.item())
    return 1 - 2 * negative.to(torch.float64)


def surrogate_slope(x: Tensor, surrogate: str) -> Tensor:
    """What stands for the derivative of binarize at x."""
    if surrogate == "ste":
        return (x.abs() <= 1).to(x.dtype)
    if surrogate == "approxsign":
        return (2 - 2 * x.abs()).clamp(min=0)
    return torch.ones_like(x)


class _Pass(torch.autograd.Function):
    """`value` forward; backward as if it were a function of x with this slope."""

    @staticmethod
    def forward(ctx, x, slope, value):
        ctx.save_for_backward(slope)
        return value.clone()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None, None


def binarize(x: Tensor, surrogate: str = "ste") -> Tensor:
    """+-1 of float64 x with the gradient that the surrogate stands for."""
    return _Pass.apply(x, surrogate_slope(x.detach(), surrogate), square_wave(x.detach(), None))


def biper(w: Tensor, omega: Tensor) -> Tensor:
    """The square wave of float64 w with the gradients of sin(omega w)."""
    value = square_wave(w.detach(), omega.detach())
    wave = torch.sin(omega * w)
    return _Pass.apply(wave, torch.ones_like(value), value)


def _latent(w: Tensor, omega: Tensor | None, surrogate: str) -> Tensor:
    return binarize(w, surrogate) if omega is None else biper(w, omega)


def _finish(dot: Tensor, alpha, bias, channel: int) -> Tensor:
    shape = [1] * dot.dim()
    shape[channel] = -1
    if alpha is not None:
        dot = dot * alpha.view(shape)
    return dot if bias is None else dot + bias.view(shape)


def linear_train(x, w, alpha=None, bias=None, omega=None, *, surrogate: str = "ste") -> Tensor:
    """alpha * (binarize(x) @ wb^T) + bias; wb is the square wave of w, its sign without omega."""
    if x.dtype != torch.float64:
        w_bits = pack(w) if omega is None else pack_biper(w, omega.item())
        return linear(x, w_bits, w.shape[1], scale=alpha, bias=bias)
    dot = binarize(x, surrogate) @ _latent(w, omega, surrogate).mT
    return _finish(dot, alpha, bias, -1)


def conv2d_train(
    x,
    w,
    alpha=None,
    bias=None,
    omega=None,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups: int = 1,
    pad_mode: str = "zero",
    *,
    surrogate: str = "ste",
) -> Tensor:
    """The convolution of float images [batch, C, H, W], else as `linear_train`."""
    window = (stride, padding, dilation, groups, pad_mode)
    if x.dtype != torch.float64:
        latent = square_wave(w, omega)
        dot = conv2d_dot(square_wave(x, None), latent, *window)
        out = _store(dot.to(torch.int64).movedim(1, -1), None, alpha, bias, x.dtype)
        return out.movedim(-1, 1).contiguous()
    dot = conv2d_dot(binarize(x, surrogate), _latent(w, omega, surrogate), *window)
    return _finish(dot, alpha, bias, 1)


def _packed_latent(w: Tensor, omega: Tensor | None) -> Tensor:
    return pack(w) if omega is None else pack_biper(w, omega.item())


def _inside(x: Tensor, surrogate: str) -> Tensor:
    if surrogate == "ste":
        return _to_words(x.abs() <= 1)
    return x.new_empty(0, dtype=torch.int32)


def linear_train_fwd(x, w, alpha=None, bias=None, omega=None, *, surrogate: str = "ste"):
    """`linear_train` and what its derivative keeps: bits of x, of |x| <= 1 ("ste") and of w."""
    out = linear_train(x, w, alpha, bias, omega)
    return out, pack(x), _inside(x, surrogate), _packed_latent(w, omega)


def linear_train_bwd(
    g, x_bits, x_inside, w_bits, alpha, *, K, need_x=True, need_w=True, need_alpha=True
):
    """The gradients with respect to binarize(x), masked where x_inside says, wb and alpha."""
    x, w = _signs(x_bits, K).double(), _signs(w_bits, K).double()
    g = g.double()
    rows = g.reshape(-1, g.shape[-1])
    scale = torch.ones(w.shape[0]) if alpha is None else alpha.double()
    grad_x = (g * scale) @ w
    if x_inside.numel():
        grad_x = grad_x * _from_words(x_inside, K)
    grad_w = scale[:, None] * (rows.mT @ x.reshape(-1, K))
    grad_alpha = (rows * (x @ w.mT).reshape(rows.shape)).sum(0)
    return _needed((grad_x, grad_w, grad_alpha), (need_x, need_w, need_alpha))


def conv2d_train_fwd(x, w, alpha=None, bias=None, omega=None, *window, surrogate="ste", **named):
    """`conv2d_train` and what its derivative keeps, packed as `conv2d` takes it."""
    out = conv2d_train(x, w, alpha, bias, omega, *window, **named)
    groups = x.shape[1] // w.shape[1]
    image = x.unflatten(1, (groups, -1)).permute(0, 3, 4, 1, 2)
    taps = w.permute(0, 2, 3, 1)
    inside = _inside(image, surrogate)
    inside = inside.flatten(3) if inside.numel() else inside
    return out, pack(image).flatten(3), inside, _packed_latent(taps, omega)


def conv2d_train_bwd(
    g,
    x_bits,
    x_inside,
    w_bits,
    alpha,
    *,
    C,
    stride=(1, 1),
    padding=(0, 0),
    dilation=(1, 1),
    groups: int = 1,
    pad_mode: str = "zero",
    need_x=True,
    need_w=True,
    need_alpha=True,
):
    """As `linear_train_bwd`."""
    x, w = _images(x_bits, C, groups), _kernels(w_bits, C, groups)
    window = (stride, padding, dilation, groups, pad_mode)
    scale = torch.ones(w.shape[0]) if alpha is None else alpha.double()
    grad_x, grad_w = _conv2d_dot_grad(g.double() * scale[:, None, None], x, w, *window)
    if x_inside.numel():
        kept = _from_words(x_inside.unflatten(-1, (groups, -1)), C // groups)
        grad_x = grad_x * kept.flatten(-2).permute(0, 3, 1, 2)
    grad_alpha = (g.double() * conv2d_dot(x, w, *window)).sum((0, 2, 3))
    return _needed((grad_x, grad_w, grad_alpha), (need_x, need_w, need_alpha))


def _needed(gradients, needs):
    return tuple(
        gradient.float().contiguous() if need else gradient.new_empty(0, dtype=torch.float32)
        for gradient, need in zip(gradients, needs, strict=True)
    )


def _gradients(function, g: Tensor, inputs: tuple, **options) -> tuple[Tensor | None, ...]:
    leaves = [None if x is None else x.detach().double().requires_grad_() for x in inputs]
    with torch.enable_grad():
        out = function(*leaves, **options)
    given = [leaf for leaf in leaves if leaf is not None]
    found = iter(torch.autograd.grad(out, given, g.double(), allow_unused=True))
    return tuple(None if leaf is None else next(found) for leaf in leaves)


def linear_train_grad(g, x, w, alpha=None, bias=None, omega=None, **options):
    """The gradients of `linear_train` with respect to x, w, alpha, bias and omega, in float64."""
    return _gradients(linear_train, g, (x, w, alpha, bias, omega), **options)


def conv2d_train_grad(g, x, w, alpha=None, bias=None, omega=None, **options):
    """The gradients of `conv2d_train` with respect to x, w, alpha, bias and omega, in float64."""
    return _gradients(conv2d_train, g, (x, w, alpha, bias, omega), **options)
