"""Distances of packed rows as other packages compute them, for the binary bench.

Each peer takes rows [M, W] and columns [N, W] of int32 bits and gives a call without arguments; its
result is compared with the Hamming distances before anything is timed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from common import check_close


def torch_bitwise(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """What people write today: exclusive or of every pair of rows, ones counted by shifts."""
    v = a[:, None] ^ b[None]
    v = v - (v >> 1 & 0x55555555)
    v = (v & 0x33333333) + (v >> 2 & 0x33333333)
    v = v + (v >> 4) & 0x0F0F0F0F
    return ((v * 0x01010101) >> 24 & 0xFF).sum(-1, dtype=torch.int32)


def _bytes_of(bits: torch.Tensor) -> np.ndarray:
    return bits.numpy().view(np.uint8)


def faiss_search(a: torch.Tensor, b: torch.Tensor) -> Callable[[], np.ndarray]:
    """The distance of the nearest row of b: all distances are computed, none is stored."""
    import faiss

    index = faiss.IndexBinaryFlat(32 * b.shape[1])
    index.add(_bytes_of(b))
    queries = _bytes_of(a)

    def call() -> np.ndarray:
        faiss.omp_set_num_threads(torch.get_num_threads())
        return index.search(queries, 1)[0]

    return call


def simsimd_cdist(a: torch.Tensor, b: torch.Tensor) -> Callable[[], np.ndarray]:
    import simsimd

    rows, columns = _bytes_of(a), _bytes_of(b)
    return lambda: simsimd.cdist(
        rows, columns, metric="hamming", dtype="bin8", threads=torch.get_num_threads()
    )


def numkong_packed(a: torch.Tensor, b: torch.Tensor) -> Callable[[], np.ndarray]:
    """All distances from columns packed beforehand; every thread takes a range of rows."""
    import numkong

    rows, packed = _bytes_of(a), numkong.hammings_pack(_bytes_of(b), dtype="uint1")
    threads = torch.get_num_threads()
    edges = [len(rows) * i // threads for i in range(threads + 1)]
    pool = ThreadPoolExecutor(threads)

    def part(i: int, out) -> None:
        numkong.hammings_packed(rows, packed, out=out, start_row=edges[i], end_row=edges[i + 1])

    def call() -> np.ndarray:
        out = numkong.empty((len(rows), len(b)), dtype="uint32")
        list(pool.map(lambda i: part(i, out), range(threads)))
        return out

    return call


@dataclass(frozen=True)
class Peer:
    module: str
    make: Callable[[torch.Tensor, torch.Tensor], Callable[[], np.ndarray]]
    # What the call gives of the matrix of all distances.
    share: Callable[[torch.Tensor], torch.Tensor] = lambda distances: distances


PEERS = {
    "faiss IndexBinaryFlat, k=1": Peer(
        "faiss", faiss_search, lambda distances: distances.amin(1, keepdim=True)
    ),
    "SimSIMD cdist": Peer("simsimd", simsimd_cdist),
    "NumKong hammings_packed": Peer("numkong", numkong_packed),
}


def installed_peers(
    a: torch.Tensor, b: torch.Tensor, distances: torch.Tensor
) -> tuple[dict[str, Callable], list[str]]:
    """The calls of the peers that are installed and right, by name; the names of the others."""
    calls, missing = {}, []
    for name, peer in PEERS.items():
        if importlib.util.find_spec(peer.module) is None:
            missing.append(name)
            continue
        calls[name] = peer.make(a, b)
        check_close(torch.from_numpy(np.asarray(calls[name]())), peer.share(distances))
    return calls, missing
