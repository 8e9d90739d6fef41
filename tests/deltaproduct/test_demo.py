"""The demo, the examples and the bench of deltaproduct run and check what they show."""

import importlib.util
import json
import os
import subprocess
import sys

import house
import pytest
import torch

from nnkernels import __main__ as command_line
from nnkernels.demo import deltaproduct as demo


def test_the_demo_holds(capsys):
    assert command_line.main(["demo", "deltaproduct"]) == 0
    out = capsys.readouterr().out
    assert "All checks hold" in out
    assert "running products right (at least 98%)" in out


def example(name, monkeypatch, *arguments):
    """The main function of an example with these arguments."""
    path = house.SOURCE / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look themselves up.
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    return module


def test_permutations_multiply():
    torch.manual_seed(0)
    group = demo.Permutations(3)
    words, products = group.words(50, 7)
    identity = next(a for a in range(6) if (group.table[a] == torch.arange(6)).all())
    for word, product in zip(words.tolist(), products.tolist(), strict=True):
        total = identity
        for element, expected in zip(word, product, strict=True):
            total = group.table[element, total].item()
            assert total == expected
    # A group that does not commute: order matters.
    assert not torch.equal(group.table, group.table.T)
    for row in (*group.table, *group.table.T):
        assert sorted(row.tolist()) == list(range(6))


def test_state_tracking_tells_success_from_failure(monkeypatch, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "curves.png"
    module = example("deltaproduct_state_tracking", monkeypatch, "--plot", str(file))
    # Untrained networks: what should fail does, what should solve it does not.
    monkeypatch.setattr(module, "train", lambda *_, **__: 0)
    assert module.main() == 1
    out = capsys.readouterr().out
    assert out.count("[ok] stays below 70% at 24") == 2
    assert out.count("[FAILED] at least 99% at 24 and 98% at 128") == 1
    assert file.stat().st_size > 1000


def test_the_text_example(monkeypatch, capsys, tmp_path):
    file = tmp_path / "a text.txt"
    file.write_text("she sells sea shells by the sea shore; " * 300)
    options = ("--data", str(file), "--steps", "8", "--write", "5")
    module = example("deltaproduct_text", monkeypatch, *options)
    module.main()
    out = capsys.readouterr().out
    assert "Characters of a text.txt" in out
    assert "[ok] steps give what one call gives" in out
    assert "writing, one at a time" in out


def test_the_text_example_falls_back_to_the_licence(monkeypatch, tmp_path):
    module = example("deltaproduct_text", monkeypatch)
    monkeypatch.setattr(module, "TEXTS", tmp_path / "absent")
    assert module.arguments().data is None
    try:
        characters, description = module.text()
    except module.DataError:
        pytest.skip("this Python comes without its licence text")
    assert "PYTHON SOFTWARE FOUNDATION" in characters
    assert description == "Python's licence"
    monkeypatch.setattr(sys, "argv", ["deltaproduct_text", "--data", str(tmp_path / "absent")])
    with pytest.raises(SystemExit, match="is not a file"):
        module.main()


def test_the_bench_runs(tmp_path):
    script, file = house.SOURCE / "bench" / "deltaproduct.py", tmp_path / "deltaproduct.json"
    only = ["--only", "step", "isa", "varlen"]
    run = subprocess.run(
        [sys.executable, str(script), "--quick", *only, "--json", str(file)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    rows = {row["id"]: row for row in json.loads(file.read_text())["rows"]}
    assert {"step/B1", "step/B8", "varlen", "isa/scalar"} <= set(rows)
    assert all(row["error"] is None for row in rows.values())


@pytest.mark.parametrize("n", [1, 3])
def test_the_peers_of_the_bench_are_right(n, monkeypatch):
    monkeypatch.syspath_prepend(str(house.SOURCE / "bench"))
    # By its path: the tests have a module of the same name.
    spec = importlib.util.spec_from_file_location(
        "bench_cases", house.SOURCE / "bench" / "deltaproduct_cases.py"
    )
    cases = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cases)
    inputs = cases.Inputs(100, n, 16)
    for peer in (cases.token_loop, cases.chunk_form, cases.interleaved, cases.Inputs.scan):
        cases.check_scan(inputs, lambda peer=peer: peer(inputs), 1e-5)()
