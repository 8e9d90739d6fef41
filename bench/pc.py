"""Coding and training of hidden Chow-Liu trees against what a user would otherwise run.

decode, encode   samples of 784 pixels by 256 lanes: MB/s, share of the counted floor
estep, forward   the E-step and the likelihood, beside batched torch products per depth
rans, fixed      the coder alone, a CDF for each symbol or one for all, beside constriction
torchac          the same beside torchac
threads          two over one          lanes   decoding by the number of lanes
files            whole containers, beside xz, bzip2, zlib and zstd
states           all of the first four by h, and growing h
"""

from __future__ import annotations

import bz2
import copy
import lzma
import sys
import zlib
from collections.abc import Callable

import numpy as np
import torch
from common import Bench, Run, Unavailable, Work, WrongResult
from pc_cases import (
    LANES,
    D,
    K,
    N,
    case,
    check_equal,
    check_flows,
    check_forward,
    symbols_and_cdfs,
    work,
)
from pc_peers import Coders, FixedCoder, TorchTree, has, torchac_calls

from nnkernels import pc
from nnkernels.demo.pc import byte_codecs

bench = Bench("pc", __doc__)

SPEED = {"decode": ">= 4 MB/s", "encode": ">= 6 MB/s"}


def shape_of(h: int, samples: int = N) -> str:
    return f"N={samples} D={D} K={K} h={h}"


def compare_decode(run: Run, id: str, h: int, lanes: int = LANES, **row) -> None:
    one = case(h)
    tables = one.model.tables
    words, counts = pc.encode(one.x, tables, lanes)

    def ours() -> torch.Tensor:
        return pc.decode(words, counts, N, tables)

    run.compare(
        id,
        f"decode, {lanes} lanes",
        shape=shape_of(h),
        dtype="uint8",
        ours=ours,
        check=check_equal(ours, one.x),
        work=work("decode", h),
        note=one.data,
        **row,
    )


def compare_encode(run: Run, id: str, h: int, lanes: int = LANES, **row) -> None:
    one = case(h)
    tables = one.model.tables

    def ours() -> torch.Tensor:
        return pc.encode(one.x, tables, lanes)

    run.compare(
        id,
        f"encode, {lanes} lanes",
        shape=shape_of(h),
        dtype="uint8",
        ours=ours,
        check=check_equal(lambda: pc.decode(*ours(), N, tables), one.x),
        work=work("encode", h),
        note=one.data,
        **row,
    )


def compare_flows(
    run: Run, id: str, h: int, samples: int = N, uniform: bool = False, **row
) -> None:
    one = case(h, uniform)
    x, plain = one.x[:samples], TorchTree(*one.tables)
    run.compare(
        id,
        "E-step",
        shape=shape_of(h, samples),
        dtype="float32",
        ours=lambda: pc.flows(x, *one.tables),
        baselines={"torch, bmm per depth": lambda: plain.flows(x)},
        check=check_flows(one, x),
        work=work("flows", h, samples),
        note=one.data,
        **row,
    )


def compare_forward(
    run: Run, id: str, h: int, samples: int = N, uniform: bool = False, **row
) -> None:
    one = case(h, uniform)
    x, plain = one.x[:samples], TorchTree(*one.tables)
    run.compare(
        id,
        "log p(x)",
        shape=shape_of(h, samples),
        dtype="float32",
        ours=lambda: one.circuit.log_prob(x),
        baselines={"torch, bmm per depth": lambda: plain.forward(x)},
        check=check_forward(one, x),
        work=work("forward", h, samples),
        note=one.data,
        **row,
    )


@bench.measure("decode", capped=("avx2",))
def decode(run: Run) -> None:
    compare_decode(run, "decode", 32, requirement=SPEED["decode"], headline=True)


@bench.measure("encode", capped=("avx2",))
def encode(run: Run) -> None:
    compare_encode(run, "encode", 32, requirement=SPEED["encode"], headline=True)


@bench.measure("estep", capped=("avx2",))
def estep(run: Run) -> None:
    compare_flows(run, "estep/images", 32, requirement=">= 5x", headline=True)
    compare_flows(run, "estep/uniform", 32, 128, uniform=True)


