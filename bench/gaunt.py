"""Products on the sphere against what a user would otherwise run.

forward    acceptance shapes, beside torch on the exact Gauss-Legendre grid: the dense grid
roofline   the same, as a share of the counted floor: bytes moved once, FLOP of ring convolution
backward, double   gradients and gradients of gradients, beside autograd through the dense grid
e3nn       TensorProduct of the even paths, "uuu"          threads    two over one
ir_mul, bf16, cross, power   beside the plain product in mul_ir and float32
mace       powers of C=128 channels        edges   y shared by the channels, with its gradient
published  the shapes of a published table, their times in the notes (other machine)
sizes      N, L and both output degrees
"""

from __future__ import annotations

import sys

import torch
from common import Bench, Run, Unavailable, WrongResult
from gaunt_cases import (
    N,
    check_product,
    close,
    compare_gradients,
    compare_product,
    dim,
    dtype_name,
    e3nn_call,
    has_e3nn,
    signals,
    work,
)

from nnkernels import gaunt
from nnkernels.demo.gaunt_peers import DenseGrid, from_e3nn_layout
from nnkernels.gaunt import reference

bench = Bench("gaunt", __doc__)

# Degrees in and out, and how many times faster than the dense grid.
ACCEPTED = {(2, 2): 12, (3, 3): 8, (4, 4): 9, (6, 6): 7, (8, 8): 6, (4, 8): 9}


@bench.measure("forward", capped=("avx2",))
def forward(run: Run) -> None:
    for (L, L3), ratio in ACCEPTED.items():
        row = {"requirement": f">= {ratio}x", "headline": (L, L3) in ((2, 2), (4, 4), (8, 8))}
        compare_product(run, f"forward/{L}-{L3}", L, L3, **row)


@bench.measure("roofline", capped=("avx2",))
def roofline(run: Run) -> None:
    for L, L3 in ACCEPTED:
        x, y = signals(L, N), signals(L, N, seed=1)
        # At most 2.0 times the floor up to degree 3, 2.2 times above.
        share = 50 if L <= 3 else 45.5
        run.compare(
            f"roofline/{L}-{L3}",
            f"product {L}, {L} -> {L3}",
            shape=f"N={N}",
            dtype="float32",
            ours=lambda x=x, y=y, L=L, L3=L3: gaunt.product(x, y, L, L, L3),
            check=check_product(x, y, L, L3),
            requirement=f">= {share}%",
            work=work(L, L3, N),
        )


@bench.measure("backward", capped=("avx2",))
def backward(run: Run) -> None:
    for (L, L3), ratio in ACCEPTED.items():
        requirement = f">= {0.8 * ratio:.1f}x"
        compare_gradients(run, f"backward/{L}-{L3}", L, L3, "backward", requirement=requirement)


@bench.measure("double", capped=("avx2",))
def double(run: Run) -> None:
    for (L, L3), ratio in ACCEPTED.items():
        requirement = f">= {0.8 * ratio:.1f}x"
        compare_gradients(run, f"double/{L}-{L3}", L, L3, "double", requirement=requirement)


@bench.measure("e3nn")
def e3nn(run: Run) -> None:
    if not has_e3nn():
        raise Unavailable("needs e3nn: pip install e3nn")
    channels = 64
    for L, ratio in ((2, 40), (4, 100)):
        samples = N // channels
        theirs, x, y = e3nn_call(L, channels, samples)

        def check(theirs=theirs, x=x, y=y, L=L) -> None:
            want = from_e3nn_layout(theirs(), L, channels)
            close(gaunt.product(x, y, L, L, L), want, 1e-5)

        run.compare(
            f"e3nn/{L}",
            f"product {L}, {L} -> {L}",
            shape=f"B={samples} C={channels}",
            dtype="float32",
            ours=lambda x=x, y=y, L=L: gaunt.product(x, y, L, L, L),
            baselines={"e3nn uuu": theirs},
            check=check,
            requirement=f">= {ratio}x",
            headline=True,
            note="e3nn in its own layout, no conversion timed",
        )


