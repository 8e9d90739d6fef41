"""Trains an equivariant interatomic potential on ethanol: energies and forces, every product ours.

    python examples/gaunt_ethanol.py [--data DIR] [--minutes N] [--plot FILE] [--compare]

950 frames train, 50 validate. Without the ethanol frames it makes frames of a Lennard-Jones
cluster. Shows energy and force errors falling (and draws them), the equivariance error, and the
time of a training step beside the same network on the dense grid of torch and, where installed, on
e3nn. Exits with 0 only if the network is equivariant to rounding, the force error is below a tenth
of the forces and, on ethanol after 20 minutes or more, at most 1 kcal/mol/angstrom.
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import torch

from nnkernels.demo import Report, seconds
from nnkernels.demo.gaunt_peers import DenseGrid, E3nn
from nnkernels.demo.potential import (
    ETHANOL,
    Potential,
    Trainer,
    equivariance_error,
    lennard_jones,
    read_xyz,
)

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TRAIN, VALIDATE = 950, 50


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help=f"folder with {ETHANOL} (../shared/data)")
    parser.add_argument("--minutes", type=float, default=20, help="of training (%(default)s)")
    parser.add_argument("--batch", type=int, default=5, help="frames of a step (%(default)s)")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--degree", type=int, default=2)
    parser.add_argument("--threads", type=int, help="threads (all)")
    parser.add_argument("--plot", type=Path, help="draw the errors into this file")
    parser.add_argument("--compare", action="store_true", help="time the peers and do not train")
    return parser.parse_args()


def load(folder, report):
    path = (folder or DATA) / ETHANOL
    if path.exists():
        return "ethanol", read_xyz(path)
    if folder is not None:
        sys.exit(f"gaunt_ethanol: there is no {path}")
    report.line(f"  {ETHANOL.name} is not here (--data): frames of a Lennard-Jones cluster instead")
    return "a Lennard-Jones cluster", lennard_jones(TRAIN + VALIDATE)


def make(options, kinds, frames, operators=None):
    torch.manual_seed(0)
    size = {"channels": options.channels, "L": options.degree}
    model = Potential(kinds, operators=operators, **size)
    return Trainer(model, *frames, batch=options.batch)


def compare(options, report, kinds, frames):
    """The time of a training step on each implementation of the products."""
    peers = {"nnkernels": None, "torch dense grid": DenseGrid}
    if importlib.util.find_spec("e3nn"):
        peers["e3nn"] = E3nn
    picked = torch.arange(options.batch)
    times, forces = {}, {}
    for name, operators in peers.items():
        trainer = make(options, kinds, frames, operators)
        forces[name] = trainer.model.energy_and_forces(trainer.positions[picked])[1]
        times[name] = seconds(lambda trainer=trainer: trainer.step(picked, 0), budget=2.0)
    ours = times["nnkernels"]
    report.table(
        ["a training step", "time", "ratio"],
        [[name, f"{t * 1e3:.1f} ms", f"{t / ours:.2f}"] for name, t in times.items()],
    )
    wanted = forces["nnkernels"]
    spread = max((other - wanted).abs().max().item() for other in forces.values())
    spread /= wanted.abs().max().item()
    report.check(f"all compute the same forces, within {spread:.0e}", spread <= 1e-4)


def train(options, report, trainer, validation):
    """Steps until the time is over; rows of (minutes, energy error, force error)."""
    history = []
    spent, epoch = 0.0, 0
    limit = 60 * options.minutes
    while spent < limit:
        order = torch.randperm(TRAIN)
        start = time.perf_counter()
        for first in range(0, TRAIN, options.batch):
            elapsed = spent + time.perf_counter() - start
            if elapsed >= limit:
                break
            loss = trainer.step(order[first : first + options.batch], elapsed / limit)
        spent += time.perf_counter() - start
        epoch += 1
        energy, force = trainer.errors(*validation)
        history.append((spent / 60, energy, force))
        if epoch & (epoch - 1) == 0 or epoch % 10 == 0 or spent >= limit:
            report.line(
                f"  epoch {epoch:4}, {spent / 60:5.1f} min: loss {loss:8.4f}, validation: "
                f"energy {energy:.3f} kcal/mol, force {force:.3f} kcal/mol/angstrom"
            )
    return history


def plot(path, history, title):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    minutes, energy, force = zip(*history, strict=True)
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.semilogy(minutes, force, label="force component [kcal/mol/Å]")
    axes.semilogy(minutes, energy, label="energy [kcal/mol]")
    axes.set(xlabel="minutes of training", ylabel="mean absolute error, 50 frames", title=title)
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main():
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    report = Report()
    report.title(f"an equivariant potential, {torch.get_num_threads()} threads")
    name, (kinds, positions, forces, energies) = load(options.data, report)
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0))
    known, new = order[:TRAIN], order[TRAIN : TRAIN + VALIDATE]
    frames = positions[known], energies[known], forces[known]
    validation = positions[new], energies[new], forces[new]
    report.line(
        f"  {len(kinds)} atoms of {name}; forces have a root mean square of "
        f"{forces.square().mean().sqrt():.1f} kcal/mol/angstrom"
    )
    compare(options, report, kinds, frames)
    trainer = make(options, kinds, frames)
    if not options.compare:
        history = train(options, report, trainer, validation)
        _, energy, force = history[-1]
        report.line(f"  trained: energy {energy:.3f} kcal/mol, force {force:.3f} kcal/mol/angstrom")
        size = forces.abs().mean().item()
        report.check("the force error is below a tenth of the forces", force < 0.1 * size)
        if name == "ethanol" and options.minutes >= 20:
            report.check(f"force error {force:.3f} of at most 1 kcal/mol/angstrom", force <= 1)
        if options.plot:
            plot(options.plot, history, f"{name}, {TRAIN} frames")
            report.line(f"  drawn: {options.plot}")
    error = equivariance_error(trainer.average.module, positions[:5])
    report.check(f"equivariance error {error:.0e} of the largest force, in float64", error < 1e-12)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