@bench.measure("forward")
def forward(run: Run) -> None:
    compare_forward(run, "forward/images", 32)
    compare_forward(run, "forward/uniform", 32, 128, uniform=True)


@bench.measure("threads")
def threads(run: Run) -> None:
    one = case(32)
    tables = one.model.tables
    words, counts = pc.encode(one.x, tables, LANES)
    calls: dict[str, tuple[Callable, Callable]] = {
        "decode": (lambda: pc.decode(words, counts, N, tables), lambda: None),
        "encode": (lambda: pc.encode(one.x, tables, LANES), lambda: None),
        "flows": (lambda: pc.flows(one.x, *one.tables), check_flows(one, one.x)),
        "forward": (lambda: one.circuit.log_prob(one.x), check_forward(one, one.x)),
    }
    same = check_equal(lambda: pc.decode(*pc.encode(one.x, tables, LANES), N, tables), one.x)
    for name, (call, check) in calls.items():
        run.compare_threads(
            f"threads/{name}",
            f"{name}, two threads over one",
            shape=shape_of(32),
            dtype="float32" if name in ("flows", "forward") else "uint8",
            call=call,
            check=check if name in ("flows", "forward") else same,
            requirement=">= 1.7x",
            work=work(name, 32),
        )


@bench.measure("rans")
def rans(run: Run) -> None:
    """20,000 symbols, each with a distribution of its own over 256 values."""
    count, lanes = 20_000, 64
    symbols, cdf, probabilities = symbols_and_cdfs(count)
    at = symbols.long()[:, None]
    low, high = cdf.gather(1, at), cdf.gather(1, at + 1)
    # Samples of one symbol, so that lanes take turns.
    pairs = low.int(), (high - low).int()
    words, counts = pc.rans_encode(*pairs, lanes)
    given = cdf[:, None].contiguous()
    theirs = {"decode": {}, "encode": {}}
    if has("constriction"):
        coders = Coders(symbols.int().numpy(), probabilities.numpy())
        if not np.array_equal(coders.ans_decode(), coders.symbols):
            raise WrongResult("constriction does not give its symbols back")
        theirs["decode"] = {
            "constriction ANS": coders.ans_decode,
            "constriction range": coders.range_decode,
        }
        theirs["encode"] = {
            "constriction ANS": coders.ans_encode,
            "constriction range": coders.range_encode,
        }
    note = "" if has("constriction") else "constriction is not installed: pip install constriction"
    ours = {
        "decode": lambda: pc.rans_decode(words, counts, given, count),
        "encode": lambda: pc.rans_encode(*pairs, lanes),
    }
    for what, call in ours.items():
        run.compare(
            f"rans/{what}",
            f"rANS {what}, CDFs given",
            shape=f"{count} symbols of {K}, {lanes} lanes",
            dtype="int32",
            ours=call,
            baselines=theirs[what],
            check=check_equal(
                lambda: pc.rans_decode(*pc.rans_encode(*pairs, lanes), given, count),
                symbols.int()[:, None],
            ),
            requirement=">= 5x" if what == "decode" and theirs[what] else None,
            headline=what == "decode",
            note=note,
        )


@bench.measure("fixed")
def fixed(run: Run) -> None:
    """200,000 symbols of one distribution, known beforehand."""
    count, lanes = 200_000, 64
    _, cdf, probabilities = symbols_and_cdfs(1)
    generator = torch.Generator().manual_seed(1)
    symbols = torch.multinomial(probabilities.double(), count, True, generator=generator).T
    low, high = (cdf[0][symbols + step].contiguous() for step in (0, 1))
    width = high - low
    words, counts = pc.rans_encode(low, width, lanes)
    theirs = {"decode": {}, "encode": {}}
    if has("constriction"):
        coder = FixedCoder(symbols[:, 0].int().numpy(), probabilities[0].numpy())
        if not np.array_equal(coder.decode(), coder.symbols):
            raise WrongResult("constriction does not give its symbols back")
        theirs = {
            "decode": {"constriction": coder.decode},
            "encode": {"constriction": coder.encode},
        }
    ours = {
        "decode": lambda: pc.rans_decode(words, counts, cdf, count),
        "encode": lambda: pc.rans_encode(low, width, lanes),
    }
    for what, call in ours.items():
        run.compare(
            f"fixed/{what}",
            f"rANS {what}, one distribution",
            shape=f"{count} symbols of {K}, {lanes} lanes",
            dtype="int32",
            ours=call,
            baselines=theirs[what],
            check=check_equal(ours["decode"], symbols.int()),
        )


