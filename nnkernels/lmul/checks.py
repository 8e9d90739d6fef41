"""What the lmul operators accept, and the shape and dtype of what they return.

The public functions call `check_*` before any kernel, the fake kernels before they promise a
result. Errors are TypeError (kind, dtype), ValueError (value, shape) or NotImplementedError.
"""

import math

import torch
from torch import Tensor

from nnkernels import _checks

# Supported dtypes and their own mantissa bits.
MANTISSA_BITS = {
    torch.float32: 23,
    torch.bfloat16: 7,
    torch.float16: 10,
    torch.float8_e4m3fn: 3,
    torch.float8_e5m2: 2,
}
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
MASKS = (torch.bool, torch.float32, torch.bfloat16, torch.float16)

MODES = ("bits", "formula")
ROUNDS = ("trunc", "rne")
GRADS = ("ste", "lmul", "exact")
NORMALIZES = ("before", "after")
ALGOS = ("auto", "word", "guarded", "gemm2", "onehot", "wordmma")
CUDA_ALGOS = ("onehot", "wordmma")

MAX_DIMS = 16
MAX_HEAD_DIM = 256


# ---- options ----


def check_options(op, mantissa_bits, mode, round, offset, grad):
    if mantissa_bits is not None:
        _checks.integer(op, "mantissa_bits", mantissa_bits)
        if not 1 <= mantissa_bits <= 23:
            raise ValueError(
                f"{op}: mantissa_bits must be between 1 and 23, got {mantissa_bits}; leave it out "
                "for what the inputs store"
            )
    if mode not in MODES:
        _checks.choice(op, "mode", mode, MODES)
    if round not in ROUNDS:
        _checks.choice(op, "round", round, ROUNDS)
    if grad is not None and grad not in GRADS:
        _checks.choice(op, "grad", grad, (*GRADS, None))
    if offset is not None:
        _checks.real(op, "offset", offset)
        if not (math.isfinite(offset) and 0 <= offset < 1 and offset * 2**23 % 1 == 0):
            raise ValueError(
                f"{op}: offset must be a multiple of 2^-23 with 0 <= offset < 1, got {offset}"
            )


def check_algo(op, algo, mode, mantissa_bits, *inputs: Tensor):
    """The algorithm can be exact for these arguments and runs on their device."""
    if algo == "auto":
        return
    _checks.choice(op, "algo", algo, ALGOS)
    if (algo == "gemm2") != (mode == "formula"):
        needed = "formula" if algo == "gemm2" else "bits"
        raise ValueError(
            f"{op}: algo={algo!r} computes mode={needed!r} only, got mode={mode!r}; use algo='auto'"
        )
    if algo in CUDA_ALGOS:
        m = mantissa_bits or max(MANTISSA_BITS[value.dtype] for value in inputs)
        if m > 7:
            raise ValueError(
                f"{op}: algo={algo!r} needs mantissa_bits <= 7, got {m}; pass mantissa_bits or "
                "use algo='auto'"
            )
        if inputs[0].device.type == "cpu":
            raise NotImplementedError(
                f"{op}: algo={algo!r} runs on CUDA tensors only, got CPU tensors; use algo='auto'"
            )


def result_dtype(out_dtype, *dtypes):
    """torch's promotion; float32 where a float8 takes part."""
    if out_dtype is not None:
        return out_dtype
    first = dtypes[0]
    return first if first not in FLOAT8 and all(d == first for d in dtypes) else torch.float32


# ---- one check per operator ----


def check_mul(
    op,
    x,
    y,
    *,
    mantissa_bits=None,
    mode="bits",
    round="trunc",
    offset=None,
    grad="ste",
    out_dtype=None,
):
    _checks.tensor(op, "x", x, MANTISSA_BITS)
    _checks.tensor(op, "y", y, MANTISSA_BITS)
    check_options(op, mantissa_bits, mode, round, offset, grad)
    if out_dtype is not None:
        _checks.out_dtype(op, out_dtype, MANTISSA_BITS)
    _checks.same_device(op, "y", y, "x", x)
    if x.shape == y.shape:
        pass
    elif any(
        a != b and a != 1 and b != 1
        for a, b in zip(reversed(x.shape), reversed(y.shape), strict=False)
    ):
        raise ValueError(f"{op}: x {_checks.shape(x)} and y {_checks.shape(y)} do not broadcast")
    if x.dim() > MAX_DIMS or y.dim() > MAX_DIMS:
        raise NotImplementedError(
            f"{op}: x and y may have up to {MAX_DIMS} dimensions, got {max(x.dim(), y.dim())}; "
            "flatten some"
        )


