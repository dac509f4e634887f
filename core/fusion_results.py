"""What fusing found: conflicts of task vectors, learned coefficients, and each task's score before and after.

Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from core import children, fusion_plan, views
from core.compare import difference
from core.comparisons import predictions
from core.errors import ConfigurationError
from core.fusion.methods import fusion_methods
from core.home import Home, read_json, write_json
from core.paths import child
from core.records import Records
from core.schema import ModelSpec, RunSpec

if TYPE_CHECKING:
    from storage.queries.runs import RunRow
    from storage.queries.scores import ScoreRow

COLUMNS = (
    "task", "metric", "base", "own", "own_run", "fused", "fused_stderr", "joint", "joint_run", "lost", "lost_stderr",
)  # fmt: skip
FIGURES = ("base", "own", "fused", "joint", "lost")
MEAN = "mean"
CONFLICTS_VERSION = 1  # of what is kept
MOST_JOINT = 200  # runs that are looked through for one trained on all tasks together


@dataclass(frozen=True)
class Conflicts:
    """Of K task vectors at P projections, in float64. Where a vector does not touch one its norm is 0, the rest NaN.

    ``cosine`` and ``disagreement`` (the share of entries, among those non-zero in both, whose signs differ) are
    (P, K, K), ``norms`` (P, K); ``overall_...`` are those of all projections together.
    """

    sources: list[str]
    paths: list[str]
    cosine: np.ndarray
    disagreement: np.ndarray
    norms: np.ndarray
    overall_cosine: np.ndarray
    overall_disagreement: np.ndarray
    overall_norms: np.ndarray

    def frame(self) -> pd.DataFrame:
        """One row for each pair and projection: projection (``all`` first), run, other, cosine, sign_disagreement."""
        places = ["all", *self.paths]
        cosine = np.concatenate([self.overall_cosine[None], self.cosine])
        signs = np.concatenate([self.overall_disagreement[None], self.disagreement])
        rows = [
            (place, self.sources[i], self.sources[j], cosine[p, i, j], signs[p, i, j])
            for p, place in enumerate(places)
            for i in range(len(self.sources))
            for j in range(i + 1, len(self.sources))
        ]
        return pd.DataFrame(rows, columns=["projection", "run", "other", "cosine", "sign_disagreement"])


@dataclass(frozen=True)
class Fusion:
    """A fused run. ``table`` has a row for each task, and their mean last where there are several.

    Its columns: task, metric, base, own (the score of ``own_run``, the fused run's source that knows the task), fused
    with its standard error, joint (of ``joint_run``, trained on all tasks together), and what was lost: fused minus
    own, with the standard error of the paired difference where both answered the same rows.
    """

    run: dict[str, Any]
    sources: list[dict[str, Any]]
    method: dict[str, Any]
    table: pd.DataFrame


def conflicts(names: Sequence[str], home: Home) -> Conflicts:
    """Computed by a child process, and kept until an adapter changes.

    Raises:
        ConfigurationError: fewer than two runs, or runs that cannot be fused.
    """
    if len(names) < 2:
        raise ConfigurationError("Conflicts are between runs, and one alone has none.", "Name two runs or more.")
    found = [fusion_plan.find_source(name, home.runs) for name in names]
    model = next((source.spec.model for source in found if source.spec is not None), ModelSpec())
    for source in found:
        fusion_plan.check_source(source, model)
    given = [
        {"name": s.name, "adapter": str(s.adapter), "task": s.task, "routing": s.routing and str(s.routing)}
        for s in found
    ]
    arguments = {"sources": given, "model": model.model_dump(mode="json")}
    kept = home.cache / f"conflicts-{_key(found, arguments)}.json"
    if not kept.is_file():
        write_json(kept, children.call("core.fusion.conflicts", "measure", **arguments))
    told = read_json(kept)
    parts, everything = told["projections"], told["all"]
    return Conflicts(
        told["runs"],
        [part["path"] for part in parts],
        *(_array([part[name] for part in parts]) for name in ("cosine", "sign", "norm")),
        *(_array(everything[name]) for name in ("cosine", "sign", "norm")),
    )


def _key(sources: Sequence[fusion_plan.SourceRun], arguments: dict[str, Any]) -> str:
    """Changes with every file that is read."""
    files = [file for s in sources for file in (*sorted(s.adapter.iterdir()), *([s.routing] if s.routing else []))]
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    told = json.dumps([CONFLICTS_VERSION, arguments, stamps], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def _array(values: Any) -> np.ndarray:
    return np.array(values, dtype=np.float64)


def tables(records: Records, run: str, name: str) -> list[tuple[int, pd.DataFrame]]:
    """Step and frame, in the order in which a run's job said them."""
    from storage.queries import tables as stored

    with records.read() as session:
        found = stored.read(session, run=run, name=name)
    return [(table.step, pd.DataFrame(table.rows, columns=table.columns)) for table in found]


def fusion(records: Records, home: Home, row: RunRow) -> Fusion:
    """Raises ConfigurationError for a run that was not fused."""
    from storage.queries import runs
    from storage.queries import scores as stored

    spec = RunSpec.parse(row.spec)
    if not spec.sources:
        raise ConfigurationError(f"{row.id} was trained, not fused.", "Fuse it with another: python app.py fuse.")
    names = [name.partition(":")[0] for name in spec.sources]
    with records.read() as session:
        known = {one.id: one for one in runs.present(session, runs=names)}
        joint = _joint(runs.page(session, state="done", base=row.base, limit=MOST_JOINT).rows, row)
        wanted = [row.id, *known, *([joint.id] if joint else [])]
        found = stored.of_runs(session, runs=wanted, primary_only=True)
    scores: dict[str, dict[str, ScoreRow]] = {}
    for score in found:
        if score.model != "base" and score.value is not None:
            scores.setdefault(score.run, {})[_asked(score)] = score
    base = {_asked(s): s for s in found if s.model == "base" and s.value is not None}
    own = _own(spec, known, scores)
    lines = [
        _line(score, base.get(key), own.get(key), scores.get(joint.id, {}).get(key) if joint else None, home)
        for key, score in scores.get(row.id, {}).items()
    ]
    sources = [{"name": name, "run": views.run(known[head]) if head in known else None}
               for name, head in zip(spec.sources, names, strict=True)]  # fmt: skip
    method = fusion_methods().get(spec.method.name)
    described = {
        "name": spec.method.name,
        "title": method.title if method else spec.method.name,
        "badge": (method.badge or None) if method else None,
        "note": method.note if method else "",
        "options": spec.method.options,
    }
    return Fusion(views.run(row), sources, described, _table(lines))


def _joint(candidates: Sequence[RunRow], row: RunRow) -> RunRow | None:
    """The newest run that was trained on exactly the fused run's tasks together."""
    fused = fusion_methods()
    mine = {name for name in row.tasks}
    wanted = (one for one in candidates if one.method not in fused and one.method != "base")
    return next((one for one in wanted if len(mine) > 1 and set(one.tasks) == mine), None)


def _asked(score: ScoreRow) -> str:
    """What was asked, in what way: scores of equal keys and metric are of the same rows."""
    return f"{score.key}/{score.metric}"


def _own(
    spec: RunSpec, known: Mapping[str, RunRow], scores: Mapping[str, Mapping[str, ScoreRow]]
) -> dict[str, ScoreRow]:
    """Each task's score by the first source that was trained on it."""
    found: dict[str, ScoreRow] = {}
    for name in spec.sources:
        head, _, task = name.partition(":")
        trained = set(known[head].tasks) if head in known else set()
        for key, score in scores.get(head, {}).items():
            if task in ("", score.task) and score.task.rpartition("/")[2] in trained:
                found.setdefault(key, score)
    return found


def _line(
    fused: ScoreRow, base: ScoreRow | None, own: ScoreRow | None, joint: ScoreRow | None, home: Home
) -> dict[str, Any]:
    def read(score: ScoreRow) -> Any:
        return predictions(child(home.run(score.run).predictions, Path(score.predictions or "none").name))

    change = difference([fused], [own], read)[0] if own is not None else None
    return {
        "task": fused.task,
        "metric": fused.metric,
        "base": base.value if base else None,
        "own": own.value if own else None,
        "own_run": own.run if own else "",
        "fused": fused.value,
        "fused_stderr": fused.stderr,
        "joint": joint.value if joint else None,
        "joint_run": joint.run if joint else "",
        "lost": fused.value - own.value if own else None,
        "lost_stderr": change.stderr if change else None,
    }


def _table(lines: Sequence[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    numbers = [*FIGURES, "fused_stderr", "lost_stderr"]
    frame[numbers] = frame[numbers].astype(float)
    if len(frame) < 2:
        return frame
    mean: dict[str, Any] = {name: frame[name].mean() if frame[name].notna().all() else None for name in FIGURES}
    for name in ("fused_stderr", "lost_stderr"):  # the tasks are taken as independent of each other
        errors = frame[name]
        mean[name] = math.hypot(*errors) / len(errors) if errors.notna().all() else None
    joint = set(frame["joint_run"])
    mean |= {"task": MEAN, "metric": "", "own_run": "", "joint_run": joint.pop() if len(joint) == 1 else ""}
    return pd.concat([frame, pd.DataFrame([mean], columns=list(COLUMNS)).astype(frame.dtypes)], ignore_index=True)
