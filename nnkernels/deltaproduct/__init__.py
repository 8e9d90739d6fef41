"""The chunked (Gated) DeltaProduct scan (arXiv 2502.10297): a linear RNN whose state is a matrix.

reference   the definition in plain PyTorch: a token loop, and a chunk form
"""

from nnkernels.deltaproduct import reference

__all__ = ["reference"]
