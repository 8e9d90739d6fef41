"""The bench house: statistics, requirements, checks before timing, report, README tables."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import common  # noqa: E402
import report  # noqa: E402
import rows  # noqa: E402
import timing  # noqa: E402


def timed(median: float) -> timing.Timing:
    return timing.Timing.of([median] * 7)


def row(**fields) -> rows.Row:
    defaults = {"id": "C1", "name": "matmul", "shape": "8x8x8", "dtype": "float32", "threads": 1}
    return rows.Row(**defaults | fields)


# ---- timing ----


def test_timing_is_median_and_quartiles():
    found = timing.Timing.of([5.0, 1.0, 2.0, 3.0, 4.0, 100.0, 6.0])
    assert (found.median, found.best, found.rounds) == (4.0, 1.0, 7)
    assert (found.low, found.high) == (2.5, 5.5)
    assert found.spread == pytest.approx(3.0 / 4.0)


def test_interleave_rotates_the_order_and_fills_the_slice():
    seconds = {"a": 1e-3, "b": 4e-3, "c": 1e-5}
    order = []

    def clock(call, repeats):
        order.append((call, repeats))
        return seconds[call]

    found = timing.interleave({name: name for name in seconds}, 9, slice_s=2e-3, clock=clock)
    assert {name: t.median for name, t in found.items()} == seconds
    assert all(t.repeats * t.median >= 2e-3 and t.rounds == 9 for t in found.values())
    timed_calls = [call for call, _ in order[-27:]]
    turns = ["".join(timed_calls[i : i + 3]) for i in range(0, 27, 3)]
    assert turns == ["abc", "bca", "cab"] * 3


def test_interleave_refuses_few_rounds():
    with pytest.raises(ValueError, match="at least 7"):
        timing.interleave({"a": lambda: None}, rounds=6)


@pytest.mark.parametrize("clock", [timing.wall_clock, timing.thread_clock])
def test_clocks_count_per_call(clock):
    calls = []
    assert clock(lambda: calls.append(sum(range(20000))), 20) > 0
    assert len(calls) == 20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_extra_bytes_sees_a_temporary():
    def call():
        torch.ones(16 << 20).sum()

    call()
    found = timing.peak_extra_bytes(call)
    if found is None:
        pytest.skip("this system does not let a process reset its high-water mark")
    assert 60 << 20 < found < 80 << 20
    assert timing.peak_extra_bytes(lambda: None) < 4 << 20


# ---- rows ----


@pytest.mark.parametrize(
    ("requirement", "fields", "value", "met"),
    [
        ("<= 1.35x", {"baselines": {"torch": timed(2e-3)}}, 0.5, True),
        ("<= 0.4x", {"baselines": {"torch": timed(2e-3)}}, 0.5, False),
        (">= 150x", {"baselines": {"torch": timed(2e-1)}}, 200, True),
        (">= 201x", {"baselines": {"torch": timed(2e-1)}}, 200, False),
        ("<= 15 us", {}, 1000, False),
        (">= 50%", {"floor": 4e-4}, 40, False),
        (">= 3 GMAC/s", {"work": rows.Work(ops=4e6)}, 4, True),
        (">= 5 MB/s", {"work": rows.Work(bytes=4e3)}, 4, False),
        ("<= 32 MiB", {"value": 12.0}, 12, True),
    ],
)
def test_requirement_is_judged(requirement, fields, value, met):
    settled = row(ours=timed(1e-3), requirement=requirement, **fields).settle()
    assert settled.value == pytest.approx(value)
    assert settled.met is met
    assert (rows.Requirement.parse(requirement).margin(settled.value) >= 1) is met


@pytest.mark.parametrize("text", ["< 1x", "1.35x", "<= x", ">= 3 GMAC/s please"])
def test_unreadable_requirement_is_refused(text):
    with pytest.raises(ValueError, match="cannot read"):
        rows.Requirement.parse(text)


def test_row_survives_json():
    full = row(ours=timed(1e-3), baselines={"torch": timed(2e-3)}, work=rows.Work(ops=8, bytes=9))
    full.settle()
    assert rows.Row.from_json(json.loads(json.dumps(full.to_json()))) == full


def test_table_is_aligned_and_keeps_losing_rows():
    lost = row(ours=timed(3e-3), baselines={"torch": timed(1e-3), "plain": timed(9e-2)})
    lost.requirement = "<= 1.35x"
    lines = rows.text_table([lost.settle(), row(id="G5", note="needs a GPU")]).splitlines()
    assert lines[2].split()[0] == "C1"
    assert "3.00x" in lines[2]
    assert lines[2].endswith("NO")
    assert lines[3].index("plain") == lines[0].index("baseline")
    assert "0.03x" in lines[3]
    assert lines[-1] == "G5: needs a GPU"


# ---- running ----


@pytest.mark.parametrize(
    ("got", "want", "bound", "error"),
    [
        ([1.0, float("nan")], [1.0, float("nan")], 0.0, None),
        ([1.0, float("inf")], [1.0, float("inf")], 0.0, None),
        ([1.0, 2.0], [1.0, 2.1], 0.2, None),
        ([1.0, 2.0], [1.0, 2.1], 0.05, "1 of 2 values off"),
        ([1.0, float("nan")], [1.0, 2.0], 9.0, "1 of 2 values off"),
        ([1.0, 2.0], [1.0, float("nan")], 9.0, "1 of 2 values off"),
        ([1.0], [1.0, 2.0], 9.0, "shape"),
    ],
)
def test_check_close(got, want, bound, error):
    got, want = torch.tensor(got), torch.tensor(want)
    if error is None:
        common.check_close(got, want, bound)
    else:
        with pytest.raises(common.WrongResult, match=error):
            common.check_close(got, want, bound)


@pytest.fixture
def bench(monkeypatch):
    """A bench without probes that cost time, and without a second, capped process."""
    monkeypatch.setattr(common.machine, "caps_below_this_cpu", list)
    probe = common.machine.Probe("MAC", lambda threads: (2e9 * threads, "a constant"))
    return common.Bench("sample", "A sample.", {"fma": probe, "copy": probe})


def test_wrong_kernel_is_not_timed_and_the_rest_still_runs(bench, tmp_path, capsys):
    calls = []

    def compare(run, id, got):
        run.compare(
            id,
            "add",
            shape="1",
            dtype="float32",
            ours=lambda: calls.append(id),
            baselines={"torch": lambda: None},
            check=lambda: common.check_close(torch.tensor([got]), torch.tensor([2.0])),
        )

    bench.measure("wrong")(lambda run: compare(run, "wrong", 3.0))
    bench.measure("broken")(lambda run: {}["absent"])
    bench.measure("right")(lambda run: compare(run, "right", 2.0))

    def absent(run):
        raise common.Unavailable("needs a CUDA device")

    bench.measure("absent")(absent)
    assert bench.main(["--quick", "--json", str(tmp_path / "out.json")]) == 1
    assert set(calls) == {"right"}
    found = {r.id: r for r in report.read_result(tmp_path / "out.json")["rows"]}
    assert found["wrong"].ours is None
    assert "wrong result: 1 of 1" in found["wrong"].error
    assert found["broken"].error == "KeyError: 'absent'"
    assert found["right"].ours.rounds >= 7
    assert (found["absent"].note, found["absent"].error) == ("needs a CUDA device", None)
    assert "ERROR" in capsys.readouterr().out


def test_levels_only_and_floor(bench, tmp_path):
    def one(run):
        work = common.Work(ops=2e6, bytes=1e3)
        silent = {"shape": "", "dtype": "", "check": lambda: None}
        run.compare("one", "one", ours=lambda: None, work=work, threads=2, **silent)

    bench.measure("one", level="full")(one)
    bench.measure("two")(lambda run: run.record(row(id="two")))
    file = tmp_path / "out.json"
    ids = []
    for arguments in (["--quick"], ["--full"], ["--only", "one"]):
        assert bench.main([*arguments, "--json", str(file)]) == 0
        result = report.read_result(file)
        ids.append([r.id for r in result["rows"]])
    assert ids == [["two"], ["one", "two"], ["one"]]
    # Two million operations at the constant rate of two threads.
    assert result["rows"][0].floor == pytest.approx(2e6 / 4e9)
    assert [(peak["name"], peak["threads"]) for peak in result["peaks"]] == [
        ("fma", 2),
        ("copy", 2),
    ]


@pytest.mark.parametrize(
    "arguments", [["--only", "C99"], ["--threads", "0"], ["--quick", "--full"]]
)
def test_bad_options_are_refused(bench, arguments):
    with pytest.raises(SystemExit):
        bench.main(arguments)


def test_lmul_bench_runs(tmp_path):
    file = tmp_path / "lmul.json"
    command = [sys.executable, str(BENCH / "lmul.py"), "--quick", "--only", "call", "C5"]
    done = subprocess.run(
        [*command, "--json", str(file)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = report.read_result(file)
    assert result["core"] == "lmul"
    assert {"C5", "call/mul", "call/matmul"} == {r.id for r in result["rows"]}
    assert all(r.error is None for r in result["rows"])
    assert "call/mul" in done.stdout
    # What is committed from here must not tell where it ran.
    assert str(Path.home()) not in file.read_text()
    assert str(tmp_path) not in file.read_text()


# ---- report ----


@pytest.fixture
def result_file(tmp_path):
    """A result with everything a bench can write: met, missed, failed, not run, swept, capped."""
    work = rows.Work(ops=1e6, bytes=1e4)
    sample = [
        row(
            ours=timed(1e-3),
            baselines={"torch <fp32>": timed(2e-3), "fast": timed(5e-4)},
            requirement="<= 1.35x",
            headline=True,
        ),
        row(id="C3", ours=timed(9e-3), baselines={"a|b": timed(2e-3)}, requirement="<= 3.0x"),
        row(id="C4", requirement="<= 2.4x", error="wrong result: <1 of 2>"),
        row(
            id="C5", ours=timed(1e-3), baselines={"b": timed(1e-3)}, cap="avx2", requirement="<= 2x"
        ),
        row(id="G5", note="needs a CUDA device"),
    ]
    for x in (256, 512, 4096):
        swept = {"series": "size", "x": x, "ours": timed(x * 1e-6)}
        sample.append(row(id="sizes", baselines={"torch": timed(x * 2e-6)}, **swept))
    for one in sample:
        one.work = one.ours and work
        one.floor = one.ours and 5e-4
        one.isa = "avx2"
        one.settle()
    rates = (("fma", 1e9, "MAC"), ("copy", 1e9, "B"))
    isa = {"fma": "avx2", "copy": None}
    peaks = [
        {"name": n, "rate": rate, "unit": u, "how": "", "threads": 1, "isa": isa[n], "cap": cap}
        for n, rate, u in rates
        for cap in (None, "avx2")
    ]
    system = {
        "cpu": "A <CPU>",
        "caches": {"L1": "32K"},
        "isa": "avx2",
        "gpu": None,
        "threads": 1,
        "torch": "2.11",
        "commit": "0123456789ab",
        "dirty": False,
    }
    file = tmp_path / "sample.json"
    file.write_text(
        json.dumps(
            {
                "schema": rows.SCHEMA,
                "core": "lmul",
                "taken": "2026-01-01T00:00:00+00:00",
                "level": "full",
                "system": system,
                "peaks": peaks,
                "rows": [one.to_json() for one in sample],
            }
        )
    )
    return file


def test_page_stands_alone_and_shows_every_row(result_file, tmp_path):
    pytest.importorskip("matplotlib", reason="the page's figures need the extra: bench")
    page_file = tmp_path / "report.html"
    assert report.main([str(result_file), "--html", str(page_file)]) == 0
    page = page_file.read_text()
    for text in ("C1", "C3", "C4", "C5 [avx2]", "G5", "sizes", "needs a CUDA device"):
        assert f"{text}</td>" in page or text in page
    assert "A &lt;CPU&gt;" in page
    assert "torch &lt;fp32&gt;" in page
    assert "<fp32>" not in page
    # Margins, roofline and one series.
    assert page.count("<svg") == page.count("</svg>") == 3
    # Namespaces are the only addresses: nothing is loaded.
    assert not re.search(r'(?:src|(?<!:)href)="(?!#)|@import|url\((?!#)', page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', page)) <= set(ids)


def test_readme_tables_are_refreshed_and_stay(result_file, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("top\n<!-- bench:lmul -->\nold\n<!-- /bench:lmul -->\nbottom\n")
    assert report.main([str(result_file), "--readme", str(readme)]) == 0
    once = readme.read_text()
    assert once.startswith("top\n<!-- bench:lmul -->\n|")
    assert once.endswith("<!-- /bench:lmul -->\nbottom\n")
    assert "old" not in once
    lines = [line for line in once.splitlines() if line.startswith("| C")]
    assert [line.split(" | ")[0] for line in lines] == ["| C1", "| C3", "| C4", "| C5 [avx2]"]
    assert [line.split(" | ")[-1] for line in lines] == ["yes |", "NO |", "ERROR |", "yes |"]
    assert r"a\|b" in once
    assert report.main([str(result_file), "--readme", str(readme)]) == 0
    assert readme.read_text() == once


def test_readme_summary_is_optional_and_has_every_baseline(result_file, tmp_path):
    readme = tmp_path / "README.md"
    markers = "<!-- bench:lmul-summary -->\n<!-- /bench:lmul-summary -->\n"
    readme.write_text(f"{markers}<!-- bench:lmul -->\n<!-- /bench:lmul -->\n")
    for _ in range(2):
        assert report.main([str(result_file), "--readme", str(readme)]) == 0
    text = readme.read_text()
    summary = text[: text.index("<!-- /bench:lmul-summary -->")]
    lines = [line for line in summary.splitlines() if line.startswith("|")][2:]
    assert [line.split(" | ")[3:] for line in lines] == [
        ["torch <fp32>", "2 ms", "2x faster |"],
        ["fast", "500 us", "2x slower |"],
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("no markers", "<!-- bench:lmul -->"),
        ("<!-- bench:lmul -->", "<!-- /bench:lmul -->"),
        ("<!-- /bench:lmul --><!-- bench:lmul -->", "<!-- /bench:lmul -->"),
    ],
)
def test_missing_marker_is_named(result_file, tmp_path, capsys, text, named):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    assert report.main([str(result_file), "--readme", str(readme)]) == 1
    assert f"marker {named}" in capsys.readouterr().err
    assert readme.read_text() == text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 0}'])
def test_foreign_file_is_refused(tmp_path, capsys, text):
    file = tmp_path / "foreign.json"
    file.write_text(text)
    assert report.main([str(file), "--readme", str(tmp_path / "README.md")]) == 1
    assert "foreign.json" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted((BENCH / "results").glob("*.json")), ids=lambda f: f.name)
def test_committed_results_can_be_read(file):
    result = report.read_result(file)
    assert result["rows"]
    assert result["system"]["cpu"]
