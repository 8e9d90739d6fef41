"""Training by expectation maximisation: one step, and whole runs that can be resumed.

With expected counts c of a distribution over `width` values, a step of size a is

    theta <- (1 - a) theta + a (c + p / width) / (sum c + p),    p = pseudo_count * samples / N

which with a = 1 on all N samples is EM with a symmetric Dirichlet prior, and never lowers the
likelihood if pseudo_count = 0.
"""

import json
import math
import os
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nnkernels import _checks
from nnkernels.pc import checks, ops
from nnkernels.pc.errors import ArgumentError, FormatError
from nnkernels.pc.reference import bits_per_dimension

_PARAMETERS = ("pi", "A", "B")

# Sums tensors over processes, in place.
Reduce = Callable[[list[Tensor]], None]


class Report(NamedTuple):
    """How a fit goes.

    epoch, epochs: which of how many, from 1. samples, of: how many of the epoch's samples are done.
    step: the step size. train_bpd: bits per dimension over the epoch so far, each sample before its
    step; valid_bpd: of the held-out data after the epoch, None before its end or without any.
    skipped: training samples of probability zero, which teach nothing; both figures leave such
    samples out.
    """

    epoch: int
    epochs: int
    samples: int
    of: int
    step: float
    train_bpd: float
    valid_bpd: float | None
    skipped: int


# ---- one step ----


def em_step(
    model, x, mask, weights, pseudo_count, step, reduce: Reduce | None = None
) -> tuple[Tensor, Tensor]:
    """See HCLT.em_step. Returns log p(x) [N], and float64 [2]: the sum of those that are finite and
    their number. `reduce` sums that and the counts over processes, in place."""
    with torch.no_grad():
        tables = model.pi, model.A, model.B, model.parent, model.order
        ll, *counts = ops.flows(x, *tables, mask, weights)
        finite = ll[ll.isfinite()].double()
        seen = torch.stack((finite.sum(), finite.new_tensor(float(len(finite)))))
        if reduce is not None:
            reduce([seen, *counts])
        # The root's rows of A are nobody's.
        root = model.order[0]
        kept = model.A[root].clone()
        for name, count in zip(_PARAMETERS, counts, strict=True):
            ops.em_update(getattr(model, name).data, count, pseudo_count, step)
        model.A.data[root] = kept
    return ll, seen


# ---- whole runs ----


def _check_fit(op, model, x, mask, valid, epochs, batch, pseudo_count, steps, seed, patience):
    checks.check_data(op, x, model.D, model.K, mask)
    _checks.integer(op, "seed", seed)
    for name, value in (("epochs", epochs), ("batch", batch)):
        _checks.integer(op, name, value)
        if value < 1:
            raise ArgumentError(f"{op}: {name} is {value}, expected at least 1")
    checks.check_pseudo_count(op, pseudo_count)
    if not isinstance(steps, list | tuple) or len(steps) != 2:
        raise ArgumentError(f"{op}: steps is {steps!r}, expected the first and the last step size")
    for value in steps:
        checks.check_step(op, value)
    if patience is not None:
        _checks.integer(op, "patience", patience)
        if patience < 1 or valid is None:
            raise ArgumentError(
                f"{op}: patience is {patience}, expected at least 1, and data in valid"
            )
    if len(x) == 0:
        raise ArgumentError(f"{op}: x has no samples to learn from")
    if isinstance(valid, float):
        if not 0 < valid < 1:
            raise ArgumentError(
                f"{op}: valid is {valid}, expected a share between 0 and 1, or data"
            )
    elif valid is not None:
        checks.check_data(op, valid, model.D, model.K)


class _Run:
    """What a fit carries from epoch to epoch, and its checkpoints."""

    def __init__(self, model, settings: dict):
        self.model = model
        self.settings = settings
        self.reports: list[Report] = []
        self.best_bpd = math.inf
        self.best = self._copy()

    def _copy(self):
        return {name: getattr(self.model, name).detach().clone() for name in _PARAMETERS}

    def note(self, report: Report):
        self.reports.append(report)
        if report.valid_bpd is not None and report.valid_bpd < self.best_bpd:
            self.best_bpd, self.best = report.valid_bpd, self._copy()

    def stale(self) -> int:
        """Epochs since the best one."""
        bpds = [report.valid_bpd for report in self.reports]
        return len(bpds) - 1 - bpds.index(min(bpds)) if bpds else 0

    def restore_best(self):
        if self.best_bpd < math.inf:
            for name, value in self.best.items():
                getattr(self.model, name).data.copy_(value)

    def save(self, path):
        arrays = {name: getattr(self.model, name).detach().numpy() for name in _PARAMETERS}
        arrays |= {f"best_{name}": value.numpy() for name, value in self.best.items()}
        arrays |= {name: getattr(self.model, name).numpy() for name in ("parent", "order")}
        state = {"settings": self.settings, "reports": self.reports, "best_bpd": self.best_bpd}
        temporary = f"{os.fspath(path)}.tmp"
        with open(temporary, "wb") as file:
            np.savez(file, state=np.array(json.dumps(state)), **arrays)
        os.replace(temporary, path)

    def load(self, path):
        op = "HCLT.fit"
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            state = json.loads(str(arrays["state"]))
            tables = {name: torch.from_numpy(arrays[name]) for name in (*_PARAMETERS, "parent")}
            best = {name: torch.from_numpy(arrays[f"best_{name}"]) for name in _PARAMETERS}
            reports = [Report(*values) for values in state["reports"]]
            settings, best_bpd = state["settings"], float(state["best_bpd"])
        except FileNotFoundError:
            raise
        except Exception as error:
            raise FormatError(f"{op}: {path} is no checkpoint of fit ({error})") from None
        for name, value in tables.items():
            own = getattr(self.model, name)
            if own.shape != value.shape or own.dtype != value.dtype:
                raise ArgumentError(
                    f"{op}: {path} has {name} {list(value.shape)} {_checks.short(value.dtype)}, "
                    f"the model {list(own.shape)} {_checks.short(own.dtype)}"
                )
        if not torch.equal(tables["parent"], self.model.parent):
            raise ArgumentError(f"{op}: {path} belongs to another tree")
        for name, value in self.settings.items():
            if settings.get(name) != value:
                raise ArgumentError(
                    f"{op}: {path} was written with {name}={settings.get(name)}, not {value}; "
                    "resume with the same data and options"
                )
        for name in _PARAMETERS:
            getattr(self.model, name).data.copy_(tables[name])
        self.reports, self.best_bpd, self.best = reports, best_bpd, best


