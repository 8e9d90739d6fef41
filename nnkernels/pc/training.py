"""`python -m nnkernels.pc train`."""

import argparse
import copy
import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from nnkernels.pc import files
from nnkernels.pc.module import HCLT
from nnkernels.pc.progress import Line


def rank_and_size() -> tuple[int, int]:
    """Which process of how many this is; torchrun says so in the environment."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def add_train(commands, run) -> argparse.ArgumentParser:
    parser = commands.add_parser("train", help="learn a model from a file of samples")
    parser.add_argument("source", type=Path, metavar="FILE", help="samples: .npy, idx or idx.gz")
    parser.add_argument("--model", "-m", required=True, type=Path, help="model file to write")
    parser.add_argument("--states", type=int, default=32, help="hidden states of a variable (32)")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the samples (10)")
    parser.add_argument(
        "--minutes", type=float, help="as many epochs as fit, by the time of the first steps"
    )
    parser.add_argument(
        "--init", choices=("clusters", "random"), default="clusters", help="first parameters"
    )
    parser.add_argument(
        "--steps",
        type=float,
        nargs=2,
        default=(0.2, 0.005),
        metavar="SIZE",
        help="step sizes of the first and the last batch (0.2 0.005)",
    )
    parser.add_argument("--batch", type=int, default=512, help="samples of a step (512)")
    parser.add_argument("--pseudo-count", type=float, default=0.1, help="of a distribution (0.1)")
    parser.add_argument("--seed", type=int, default=0, help="of tree, parameters and order (0)")
    parser.add_argument("--values", type=int, help="values of a variable (the largest found + 1)")
    parser.add_argument(
        "--valid", metavar="SHARE|FILE", help="held-out share, or file; keeps the best parameters"
    )
    parser.add_argument("--patience", type=int, help="epochs without a better --valid, then stop")
    parser.add_argument("--checkpoint", type=Path, help="file written after every epoch")
    parser.add_argument("--resume", action="store_true", help="go on from --checkpoint")
    parser.set_defaults(run=run, work=_train)
    return parser


def flat_samples(path: Path) -> Tensor:
    """The samples of a file as [N, D]."""
    array = files.read_samples(path)
    return torch.from_numpy(array.reshape(len(array), math.prod(array.shape[1:])))


def epochs_in(seconds: float, model: HCLT, x: Tensor, batch: int, steps: int = 4) -> int:
    """How many epochs of fit take about this long, at least 1: times some steps on a copy."""
    trial = copy.deepcopy(model)
    trial.em_step(x[:batch])
    start = time.perf_counter()
    for step in range(steps):
        trial.em_step(x[step * batch % len(x) :][:batch], step=0.1)
    epoch = (time.perf_counter() - start) / steps * len(x) / min(batch, len(x))
    return max(1, int(seconds / epoch))


def _train(options: argparse.Namespace) -> int:
    rank, size = rank_and_size()
    if size > 1:
        dist.init_process_group("gloo")
    try:
        return _fit(options, rank, size)
    finally:
        if size > 1:
            dist.destroy_process_group()


def _fit(options: argparse.Namespace, rank: int, size: int) -> int:
    quiet = options.quiet or rank > 0
    x, valid = flat_samples(options.source), _valid(options.valid)
    values = options.values
    if values is None and x.numel():
        values = 1 + max(int(part.max()) for part in (x, valid) if isinstance(part, Tensor))
    model = HCLT.from_data(x, options.states, seed=options.seed, K=values, init=options.init)
    epochs = options.epochs
    if options.minutes is not None:
        epochs = epochs_in(60 * options.minutes * size, model, x, options.batch)
        epochs = _same_everywhere(epochs) if size > 1 else epochs
    line = Line(options.source.name, model.D * x.element_size(), quiet)
    first = []

    def callback(report):
        first.append(report.epoch)
        done = (report.epoch - first[0]) * report.of + report.samples
        total = (report.epochs - first[0] + 1) * report.of
        name = f"epoch {report.epoch}/{report.epochs}"
        if report.valid_bpd is not None:
            name += f", valid {report.valid_bpd:.4f} bpd"
        line.show(done, total, report.train_bpd, name)

    settings = {
        "epochs": epochs,
        "batch": options.batch,
        "pseudo_count": options.pseudo_count,
        "callback": callback,
        "steps": tuple(options.steps),
        "seed": options.seed,
        "patience": options.patience,
        "checkpoint": options.checkpoint,
        "resume": options.resume,
    }
    try:
        if size > 1:
            from nnkernels.pc import distributed

            reports = distributed.fit(model, x, valid, **settings)
        else:
            reports = model.fit(x, valid, **settings)
    finally:
        line.close()
    if rank == 0:
        frozen = model.freeze()
        frozen.save(options.model)
        if not options.quiet:
            _tell(options, frozen, reports)
    return 0


def _valid(text: str | None) -> Tensor | float | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return flat_samples(Path(text))


def _same_everywhere(epochs: int) -> int:
    """Rank 0's number: clocks differ."""
    value = torch.tensor([epochs])
    dist.broadcast(value, 0)
    return int(value)


def _tell(options: argparse.Namespace, frozen, reports) -> None:
    print(f"{options.model}: {frozen!r}")
    if reports:
        best = min((r.valid_bpd for r in reports if r.valid_bpd is not None), default=None)
        held = "" if best is None else f", best of held-out samples {best:.4f}"
        print(f"bits per dimension of the last epoch {reports[-1].train_bpd:.4f}{held}")
