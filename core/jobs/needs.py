"""How much of a GPU's memory a job will take: as jobs like it took, else as it was estimated. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from core.memory import CONTEXT, claimed
from storage.queries import attempts

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from storage.models import Job, Run

MEASURED = 1.1  # head-room: rows are drawn anew
WEIGHTLESS = {  # settings of training that do not shape its peak; the number of steps decides what is compiled
    "learning_rate", "schedule", "warmup", "weight_decay", "max_grad_norm", "sampling", "temperature", "log_every",
    "evaluate_every", "checkpoint_every", "checkpoints_kept", "on_alarm", "routing_moments",
}  # fmt: skip


def memory_key(spec: dict[str, Any], kind: str, arguments: dict[str, Any]) -> str:
    """Equal for jobs that take the same memory: they differ in seed, names, learning rate and the like alone."""
    facts: dict[str, Any] = {name: spec.get(name) for name in ("model", "tasks", "method", "sources", "evaluation")}
    facts["train"] = {name: value for name, value in (spec.get("train") or {}).items() if name not in WEIGHTLESS}
    facts["job"] = [kind, {name: value for name, value in arguments.items() if name != "experts"}]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def memory_need(session: Session, job: Job, run: Run, key: str) -> int | None:
    """Bytes with head-room; None where nobody knows, or where the job has to run alone."""
    if job.alone:
        return None
    if (peak := attempts.memory_peak(session, key=key)) is not None:
        return int(peak * MEASURED) + CONTEXT
    untold = run.memory_estimate is None or not run.trainable_parameters  # the estimate is one of training
    if untold or attempts.overflowed(session, key=key):
        return None
    return claimed(run.memory_estimate)
