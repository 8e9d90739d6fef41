"""The house every bench lives in: options, checks before timing, rows, table and JSON.

A bench file registers measures and runs:

    bench = Bench("lmul", __doc__)

    @bench.measure("C1", capped=("avx2",))
    def dense(run):
        run.compare("C1", "...", ours=..., baselines={...}, check=..., requirement="<= 1.35x")

    if __name__ == "__main__":
        sys.exit(bench.main())
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import machine
import torch
from rows import SCHEMA, Row, Work, show_peak, text_table
from timing import Call, Clock, interleave, wall_clock

LEVELS = ("quick", "default", "full")
ROUNDS = {"quick": 7, "default": 11, "full": 21}


class WrongResult(Exception):
    """A kernel gave a wrong answer, so it is not timed."""


class Unavailable(Exception):
    """What a measure needs is not on this machine; the reason is shown."""


def check_close(got: torch.Tensor, want: torch.Tensor, bound: torch.Tensor | float = 0.0) -> None:
    """Raise WrongResult unless |got - want| <= bound everywhere; NaN only where NaN is wanted."""
    if got.shape != want.shape:
        raise WrongResult(f"shape {tuple(got.shape)}, expected {tuple(want.shape)}")
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    same = (got == want) | (got.isnan() & want.isnan())
    bad = ~(same | ((got - want).abs() <= bound))
    if bad.any():
        worst = (got - want).abs()[bad].max().item()
        raise WrongResult(f"{int(bad.sum())} of {bad.numel()} values off, worst by {worst:.3g}")


@dataclass(frozen=True)
class Measure:
    id: str
    function: Callable[[Run], None]
    level: str
    capped: tuple[str, ...]


class Run:
    """One execution of a bench: what a measure asks for and writes its rows to."""

    def __init__(self, level: str, threads: int, cap: str | None, probes: dict[str, machine.Probe]):
        self.level = level
        self.threads = threads
        self.cap = cap
        self.rounds = ROUNDS[level]
        self.peaks = machine.Peaks(probes, cap)
        self.rows: list[Row] = []

    def record(self, row: Row) -> Row:
        """Add a row: the floor is counted here, so that every row has it the same way."""
        row.cap = self.cap
        row.isa = machine.active_isa()
        if row.work:
            parts = [(row.work.ops, row.work.rate), (row.work.bytes, row.work.copy)]
            row.floor = max(
                amount / self.peaks.get(name, row.threads).rate for amount, name in parts if amount
            )
        self.rows.append(row.settle())
        return row

    def compare(
        self,
        id: str,
        name: str,
        *,
        shape: str,
        dtype: str,
        ours: Call,
        check: Call,
        baselines: dict[str, Call] | None = None,
        threads: int | None = None,
        requirement: str | None = None,
        work: Work | None = None,
        series: str | None = None,
        x: float | None = None,
        headline: bool = False,
        note: str = "",
        clock: Clock = wall_clock,
        slice_s: float = 20e-3,
    ) -> Row:
        """Check `ours`, then time it interleaved with the baselines and add the row.

        `check` raises WrongResult; the row then stands in the table without a time.
        """
        row = Row(id, name, shape, dtype, threads or self.threads, requirement=requirement)
        row.series, row.x, row.headline, row.note = series, x, headline, note
        try:
            check()
        except WrongResult as wrong:
            row.error = f"wrong result: {wrong}"
            return self.record(row)
        # The dictionary keeps its order: ours first, then the baselines.
        times = interleave({"ours": ours, **(baselines or {})}, self.rounds, slice_s, clock)
        row.ours = times.pop("ours")
        row.baselines = times
        row.work = work
        return self.record(row)

    def compare_threads(self, id: str, name: str, *, call: Call, check: Call, **row) -> Row:
        """`call` on two threads beside the same on one."""
        if (os.cpu_count() or 1) < 2:
            raise Unavailable("needs two CPUs")

        def on(count: int, call: Call) -> Call:
            def switched() -> object:
                torch.set_num_threads(count)
                return call()

            return switched

        try:
            return self.compare(
                id,
                name,
                threads=2,
                ours=on(2, call),
                baselines={"1 thread": on(1, call)},
                check=on(2, check),
                **row,
            )
        finally:
            torch.set_num_threads(self.threads)


class Bench:
    """The measures of one core and the command line that runs them."""

    def __init__(self, core: str, doc: str, probes: dict[str, machine.Probe] | None = None):
        self.core = core
        self.doc = doc
        self.probes = machine.PROBES | (probes or {})
        self.measures: list[Measure] = []

    def measure(self, id: str, *, level: str = "quick", capped: tuple[str, ...] = ()):
        """Register a measure. It runs at `level` and above, or when --only names it; under each
        cap in `capped` it runs once more, in a process with that cap, where that changes anything.
        """

        def register(function: Callable[[Run], None]) -> Callable[[Run], None]:
            self.measures.append(Measure(id, function, level, capped))
            return function

        return register

    def main(self, arguments: list[str] | None = None) -> int:
        options = self._parse(arguments)
        if options.cap:
            _ensure_cap(options.cap)
        torch.set_num_threads(options.threads)
        # Before the work, so that the load it names is not ours.
        system = machine.describe(options.threads)
        run = Run(options.level, options.threads, options.cap, self.probes)
        chosen = self._choose(options)
        for measure in chosen:
            _say(f"{self.core} {measure.id}{f' [{run.cap}]' if run.cap else ''}")
            self._run_one(measure, run)
        result = {
            "schema": SCHEMA,
            "core": self.core,
            "taken": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "level": options.level,
            "system": system,
            "peaks": [asdict(peak) for peak in run.peaks.measured()],
            "rows": [row.to_json() for row in run.rows],
        }
        if not options.cap:
            for cap in machine.caps_below_this_cpu():
                self._add_capped(result, cap, [m.id for m in chosen if cap in m.capped], options)
        rows = [Row.from_json(fields) for fields in result["rows"]]
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(result, indent=1) + "\n")
        if not options.cap:
            print(_heading(result))
            print(text_table(rows))
        return 1 if any(row.error for row in rows) else 0

    def _parse(self, arguments: list[str] | None) -> argparse.Namespace:
        parser = argparse.ArgumentParser(
            description=self.doc, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        level = parser.add_mutually_exclusive_group()
        for name, text in (("quick", "fewer rounds, no extras"), ("full", "the sweeps too")):
            level.add_argument(
                f"--{name}", dest="level", action="store_const", const=name, help=text
            )
        parser.set_defaults(level="default")
        parser.add_argument("--threads", type=int, default=1, help="threads of both sides (1)")
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
        parser.add_argument("--only", nargs="+", metavar="ID", help="run these measures alone")
        parser.add_argument(
            "--cap", choices=machine.CAPS, help="hold torch and ours to this instruction set"
        )
        options = parser.parse_args(arguments)
        if options.threads < 1:
            parser.error(f"--threads {options.threads}: expected at least 1")
        known = [measure.id for measure in self.measures]
        for id in options.only or []:
            if id not in known:
                parser.error(f"--only {id}: expected one of {', '.join(known)}")
        return options

    def _choose(self, options: argparse.Namespace) -> list[Measure]:
        if options.only:
            return [measure for measure in self.measures if measure.id in options.only]
        reach = LEVELS.index(options.level)
        return [measure for measure in self.measures if LEVELS.index(measure.level) <= reach]

    def _run_one(self, measure: Measure, run: Run) -> None:
        """A measure that fails leaves a row that says so; the others still run."""
        try:
            measure.function(run)
        except Unavailable as reason:
            run.record(Row(measure.id, "not run here", "", "", run.threads, note=str(reason)))
        except Exception as failure:
            traceback.print_exc()
            text = f"{type(failure).__name__}: {failure}".splitlines()[0]
            run.record(Row(measure.id, "failed", "", "", run.threads, error=text))

    def _add_capped(self, result: dict, cap: str, ids: list[str], options) -> None:
        if not ids:
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "capped.json"
            command = [sys.executable, sys.argv[0], "--cap", cap, "--json", str(file)]
            command += ["--threads", str(options.threads), "--only", *ids]
            command += [] if options.level == "default" else [f"--{options.level}"]
            subprocess.run(command, env=os.environ | machine.CAPS[cap], check=False)
            if not file.exists():
                error = f"the process capped to {cap} ended without a result"
                row = Row(" ".join(ids), "failed", "", "", options.threads, cap=cap, error=error)
                result["rows"].append(row.to_json())
                return
            capped = json.loads(file.read_text())
        result["rows"] += capped["rows"]
        result["peaks"] += capped["peaks"]


def _ensure_cap(cap: str) -> None:
    """Start over with the cap in the environment: torch and its libraries read it only once."""
    wanted = machine.CAPS[cap]
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _heading(result: dict) -> str:
    system = result["system"]
    where = system["cpu"] + (f" + {system['gpu']}" if system["gpu"] else "")
    state = "?" if system["commit"] is None else system["commit"] + "+" * bool(system["dirty"])
    lines = [
        f"{result['core']} on {where}, ISA {system['isa']}, torch {system['torch']}, commit {state}"
    ]
    return "\n".join(lines + [f"peak {show_peak(peak)}" for peak in result["peaks"]])
