"""What the Runs page shows now, in parts, and which of them have changed since this tab drew them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.pages import run_curves, run_views
from app.pages.run_list import STATES, Filters, listing
from app.ui import components as ui
from core.errors import StudioError
from core.studio import Studio

if TYPE_CHECKING:
    from storage.changes import Version

BUTTONS = ("move_to_front", "cancel", "resume", "export", "bundle", "delete")
PARTS = (
    "chosen", "empty", "main", "list", "head", "links", *BUTTONS, "alarmed", "alarms", "go_on", "stop_now", "failure",
    "menu", "curve", "scores", "facts", "said", "cloning",
)  # fmt: skip
CLEARED = ("links", "alarms", "failure", "scores", "facts", "said")

Seen = dict[str, str]


def look(
    studio: Studio, chosen: str, family: str, filters: Filters, seen: Mapping[str, str], version: Version | None = None
) -> tuple[dict[str, Any], Seen]:
    """Part -> its value, for the parts that look otherwise than in ``seen``; and what is seen from now on.

    All as of ``version``, or now; what tabs look at in common is made once for them.
    """
    drawing = Drawing(seen)
    now = version or studio.watch.changes.now()
    try:
        found = listing(studio, filters, chosen, now)
        if not chosen and (chosen := first(found)):
            drawing.fresh["chosen"] = chosen  # this tab showed none, whatever it showed before
            found = listing(studio, filters, chosen, now)
        drawing.seen["chosen"] = chosen
        drawing.part("empty", found["any"], lambda: gr.update(visible=not found["any"]))
        drawing.part("main", found["any"], lambda: gr.update(visible=found["any"]))
        drawing.part("list", found, lambda: found)
        if chosen:
            shown, stamp = run_curves.family(family), studio.watch.stamp(chosen, now)
            drawing.take(studio.watch.shared.of(("run", chosen, shown), stamp, lambda: detail(studio, chosen, shown)))
    except StudioError as error:
        _gone(drawing, error)
    return drawing.fresh, drawing.seen


def first(found: Mapping[str, Any]) -> str:
    """The run that a page opens with: one that works, else the newest."""
    runs = [run for group in found["groups"] for run in group["runs"]]
    working = [run for run in runs if run["state"] in STATES["working"]]
    return (working or runs or [{"id": ""}])[0]["id"]


class Part:
    """One part of a page: what it looks like in short, and its value, made when the first tab needs it."""

    def __init__(self, key: Any, make: Callable[[], Any]) -> None:
        self.digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        self._make = make

    @cached_property
    def value(self) -> Any:
        return self._make()


class Parts(dict[str, Part]):
    """Parts by name, for all tabs that look at the same."""

    def part(self, name: str, key: Any, make: Callable[[], Any]) -> None:
        self[name] = Part(key, make)


class Drawing:
    """Parts of a page that are drawn again only where their key is another than this tab saw."""

    def __init__(self, seen: Mapping[str, str]) -> None:
        self.seen: Seen = dict(seen)
        self.fresh: dict[str, Any] = {}

    def part(self, name: str, key: Any, make: Callable[[], Any]) -> None:
        self.take({name: Part(key, make)})

    def take(self, parts: Mapping[str, Part]) -> None:
        for name, part in parts.items():
            if self.seen.get(name) != part.digest:
                self.fresh[name], self.seen[name] = part.value, part.digest


def detail(studio: Studio, chosen: str, family: str) -> Parts:
    """What one run looks like now, the family of its curves as asked for or as near as it has one."""
    parts, run = Parts(), studio.run(chosen)
    known = studio.watch.curve_names(run["id"])
    said = studio.watch.messages(run["id"])
    for name, able in abilities(run).items():
        parts.part(name, (run["id"], able), lambda able=able: gr.update(interactive=able))
    for name, html in (
        ("head", run_views.head(run)),
        ("links", run_views.links(run)),
        ("alarms", run_views.alarms(run, said)),
        ("failure", run_views.failure(run, said["output"])),
        ("said", run_views.log(said)),
    ):
        parts.part(name, html, lambda html=html: html)
    works, halted = abilities(run)["cancel"], run_views.halted(run)
    parts.part("alarmed", run["alarms"] > 0, lambda: gr.update(visible=run["alarms"] > 0))
    parts.part("go_on", works or halted, lambda: gr.update(value="Go on" if works or halted else "I have seen it"))
    parts.part("stop_now", works, lambda: gr.update(visible=works))
    family = _menu(parts, run, family, list(known))
    steps = {name: known[name] for name in run_curves.members(run_curves.families(run)[family], list(known))}
    parts.part(
        "curve",
        (run["id"], run["state"], family, steps),
        lambda: run_curves.curves(studio, run, family, list(known)),
    )
    jobs = [(job["name"], job["state"], job["attempt"]) for job in run["jobs"]]
    parts.part("scores", (run["id"], jobs), lambda: run_views.scores(studio, run))
    told = (run["id"], run["notes"], run["trainable"], run["total"], jobs, [job["leased"] for job in run["jobs"]])
    parts.part("facts", told, lambda: run_views.facts(run, _seeds(studio, run)))
    trained = not run["spec"].get("sources")
    parts.part("cloning", trained, lambda: gr.update(visible=trained))
    return parts


def _menu(parts: Parts, run: Mapping[str, Any], family: str, known: Sequence[str]) -> str:
    """Offer the curves that the run has; returns the family that is shown, the first where it has not that one."""
    offered = run_curves.offered(run, known)
    names = [name for _, name in offered]
    shown = family if family in names else names[0]
    key = (run["id"], offered, "" if shown == family else shown)
    parts.part("menu", key, lambda: gr.update(choices=offered, value=shown))
    return shown


def _seeds(studio: Studio, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    return studio.watch.listing(setting=run["setting"], limit=13)["rows"]


def _gone(drawing: Drawing, error: StudioError) -> None:
    """The run was deleted elsewhere, or the address names none: nothing of an earlier one stays on the page."""
    drawing.part("head", str(error), lambda: ui.problem(error))
    for name in CLEARED:
        drawing.part(name, "", lambda: "")
    for name in BUTTONS:
        drawing.part(name, ("", False), lambda: gr.update(interactive=False))
    drawing.part("alarmed", "", lambda: gr.update(visible=False))
    drawing.part("curve", "", lambda: {"series": [], "x": "step", "y": "", "empty": "No run is chosen."})


def abilities(run: Mapping[str, Any]) -> dict[str, bool]:
    """What can be done with a run in its state."""
    states = [job["state"] for job in run["jobs"]]
    working = any(state in STATES["working"] for state in states)
    return {
        "move_to_front": "queued" in states,
        "cancel": any(state in ("queued", "starting", "running") for state in states),
        "resume": not working and any(state in ("failed", "cancelled", "lost") for state in states),
        "export": run["state"] == "done" and run["method"] != "base",
        "bundle": any(state != "queued" for state in states) or bool(run["imported_from"]),
        "delete": not working,
    }
