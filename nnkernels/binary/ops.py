"""The public binary functions: check the arguments, then call the operator.

A value of -1 is the bit 1, +1 is the bit 0; x < 0 packs to 1, so zeros of both signs and NaN are
+1. A bits tensor is int32 [..., W(K)], W(K) = 8 * ceil(K / 256): K values a row, least significant
bit first, pad bits 0. K is always passed along.

Integer results are exact. A float result is

    y = float32(dot) * row_scale[m] * col_scale[n] + bias[n]

in this order, every step rounded to float32 and none fused (an absent vector is a skipped step),
then rounded once to the result's dtype. So no result depends on instruction set, threads or
algorithm. Strides are free: bits and values that are not laid out as the kernels want are copied.

All functions raise TypeError for a dtype or kind and ValueError for a shape or value. Products of
packed bits have no derivative and refuse inputs that require one (RuntimeError); `linear_train` and
`conv2d_train` take latent float weights and have.
"""

import torch
from torch import Tensor

from nnkernels.binary import checks

_ops = torch.ops.nnkernels


def _run(name: str, *inputs, **options):
    """The operator; what only its kernel can see in the values is a ValueError."""
    try:
        return getattr(_ops, name)(*inputs, **options)
    except RuntimeError as error:
        if inputs[0].device.type == "cpu" and str(error).startswith(f"{name}: "):
            raise ValueError(str(error)) from None
        raise


# ---- packing ----


def pack(x: Tensor, *, check_nan: bool = False) -> Tensor:
    """The bits of x: 1 where x < 0.

    Args:
        x: [..., K] of float32, bfloat16, float16 or int8.
        check_nan: raise ValueError with the first index of a NaN instead of packing it as +1.

    Returns:
        int32 [..., W(K)].

    >>> import torch, nnkernels
    >>> nnkernels.binary.pack(torch.tensor([-1.0, 2.0, -0.0, -3.0]))[0].item()
    9
    """
    checks.check_pack("binary_pack", x)
    return _run("binary_pack", x, check_nan=check_nan)


def pack_rowpop(x: Tensor, *, check_nan: bool = False) -> tuple[Tensor, Tensor]:
    """`pack`, and the number of -1s of every row as int32 [...], in one pass."""
    checks.check_pack("binary_pack_rowpop", x)
    return _run("binary_pack_rowpop", x, check_nan=check_nan)


