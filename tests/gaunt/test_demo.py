"""The demo, the example and the bench of gaunt run and check what they show."""

import importlib.util
import json
import os
import subprocess
import sys

import house
import pytest
import torch

from nnkernels import __main__ as command_line
from nnkernels import gaunt
from nnkernels.demo import gaunt as demo
from nnkernels.demo import gaunt_peers, potential

FRAMES = """3
Properties=species:S:1:pos:R:3:forces:R:3 energy=-10.5 pbc="F F F"
O 0.0 0.0 0.0 1.0 2.0 3.0
H 0.9 0.0 0.0 -1.0 -2.0 -3.0
H 0.0 0.9 0.1 0.5 0.25 0.125
3
Properties=species:S:1:pos:R:3:forces:R:3 energy=-11 pbc="F F F"
O 0.0 0.0 0.5 1.0 2.0 3.0
H 0.9 0.0 0.0 -1.0 -2.0 -3.0
H 0.0 0.9 0.1 0.5 0.25 0.125
"""


def test_the_demo_holds(capsys):
    with house.threads(1):
        assert command_line.main(["demo", "gaunt"]) == 0
    out = capsys.readouterr().out
    assert "All checks hold" in out
    assert "[ok] energy and forces turn with the molecule" in out


def test_a_failed_check_gives_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(demo, "_molecule", lambda report, data: None)
    monkeypatch.setattr(demo, "_speed", lambda report: None)
    monkeypatch.setattr(gaunt, "product", gaunt.cross)
    assert command_line.main(["demo", "gaunt"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_frames_are_read(tmp_path):
    path = tmp_path / "frames.xyz"
    path.write_text(FRAMES)
    kinds, positions, forces, energies = potential.read_xyz(path)
    assert kinds.tolist() == [1, 0, 0]
    assert energies.tolist() == [-10.5, -11]
    assert positions[1, 0].tolist() == [0, 0, 0.5]
    assert forces[0, 2].tolist() == [0.5, 0.25, 0.125]


def test_lennard_jones_frames_are_the_same_every_time():
    one, two = (potential.lennard_jones(10, atoms=4) for _ in range(2))
    assert all(map(torch.equal, one, two))
    kinds, positions, forces, _ = one
    assert kinds.tolist() == [0, 1, 0, 1]
    assert forces.sum(1).abs().max() < 1e-9 * forces.abs().max()
    assert positions.isfinite().all()


@pytest.mark.parametrize("operators", [None, gaunt_peers.DenseGrid, gaunt_peers.E3nn])
def test_the_potential_is_equivariant_on_every_implementation(operators):
    if operators is gaunt_peers.E3nn:
        pytest.importorskip("e3nn", reason="e3nn is not installed")
    kinds, positions, _, _ = potential.lennard_jones(5, atoms=4)
    torch.manual_seed(0)
    model = potential.Potential(kinds, channels=4, operators=operators)
    torch.manual_seed(0)
    ours = potential.Potential(kinds, channels=4)
    energy, forces = model.energy_and_forces(positions.float())
    wanted, wanted_forces = ours.energy_and_forces(positions.float())
    assert (energy - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert (forces - wanted_forces).abs().max() <= 1e-4 * wanted_forces.abs().max()
    if operators is None:
        assert potential.equivariance_error(model, positions) < 1e-12
        leaf = positions.clone().requires_grad_()
        assert torch.autograd.gradcheck(model.double(), leaf, fast_mode=True)
        assert torch.autograd.gradgradcheck(model.double(), leaf, fast_mode=True)


def test_the_example_falls_back_to_lennard_jones(monkeypatch, capsys, tmp_path):
    path = house.SOURCE / "examples" / "gaunt_ethanol.py"
    spec = importlib.util.spec_from_file_location("gaunt_ethanol", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(example, "DATA", tmp_path)
    monkeypatch.setattr(example, "TRAIN", 45)
    monkeypatch.setattr(example, "VALIDATE", 5)
    monkeypatch.setattr(example, "compare", lambda *_: None)
    options = ["--minutes", "0.03", "--channels", "4", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [str(path), *options])
    # So short it learns little: only the drop of the force error may fail.
    example.main()
    out = capsys.readouterr().out
    assert "Lennard-Jones cluster instead" in out
    assert "[ok] equivariance error" in out


def test_the_bench_runs(tmp_path):
    script, file = house.SOURCE / "bench" / "gaunt.py", tmp_path / "gaunt.json"
    command = [sys.executable, str(script), "--quick", "--only", "power", "bf16"]
    run = subprocess.run(
        [*command, "--json", str(file)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    rows = json.loads(file.read_text())["rows"]
    assert {row["id"] for row in rows} == {"power", "bf16/1", "bf16/2", "bf16/3"}
    assert all(row["error"] is None for row in rows)
