"""What a user would run without nnkernels.pc, for its bench.

TorchTree is a hidden Chow-Liu tree in batched torch products, one per depth of the tree: what the
equations suggest to someone who writes for speed. constriction and torchac code symbols whose
distributions are given; xz and zstd code bytes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nnkernels.pc import structure


class TorchTree:
    """Forward pass and E-step in float32 for a fixed tree and fixed parameters."""

    def __init__(self, pi: Tensor, A: Tensor, B: Tensor, parent: Tensor, order: Tensor):
        self.pi, self.A, self.B, self.parent = pi, A, B, parent
        self.leaf = B.transpose(1, 2).contiguous()
        depth = structure.depths(structure.Tree(parent, order))
        self.root = int(order[0])
        # Nodes of each depth, and those again by their place among the children of their parent:
        # an indexed product takes each parent once.
        self.layers = []
        for level in range(int(depth.max()) + 1):
            nodes = (depth == level).nonzero()[:, 0]
            seen: dict[int, int] = {}
            places = []
            for node in nodes.tolist():
                above = int(parent[node])
                places.append(seen.get(above, 0))
                seen[above] = places[-1] + 1
            places = torch.tensor(places)
            ranks = [(places == rank).nonzero()[:, 0] for rank in range(int(places.max()) + 1)]
            self.layers.append((nodes, ranks))

    def upward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p(x) [N], u and beta [D, N, h], rows scaled to a maximum of 1."""
        D = len(self.B)
        symbols = x.T.long()
        u = self.leaf[torch.arange(D)[:, None], symbols]
        beta = torch.empty_like(u)
        scale = u.new_zeros(len(x), dtype=torch.float64)
        for nodes, ranks in reversed(self.layers):
            top = u[nodes].amax(-1, keepdim=True)
            u[nodes] /= top
            scale += top.log().sum((0, 2), dtype=torch.float64)
            if nodes[0] == self.root:
                break
            beta[nodes] = torch.bmm(u[nodes], self.A[nodes].mT)
            for rank in ranks:
                u[self.parent[nodes[rank]]] *= beta[nodes[rank]]
        return (u[self.root] @ self.pi).double().log() + scale, u, beta

    def forward(self, x: Tensor) -> Tensor:
        return self.upward(x)[0]

    def flows(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log p(x) and the expected counts, as nnkernels.pc.flows."""
        D, h, K = self.B.shape
        ll, u, beta = self.upward(x)
        gamma = torch.empty_like(u)
        at_root = self.pi * u[self.root]
        gamma[self.root] = at_root / at_root.sum(-1, keepdim=True)
        counts = torch.zeros_like(self.A)
        for nodes, _ in self.layers[1:]:
            q = gamma[self.parent[nodes]] / beta[nodes]
            counts[nodes] = self.A[nodes] * torch.bmm(q.mT, u[nodes])
            gamma[nodes] = u[nodes] * torch.bmm(q, self.A[nodes])
        symbols = torch.zeros(D, K, h)
        index = x.T.long()[..., None].expand(-1, -1, h)
        symbols.scatter_add_(1, index, gamma)
        return ll, gamma[self.root].sum(0), counts, symbols.mT


class Coders:
    """constriction's coders for symbols [n] of given distributions float32 [n, K]."""

    def __init__(self, symbols: np.ndarray, probabilities: np.ndarray):
        import constriction

        self._stream = constriction.stream
        self.family = constriction.stream.model.Categorical(perfect=False)
        self.symbols, self.probabilities = symbols, probabilities
        self.ans_words, self.range_words = self.ans_encode(), self.range_encode()

    def ans_encode(self) -> np.ndarray:
        coder = self._stream.stack.AnsCoder()
        coder.encode_reverse(self.symbols, self.family, self.probabilities)
        return coder.get_compressed()

    def ans_decode(self) -> np.ndarray:
        return self._stream.stack.AnsCoder(self.ans_words).decode(self.family, self.probabilities)

    def range_encode(self) -> np.ndarray:
        coder = self._stream.queue.RangeEncoder()
        coder.encode(self.symbols, self.family, self.probabilities)
        return coder.get_compressed()

    def range_decode(self) -> np.ndarray:
        decoder = self._stream.queue.RangeDecoder(self.range_words)
        return decoder.decode(self.family, self.probabilities)


class FixedCoder:
    """constriction's ANS for symbols [n] of one distribution float32 [K]."""

    def __init__(self, symbols: np.ndarray, probabilities: np.ndarray):
        import constriction

        self._coder = constriction.stream.stack.AnsCoder
        self.model = constriction.stream.model.Categorical(probabilities, perfect=False)
        self.symbols = symbols
        self.words = self.encode()

    def encode(self) -> np.ndarray:
        coder = self._coder()
        coder.encode_reverse(self.symbols, self.model)
        return coder.get_compressed()

    def decode(self) -> np.ndarray:
        return self._coder(self.words).decode(self.model, len(self.symbols))


def torchac_calls(symbols: np.ndarray, probabilities: np.ndarray) -> dict[str, Callable]:
    """torchac, which builds its coder with a compiler on first use."""
    import torchac

    cdf = torch.zeros(len(symbols), probabilities.shape[1] + 1)
    cdf[:, 1:] = torch.from_numpy(probabilities).cumsum(-1).clamp(max=1)
    wanted = torch.from_numpy(symbols).short()
    data = torchac.encode_float_cdf(cdf, wanted)
    return {
        "encode": lambda: torchac.encode_float_cdf(cdf, wanted),
        "decode": lambda: torchac.decode_float_cdf(cdf, data),
    }


def has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
