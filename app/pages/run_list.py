"""The list of runs as data for its script: what the filters ask for, one entry for each run or setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from app.ui import components as ui
from core.studio import Studio

if TYPE_CHECKING:
    from storage.changes import Version

MIB = " MiB"  # ends the phase of a job that downloads
PAGE = 12
SETTINGS_PAGE = 6
STATES = {
    "working": ("starting", "running", "cancelling"),
    "queued": ("queued",),
    "done": ("done",),
    "failed": ("failed", "lost"),
    "cancelled": ("cancelled",),
}


@dataclass(frozen=True)
class Filters:
    """What the list shows; every field stands in the address."""

    search: str = ""
    state: str = ""
    method: str = ""
    tag: str = ""
    dataset: str = ""
    seeds: bool = False
    page: int = 1

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Filters:
        """From an address or from inputs; what makes no sense falls back to everything."""
        text = {name: str(values.get(name) or "")[:200] for name in ("search", "method", "tag", "dataset")}
        state = str(values.get("state") or "")
        page = str(values.get("page") or "1")
        return cls(
            **text,
            state=state if state in STATES else "",
            seeds=values.get("seeds") in (True, "true", "True", "1"),
            page=max(1, int(page)) if page.isdecimal() and len(page) < 7 else 1,
        )

    @property
    def narrow(self) -> bool:
        return any(value for name, value in asdict(self).items() if name not in ("page", "seeds"))


def listing(studio: Studio, filters: Filters, chosen: str, version: Version | None = None) -> dict[str, Any]:
    """The value of the list component, as of ``version`` (now); all tabs with these filters share all but the mark."""
    now = version or studio.watch.changes.now()
    return marked(studio.watch.shared.of(("list", filters), now, lambda: _listing(studio, filters)), chosen)


def _listing(studio: Studio, filters: Filters) -> dict[str, Any]:
    size = SETTINGS_PAGE if filters.seeds else PAGE
    found = studio.watch.listing(
        search=filters.search,
        state=STATES.get(filters.state),
        method=filters.method or None,
        tag=filters.tag or None,
        dataset=filters.dataset or None,
        by_setting=filters.seeds,
        limit=size,
        offset=(filters.page - 1) * size,
    )
    entries = [_entry(run) for run in found["rows"]]
    pages = max(1, -(-found["total"] // size))
    return {
        "groups": _grouped(found["rows"], entries) if filters.seeds else [{"runs": entries}],
        "page": min(filters.page, pages),
        "pages": pages,
        "total": _total(found["total"], filters),
        "queue": queue_line(found),
        "empty": "No run matches these filters." if filters.narrow else "There are no runs yet.",
        "any": bool(found["counts"]),
    }


def marked(found: Mapping[str, Any], chosen: str) -> dict[str, Any]:
    """The list with the run that is chosen in it."""
    groups = [
        {**group, "runs": [{**run, "on": run["id"] == chosen} for run in group["runs"]]} for group in found["groups"]
    ]
    return {**found, "groups": groups}


def _entry(run: Mapping[str, Any]) -> dict[str, Any]:
    job = run["job"] or {}
    share = None
    if run["state"] in STATES["working"] and job.get("total"):
        share = round(min(1.0, (job.get("step") or 0) / job["total"]), 4)
    return {
        "id": run["id"],
        "name": run["name"],
        "state": run["state"],
        "about": (f"{alarms_of(run)} · " if run["alarms"] else "")
        + f"{run['method']} · seed {run['seed']}"
        + (f" · {ui.short(run['trainable'])}" if run["trainable"] else "")
        + (f" · {run['owner']}" if run["owner"] else ""),
        "badge": run["badge"],
        "tags": run["tags"][:4],
        "share": share,
        "when": when(run),
    }


def alarms_of(run: Mapping[str, Any]) -> str:
    """How many alarms nobody has answered."""
    return "an alarm" if run["alarms"] == 1 else f"{run['alarms']} alarms"


def when(run: Mapping[str, Any]) -> str:
    """The one thing about time that matters in a run's state."""
    job = run["job"] or {}
    if run["state"] == "queued":
        return place(run.get("ahead"))
    if run["state"] in STATES["working"]:
        left = job.get("seconds_left")
        held = f" · {run['device']}" if run.get("device") else ""
        return (f"{ui.duration(left)} left" if left is not None else phase(job) or run["state"]) + held
    return date(run["finished"] or run["created"])


def phase(job: Mapping[str, Any]) -> str:
    """What a job does now, without the unit in which it counts."""
    if job.get("state") == "cancelling":
        return "stopping"
    return (job.get("phase") or "").removesuffix(MIB) or job.get("state") or ""


def place(ahead: int | None) -> str:
    if ahead is None:
        return "waits"
    return "next in the queue" if ahead == 0 else f"{ahead} ahead in the queue"


def date(moment: datetime | None) -> str:
    """In the time zone of the machine that the studio runs on."""
    return "–" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M")


def _grouped(rows: Sequence[Mapping[str, Any]], entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for run, entry in zip(rows, entries, strict=True):
        method = f"{run['method']} [{run['badge']}]" if run["badge"] else run["method"]
        group = groups.setdefault(run["setting"], {"runs": [], "title": f"{method} on {', '.join(run['tasks'])}"})
        group["runs"].append(entry)
    for group in groups.values():
        count = len(group["runs"])
        group["title"] += f" · {count} seed{'s' if count > 1 else ''}"
        done = [entry["id"] for entry in group["runs"] if entry["state"] == "done"]
        group["compare"] = "/compare?runs=" + ",".join(done) if len(done) > 1 else ""
    return list(groups.values())


def _total(total: int, filters: Filters) -> str:
    noun = ("setting" if filters.seeds else "run") + ("" if total == 1 else "s")
    return f"{total:,} {noun}" + (" match" if filters.narrow and total != 1 else " matches" if filters.narrow else "")


def queue_line(found: Mapping[str, Any]) -> str:
    """Who holds which device, and how many wait."""
    held = [f"{device}: {', '.join(runs)}" for device, runs in found["devices"].items()]
    waiting = found["waiting"]
    return " · ".join([*(held or ["no device is held"]), f"{waiting} waiting" if waiting else "nobody waits"])
