"""Tables of measured cases, with ratios to the anchors of the same call."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
PLAINLY = {"captured": "eager", "graphs": "regions"}  # how others run what the trainer runs so
SAME = ("rows", "tokens", "checkpointing")  # what two cases must share to be compared
PLAIN = {"experts": 8, "rank": 8, "extras": True, "recorder": True}
MODES = {
    "eager": "eager", "captured": "CUDA graphs", "regions": "compiled", "graphs": "compiled, CUDA graphs",
    "whole": "compiled whole",
}  # fmt: skip
TRAINER = {"eager": "captured", "regions": "graphs"}  # how the studio's trainer runs what others run so


def measured(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if "ms" in row]


def found(rows: Sequence[Row], method: str, mode: str, like: Row | None = None, **facts: Any) -> Row | None:
    """The case of a method; of one that was measured several times, with the median of its times.

    ``like``: a case whose batch and checkpointing it has to share.
    """
    wanted = {"method": method, "mode": mode} | PLAIN | facts | ({name: like[name] for name in SAME} if like else {})
    mine = [row for row in measured(rows) if all(row[name] == value for name, value in wanted.items())]
    if not mine:
        return None
    return mine[0] | {name: statistics.median(row[name] for row in mine) for name in ("ms", "tokens_per_s")}


def as_run(rows: Sequence[Row], method: str, kind: str, **facts: Any) -> Row | None:
    """A method not compiled (``eager``) or compiled (``regions``), with its steps as CUDA graphs where it was."""
    return found(rows, method, TRAINER[kind], **facts) or found(rows, method, kind, **facts)


def ratio(one: Row | None, other: Row | None, name: str = "tokens_per_s") -> float | None:
    if one is None or other is None or not one.get(name) or not other.get(name):
        return None
    return one[name] / other[name]


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line for each case. Ratios are of tokens/s, except that of the peaks (to PEFT LoRA of its kind)."""
    on_cpu = any("ms_processor" in row for row in rows)
    lines = [
        "| case | run | batch | ms a step (least to most) | issued, ms | tokens/s | to PEFT LoRA eager | to PEFT LoRA "
        "compiled | to frozen compiled | "
        + ("processor, ms |" if on_cpu else "peak, GiB | to PEFT LoRA's | waits |")
        + " trainable | first step, s | TFLOP/s | share |",
    ]
    lines.append("|---|---|---|" + "---:|" * (lines[0].count("|") - 4))
    return "\n".join([*lines, *(_line(row, rows, on_cpu) for row in rows)])


def _line(row: Row, rows: Sequence[Row], on_cpu: bool) -> str:
    broken = row.get("breaks")
    run = MODES[row["mode"]] + (f", {row['breaks']} graph breaks" if broken else "")
    head = f"| {row['label']} | {run} | {row['rows']} x {row['tokens']} |"
    if "error" in row:
        return f"{head} {row['error'].replace('|', '/')} |"
    anchors = [("peft-lora", "eager"), ("peft-lora", "regions"), ("frozen", "regions")]
    cells = [
        f"{row['ms']:.1f} ({row['ms_least']:.1f} to {row['ms_most']:.1f})",
        f"{row['ms_issued']:.1f}",
        f"{row['tokens_per_s']:,.0f}",
        *(shown(ratio(row, found(rows, method, mode, row))) for method, mode in anchors),
    ]
    if on_cpu:
        cells.append(f"{row['ms_processor']:.1f}")
    else:
        lora = found(rows, "peft-lora", PLAINLY.get(row["mode"], row["mode"]), row)
        cells += [f"{row['peak_gib']:.2f}", shown(ratio(row, lora, "peak_gib")), str(row["waits"])]
    cells += [f"{row['trainable']:,}", shown(row["first_step_s"], 1), shown(row["tflops"], 0)]
    cells.append(f"{row['share']:.0%}" if row["share"] else "-")
    return f"{head} {' | '.join(cells)} |"


def shown(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
