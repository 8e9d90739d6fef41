"""What the binary bench is made of: inputs, checks and counted work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from common import Run, Work, check_close
from machine import Probe, register_probe
from nnkernels._host import active_isa
from rows import Row

from nnkernels import binary
from nnkernels.binary import reference

# The lookup kernel adds three table entries for 960 products in 11 instructions: 430 products in
# the cycle that does 16 fp32 multiply-adds with AVX2. AMX does 16 x 16 x 64 products in 16 cycles:
# 1024 in the cycle that does 32 fp32 multiply-adds with AVX-512.
LOOKUPS_PER_FMA = 430 / 16
MATRIX_PER_FMA = 1024 / 32


def _has_matrix_unit() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return active_isa() == "avx512" and cpuinfo.exists() and " amx_int8" in cpuinfo.read_text()


def _bits_rate(threads: int) -> tuple[float, str]:
    rate, how = register_probe("fma").rate(threads)
    times, kernel = (MATRIX_PER_FMA, "AMX") if _has_matrix_unit() else (LOOKUPS_PER_FMA, "lookups")
    return times * rate, f"counted for {kernel}, {times:.1f} times fma ({how})"


BITS = Probe("MAC", _bits_rate, per_isa=True)


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some(count: int, wanted: int = 12) -> torch.Tensor:
    """Indices spread over a dimension, both ends among them."""
    return torch.linspace(0, count - 1, min(count, wanted)).round().long()


def product_work(M: int, N: int, K: int, moved: float = 0.0, out_size: int = 4) -> Work:
    """Operands as bits (or `moved` bytes of them) and the result move once."""
    return Work(ops=M * N * K, bytes=(moved or (M + N) * K / 8) + M * N * out_size, rate="bits")


def check_product(
    call: Callable[[], torch.Tensor], x: torch.Tensor, w: torch.Tensor
) -> Callable[[], None]:
    """A check of sampled rows and columns of the product of the signs of x and w."""

    def check() -> None:
        rows, columns = some(x.shape[0]), some(w.shape[0])
        a, b = reference.pack(x[rows]), reference.pack(w[columns])
        check_close(call()[rows][:, columns], reference.matmul(a, b, x.shape[1]))

    return check


class Operands:
    """x [M, K] and w [N, K] in float32, as bits, and w prepacked."""

    def __init__(self, M: int, N: int, K: int):
        self.M, self.N, self.K = M, N, K
        self.x, self.w = normals(M, K, seed=1), normals(N, K, seed=2)
        self.x_bits, self.w_bits = binary.pack(self.x), binary.pack(self.w)
        self.packed = binary.prepack(self.w_bits, K)

    def matmul(self) -> torch.Tensor:
        return binary.matmul_prepacked(self.x_bits, self.packed, self.N, self.K)

    def linear(self) -> torch.Tensor:
        return binary.linear_prepacked(self.x, self.packed, self.N, self.K)

    def torch_fp32(self) -> torch.Tensor:
        return self.x @ self.w.t()


def compare_product(
    run: Run, id: str, name: str, operands: Operands, *, linear: bool = False, **row
) -> Row:
    """One row of matmul_prepacked on bits, or of linear_prepacked on float32, beside torch."""
    o = operands
    ours = o.linear if linear else o.matmul
    baselines = row.pop("baselines", {"torch fp32": o.torch_fp32})
    moved = 4 * o.M * o.K + o.N * o.K / 8 if linear else 0.0
    return run.compare(
        id,
        name,
        shape=f"{o.M}x{o.K}x{o.N}",
        dtype="float32" if linear else "bits",
        ours=ours,
        baselines=baselines,
        check=check_product(ours, o.x, o.w),
        work=product_work(o.M, o.N, o.K, moved),
        **row,
    )


# ---- convolution ----


class Convolution:
    """A 3x3 layer with padding 1 over float32 images, packed in every call."""

    def __init__(self, batch: int, size: int, channels: int):
        self.x = normals(batch, channels, size, size, seed=1)
        layer = binary.BinaryConv2d(channels, channels, 3, padding=1, bias=False)
        layer.alpha.data.fill_(1)
        self.frozen = layer.freeze()
        self.signs = binary.binarize(layer.weight.detach())
        self.macs = self.x.numel() * channels * 9

    def ours(self) -> torch.Tensor:
        return self.frozen(self.x)

    def torch_fp32(self) -> torch.Tensor:
        return torch.nn.functional.conv2d(self.x, self.signs, padding=1)

    def check(self) -> None:
        signs = binary.binarize(self.x)
        # Sums of +-1 are exact in float32.
        check_close(self.ours(), torch.nn.functional.conv2d(signs, self.signs, padding=1))
