"""The modules of every core."""

from nnkernels.binary.module import BinaryConv2d, BinaryLinear, BiPerConv2d, BiPerLinear
from nnkernels.binary.packed import PackedConv2d, PackedLinear
from nnkernels.deltaproduct.module import GatedDeltaProduct
from nnkernels.gaunt.module import GauntPower, GauntTensorProduct
from nnkernels.lmul.module import LMulAttention, LMulLinear
from nnkernels.pc.module import HCLT

__all__ = [
    "HCLT",
    "BiPerConv2d",
    "BiPerLinear",
    "BinaryConv2d",
    "BinaryLinear",
    "GatedDeltaProduct",
    "GauntPower",
    "GauntTensorProduct",
    "LMulAttention",
    "LMulLinear",
    "PackedConv2d",
    "PackedLinear",
]
