"""Trains a language model of characters on DeltaProduct layers, then writes text token by token.

    python examples/deltaproduct_text.py [--data FILE] [--steps N] [--threads N]

Training runs through `deltaproduct.scan`, writing through `deltaproduct.step`, whose state has the
same size after any number of characters. Both are timed beside the same model with plain torch in
their place. Without --data it reads ../shared/data/text, or else the interpreter's licence. Exits
with 0 only if steps and scan agree and the model predicts unseen text better than pairs of
characters do.
"""

import argparse
import contextlib
import math
import sys
import time
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch.nn import functional

import nnkernels.nn
from nnkernels import deltaproduct
from nnkernels.deltaproduct import reference
from nnkernels.demo import DataError, Report
from nnkernels.demo.data import text

TEXTS = Path(__file__).resolve().parents[2] / "shared" / "data" / "text"


class Model(nn.Module):
    """Blocks of a DeltaProduct layer and an MLP over the embedding of characters."""

    def __init__(self, characters, width=128, blocks=2, heads=4, num_householder=2):
        super().__init__()
        self.embed = nn.Embedding(characters, width)
        self.mix = nn.ModuleList(
            nnkernels.nn.GatedDeltaProduct(
                width, heads, width // heads, num_householder=num_householder
            )
            for _ in range(blocks)
        )
        self.mlp = nn.ModuleList(
            nn.Sequential(
                nn.RMSNorm(width),
                nn.Linear(width, 4 * width),
                nn.GELU(),
                nn.Linear(4 * width, width),
            )
            for _ in range(blocks)
        )
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(blocks))
        self.head = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, characters))

    def forward(self, tokens, caches=None):
        """Logits of the next character, and the caches to go on from."""
        x = self.embed(tokens)
        after = []
        caches = caches or [None] * len(self.mix)
        for norm, mix, mlp, cache in zip(self.norms, self.mix, self.mlp, caches, strict=True):
            y, cache = mix(norm(x), cache)
            x = x + y
            x = x + mlp(x)
            after.append(cache)
        return self.head(x), after


@contextlib.contextmanager
def plain_torch():
    """The layers run the chunk form and the loop of the reference, in float32."""

    def scan(q, k, v, g, beta, n, **options):
        k, v, beta = (x.flatten(1, 2) for x in (k, v, beta))
        return reference.chunk_scan(q, k, v, g, beta, n, **options)

    def step(*args, **kwargs):
        return reference.step(*args, **kwargs, dtype=torch.float32)

    with (
        mock.patch.object(deltaproduct.ops, "scan", scan),
        mock.patch.object(deltaproduct.ops, "step", step),
    ):
        yield


def loss_of(model, data, starts, T):
    """Nats per character of the stretches of T characters that begin there."""
    rows = torch.stack([data[start : start + T + 1] for start in starts])
    logits, _ = model(rows[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def train(report, model, data, steps, *, batch=16, T=128, rate=3e-3):
    """AdamW along one cycle of the learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    start = time.perf_counter()
    for step in range(1, steps + 1):
        loss = loss_of(model, data, torch.randint(len(data) - T, (batch,)).tolist(), T)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(steps // 8, 1) == 0:
            spent = time.perf_counter() - start
            report.line(
                f"  step {step:4}: {loss / math.log(2):.2f} bits a character, {spent:.0f} s"
            )


def training_rate(model, data, batch=16, T=128, rounds=5):
    """Characters a second, forward and backward, in the best of some rounds."""
    starts = list(range(0, batch * 10, 10))
    best = math.inf
    for _ in range(rounds):
        start = time.perf_counter()
        loss_of(model, data, starts, T).backward()
        best = min(best, time.perf_counter() - start)
    return batch * T / best


@torch.no_grad()
def held_out(model, data, T=256):
    """Bits per character on text that was not trained on."""
    starts = range(0, len(data) - T - 1, T)
    return loss_of(model, data, starts, T).item() / math.log(2)


def pairs(train_data, test_data, characters):
    """Bits per character by counts of pairs of characters, the usual smallest model."""
    counts = torch.ones(characters, characters)
    counts.index_put_((train_data[:-1], train_data[1:]), torch.ones(len(train_data) - 1), True)
    share = counts / counts.sum(1, keepdim=True)
    return -share[test_data[:-1], test_data[1:]].log2().mean().item()


@torch.no_grad()
def write(model, prompt, count, temperature=0.7):
    """The next `count` characters, and how many a second."""
    logits, caches = model(prompt[None])
    written = []
    start = time.perf_counter()
    for _ in range(count):
        share = torch.softmax(logits[:, -1] / temperature, 1)
        token = torch.multinomial(share, 1)
        written.append(token.item())
        logits, caches = model(token, caches)
    return written, count / (time.perf_counter() - start)


@torch.no_grad()
def steps_error(model, tokens, prefill=20):
    """Relative error of logits by steps after a prefill against those of one call."""
    want, _ = model(tokens[None])
    got, caches = model(tokens[None, :prefill])
    parts = [got]
    for t in range(prefill, len(tokens)):
        got, caches = model(tokens[None, t : t + 1], caches)
        parts.append(got)
    return ((torch.cat(parts, 1) - want).norm() / want.norm()).item()


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found = sorted(TEXTS.glob("*.txt")) if TEXTS.is_dir() else []
    parser.add_argument(
        "--data", type=Path, default=found[0] if found else None, help="a text (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=400, help="of training (%(default)s)")
    parser.add_argument("--write", type=int, default=400, help="characters (%(default)s)")
    parser.add_argument("--threads", type=int, help="threads (all)")
    return parser.parse_args()


def main():
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        characters, description = text(options.data)
    except DataError as error:
        sys.exit(f"deltaproduct_text: {error}")
    torch.manual_seed(0)
    alphabet = sorted(set(characters))
    number = {character: index for index, character in enumerate(alphabet)}
    data = torch.tensor([number[character] for character in characters])
    cut = len(data) * 9 // 10
    known, unseen = data[:cut], data[cut:][:20_000]
    report = Report()
    report.title(f"Characters of {description}, {torch.get_num_threads()} threads")
    model = Model(len(alphabet))
    size = sum(x.numel() for x in model.parameters())
    report.line(
        f"  {len(data):,} characters, {len(alphabet)} of them different; {size:,} parameters"
    )
    train(report, model, known, options.steps)
    model.eval()
    reached, usual = held_out(model, unseen), pairs(known, unseen, len(alphabet))
    report.check(
        f"{reached:.2f} bits a character of unseen text (pairs of characters: {usual:.2f})",
        reached < usual,
    )
    error = steps_error(model, unseen[:100])
    report.check(f"steps give what one call gives (relative error {error:.1e})", error <= 1e-4)
    written, rate = write(model, unseen[:50], options.write)
    report.line(
        "".join(f"\n  | {line}" for line in "".join(alphabet[i] for i in written).split("\n"))
    )
    report.line()
    training = training_rate(model, known)
    with plain_torch():
        plain_rate = write(model, unseen[:50], 50)[1]
        plain_training = training_rate(model, known)
    rows = [
        [name, f"{ours:,.0f}", f"{plain:,.0f}", f"{ours / plain:.1f}"]
        for name, ours, plain in (
            ("training, 16 rows of 128", training, plain_training),
            ("writing, one at a time", rate, plain_rate),
        )
    ]
    report.table(["characters a second", "ours", "plain torch", "ratio"], rows)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
