"""The speeds that are promised, and what measurements say of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.tables import TRAINER, Row, found, measured, ratio, shown

Reports = Mapping[str, dict[str, Any]]  # by name, such as throughput-7b-core
Value = Callable[[Reports], float | None]
NAMES = {"1b": "1B", "7b": "7B"}


@dataclass(frozen=True)
class Target:
    """A figure, what it shall be, and how it is read off; ``beside``: what stands beside the measured value."""

    figure: str
    bound: float
    value: Value
    most: bool = False  # the bound is an upper one
    percent: bool = False
    unit: str = ""
    beside: Callable[[Reports], str] = lambda reports: ""

    def line(self, reports: Reports) -> str:
        value = self.value(reports)
        sign, beside = "at most" if self.most else "at least", self.beside(reports)
        if value is None:
            return f"| {self.figure} | {sign} {self._written(self.bound)} | not measured | |"
        reached = value <= self.bound if self.most else value >= self.bound
        said = self._written(value) + (f" ({beside})" if beside else "")
        return f"| {self.figure} | {sign} {self._written(self.bound)} | {said} | {'yes' if reached else '**no**'} |"

    def _written(self, value: float) -> str:
        if self.percent:
            return f"{value:.0%}"
        return f"{value:.1f} {self.unit}" if self.unit else f"{value:.2f}x"


def rows_of(reports: Reports, shape: str, grid: str) -> list[Row]:
    return reports.get(f"throughput-{shape}-{grid}", {}).get("rows", [])


def against(shape: str, method: str, mode: str, anchor: str, name: str = "tokens_per_s") -> Value:
    """The ratio of two cases of the core grid: the method as the trainer runs it, its steps as CUDA graphs."""

    def value(reports: Reports) -> float | None:
        rows = rows_of(reports, shape, "core")
        return ratio(found(rows, method, TRAINER[mode]), found(rows, anchor, mode), name)

    return value


def recording(shape: str, mode: str) -> Value:
    """The time of a step with recording to one without."""

    def value(reports: Reports) -> float | None:
        rows = rows_of(reports, shape, "core")
        mine = TRAINER[mode]
        return ratio(found(rows, "mosld", mine), found(rows, "mosld", mine, recorder=False), "ms")

    return value


def best_share(reports: Reports, method: str = "mosld") -> Row | None:
    """The compiled case of the 7B shape with the largest share of the card's rate, in the batch of choice."""
    rows = [row for grid in ("core", "batch") for row in measured(rows_of(reports, "7b", grid))]
    mine = [row for row in rows if row["method"] == method and row["mode"] != "eager" and row["share"]]
    mine = [row for row in mine if row["extras"] and row["recorder"]]
    return max(mine, key=lambda row: row["share"], default=None)


def share(reports: Reports) -> float | None:
    best = best_share(reports)
    return None if best is None else best["share"]


def beside_share(reports: Reports) -> str:
    best, base = best_share(reports), best_share(reports, "frozen")
    if best is None or base is None:
        return ""
    return f"{best['rows']} x {best['tokens']}; frozen base {base['share']:.0%}"


def first_step(reports: Reports) -> float | None:
    case = found(rows_of(reports, "7b", "core"), "mosld", "graphs")
    return None if case is None else case["first_step_s"]


def same_call(rows: list[Row], row: Row | None) -> list[Row]:
    """The rows that a row may be compared with: those of its call, where a grid took several."""
    return [other for other in rows if row is not None and other.get("call") == row.get("call")]


def by_method(reports: Reports) -> dict[str, float]:
    """Compiled methods of the 1B shape by their tokens/s relative to MoSLD's of the same call."""
    rows = rows_of(reports, "1b", "methods")
    names = {row["method"] for row in rows} - {"mosld", "frozen", "peft-lora"}
    mine = {name: found(rows, name, "graphs") for name in names}
    values = {name: ratio(row, found(same_call(rows, row), "mosld", "graphs")) for name, row in mine.items()}
    return {name: value for name, value in values.items() if value is not None}


def slowest(reports: Reports) -> str:
    slow = sorted((value, name) for name, value in by_method(reports).items() if value < 0.8)
    return ", ".join(f"{name} {shown(value)}" for value, name in slow)


def many_experts(reports: Reports) -> float | None:
    rows = rows_of(reports, "1b", "experts")
    return ratio(found(rows, "mosld", "graphs", experts=64), found(rows, "mosld", "graphs"))


def on_cpu(count: int) -> Value:
    """MoSLD's step to PEFT LoRA's on the bundled base, both eager: processor time, which other work does not change."""

    def value(reports: Reports) -> float | None:
        rows = rows_of(reports, "base", "experts")
        return ratio(found(rows, "mosld", "eager", experts=count), found(rows, "peft-lora", "eager"), "ms_processor")

    return value


def targets() -> list[Target]:
    found_: list[Target] = []
    for shape, name in NAMES.items():
        found_.append(
            Target(
                f"MoSLD in CUDA graphs / PEFT LoRA r=8 eager, {name}",
                1.15,
                against(shape, "mosld", "eager", "peft-lora"),
            )
        )
        peaks = against(shape, "mosld", "eager", "peft-lora", "peak_gib")
        found_.append(Target(f"peak memory of the same, {name}", 1.02, peaks, most=True))
    for shape, name in NAMES.items():
        value = against(shape, "mosld", "regions", "peft-lora")
        found_.append(Target(f"MoSLD compiled, in CUDA graphs / PEFT LoRA r=8 compiled, {name}", 1.08, value))
    for shape, name in NAMES.items():
        for mode, run in (("eager", "eager"), ("regions", "compiled")):
            value = recording(shape, mode)
            found_.append(Target(f"step with routing recorded / without, {run}, {name}", 1.02, value, most=True))
    to_base = against("7b", "mosld", "regions", "frozen")
    return found_ + [
        Target("MoSLD compiled, in CUDA graphs / frozen base compiled, 7B", 0.90, to_base),
        Target("share of the card's bf16 rate, MoSLD, 7B", 0.60, share, percent=True, beside=beside_share),
        Target("first compiled step, 7B", 40, first_step, most=True, unit="s"),
        Target(
            "slowest method / MoSLD, compiled, 1B", 0.80, lambda r: min(by_method(r).values(), default=None),
            beside=slowest,
        ),
        Target("64 experts / 8 experts, MoSLD compiled, 1B", 0.75, many_experts),
        Target("MoSLD with 8 experts / PEFT LoRA, processor time of a step", 1.35, on_cpu(8), most=True),
        Target("MoSLD with 4 experts / PEFT LoRA, processor time of a step", 1.15, on_cpu(4), most=True),
    ]  # fmt: skip


def target_table(reports: Reports, more: Sequence[Target] = ()) -> str:
    lines = ["| figure | target | measured | reached |", "|---|---:|---:|---|"]
    return "\n".join(lines + [target.line(reports) for target in (*targets(), *more)])