def unpack(bits: Tensor, K: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The values +1 and -1, [..., K], of bits [..., W(K)].

    dtype: float32, bfloat16, float16, int8, int16 or int32.
    """
    checks.check_unpack("binary_unpack", bits, K, dtype)
    return _ops.binary_unpack(bits, K, dtype)


def pack_biper(w: Tensor, omega: float, *, check: bool = False) -> Tensor:
    """The bits of the square wave sign(sin(omega * w)) of BiPer (arXiv 2404.01278).

    The bit is 1 where floor(double(p) / pi) is odd, p = float32(omega) * float32(w).

    Args:
        w: [..., K] of float32, bfloat16 or float16.
        omega: finite and positive.
        check: raise ValueError with the first index where |p| > 2^20 or p is NaN; the wave is
            defined up to there.

    Returns:
        int32 [..., W(K)].
    """
    checks.check_pack_biper("binary_pack_biper", w, omega)
    return _run("binary_pack_biper", w, omega, check=check)


def pack_ternary(t: Tensor) -> tuple[Tensor, Tensor]:
    """Two planes of bits of t in {-1, 0, 1}: where it is not 0 (mask), where it is negative (sign).

    t: [..., K], dtypes as in `pack`.
    """
    checks.check_pack("binary_pack_ternary", t, "t")
    return _ops.binary_pack_ternary(t)


def popcount(t: Tensor) -> Tensor:
    """The number of ones of every int32 word, as int32 of the same shape."""
    checks.check_popcount("binary_popcount", t)
    return _ops.binary_popcount(t)


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
    """dot[..., m, n] = sum over k of a[..., m, k] * b[..., n, k] over rows of +-1: a times b^T.

    Args:
        a: bits [..., M, W(K)].
        b: bits [N, W(K)], or [..., N, W(K)] with the batch dimensions of a.
        row_scale: float32 [..., M] or None. col_scale, bias: float32 [N] or None.
        out_dtype: int32 (None), int16 (K <= 32767), float32, float16 or bfloat16 (K <= 2^24).
        a_pop, b_pop: row counts of `pack_rowpop`, which some backends can use.
        check_padding: raise ValueError for a pad bit that is set.

    Returns:
        [..., M, N], contiguous.

    >>> import torch, nnkernels
    >>> a = nnkernels.binary.pack(torch.tensor([[1.0, -1.0, -1.0]]))
    >>> nnkernels.binary.matmul(a, a, 3)
    tensor([[3]], dtype=torch.int32)
    """
    options = {
        "row_scale": row_scale,
        "col_scale": col_scale,
        "bias": bias,
        "out_dtype": out_dtype,
        "a_pop": a_pop,
        "b_pop": b_pop,
        "check_padding": check_padding,
    }
    checks.check_matmul("binary_matmul", a, b, K, **options)
    checks.refuse_gradients("binary_matmul", row_scale, col_scale, bias)
    return _run("binary_matmul", a, b, K, **options)


def prepack(b: Tensor, K: int) -> Tensor:
    """Bits [N, W(K)] prepared for the `_prepacked` functions: uint8 [*], opaque.

    Its length depends on N, K and the kind of device; the format belongs to this version of the
    package: store the bits instead.
    """
    checks.check_prepack("binary_prepack", b, K)
    return _ops.binary_prepack(b, K)


def matmul_prepacked(
    a: Tensor,
    b_packed: Tensor,
    N: int,
    K: int,
    *,
    row_scale: Tensor | None = None,
    col_scale: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    a_pop: Tensor | None = None,
) -> Tensor:
    """`matmul` with `prepack(b, K)` for a 2-dimensional b; ValueError for another one's N or K."""
    options = {
        "row_scale": row_scale,
        "col_scale": col_scale,
        "bias": bias,
        "out_dtype": out_dtype,
        "a_pop": a_pop,
    }
    checks.check_matmul_prepacked("binary_matmul_prepacked", a, b_packed, N, K, **options)
    checks.refuse_gradients("binary_matmul_prepacked", row_scale, col_scale, bias)
    return _run("binary_matmul_prepacked", a, b_packed, N, K, **options)


def matmul_sign(a: Tensor, b: Tensor, K: int, thresh: Tensor, dir: Tensor) -> Tensor:
    """Bits [..., M, W(N)] of a threshold of `matmul`: folded batch norm and binarisation.

    thresh int32 [N] and dir int8 [N] are those of `fold_bn`: the bit is dot < thresh where dir > 0,
    dot > thresh where dir < 0, and thresh != 0 where dir is 0.
    """
    checks.check_matmul_sign("binary_matmul_sign", a, b, K, thresh, dir)
    return _ops.binary_matmul_sign(a, b, K, thresh, dir)


def hamming(a: Tensor, b: Tensor, K: int) -> Tensor:
    """The number of differing bits of rows, int32 [..., M, N]; operands as in `matmul`."""
    checks.check_hamming("binary_hamming", a, b, K)
    return _ops.binary_hamming(a, b, K)


def linear(
    x: Tensor, w_bits: Tensor, K: int, *, scale: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """scale * (binarize(x) times w^T) + bias, packing x on the way.

    Args:
        x: [..., K] of float32, bfloat16 or float16.
        w_bits: bits [N, W(K)].
        scale, bias: float32 [N] or None.

    Returns:
        [..., N] of x's dtype, contiguous.

    >>> import torch, nnkernels
    >>> w = nnkernels.binary.pack(torch.tensor([[1.0, -1.0, -1.0]]))
    >>> nnkernels.binary.linear(torch.tensor([0.5, -2.0, 3.0]), w, 3)
    tensor([1.])
    """
    checks.check_linear("binary_linear", x, w_bits, K, scale=scale, bias=bias)
    checks.refuse_gradients("binary_linear", x, scale, bias)
    return _ops.binary_linear(x, w_bits, K, scale=scale, bias=bias)


def linear_prepacked(
    x: Tensor,
    w_packed: Tensor,
    N: int,
    K: int,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """`linear` with `prepack(w_bits, K)`; ValueError for another one's N or K."""
    name = "binary_linear_prepacked"
    checks.check_linear_prepacked(name, x, w_packed, N, K, scale=scale, bias=bias)
    checks.refuse_gradients(name, x, scale, bias)
    return _run(name, x, w_packed, N, K, scale=scale, bias=bias)


# ---- convolution ----


def conv2d(
    x: Tensor,
    w: Tensor,
    C: int,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    pad_mode: str = "zero",
    *,
    corr: Tensor | None = None,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    nchw: bool = False,
) -> Tensor:
    """Cross-correlation of packed images, as torch.conv2d of the +-1 they hold.

    Args:
        x: bits [batch, H, W, groups * W(C / groups)], every group's channels packed on their own.
        w: bits [O, KH, KW, W(C / groups)].
        C: input channels, all groups together.
        pad_mode: what a tap outside the image sees: "zero", "one" (+1) or "minus_one".
        corr: `conv2d_corr(w, C, groups)`, to save computing it in every call.
        scale, bias: float32 [O] or None; out_dtype: as in `matmul`, K being the taps of a result.
        nchw: lay the result out as [batch, O, OH, OW] instead of [batch, OH, OW, O].
    """
    name = "binary_conv2d"
    window = (stride, padding, dilation, groups, pad_mode)
    checks.check_conv2d(name, x, w, C, *window, corr)
    checks.check_conv2d_result(name, x, w, C // groups, scale, bias, out_dtype)
    checks.refuse_gradients(name, scale, bias)
    return _ops.binary_conv2d(
        x, w, C, *window, corr=corr, scale=scale, bias=bias, out_dtype=out_dtype, nchw=nchw
    )


def conv2d_sign(
    x: Tensor,
    w: Tensor,
    C: int,
    thresh: Tensor,
    dir: Tensor,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    pad_mode: str = "zero",
    *,
    corr: Tensor | None = None,
) -> Tensor:
    """Bits [batch, OH, OW, W(O)] of a threshold of `conv2d`; thresh and dir as in `matmul_sign`."""
    name = "binary_conv2d_sign"
    window = (stride, padding, dilation, groups, pad_mode)
    checks.check_conv2d(name, x, w, C, *window, corr)
    checks.check_threshold(name, thresh, dir, w.shape[0], "x", x)
    return _ops.binary_conv2d_sign(x, w, C, thresh, dir, *window, corr=corr)


def conv2d_corr(w: Tensor, C: int, groups: int = 1) -> Tensor:
    """Sums of a weight over the taps before (i, j), int32 [KH + 1, KW + 1, O], for `conv2d`.

    With pad_mode "zero" and "minus_one" the taps outside the image follow from it.
    """
    checks.check_conv2d_corr("binary_conv2d_corr", w, C, groups)
    return _ops.binary_conv2d_corr(w, C, groups)


def maxpool2d(
    bits: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
) -> Tensor:
    """Maximum of +-1 over windows of bits [batch, H, W, words]; taps outside are ignored.

    stride: default kernel_size. padding: up to half of kernel_size.
    """
    checks.check_maxpool2d("binary_maxpool2d", bits, kernel_size, stride, padding)
    return _ops.binary_maxpool2d(bits, kernel_size, stride, padding)


# ---- ternary, int8 and n-bit products ----


def ternary_matmul(
    a_mask: Tensor, a_sign: Tensor, b_mask: Tensor, b_sign: Tensor, K: int
) -> Tensor:
    """int32 [..., M, N]: sums of products of ternary rows given as planes of `pack_ternary`."""
    checks.check_ternary_matmul("binary_ternary_matmul", a_mask, a_sign, b_mask, b_sign, K)
    return _ops.binary_ternary_matmul(a_mask, a_sign, b_mask, b_sign, K)


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
    """int8 rows x [..., K] times binary rows [N, W(K)], or ternary ones (`w_mask`): [..., N].

    out_dtype: int32 (None), float32, float16 or bfloat16; scales as in `matmul`. K <= 2^23.
    """
    options = {
        "w_mask": w_mask,
        "row_scale": row_scale,
        "col_scale": col_scale,
        "out_dtype": out_dtype,
    }
    checks.check_int8_matmul("binary_int8_matmul", x, w_bits, K, **options)
    checks.refuse_gradients("binary_int8_matmul", row_scale, col_scale)
    return _ops.binary_int8_matmul(x, w_bits, K, **options)


def planes_matmul(a_planes: Tensor, b_planes: Tensor, K: int) -> Tensor:
    """int32 [M, N]: products of rows of unsigned integers, given as planes of bits.

    a_planes [n, M, W(K)] and b_planes [m, N, W(K)] hold bit i of every number in plane i.
    """
    checks.check_planes_matmul("binary_planes_matmul", a_planes, b_planes, K)
    return _ops.binary_planes_matmul(a_planes, b_planes, K)


# ---- training ----


def linear_train(
    x: Tensor,
    w: Tensor,
    alpha: Tensor | None = None,
    bias: Tensor | None = None,
    omega: Tensor | None = None,
    *,
    surrogate: str = "ste",
) -> Tensor:
    """alpha * (binarize(x) times wb^T) + bias with gradients for every argument.

    wb is binarize(w), or the square wave of BiPer where omega is given. Between forward and
    backward only bits are kept of x ("ste": K / 4 bytes a row; "approxsign" adds x as bfloat16).

    Args:
        x: [..., K], w: [N, K], latent; float32, bfloat16 or float16.
        alpha, bias: float32 [N] or None. omega: float32, one number, or None.
        surrogate: the derivative that stands for that of binarize: "ste" (1 for |x| <= 1, else 0),
            "approxsign" (max(0, 2 - 2|x|)) or "identity" (1). It serves x, and w without omega;
            the square wave has the gradients of sin(omega * w).

    Returns:
        [..., N] of x's dtype. Double backward raises RuntimeError.
    """
    checks.check_linear_train("binary_linear_train", x, w, alpha, bias, omega, surrogate=surrogate)
    return _ops.binary_linear_train(x, w, alpha, bias, omega, surrogate=surrogate)


def conv2d_train(
    x: Tensor,
    w: Tensor,
    alpha: Tensor | None = None,
    bias: Tensor | None = None,
    omega: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    pad_mode: str = "zero",
    *,
    surrogate: str = "ste",
) -> Tensor:
    """The convolution of x and latent w, with gradients for every argument.

    x is [batch, C, H, W], w [O, C / groups, KH, KW], the result [batch, O, OH, OW]; everything else
    as in `linear_train` and `conv2d`.
    """
    window = (stride, padding, dilation, groups, pad_mode)
    inputs = (x, w, alpha, bias, omega, *window)
    checks.check_conv2d_train("binary_conv2d_train", *inputs, surrogate=surrogate)
    return _ops.binary_conv2d_train(*inputs, surrogate=surrogate)
