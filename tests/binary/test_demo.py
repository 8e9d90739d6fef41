"""The demo, the example and the bench of binary run and check what they show."""

import importlib.util
import json
import os
import subprocess
import sys

import house
import pytest
import torch

from nnkernels import __main__ as command_line
from nnkernels import binary


def test_the_demo_holds(capsys):
    assert command_line.main(["demo", "binary"]) == 0
    out = capsys.readouterr().out
    assert "All checks hold" in out
    assert "[ok] the frozen network predicts the same for every test image" in out


def test_a_failed_check_gives_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr("nnkernels.demo.binary.digits", lambda folder: None)
    monkeypatch.setattr("nnkernels.demo.binary._speed", lambda report: None)
    monkeypatch.setattr(binary, "matmul", lambda *_, **__: torch.zeros(70, 90))
    assert command_line.main(["demo", "binary"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_the_example_falls_back_to_the_small_digits(monkeypatch, capsys, tmp_path):
    pytest.importorskip("sklearn")
    path = house.SOURCE / "examples" / "binary_mnist.py"
    spec = importlib.util.spec_from_file_location("binary_mnist", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(example, "DATA", tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), "--hidden", "64", "--epochs", "1", "2"])
    assert example.main() == 0
    out = capsys.readouterr().out
    assert "scikit-learn's 8x8 digits" in out
    assert "[ok] the frozen network predicts the same for every test image" in out


def test_the_bench_runs(tmp_path):
    script, file = house.SOURCE / "bench" / "binary.py", tmp_path / "binary.json"
    command = [sys.executable, str(script), "--quick", "--only", "A4", "A8", "--json", str(file)]
    run = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert run.returncode == 0, run.stderr
    rows = {row["id"]: row for row in json.loads(file.read_text())["rows"]}
    assert rows["A8"]["met"]
    assert rows["A4"]["error"] is None
