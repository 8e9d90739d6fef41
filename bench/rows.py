"""One measured row, its requirement, and how both are written for people. Needs no torch."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field

from timing import Timing

SCHEMA = 1

TIME_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_REQUIREMENT = re.compile(r"(<=|>=) ([0-9.]+) ?(x|%|[A-Za-z]+(?:/s)?)")
_SCALES = {"T": 1e12, "G": 1e9, "M": 1e6, "": 1.0}


@dataclass(frozen=True)
class Requirement:
    """A bound such as "<= 1.35x", ">= 150x", "<= 15 us", ">= 85%" or ">= 4 MB/s".

    In x, "<=" bounds our time over the baseline's and ">=" the baseline's time over ours.
    In %, the value is the share of the counted floor.
    """

    sense: str
    bound: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> Requirement:
        found = _REQUIREMENT.fullmatch(text)
        if not found:
            raise ValueError(f'requirement: cannot read {text!r}; expected e.g. "<= 1.35x"')
        return cls(found[1], float(found[2]), found[3])

    def met_by(self, value: float) -> bool:
        return value <= self.bound if self.sense == "<=" else value >= self.bound

    def margin(self, value: float) -> float:
        """At least 1 when met: how many times better than asked."""
        good, bad = (self.bound, value) if self.sense == "<=" else (value, self.bound)
        return good / bad if bad else float("inf")


@dataclass(frozen=True)
class Work:
    """What a call must do at least: `ops` against the peak `rate`, `bytes` against `copy`."""

    ops: float = 0.0
    bytes: float = 0.0
    unit: str = "MAC"
    rate: str = "fma"
    copy: str = "copy"


@dataclass
class Row:
    """One line of the tables. `baselines[0]`, the first one, is what `ours` is compared with."""

    id: str
    name: str
    shape: str
    dtype: str
    threads: int
    ours: Timing | None = None
    baselines: dict[str, Timing] = field(default_factory=dict)
    requirement: str | None = None
    value: float | None = None
    met: bool | None = None
    work: Work | None = None
    # Seconds the counted work needs at the measured peaks, and that as a share of our median.
    floor: float | None = None
    share: float | None = None
    # Rows of one series are drawn as a line over x.
    series: str | None = None
    x: float | None = None
    isa: str | None = None
    cap: str | None = None
    # Shown in the few lines of the summary.
    headline: bool = False
    note: str = ""
    error: str | None = None

    @property
    def label(self) -> str:
        return f"{self.id} [{self.cap}]" if self.cap else self.id

    @property
    def unit(self) -> str:
        return Requirement.parse(self.requirement).unit if self.requirement else "x"

    def ratio(self, baseline: str) -> float:
        """Our time over the baseline's; the other way round where a speed-up is required."""
        ours, theirs = self.ours.median, self.baselines[baseline].median
        return theirs / ours if (self.requirement or "").startswith(">=") else ours / theirs

    def settle(self) -> Row:
        """Fill what follows from the times: share, value, met."""
        if self.ours and self.floor is not None:
            self.share = self.floor / self.ours.median
        if self.value is None and self.ours:
            self.value = self._value_from_times()
        if self.requirement and self.value is not None:
            self.met = Requirement.parse(self.requirement).met_by(self.value)
        return self

    def _value_from_times(self) -> float | None:
        unit, seconds = self.unit, self.ours.median
        if unit == "x":
            return self.ratio(next(iter(self.baselines))) if self.baselines else None
        if unit == "%":
            return None if self.share is None else 100 * self.share
        if unit in TIME_UNITS:
            return seconds * TIME_UNITS[unit]
        if unit.endswith("/s") and self.work:
            amount = self.work.bytes if unit.endswith("B/s") else self.work.ops
            scale = unit.removesuffix("/s").removesuffix("B").removesuffix(self.work.unit)
            return amount / seconds / _SCALES[scale]
        raise ValueError(f"{self.id}: give the value of a requirement in {unit!r}")

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict) -> Row:
        fields = dict(fields)
        fields["ours"] = fields["ours"] and Timing(**fields["ours"])
        fields["baselines"] = {name: Timing(**t) for name, t in fields["baselines"].items()}
        fields["work"] = fields["work"] and Work(**fields["work"])
        return cls(**fields)


def _three_digits(value: float) -> str:
    magnitude = abs(value)
    return f"{value:.0f}" if magnitude >= 100 else f"{value:.3g}"


def show_time(seconds: float) -> str:
    for unit, per_second in TIME_UNITS.items():
        if seconds * per_second >= 1 or unit == "ns":
            return f"{_three_digits(seconds * per_second)} {unit}"
    raise AssertionError


def show_timing(timing: Timing | None) -> str:
    if timing is None:
        return ""
    return f"{show_time(timing.median)} ±{50 * timing.spread:.0f}%"


def show_value(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "x":
        return f"{value:.2f}x" if value < 100 else f"{value:.0f}x"
    return f"{_three_digits(value)}{'' if unit == '%' else ' '}{unit}"


def show_rate(rate: float, unit: str) -> str:
    for prefix, scale in _SCALES.items():
        if rate >= scale or not prefix:
            return f"{_three_digits(rate / scale)} {prefix}{unit}/s"
    raise AssertionError


def show_peak(peak: dict) -> str:
    cap = f" [{peak['cap']}]" if peak["cap"] else ""
    threads = f"{peak['threads']} thread{'s' if peak['threads'] > 1 else ''}"
    return f"{peak['name']}{cap}, {threads}: {show_rate(peak['rate'], peak['unit'])}, {peak['how']}"


def show_met(row: Row) -> str:
    if row.error:
        return "ERROR"
    return "" if row.met is None else "yes" if row.met else "NO"


COLUMNS = (
    "id",
    "what",
    "shape",
    "dtype",
    "thr",
    "ours",
    "baseline",
    "its time",
    "result",
    "floor",
    "asked",
    "met",
)
# Columns that line up on the right when printed.
NUMERIC = {"thr", "ours", "its time", "result", "floor", "asked"}


def cells(row: Row) -> list[list[str]]:
    """The row as table lines: the first baseline beside ours, each further one on its own line."""
    names = list(row.baselines)
    first = names[0] if names else None
    lines = [
        [
            row.label,
            row.name,
            row.shape,
            row.dtype,
            str(row.threads),
            show_timing(row.ours),
            first or "",
            show_timing(row.baselines[first]) if first else "",
            show_value(row.value, row.unit),
            "" if row.share is None else f"{100 * row.share:.0f}%",
            row.requirement or "",
            show_met(row),
        ]
    ]
    for name in names[1:]:
        line = [""] * len(COLUMNS)
        line[6:9] = [name, show_timing(row.baselines[name]), show_value(row.ratio(name), "x")]
        lines.append(line)
    return lines


def text_table(rows: list[Row]) -> str:
    """Aligned text; notes and errors follow the table, by id."""
    lines = [list(COLUMNS)]
    for row in rows:
        lines += cells(row)
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]

    def aligned(line: list[str]) -> str:
        parts = [
            cell.rjust(width) if name in NUMERIC else cell.ljust(width)
            for cell, width, name in zip(line, widths, COLUMNS, strict=True)
        ]
        return "  ".join(parts).rstrip()

    rule = "  ".join("-" * width for width in widths)
    text = [aligned(lines[0]), rule] + [aligned(line) for line in lines[1:]]
    text += [f"{row.label}: {row.error or row.note}" for row in rows if row.error or row.note]
    return "\n".join(text)
