"""Every CUDA kernel once on small, awkward shapes: the program that compute-sanitizer watches."""

from __future__ import annotations

from itertools import product

import torch

from nnkernels import lmul

SIZES = (1, 7, 33, 257, 1025)
DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)


def run_lmul() -> None:
    for dtype, size, mode in product(DTYPES, SIZES, ("bits", "formula")):
        x, y = (torch.randn(3, size, device="cuda").to(dtype) for _ in range(2))
        lmul.mul(x, y, mode=mode)
        # Transposed, broadcast, and starting inside an allocation.
        lmul.mul(x.t(), y.t(), mode=mode)
        lmul.mul(x, y[:1], mode=mode)
        lmul.mul(x[:, 1:], y[:, 1:], mode=mode)


run_lmul()
torch.cuda.synchronize()
