"""Scores per task: runs against the untouched base and chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from core.errors import NotFoundError

BASE = "untouched base"


def score_rows(scores: Any) -> pd.DataFrame:
    """Primary scores as a frame with run, task, metric, value, stderr, chance; the base's rows are named ``BASE``.

    ``scores``: a frame or a list of dicts with ``run``, ``task``, ``model`` (adapter or base), ``metric``, ``value``
    and, where known, ``stderr``, ``chance`` and ``primary``. The base is kept once for each task.
    """
    frame = pd.DataFrame(scores)
    if not len(frame):
        raise NotFoundError("There are no scores yet.", "Wait until a run has finished, or start a score job.")
    for name in ("stderr", "chance"):
        frame[name] = pd.to_numeric(frame[name], errors="coerce") if name in frame else np.nan
    if "primary" in frame:
        frame = frame[frame["primary"].astype(bool)]
    model = frame["model"] if "model" in frame else pd.Series("adapter", index=frame.index)
    frame = frame.assign(run=frame["run"].astype(str).where(model != "base", BASE))
    return frame.drop_duplicates(["run", "task"], keep="last").reset_index(drop=True)


def offsets(count: int, reach: float = 0.26) -> list[float]:
    """Where ``count`` dots of one task stand around its line, first on top."""
    return [0.0] if count == 1 else [float(v) for v in np.linspace(reach, -reach, count)]