def mul_dtype(out_dtype, x, y):
    """As `result_dtype`, but a 0-dimensional operand gives way to one with dimensions."""
    if out_dtype is None and x.dtype not in FLOAT8 and y.dtype not in FLOAT8:
        return torch.result_type(x, y)
    return result_dtype(out_dtype, x.dtype, y.dtype)


def check_matmul(
    op,
    a,
    b,
    *,
    rank=2,
    mantissa_bits=None,
    mode="bits",
    round="trunc",
    offset=None,
    grad="ste",
    algo="auto",
    out_dtype=None,
):
    """a [M, K] and b [K, N], or with rank 3 a [B, M, K] and b [B, K, N]."""
    _checks.tensor(op, "a", a, MANTISSA_BITS)
    _checks.tensor(op, "b", b, MANTISSA_BITS)
    check_options(op, mantissa_bits, mode, round, offset, grad)
    if algo != "auto":
        check_algo(op, algo, mode, mantissa_bits, a, b)
    if out_dtype is not None:
        _checks.out_dtype(op, out_dtype, MANTISSA_BITS)
    _checks.same_device(op, "b", b, "a", a)
    sizes, other = a.shape, b.shape
    if len(sizes) != rank or len(other) != rank:
        raise ValueError(
            f"{op}: a is {_checks.shape(a)} and b is {_checks.shape(b)}, expected {rank} "
            f"dimensions each{'; use bmm for batches' if rank == 2 else ''}"
        )
    if sizes[-1] != other[-2]:
        raise ValueError(
            f"{op}: a is {_checks.shape(a)} and b is {_checks.shape(b)}: their inner dimensions "
            f"{sizes[-1]} and {other[-2]} differ"
        )
    if rank == 3 and sizes[0] != other[0]:
        raise ValueError(
            f"{op}: a is {_checks.shape(a)} and b is {_checks.shape(b)}: their batch dimensions "
            f"{sizes[0]} and {other[0]} differ; expand one to the other"
        )


def check_linear(
    op,
    x,
    w,
    bias=None,
    *,
    w_packed=None,
    mantissa_bits=None,
    mode="bits",
    round="trunc",
    offset=None,
    grad="ste",
    algo="auto",
    out_dtype=None,
):
    """x [..., K], w [N, K], bias [N] or None, w_packed uint8 of `lmul_pack` or None."""
    _checks.tensor(op, "x", x, MANTISSA_BITS)
    _checks.tensor(op, "w", w, MANTISSA_BITS)
    check_options(op, mantissa_bits, mode, round, offset, grad)
    if algo != "auto":
        check_algo(op, algo, mode, mantissa_bits, x, w)
    if out_dtype is not None:
        _checks.out_dtype(op, out_dtype, MANTISSA_BITS)
    _checks.same_device(op, "w", w, "x", x)
    if x.dim() < 1 or w.dim() != 2 or x.shape[-1] != w.shape[1]:
        raise ValueError(
            f"{op}: x is {_checks.shape(x)} and w is {_checks.shape(w)}, expected x [..., K] and "
            "w [N, K]"
        )
    if bias is not None:
        _checks.tensor(op, "bias", bias, MANTISSA_BITS)
        _checks.same_device(op, "bias", bias, "x", x)
        if bias.dim() != 1 or bias.shape[0] != w.shape[0]:
            raise ValueError(f"{op}: bias is {_checks.shape(bias)}, expected [{w.shape[0]}]")
    if w_packed is not None:
        _checks.tensor(op, "w_packed", w_packed, (torch.uint8,))
        _checks.same_device(op, "w_packed", w_packed, "x", x)
        if w_packed.dim() != 1 or not w_packed.is_contiguous():
            raise ValueError(
                f"{op}: w_packed is {_checks.shape(w_packed)}, expected the 1-D contiguous tensor "
                "that pack returned"
            )


