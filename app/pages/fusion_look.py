"""What the Fusion page shows of a fused run now, in parts, and which of them have changed since this tab drew them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.pages import fusion_result, fusion_sweep, fusion_watch, run_look, run_views
from app.pages.fusion_choice import Choice
from app.pages.fusion_watch import WORKING
from app.pages.run_curves import COMBINED, LEARNT
from app.ui import components as ui
from core.errors import StudioError
from core.studio import Studio

if TYPE_CHECKING:
    from core.fusion_results import Fusion

PARTS = (
    "head", "links", "about", "cancel", "resume", "failure",
    "learnt_kind", "learnt", "combined_kind", "combined", "curves",
    "coefficients", "few", "mask", "lossy", "form", "tables",
    "attack", "score", "error", "sweep", "said", "table", "files", "log",
)  # fmt: skip
BUTTONS = ("cancel", "resume")
COLUMNS = ("curves", "tables", "sweep", "files")
TEXTS = ("links", "about", "failure", "few", "lossy", "said", "table", "log")
Seen = Mapping[str, str]


def look(studio: Studio, choice: Choice, combined: str, seen: Seen) -> tuple[dict[str, Any], dict[str, str]]:
    """Part -> its value, for the parts that look otherwise than in ``seen``; and what is seen from now on."""
    drawing = run_look.Drawing(seen)
    try:
        run = studio.run(choice.run)
        key = (run["state"], [(job["name"], job["state"], job["attempt"], job["step"]) for job in run["jobs"]])
        if drawing.seen.get("still") == repr((run["id"], key, choice, combined)):
            return {}, dict(seen)
        _head(studio, drawing, run)
        _curves(studio, drawing, run, choice, combined)
        _tables(studio, drawing, run)
        _sweep(studio, drawing, run, choice)
        _result(studio, drawing, run)
        ended = run["state"] not in ("queued", *WORKING) and not any(job["state"] in WORKING for job in run["jobs"])
        drawing.seen["still"] = repr((run["id"], key, choice, combined)) if ended else ""
    except StudioError as error:
        _gone(drawing, error)
    return drawing.fresh, drawing.seen


def _head(studio: Studio, drawing: run_look.Drawing, run: Mapping[str, Any]) -> None:
    said = studio.watch.messages(run["id"])
    parts = {
        "head": run_views.head(run),
        "failure": run_views.failure(run, said["output"]) or _cancelled(run),
        "log": run_views.log(said),
    }
    for name, html in parts.items():
        drawing.part(name, html, lambda html=html: html)
    able = run_look.abilities(run)
    for name in BUTTONS:
        drawing.part(name, (run["id"], able[name]), lambda name=name: gr.update(visible=able[name]))


def _cancelled(run: Mapping[str, Any]) -> str:
    """What a cancelled run can still become."""
    if run["state"] != "cancelled":
        return ""
    job = fusion_watch.fuse_job(run) or {}
    at = f" at step {job['step']:,}" if job.get("step") else " before it began"
    return f'<div class="note">It was cancelled{at}. Resume goes on from its last checkpoint, with equal results.</div>'


def _curves(studio: Studio, drawing: run_look.Drawing, run: Mapping[str, Any], choice: Choice, combined: str) -> None:
    known = studio.watch.curve_names(run["id"])
    names = list(known)
    for part, families, asked in (("learnt", LEARNT, choice.curve), ("combined", COMBINED, combined)):
        offered = fusion_watch.choices(families, names)
        values = [value for _, value in offered]
        chosen = asked if asked in values else values[0]
        kinds = gr.update(choices=offered, value=chosen, visible=len(offered) > 1)
        drawing.part(f"{part}_kind", (run["id"], offered, chosen), lambda kinds=kinds: kinds)
        steps = {name: known[name] for name in fusion_watch.members(families[chosen], names)}
        made = (run["id"], run["state"], chosen, steps)
        drawing.part(part, made, lambda f=families, n=chosen: fusion_watch.curves(studio, run, f, n, names))
    any_known = any(fusion_watch.members(family, names) for family in (*LEARNT.values(), *COMBINED.values()))
    drawing.part("curves", any_known, lambda: gr.update(visible=any_known))


def _tables(studio: Studio, drawing: run_look.Drawing, run: Mapping[str, Any]) -> None:
    own = {
        name: fusion_watch.newest(studio.tables(run["id"], name)) for name in ("coefficients", "mask_density", "form")
    }
    keys = {name: (run["id"], found and (found[0], found[1].to_json())) for name, found in own.items()}
    coefficients, mask, form = own.values()
    layered = coefficients is not None and fusion_watch.layered(coefficients[1])
    heat = {"coefficients": (coefficients if layered else None, fusion_watch.coefficients),
            "mask": (mask, fusion_watch.mask)}  # fmt: skip
    for (part, (found, make)), key in zip(heat.items(), keys.values(), strict=False):
        shown = gr.update(visible=False) if found is None else gr.update(visible=True, value=make(run["id"], *found))
        drawing.part(part, key, lambda shown=shown: shown)
    few = coefficients is not None and not layered
    bars = fusion_watch.few_coefficients(coefficients[1]) if few else ""
    drawing.part("few", bars, lambda: gr.update(visible=few, value=bars))
    lost = None if form is None else fusion_watch.form_error(run["id"], form[1])
    told = "" if form is None else fusion_watch.saved(form[1])
    drawing.part("lossy", told, lambda: told)
    drawing.part("form", keys["form"], lambda: gr.update(visible=lost is not None, value=lost))
    some = any(found is not None for found in own.values())
    drawing.part("tables", some, lambda: gr.update(visible=some))


def _sweep(studio: Studio, drawing: run_look.Drawing, run: Mapping[str, Any], choice: Choice) -> None:
    found = fusion_watch.newest(studio.tables(run["id"], "sweep"))
    drawing.part("sweep", found is not None, lambda: gr.update(visible=found is not None))
    if found is None:
        return
    frame, attack = found[1], fusion_sweep.chosen(found[1], choice.attack)
    offered = fusion_sweep.choices(frame)
    drawing.part("attack", (offered, attack), lambda: gr.update(choices=offered, value=attack))
    key = (run["id"], attack, len(frame), found[0])
    if drawing.seen.get("score-key") != repr(key):
        pictures = fusion_sweep.pictures(run["id"], frame, attack)
        drawing.fresh["score"], drawing.fresh["error"] = pictures
        drawing.seen["score-key"] = repr(key)


def _result(studio: Studio, drawing: run_look.Drawing, run: Mapping[str, Any]) -> None:
    jobs = [(job["name"], job["state"], job["attempt"]) for job in run["jobs"]]

    @cache
    def found() -> Fusion:
        return studio.fusion(run["id"])

    drawing.part("about", run["id"], lambda: fusion_result.about(found()))
    drawing.part("links", (run["id"], run["state"]), lambda: fusion_result.links(run, found().sources))
    drawing.part("said", ("said", run["id"], jobs), lambda: fusion_result.said(found()))
    drawing.part("table", (run["id"], jobs), lambda: fusion_result.table(found()))
    drawing.part("files", (run["id"], jobs), lambda: gr.update(visible=bool(len(found().table))))


def _gone(drawing: run_look.Drawing, error: StudioError) -> None:
    """The run was deleted elsewhere, was trained and not fused, or never was: nothing of another stays."""
    drawing.part("head", str(error), lambda: ui.problem(error))
    for name in TEXTS:
        drawing.part(name, "", lambda: "")
    for name in (*BUTTONS, *COLUMNS):
        drawing.part(name, False, lambda: gr.update(visible=False))
    drawing.part("links", "gone", lambda: '<nav class="links"><a href="/fusion">Choose runs to fuse</a></nav>')
    drawing.seen["still"] = ""
