"""L-Mul: multiplication of floating-point numbers by one integer addition (arXiv 2410.00907).

mul, matmul, bmm, linear, attention    differentiable functions; see nnkernels.lmul.ops
pack                                   a weight prepared for `linear`
LMulLinear, LMulAttention, convert     modules, and swapping nn.Linear layers for them
reference                              the same in plain PyTorch, float64 and slow
"""

from nnkernels.lmul import backends, reference, register  # noqa: F401
from nnkernels.lmul.convert import convert
from nnkernels.lmul.module import LMulAttention, LMulLinear
from nnkernels.lmul.ops import attention, bmm, linear, matmul, mul, pack

__all__ = [
    "LMulAttention",
    "LMulLinear",
    "attention",
    "bmm",
    "convert",
    "linear",
    "matmul",
    "mul",
    "pack",
    "reference",
]
