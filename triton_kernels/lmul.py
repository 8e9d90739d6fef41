"""Elementwise L-Mul in Triton: the portable GPU path; runs on the CPU under TRITON_INTERPRET=1.

All arithmetic is on the integer words of the operands, so that bfloat16 and float8 need no casts of
the interpreter, some of which are wrong there.
"""

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from nnkernels.lmul.checks import mul_dtype
from nnkernels.lmul.reference import default_mantissa_bits, default_offset

_BLOCK = 1024

# Kernels see elements as integers of their size. The format tells how to widen them.
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
_FORMATS = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float8_e4m3fn: "float8_e4m3fn",
    torch.float8_e5m2: "float8_e5m2",
}

_SIGN = tl.constexpr(0x80000000)
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)
_MANTISSA = tl.constexpr(0x007FFFFF)
_SMALLEST = tl.constexpr(0x00800000)
_ONE = tl.constexpr(0x3F800000)
_INFINITY = tl.constexpr(0x7F800000)
_NAN = tl.constexpr(0x7FC00000)


@triton.jit
def _float16_word(code):
    """The fp32 word of an fp16 number given as int16; some NaN for NaN."""
    return code.to(tl.float16, bitcast=True).to(tl.float32).to(tl.uint32, bitcast=True)


@triton.jit
def _word(code, FORMAT: tl.constexpr):
    """The fp32 word equal to an element; some NaN for NaN."""
    if FORMAT == "float32":
        return code.to(tl.uint32, bitcast=True)
    elif FORMAT == "bfloat16":
        return code.to(tl.uint16, bitcast=True).to(tl.uint32) << 16
    elif FORMAT == "float16":
        return _float16_word(code)
    elif FORMAT == "float8_e5m2":
        # The upper half of an fp16 number.
        return _float16_word((code.to(tl.uint16) << 8).to(tl.int16, bitcast=True))
    else:
        # Shifted to the exponent field of fp16 the number is 2^8 too small, subnormals included.
        magnitude = code.to(tl.uint16) & 0x7F
        shifted = ((code.to(tl.uint16) & 0x80) << 8) | (magnitude << 7)
        small = _float16_word(shifted.to(tl.int16, bitcast=True)).to(tl.float32, bitcast=True)
        word = (small * 256.0).to(tl.uint32, bitcast=True)
        return tl.where(magnitude == 0x7F, _NAN, word)


@triton.jit
def _reduced(magnitude, MANTISSA_BITS: tl.constexpr, ROUND: tl.constexpr):
    """A magnitude word with m mantissa bits; meaningless for NaN."""
    DROPPED: tl.constexpr = 23 - MANTISSA_BITS
    if ROUND == "rne":
        magnitude += (((1 << DROPPED) - 1) + ((magnitude >> DROPPED) & 1)) >> 1
    return (magnitude >> DROPPED) << DROPPED


@triton.jit
def _product(x, y, offset, MANTISSA_BITS: tl.constexpr, MODE: tl.constexpr, ROUND: tl.constexpr):
    """L(x, y) of fp32 words."""
    sign = (x ^ y) & _SIGN
    a = x & _MAGNITUDE
    b = y & _MAGNITUDE
    nan = (a > _INFINITY) | (b > _INFINITY)
    a = _reduced(a, MANTISSA_BITS, ROUND)
    b = _reduced(b, MANTISSA_BITS, ROUND)
    zero = (a < _SMALLEST) | (b < _SMALLEST)
    infinite = (a >= _INFINITY) | (b >= _INFINITY)
    # 64 bits hold the sum of two magnitudes with its sign.
    a = a.to(tl.int64)
    b = b.to(tl.int64)
    if MODE == "bits":
        magnitude = a + b - (_ONE - offset)
        exact_magnitude = magnitude
    else:
        significand = _SMALLEST + (a & _MANTISSA) + (b & _MANTISSA) + offset
        carry = significand >> 24
        power = (a & _INFINITY) + (b & _INFINITY) - _ONE + (carry << 23)
        exact_magnitude = power
        rounded = (significand + (carry & (significand >> 1))) >> carry
        magnitude = power - _SMALLEST + rounded
    magnitude = tl.where(exact_magnitude >= _INFINITY, _INFINITY, magnitude)
    magnitude = tl.where(exact_magnitude < _SMALLEST, 0, magnitude)
    magnitude = tl.where(infinite, _INFINITY, tl.where(zero, 0, magnitude))
    word = sign | magnitude.to(tl.uint32)
    return tl.where(nan | (infinite & zero), _NAN, word)


