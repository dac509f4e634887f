"""What the choosing half of the Fusion page shows for a choice: its parts by name, as plain functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.pages import fusion_conflicts, fusion_method, fusion_runs
from app.pages.fusion_choice import ALL, Choice
from app.ui import components as ui
from core.errors import ConfigurationError, StudioError
from core.studio import Studio

if TYPE_CHECKING:
    from core.fusion_results import Conflicts

NOTHING = "runs="  # an address without anything: what it had goes
NO_PAIR = "<p>Choose two runs or more: then this shows where their task vectors pull against each other.</p>"
ONE = "<p>Choose another run beside it: one alone conflicts with nothing.</p>"


def frames(studio: Studio, choice: Choice) -> list[Any]:
    """Empty text, and which of choice, fused run and list of fused runs are seen."""
    there = bool(studio.watch.listing(state="done", limit=1)["rows"]) or bool(choice.run or choice.runs)
    shown = [not choice.run and there, bool(choice.run), there]
    empty = gr.update(visible=not there, value="" if there else fusion_runs.nothing())
    return [empty, *(gr.update(visible=one) for one in shown)]


def view(studio: Studio, choice: Choice, search: str = "", page: int = 1) -> dict[str, Any]:
    """Everything that depends on what is to be fused and how; the conflicts follow by themselves."""
    methods, settings = studio.fusion_methods(), studio.drafts.settings()
    try:
        method = fusion_method.method_of(methods, choice.method)
    except ConfigurationError as error:
        choice = replace(choice, method=methods[0]["name"], changes={})
        return view(studio, choice, search, page) | {"card": ui.problem(error)}
    known = fusion_method.defaults(method, settings)
    choice = replace(choice, changes={name: value for name, value in choice.changes.items() if name in known})
    return {
        "offered": fusion_runs.offered(studio, choice.runs, search, page),
        "runs": ",".join(choice.runs),
        "methods": fusion_method.listed(methods, choice),
        "method": choice.method,
        "card": fusion_method.card(method),
        "form": fusion_method.form(method, settings, choice.changes),
        "wish": fusion_method.wish(choice, method),
        "fuse": gr.update(interactive=len(choice.runs) > 1),
        "address": choice.query() or NOTHING,
    }


def chosen(studio: Studio, runs: Any, method: Any, figure: Any, at: Any, form: Any) -> Choice:
    """What the page's inputs say; a form that cannot be read changes nothing."""
    choice = Choice.of({"runs": runs, "method": method, "figure": figure, "at": at})
    with_form = fusion_method.method_of(studio.fusion_methods(), choice.method)
    try:
        return replace(choice, changes=fusion_method.changes(with_form, studio.drafts.settings(), form))
    except ConfigurationError:
        return choice


def other_method(studio: Studio, choice: Choice, wanted: str) -> dict[str, Any]:
    """Another method takes over the changes that it knows."""
    methods = studio.fusion_methods()
    try:
        after = fusion_method.method_of(methods, wanted)
    except ConfigurationError as error:
        return {"card": ui.problem(error)}
    changes = fusion_method.carried(choice.changes, after, studio.drafts.settings())
    found = view(studio, replace(choice, method=wanted, changes=changes))
    return {name: found[name] for name in ("methods", "method", "card", "form", "wish", "address")}


def settled(studio: Studio, runs: Any, method: Any, figure: Any, at: Any, form: Any) -> dict[str, Any]:
    """After an edit: what the button would do, and the address; a field that cannot be read is named."""
    choice = Choice.of({"runs": runs, "method": method, "figure": figure, "at": at})
    found = fusion_method.method_of(studio.fusion_methods(), choice.method)
    try:
        choice = replace(choice, changes=fusion_method.changes(found, studio.drafts.settings(), form))
    except ConfigurationError as error:
        return {"wish": ui.problem(error), "fuse": gr.update(interactive=False)}
    ready = gr.update(interactive=len(choice.runs) > 1)
    return {"wish": fusion_method.wish(choice, found), "fuse": ready, "address": choice.query() or NOTHING}


def conflicts(studio: Studio, choice: Choice, found: Conflicts | None = None) -> tuple[dict[str, Any], Any]:
    """What is seen between the chosen runs, and the conflicts themselves.

    ``found``: those that were computed before, by a child process; used where they are of the same runs.
    """
    hidden = gr.update(visible=False)
    if len(choice.runs) < 2:
        return {"told": NO_PAIR if not choice.runs else ONE, "figures": hidden}, None
    try:
        if found is None or tuple(found.sources) != choice.runs:
            found = studio.conflicts(choice.runs)
    except StudioError as error:
        return {"told": ui.problem(error), "figures": hidden}, None
    norms = choice.figure == "norms"
    at = choice.at if choice.at in found.paths else ALL
    return {
        "told": fusion_conflicts.findings(found),
        "figures": gr.update(visible=True),
        "projection": gr.update(choices=fusion_conflicts.projections(found.paths, at), value=at),
        "heat": fusion_conflicts.heat(found, choice),
        "square": gr.update(visible=not norms, value=fusion_conflicts.square(found, choice)),
        "lengths": gr.update(visible=norms, value=fusion_conflicts.lengths(found, choice)),
    }, found


def fused(studio: Studio, given: Sequence[Any], token: str) -> list[Any]:
    """Queue the fusion: what went wrong, or the id of the fused run."""
    try:
        choice = Choice.of(dict(zip(("runs", "method", "figure", "at"), given, strict=False)))
        method = fusion_method.method_of(studio.fusion_methods(), choice.method)
        changes = fusion_method.changes(method, studio.drafts.settings(), given[-1])
        request = fusion_method.request(token, replace(choice, changes=changes))
        return [gr.skip(), studio.fuse(choice.runs, method=choice.method, changes=changes, request_id=request)]
    except StudioError as error:
        return [ui.problem(error), ""]
