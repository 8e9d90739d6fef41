"""XNOR products of bits beside what a user would otherwise run: A1 to A9 are the acceptance rows.

A1 matmul, prepacked           A2 linear from float32        A3 few rows
A4 ragged K                    A5 two threads                A6 packing
A7 conv2d with packing         A8 bytes kept for backward    A9 ternary by int8
peers  torch bf16, int8 and bitwise code, faiss, SimSIMD, NumKong   isa   every instruction set
size, rows, columns, length    growth of the time of a product
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import torch
from binary_cases import (
    BITS,
    Convolution,
    Operands,
    check_product,
    compare_product,
    normals,
    product_work,
    some,
)
from binary_peers import installed_peers, torch_bitwise
from common import Bench, Run, check_close
from rows import Row, Work
from timing import interleave

from nnkernels import _host, binary
from nnkernels.binary import reference

bench = Bench("binary", __doc__, probes={"bits": BITS})

SIZES = (1024, 2048, 4096)
# The dimensions that --full grows one at a time.
GROWTH = {"rows": "M, rows of A", "columns": "N, rows of B", "length": "K"}


@bench.measure("A1", capped=("avx2",))
def matmul(run: Run) -> None:
    for size in SIZES:
        compare_product(
            run,
            "A1",
            "matmul, prepacked",
            Operands(size, size, size),
            requirement=">= 12x",
            headline=size == 2048,
        )


@bench.measure("A2", capped=("avx2",))
def linear(run: Run) -> None:
    for size in SIZES:
        requirement = ">= 10x" if size >= 2048 else ">= 8x"
        operands = Operands(size, size, size)
        compare_product(run, "A2", "linear", operands, linear=True, requirement=requirement)


@bench.measure("A3", capped=("avx2",))
def few_rows(run: Run) -> None:
    for M, factor in ((1, 4), (4, 6), (16, 8), (64, 9)):
        operands = Operands(M, 4096, 4096)
        compare_product(run, "A3", "matmul, few rows", operands, requirement=f">= {factor}x")


@bench.measure("A4")
def ragged(run: Run) -> None:
    for K, even in ((1000, 1024), (4095, 4096)):
        full = Operands(1024, 1024, even)
        baselines = {f"ours, K={even}": full.matmul}
        compare_product(
            run,
            "A4",
            f"K={K}",
            Operands(1024, 1024, K),
            baselines=baselines,
            requirement="<= 1.15x",
        )


@bench.measure("A5")
def threads(run: Run) -> None:
    o = Operands(2048, 2048, 2048)
    for id, call, requirement, note in (
        ("A5", o.matmul, ">= 1.8x", ""),
        ("A5/torch", o.torch_fp32, None, "the library's own scaling on this machine"),
    ):
        run.compare_threads(
            id,
            "two threads over one",
            shape="2048x2048x2048",
            dtype="bits" if call == o.matmul else "float32",
            call=call,
            check=check_product(o.matmul, o.x, o.w),
            requirement=requirement,
            note=note,
        )


@bench.measure("A6")
def packing(run: Run) -> None:
    x = normals(8192, 4096)
    at = some(8192)
    check_close(binary.pack(x)[at], reference.pack(x[at]))
    times = interleave(
        {
            "pack": lambda: binary.pack(x),
            "biper": lambda: binary.pack_biper(x, 20.0),
            "read": lambda: torch.sum(x),
        },
        run.rounds,
    )
    read = times.pop("read")
    for name, requirement in (("pack", ">= 80%"), ("biper", None)):
        row = Row(f"A6/{name}", name, "8192x4096", "float32", run.threads, requirement=requirement)
        row.ours, row.baselines = times[name], {"torch.sum": read}
        if requirement:
            row.value = 100 * read.median / row.ours.median
            row.note = "share of the speed of reading the same tensor once"
        run.record(row)
    # Stays in the caches.
    small = normals(64, 1024)
    run.compare(
        "A6/cached",
        "pack_biper beside pack, cached",
        shape="64x1024",
        dtype="float32",
        ours=lambda: binary.pack_biper(small, 20.0),
        baselines={"pack": lambda: binary.pack(small)},
        check=lambda: check_close(
            binary.pack_biper(small, 20.0), reference.pack_biper(small, 20.0)
        ),
        requirement="<= 2.0x",
    )


@bench.measure("A7", capped=("avx2",))
def convolution(run: Run) -> None:
    for size, channels in ((56, 64), (28, 128), (14, 256), (7, 512)):
        for batch in (1, 8):
            case = Convolution(batch, size, channels)
            run.compare(
                "A7",
                "conv2d 3x3, packing included",
                shape=f"{batch}x{size}x{size}x{channels}",
                dtype="float32",
                ours=case.ours,
                baselines={"torch conv2d fp32": case.torch_fp32},
                check=case.check,
                requirement=">= 6x",
                headline=(size, batch) == (14, 8),
                work=Work(ops=case.macs, bytes=8 * case.x.numel(), rate="bits"),
            )


def kept_bytes(layer: torch.nn.Module, x: torch.Tensor) -> int:
    """What autograd keeps of a call for backward, beside the parameters."""
    own = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    return sum(kept.values())


@bench.measure("A8")
def saved_state(run: Run) -> None:
    x = normals(8192, 4096).requires_grad_()
    ours = kept_bytes(binary.BinaryLinear(4096, 64), x)
    theirs = kept_bytes(torch.nn.Linear(4096, 64), x)
    row = Row("A8", "bytes kept for backward", "8192x4096x64", "float32", run.threads)
    row.requirement = ">= 15x"
    row.value = theirs / ours
    row.note = f"{ours:,} bytes against {theirs:,}"
    run.record(row)


@bench.measure("A9", capped=("avx2",))
def ternary_by_int8(run: Run) -> None:
    size = 2048
    x = (normals(size, size, seed=1) * 40).clamp(-128, 127).to(torch.int8)
    t = normals(size, size, seed=2).round().clamp(-1, 1)
    mask, sign = binary.pack_ternary(t)

    def ours() -> torch.Tensor:
        return binary.int8_matmul(x, sign, size, w_mask=mask)

    def check() -> None:
        at = some(size)
        check_close(ours()[at], x[at].double() @ t.double().t())

    x32, t8 = x.float(), t.to(torch.int8)
    run.compare(
        "A9",
        "ternary by int8",
        shape=f"{size}x{size}x{size}",
        dtype="int8",
        ours=ours,
        baselines={
            "torch fp32": lambda: x32 @ t.t(),
            "torch._int_mm": lambda: torch._int_mm(x, t8.t()),
        },
        check=check,
        requirement=">= 92 GMAC/s",
        # int8 products: at most four for every fp32 multiply-add.
        work=Work(ops=size**3, bytes=size * size * 5.25),
        note="the bar: bitnet.cpp's published 93.3 ms on one core of an EPYC 7V13",
    )


@bench.measure("peers", level="default")
def peers(run: Run) -> None:
    for M, N, K in ((256, 256, 1024), (2048, 2048, 2048)):
        o = Operands(M, N, K)
        distances = binary.hamming(o.x_bits, o.w_bits, K)
        half, half_w = o.x.bfloat16(), o.w.bfloat16()
        int8, int8_w = (binary.unpack(bits, K, torch.int8) for bits in (o.x_bits, o.w_bits))
        check_close(torch._int_mm(int8, int8_w.t()), K - 2 * distances)
        baselines = {
            "torch fp32": o.torch_fp32,
            "torch bf16": lambda x=half, w=half_w: x @ w.t(),
            "torch._int_mm": lambda x=int8, w=int8_w: torch._int_mm(x, w.t()),
        }
        # Its intermediate has every pair of words: a gigabyte at the larger size.
        if M * N * o.x_bits.shape[1] <= 1 << 24:
            check_close(torch_bitwise(o.x_bits, o.w_bits), distances)
            baselines["torch bitwise"] = lambda o=o: torch_bitwise(o.x_bits, o.w_bits)
        calls, missing = installed_peers(o.x_bits, o.w_bits, distances)
        row = compare_product(run, "peers", "matmul, prepacked", o, baselines=baselines | calls)
    row.note = "bf16 and int8 depend on the CPU: matrix units where it has them, slow elsewhere"
    if missing:
        row.note += f"; not installed: {', '.join(missing)}"


@bench.measure("isa", level="default")
def every_isa(run: Run) -> None:
    o = Operands(512, 512, 2048)
    before = _host.active_isa()
    for name in _host.isa_names():
        _host.set_isa(name)
        try:
            compare_product(run, f"isa/{name}", "matmul, prepacked", o)
        finally:
            _host.set_isa(before)


def growth(run: Run, id: str, shape: Callable[[int], tuple[int, int, int]]) -> None:
    """The time over one dimension, and the power of the dimension that it follows."""
    found = {}
    for size in (256, 512, 1024, 2048, 4096, 8192):
        row = compare_product(
            run, id, "matmul, prepacked", Operands(*shape(size)), series=GROWTH[id], x=size
        )
        if row.ours:
            found[size] = row.ours.median
    row = Row(f"{id}/growth", f"time over {GROWTH[id]}", "", "bits", run.threads)
    sizes = torch.tensor(list(found)).double().log()
    times = torch.tensor(list(found.values())).double().log()
    for first in (256, 1024):
        at = sizes >= math.log(first) - 1e-9
        centred = sizes[at] - sizes[at].mean()
        power = (centred @ times[at] / centred.square().sum()).item()
        row.note += f"{'; ' if row.note else ''}time ~ size^{power:.2f} from {first} to 8192"
    run.record(row)


@bench.measure("size", level="full")
def sizes(run: Run) -> None:
    for size in (256, 512, 1000, 1024, 2048, 4096):
        o = Operands(size, size, size)
        compare_product(run, "size", "matmul, prepacked", o, series="size", x=size)


@bench.measure("rows", level="full")
def rows(run: Run) -> None:
    growth(run, "rows", lambda size: (size, 1024, 1024))


@bench.measure("columns", level="full")
def columns(run: Run) -> None:
    growth(run, "columns", lambda size: (1024, size, 1024))


@bench.measure("length", level="full")
def lengths(run: Run) -> None:
    growth(run, "length", lambda size: (1024, 1024, size))


@bench.measure("results", level="default")
def result_dtypes(run: Run) -> None:
    o = Operands(1024, 1024, 1024)
    scale = normals(1024)
    for dtype in (torch.int16, torch.float32, torch.bfloat16):
        options = {"out_dtype": dtype}
        if dtype.is_floating_point:
            options["col_scale"] = scale

        def ours(options=options) -> torch.Tensor:
            return binary.matmul_prepacked(o.x_bits, o.packed, 1024, 1024, **options)

        def check(ours=ours, options=options) -> None:
            at = some(1024)
            want = reference.matmul(o.x_bits[at], o.w_bits, 1024, **options)
            check_close(ours()[at], want)

        name = str(dtype).removeprefix("torch.")
        run.compare(
            f"results/{name}",
            "matmul, prepacked, beside int32",
            shape="1024x1024x1024",
            dtype=name,
            ours=ours,
            baselines={"int32": o.matmul},
            check=check,
            work=product_work(1024, 1024, 1024, out_size=dtype.itemsize),
        )


if __name__ == "__main__":
    sys.exit(bench.main())
