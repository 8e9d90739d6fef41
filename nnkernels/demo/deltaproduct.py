"""deltaproduct: a linear RNN multiplies permutations, in longer words than it was trained on.

The word problem of a group: given elements x_1, x_2, ..., name the running product x_1 ... x_t at
every position. Linear RNNs whose transitions have eigenvalues in [0, 1] cannot; reflections
(eigenvalue -1), two of them a token, can do S3, and one layer is enough.
"""

import itertools
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnkernels import deltaproduct
from nnkernels.demo import seconds

# ---- the task and the network: also those of examples/deltaproduct_state_tracking.py ----


class Permutations:
    """The group of permutations of `size` things; elements are numbers below `order`."""

    def __init__(self, size: int):
        elements = list(itertools.permutations(range(size)))
        index = {element: number for number, element in enumerate(elements)}
        self.order = len(elements)
        # table[a, b] is the product that applies b, then a.
        self.table = torch.tensor(
            [[index[tuple(a[i] for i in b)] for b in elements] for a in elements]
        )

    def words(self, count: int, T: int) -> tuple[Tensor, Tensor]:
        """Random elements [count, T] and the running products at every position."""
        x = torch.randint(self.order, (count, T))
        products = [x[:, 0]]
        for t in range(1, T):
            products.append(self.table[x[:, t], products[-1]])
        return x, torch.stack(products, 1)


class Tracker(nn.Module):
    """One DeltaProduct layer without gates or convolution, and an MLP."""

    def __init__(self, order, *, width, heads, head_dim, num_householder, allow_neg_eigval):
        super().__init__()
        self.heads, self.n, self.reach = heads, num_householder, 2 if allow_neg_eigval else 1
        inner = heads * head_dim
        self.embed = nn.Embedding(order, width)
        self.q_proj = nn.Linear(width, inner, bias=False)
        self.k_proj = nn.Linear(width, inner * num_householder, bias=False)
        self.v_proj = nn.Linear(width, inner * num_householder, bias=False)
        self.b_proj = nn.Linear(width, heads * num_householder)
        self.o_norm = nn.RMSNorm(head_dim)
        self.o_proj = nn.Linear(inner, width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.head = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, order))

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        q = self.q_proj(x).unflatten(2, (self.heads, -1))
        k = self.k_proj(x).unflatten(2, (self.n, self.heads, -1))
        v = self.v_proj(x).unflatten(2, (self.n, self.heads, -1))
        beta = self.reach * torch.sigmoid(self.b_proj(x)).unflatten(2, (self.n, self.heads))
        o, _ = deltaproduct.scan(q, k, v, None, beta, self.n, use_qk_l2norm=True)
        x = x + self.o_proj(self.o_norm(o).flatten(2))
        return self.head(x + self.mlp(x))


def train(
    model, group, *, steps, rate, T=24, first=None, batch=128, solved=2e-4, progress=None
) -> int:
    """AdamW along a cosine until the loss stays below `solved`; returns the steps taken.

    With `first` the words start that short and grow by one whenever a loss is below 0.3.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-6)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    length, average = first or T, 1.0
    for step in range(1, steps + 1):
        words, products = group.words(batch, length)
        loss = functional.cross_entropy(model(words).flatten(0, 1), products.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        value = loss.item()
        average = 0.9 * average + 0.1 * value
        if progress is not None:
            progress(step, length, value)
        if length < T and value < 0.3:
            length, average = length + 1, 1.0
        elif length == T and average < solved:
            return step
    return steps


@torch.no_grad()
def accuracy(model, group, T, count=512) -> Tensor:
    """The share of right products at every position, [T]."""
    words, products = group.words(count, T)
    return (model(words).argmax(2) == products).float().mean(0)


# ---- the demo ----


def run(report, data=None):
    report.title("deltaproduct: a linear RNN that tracks states")
    torch.manual_seed(0)
    _check(report)
    _permutations(report)
    _speed(report)


def _inputs(T, n, H, d, B=1):
    q, k, v = torch.randn(B, T, H, d), torch.randn(B, T * n, H, d), torch.randn(B, T * n, H, d)
    return q, k, v, -torch.rand(B, T, H), 2 * torch.rand(B, T * n, H), n


def _error(a, b):
    return ((a - b).norm() / b.norm()).item()


def _check(report):
    inputs = _inputs(100, 2, 2, 32)
    want, _ = deltaproduct.reference.scan(*inputs, use_qk_l2norm=True)
    o, _ = deltaproduct.scan(*inputs, use_qk_l2norm=True)
    error = _error(o, want)
    report.check(f"scan within 5e-6 of the float64 token loop ({error:.1e})", error <= 5e-6)
    q, k, v, g, beta, n = inputs
    state = torch.zeros(1, 2, 32, 32)
    steps = [
        deltaproduct.step(
            *(q[:, t], k[:, n * t : n * t + n], v[:, n * t : n * t + n], g[:, t]),
            *(beta[:, n * t : n * t + n], state),
            use_qk_l2norm=True,
        )
        for t in range(100)
    ]
    error = _error(torch.stack(steps, 1), o)
    report.check(f"100 steps of decoding give what one scan gives ({error:.1e})", error <= 5e-6)


def _permutations(report):
    group, T = Permutations(3), 16
    model = Tracker(
        group.order, width=48, heads=2, head_dim=8, num_householder=2, allow_neg_eigval=True
    )
    start = time.perf_counter()
    steps = train(model, group, steps=800, rate=5e-3, T=T, batch=64, solved=2e-3)
    spent = time.perf_counter() - start
    rows = [
        [f"{length} elements", f"{at.mean():.2%}", f"{at[-1]:.2%}"]
        for length in (T, 4 * T, 16 * T)
        for at in [accuracy(model, group, length)]
    ]
    report.line(f"  Products of permutations of three things, trained on {T} elements")
    report.line(f"  ({steps} steps, {spent:.0f} s), asked for longer words:")
    report.table(["length", "all positions", "last position"], rows)
    found = accuracy(model, group, 4 * T).mean().item()
    report.check(f"{found:.2%} of {4 * T} running products right (at least 98%)", found >= 0.98)


def _speed(report):
    T, H, d = 1024, 4, 64
    inputs = _inputs(T, 2, H, d)
    loop, chunks = (
        lambda: deltaproduct.reference.scan(*inputs, use_qk_l2norm=True, dtype=torch.float32),
        lambda: deltaproduct.reference.chunk_scan(*inputs, use_qk_l2norm=True),
    )
    ours = seconds(lambda: deltaproduct.scan(*inputs, use_qk_l2norm=True))
    usual = {"loop over tokens in torch": loop, "chunks in torch": chunks}
    rows = [["nnkernels.deltaproduct.scan", f"{ours * 1e3:.2f} ms", "1.0"]]
    for name, call in usual.items():
        taken = seconds(call)
        rows.append([name, f"{taken * 1e3:.2f} ms", f"{taken / ours:.1f}"])
    report.line(f"  {T} tokens, {H} heads of {d} x {d}, two reflections a token:")
    report.table(["", "time", "ratio"], rows)