def _generator(seed, epoch):
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


def _epoch(run, x, mask, epoch, callback, reduce, share):
    """One pass over x; returns its report (without validation), and whether to stop."""
    model, settings = run.model, run.settings
    epochs, batch, steps = settings["epochs"], settings["batch"], settings["steps"]
    N, (rank, ranks) = len(x), share
    order = torch.randperm(N, generator=_generator(settings["seed"], epoch))
    batches = (N + batch - 1) // batch
    total = torch.zeros(2, dtype=torch.float64)
    for index in range(batches):
        rows = order[index * batch : (index + 1) * batch]
        done = (epoch * batches + index) / max(epochs * batches - 1, 1)
        # All samples at once are EM proper. A short last batch has less to say.
        step = steps[0] + (steps[1] - steps[0]) * done if batches > 1 else 1.0
        size = step * len(rows) / batch if batches > 1 else 1.0
        own = rows[rank::ranks]
        part = None if mask is None else mask[own]
        pseudo_count = settings["pseudo_count"] * len(rows) / N
        total += em_step(model, x[own], part, None, pseudo_count, size, reduce)[1]
        seen = min((index + 1) * batch, N)
        skipped = seen - int(total[1])
        bpd = float(-total[0] / (total[1] * model.D * math.log(2)))
        report = Report(epoch + 1, epochs, seen, N, step, bpd, None, skipped)
        if callback is not None and index + 1 < batches and callback(report):
            return report, True
    return report, False


def fit(
    model,
    x: Tensor,
    valid: Tensor | float | None,
    epochs: int,
    batch: int,
    pseudo_count: float,
    callback: Callable[[Report], bool | None] | None,
    mask: Tensor | None,
    steps: tuple[float, float],
    seed: int,
    patience: int | None,
    checkpoint,
    resume: bool,
    reduce: Reduce | None = None,
    share: tuple[int, int] = (0, 1),
) -> list[Report]:
    """See HCLT.fit. Of several processes with the same x, process share[0] of share[1] counts its
    part of every batch, `reduce` adds the counts up, and the first one writes the checkpoint."""
    op = "HCLT.fit"
    _check_fit(op, model, x, mask, valid, epochs, batch, pseudo_count, steps, seed, patience)
    _checks.boolean(op, "resume", resume)
    if resume and checkpoint is None:
        raise ArgumentError(f"{op}: resume needs the checkpoint to resume from")
    x = x.contiguous()
    settings = {
        "epochs": int(epochs),
        "batch": int(batch),
        "pseudo_count": float(pseudo_count),
        "steps": [float(step) for step in steps],
        "seed": int(seed),
        "valid": valid if isinstance(valid, float) else valid is not None,
        "data": [*x.shape, zlib.crc32(x.numpy())],
    }
    run = _Run(model, settings)
    if resume:
        run.load(checkpoint)
    elif checkpoint is not None and share[0] == 0:
        # A path that cannot be written is noticed now, not after an epoch.
        run.save(checkpoint)
    if isinstance(valid, float):
        held = max(1, round(valid * len(x)))
        if held >= len(x):
            raise ArgumentError(
                f"{op}: valid={valid} of {len(x)} samples leaves none to learn from"
            )
        shuffled = torch.randperm(len(x), generator=_generator(seed, -1))
        valid, rest = x[shuffled[:held]], shuffled[held:]
        x, mask = x[rest], None if mask is None else mask[rest]
    for epoch in range(len(run.reports), epochs):
        if patience is not None and run.stale() >= patience:
            break
        report, stopped = _epoch(run, x, mask, epoch, callback, reduce, share)
        if stopped:
            break
        if valid is not None:
            bpd = bits_per_dimension(model.log_prob(valid).detach(), model.D)
            report = report._replace(valid_bpd=bpd)
        run.note(report)
        if checkpoint is not None and share[0] == 0:
            run.save(checkpoint)
        if callback is not None and callback(report):
            break
    run.restore_best()
    return run.reports