@bench.measure("threads")
def threads(run: Run) -> None:
    for L in (2, 4, 8):
        x, y = signals(L, N), signals(L, N, seed=1)
        run.compare_threads(
            f"threads/{L}",
            "two threads over one",
            shape=f"N={N} L={L}",
            dtype="float32",
            call=lambda x=x, y=y, L=L: gaunt.product(x, y, L, L, L),
            check=check_product(x, y, L, L),
            requirement=">= 1.7x",
            work=work(L, L, N),
        )


@bench.measure("ir_mul")
def ir_mul(run: Run) -> None:
    channels = 64
    for L in (1, 2, 4, 8):
        x, y = (signals(L, N // channels, channels, seed=seed) for seed in (0, 1))
        moved = x.mT.contiguous(), y.mT.contiguous()

        def ours(moved=moved, L=L) -> torch.Tensor:
            return gaunt.product(*moved, L, L, L, layout="ir_mul")

        def check(ours=ours, x=x, y=y, L=L) -> None:
            close(ours().mT, gaunt.product(x, y, L, L, L))

        run.compare(
            f"ir_mul/{L}",
            "ir_mul over mul_ir",
            shape=f"B={N // channels} C={channels} L={L}",
            dtype="float32",
            ours=ours,
            baselines={"mul_ir": lambda x=x, y=y, L=L: gaunt.product(x, y, L, L, L)},
            check=check,
            requirement="<= 1.0x",
            work=work(L, L, N),
        )


@bench.measure("bf16")
def bf16(run: Run) -> None:
    for L in (1, 2, 3):
        x, y = signals(L, N), signals(L, N, seed=1)
        a, b = x.bfloat16(), y.bfloat16()
        run.compare(
            f"bf16/{L}",
            "bfloat16 over float32",
            shape=f"N={N} L={L}",
            dtype="bfloat16",
            ours=lambda a=a, b=b, L=L: gaunt.product(a, b, L, L, L),
            baselines={"float32": lambda x=x, y=y, L=L: gaunt.product(x, y, L, L, L)},
            check=check_product(a, b, L, L, rounding=2.0**-8),
            requirement="<= 1.0x",
            work=work(L, L, N, 2),
        )


@bench.measure("cross")
def cross(run: Run) -> None:
    for L in (2, 4, 8):
        x, y = signals(L, N), signals(L, N, seed=1)
        run.compare(
            f"cross/{L}",
            f"cross {L}, {L} -> {L}",
            shape=f"N={N}",
            dtype="float32",
            ours=lambda x=x, y=y, L=L: gaunt.cross(x, y, L, L, L),
            baselines={"product": lambda x=x, y=y, L=L: gaunt.product(x, y, L, L, L)},
            check=check_product(x, y, L, L, "cross"),
            requirement="<= 2.2x",
        )


def compare_power(run: Run, id: str, n: int, L: int, Lout: int, x, **row) -> None:
    def check() -> None:
        at = x.flatten(0, -2)[:9]
        close(gaunt.power(at, n, L, Lout), reference.power(at.double(), n, L, Lout))

    run.compare(
        id,
        f"power {n} of {L} -> {Lout}",
        shape="x".join(map(str, x.shape[:-1])),
        dtype="float32",
        ours=lambda: gaunt.power(x, n, L, Lout),
        check=check,
        **row,
    )


@bench.measure("power")
def power(run: Run) -> None:
    x, y = signals(2, N), signals(2, N, seed=1)
    baselines = {"product 2, 2 -> 2": lambda: gaunt.product(x, y, 2, 2, 2)}
    compare_power(run, "power", 3, 2, 2, x, baselines=baselines, requirement="<= 2.0x")


@bench.measure("mace", level="default")
def mace(run: Run) -> None:
    for L in (2, 3):
        x = signals(L, 128, 128)
        for n in (2, 3):
            for Lout in (0, 1, 2):
                dense = {
                    "torch dense grid": lambda x=x, n=n, L=L, Lout=Lout: DenseGrid.power(
                        x, n, L, Lout
                    )
                }
                compare_power(run, f"mace/{n}-{L}-{Lout}", n, L, Lout, x, baselines=dense)


@bench.measure("edges", level="default")
def edges(run: Run) -> None:
    count, channels = 1024, 64
    for L in (2, 4):
        calls = {}
        for name, function in (("ours", gaunt.product), ("dense", DenseGrid.product)):
            x, y = signals(L, count, channels), signals(L, count, 1, seed=1)
            leaves = x.requires_grad_(), y.requires_grad_()
            g = signals(L, count, channels, seed=2)

            def call(function=function, leaves=leaves, g=g, L=L):
                return torch.autograd.grad(function(*leaves, L, L, L), leaves, g)

            calls[name] = call

        def check(calls=calls) -> None:
            for mine, theirs in zip(calls["ours"](), calls["dense"](), strict=True):
                if not (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max():
                    raise WrongResult("gradients differ from those of the dense grid")

        run.compare(
            f"edges/{L}",
            f"forward and backward {L}, {L} -> {L}, y for all channels",
            shape=f"B={count} C={channels}",
            dtype="float32",
            ours=calls["ours"],
            baselines={"torch dense grid": calls["dense"]},
            check=check,
        )


# Milliseconds on other machines, as stored in the repository atomicarchitects/PriceofFreedom: all
# degrees up to L in, up to 2 L out, 10,000 samples of one channel, float32, forward.
PUBLISHED = {
    2: {"GTP grid CPU": 1.89, "CGTP dense CPU": 3.57, "VSH grid CPU": 8.3, "GTP grid GPU": 0.099},
    4: {"GTP grid CPU": 5.08, "CGTP dense CPU": 21.0, "VSH grid CPU": 37.9, "GTP grid GPU": 0.299},
    6: {"GTP grid CPU": 22.8, "CGTP dense CPU": 103, "VSH grid CPU": 79.5, "GTP grid GPU": 0.475},
    8: {"GTP grid CPU": 33.8, "CGTP dense CPU": 213, "VSH grid CPU": 137},
    10: {"GTP grid CPU": 60.1, "CGTP dense CPU": 425, "VSH grid CPU": 180},
}


@bench.measure("published", level="default")
def published(run: Run) -> None:
    for L, times in PUBLISHED.items():
        listed = ", ".join(f"{name} {value:g} ms" for name, value in times.items())
        note = f"published, other machine: {listed}"
        compare_product(run, f"published/{L}", L, 2 * L, count=10000, note=note)


@bench.measure("sizes", level="full")
def sizes(run: Run) -> None:
    for L in (1, 2, 3, 4, 6, 8, 12):
        for L3 in (L, 2 * L):
            for count in (4096, N, 1 << 20):
                # What the dense grid would take in memory is the limit here.
                if count * dim(2 * L) > 1 << 26:
                    continue
                row = {"series": f"N={count} L -> {'L' if L3 == L else '2L'}", "x": L}
                compare_product(run, "sizes", L, L3, count=count, **row)


@bench.measure("dtypes", level="full")
def dtypes(run: Run) -> None:
    for dtype in (torch.float64, torch.float16):
        for L in (2, 4):
            x, y = signals(L, N, dtype=dtype), signals(L, N, seed=1, dtype=dtype)
            rounding = 2.0**-10 if dtype == torch.float16 else 0.0
            wide = x.double(), y.double()
            run.compare(
                f"dtypes/{dtype_name(dtype)}-{L}",
                f"product {L}, {L} -> {L}",
                shape=f"N={N}",
                dtype=dtype_name(dtype),
                ours=lambda x=x, y=y, L=L: gaunt.product(x, y, L, L, L),
                baselines={
                    "torch dense grid, float64": lambda wide=wide, L=L: DenseGrid.product(
                        *wide, L, L, L
                    )
                },
                check=check_product(x, y, L, L, rounding=rounding),
            )


if __name__ == "__main__":
    sys.exit(bench.main())