@bench.measure("torchac", level="default")
def torchac(run: Run) -> None:
    if not has("torchac"):
        raise Unavailable("needs torchac: pip install torchac")
    count = 20_000
    symbols, cdf, probabilities = symbols_and_cdfs(count)
    try:
        calls = torchac_calls(symbols.int().numpy(), probabilities.numpy())
    except Exception as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Unavailable(f"torchac does not build here: {text}") from None
    at = symbols.long()[:, None]
    low, high = cdf.gather(1, at), cdf.gather(1, at + 1)
    pairs = low.int(), (high - low).int()
    words, counts = pc.rans_encode(*pairs, 64)
    given = cdf[:, None].contiguous()
    ours = {
        "decode": lambda: pc.rans_decode(words, counts, given, count),
        "encode": lambda: pc.rans_encode(*pairs, 64),
    }
    for what, call in ours.items():
        run.compare(
            f"torchac/{what}",
            f"rANS {what}, CDFs given",
            shape=f"{count} symbols of {K}, 64 lanes",
            dtype="int32",
            ours=call,
            baselines={"torchac, one stream": calls[what]},
            check=check_equal(ours["decode"], symbols.int()[:, None]),
        )


@bench.measure("files", level="default")
def files(run: Run) -> None:
    """A container of samples; what byte codecs make of samples stands in the note."""
    one = case(32)
    model, x = one.model, one.x
    raw, data = x.numpy().tobytes(), model.compress(x)
    sizes = {"ours": len(data), "the model's NLL": round(pc.bits(model, x) / 8)} | byte_codecs(x)
    note = "bits per pixel: " + ", ".join(
        f"{name} {8 * size / x.numel():.3f}" for name, size in sizes.items()
    )
    packed = {
        "xz": lzma.compress(raw, preset=9),
        "bzip2": bz2.compress(raw),
        "zlib": zlib.compress(raw, 9),
    }
    there = {
        "xz -9": lambda: lzma.compress(raw, preset=9),
        "bzip2 -9": lambda: bz2.compress(raw),
        "zlib -9": lambda: zlib.compress(raw, 9),
    }
    back = {
        "xz": lambda: lzma.decompress(packed["xz"]),
        "bzip2": lambda: bz2.decompress(packed["bzip2"]),
        "zlib": lambda: zlib.decompress(packed["zlib"]),
    }
    calls = {
        "compress": (lambda: model.compress(x), there),
        "decompress": (lambda: model.decompress(data), back),
    }
    for what, (call, baselines) in calls.items():
        run.compare(
            f"files/{what}",
            f"{what}, default lanes",
            shape=shape_of(32),
            dtype="uint8",
            ours=call,
            baselines=baselines,
            check=check_equal(lambda: model.decompress(model.compress(x)), x),
            note=note,
        )


@bench.measure("lanes", level="default")
def lanes(run: Run) -> None:
    for count in (8, 16, 64, 256, 512):
        compare_decode(run, "lanes", 32, count, series="decode by lanes", x=count)


@bench.measure("states", level="default")
def states(run: Run) -> None:
    for h in (8, 16, 64, 128):
        for name, compare in {
            "decode": compare_decode,
            "encode": compare_encode,
            "estep": compare_flows,
            "forward": compare_forward,
        }.items():
            compare(run, f"states/{name}", h, series=f"{name} by states", x=h)


@bench.measure("em", level="default")
def em(run: Run) -> None:
    """A whole step of training: E-step, update of 6.9 million weights."""
    one = case(32)
    model = copy.deepcopy(one.circuit)
    moved = 3 * 4 * (model.A.numel() + model.B.numel())
    run.compare(
        "em",
        "em_step, batch 512",
        shape=shape_of(32),
        dtype="float32",
        ours=lambda: model.em_step(one.x, step=0.01),
        check=check_flows(one, one.x),
        work=Work(ops=work("flows", 32).ops, bytes=moved),
        note="an epoch of MNIST is 118 of these",
    )


if __name__ == "__main__":
    sys.exit(bench.main())
