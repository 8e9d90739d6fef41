"""The figures of the report, as inline SVG. Needs matplotlib; knows no core."""

from __future__ import annotations

import io
import re
from itertools import cycle

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from rows import Requirement, Row, show_value

INK, FAINT, GOOD, BAD = "#1f2933", "#9aa5b1", "#2f7d5b", "#c2452d"
LINES = ("#2b5c9e", "#c77d1e", "#6b4f9e", "#2f7d5b", "#a83f6f", "#5a6570")
STYLE = {
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.color": "#e4e7eb",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def _svg(figure, name: str) -> str:
    """The figure as an <svg> element; ids start with `name`, for several share one page."""
    buffer = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with plt.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata=metadata)
    plt.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    prefix = re.sub(r"\W+", "-", name)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", svg)


def margins(rows: list[Row], name: str) -> str | None:
    """How far each requirement is met: 1 is exactly met, right of it is better."""
    judged = [row for row in rows if row.requirement and row.value is not None]
    if not judged:
        return None
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.5, 0.6 + 0.27 * len(judged)))
        places = range(len(judged), 0, -1)
        found = [Requirement.parse(row.requirement).margin(row.value) for row in judged]
        axes.barh(
            places,
            [margin - 1 for margin in found],
            left=1,
            height=0.62,
            color=[GOOD if row.met else BAD for row in judged],
        )
        axes.axvline(1, color=INK, linewidth=1)
        axes.set_xscale("log")
        axes.set_xlim(min(0.5, 0.85 * min(found)), max(2.0, 1.6 * max(found)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        axes.xaxis.set_minor_formatter(
            lambda value, _: f"{value:g}x" if value in (0.5, 2, 5) else ""
        )
        axes.set_yticks(places, [row.label for row in judged])
        axes.grid(axis="y", visible=False)
        for place, margin, row in zip(places, found, judged, strict=True):
            text = f" {show_value(row.value, row.unit)} (asked {row.requirement})"
            axes.text(max(margin, 1), place, text, va="center", fontsize=8)
        axes.set_xlabel("requirement over result: right of the line is met")
        return _svg(figure, name)


def roofline(rows: list[Row], peaks: list[dict], name: str) -> str | None:
    """Achieved rate over operations per byte, under the ceilings measured in the same run."""
    placed = [row for row in rows if row.ours and row.work and row.work.ops and row.work.bytes]
    judged = [row for row in placed if row.requirement]
    if not judged:
        return None
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.5, 4.4))
        reach = [row.work.ops / row.work.bytes for row in placed]
        left, right = 0.5 * min(reach), 4 * max(reach)
        for (label, rate, bandwidth), color in zip(_ceilings(judged, peaks), cycle(LINES)):
            ridge = rate / bandwidth
            knots = [left, *([ridge] if left < ridge < right else []), right]
            heights = [min(rate, bandwidth * knot) for knot in knots]
            axes.plot(knots, heights, color=color, linewidth=1.4, label=label)
        for row, x in zip(placed, reach, strict=True):
            color = FAINT if row.met is None else GOOD if row.met else BAD
            y = row.work.ops / row.ours.median
            axes.plot(x, y, "o", color=color, markersize=5, markeredgecolor="white")
        axes.set(xscale="log", yscale="log", xlim=(left, right))
        axes.set_xlabel(f"operations per byte ({judged[0].work.unit}/B)")
        axes.set_ylabel(f"{judged[0].work.unit}/s")
        axes.legend(loc="lower right", fontsize=7)
        _name_points(axes, judged)
        return _svg(figure, name)


def _ceilings(rows: list[Row], peaks: list[dict]) -> list[tuple[str, float, float]]:
    """Label, compute rate and bandwidth of every pair that some row was counted against."""

    rates = {(p["name"], p["threads"], p["isa"], p["cap"]): p["rate"] for p in peaks}

    def rate(name: str, row: Row) -> float | None:
        own = rates.get((name, row.threads, row.isa, row.cap))
        return own or rates.get((name, row.threads, None, row.cap))

    found = {}
    for row in rows:
        compute, memory = rate(row.work.rate, row), rate(row.work.copy, row)
        if compute and memory:
            cap = f" [{row.cap}]" if row.cap else ""
            label = f"{row.work.rate}{cap}, {row.threads} thread{'s' if row.threads > 1 else ''}"
            found[label] = (compute, memory)
    return [(label, *pair) for label, pair in found.items()]


def _name_points(axes, rows: list[Row]) -> None:
    """Names beside the points of whole measures; a name that would cover another moves up."""
    rows = [row for row in rows if "/" not in row.id]
    if not rows:
        return
    points = [(row.work.ops / row.work.bytes, row.work.ops / row.ours.median) for row in rows]
    places = axes.transData.transform(points) * (72 / axes.figure.dpi)
    taken: list[tuple[float, float]] = []
    for (x, y), point, row in sorted(
        zip(places.tolist(), points, rows, strict=True), key=lambda entry: entry[0][1]
    ):
        height = y
        while any(abs(x - left) < 45 and abs(height - low) < 8 for left, low in taken):
            height += 1
        taken.append((x, height))
        axes.annotate(
            row.label,
            point,
            (8, height - y),
            textcoords="offset points",
            fontsize=7,
            va="center",
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.5},
        )


def scaling(rows: list[Row], series: str, name: str) -> str:
    """Rate of ours and of each baseline over x, for the rows of one series."""
    rows = sorted((row for row in rows if row.ours), key=lambda row: row.x)
    counted = all(row.work and row.work.ops for row in rows)
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for label, timing in {"ours": row.ours, **row.baselines}.items():
            value = row.work.ops / timing.median if counted else timing.median
            lines.setdefault(label, []).append((row.x, value))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.5, 3.0))
        for (label, points), color in zip(lines.items(), cycle(LINES)):
            axes.plot(
                *zip(*points, strict=True),
                "o-",
                color=color,
                markersize=4,
                linewidth=1.4,
                label=label,
            )
        if rows and rows[-1].x >= 8 * rows[0].x > 0:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(series)
        axes.set_ylabel(f"{rows[0].work.unit}/s" if counted and rows else "seconds")
        axes.legend(fontsize=8)
        return _svg(figure, name)
