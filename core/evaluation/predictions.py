"""What a model answered to each row, and the files that keep it. Imports no torch.

A predictions file is JSON lines, one row each: ``key`` (equal keys: same rows, prompts and scoring, so they can be
paired), ``row`` (index in the split), ``task``, the row's own ``instruction``, ``input``, ``target`` and
``references``, the ``prediction``, and ``values``: metric -> value for this row. Scored options add ``options``,
``sums`` and ``means`` (log-likelihoods, in the options' order).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import DataError, NotFoundError
from core.home import write_text


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer with what it is judged by; ``references`` holds every right answer, the target first.

    ``options``, ``sums`` and ``means`` are empty for generated answers.
    """

    prediction: str
    references: tuple[str, ...]
    options: tuple[str, ...] = ()
    sums: tuple[float, ...] = ()
    means: tuple[float, ...] = ()

    @property
    def target(self) -> str:
        return self.references[0]


def references(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The right answers of a canonical row, its output first, each once."""
    return tuple(dict.fromkeys([row["output"], *(row.get("references") or ())]))


@dataclass(frozen=True)
class Predictions:
    """A predictions file in memory."""

    key: str
    rows: list[int]
    answers: list[Answer]
    values: dict[str, list[float]]  # metric -> one value a row


def write_predictions(
    path: Path,
    key: str,
    rows: Sequence[Mapping[str, Any]],
    answers: Sequence[Answer],
    values: Mapping[str, Sequence[float]],
) -> None:
    """Write one line for each row, the whole file or nothing."""
    lines = []
    for index, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        record: dict[str, Any] = {"key": key, "row": index, "task": row.get("task") or ""}
        record |= {name: row[name] for name in ("system", "instruction", "input", "history") if row.get(name)}
        record |= {"target": answer.target, "references": list(answer.references), "prediction": answer.prediction}
        if answer.options:
            record |= {"options": list(answer.options), "sums": _short(answer.sums), "means": _short(answer.means)}
        record["values"] = {metric: value[index] for metric, value in values.items()}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def read_predictions(path: Path) -> Predictions:
    """Read a predictions file; a missing or broken one raises a StudioError that names it."""
    if not path.is_file():
        raise NotFoundError(f"There are no predictions at {path}.", "Score the run again to make them.")
    try:
        with path.open(encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        answers = [
            Answer(
                r["prediction"], tuple(r["references"]), *(tuple(r.get(n, ())) for n in ("options", "sums", "means"))
            )
            for r in records
        ]
        values = {
            metric: [r["values"][metric] for r in records] for metric in (records[0]["values"] if records else ())
        }
        return Predictions(records[0]["key"] if records else "", [r["row"] for r in records], answers, values)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a predictions file: {error!r}.", "Score the run again to rewrite it."
        ) from error


def _short(values: Sequence[float]) -> list[float]:
    return [round(value, 5) for value in values]
