"""The chunked (Gated) DeltaProduct scan (arXiv 2502.10297): a linear RNN whose state is a matrix.

scan, step                      a sequence at once, or by tokens; see nnkernels.deltaproduct.ops
state_map, compose_state_maps   what a stretch of tokens does to any state, and two in a row
GatedDeltaProduct               the layer, and DeltaProductCache, what it needs for decoding
reference                       the same in plain PyTorch: a token loop, and a chunk form
"""

from nnkernels.deltaproduct import autograd, backends, reference, register  # noqa: F401
from nnkernels.deltaproduct.module import DeltaProductCache, GatedDeltaProduct
from nnkernels.deltaproduct.ops import scan, state_map, step
from nnkernels.deltaproduct.reference import compose_state_maps

__all__ = [
    "DeltaProductCache",
    "GatedDeltaProduct",
    "compose_state_maps",
    "reference",
    "scan",
    "state_map",
    "step",
]
