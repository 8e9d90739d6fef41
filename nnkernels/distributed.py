"""Importing this module makes the operators of every core run on DTensors (torch.distributed).

It is separate because torch.distributed.tensor takes long to import.
"""

from nnkernels.binary import sharding as _binary  # noqa: F401
from nnkernels.gaunt import sharding as _gaunt  # noqa: F401
from nnkernels.lmul import sharding as _lmul  # noqa: F401
