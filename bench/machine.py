"""What the numbers were taken on: the system, and its measured peak rates."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from nnkernels._host import active_isa

import nnkernels
from nnkernels import _host

# Environment of a process in which every library stays at or below an instruction set. The
# libraries read it when torch loads, so a capped run is a process of its own.
CAPS = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "NNKERNELS_CPU_ISA": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
}


def caps_below_this_cpu() -> list[str]:
    """The caps that would change anything here."""
    return ["avx2"] if active_isa().startswith("avx512") else []


@contextmanager
def isa(name: str):
    """The CPU kernels use this instruction set."""
    before = _host.active_isa()
    _host.set_isa(name)
    try:
        yield
    finally:
        _host.set_isa(before)


@dataclass(frozen=True)
class Peak:
    """A measured ceiling: `rate` in `unit` per second, and how it was measured; `isa` is None where
    it does not depend on the kernels' instruction set."""

    name: str
    rate: float
    unit: str
    how: str
    threads: int
    isa: str | None = None
    cap: str | None = None


@dataclass(frozen=True)
class Probe:
    """Measures a ceiling: `rate(threads)` returns (units per second, how it was measured)."""

    unit: str
    rate: Callable[[int], tuple[float, str]]
    per_isa: bool = False


def _best_seconds(call: Callable[[], object], budget_s: float = 0.3) -> float:
    call()
    best, end = float("inf"), time.perf_counter() + budget_s
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def _on_threads(call: Callable[[], float], threads: int) -> float:
    """Sum of the rates of `threads` probes started together."""
    with ThreadPoolExecutor(threads) as pool:
        return sum(future.result() for future in [pool.submit(call) for _ in range(threads)])


def register_probe(name: str) -> Probe:
    """A ceiling of work in registers, of the kind that nnkernels._host.peak_rates measures."""

    def rate(threads: int) -> tuple[float, str]:
        found = _on_threads(lambda: _host.peak_rates()[name], threads)
        return found, f"best loop in registers, {active_isa()}"

    return Probe("MAC", rate, per_isa=True)


def copy_rate(threads: int) -> tuple[float, str]:
    """Bytes read plus bytes written per second by a copy that exceeds L2."""
    source = torch.ones(32 << 20)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return moved / _best_seconds(lambda: target.copy_(source)), "best torch copy of 128 MiB"


def device_copy_rate(threads: int) -> tuple[float, str]:
    """The same on the current CUDA device, over buffers far larger than its caches."""
    source = torch.ones(256 << 20, device="cuda")
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return 2 * source.numel() * 4 / _best_seconds(copy), "best device copy of 1 GiB"


PROBES = {
    "fma": register_probe("fma"),
    "copy": Probe("B", copy_rate),
    "device copy": Probe("B", device_copy_rate),
}


class Peaks:
    """Ceilings measured on first use and kept for the run, for each ISA that was active."""

    def __init__(self, probes: dict[str, Probe], cap: str | None):
        self._probes = probes
        self._cap = cap
        self._measured: dict[tuple[str, int, str | None], Peak] = {}

    def get(self, name: str, threads: int) -> Peak:
        probe = self._probes[name]
        isa = active_isa() if probe.per_isa else None
        key = (name, threads, isa)
        if key not in self._measured:
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            try:
                rate, how = probe.rate(threads)
            finally:
                torch.set_num_threads(before)
            self._measured[key] = Peak(name, rate, probe.unit, how, threads, isa, self._cap)
        return self._measured[key]

    def measured(self) -> list[Peak]:
        return list(self._measured.values())


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _caches() -> dict[str, str]:
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((index / f).read_text().strip() for f in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def describe(threads: int) -> dict:
    """Everything a reader needs to place the numbers; no host names and no paths."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "caches": _caches(),
        "isa": active_isa(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": round(os.getloadavg()[0], 2),
        "os": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version,
        "threads": threads,
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "dirty": None if changed is None else bool(changed),
        "build": nnkernels.build_info(),
    }
