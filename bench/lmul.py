"""L-Mul against what a user would otherwise run: C1 to C9 and G5 are the acceptance measurements.

C1 dense word kernel        C2 half of A zero          C3 guarded kernel
C4 formula mode             C5 broadcast torch code    C6 elementwise
C7 two threads              C8 attention               C9 decode
dtype  bf16, fp16 and fp8 inputs      call   cost of a call on 2x2
isa    every kernel on every ISA      peers  torch in bf16, quantise-then-matmul
grad   backward                       sizes, rows, bits  sweeps       G5  elementwise on a GPU
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable

import torch
from common import Bench, Run, Unavailable, Work, WrongResult, check_close
from lmul_cases import (
    broadcast_matmul,
    check_matmul,
    compare_matmul,
    gemm_formula,
    half_zero,
    matmul_work,
    normals,
    pair,
    some,
    unguarded_matmul,
)
from machine import isa, register_probe
from rows import Row
from timing import device_clock, peak_extra_bytes

from nnkernels import _host, lmul
from nnkernels.lmul import reference

# One product and its sum: an integer add, then an fp32 add of its result.
bench = Bench("lmul", __doc__, probes={"add pair": register_probe("add_pair")})


@bench.measure("C1", capped=("avx2",))
def dense(run: Run) -> None:
    a, b = pair(1024)
    compare_matmul(
        run,
        "C1",
        "matmul, m=7",
        a,
        b,
        {"torch fp32": lambda: a @ b},
        requirement="<= 1.35x",
        headline=True,
    )


@bench.measure("C2", capped=("avx2",))
def soft_zero(run: Run) -> None:
    dense_a, b = pair(1024)
    a = half_zero(dense_a)
    baselines = {"A dense": lambda: lmul.matmul(dense_a, b, mantissa_bits=7)}
    compare_matmul(run, "C2", "A half zero", a, b, baselines, requirement="<= 1.15x")


@bench.measure("C3", capped=("avx2",))
def guarded(run: Run) -> None:
    a, b = pair(1024)
    torch_fp32 = {"torch fp32": lambda: a @ b}
    compare_matmul(
        run, "C3", "guarded, m=7", a, b, torch_fp32, algo="guarded", requirement="<= 3.0x"
    )
    zero_a, zero_b = half_zero(a), half_zero(b.t()).t()
    compare_matmul(run, "C3/zeros", "A and B half zero", zero_a, zero_b, torch_fp32)


@bench.measure("C4", capped=("avx2",))
def formula(run: Run) -> None:
    a, b = pair(1024)
    baselines = {"torch fp32": lambda: a @ b, "two torch GEMMs": lambda: gemm_formula(a, b)}
    compare_matmul(
        run, "C4", "formula, m=7", a, b, baselines, mode="formula", requirement="<= 2.4x"
    )


@bench.measure("C5")
def broadcast(run: Run) -> None:
    a, b = pair(128)
    baselines = {
        "broadcast torch code": lambda: broadcast_matmul(a, b),
        "the same, no guards": lambda: unguarded_matmul(a, b),
    }
    if run.level == "full":
        compiled = torch.compile(broadcast_matmul)
        baselines["the same, compiled"] = lambda: compiled(a, b)
    compare_matmul(run, "C5", "matmul, m=7", a, b, baselines, requirement=">= 150x", headline=True)


@bench.measure("C6")
def elementwise(run: Run) -> None:
    compare_mul(run, "C6", 16 << 20, torch.bfloat16, requirement="<= 1.3x", headline=True)
    compare_mul(run, "C6/fp32", 16 << 20, torch.float32)


def compare_mul(run: Run, id: str, count: int, dtype: torch.dtype, **row) -> None:
    x, y = (normals(count, seed=seed).to(dtype) for seed in (1, 2))

    def check() -> None:
        at = some(count, 65536)
        word = {2: torch.int16, 4: torch.int32}[x.element_size()]
        want = reference.mul(x[at], y[at])
        check_close(lmul.mul(x, y)[at].view(word), want.view(word))

    run.compare(
        id,
        "mul",
        shape=f"{count >> 20}M",
        dtype=str(dtype).removeprefix("torch."),
        ours=lambda: lmul.mul(x, y),
        baselines={"torch.mul": lambda: x * y},
        check=check,
        work=Work(ops=count, bytes=3 * count * x.element_size(), unit="product"),
        **row,
    )


@bench.measure("C7")
def threads(run: Run) -> None:
    a, b = pair(1024)

    def product() -> torch.Tensor:
        return lmul.matmul(a, b, mantissa_bits=7)

    run.compare_threads(
        "C7",
        "two threads over one",
        shape="1024x1024x1024",
        dtype="float32",
        call=product,
        check=check_matmul(product, a, b, mantissa_bits=7),
        requirement=">= 1.7x",
        work=matmul_work(1024, 1024, 1024),
    )
    run.compare_threads(
        "C7/torch",
        "torch fp32: two threads over one",
        shape="1024x1024x1024",
        dtype="float32",
        call=lambda: a @ b,
        check=lambda: None,
        note="the library's own scaling on this machine: time of two threads over one",
    )


@bench.measure("C8")
def attention(run: Run) -> None:
    heads, dim = 8, 64

    def inputs(time: int) -> list[torch.Tensor]:
        return [normals(1, heads, time, dim, seed=seed) for seed in (1, 2, 3)]

    def ours(q, k, v, normalize: str) -> torch.Tensor:
        return lmul.attention(q, k, v, is_causal=True, normalize=normalize, mantissa_bits=7)

    def plain(q, k, v) -> torch.Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def fused(q, k, v) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    def check(time: int, normalize: str) -> Callable[[], None]:
        def run_check() -> None:
            q, k, v = inputs(time)
            got = ours(q, k, v, normalize)
            at = some(time)
            mask = torch.arange(time)[None] <= at[:, None]
            options = {"attn_mask": mask, "normalize": normalize, "mantissa_bits": 7}
            want = reference.attention(q[:, :1, at], k[:, :1], v[:, :1], **options)
            error = (got[:, :1, at] - want).norm() / want.norm()
            if not error <= 2e-3:
                raise WrongResult(f"relative L2 error {error:.2g}, expected at most 2e-3")

        return run_check

    # Memory first: buffers that a kernel keeps for the next call are seen only once.
    time = 4096
    ours(*inputs(128), "after")
    long = inputs(time)
    extra = peak_extra_bytes(lambda: ours(*long, "after"))
    shape = f"B1 H{heads} T{time} D{dim}"
    row = Row("C8/memory", "peak extra memory, causal", shape, "float32", run.threads)
    row.requirement = "<= 32 MiB"
    row.value = None if extra is None else extra / 2**20
    row.note = "result included; q is 8 MiB, one head's T x T buffer would be 64 MiB"
    run.record(row)

    q, k, v = inputs(1024)
    for normalize, requirement in (("after", "<= 1.6x"), ("before", None)):
        run.compare(
            "C8" if requirement else "C8/before",
            f'attention "{normalize}", causal',
            shape=f"B1 H{heads} T1024 D{dim}",
            dtype="float32",
            ours=lambda normalize=normalize: ours(q, k, v, normalize),
            baselines={"torch SDPA, math": lambda: plain(q, k, v), "fused": lambda: fused(q, k, v)},
            check=check(1024, normalize),
            requirement=requirement,
            headline=requirement is not None,
            # Both products over the causal half; inputs and output once.
            work=Work(
                ops=heads * 1024 * 1025 * dim,
                bytes=4 * heads * 1024 * dim * 4,
                rate="add pair",
            ),
        )


@bench.measure("C9")
def decode(run: Run) -> None:
    size = 4096
    w32 = normals(size, size, seed=2)
    w = w32.bfloat16()
    x = normals(1, size, seed=1).bfloat16()
    x32 = x.float()
    packed = lmul.pack(w)
    calls = {
        "C9": lambda: lmul.linear(x, w),
        "C9/packed": lambda: lmul.linear(x, w, w_packed=packed),
    }
    for id, call in calls.items():
        run.compare(
            id,
            "linear, packed weight" if id.endswith("packed") else "linear, one token",
            shape=f"1x{size}x{size}",
            dtype="bfloat16",
            ours=call,
            baselines={
                "torch bf16": lambda: torch.nn.functional.linear(x, w),
                "torch fp32": lambda: torch.nn.functional.linear(x32, w32),
            },
            check=check_matmul(call, x, w.t(), rounding=2.0**-8, mantissa_bits=7),
            requirement="<= 1.5x" if id == "C9" else None,
            work=matmul_work(1, size, size, 2, 2),
        )


@bench.measure("dtype")
def dtypes(run: Run) -> None:
    full_a, full_b = pair(1024)
    formats = ((torch.bfloat16, 7), (torch.float16, 10), (torch.float8_e4m3fn, 3))
    for dtype, bits in (*formats, (torch.float8_e5m2, 2)):
        a, b = full_a.to(dtype), full_b.to(dtype)
        a32, b32 = a.float(), b.float()

        def ours(a=a, b=b) -> torch.Tensor:
            return lmul.matmul(a, b, out_dtype=torch.float32)

        name = str(dtype).removeprefix("torch.")
        run.compare(
            f"dtype/{name}",
            f"matmul, m={bits}",
            shape="1024x1024x1024",
            dtype=name,
            ours=ours,
            baselines={
                "same values in fp32": lambda a=a32, b=b32, m=bits: lmul.matmul(
                    a, b, mantissa_bits=m
                )
            },
            check=check_matmul(ours, a, b, mantissa_bits=bits),
            requirement="<= 1.10x",
            work=matmul_work(1024, 1024, 1024, a.element_size()),
        )


@bench.measure("call")
def call_cost(run: Run) -> None:
    a, b = pair(2)
    shared = {"shape": "2x2", "dtype": "float32", "requirement": "<= 15 us"}
    run.compare(
        "call/mul",
        "cost of a call",
        ours=lambda: lmul.mul(a, b),
        baselines={"torch.mul": lambda: a * b},
        check=lambda: check_close(lmul.mul(a, b), reference.mul(a, b)),
        **shared,
    )
    run.compare(
        "call/matmul",
        "cost of a call",
        ours=lambda: lmul.matmul(a, b),
        baselines={"torch.matmul": lambda: a @ b},
        check=check_matmul(lambda: lmul.matmul(a, b), a, b),
        **shared,
    )


@bench.measure("isa", level="default")
def every_isa(run: Run) -> None:
    for name in _host.isa_names():
        size = 256 if name == "scalar" else 512
        a, b = pair(size)
        torch_fp32 = {"torch fp32": lambda a=a, b=b: a @ b}
        with isa(name):
            for kind in ({"algo": "word"}, {"algo": "guarded"}, {"mode": "formula"}):
                label = next(iter(kind.values()))
                compare_matmul(run, f"isa/{name}/{label}", label, a, b, torch_fp32, **kind)


@bench.measure("peers", level="default")
def peers(run: Run) -> None:
    a, b = pair(256)
    half_a, half_b = a.bfloat16(), b.bfloat16()
    baselines = {"torch fp32": lambda: a @ b, "torch bf16": lambda: half_a @ half_b}
    if importlib.util.find_spec("qtorch"):
        from qtorch.quant import float_quantize

        baselines["QPyTorch quantise, torch fp32"] = lambda: (
            float_quantize(a, exp=8, man=7) @ float_quantize(b, exp=8, man=7)
        )
    note = "torch's bf16 matmul depends on the CPU: matrix units where it has them, slow elsewhere"
    compare_matmul(run, "peers", "exact products beside ours", a, b, baselines, note=note)


@bench.measure("grad", level="default")
def gradients(run: Run) -> None:
    a, b = pair(512)
    g = normals(512, 512, seed=4)
    leaves = [t.clone().requires_grad_() for t in (a, b)]

    def backward(forward: Callable) -> Callable:
        out = forward(*leaves)
        return lambda: torch.autograd.grad(out, leaves, g, retain_graph=True)

    def product(grad: str) -> Callable:
        return lambda x, y: lmul.matmul(x, y, mantissa_bits=7, grad=grad)

    exact = backward(torch.matmul)
    for grad in ("ste", "lmul", "exact"):
        ours = backward(product(grad))

        def check(grad=grad, ours=ours) -> None:
            at = some(512)
            rows = a[at].requires_grad_()
            out = reference.matmul(rows, b, mantissa_bits=7, grad=grad)
            (want,) = torch.autograd.grad(out, rows, g[at])
            got = ours()[0][at]
            error = (got - want).norm() / want.norm()
            if not error <= 1e-5:
                raise WrongResult(f"relative L2 error {error:.2g}, expected at most 1e-5")

        run.compare(
            f"grad/{grad}",
            f'matmul backward, "{grad}"',
            shape="512x512x512",
            dtype="float32",
            ours=ours,
            baselines={"torch fp32 backward": exact},
            check=check,
            work=Work(ops=2 * 512**3, bytes=5 * 512 * 512 * 4),
        )


@bench.measure("sizes", level="full")
def sizes(run: Run) -> None:
    for size in (256, 384, 512, 768, 1000, 1024, 1023, 1536, 2048):
        a, b = pair(size)
        baselines = {"torch fp32": lambda a=a, b=b: a @ b}
        compare_matmul(run, "sizes", "matmul, m=7", a, b, baselines, series="size", x=size)


@bench.measure("rows", level="full")
def row_counts(run: Run) -> None:
    for count in (1, 4, 16, 64, 256):
        a, b = pair(count, 2048, 2048)
        baselines = {"torch fp32": lambda a=a, b=b: a @ b}
        compare_matmul(run, "rows", "matmul, m=7", a, b, baselines, series="rows of A", x=count)


@bench.measure("bits", level="full")
def bit_counts(run: Run) -> None:
    a, b = pair(512)
    torch_fp32 = {"torch fp32": lambda: a @ b}
    for bits in (*range(1, 8), 10, 23):
        series = {"series": "mantissa bits", "x": bits}
        compare_matmul(
            run, "bits", f"matmul, m={bits}", a, b, torch_fp32, mantissa_bits=bits, **series
        )


@bench.measure("G5")
def gpu_elementwise(run: Run) -> None:
    if not torch.cuda.is_available():
        raise Unavailable("needs a CUDA device")
    count = 64 << 20
    x, y = (normals(count, seed=seed).to("cuda", torch.bfloat16) for seed in (1, 2))

    def check() -> None:
        at = some(count, 65536)
        want = reference.mul(x[at].cpu(), y[at].cpu())
        check_close(lmul.mul(x, y)[at].view(torch.int16), want.view(torch.int16))

    run.compare(
        "G5",
        "mul on the GPU",
        shape="64M",
        dtype="bfloat16",
        ours=lambda: lmul.mul(x, y),
        baselines={"torch.mul": lambda: x * y},
        check=check,
        requirement=">= 85%",
        work=Work(bytes=3 * count * 2, unit="product", copy="device copy"),
        clock=device_clock,
        note="share of the copy bandwidth measured in this run",
    )


if __name__ == "__main__":
    sys.exit(bench.main())
