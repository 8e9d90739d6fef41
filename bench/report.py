"""Turn the JSON files of the benches into one HTML page, and refresh the README's tables.

    python bench/report.py bench/results/*.json --html report.html
    python bench/report.py bench/results/*.json --readme README.md

The page stands alone: no network, figures inline. --readme replaces, for every core in the files,
what stands between <!-- bench:CORE --> and <!-- /bench:CORE -->, and between
<!-- bench:CORE-summary --> and <!-- /bench:CORE-summary --> where the README has that.
"""

from __future__ import annotations

import argparse
import json
import sys
from html import escape
from pathlib import Path

from rows import (
    COLUMNS,
    NUMERIC,
    SCHEMA,
    Row,
    cells,
    show_met,
    show_peak,
    show_time,
    show_value,
)

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; background: #fff;
       max-width: 76rem; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin-bottom: 0; }
h2 { margin-top: 3rem; border-bottom: 2px solid #1f2933; padding-bottom: .2rem; }
h3 { margin: 2rem 0 .4rem; }
p, figcaption, .facts { color: #52606d; max-width: 52rem; }
.facts { font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th { text-align: left; border-bottom: 1px solid #9aa5b1; }
th, td { padding: .22rem .7rem .22rem 0; white-space: nowrap; vertical-align: top; }
tr.row td { border-top: 1px solid #e4e7eb; }
.number { text-align: right; }
.yes { color: #2f7d5b; } .NO, .ERROR { color: #c2452d; font-weight: 600; }
figure { margin: 1rem 0 2rem; } svg { max-width: 100%; height: auto; }
"""

INTRO = (
    "Every result was checked before it was timed. Ours and the baselines ran interleaved in one "
    "process; a time is the median over the rounds, ± half the interquartile range. In x, "
    '"&lt;=" is our time over the first baseline\'s and "&gt;=" the baseline\'s over ours. '
    "Floor is max(operations / peak rate, bytes / bandwidth) as a share of our time, both peaks "
    "measured in the same run. Rows marked [avx2] hold torch and ours to AVX2."
)


class ReportError(Exception):
    """A file that cannot be read as a result, or a README without its markers."""


def read_result(file: Path) -> dict:
    """One JSON file of a bench, rows parsed."""
    try:
        result = json.loads(file.read_text())
        schema = result["schema"]
    except (ValueError, KeyError, TypeError) as wrong:
        raise ReportError(f"{file.name}: not a result of a bench ({wrong})") from None
    if schema != SCHEMA:
        raise ReportError(f"{file.name}: schema {schema}, expected {SCHEMA}; run the bench again")
    result["rows"] = [Row.from_json(fields) for fields in result["rows"]]
    return result


def by_core(results: list[dict]) -> dict[str, list[dict]]:
    cores: dict[str, list[dict]] = {}
    for result in results:
        cores.setdefault(result["core"], []).append(result)
    return cores


def taken_on(result: dict) -> str:
    """Where and with what a result was measured, in one line."""
    system = result["system"]
    caches = ", ".join(f"{level} {size}" for level, size in system["caches"].items())
    parts = [system["cpu"] + (f" ({caches})" if caches else ""), f"ISA {system['isa']}"]
    parts += [system["gpu"]] if system["gpu"] else []
    parts.append(f"{system['threads']} thread{'s' if system['threads'] > 1 else ''} unless said")
    parts.append(f"torch {system['torch']}")
    if system["commit"]:
        parts.append(f"commit {system['commit']}{' + changes' if system['dirty'] else ''}")
    return "; ".join([*parts, result["taken"][:10]])


def html_table(rows: list[Row]) -> str:
    numbers = [' class="number"' if name in NUMERIC else "" for name in COLUMNS]
    head = "".join(f"<th{n}>{escape(c)}</th>" for n, c in zip(numbers, COLUMNS, strict=True))
    body = []
    for row in rows:
        for index, line in enumerate(cells(row)):
            tds = [f"<td{n}>{escape(c)}</td>" for n, c in zip(numbers, line, strict=True)]
            if index == 0:
                tds[-1] = f'<td class="{show_met(row)}">{show_met(row)}</td>'
            kind = ' class="row"' if index == 0 else ""
            body.append(f"<tr{kind}>{''.join(tds)}</tr>")
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(body)}</table></div>'


def html_result(result: dict, name: str) -> str:
    """Facts, table and figures of one result."""
    import plots

    rows, peaks = result["rows"], result["peaks"]
    parts = [f'<p class="facts">{escape(taken_on(result))}. {INTRO}</p>', html_table(rows)]
    said = dict.fromkeys(f"{r.id}: {r.error or r.note}" for r in rows if r.error or r.note)
    parts += [f'<p class="facts">{escape(text)}</p>' for text in said]
    ceilings = "; ".join(show_peak(peak) for peak in peaks)
    figures = [
        ("Requirements", "Green is met, red is missed.", plots.margins(rows, f"{name}-margins")),
        ("Roofline", f"Ceilings: {ceilings}.", plots.roofline(rows, peaks, f"{name}-roofline")),
    ]
    for series in dict.fromkeys(row.series for row in rows if row.series):
        members = [row for row in rows if row.series == series]
        caption = f"{members[0].name.split(',')[0]}, rate over {series}."
        figures.append(
            (f"By {series}", caption, plots.scaling(members, series, f"{name}-{series}"))
        )
    for title, caption, svg in figures:
        if svg:
            parts.append(
                f"<h3>{escape(title)}</h3><figure>{svg}"
                f"<figcaption>{escape(caption)}</figcaption></figure>"
            )
    return "\n".join(parts)


def html_page(results: list[dict]) -> str:
    sections = []
    for core, own in by_core(results).items():
        sections.append(f"<h2>{escape(core)}</h2>")
        sections += [html_result(result, f"{core}-{n}") for n, result in enumerate(own)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>nnkernels: measurements</title><style>{STYLE}</style></head><body>"
        f"<h1>nnkernels: measurements</h1>{''.join(sections)}</body></html>\n"
    )


def markdown(head: list[str], lines: list[list[str]], result: dict) -> str:
    """A table with the line that says where it was measured."""
    rule = ["---"] * len(head)
    table = ["| " + " | ".join(text.replace("|", r"\|") for text in line) + " |" for line in lines]
    top = [f"| {' | '.join(line)} |" for line in (head, rule)]
    return "\n".join([*top, *table, "", f"{taken_on(result)}."])


def markdown_table(result: dict) -> str:
    """The rows that answer a requirement, losing ones too."""
    head = ["", "what", "shape", "ours", "beside", "its time", "result", "asked", "met"]
    lines = []
    for row in result["rows"]:
        if not row.requirement:
            continue
        first = next(iter(row.baselines), "")
        lines.append(
            [
                row.label,
                row.name,
                f"{row.shape} {row.dtype}",
                show_time(row.ours.median) if row.ours else "",
                first,
                show_time(row.baselines[first].median) if first else "",
                show_value(row.value, row.unit),
                row.requirement,
                show_met(row) or "not run",
            ]
        )
    return markdown(head, lines, result)


def markdown_summary(result: dict) -> str:
    """The headline rows beside all their baselines."""
    head = ["what", "shape", "ours", "beside", "its time", "ours is"]
    lines = []
    for row in result["rows"]:
        if not (row.headline and row.ours) or row.cap:
            continue
        what = [row.name, f"{row.shape} {row.dtype}", show_time(row.ours.median)]
        for name, theirs in row.baselines.items():
            speed = theirs.median / row.ours.median
            said = f"{speed:.3g}x faster" if speed >= 1 else f"{1 / speed:.3g}x slower"
            lines.append([*what, name, show_time(theirs.median), said])
            what = [""] * len(what)
    return markdown(head, lines, result)


def refresh(text: str, name: str, table: str) -> str:
    """`text` with `table` between the markers of `name`; what stood there goes."""
    start, stop = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    for marker in (start, stop):
        if text.count(marker) != 1:
            raise ReportError(f"marker {marker} stands {text.count(marker)} times, expected once")
    before, rest = text.split(start)
    if stop not in rest:
        raise ReportError(f"marker {stop} stands before {start}")
    after = rest.split(stop)[1]
    return f"{before}{start}\n{table}\n{stop}{after}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of the benches")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page here")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="refresh the tables of this")
    options = parser.parse_args(arguments)
    if not (options.html or options.readme):
        parser.error("nothing to do: give --html FILE, --readme FILE or both")
    try:
        results = [read_result(file) for file in options.results]
        if options.html:
            options.html.write_text(html_page(results))
        if options.readme:
            text = options.readme.read_text()
            for core, own in by_core(results).items():
                text = refresh(text, core, "\n\n".join(map(markdown_table, own)))
                if f"bench:{core}-summary " in text:
                    summary = "\n\n".join(map(markdown_summary, own))
                    text = refresh(text, f"{core}-summary", summary)
            options.readme.write_text(text)
    except (ReportError, OSError) as failure:
        print(f"report: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
