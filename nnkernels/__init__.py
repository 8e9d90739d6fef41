"""Exact, fast, differentiable PyTorch kernels for arithmetic that stock PyTorch only composes.

nnkernels.lmul    L-Mul: multiplication by one integer addition
nnkernels.nn      the modules of every core
"""

from nnkernels._library import build_info, load

load()

from nnkernels import lmul, nn  # noqa: E402
from nnkernels._library import version as __version__  # noqa: E402

__all__ = ["__version__", "build_info", "lmul", "nn"]
