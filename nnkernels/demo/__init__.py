"""The demo: every core on real input, with a correctness check and its speed beside the usual."""

import time
from importlib import import_module

import nnkernels
from nnkernels.demo.data import DataError

__all__ = ["CORES", "DataError", "Report", "run"]

CORES = ("lmul", "deltaproduct", "gaunt", "binary", "pc")


class Report:
    """Prints what a demo finds and remembers whether every check held."""

    def __init__(self):
        self.failed = []

    def title(self, text):
        print(f"\n{text}\n{'-' * len(text)}")

    def line(self, text=""):
        print(text, flush=True)

    def check(self, what, holds):
        print(f"  [{'ok' if holds else 'FAILED'}] {what}", flush=True)
        if not holds:
            self.failed.append(what)

    def table(self, header, rows):
        cells = [header, *[[str(cell) for cell in row] for row in rows]]
        widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
        for row in cells:
            name, *values = row
            right = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
            self.line("  " + "  ".join([name.ljust(widths[0]), *right]))


def seconds(function, budget=0.3):
    """Median time of a call, over as many calls as fit the budget and at least three."""
    function()
    times = []
    while len(times) < 3 or sum(times) < budget:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def run(core=None, data=None):
    """Runs one core's demo, or all; returns 0 if every check held, else 1."""
    report = Report()
    start = time.perf_counter()
    information = nnkernels.build_info()
    report.title(f"nnkernels {information.pop('version')}")
    for key, value in information.items():
        report.line(f"  {key:18} {', '.join(value) if isinstance(value, list) else value}")
    for name in [core] if core else CORES:
        import_module(f"nnkernels.demo.{name}").run(report, data)
    report.line()
    if report.failed:
        report.line(f"{len(report.failed)} checks FAILED: {'; '.join(report.failed)}")
        return 1
    report.line(f"All checks hold ({time.perf_counter() - start:.0f} s).")
    return 0
