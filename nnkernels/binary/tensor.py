"""BinaryTensor: packed rows of +-1 with what belongs to them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nnkernels.binary import checks, ops


@dataclass(frozen=True, eq=False)
class BinaryTensor:
    """Rows of +-1 as bits.

    bits: int32 [..., W(K)]. K: logical length of a row. rowpop: int32 [...], the number of -1s of
    every row, or None. scale: float32 [...], what every row is to be multiplied by, or None.

    >>> import torch, nnkernels
    >>> a = nnkernels.binary.BinaryTensor.pack(torch.tensor([[0.5, -2.0, 3.0]]))
    >>> a.shape, a.unpack(torch.int8).tolist()
    (torch.Size([1, 3]), [[1, -1, 1]])
    """

    bits: Tensor
    K: int
    rowpop: Tensor | None = None
    scale: Tensor | None = None

    def __post_init__(self):
        op = "BinaryTensor"
        checks.check_length(op, self.K)
        checks.check_bits(op, "bits", self.bits, self.K)
        rows = self.bits.shape[:-1]
        checks.check_vector(op, "rowpop", self.rowpop, rows, "bits", self.bits, checks.BITS)
        checks.check_vector(op, "scale", self.scale, rows, "bits", self.bits)

    @classmethod
    def pack(cls, x: Tensor, *, scaled: bool = False, check_nan: bool = False) -> "BinaryTensor":
        """The signs of x [..., K]; with `scaled` also mean |x| of every row, as XNOR-Net has it."""
        bits, rowpop = ops.pack_rowpop(x, check_nan=check_nan)
        scale = x.detach().float().abs().mean(-1) if scaled else None
        return cls(bits, x.shape[-1], rowpop, scale)

    def unpack(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values [..., K]: +-1, times the scale of their row where there is one."""
        values = ops.unpack(self.bits, self.K, dtype)
        return values if self.scale is None else values * self.scale.unsqueeze(-1).to(dtype)

    @property
    def shape(self) -> torch.Size:
        """The shape of the values."""
        return torch.Size((*self.bits.shape[:-1], self.K))
