"""The package as a user meets it: import, environment variables, command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nnkernels
from nnkernels import __main__ as command_line
from nnkernels import _host

SOURCE = Path(__file__).parents[1]


def python(code, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def test_version_is_that_of_the_file():
    assert nnkernels.__version__ == (SOURCE / "VERSION").read_text().strip()


def test_build_info():
    information = nnkernels.build_info()
    assert information["version"] == nnkernels.__version__
    assert information["torch"] == torch.__version__
    assert information["cpu_isa"] == _host.active_isa()
    assert information["cpu_isa_available"][0] == "scalar"
    assert information["backend"] == "auto"


def test_an_unbuilt_source_folder_names_the_remedy(tmp_path):
    package = tmp_path / "nnkernels"
    package.mkdir()
    for name in ("__init__.py", "_library.py"):
        (package / name).write_text((SOURCE / "nnkernels" / name).read_text())
    result = python("import nnkernels", tmp_path)
    assert result.returncode != 0
    assert "holds no extension built for this Python" in result.stderr
    assert "pip install --no-build-isolation -e ." in result.stderr


def test_cpu_isa_is_capped_by_the_environment(tmp_path):
    code = "import nnkernels; print(nnkernels.build_info()['cpu_isa'])"
    assert python(code, tmp_path, NNKERNELS_CPU_ISA="scalar").stdout == "scalar\n"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("NNKERNELS_CPU_ISA", "mmx", "'mmx' is not one of 'scalar', 'avx2', 'avx512'"),
        ("NNKERNELS_BACKEND", "gpu", "'gpu' is not one of cuda, triton, reference"),
    ],
)
def test_an_unknown_environment_value_is_an_error(variable, value, message, tmp_path):
    result = python("import nnkernels", tmp_path, **{variable: value})
    assert result.returncode != 0
    assert f"{variable}" in result.stderr
    assert message in result.stderr


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_a_missing_forced_backend_is_an_error(tmp_path):
    result = python("import nnkernels", tmp_path, NNKERNELS_BACKEND="cuda")
    assert result.returncode != 0
    assert "NNKERNELS_BACKEND=cuda, but this build has no CUDA library" in result.stderr


REFERENCE_BACKEND = """
import torch, nnkernels
from nnkernels.lmul import reference
assert nnkernels.build_info()["backend"] == "reference"
a = torch.randn(5, 300, requires_grad=True)
w = torch.randn(7, 300, requires_grad=True)
bias = torch.randn(7, requires_grad=True)
out = nnkernels.lmul.linear(a, w, bias, mantissa_bits=4, algo="guarded")
assert torch.equal(out, reference.linear(a, w, bias, mantissa_bits=4))
g = torch.randn(5, 7)
out.backward(g)
want = reference.linear_grad(g, a.detach(), w.detach(), mantissa_bits=4)
for leaf, gradient in zip((a, w, bias), want, strict=True):
    assert torch.equal(leaf.grad, gradient.float())
q = torch.randn(1, 2, 9, 8)
assert torch.equal(nnkernels.lmul.attention(q, q, q), reference.attention(q, q, q))
assert torch.equal(nnkernels.lmul.mul(q, q), reference.mul(q, q))
mask = torch.rand(9, 9) < 0.5
leaf = q.clone().requires_grad_()
nnkernels.lmul.attention(leaf, q, q, attn_mask=mask).backward(q)
want = reference.attention_grad(q, q, q, q, attn_mask=mask)[0]
assert torch.equal(leaf.grad, want.float())
"""


def test_the_reference_backend_runs_every_operator_by_its_reference(tmp_path):
    result = python(REFERENCE_BACKEND, tmp_path, NNKERNELS_BACKEND="reference")
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr


def test_info_command(capsys):
    assert command_line.main(["info"]) == 0
    assert f"version            {nnkernels.__version__}" in capsys.readouterr().out


def test_bench_outside_a_checkout_says_where_to_run_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command_line.main(["bench", "lmul"]) == 2
    assert "run it in a checkout" in capsys.readouterr().err


def test_an_unknown_core_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["demo", "lmull"])
    assert stopped.value.code == 2
    assert "invalid choice: 'lmull'" in capsys.readouterr().err


def test_demo_with_a_missing_data_folder(tmp_path, capsys):
    assert command_line.main(["demo", "lmul", "--data", str(tmp_path)]) == 2
    assert "--data takes the folder that holds mnist/" in capsys.readouterr().err


def test_the_demo_holds(capsys):
    assert command_line.main(["demo", "lmul"]) == 0
    out = capsys.readouterr().out
    assert "All checks hold" in out
    assert "FAILED" not in out
    assert "L-Mul, m = 3" in out


def test_a_failed_check_gives_exit_code_1(monkeypatch, capsys):
    from nnkernels import demo, lmul

    monkeypatch.setattr(demo, "CORES", ("lmul",))
    monkeypatch.setattr(lmul.reference, "default_offset", lambda m: 0.0)
    monkeypatch.setattr("nnkernels.demo.lmul.digits", lambda folder: None)
    monkeypatch.setattr("nnkernels.demo.lmul._speed", lambda report: None)
    assert demo.run("lmul") == 1
    assert "FAILED" in capsys.readouterr().out
