"""Compiles every CUDA source for sm_80 and sm_90a; fails on errors, warnings and register spills.

    python .ci/check_nvcc.py [FILE ...]

Prints the registers and shared memory of every kernel. Takes nvcc from PATH or CUDA_HOME and does
nothing, saying so, where there is none. No GPU is needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("80", "90a")
FLAGS = ("-std=c++20", "-O3", "-Werror=all-warnings", "-Xptxas=-v", "-Icsrc")
ENTRY = re.compile(r"Compiling entry function '(\S+)' for 'sm_(\w+)'")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return (home and shutil.which("nvcc", path=f"{home}/bin")) or shutil.which("nvcc")


def readable(names: list[str]) -> list[str]:
    """The kernels' names and template arguments, without namespaces and parameters."""
    if not names or not shutil.which("c++filt"):
        return names
    filtered = subprocess.run(
        ["c++filt", "-p"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [re.sub(r"\(anonymous namespace\)|\w+(?=::)|::", "", name) for name in filtered]


def compile_source(nvcc: str, source: Path, scratch: Path) -> bool:
    """Compiles one file, prints its kernels; True if there were no errors and no spills."""
    targets = [f"-gencode=arch=compute_{t},code=sm_{t}" for t in TARGETS]
    command = [nvcc, *FLAGS, *targets, "-c", str(source), "-o", str(scratch / "out.o")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(f"{source}: {'compiled' if run.returncode == 0 else 'FAILED'}")
    if run.returncode != 0:
        print(run.stdout + run.stderr)
        return False
    kernels: dict[str, dict[str, str]] = {}
    entry = target = ""
    spilled = False
    for line in run.stderr.splitlines():
        if match := ENTRY.search(line):
            entry, target = match.groups()
        elif (match := SPILLS.search(line)) and match.groups() != ("0", "0"):
            print(f"  SPILL in {readable([entry])[0]} for sm_{target}: {line.strip()}")
            spilled = True
        elif match := USED.search(line):
            registers, shared = match.groups()
            kernels.setdefault(entry, {})[target] = registers + (f" +{shared}B" if shared else "")
    for name, used in zip(readable(list(kernels)), kernels.values(), strict=True):
        print("  " + "".join(f"{used.get(t, '-'):>10}" for t in TARGETS) + f"  {name}")
    return not spilled


def main() -> int:
    nvcc = find_nvcc()
    if nvcc is None:
        print("check_nvcc: no nvcc on PATH or in CUDA_HOME, CUDA sources not compiled")
        return 0
    sources = [Path(name).resolve() for name in sys.argv[1:]] or sorted(ROOT.glob("csrc/**/*.cu"))
    print(
        "registers per thread and static shared memory for " + ", ".join(f"sm_{t}" for t in TARGETS)
    )
    with tempfile.TemporaryDirectory() as scratch:
        good = [compile_source(nvcc, s.relative_to(ROOT), Path(scratch)) for s in sources]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
