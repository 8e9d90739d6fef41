"""Trains one DeltaProduct layer to multiply permutations and asks it for longer words.

    python examples/deltaproduct_state_tracking.py [--group S3 S4] [--plot FILE] [--threads N]

The word problem (arXiv 2502.10297): given random elements x_1, x_2, ... of a group, name the
running product at every position. Trained on 24 elements, tested on 128. Two reflections a token
with eigenvalues in [-1, 1] solve the permutations of three (S3) and of four things (S4); one
reflection a token, or eigenvalues in [0, 1], do not. Both are shown. Times are of the CPU, all
threads together. Exits with 0 only if everything comes out as it should.
"""

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nnkernels.demo import Report
from nnkernels.demo.deltaproduct import Permutations, Tracker, accuracy, train

TRAINED, TESTED = 24, 128


@dataclass(frozen=True, eq=False)
class Setting:
    """A network, how it is trained, and what is expected of it."""

    group: str
    num_householder: int
    allow_neg_eigval: bool
    solves: bool
    steps: int
    seconds: float | None = None
    network: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)

    def __str__(self) -> str:
        reach = "[-1, 1]" if self.allow_neg_eigval else "[0, 1]"
        return f"{self.group}, n={self.num_householder}, eigenvalues in {reach}"


S3 = {
    "network": {"width": 48, "heads": 2, "head_dim": 8},
    "training": {"rate": 5e-3, "solved": 5e-5},
}
S4 = {
    "network": {"width": 64, "heads": 4, "head_dim": 16},
    # Words grow from three elements to all.
    "training": {"rate": 3e-3, "first": 3, "solved": 2e-5},
}
SETTINGS = [
    Setting("S3", 2, True, True, 1500, 120, **S3),
    Setting("S3", 1, True, False, 1500, **S3),
    Setting("S3", 2, False, False, 1500, **S3),
    Setting("S4", 2, True, True, 4000, 300, **S4),
    Setting("S4", 1, True, False, 1500, **S4),
]


def learn(report, setting):
    """Trains and tests one setting; returns its accuracy at every position."""
    torch.manual_seed(0)
    group = Permutations(int(setting.group[1]))
    model = Tracker(
        group.order,
        num_householder=setting.num_householder,
        allow_neg_eigval=setting.allow_neg_eigval,
        **setting.network,
    )
    start, cpu = time.perf_counter(), time.process_time()

    def progress(step, length, loss):
        if step % 250 == 0:
            spent = time.perf_counter() - start
            report.line(f"    step {step:4}, words of {length:2}: loss {loss:.4f}, {spent:.0f} s")

    report.line(f"  {setting}")
    steps = train(
        model, group, steps=setting.steps, T=TRAINED, progress=progress, **setting.training
    )
    cpu = time.process_time() - cpu
    trained = accuracy(model, group, TRAINED)
    tested = accuracy(model, group, TESTED)
    report.line(
        f"    {steps} steps, {cpu:.0f} s of CPU; {trained.mean():.2%} right at length {TRAINED}, "
        f"{tested.mean():.2%} at {TESTED}, {tested[-1]:.2%} of the last products"
    )
    if setting.solves:
        report.check(
            f"at least 99% at {TRAINED} and 98% at {TESTED}",
            bool(trained.mean() >= 0.99 and tested.mean() >= 0.98),
        )
        report.check(f"in at most {setting.seconds} s", cpu <= setting.seconds)
    else:
        report.check(f"stays below 70% at {TRAINED}", bool(trained.mean() < 0.7))
    return tested


def plot(file, curves):
    """Accuracy against position, one line per setting."""
    try:
        import matplotlib
    except ImportError:
        return "no plot: it needs matplotlib, which  pip install '.[demo]'  brings"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for setting, curve in curves.items():
        style = "-" if setting.solves else "--"
        axes.plot(range(1, len(curve) + 1), curve.tolist(), style, label=str(setting))
    axes.axvline(TRAINED, color="grey", linewidth=0.8)
    axes.annotate("trained to here", (TRAINED, 0.02), xytext=(4, 0), textcoords="offset points")
    axes.set(xlabel="position in the word", ylabel="share of right products", ylim=(0, 1.02))
    axes.legend(loc="center right")
    figure.savefig(file, dpi=150)
    return f"plotted to {file}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    groups = sorted({setting.group for setting in SETTINGS})
    parser.add_argument("--group", nargs="+", choices=groups, default=["S3"], help="%(default)s")
    parser.add_argument(
        "--plot", type=Path, default=Path("deltaproduct_state_tracking.png"), help="%(default)s"
    )
    parser.add_argument("--threads", type=int, help="threads (all)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    report = Report()
    report.title(f"Products of permutations, {torch.get_num_threads()} threads")
    curves = {s: learn(report, s) for s in SETTINGS if s.group in options.group}
    shown = [1, 8, 16, TRAINED, 32, 64, 96, TESTED]
    report.line("  right products at each position:")
    rows = [[str(s), *(f"{curve[at - 1]:.2f}" for at in shown)] for s, curve in curves.items()]
    report.table(["position", *map(str, shown)], rows)
    report.line(f"  {plot(options.plot, curves)}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
