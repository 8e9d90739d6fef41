"""Hidden Chow-Liu trees in plain PyTorch: the definition every kernel is tested against.

A rooted tree on D variables; variable i has a hidden state z_i of h values and a symbol x_i of K:

    pi [h]         p(z_root)
    A [D, h, h]    A[i][a, b] = p(z_i = b | z_parent(i) = a); A[root] takes no part
    B [D, h, K]    B[i][a, v] = p(x_i = v | z_i = a)

    p(x) = sum over z of pi(z_root) prod_{i != root} A[i][z_parent(i), z_i] prod_i B[i][z_i, x_i]

(Liu, Mandt and Van den Broeck, "Lossless Compression with Probabilistic Circuits", arXiv
2111.11632.) `enumerate_states` is that sum; everything else passes messages, all in logarithms and
float64 by default, where nothing underflows and a probability of zero is -inf:

    e_i(a) = B[i][a, x_i], or 1 where x_i is masked
    u_i = e_i prod of beta_c over children c,    beta_i(a) = sum_b A[i][a, b] u_i(b)
    p(x) = sum_a pi(a) u_root(a)

    x int [N, D]    parent, order int64 [D]    mask bool [N, D], True where x is missing
"""

import itertools
import math

import torch
from torch import Tensor

# ---- definition ----


def enumerate_states(x, pi, A, B, parent, mask=None) -> Tensor:
    """log p(x) [N] as the sum over all h^D hidden states.

    >>> half = torch.full((1, 2, 2), 0.5)
    >>> enumerate_states(torch.tensor([[1]]), half[0, 0], half, half, torch.tensor([-1])).exp()
    tensor([0.5000], dtype=torch.float64)
    """
    pi, A, B = (p.double() for p in (pi, A, B))
    D, h, _ = B.shape
    parents = parent.tolist()
    total = torch.zeros(x.shape[0], dtype=torch.float64)
    for z in itertools.product(range(h), repeat=D):
        weight = torch.ones(x.shape[0], dtype=torch.float64)
        for i, above in enumerate(parents):
            weight = weight * (pi[z[i]] if above < 0 else A[i][z[above], z[i]])
            symbol = B[i][z[i]][x[:, i].long()]
            weight = weight * (symbol if mask is None else torch.where(mask[:, i], 1.0, symbol))
        total += weight
    return total.log()


# ---- messages ----


def _product(x, y):
    """log sum_b exp(x[n, b] + y[a, b]) for every n and a."""
    return torch.logsumexp(x[:, None, :] + y, -1)


class _Messages:
    """log e, log u and log beta of every variable, and log p(x)."""

    def __init__(self, x, pi, A, B, parent, order, mask, dtype):
        self.parents, self.order = parent.tolist(), order.tolist()
        self.log_pi, self.log_A, self.log_B = (p.detach().to(dtype).log() for p in (pi, A, B))
        D = len(self.parents)
        self.children = [[] for _ in range(D)]
        self.e, self.u, self.beta = [None] * D, [None] * D, [None] * D
        for i in self.order[1:]:
            self.children[self.parents[i]].append(i)
        for i in reversed(self.order):
            symbol = x[:, i].long()
            if mask is not None:
                symbol = symbol.masked_fill(mask[:, i], 0)
            self.e[i] = self.log_B[i].T[symbol]
            if mask is not None:
                self.e[i] = self.e[i].masked_fill(mask[:, i, None], 0.0)
            self.u[i] = self.above_children(i)
            if self.parents[i] >= 0:
                self.beta[i] = _product(self.u[i], self.log_A[i])
        self.ll = torch.logsumexp(self.log_pi + self.u[self.order[0]], -1)

    def above_children(self, i, without=None, leaf=True):
        """log of e_i, unless `leaf` is off, times the betas of its children but `without`."""
        start = self.e[i] if leaf else torch.zeros_like(self.e[i])
        return start + sum(self.beta[c] for c in self.children[i] if c != without)


