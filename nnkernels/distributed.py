"""Importing this module makes the operators of every core run on DTensors (torch.distributed).

deltaproduct_cp   a DeltaProduct scan of one sequence whose tokens lie on many ranks
pc_fit            EM of a probabilistic circuit by many ranks

It is separate because torch.distributed.tensor takes long to import.
"""

from nnkernels.binary import sharding as _binary  # noqa: F401
from nnkernels.deltaproduct import sharding as _deltaproduct  # noqa: F401
from nnkernels.deltaproduct.parallel import deltaproduct_cp
from nnkernels.gaunt import sharding as _gaunt  # noqa: F401
from nnkernels.lmul import sharding as _lmul  # noqa: F401
from nnkernels.pc import sharding as _pc  # noqa: F401
from nnkernels.pc.distributed import fit as pc_fit

__all__ = ["deltaproduct_cp", "pc_fit"]
