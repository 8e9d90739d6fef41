"""The DeltaProduct scan on the CPU against what a user would otherwise run.

F64, F128  forward at d=64 and d=128 for n=1, 2, 3: share of the peak, and each peer
threads  two threads over one, also at B=H=1      backward  over forward, and its memory
step     decoding                                 dtype     bf16 and fp16 inputs over fp32
isa      every instruction set                    varlen    many short sequences
length   linear growth from 256 to 65,536 tokens
peers: the token loop in torch; the chunk-64 torch code of CPU fallbacks on the sequence interleaved
with zeros; the chunk form of this package in torch; ours held to the scalar build
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from common import Bench, Run, Work
from deltaproduct_cases import (
    Inputs,
    check_error,
    check_scan,
    chunk_form,
    interleaved,
    token_loop,
)
from machine import isa
from rows import Row
from timing import peak_extra_bytes, thread_clock, wall_clock

from nnkernels import _host, deltaproduct
from nnkernels.deltaproduct import reference

bench = Bench("deltaproduct", __doc__)

TIMES = {"loop": "token loop in torch", "chunk-64": "chunk-64 fallback, interleaved"}
TIMES |= {"chunks": "our chunk form in torch", "scalar": "ours, scalar C++"}


def clock(run: Run) -> Callable:
    """CPU time of the thread, where it is alone: the machine may be busy."""
    return thread_clock if run.threads == 1 else wall_clock


def scalar(inputs: Inputs) -> Callable:
    def call() -> object:
        with isa("scalar"):
            return inputs.scan()

    return call


def peers(inputs: Inputs, *names: str) -> dict[str, Callable]:
    calls = {
        "loop": lambda: token_loop(inputs),
        "chunk-64": lambda: interleaved(inputs),
        "chunks": lambda: chunk_form(inputs),
        "scalar": scalar(inputs),
    }
    return {TIMES[name]: calls[name] for name in names}


def forward(run: Run, d: int, share: str, loop: str, fallback: str) -> None:
    """The share of the peak, and the ratios to the peers: one measurement, three requirements."""
    for n in (1, 2, 3):
        inputs = Inputs(2048, n, d)
        for name in ("loop", "chunk-64", "chunks"):
            # A peer that is wrong would be no peer.
            call = peers(inputs, name)[TIMES[name]]
            check_scan(inputs, call, 1e-4)()
        shared = {"shape": inputs.shape, "dtype": inputs.name, "clock": clock(run)}
        with torch.no_grad():
            found = run.compare(
                f"F{d}/n{n}",
                "forward",
                ours=inputs.scan,
                baselines=peers(inputs, "chunk-64", "loop", "chunks", "scalar"),
                check=check_scan(inputs, inputs.scan),
                requirement=share,
                work=inputs.work(),
                headline=n == 2,
                **shared,
            )
        if found.error:
            continue
        for name, requirement in (("chunk-64", fallback), ("loop", loop)):
            row = Row(f"F{d}/n{n}/{name}", "the same, against it", inputs.shape, inputs.name, 1)
            row.ours, row.requirement = found.ours, requirement
            row.baselines = {TIMES[name]: found.baselines[TIMES[name]]}
            run.record(row)


@bench.measure("F64", capped=("avx2",))
def forward_64(run: Run) -> None:
    forward(run, 64, ">= 55%", ">= 40x", ">= 10x")


@bench.measure("F128", capped=("avx2",))
def forward_128(run: Run) -> None:
    forward(run, 128, ">= 45%", ">= 18x", ">= 4x")


@bench.measure("threads")
def threads(run: Run) -> None:
    for H, d in ((4, 64), (4, 128), (1, 64), (1, 128)):
        inputs = Inputs(2048, 2, d, H=H)
        run.compare_threads(
            f"threads/H{H}d{d}",
            "two threads over one",
            shape=inputs.shape,
            dtype=inputs.name,
            call=inputs.scan,
            check=check_scan(inputs, inputs.scan),
            requirement=">= 1.7x",
            work=inputs.work(),
        )


def gradients(inputs: Inputs, heads: int | None = None, scan=deltaproduct.scan):
    """(forward, backward) of a training step; `heads` of them, in float64, for a check."""
    tensors = inputs.tensors if heads is None else inputs.heads(heads)
    leaves = [x.clone().requires_grad_() for x in tensors]

    def forward_call() -> torch.Tensor:
        return scan(*leaves, inputs.n)[0]

    o = forward_call()
    g = torch.ones_like(o)
    return forward_call, lambda: torch.autograd.grad(o, leaves, g, retain_graph=True)


@bench.measure("backward", capped=("avx2",))
def backward(run: Run) -> None:
    for d in (64, 128):
        for n in (1, 2, 3):
            inputs = Inputs(2048, n, d)
            forward_call, call = gradients(inputs)

            def check(inputs=inputs, call=call) -> None:
                want = gradients(inputs, 1, reference.chunk_scan)[1]()
                for ours, exact in zip(call(), want, strict=True):
                    check_error(ours[:, :, :1], exact, 5e-5)

            run.compare(
                f"backward/d{d}n{n}",
                "backward over forward",
                shape=inputs.shape,
                dtype=inputs.name,
                ours=call,
                baselines={"forward": forward_call},
                check=check,
                requirement="<= 4.0x",
                clock=clock(run),
                note="forward keeps a state every 64 tokens" if (d, n) == (64, 1) else "",
            )
    for d in (64, 128):
        memory(run, d)


def memory(run: Run, d: int) -> None:
    """What forward and backward take beyond the inputs: checkpoints, gradients, workspace."""
    inputs = Inputs(8192, 2, d)
    leaves = [x.clone().requires_grad_() for x in inputs.tensors]
    held = sum(x.numel() * x.element_size() for x in leaves)

    def step() -> object:
        o = deltaproduct.scan(*leaves, inputs.n)[0]
        return torch.autograd.grad(o, leaves, torch.ones(()).expand_as(o))

    # Buffers that are kept for the next call are seen only once.
    gradients(Inputs(128, 2, d))[1]()
    extra = peak_extra_bytes(step)
    row = Row(f"memory/d{d}", "training, extra memory", inputs.shape, inputs.name, run.threads)
    row.requirement = "<= 200%"
    row.value = None if extra is None else 100 * extra / held
    row.note = "of the inputs: o, all gradients, a state every 64 tokens, workspace"
    run.record(row)


@bench.measure("step", capped=("avx2",))
def decode(run: Run) -> None:
    H, d, n = 32, 128, 2
    for B in (1, 8):
        x = Inputs(1, n, d, B=B, H=H)
        tokens = (x.q[:, 0], x.k, x.v, x.g[:, 0], x.beta)
        state = torch.randn(B, H, d, d)

        def ours(tokens=tokens, state=state) -> torch.Tensor:
            return deltaproduct.step(*tokens, state)

        def check(tokens=tokens, B=B) -> None:
            exact = torch.randn(B, H, d, d, dtype=torch.float64)
            got = exact.float()
            want = reference.step(*(y.double() for y in tokens), exact)
            check_error(deltaproduct.step(*tokens, got), want, 5e-6)
            check_error(got, exact, 5e-6)

        peer = state.clone()
        run.compare(
            f"step/B{B}",
            "one token",
            shape=f"B{B} H{H} d{d} n{n}",
            dtype="float32",
            ours=ours,
            baselines={
                "token loop in torch": lambda tokens=tokens, peer=peer: reference.step(
                    *tokens, peer, dtype=torch.float32
                )
            },
            check=check,
            requirement=">= 10x",
            # The state is read and written once, whatever n.
            work=Work(ops=B * H * (2 * n + 1) * d * d, bytes=8 * B * H * d * d),
            clock=clock(run),
            headline=B == 1,
        )


@bench.measure("dtype")
def dtypes(run: Run) -> None:
    for d in (64, 128):
        wide = Inputs(2048, 2, d)
        for dtype in (torch.bfloat16, torch.float16):
            inputs = Inputs(2048, 2, d, dtype=dtype)
            run.compare(
                f"dtype/{inputs.name}/d{d}",
                "forward over that of float32",
                shape=inputs.shape,
                dtype=inputs.name,
                ours=inputs.scan,
                baselines={"float32 inputs": wide.scan},
                check=check_scan(inputs, inputs.scan),
                requirement="<= 1.15x" if dtype == torch.bfloat16 else None,
                work=inputs.work(),
                clock=clock(run),
            )


@bench.measure("isa", level="default")
def every_isa(run: Run) -> None:
    for name in _host.isa_names():
        inputs = Inputs(512, 2, 64)
        with isa(name):
            run.compare(
                f"isa/{name}",
                "forward",
                shape=inputs.shape,
                dtype=inputs.name,
                ours=inputs.scan,
                baselines=peers(inputs, "chunks"),
                check=check_scan(inputs, inputs.scan),
                work=inputs.work(),
                clock=clock(run),
            )


@bench.measure("varlen", level="default")
def packed(run: Run) -> None:
    inputs = Inputs(4096, 2, 64)
    cu_seqlens = torch.arange(0, 4097, 64)

    def ours() -> tuple[torch.Tensor, torch.Tensor]:
        return deltaproduct.scan(
            *inputs.tensors, inputs.n, output_final_state=True, cu_seqlens=cu_seqlens
        )

    def check() -> None:
        want = reference.chunk_scan(*inputs.heads(1), inputs.n, cu_seqlens=cu_seqlens)[0]
        check_error(ours()[0][:, :, :1], want, 5e-6)

    run.compare(
        "varlen",
        "64 packed sequences of 64",
        shape=inputs.shape,
        dtype=inputs.name,
        ours=ours,
        baselines={"one sequence": inputs.scan},
        check=check,
        work=inputs.work(),
        clock=clock(run),
    )


@bench.measure("length", level="full")
def lengths(run: Run) -> None:
    for T in (256, 1024, 4096, 16384, 65536):
        inputs = Inputs(T, 2, 64)
        # The loop is left out where it would take minutes.
        names = ("chunks", "loop") if T <= 1024 else ("chunks",)
        run.compare(
            "length",
            "forward",
            shape=inputs.shape,
            dtype=inputs.name,
            ours=inputs.scan,
            baselines=peers(inputs, *names),
            check=check_scan(inputs, inputs.scan, 5e-6 if T <= 4096 else 1e-5),
            work=inputs.work(),
            series="tokens",
            x=T,
            clock=clock(run),
        )


if __name__ == "__main__":
    sys.exit(bench.main())
