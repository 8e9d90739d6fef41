"""What the L-Mul bench is made of: inputs, checks, counted work, and the plain torch a user would
run without this package."""

from __future__ import annotations

from collections.abc import Callable

import torch
from common import Run, Work, check_close
from rows import Row

from nnkernels import lmul
from nnkernels.lmul import reference

# The default constant of five mantissa bits and more: c = 1/16.
OFFSET_WORD = 0x3F800000 - (1 << 19)

# What an fp32 sum may be off by, relative to the sum of the products' magnitudes.
SUM_ERROR = 2e-6
NORMALS_FROM = 2.0**-6


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal deviates kept away from zero: no dtype here rounds them to zero or a subnormal."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.abs().clamp_min(NORMALS_FROM).copysign(values)


def some(count: int, wanted: int = 12) -> torch.Tensor:
    """Indices spread over a dimension, both ends among them."""
    return torch.linspace(0, count - 1, min(count, wanted)).round().long()


def matmul_work(
    m: int, k: int, n: int, size: int = 4, out_size: int = 4, mode: str = "bits"
) -> Work:
    """bits: one add pair per product. formula: two multiply-adds. Operands and result move once."""
    moved = (m * k + k * n) * size + m * n * out_size
    if mode == "formula":
        return Work(ops=2 * m * k * n, bytes=moved, rate="fma")
    return Work(ops=m * k * n, bytes=moved, rate="add pair")


def check_matmul(
    call: Callable[[], torch.Tensor], a: torch.Tensor, b: torch.Tensor, rounding=0.0, **options
) -> Callable[[], None]:
    """A check of sampled rows and columns over the whole of k; `rounding` is that of the output."""

    def check() -> None:
        rows, columns = some(a.shape[0]), some(b.shape[1])
        x, y = a[rows], b[:, columns]
        want = reference.matmul(x, y, out_dtype=torch.float32, **options)
        bound = SUM_ERROR * reference.matmul_magnitude(x, y, **options) + rounding * want.abs()
        check_close(call()[rows][:, columns], want, bound)

    return check


def compare_matmul(
    run: Run,
    id: str,
    name: str,
    a: torch.Tensor,
    b: torch.Tensor,
    baselines: dict[str, Callable],
    *,
    mantissa_bits: int = 7,
    mode: str = "bits",
    algo: str = "auto",
    **row,
) -> Row:
    """One row of lmul.matmul on a, b."""

    def ours() -> torch.Tensor:
        return lmul.matmul(a, b, mantissa_bits=mantissa_bits, mode=mode, algo=algo)

    (m, k), n = a.shape, b.shape[1]
    return run.compare(
        id,
        name,
        shape=f"{m}x{k}x{n}",
        dtype=str(a.dtype).removeprefix("torch."),
        ours=ours,
        baselines=baselines,
        check=check_matmul(ours, a, b, mantissa_bits=mantissa_bits, mode=mode),
        work=matmul_work(m, k, n, a.element_size(), mode=mode),
        **row,
    )


def pair(m: int, k: int | None = None, n: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    return normals(m, k or m, seed=1), normals(k or m, n or m, seed=2)


def half_zero(a: torch.Tensor) -> torch.Tensor:
    return a * (torch.rand(a.shape, generator=torch.Generator().manual_seed(3)) < 0.5)


def broadcast_matmul(a: torch.Tensor, b: torch.Tensor, mantissa_bits: int = 7) -> torch.Tensor:
    """What people write today: add the fp32 words of every pair, flush, sum over k."""
    keep = -1 << (23 - mantissa_bits)
    x, y = ((t.view(torch.int32) & keep) for t in (a[:, :, None], b[None]))
    magnitude = (x & 0x7FFFFFFF) + ((y & 0x7FFFFFFF) - OFFSET_WORD)
    vanishes = (x & 0x7F800000 == 0) | (y & 0x7F800000 == 0) | (magnitude < 0x00800000)
    word = torch.where(vanishes, 0, magnitude) | ((x ^ y) & -0x80000000)
    return word.view(torch.float32).sum(1)


def unguarded_matmul(a: torch.Tensor, b: torch.Tensor, mantissa_bits: int = 7) -> torch.Tensor:
    """The shortest form: wrong as soon as an operand is zero or a product underflows."""
    keep = -1 << (23 - mantissa_bits)
    x, y = (a.view(torch.int32) & keep), (b.view(torch.int32) & keep) - OFFSET_WORD
    return (x[:, :, None] + y[None]).view(torch.float32).sum(1)


def gemm_formula(a: torch.Tensor, b: torch.Tensor, mantissa_bits: int = 7) -> torch.Tensor:
    """Formula mode as two library products: (x - (1 - c) P(x)) P(y) + P(x) y."""
    keep = -1 << (23 - mantissa_bits)
    x, y = ((t.view(torch.int32) & keep).view(torch.float32) for t in (a, b))
    px, py = ((t.view(torch.int32) & -(1 << 23)).view(torch.float32) for t in (x, y))
    return torch.addmm(px @ y, x - (1 - 1 / 16) * px, py)
