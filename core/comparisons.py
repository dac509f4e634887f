"""Stored runs side by side: reads what ``core.compare`` puts together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.compare import Column, Comparison, build
from core.errors import ConfigurationError
from core.home import Home
from core.method_facts import badge
from core.paths import child
from core.records import Records
from core.schema import RunSpec

if TYPE_CHECKING:
    from core.evaluation.predictions import Predictions
    from storage.queries.runs import RunRow


def compare(
    records: Records,
    home: Home,
    rows: Sequence[RunRow],
    *,
    baseline: str | None = None,
    group_seeds: bool = True,
    metric: str | None = None,
    every_setting: bool = False,
) -> Comparison:
    """``baseline``: a run's id, whose column the others are compared with, or ``base``.

    ``metric``: one for all tasks instead of each task's primary one; ``every_setting``: equal settings too.
    """
    from storage.queries import scores as stored

    rows = list({row.id: row for row in rows}.values())
    columns = _columns(rows, group_seeds)
    if baseline not in (None, "base"):
        owner = next((column for column in columns if baseline in column.runs), None)
        if owner is None:
            raise ConfigurationError(f"{baseline} is not among the compared runs.", "Name it as one of them too.")
        baseline = owner.label
    with records.read() as session:
        found = stored.of_runs(session, runs=[row.id for row in rows])
    return build(
        columns,
        {row.id: [score for score in found if score.run == row.id] for row in rows},
        lambda score: predictions(child(home.run(score.run).predictions, Path(score.predictions or "none").name)),
        baseline=baseline,
        settings=_settings(rows, columns, group_seeds, every_setting),
        metric=metric,
    )


def _columns(rows: Sequence[RunRow], group_seeds: bool) -> list[Column]:
    groups: dict[str, list[RunRow]] = {}
    for row in rows:
        groups.setdefault(row.setting if group_seeds else row.id, []).append(row)
    return [
        Column(
            f"{own[0].method} {own[0].id}",
            [row.id for row in own],
            own[0].method,
            own[0].trainable_parameters,
            badge(own[0].method),
        )
        for own in groups.values()
    ]


def _settings(
    rows: Sequence[RunRow], columns: Sequence[Column], group_seeds: bool, every: bool
) -> dict[str, list[Any]]:
    from core import overrides

    specs = {row.id: RunSpec.parse(row.spec) for row in rows}
    first = {column.label: specs[column.runs[0]] for column in columns}
    return {
        name: [values[column.label] for column in columns]
        for name, values in overrides.differences(first, every=every).items()
        if name != "seed" or not group_seeds
    }


def predictions(path: Path) -> Predictions:
    """As ``read_predictions``; the files of the last comparisons stay in memory, since pages ask for them again."""
    return _read_once(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=64)
def _read_once(path: Path, _written: int) -> Predictions:
    from core.evaluation.predictions import read_predictions

    return read_predictions(path)
