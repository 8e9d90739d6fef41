"""The modules of every core."""

from nnkernels.lmul.module import LMulAttention, LMulLinear

__all__ = ["LMulAttention", "LMulLinear"]
