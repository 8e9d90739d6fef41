"""The public lmul functions: check the arguments, then call the operator.

Where no input needs a gradient they call the `_fwd` operator, which is cheaper than the one that
carries the autograd; the results are the same.

Options common to all functions:

    mantissa_bits  m, from 1 to 23: mantissa bits that each operand keeps. Default: what the widest
                   input dtype stores (float32 23, float16 10, bfloat16 7, float8_e4m3fn 3,
                   float8_e5m2 2).
    mode           "bits" (one integer addition, carry included) or "formula" (the paper's printed
                   equation, no carry).
    round          how operands lose bits: "trunc" (toward zero) or "rne" (to nearest even).
    offset         the constant c, a multiple of 2^-23 in [0, 1). Default: 2^-l(m).
    grad           the derivative: "ste" (g times the other operand), "lmul" (L-Mul of g and the
                   other operand), "exact" (slope of the affine piece), or None (refuse inputs that
                   require a gradient).
    out_dtype      dtype of the result. Default: torch's promotion of the inputs, float32 where one
                   is a float8.
    algo           (sums only) "auto", or one algorithm for tests and benchmarks: "word", "guarded",
                   "gemm2" on any device, "onehot", "wordmma" on CUDA. One that cannot be exact for
                   the arguments raises.
"""

import torch
from torch import Tensor

from nnkernels._checks import needs_grad, refuse_tangents
from nnkernels.lmul import checks

_OPERATORS = {
    name: (
        getattr(torch.ops.nnkernels, name).default,
        getattr(torch.ops.nnkernels, f"{name}_fwd").default,
    )
    for name in ("lmul_mul", "lmul_matmul", "lmul_bmm", "lmul_linear", "lmul_attention")
}
_DEFAULTS = {
    "mantissa_bits": None,
    "mode": "bits",
    "round": "trunc",
    "offset": None,
    "algo": "auto",
    "out_dtype": None,
    "w_packed": None,
    "attn_mask": None,
    "is_causal": False,
    "scale": None,
    "normalize": "before",
}


def _run(name: str, inputs: tuple[Tensor | None, ...], grad: str | None, options: dict) -> Tensor:
    """The operator with autograd where an input needs a gradient, else the one without."""
    recorded, forward = _OPERATORS[name]
    # Every option that torch parses costs 0.4 us.
    given = {key: value for key, value in options.items() if value is not _DEFAULTS[key]}
    if needs_grad(name, grad, *inputs):
        return recorded(*inputs, grad=grad, **given)
    return forward(*inputs, **given)


def _autocast(*inputs: Tensor) -> tuple[Tensor, ...]:
    """Under autocast the inputs in its dtype, as for torch.matmul; float8 inputs stay."""
    device = inputs[0].device.type if isinstance(inputs[0], Tensor) else None
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return inputs
    dtype = torch.get_autocast_dtype(device)
    wide = (torch.float32, torch.bfloat16, torch.float16)
    return tuple(
        value.to(dtype) if isinstance(value, Tensor) and value.dtype in wide else value
        for value in inputs
    )


