"""From the rows of a task to its stored facts."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from core.data.kinds import (
    KINDS,
    METRICS,
    Tables,
    TaskInfo,
    chance_level,
    detect_kind,
    labels_of,
    metrics_for,
    metrics_in,
    trivial_score,
)
from core.errors import ConfigurationError


def describe(
    name: str,
    tables: Tables,
    *,
    instruction: str = "",
    kind: str | None = None,
    metric: str = "",
    labels: Sequence[str] = (),
    chance: float | None = None,
    trivial: float | None = None,
    about: dict[str, str] | None = None,
) -> TaskInfo:
    """The facts of one task; what is given wins over what the rows say.

    ``tables`` is split -> rows; ``metric`` may be a metric's name or a phrase that names several.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigurationError(f"{kind!r} is not a kind of task.", f"The kinds are {', '.join(KINDS)}.")
    if metric and not metrics_in(metric):
        known_metric(metric)
    kind = kind or detect_kind(tables, instruction)
    found = labels_of(tables, labels) if kind == "classification" else []
    metrics = metrics_for(kind, tables, metric)
    if kind != "generation" and (first := metrics_in(metric)[:1]) and first[0] in metrics:
        metrics = [first[0], *(m for m in metrics if m != first[0])]
    return TaskInfo(
        name=name,
        kind=kind,
        instruction=instruction,
        metric=metrics[0],
        metrics=metrics,
        labels=found,
        chance=chance_level(kind, tables, found) if chance is None else chance,
        trivial=trivial_score(kind, tables, metrics[0]) if trivial is None else trivial,
        counts={split: len(table) for split, table in tables.items() if len(table)},
        about=about or {},
    )


def fill_choices(info: TaskInfo, table: pa.Table) -> pa.Table:
    """A classification task's rows with its labels as choices where a row lists none."""
    if info.kind != "classification" or not info.labels:
        return table
    index = table.schema.get_field_index("choices")
    field = table.schema.field(index)
    filled = [
        pa.array([row or info.labels for row in batch.column(index).to_pylist()], field.type)
        for batch in table.to_batches(max_chunksize=4096)
    ]
    return table.set_column(index, field, pa.chunked_array(filled, field.type))


def known_metric(name: str) -> str:
    """``name`` if it is a metric's name, else an error with the nearest one."""
    if name in METRICS:
        return name
    near: list[Any] = difflib.get_close_matches(name, METRICS, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"The metrics are {', '.join(METRICS)}."
    raise ConfigurationError(f"{name!r} is not a metric.", hint)
