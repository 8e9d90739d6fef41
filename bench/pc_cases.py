"""What the bench of pc is made of: models, data, counted work and checks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from common import Work, WrongResult, check_close
from pc_peers import TorchTree
from torch import Tensor

from nnkernels import pc
from nnkernels.pc import files, structure

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"
# A MNIST image.
D, K = 784, 256
N, LANES = 512, 256

# Multiply-adds of a symbol: section by section what the recursion needs at least.
MACS = {
    "decode": lambda h: 2 * h * h + 32 * h,
    "encode": lambda h: 2 * h * h + 2 * h,
    "flows": lambda h: 3 * h * h + 4 * h,
    "forward": lambda h: h * h,
}


@dataclass(frozen=True)
class Case:
    """A circuit, and samples that it has not learned."""

    circuit: pc.HCLT
    model: pc.PCModel
    x: Tensor
    data: str

    @property
    def tables(self) -> list[Tensor]:
        """pi, A, B, parent, order."""
        circuit = self.circuit
        return [circuit.pi, circuit.A, circuit.B, circuit.parent, circuit.order]


@functools.cache
def images() -> tuple[Tensor, Tensor, Tensor, str]:
    """2,000 images to learn from, N new ones, the tree of the first, and what they are."""
    if DATA.exists():
        names = "train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"
        parts = []
        for name, count in zip(names, (2000, N), strict=True):
            with files.open_samples(DATA / name) as samples:
                parts.append(torch.from_numpy(samples.read(count)).reshape(count, D))
        return *parts, structure.learn(parts[0], K, rows=1000).parent, "MNIST"
    # As uneven as digits, with a tree as deep.
    generator = torch.Generator().manual_seed(0)
    parent = torch.full((D,), -1, dtype=torch.int64)
    for i in range(1, D):
        parent[i] = max(0, i - int(torch.randint(1, 40, (), generator=generator)))
    raw = [torch.rand(shape, generator=generator) for shape in ((8,), (D, 8, 8), (D, 8, K))]
    rows = [(r**power + 1e-6) for r, power in zip(raw, (1, 4, 400), strict=True)]
    source = pc.HCLT(parent, *(r / r.sum(-1, keepdim=True) for r in rows))
    x = source.sample(2000 + N, generator)
    return x[:2000], x[2000:], parent, "samples of a random circuit"


@functools.lru_cache(maxsize=1)
def case(h: int, uniform: bool = False) -> Case:
    """A circuit after two passes of EM; `uniform` data are random bytes, which share nothing."""
    learn, new, parent, data = images()
    circuit = pc.HCLT.from_data(learn, h, K=K, parent=parent).requires_grad_(False)
    for part in learn.split(500):
        circuit.em_step(part, pseudo_count=1.0, step=0.5)
    if uniform:
        generator = torch.Generator().manual_seed(1)
        new, data = torch.randint(0, K, new.shape, generator=generator).byte(), "random bytes"
    return Case(circuit, circuit.freeze(), new, data)


def work(what: str, h: int, samples: int = N) -> Work:
    """The counted multiply-adds; bytes are those of the samples, so that MB/s are the data's."""
    return Work(ops=samples * D * MACS[what](h), bytes=samples * D)


def check_equal(got: Callable[[], Tensor], want: Tensor) -> Callable[[], None]:
    def check() -> None:
        if not torch.equal(got(), want):
            raise WrongResult("what is decoded is not what was coded")

    return check


def check_flows(one: Case, samples: Tensor) -> Callable[[], None]:
    def check() -> None:
        ours = pc.flows(samples, *one.tables)
        theirs = TorchTree(*one.tables).flows(samples)
        check_close(ours[0], theirs[0], 1e-5 * theirs[0].abs())
        for mine, other in zip(ours[1:], theirs[1:], strict=True):
            used = mine if mine.dim() < 3 or mine.shape[-1] == K else mine[1:]
            wanted = other if used is mine else other[1:]
            check_close(used, wanted, 1e-4 * len(samples))

    return check


def check_forward(one: Case, samples: Tensor) -> Callable[[], None]:
    def check() -> None:
        want = pc.reference.forward(samples[:4], *one.tables)[0]
        check_close(one.circuit.log_prob(samples[:4]), want, 1e-5 * want.abs())

    return check


def symbols_and_cdfs(count: int, precision: int = 20, seed: int = 0):
    """Symbols of `count` given distributions: low and width, CDFs int32 [1, count, K + 1]."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.rand(count, K, generator=generator).double() ** 20 + 1e-5
    probabilities = raw / raw.sum(-1, keepdim=True)
    cdf = torch.zeros(count, K + 1, dtype=torch.float64)
    cdf[:, 1:] = probabilities.cumsum(-1)
    cdf = (cdf * (2**precision - K)).floor().clamp(max=2**precision - K) + torch.arange(K + 1)
    cdf[:, -1] = 2**precision
    symbols = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    return symbols, cdf.int(), probabilities.float()