@triton.jit
def _mul_kernel(
    x_pointer,
    y_pointer,
    out_pointer,
    size,
    offset,
    sizes,
    x_strides,
    y_strides,
    X_FORMAT: tl.constexpr,
    Y_FORMAT: tl.constexpr,
    OUT_FORMAT: tl.constexpr,
    MANTISSA_BITS: tl.constexpr,
    MODE: tl.constexpr,
    ROUND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of the result, contiguous; the operands have any strides, sizes innermost first."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    rest = index
    x_index = index * 0
    y_index = index * 0
    for d in tl.static_range(len(sizes)):
        coordinate = rest % sizes[d]
        rest = rest // sizes[d]
        x_index += coordinate * x_strides[d]
        y_index += coordinate * y_strides[d]
    x = _word(tl.load(x_pointer + x_index, mask=inside, other=0), X_FORMAT)
    y = _word(tl.load(y_pointer + y_index, mask=inside, other=0), Y_FORMAT)
    word = _product(x, y, offset, MANTISSA_BITS, MODE, ROUND)
    if OUT_FORMAT == "float32":
        code = word.to(tl.int32, bitcast=True)
    elif OUT_FORMAT == "bfloat16":
        # The one NaN that products have rounds to a NaN.
        rounded = (word + 0x7FFF + ((word >> 16) & 1)) >> 16
        code = rounded.to(tl.uint16).to(tl.int16, bitcast=True)
    else:
        code = word.to(tl.float32, bitcast=True).to(tl.float16).to(tl.int16, bitcast=True)
    tl.store(out_pointer + index, code, mask=inside)


def _collapsed(x: Tensor, y: Tensor) -> list[tuple[int, int, int]]:
    """(size, stride of x, stride of y) of the broadcast shape, innermost first and merged."""
    x, y = torch.broadcast_tensors(x, y)
    merged = []
    for size, x_stride, y_stride in zip(
        reversed(x.shape), reversed(x.stride()), reversed(y.stride()), strict=True
    ):
        if size == 1:
            continue
        if merged:
            inner, inner_x, inner_y = merged[-1]
            if (x_stride, y_stride) == (inner * inner_x, inner * inner_y):
                merged[-1] = (inner * size, inner_x, inner_y)
                continue
        merged.append((size, x_stride, y_stride))
    return merged or [(1, 0, 0)]


def mul(
    x: Tensor,
    y: Tensor,
    *,
    mantissa_bits: int | None = None,
    mode: str = "bits",
    round: str = "trunc",
    offset: float | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """L(x, y) of every pair of elements, as `nnkernels.lmul.mul`, for arguments it has checked.

    Args:
        x, y: broadcastable CUDA tensors (CPU tensors under the interpreter) of any lmul dtype.
        mantissa_bits, mode, round, offset, out_dtype: as `nnkernels.lmul.mul`.

    Returns:
        A contiguous tensor of the broadcast shape, bit-exact.
    """
    if mantissa_bits is None:
        mantissa_bits = default_mantissa_bits(x.dtype, y.dtype)
    if offset is None:
        offset = default_offset(mantissa_bits)
    dtype = mul_dtype(out_dtype, x, y)
    # A float8 result is rounded by torch, whose overflow rule depends on its version.
    kernel_dtype = torch.float32 if dtype.itemsize == 1 else dtype
    shape = torch.broadcast_shapes(x.shape, y.shape)
    out = torch.empty(shape, dtype=kernel_dtype, device=x.device)
    if out.numel() == 0:
        return out.to(dtype)
    sizes, x_strides, y_strides = zip(*_collapsed(x, y), strict=True)
    on_device = torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
    with on_device:
        _mul_kernel[(triton.cdiv(out.numel(), _BLOCK),)](
            *(t.view(_INTEGERS[t.dtype.itemsize]) for t in (x, y, out)),
            out.numel(),
            int(offset * 2**23),
            sizes,
            x_strides,
            y_strides,
            _FORMATS[x.dtype],
            _FORMATS[y.dtype],
            _FORMATS[kernel_dtype],
            mantissa_bits,
            mode,
            round,
            _BLOCK,
        )
    return out.to(dtype)