def check_pack(op, w, *, mantissa_bits=None, mode="bits", round="trunc", offset=None):
    _checks.tensor(op, "w", w, MANTISSA_BITS)
    check_options(op, mantissa_bits, mode, round, offset, "ste")
    if w.dim() != 2:
        raise ValueError(f"{op}: w is {_checks.shape(w)}, expected [N, K]")
    rows, columns = w.shape
    # Symbolic sizes are known to be small enough only when the kernel runs.
    if isinstance(rows, int) and isinstance(columns, int) and packed_size(rows, columns) >= 2**63:
        raise ValueError(f"{op}: w is {_checks.shape(w)}, too large to pack")


def check_attention(
    op,
    q,
    k,
    v,
    *,
    attn_mask=None,
    is_causal=False,
    scale=None,
    normalize="before",
    mantissa_bits=None,
    mode="bits",
    round="trunc",
    offset=None,
    grad="ste",
    algo="auto",
    out_dtype=None,
):
    """q [B, H, T, D], k [B, Hk, S, D], v [B, Hk, S, Dv], attn_mask to [B, H, T, S]."""
    for name, value in (("q", q), ("k", k), ("v", v)):
        _checks.tensor(op, name, value, MANTISSA_BITS)
        _checks.same_device(op, name, value, "q", q)
    check_options(op, mantissa_bits, mode, round, offset, grad)
    _checks.choice(op, "normalize", normalize, NORMALIZES)
    _checks.boolean(op, "is_causal", is_causal)
    if scale is not None:
        _checks.real(op, "scale", scale)
    if algo != "auto":
        check_algo(op, algo, mode, mantissa_bits, q, k, v)
    if out_dtype is not None:
        _checks.out_dtype(op, out_dtype, MANTISSA_BITS)
    if not (
        q.dim() == k.dim() == v.dim() == 4
        and k.shape[0] == q.shape[0]
        and k.shape[3] == q.shape[3]
        and v.shape[:3] == k.shape[:3]
    ):
        raise ValueError(
            f"{op}: q is {_checks.shape(q)}, k is {_checks.shape(k)} and v is {_checks.shape(v)}, "
            "expected q [B, H, T, D], k [B, Hk, S, D] and v [B, Hk, S, Dv]"
        )
    heads, key_heads = q.shape[1], k.shape[1]
    if heads % key_heads != 0 if key_heads > 0 else heads != 0:
        raise ValueError(f"{op}: q has {heads} heads and k has {key_heads}, expected a multiple")
    if q.shape[3] > MAX_HEAD_DIM or v.shape[3] > MAX_HEAD_DIM:
        raise ValueError(
            f"{op}: head dimensions are {q.shape[3]} and {v.shape[3]}, expected up to "
            f"{MAX_HEAD_DIM}"
        )
    if attn_mask is None:
        return
    if is_causal:
        raise ValueError(
            f"{op}: attn_mask and is_causal exclude each other; put the causal part into attn_mask"
        )
    _checks.tensor(op, "attn_mask", attn_mask, MASKS)
    _checks.same_device(op, "attn_mask", attn_mask, "q", q)
    target = (*q.shape[:3], k.shape[2])
    if attn_mask.dim() > 4 or any(
        a not in (1, b) for a, b in zip(reversed(attn_mask.shape), reversed(target), strict=False)
    ):
        raise ValueError(
            f"{op}: attn_mask {_checks.shape(attn_mask)} does not broadcast to {list(target)}"
        )


def packed_size(rows, columns):
    """The bytes of a packed weight [rows, columns]: the format of csrc/lmul/cpu/packed.cpp."""
    header, word, range_of_group = 64, 4, 6
    groups, blocks = (rows + 15) // 16, (columns + 255) // 256
    return header + word * columns * groups * 16 + range_of_group * blocks * groups
