"""gaunt: how fast can a network learn the forces inside a molecule?"""

from pathlib import Path

import torch

from nnkernels import gaunt
from nnkernels.demo import seconds
from nnkernels.demo.gaunt_peers import DenseGrid
from nnkernels.demo.potential import (
    ETHANOL,
    Potential,
    Trainer,
    equivariance_error,
    lennard_jones,
    read_xyz,
)
from nnkernels.gaunt import reference

SAMPLES = 4096


def run(report, data=None):
    report.title("gaunt: products of signals on the sphere")
    torch.manual_seed(0)
    _check(report)
    _molecule(report, data)
    _speed(report)


def _check(report):
    x, y = torch.randn(2, 50, 25)
    turn = torch.linalg.qr(torch.randn(3, 3)).Q
    turn = reference.rotation(4, turn * torch.det(turn))
    for name, function in (("product", gaunt.product), ("cross", gaunt.cross)):
        z = function(x, y, 4, 4, 4)
        want = getattr(reference, name)(x.double(), y.double(), 4, 4, 4)
        error = ((z - want).abs().max() / want.abs().max()).item()
        report.check(f"{name}: {error:.0e} from the exact integers' 3j symbols", error < 2e-6)
        turned = function((x @ turn.T.float()), (y @ turn.T.float()), 4, 4, 4)
        error = ((turned - want @ turn.T).abs().max() / want.abs().max()).item()
        report.check(f"{name}: commutes with rotations, {error:.0e}", error < 1e-5)


def _molecule(report, data):
    """Seconds of training on one molecule."""
    if data is not None and (path := Path(data) / ETHANOL).exists():
        name, (kinds, positions, forces, energies) = "ethanol", read_xyz(path)
    else:
        name, (kinds, positions, forces, energies) = "a Lennard-Jones cluster", lennard_jones(550)
    known, new = slice(None, -50), slice(-50, None)
    model = Potential(kinds, channels=16)
    trainer = Trainer(model, positions[known], energies[known], forces[known], lr=1e-2)
    validation = positions[new], energies[new], forces[new]
    before = forces[new].abs().mean().item()
    steps = range(240)
    try:
        from tqdm import tqdm

        steps = tqdm(steps, desc="  training", leave=False, disable=None)
    except ImportError:
        report.line("  training ...")
    count = len(positions) - 50
    for step in steps:
        trainer.step(torch.randint(count, (5,)), step / 240)
    _, after = trainer.errors(*validation)
    report.line(f"  A potential for {name}, {len(kinds)} atoms, after 240 steps:")
    report.line(f"  forces of 50 new frames are off by {after:.2f} kcal/mol/angstrom on average,")
    report.line(f"  where the forces themselves are {before:.2f}")
    report.check("the network halves the error of predicting none", after < 0.5 * before)
    error = equivariance_error(trainer.average.module, positions[:3])
    report.check(f"energy and forces turn with the molecule, {error:.0e} in float64", error < 1e-12)


def _speed(report):
    rows = []
    for L in (2, 4, 6):
        x, y = torch.randn(2, SAMPLES, (L + 1) ** 2)
        grid, ours = DenseGrid.product(x, y, L, L, L), gaunt.product(x, y, L, L, L)
        same = (grid - ours).abs().max() < 1e-5 * ours.abs().max()
        report.check(f"degree {L}: the dense grid computes the same", bool(same))
        one = seconds(lambda x=x, y=y, L=L: gaunt.product(x, y, L, L, L), 0.2)
        other = seconds(lambda x=x, y=y, L=L: DenseGrid.product(x, y, L, L, L), 0.2)
        rows.append([f"degree {L}", f"{one * 1e3:.2f} ms", f"{other * 1e3:.2f} ms"])
        rows[-1].append(f"{other / one:.1f}")
    report.line(f"  {SAMPLES} products in float32:")
    report.table(["", "nnkernels.gaunt.product", "torch on the dense grid", "ratio"], rows)
