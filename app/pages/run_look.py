"""What the Runs page shows now, in parts, and which of them have changed since this tab drew them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from app.pages import run_curves, run_views
from app.pages.run_list import STATES, Filters, listing
from app.ui import components as ui
from core.errors import StudioError
from core.studio import Studio

BUTTONS = ("cancel", "resume", "export", "bundle", "delete")
PARTS = (
    "chosen", "empty", "main", "list", "head", "links", *BUTTONS, "failure", "menu", "curve", "scores", "facts",
    "said", "cloning",
)  # fmt: skip
CLEARED = ("links", "failure", "scores", "facts", "said")

Seen = dict[str, str]


def look(
    studio: Studio, chosen: str, family: str, filters: Filters, seen: Mapping[str, str]
) -> tuple[dict[str, Any], Seen]:
    """Part -> its value, for the parts that look otherwise than in ``seen``; and what is seen from now on."""
    drawing = Drawing(seen)
    try:
        found = listing(studio, filters, chosen)
        if not chosen and (chosen := first(found)):
            drawing.fresh["chosen"] = chosen  # this tab showed none, whatever it showed before
            found = listing(studio, filters, chosen)
        drawing.seen["chosen"] = chosen
        drawing.part("empty", found["any"], lambda: gr.update(visible=not found["any"]))
        drawing.part("main", found["any"], lambda: gr.update(visible=found["any"]))
        drawing.part("list", found, lambda: found)
        if chosen:
            _one(studio, drawing, chosen, run_curves.family(family))
    except StudioError as error:
        _gone(drawing, error)
    return drawing.fresh, drawing.seen


def first(found: Mapping[str, Any]) -> str:
    """The run that a page opens with: one that works, else the newest."""
    runs = [run for group in found["groups"] for run in group["runs"]]
    working = [run for run in runs if run["state"] in STATES["working"]]
    return (working or runs or [{"id": ""}])[0]["id"]


class Drawing:
    """Parts of a page that are drawn again only where their key is another than this tab saw."""

    def __init__(self, seen: Mapping[str, str]) -> None:
        self.seen: Seen = dict(seen)
        self.fresh: dict[str, Any] = {}

    def part(self, name: str, key: Any, make: Callable[[], Any]) -> None:
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        if self.seen.get(name) != digest:
            self.fresh[name], self.seen[name] = make(), digest


def _one(studio: Studio, drawing: Drawing, chosen: str, family: str) -> None:
    run = studio.run(chosen)
    known = studio.watch.curve_names(run["id"])
    said = studio.watch.messages(run["id"])
    for name, able in abilities(run).items():
        drawing.part(name, (run["id"], able), lambda able=able: gr.update(interactive=able))
    for name, html in (
        ("head", run_views.head(run)),
        ("links", run_views.links(run)),
        ("failure", run_views.failure(run, said["output"])),
        ("said", run_views.log(said)),
    ):
        drawing.part(name, html, lambda html=html: html)
    family = _menu(drawing, run, family, list(known))
    steps = {name: known[name] for name in run_curves.members(run_curves.families(run)[family], list(known))}
    drawing.part(
        "curve",
        (run["id"], run["state"], family, steps),
        lambda: run_curves.curves(studio, run, family, list(known)),
    )
    jobs = [(job["name"], job["state"], job["attempt"]) for job in run["jobs"]]
    drawing.part("scores", (run["id"], jobs), lambda: run_views.scores(studio, run))
    told = (run["id"], run["notes"], run["trainable"], run["total"], jobs, [job["leased"] for job in run["jobs"]])
    drawing.part("facts", told, lambda: run_views.facts(run, _seeds(studio, run)))
    trained = not run["spec"].get("sources")
    drawing.part("cloning", trained, lambda: gr.update(visible=trained))


def _menu(drawing: Drawing, run: Mapping[str, Any], family: str, known: Sequence[str]) -> str:
    """Offer the curves that the run has; returns the family that is shown, the first where it has not that one."""
    offered = run_curves.offered(run, known)
    names = [name for _, name in offered]
    shown = family if family in names else names[0]
    key = (run["id"], offered, "" if shown == family else shown)
    drawing.part("menu", key, lambda: gr.update(choices=offered, value=shown))
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
    drawing.part("curve", "", lambda: {"series": [], "x": "step", "y": "", "empty": "No run is chosen."})


def abilities(run: Mapping[str, Any]) -> dict[str, bool]:
    """What can be done with a run in its state."""
    states = [job["state"] for job in run["jobs"]]
    working = any(state in STATES["working"] for state in states)
    return {
        "cancel": any(state in ("queued", "starting", "running") for state in states),
        "resume": not working and any(state in ("failed", "cancelled", "lost") for state in states),
        "export": run["state"] == "done" and run["method"] != "base",
        "bundle": any(state != "queued" for state in states) or bool(run["imported_from"]),
        "delete": not working,
    }
