"""Probabilistic circuits: tree-shaped models of discrete data, and lossless coding with them."""

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

__all__ = [
    "ArgumentError",
    "ChecksumError",
    "CorruptError",
    "FormatError",
    "LimitError",
    "ModelError",
    "ModelMismatchError",
    "PCError",
    "ShapeError",
    "StructureError",
    "SymbolRangeError",
    "TruncatedError",
]
