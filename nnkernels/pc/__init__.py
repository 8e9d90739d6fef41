"""Probabilistic circuits (arXiv 2111.11632): tree-shaped models of discrete data, trained by EM,
and lossless coding with them, the same bytes on every machine.

HCLT                        a hidden Chow-Liu tree: fit, log_prob, sample, freeze
PCModel                     a frozen one: compress, decompress, save, load; bits estimates the size
coding_order, make_tree,    trees; learn finds one for data
learn, chain, star
forward, flows, ...         operators; see nnkernels.pc.ops
reference, reference_codec  the same in plain PyTorch, and in exact rationals
PCError, ...                what goes wrong; see nnkernels.pc.errors

`python -m nnkernels.pc` trains, compresses and decompresses files.
"""

from nnkernels.pc import autograd, backends, reference, reference_codec, register  # noqa: F401
from nnkernels.pc.errors import (
    ArgumentError,
    ChecksumError,
    CorruptError,
    FormatError,
    LimitError,
    ModelError,
    ModelMismatchError,
    PCError,
    ShapeError,
    StructureError,
    SymbolRangeError,
    TruncatedError,
)
from nnkernels.pc.model import PCModel, bits
from nnkernels.pc.module import HCLT, Report
from nnkernels.pc.ops import (
    conditional_cdf,
    decode,
    em_update,
    encode,
    flows,
    forward,
    intervals,
    rans_decode,
    rans_decode_step,
    rans_encode,
)
from nnkernels.pc.structure import Tree, chain, coding_order, learn, make_tree, star

__all__ = [
    "HCLT",
    "ArgumentError",
    "ChecksumError",
    "CorruptError",
    "FormatError",
    "LimitError",
    "ModelError",
    "ModelMismatchError",
    "PCError",
    "PCModel",
    "Report",
    "ShapeError",
    "StructureError",
    "SymbolRangeError",
    "Tree",
    "TruncatedError",
    "bits",
    "chain",
    "coding_order",
    "conditional_cdf",
    "decode",
    "em_update",
    "encode",
    "flows",
    "forward",
    "intervals",
    "learn",
    "make_tree",
    "rans_decode",
    "rans_decode_step",
    "rans_encode",
    "reference",
    "reference_codec",
    "star",
]
