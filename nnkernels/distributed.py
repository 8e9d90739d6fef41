"""Importing this module makes the operators of every core run on DTensors (torch.distributed).

It is separate because torch.distributed.tensor takes long to import.
"""

from nnkernels.lmul import sharding  # noqa: F401
