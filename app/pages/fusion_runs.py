"""The runs of the Fusion page as data for its scripts: which can be fused, which were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.pages.run_list import date, when
from app.ui import components as ui
from core.errors import NotFoundError
from core.studio import Studio

PAGE = 8
MOST_PAGES = 10**6
FUSED = 8


def page_of(number: Any) -> int:
    """The number of a page as a browser sent it; the first where it is none."""
    try:
        return max(1, min(int(number), MOST_PAGES))
    except (TypeError, ValueError, OverflowError):
        return 1


def offered(studio: Studio, runs: Sequence[str], search: str = "", page: int = 1) -> dict[str, Any]:
    """The value of the list of runs to choose from; those that cannot join the chosen ones say why."""
    page, like = max(1, page), runs[0].partition(":")[0] if runs else None
    try:
        found = studio.fusable(search=search or None, limit=PAGE + 1, offset=(page - 1) * PAGE, like=like)
    except NotFoundError:  # the first chosen run is gone: the rest of the page says so
        found = studio.fusable(search=search or None, limit=PAGE + 1, offset=(page - 1) * PAGE)
    return {
        "runs": [_entry(run, runs) for run in found[:PAGE]],
        "chosen": chosen(studio, runs),
        "page": page,
        "more": len(found) > PAGE,
        "search": search,
        "empty": "No run matches." if search else "There are no more runs.",
    }


def _entry(run: Mapping[str, Any], runs: Sequence[str]) -> dict[str, Any]:
    tasks = ", ".join(run["tasks"])
    return {
        "id": run["id"],
        "name": run["name"],
        "about": f"{run['method']} · seed {run['seed']}" + (f" · {tasks}" if tasks else ""),
        "base": run["base"],
        "badge": run["badge"],
        "when": date(run["finished"] or run["created"]),
        "reason": "" if run["id"] in runs else run["reason"],
        "on": run["id"] in runs,
    }


def chosen(studio: Studio, runs: Sequence[str]) -> list[dict[str, str]]:
    """Ids and names of the chosen runs in their order; one that is gone has no name."""
    found = []
    for run in runs:
        try:
            found.append({"id": run, "name": studio.run(run.partition(":")[0])["name"]})
        except NotFoundError:
            found.append({"id": run, "name": "no such run"})
    return found


def fused(studio: Studio, page: int = 1, shown: str = "") -> dict[str, Any]:
    """The value of the list of fused runs, newest first."""
    page = max(1, page)
    found = studio.fused(limit=FUSED + 1, offset=(page - 1) * FUSED)
    return {
        "runs": [_fused(run, shown) for run in found[:FUSED]],
        "page": page,
        "more": len(found) > FUSED,
        "empty": "Nothing was fused yet.",
    }


def _fused(run: Mapping[str, Any], shown: str) -> dict[str, Any]:
    job = run["job"] or {}
    working = run["state"] in ("starting", "running", "cancelling") and job.get("total")
    return {
        "id": run["id"],
        "name": run["name"],
        "href": f"/fusion?run={run['id']}",
        "about": f"{run['method']} · seed {run['seed']} · {', '.join(run['tasks'])}",
        "badge": run["badge"],
        "state": run["state"],
        "share": round(min(1.0, (job.get("step") or 0) / job["total"]), 3) if working else None,
        "when": when(run),
        "on": run["id"] == shown,
    }


def nothing() -> str:
    return ui.empty(
        "There is nothing to fuse yet",
        "Fusion makes one model of several finished runs on the same base. The demo trains three.",
        "/",
        "Start the demo",
    )
