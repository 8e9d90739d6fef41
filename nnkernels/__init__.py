"""Exact, fast, differentiable PyTorch kernels for arithmetic that stock PyTorch only composes.

nnkernels.lmul          L-Mul: multiplication by one integer addition
nnkernels.deltaproduct  the (Gated) DeltaProduct scan: a linear RNN whose state is a matrix
nnkernels.gaunt         products of signals on the sphere, equivariant, twice differentiable
nnkernels.binary        XNOR products of packed +-1, and BiPer training
nnkernels.pc            probabilistic circuits, and lossless coding with them
nnkernels.nn            the modules of every core
"""

from nnkernels._library import build_info, load

load()

from nnkernels import binary, deltaproduct, gaunt, lmul, nn, pc  # noqa: E402
from nnkernels._library import version as __version__  # noqa: E402

__all__ = ["__version__", "binary", "build_info", "deltaproduct", "gaunt", "lmul", "nn", "pc"]
