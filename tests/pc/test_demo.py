"""The demo, the example and the bench of pc run and check what they show."""

import importlib.util
import json
import os
import subprocess
import sys

import house
import torch

from nnkernels import __main__ as command_line
from nnkernels.pc import PCModel


def test_the_demo_holds(capsys):
    with house.threads(1):
        assert command_line.main(["demo", "pc"]) == 0
    out = capsys.readouterr().out
    assert "All checks hold" in out
    assert "[ok] what is unpacked is what was packed" in out
    assert "xz -9e" in out


def test_a_failed_check_gives_exit_code_1(monkeypatch, capsys):
    decompress = PCModel.decompress
    monkeypatch.setattr(PCModel, "decompress", lambda self, data: decompress(self, data) ^ 1)
    assert command_line.main(["demo", "pc"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_the_demo_says_what_it_leaves_out(monkeypatch, capsys):
    monkeypatch.setattr("nnkernels.demo.pc.digits", lambda folder: None)
    assert command_line.main(["demo", "pc"]) == 0
    assert "pip install 'nnkernels[demo]'" in capsys.readouterr().out


def test_the_example_falls_back_to_small_digits(monkeypatch, capsys, tmp_path):
    path = house.SOURCE / "examples" / "pc_mnist.py"
    spec = importlib.util.spec_from_file_location("pc_mnist", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(example, "DATA", tmp_path)
    options = ["--quick", "--threads", "1", "--save", str(tmp_path / "m.nnpm")]
    pictures = ["--pictures", str(tmp_path / "pictures")]
    monkeypatch.setattr(sys, "argv", [str(path), *options, *pictures])
    assert example.main() == 0
    out = capsys.readouterr().out
    assert "scikit-learn's digits instead" in out
    assert "[ok] every image comes back as it was" in out
    names = sorted(file.name for file in (tmp_path / "pictures").iterdir())
    assert names == ["inpainted.png", "samples.png", "tree.png"]
    assert PCModel.load(tmp_path / "m.nnpm").D == 64


def test_the_bench_runs(tmp_path):
    script, file = house.SOURCE / "bench" / "pc.py", tmp_path / "pc.json"
    command = [sys.executable, str(script), "--quick", "--only", "rans"]
    run = subprocess.run(
        [*command, "--json", str(file)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    rows = json.loads(file.read_text())["rows"]
    assert {row["id"] for row in rows} == {"rans/decode", "rans/encode"}
    assert all(row["error"] is None for row in rows)


def test_the_plain_tree_of_the_bench_is_right():
    sys.path.insert(0, str(house.SOURCE / "bench"))
    try:
        from pc_peers import TorchTree
    finally:
        sys.path.pop(0)
    from nnkernels import pc

    x = torch.randint(0, 7, (50, 30), generator=torch.Generator().manual_seed(0)).byte()
    model = pc.HCLT.from_data(x, 5, K=7).requires_grad_(False)
    tables = model.pi, model.A, model.B, model.parent, model.order
    ours, theirs = TorchTree(*tables).flows(x), pc.reference.flows(x, *tables)
    root = int(model.order[0])
    for mine, other in zip(ours, theirs, strict=True):
        if mine.shape == model.A.shape:
            mine[root] = other[root]
        torch.testing.assert_close(mine.double(), other, rtol=1e-4, atol=1e-4)