def forward(
    x: Tensor,
    pi: Tensor,
    A: Tensor,
    B: Tensor,
    parent: Tensor,
    order: Tensor,
    mask: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """log p(x) [N], -inf where it is zero, and u [D, N, h], every row times the power of two that
    takes its maximum into [0.5, 1).

    >>> B = torch.tensor([[[0.25, 0.75]]])
    >>> one, root = torch.ones(1, 1, 1), torch.tensor([-1])
    >>> forward(torch.tensor([[1]]), one[0, 0], one, B, root, root + 1)[0].exp()
    tensor([0.7500], dtype=torch.float64)
    """
    messages = _Messages(x, pi, A, B, parent, order, mask, dtype)
    u = torch.stack(messages.u)
    power = (u.amax(-1, keepdim=True) / math.log(2)).floor() + 1
    return messages.ll, (u - power * math.log(2)).exp().nan_to_num(0)


def gradients(
    grad_ll: Tensor,
    x: Tensor,
    pi: Tensor,
    A: Tensor,
    B: Tensor,
    parent: Tensor,
    order: Tensor,
    mask: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """The derivatives of sum_n grad_ll[n] log p(x[n]) with respect to pi, A and B.

    p(x) is linear in every parameter; its derivative is the product of everything else, so a
    parameter of zero has one. Samples of probability zero contribute nothing.
    """
    m = _Messages(x, pi, A, B, parent, order, mask, dtype)
    weight = torch.where(m.ll.isfinite(), grad_ll.detach().to(dtype), 0.0)[:, None]
    ll = torch.where(m.ll.isfinite(), m.ll, 0.0)[:, None]
    dpi, dA, dB = (torch.zeros_like(p) for p in (m.log_pi, m.log_A, m.log_B))
    dpi += (weight * (m.u[m.order[0]] - ll).exp()).sum(0)
    # log of the probability of everything outside the subtree of i, for every state of i.
    outside = [None] * len(m.parents)
    outside[m.order[0]] = m.log_pi.expand_as(m.u[m.order[0]])
    for i in m.order:
        above = m.parents[i]
        if above >= 0:
            side = outside[above] + m.above_children(above, without=i)
            outside[i] = _product(side, m.log_A[i].T)
            both = side[:, :, None] + m.u[i][:, None, :] - ll[:, :, None]
            dA[i] = (weight[:, :, None] * both.exp()).sum(0)
        leaf = weight * (outside[i] + m.above_children(i, leaf=False) - ll).exp()
        symbol = x[:, i].long()
        if mask is not None:
            leaf = leaf.masked_fill(mask[:, i, None], 0.0)
            symbol = symbol.masked_fill(mask[:, i], 0)
        dB[i].T.index_add_(0, symbol, leaf)
    return dpi, dA, dB


def flows(
    x: Tensor,
    pi: Tensor,
    A: Tensor,
    B: Tensor,
    parent: Tensor,
    order: Tensor,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log p(x) [N] and the expected counts of pi, A and B: how often the hidden states and symbols
    that each stands for occur, given x; a parameter times its derivative.

    >>> B = torch.tensor([[[0.25, 0.75]]])
    >>> one, root = torch.ones(1, 1, 1), torch.tensor([-1])
    >>> flows(torch.tensor([[1], [0], [1]]), one[0, 0], one, B, root, root + 1)[3]
    tensor([[[1., 2.]]], dtype=torch.float64)
    """
    ll, _ = forward(x, pi, A, B, parent, order, mask, dtype=dtype)
    grad = torch.ones_like(ll) if weights is None else weights
    found = gradients(grad, x, pi, A, B, parent, order, mask, dtype=dtype)
    counts = [p.detach().to(dtype) * g for p, g in zip((pi, A, B), found, strict=True)]
    return ll, *counts


def em_update(theta: Tensor, counts: Tensor, pseudo_count: float, step: float) -> Tensor:
    """theta after one step of EM; see nnkernels.pc.em_update.

    >>> em_update(torch.tensor([0.5, 0.5]), torch.tensor([3.0, 1.0]), 0.0, 0.5)
    tensor([0.6250, 0.3750])
    """
    smoothed = counts + pseudo_count / counts.shape[-1]
    total = smoothed.sum(-1, keepdim=True)
    moved = (1 - step) * theta + step * smoothed / total
    return torch.where(total > 0, moved, theta)


# ---- conditionals ----


def conditional(x, pi, A, B, parent, order, i, mask=None) -> Tensor:
    """log p(x_i = v | the variables before i in order), float64 [N, K]: two masked forwards."""
    N, D = x.shape
    K = B.shape[2]
    hidden = torch.ones(N, D, dtype=torch.bool)
    place = order.tolist().index(i)
    hidden[:, order[:place]] = False
    if mask is not None:
        hidden |= mask
    known, _ = forward(x, pi, A, B, parent, order, hidden)
    hidden[:, i] = False
    columns = []
    for v in range(K):
        value = x.clone()
        value[:, i] = v
        columns.append(forward(value, pi, A, B, parent, order, hidden)[0] - known)
    return torch.stack(columns, 1)


def posterior(x, pi, A, B, parent, mask) -> Tensor:
    """p(the missing symbols of a sample | the others), float64 [N, K^M] over all values of its M
    missing symbols, by enumeration; every sample misses the same ones."""
    N = x.shape[0]
    missing = mask[0].nonzero()[:, 0]
    K = B.shape[2]
    logs = []
    for values in itertools.product(range(K), repeat=len(missing)):
        filled = x.clone()
        filled[:, missing] = torch.tensor(values, dtype=x.dtype).expand(N, -1)
        logs.append(enumerate_states(filled, pi, A, B, parent))
    return torch.softmax(torch.stack(logs, 1), 1)


def bits_per_dimension(ll: Tensor, D: int) -> float:
    """The mean of -log2 p(x) / D over samples that have a probability.

    >>> bits_per_dimension(torch.tensor([0.25]).double().log(), 2)
    1.0
    """
    finite = ll[ll.isfinite()].double()
    return float(-finite.mean() / (D * math.log(2))) if len(finite) > 0 else math.nan