def mul(
    x: Tensor,
    y: Tensor,
    *,
    mantissa_bits: int | None = None,
    mode: str = "bits",
    round: str = "trunc",
    offset: float | None = None,
    grad: str | None = "ste",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """L(x, y) of every pair of elements: the adder-multiply of Luo & Sun, arXiv 2410.00907.

    Args:
        x, y: broadcastable tensors of float32, bfloat16, float16, float8_e4m3fn or float8_e5m2.
        mantissa_bits, mode, round, offset, grad, out_dtype: see the module.

    Returns:
        A contiguous tensor of the broadcast shape.

    Raises:
        TypeError: unsupported dtype or kind. ValueError: an option out of its range, shapes that do
        not broadcast, different devices. RuntimeError: grad=None with an input that requires it.

    Guarantee:
        Bit-exact on every device, NaN, infinities, zeros and overflow included; a dtype narrower
        than float32 adds one rounding to nearest even.

    >>> import torch, nnkernels
    >>> x = torch.tensor([1.0, 1.5, -3.0])
    >>> nnkernels.lmul.mul(x, x)
    tensor([1.0625, 2.1250, 8.5000])
    """
    options = {
        "mantissa_bits": mantissa_bits,
        "mode": mode,
        "round": round,
        "offset": offset,
        "out_dtype": out_dtype,
    }
    checks.check_mul("lmul_mul", x, y, grad=grad, **options)
    return _run("lmul_mul", (x, y), grad, options)


def matmul(
    a: Tensor,
    b: Tensor,
    *,
    mantissa_bits: int | None = None,
    mode: str = "bits",
    round: str = "trunc",
    offset: float | None = None,
    grad: str | None = "ste",
    algo: str = "auto",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Matrix product of L-Mul products: out[m, n] = sum over k of L(a[m, k], b[k, n]).

    Args:
        a: [M, K], any strides; dtypes as in `mul`. Under autocast cast as torch.matmul would.
        b: [K, N], any strides.
        mantissa_bits, mode, round, offset, grad, algo, out_dtype: see the module.

    Returns:
        [M, N], contiguous; zeros where K is 0.

    Raises:
        TypeError, ValueError: as `mul`; shapes that do not fit, an algo that does not fit the mode.
        NotImplementedError: algo="onehot" or "wordmma" on the CPU. RuntimeError: an algo that
        cannot be exact for these values; grad=None with an input that requires it.

    Guarantee:
        Every product is the exact bit pattern. Products are summed in float32 in one fixed order
        (k ascending in blocks of 256, block sums ascending), so CPU results do not depend on
        instruction set, threads or algorithm. Error at most (256 + K / 256) 2^-24 times the sum of
        |products|; on random data 2e-6 times that sum for K up to 16384.

    >>> import torch, nnkernels
    >>> a = torch.ones(1, 3)
    >>> nnkernels.lmul.matmul(a, a.T)
    tensor([[3.1875]])
    """
    a, b = _autocast(a, b)
    options = {
        "mantissa_bits": mantissa_bits,
        "mode": mode,
        "round": round,
        "offset": offset,
        "algo": algo,
        "out_dtype": out_dtype,
    }
    checks.check_matmul("lmul_matmul", a, b, grad=grad, **options)
    return _run("lmul_matmul", (a, b), grad, options)


def bmm(
    a: Tensor,
    b: Tensor,
    *,
    mantissa_bits: int | None = None,
    mode: str = "bits",
    round: str = "trunc",
    offset: float | None = None,
    grad: str | None = "ste",
    algo: str = "auto",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Batched `matmul`: out[i] = matmul(a[i], b[i]).

    Args:
        a: [B, M, K], any strides, expanded batches (stride 0) included; dtypes as in `mul`.
        b: [B, K, N], likewise.
        mantissa_bits, mode, round, offset, grad, algo, out_dtype: see the module.

    Returns:
        [B, M, N], contiguous.

    Raises and guarantee: as `matmul`.

    >>> import torch, nnkernels
    >>> a = torch.ones(2, 1, 3)
    >>> nnkernels.lmul.bmm(a, a.mT).flatten()
    tensor([3.1875, 3.1875])
    """
    a, b = _autocast(a, b)
    options = {
        "mantissa_bits": mantissa_bits,
        "mode": mode,
        "round": round,
        "offset": offset,
        "algo": algo,
        "out_dtype": out_dtype,
    }
    checks.check_matmul("lmul_bmm", a, b, rank=3, grad=grad, **options)
    return _run("lmul_bmm", (a, b), grad, options)


def linear(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    w_packed: Tensor | None = None,
    mantissa_bits: int | None = None,
    mode: str = "bits",
    round: str = "trunc",
    offset: float | None = None,
    grad: str | None = "ste",
    algo: str = "auto",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Linear layer of L-Mul products: out[..., n] = sum over k of L(x[..., k], w[n, k]) + bias[n].

    Args:
        x: [..., K]; dtypes as in `mul`. Under autocast x and w are cast as torch's linear would.
        w: [N, K].
        bias: [N] or None; added exactly in float32, takes no part in the result dtype.
        w_packed: `pack(w)` with the same options: saves preparing w in every call. Products use it
            in the place of w; pack again when w changes.
        mantissa_bits, mode, round, offset, grad, algo, out_dtype: see the module.

    Returns:
        [..., N], contiguous.

    Raises and guarantee: as `matmul`; ValueError for a w_packed made with other options.

    >>> import torch, nnkernels
    >>> x, w = torch.ones(2, 3), torch.ones(1, 3)
    >>> nnkernels.lmul.linear(x, w, torch.tensor([1.0])).flatten()
    tensor([4.1875, 4.1875])
    """
    x, w = _autocast(x, w)
    options = {
        "w_packed": w_packed,
        "mantissa_bits": mantissa_bits,
        "mode": mode,
        "round": round,
        "offset": offset,
        "algo": algo,
        "out_dtype": out_dtype,
    }
    checks.check_linear("lmul_linear", x, w, bias, grad=grad, **options)
    try:
        return _run("lmul_linear", (x, w, bias), grad, options)
    except RuntimeError as error:
        # Only the kernel can read what w_packed was made with.
        if w_packed is not None and str(error).startswith("lmul_linear: w_packed"):
            raise ValueError(str(error)) from None
        raise


def pack(
    w: Tensor,
    *,
    mantissa_bits: int | None = None,
    mode: str = "bits",
    round: str = "trunc",
    offset: float | None = None,
) -> Tensor:
    """A weight prepared for `linear`, which takes it as `w_packed` beside `w`.

    Args:
        w: [N, K]; dtypes as in `mul`.
        mantissa_bits, mode, round, offset: those of the later calls. Where a later x has a wider
            dtype than w, pass the mantissa_bits of x.

    Returns:
        uint8 [*]; the length depends on N, K and the options only. The format belongs to this
        version of the package: do not store it. No gradient flows through it.

    Raises:
        TypeError, ValueError: as `mul`, or w is not 2-dimensional.

    >>> import torch, nnkernels
    >>> x, w = torch.ones(1, 3), torch.ones(1, 3)
    >>> nnkernels.lmul.linear(x, w, w_packed=nnkernels.lmul.pack(w))
    tensor([[3.1875]])
    """
    checks.check_pack(
        "lmul_pack", w, mantissa_bits=mantissa_bits, mode=mode, round=round, offset=offset
    )
    with torch.no_grad():
        return torch.ops.nnkernels.lmul_pack(
            w, mantissa_bits=mantissa_bits, mode=mode, round=round, offset=offset
        )


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    normalize: str = "before",
    mantissa_bits: int | None = None,
    mode: str = "bits",
    round: str = "trunc",
    offset: float | None = None,
    grad: str | None = "ste",
    algo: str = "auto",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Softmax attention whose two matrix products are L-Mul (Luo & Sun, arXiv 2410.00907).

    S = L-matmul(q, k^T) * scale plus the mask; the softmax is exact in float32. Memory is linear in
    T and S.

    Args:
        q: [B, H, T, D]; dtypes as in `mul`. Under autocast q, k and v are cast as torch's would.
        k: [B, Hk, S, D] with H a multiple of Hk (grouped queries); D up to 256.
        v: [B, Hk, S, Dv]; Dv up to 256.
        attn_mask: broadcastable to [B, H, T, S]: bool (True = attend) or float (added to S).
        is_causal: query i sees keys j <= i; excludes attn_mask.
        scale: default 1 / sqrt(D).
        normalize: "before" (the paper): L-Mul of the softmax with v. "after": L-Mul of
            2^(S log2(e) - M), M an integer, with v, divided by the exact sum; one pass. The two
            differ by a few percent by definition.
        mantissa_bits, mode, round, offset, grad, algo, out_dtype: see the module; m defaults to
            that of the widest of q, k and v.

    Returns:
        [B, H, T, Dv], contiguous; zeros for queries whose keys are all masked.

    Raises:
        TypeError, ValueError, NotImplementedError, RuntimeError: as `matmul`; ValueError also for
        attn_mask with is_causal and for an attn_mask that requires a gradient.

    Guarantee:
        Scores as `matmul`; the result is within 2e-3 (relative L2) of the float64 reference, as one
        ulp of a weight may flip a truncated bit. The same bits on every run and thread count.

    >>> import torch, nnkernels
    >>> q = k = v = torch.ones(1, 1, 2, 4)
    >>> nnkernels.lmul.attention(q, k, v, is_causal=True)[0, 0, :, 0]
    tensor([1.0625, 1.0625])
    """
    q, k, v = _autocast(q, k, v)
    options = {
        "attn_mask": attn_mask,
        "is_causal": is_causal,
        "scale": scale,
        "normalize": normalize,
        "mantissa_bits": mantissa_bits,
        "mode": mode,
        "round": round,
        "offset": offset,
        "algo": algo,
        "out_dtype": out_dtype,
    }
    checks.check_attention("lmul_attention", q, k, v, grad=grad, **options)
    refuse_tangents("lmul_attention", attn_mask)
    if torch.is_grad_enabled() and attn_mask is not None and attn_mask.requires_grad:
        raise ValueError("lmul_attention: attn_mask gets no gradient; pass attn_mask.detach()")
    return _run("lmul_attention", (q, k, v), grad, options)
