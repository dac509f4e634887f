"""Rows of the database and of the store as plain data, for pages, JSON and notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.memory import compared
from core.method_facts import badge, title, unrouted

if TYPE_CHECKING:
    from core.data.store import DatasetInfo
    from storage.queries.jobs import JobRow
    from storage.queries.runs import RunRow


def dataset(info: DatasetInfo) -> dict[str, Any]:
    return info.model_dump(mode="json") | {"counts": info.counts}


def run(row: RunRow) -> dict[str, Any]:
    """Without the spec, which lists do not need."""
    names = ("id", "name", "state", "method", "base", "tasks", "seed", "setting", "created", "started", "finished")
    more = ("tags", "notes", "parent", "imported_from", "owner", "job")
    return {name: getattr(row, name) for name in (*names, *more)} | {
        "badge": badge(row.method),
        "title": title(row.method),
        "unrouted": unrouted(row.method),
        "trainable": row.trainable_parameters,
        "total": row.total_parameters,
        "memory": memory(row.memory_estimate, row.memory_peak),
        "progress": progress(row.job),
        "alarms": row.alarms,
    }


def memory(estimate: int | None, peak: int | None) -> dict[str, Any]:
    """Bytes estimated and measured, and both in words."""
    return {"estimate": estimate, "peak": peak, "said": compared(estimate, peak)}


def job(row: JobRow) -> dict[str, Any]:
    hidden = ("run", "position", "lost_attempts")
    return {name: getattr(row, name) for name in row.__dataclass_fields__ if name not in hidden}


def progress(job: dict[str, Any] | None) -> str:
    """``training 40/100, 12 s left`` for a working job, else nothing."""
    if job is None or job["state"] not in ("starting", "running", "cancelling"):
        return ""
    if not job["total"]:
        return job["phase"] or ""
    left = "" if job["seconds_left"] is None else f", {job['seconds_left']:.0f} s left"
    return f"{job['phase'] or 'working'} {job['step']}/{job['total']}{left}"
