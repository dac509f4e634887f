"""Writes the measured parts of docs/benchmarks.md: tables, figures and what was promised beside what was reached.

    python -m benchmarks.speed_page [--from out/benchmarks] [--out out/benchmarks]

Measurements found in ``--from`` (what throughput, end_to_end, scoring, chat and study write) are copied to
docs/measurements first and take the place of earlier ones of that name; the page is made of all that lie there.
Pictures go to docs/figures, and the same charts as one Plotly page to ``--out``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.charts import Chart, Line, plotly, static
from benchmarks.other_targets import OTHERS
from benchmarks.tables import TRAINER, Row, as_run, found, measured, ratio, shown, table
from benchmarks.targets import rows_of, same_call, target_table
from core.figures.export import write_html
from core.home import PROJECT, write_text

BLOCK = re.compile(r"(<!-- ([\w-]+): written by python -m benchmarks\.speed_page -->\n).*?(<!-- end -->)", re.S)
KNOWN = ("throughput-", "end_to_end", "scoring-", "chat-", "study", "demo")
PLAIN = {"eager": "not compiled", "regions": "compiled"}
SHOWN = {"peft-lora": "PEFT LoRA", "mosld": "MoSLD", "frozen": "frozen base"}
Reports = Mapping[str, dict[str, Any]]


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """By name; files of several lines become ``{"lines": [...]}``."""
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}
    for path in sorted(folder.glob("*.jsonl")):
        found[path.stem] = {"lines": [json.loads(line) for line in path.read_text("utf-8").splitlines()]}
    return {name: report for name, report in found.items() if name.startswith(KNOWN)}


def blocks(reports: Reports) -> dict[str, str]:
    """The text of each block by its name; a grid that was not measured says so."""
    made = {"targets": target_table(reports, OTHERS)} | _others(reports)
    for name, report in reports.items():
        if "rows" in report and name.startswith("throughput-"):
            made[name.removeprefix("throughput-")] = f"{_head(report)}\n\n{_table(report)}"
    return made


def _others(reports: Reports) -> dict[str, str]:
    """The tables of the other benchmarks, by the functions that print them there."""
    from benchmarks import chat, end_to_end, scoring, study

    made = {}
    for name, report in reports.items():
        if name == "end_to_end":
            made[name] = f"{_versions(report['lines'][0])}\n\n{end_to_end.table(report['lines'][1:]).rstrip()}"
        elif name == "study":
            made[name] = study.table(report["lines"], "one device").rstrip()
        elif name.startswith("scoring-"):
            made[name] = f"{_versions(report['machine'])}\n\n{scoring.table(report['rows'], report['equal'])}"
        elif name.startswith("chat-"):
            made[name] = f"{_versions(report)}\n\n{chat.table(report['cases'])}"
    return made


def _versions(facts: dict[str, Any]) -> str:
    names = ("device", "python", "torch", "transformers", "peft", "trl", "lm_eval")
    said = [str(facts[name]) if name == "device" else f"{name} {facts[name]}" for name in names if name in facts]
    return ", ".join(said) + "."


def _head(report: dict[str, Any]) -> str:
    rate = report.get("matrix_tflops")
    said = f"`{report['command']}`; {report['device']}, Python {report['python']}, torch {report['torch']}, "
    said += f"transformers {report['transformers']}, peft {report['peft']}; medians of {report['steps']} steps"
    return said + (f"; bfloat16 product of the same call: {rate} TFLOP/s." if rate else ".")


def _table(report: dict[str, Any]) -> str:
    return method_table(report["rows"]) if report["grid"] == "methods" else table(report["rows"])


def method_table(rows: list[Row]) -> str:
    """One line for each method, eager and compiled beside each other."""
    lines = [
        "| method | trainable | eager, ms | to PEFT LoRA | compiled, ms | to PEFT LoRA | to MoSLD | peak, GiB | "
        "compiled, GiB |",
        "|---|" + "---:|" * 8,
    ]
    for name in dict.fromkeys(row["method"] for row in rows):
        call = same_call(rows, next(row for row in rows if row["method"] == name))
        eager, regions = as_run(call, name, "eager"), as_run(call, name, "regions")
        some = eager or regions
        if some is None:
            error = next(row["error"] for row in call if row["method"] == name)
            lines.append(f"| {name} | {error.replace('|', '/')} |")
            continue
        cells = [f"{some['trainable']:,}"]
        for case, mode in ((eager, "eager"), (regions, "regions")):
            cells += [shown(case and case["ms"], 1), shown(ratio(case, found(call, "peft-lora", mode)))]
        cells.append(shown(ratio(regions, as_run(call, "mosld", "regions"))))
        cells += [shown(case and case.get("peak_gib")) for case in (eager, regions)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def charts(reports: Reports, shape: str) -> dict[str, list[Chart]]:
    """Pictures by name: charts that stand side by side."""
    curves = [_over(rows_of(reports, shape, grid), grid) for grid in ("experts", "rank")]
    made = {"curves": [chart for chart in curves if chart.lines]}
    lengths = _over(rows_of(reports, shape, "sequence"), "tokens")
    made["sequence"] = [lengths] if lengths.lines else []
    bars = _methods(rows_of(reports, shape, "methods"))
    made["methods"] = [bars] if any(line.y for line in bars.lines) else []
    return {name: some for name, some in made.items() if some}


def _over(rows: list[Row], over: str) -> Chart:
    """Tokens/s against a number; of experts and ranks relative to PEFT LoRA r=8 in the same kind of run."""
    relative = over != "tokens"
    lines = []
    for colour, (method, mode) in enumerate((m, k) for m in SHOWN for k in PLAIN):
        kinds = (mode,) if method in ("peft-lora", "frozen") else (TRAINER[mode],)
        mine = [row for row in measured(rows) if row["method"] == method and row["mode"] in kinds]
        points = {}
        for row in mine:
            anchor = found(rows, "peft-lora", mode)
            points[row[over]] = ratio(row, anchor) if relative else row["tokens_per_s"]
        points = {x: y for x, y in sorted(points.items()) if y is not None}
        if len(points) > 1:
            name = f"{SHOWN[method]}, {PLAIN[mode]}"
            lines.append(Line(name, list(points), list(points.values()), colour // 2, mode == "eager"))
    up = "tokens/s relative to PEFT LoRA r=8" if relative else "tokens/s"
    across = {"tokens": "tokens in a row", "experts": "experts", "rank": "rank"}[over]
    return Chart(f"Training speed by {across}", across, up, lines)


def _methods(rows: list[Row]) -> Chart:
    regions = {name: as_run(rows, name, "regions") for name in dict.fromkeys(row["method"] for row in rows)}
    anchor = {mode: found(rows, "peft-lora", mode) for mode in PLAIN}
    names = [name for name, row in regions.items() if row is not None]
    names.sort(key=lambda name: -regions[name]["tokens_per_s"])
    lines = []
    for mode in PLAIN:
        values = {i: ratio(as_run(rows, name, mode), anchor[mode]) for i, name in enumerate(names)}
        values = {i: value for i, value in values.items() if value is not None}
        lines.append(Line(PLAIN[mode], list(values), list(values.values()), 0, mode == "eager"))
    up = "tokens/s relative to PEFT LoRA r=8 in the same kind of run"
    return Chart("Training speed by method", "method", up, lines, names)


def write(measurements: Path, docs: Path, out: Path | None = None) -> Path:
    """Rewrite the blocks of docs/benchmarks.md from the files in ``measurements``."""
    reports = read(measurements)
    made = blocks(reports)
    drawn = []
    for shape in ("1b", "7b"):
        for name, some in charts(reports, shape).items():
            picture = static(some, docs / "figures" / f"speed-{shape}-{name}.png")
            made[f"{name}-{shape}-figure"] = f"![{some[0].title}](figures/{picture.name})"
            drawn += some
    if out is not None and drawn:
        write_html([plotly(chart) for chart in drawn], out / "throughput.html", title="Training throughput")
    page = docs / "benchmarks.md"

    def filled(match: re.Match[str]) -> str:
        return match[1] + made.get(match[2], "Not measured yet.") + "\n" + match[3]

    write_text(page, BLOCK.sub(filled, page.read_text("utf-8")))
    return page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    told = parser.parse_args()
    measurements = PROJECT / "docs" / "measurements"
    measurements.mkdir(exist_ok=True)
    for path in sorted(told.source.glob("*.json*")):
        if path.stem.startswith(KNOWN):
            write_text(measurements / path.name, path.read_text("utf-8"))
    print(write(measurements, PROJECT / "docs", told.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
