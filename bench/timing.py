"""How times and memory are taken: interleaved rounds, medians and quartiles."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

Call = Callable[[], object]
# Takes a callable and a repeat count, returns seconds per call.
Clock = Callable[[Call, int], float]

MIN_ROUNDS = 7
MAX_REPEATS = 1 << 20


@dataclass(frozen=True)
class Timing:
    """Seconds per call over the rounds: median, quartiles and best."""

    median: float
    low: float
    high: float
    best: float
    rounds: int
    repeats: int

    @classmethod
    def of(cls, samples: list[float], repeats: int = 1) -> Timing:
        """Summarise one sample per round."""
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high, min(samples), len(samples), repeats)

    @property
    def spread(self) -> float:
        """Interquartile range as a share of the median."""
        return (self.high - self.low) / self.median if self.median else 0.0

    def to_json(self) -> dict:
        return asdict(self)


def wall_clock(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def thread_clock(call: Call, repeats: int) -> float:
    """CPU time of this thread alone, for single-threaded work on a busy machine."""
    start = time.thread_time()
    for _ in range(repeats):
        call()
    return (time.thread_time() - start) / repeats


def device_clock(call: Call, repeats: int) -> float:
    """Time between two events on the current CUDA stream."""
    import torch

    start = torch.cuda.Event(enable_timing=True)
    stop = torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        call()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) * 1e-3 / repeats


def calibrate(call: Call, slice_s: float, clock: Clock) -> int:
    """The repeat count that makes one slice last at least `slice_s`."""
    # The first call may allocate, load code or wake threads.
    clock(call, 1)
    repeats = 1
    while repeats < MAX_REPEATS:
        taken = clock(call, repeats) * repeats
        if taken >= slice_s:
            break
        # Grow towards the target but at most eightfold: a short slice predicts badly.
        wanted = slice_s / max(taken / repeats, 1e-9)
        repeats = max(2 * repeats, min(8 * repeats, int(wanted) + 1))
    return min(repeats, MAX_REPEATS)


def settle_allocator() -> None:
    """Bring glibc's malloc to where it is in a process that has run for a while.

    Until the first block of tens of megabytes is freed it hands every block above 128 kB back to
    the system, and the next call pays for touching fresh pages, several milliseconds in some runs
    and none in others.
    """
    bytearray(31 << 20)


def interleave(
    calls: dict[str, Call],
    rounds: int = 9,
    slice_s: float = 20e-3,
    clock: Clock = wall_clock,
) -> dict[str, Timing]:
    """Time several callables against each other in this process.

    Every round runs each callable once, as a slice of at least `slice_s`; the order rotates from
    round to round, so slow drift of the machine falls on all of them alike.
    """
    if rounds < MIN_ROUNDS:
        raise ValueError(f"interleave: {rounds} rounds, expected at least {MIN_ROUNDS}")
    settle_allocator()
    names = list(calls)
    repeats = {name: calibrate(calls[name], slice_s, clock) for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                samples[name].append(clock(calls[name], repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return {name: Timing.of(samples[name], repeats[name]) for name in names}


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def peak_extra_bytes(call: Call) -> int | None:
    """Highest resident memory during `call` minus what was resident before it.

    The result of the call counts, and so does any page it touches for the first time. None where
    the system does not let a process reset its own high-water mark (only Linux does).
    """
    gc.collect()
    try:
        # Free pages the allocator keeps would hide what the call takes.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_bytes("VmRSS")
        result = call()
        peak = _status_bytes("VmHWM")
        del result
    except (OSError, AttributeError):
        return None
    return max(0, peak - before)
