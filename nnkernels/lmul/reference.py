"""L-Mul in plain PyTorch: the definition that every kernel of this package is tested against.

L-Mul (Luo & Sun, "Addition is All You Need for Energy-efficient Language Models", arXiv 2410.00907)
replaces the product of two floating-point numbers by an addition. Write each operand, reduced to
m mantissa bits, as x = sx * 2^xe * (1 + xm) with 0 <= xm < 1. The exact product multiplies the
mantissas, (1 + xm) * (1 + ym) = 1 + xm + ym + xm * ym; L-Mul puts a constant c = 2^-l(m) in the
place of xm * ym. With s = xm + ym + c, the two modes are

    bits:     L = sx * sy * 2^(xe + ye) * 2^floor(s) * (1 + s - floor(s))
    formula:  L = sx * sy * 2^(xe + ye) * (1 + s)

"bits" is what one integer adder makes of the two words: a mantissa sum that reaches 1 carries into
the exponent. "formula" is the paper's printed equation. They agree exactly where s <= 1.

Everything here favours being obviously right over being fast: words are int64, sums are float64,
and each result is rounded once. Inputs are float32, bfloat16, float16, float8_e4m3fn or
float8_e5m2 tensors. All functions are differentiable by autograd; the functions named `*_grad`
return the same gradients in float64. (To that end float64 inputs pass too where mantissa_bits is
given. Their values are rounded to fp32 first.)

The options, common to all functions:

    mantissa_bits  m, 1 to 23; by default what the widest input dtype stores
    mode           "bits" or "formula"
    round          how operands lose bits: "trunc" (toward zero) or "rne" (to nearest even)
    offset         the constant c, a multiple of 2^-23 in [0, 1); by default 2^-l(m)
    grad           "ste", "lmul" or "exact", see `Options`
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

_MANTISSA_BITS = {
    torch.float8_e5m2: 2,
    torch.float8_e4m3fn: 3,
    torch.bfloat16: 7,
    torch.float16: 10,
    torch.float32: 23,
}
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)

# Magnitude words of fp32.
_ONE = 0x3F800000
_SMALLEST_NORMAL = 0x00800000
_INFINITY = 0x7F800000


def default_mantissa_bits(*dtypes: torch.dtype) -> int:
    """The mantissa bits m used for operands of these dtypes: those of the widest.

    Raises TypeError for a dtype that L-Mul does not support.

    >>> default_mantissa_bits(torch.bfloat16, torch.float8_e4m3fn)
    7
    """
    for dtype in dtypes:
        if dtype not in _MANTISSA_BITS:
            supported = ", ".join(str(d).removeprefix("torch.") for d in _MANTISSA_BITS)
            raise TypeError(f"lmul reference: dtype {dtype} is not supported; use {supported}")
    return max(_MANTISSA_BITS[dtype] for dtype in dtypes)


def default_offset(mantissa_bits: int) -> float:
    """The constant c = 2^-l(m), where l(m) is m up to 3, then 3 for m = 4 and 4 above it.

    >>> [default_offset(m) for m in (1, 2, 3, 4, 5, 23)]
    [0.5, 0.25, 0.125, 0.125, 0.0625, 0.0625]
    """
    return 2.0 ** -min(mantissa_bits, 3 if mantissa_bits <= 4 else 4)


@dataclass(frozen=True)
class Options:
    """One choice of L-Mul product and of its derivative; the fields are the module's options.

    `grad` names the derivative of L(x, y) with respect to x, given g from upstream:

        ste    g * y with the reduced y, as if the product were exact
        lmul   L(g, y), with the same m, mode, round and c
        exact  g times the slope of the affine piece: sy * 2^ye * 2^floor(s) for bits,
               sy * 2^ye for formula

    and likewise for y. The reduction to m bits, fp32 rounding and the flush of products out of
    range pass gradients straight through. In the exact slope 2^ye is 0 for a zero or subnormal y,
    inf for inf and NaN for NaN, while the fraction xm of an x that is none of the normal numbers
    counts as 0: so x = 0 has the slope of the power of two next to it, in both modes. Everything
    else is plain arithmetic.
    """

    mantissa_bits: int
    mode: str = "bits"
    round: str = "trunc"
    offset: float | None = None
    grad: str = "ste"

    def __post_init__(self):
        for name, choices in (
            ("mode", ("bits", "formula")),
            ("round", ("trunc", "rne")),
            ("grad", ("ste", "lmul", "exact")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"lmul reference: {name} must be one of {choices}")
        if not 1 <= self.mantissa_bits <= 23:
            raise ValueError("lmul reference: mantissa_bits must be from 1 to 23")
        if not 0 <= self.c < 1 or self.c * 2**23 % 1 != 0:
            raise ValueError("lmul reference: offset must be a multiple of 2^-23 in [0, 1)")

    @property
    def c(self) -> float:
        return default_offset(self.mantissa_bits) if self.offset is None else self.offset


def _options(inputs: tuple[Tensor, ...], mantissa_bits: int | None = None, **options) -> Options:
    if mantissa_bits is None:
        mantissa_bits = default_mantissa_bits(*(x.dtype for x in inputs))
    return Options(mantissa_bits, **options)


# ---- one operand ----


def _magnitude(x: Tensor) -> Tensor:
    """The fp32 word of |x|, as int64."""
    return x.abs().view(torch.int32).to(torch.int64)


def _from_word(word: Tensor) -> Tensor:
    """The fp32 number with this word."""
    return word.to(torch.int32).view(torch.float32)


def reduce_mantissa(x: Tensor, mantissa_bits: int, round: str = "trunc") -> Tensor:
    """x as fp32 with only its first `mantissa_bits` stored mantissa bits.

    "trunc" clears the other bits; "rne" rounds to nearest even, which may carry into the exponent:
    the largest finite number becomes inf and the largest subnormal becomes 2^-126. NaN stays.

    >>> reduce_mantissa(torch.tensor([1.75, 1.875]), 2, "rne")
    tensor([1.7500, 2.0000])
    """
    x = x.to(torch.float32)
    dropped = 23 - mantissa_bits
    word = _magnitude(x)
    if round == "rne" and dropped > 0:
        lowest_kept_bit = (word >> dropped) & 1
        word = word + (1 << (dropped - 1)) - 1 + lowest_kept_bit
    word = (word >> dropped) << dropped
    return torch.where(x.isnan(), x, _from_word(word).copysign(x))


def power(x: Tensor) -> Tensor:
    """P(x) = sx * 2^xe of an fp32 tensor, as float64; 0 where x is zero or subnormal."""
    magnitude = _from_word((_magnitude(x) >> 23) << 23)
    return torch.where(x.isnan(), x, magnitude.copysign(x)).to(torch.float64)


def fraction(x: Tensor) -> Tensor:
    """xm of an fp32 tensor, as float64; 0 where x is zero, subnormal, inf or NaN."""
    word = _magnitude(x)
    normal = (word >= _SMALLEST_NORMAL) & (word < _INFINITY)
    return torch.where(normal, word & 0x007FFFFF, 0).to(torch.float64) / 2**23


# ---- one product ----


def _bits(x: Tensor, y: Tensor, c: float) -> Tensor:
    """|L| of finite reduced operands by one integer addition of their words."""
    word = _magnitude(x) + _magnitude(y) - (_ONE - int(c * 2**23))
    word = word.clamp(max=_INFINITY).masked_fill(word < _SMALLEST_NORMAL, 0)
    return _from_word(word)


def _formula(x: Tensor, y: Tensor, c: float) -> Tensor:
    """|L| of finite reduced operands by the printed equation, rounded once to fp32."""
    # float64 holds this exactly: xm, ym and c are multiples of 2^-23 below 1, so 1 + s < 4 has at
    # most 25 bits, and the exponents, -252 to 255, are well inside its range.
    exact = (power(x) * power(y)).abs() * (1 + fraction(x) + fraction(y) + c)
    # Overflow needs no test: rounding to fp32 takes everything from 2^128 on to inf.
    return exact.masked_fill(exact < 2.0**-126, 0).to(torch.float32)


def _multiply(x: Tensor, y: Tensor, options: Options) -> Tensor:
    """L(x, y) as float64, for tensors whose values are rounded to fp32 first."""
    x = reduce_mantissa(x, options.mantissa_bits, options.round)
    y = reduce_mantissa(y, options.mantissa_bits, options.round)
    product = (_bits if options.mode == "bits" else _formula)(x, y, options.c)

    nan = x.isnan() | y.isnan()
    infinite = x.isinf() | y.isinf()
    # Subnormal operands count as zeros.
    zero = (x.abs() < 2.0**-126) | (y.abs() < 2.0**-126)
    product = product.masked_fill(infinite, math.inf).masked_fill(zero, 0)
    product = torch.where(x.signbit() ^ y.signbit(), -product, product)
    return product.masked_fill(nan | (infinite & zero), math.nan).to(torch.float64)


def _multiply_backward(g: Tensor, x: Tensor, y: Tensor, options: Options) -> Tensor:
    """The gradient with respect to x of L(x, y), g being that with respect to L."""
    if options.grad == "lmul":
        return _multiply(g, y, options)
    x = reduce_mantissa(x, options.mantissa_bits, options.round)
    y = reduce_mantissa(y, options.mantissa_bits, options.round)
    if options.grad == "ste":
        return g * y
    slope = power(y)
    if options.mode == "bits":
        slope = slope * torch.exp2(torch.floor(fraction(x) + fraction(y) + options.c))
    return g * slope


class _Product(torch.autograd.Function):
    """L(x, y) of broadcastable float64 tensors that hold fp32 values."""

    @staticmethod
    def forward(ctx, x, y, options):
        ctx.save_for_backward(x, y)
        ctx.options = options
        return _multiply(x, y, options)

    @staticmethod
    def backward(ctx, g):
        if torch.is_grad_enabled():
            raise RuntimeError("lmul reference: double backward (create_graph) is not supported")
        x, y = ctx.saved_tensors
        gx = _multiply_backward(g, x, y, ctx.options).sum_to_size(x.shape)
        gy = _multiply_backward(g, y, x, ctx.options).sum_to_size(y.shape)
        return gx, gy, None


class _RoundToFloat32(torch.autograd.Function):
    """A float64 tensor rounded to fp32 values; gradients pass straight through."""

    @staticmethod
    def forward(ctx, x):
        return x.to(torch.float32).to(torch.float64)

    @staticmethod
    def backward(ctx, g):
        return g


_product = _Product.apply
_fp32 = _RoundToFloat32.apply


def _result(x: Tensor, inputs: tuple[Tensor, ...], out_dtype: torch.dtype | None) -> Tensor:
    """x, a float64 tensor, rounded to fp32 and then to the dtype that these inputs give."""
    if out_dtype is None:
        dtypes = [torch.float32 if x.dtype in _FLOAT8 else x.dtype for x in inputs]
        out_dtype = functools.reduce(torch.promote_types, dtypes)
    return _fp32(x).to(out_dtype)


def mul(
    x: Tensor,
    y: Tensor,
    *,
    mantissa_bits: int | None = None,
    mode: str = "bits",
    round: str = "trunc",
    offset: float | None = None,
    grad: str = "ste",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """L(x, y) of every pair of elements; x and y broadcast. Bit-exact, special values included.

    The result has the promoted dtype of x and y, float32 if either is fp8, or `out_dtype`; it is
    the fp32 product rounded with torch's `.to`. The options are those of the module.

    A NaN operand gives NaN, and so does inf with zero; inf with anything else gives inf.
    Subnormal fp32 operands count as zeros. |L| < 2^-126 gives a signed zero and |L| >= 2^128 inf.

    >>> mul(torch.tensor([1.0, 1.5]), torch.tensor([1.0, -1.5]))
    tensor([ 1.0625, -2.1250])
    """
    options = _options((x, y), mantissa_bits, mode=mode, round=round, offset=offset, grad=grad)
    product = _product(x.to(torch.float64), y.to(torch.float64), options)
    return _result(product, (x, y), out_dtype)


# ---- sums of products ----


def _matmul(a: Tensor, b: Tensor, options: Options, live: Tensor | None = None) -> Tensor:
    """`matmul` in float64, not yet rounded.

    `live`, a bool tensor shaped like `a`, leaves out the terms where it is False.
    """
    a, b = a.to(torch.float64), b.to(torch.float64)
    if live is None:
        live = torch.ones_like(a, dtype=torch.bool)
    # K goes in blocks only to bound memory.
    blocks = zip(a.split(32, -1), b.split(32, -2), live.split(32, -1), strict=True)
    # Starting from +0, a sum of zeros is +0 whatever their signs.
    total = torch.zeros((), dtype=torch.float64)
    for columns, rows, mask in blocks:
        products = _product(columns[..., None], rows[..., None, :, :], options)
        total = total + products.where(mask[..., None], 0).sum(-2)
    return total


def matmul(a: Tensor, b: Tensor, *, out_dtype: torch.dtype | None = None, **options) -> Tensor:
    """sum over k of L(a[..., m, k], b[..., k, n]): [..., M, K] x [..., K, N] -> [..., M, N].

    Products are those of `mul` before its rounding to a narrower dtype; they are summed in float64
    and rounded to fp32, then to the result dtype (as in `mul`). A sum of zeros, or of no term at
    all, is +0. The options are those of the module; leading dimensions broadcast.

    >>> matmul(torch.ones(1, 3), torch.ones(3, 1))
    tensor([[3.1875]])
    """
    return _result(_matmul(a, b, _options((a, b), **options)), (a, b), out_dtype)


def bmm(a: Tensor, b: Tensor, *, out_dtype: torch.dtype | None = None, **options) -> Tensor:
    """`matmul` of a batch: [B, M, K] x [B, K, N] -> [B, M, N]."""
    return matmul(a, b, out_dtype=out_dtype, **options)


def linear(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    **options,
) -> Tensor:
    """sum over k of L(x[..., k], w[n, k]), plus bias[n]: [..., K], [N, K], [N] -> [..., N].

    The sum is rounded to fp32, the bias added in fp32, and the result rounded to the result dtype.
    The bias takes part neither in that dtype nor in the default mantissa bits.
    """
    out = _fp32(_matmul(x[..., None, :], w.mT, _options((x, w), **options)).squeeze(-2))
    if bias is not None:
        out = out + bias.to(torch.float64)
    return _result(out, (x, w), out_dtype)


def matmul_magnitude(a: Tensor, b: Tensor, **options) -> Tensor:
    """sum over k of |L(a[..., m, k], b[..., k, n])| in float64: the scale of rounding errors.

    An fp32 sum of the same products may differ from `matmul` by a small multiple of 2^-24 of it.
    """
    # |L(x, y)| = L(|x|, |y|); fp8 tensors have no abs of their own.
    a64, b64 = a.to(torch.float64).abs(), b.to(torch.float64).abs()
    return _matmul(a64, b64, _options((a, b), **options))


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    normalize: str = "before",
    out_dtype: torch.dtype | None = None,
    **options,
) -> Tensor:
    """Softmax attention whose two matrix products are L-Mul.

    q is [B, H, T, D], k [B, Hk, S, D] and v [B, Hk, S, Dv] with Hk dividing H: query head h uses
    key head h // (H / Hk). The result is [B, H, T, Dv].

    Scores are the fp32 sum of `matmul(q, k^T)`, times `scale` (default 1 / sqrt(D)) in fp32. A bool
    `attn_mask`, broadcast to [B, H, T, S], keeps the keys that are True; a float one is added in
    fp32. `is_causal` keeps the keys j <= i of query i, also where T and S differ. With

        normalize="before"  A = softmax(scores) in fp32 and O = sum over j of L(A_j, v_j)
        normalize="after"   t = scores * log2(e) in fp32, i_j = floor(t_j), M = max i_j,
                            w_j = 2^(t_j - i_j) * 2^(i_j - M), whose mantissa does not depend on M,
                            and O = (sum over j of L(w_j, v_j)) / (sum over j of w_j)

    A and w lose mantissa bits inside L only. A key whose score is -inf takes no part, whatever its
    value; a query with no key left gives zeros.

    The options are those of the module; by default m is that of the widest of q, k and v.
    """
    if attn_mask is not None and is_causal:
        raise ValueError("lmul reference: attention takes attn_mask or is_causal, not both")
    if normalize not in ("before", "after"):
        raise ValueError("lmul reference: normalize must be 'before' or 'after'")
    lmul = _options((q, k, v), **options)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    heads_per_key = q.shape[1] // k.shape[1]
    keys, values = (x.to(torch.float64).repeat_interleave(heads_per_key, dim=1) for x in (k, v))

    scores = _fp32(_fp32(_matmul(q, keys.mT, lmul)) * _fp32_constant(scale))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = _fp32(scores + attn_mask.to(torch.float32))

    live = scores != -math.inf
    # A row without a live key gets finite scores, only to keep NaN out of the lines below.
    scores = scores.masked_fill(~live.any(-1, keepdim=True), 0)
    if normalize == "before":
        weights = _fp32(torch.softmax(scores, -1)).masked_fill(~live, 0)
        return _result(_matmul(weights, values, lmul, live), (q, k, v), out_dtype)
    weights = _powers_of_two(_fp32(scores * _fp32_constant(math.log2(math.e))), live)
    total = _fp32(weights.sum(-1, keepdim=True))
    out = _fp32(_matmul(weights, values, lmul, live)) / total.masked_fill(total == 0, 1)
    return _result(out, (q, k, v), out_dtype)


def _fp32_constant(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32).item()


def _powers_of_two(t: Tensor, live: Tensor) -> Tensor:
    """2^(t - M) as fp32, with M the largest floor(t) of the live entries of a row; else 0."""
    # Masks often add the most negative float32, which log2(e) takes to -inf: it stays a number.
    t = t.masked_fill(~live, 0).clamp(min=-torch.finfo(torch.float32).max)
    i = torch.floor(t).detach()
    # The padding is for rows of no entries, which have no largest one.
    largest = torch.nn.functional.pad(i.masked_fill(~live, -math.inf), (0, 1), value=-math.inf)
    shift = i - largest.amax(-1, keepdim=True)
    return _fp32(torch.exp2(t - i) * torch.exp2(shift)).masked_fill(~live, 0)


# ---- gradients ----


def _gradients(function, g: Tensor, inputs: tuple[Tensor, ...], **options) -> tuple[Tensor, ...]:
    """The gradients in float64 of `function(*inputs, **options)` for g from upstream."""
    if options.get("mantissa_bits") is None:
        options["mantissa_bits"] = default_mantissa_bits(*(x.dtype for x in inputs))
    leaves = [x.detach().to(torch.float64).requires_grad_() for x in inputs]
    with torch.enable_grad():
        out = function(*leaves, out_dtype=torch.float64, **options)
    return torch.autograd.grad(out, leaves, g.to(torch.float64))


def mul_grad(g: Tensor, x: Tensor, y: Tensor, **options) -> tuple[Tensor, Tensor]:
    """The gradients of `mul` with respect to x and y, in float64; g is shaped like its result.

    >>> x, y = torch.tensor([1.5, -3.0]), torch.tensor([3.0, 1.0])
    >>> mul_grad(torch.ones(2), x, y, grad="exact")[0]
    tensor([4., 1.], dtype=torch.float64)
    """
    return _gradients(mul, g, (x, y), **options)


def matmul_grad(g: Tensor, a: Tensor, b: Tensor, **options) -> tuple[Tensor, Tensor]:
    """The gradients of `matmul` (or `bmm`) with respect to a and b, in float64.

    For g [..., M, N] those of "ste" are g B^T and A^T g, with the reduced A and B; "exact" in
    formula mode gives g P(B)^T and P(A)^T g; "lmul" forms the "ste" products by L-Mul.
    """
    return _gradients(matmul, g, (a, b), **options)


def linear_grad(g: Tensor, x: Tensor, w: Tensor, **options) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `linear` with respect to x, w and the bias, in float64."""
    gx, gw = _gradients(linear, g, (x, w), **options)
    return gx, gw, g.to(torch.float64).sum_to_size(w.shape[:1])


def attention_grad(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, **options
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `attention` with respect to q, k and v, in float64.

    The chain rule through the definition, with the exact softmax backward and each product by the
    `grad` rule. With o the result row, g its gradient, A_j the weights normalised but not reduced,

        dA_j = sum over d of the gradient of L(A_j, v_jd) with respect to A_j
        dS_j = A_j * (dA_j - sum over l of A_l * dA_l)   normalize="before"
        dS_j = A_j * (dA_j - sum over d of g_d * o_d)    normalize="after"

    and dS_j * scale is what the score products see from upstream. In "after" the products with v
    see g / sum of w from upstream and have w_j for A_j: that is what "lmul" multiplies.
    """
    return _gradients(attention, g, (q, k, v), **options)
