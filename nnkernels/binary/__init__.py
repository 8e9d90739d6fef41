"""Binary (XNOR) arithmetic: values are +-1, 32 of them a word, products are exclusive ors.

pack, unpack, matmul, linear, conv2d, ...   packed operators; see nnkernels.binary.ops
binarize, biper, fold_bn, biper_qe          functions around them; see nnkernels.binary.functions
BinaryTensor                                bits with their length
BinaryLinear, BinaryConv2d,                 modules that train latent weights; `.freeze()` gives
BiPerLinear, BiPerConv2d                    PackedLinear and PackedConv2d, which hold bits
reference                                   the same in plain PyTorch, slow

BiPer is arXiv 2404.01278.
"""

from nnkernels.binary import autograd, backends, reference, register  # noqa: F401
from nnkernels.binary.functions import (
    QuantizationError,
    binarize,
    biper,
    biper_qe,
    fold_bn,
    prescale,
)
from nnkernels.binary.module import (
    BinaryConv2d,
    BinaryLinear,
    BiPerConv2d,
    BiPerLinear,
    freeze,
    set_stage,
)
from nnkernels.binary.ops import (
    conv2d,
    conv2d_corr,
    conv2d_sign,
    conv2d_train,
    hamming,
    int8_matmul,
    linear,
    linear_prepacked,
    linear_train,
    matmul,
    matmul_prepacked,
    matmul_sign,
    maxpool2d,
    pack,
    pack_biper,
    pack_rowpop,
    pack_ternary,
    planes_matmul,
    popcount,
    prepack,
    ternary_matmul,
    unpack,
)
from nnkernels.binary.packed import PackedConv2d, PackedLinear
from nnkernels.binary.tensor import BinaryTensor

__all__ = [
    "BiPerConv2d",
    "BiPerLinear",
    "BinaryConv2d",
    "BinaryLinear",
    "BinaryTensor",
    "PackedConv2d",
    "PackedLinear",
    "QuantizationError",
    "binarize",
    "biper",
    "biper_qe",
    "conv2d",
    "conv2d_corr",
    "conv2d_sign",
    "conv2d_train",
    "fold_bn",
    "freeze",
    "hamming",
    "int8_matmul",
    "linear",
    "linear_prepacked",
    "linear_train",
    "matmul",
    "matmul_prepacked",
    "matmul_sign",
    "maxpool2d",
    "pack",
    "pack_biper",
    "pack_rowpop",
    "pack_ternary",
    "planes_matmul",
    "popcount",
    "prepack",
    "prescale",
    "reference",
    "set_stage",
    "ternary_matmul",
    "unpack",
]
