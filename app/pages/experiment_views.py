"""What the Experiment page shows of a run that is being made: size, figure, method, remarks. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from app.pages import experiment_grid as grids
from app.pages.experiment_preflight import counts, preflight
from app.ui import components as ui
from app.ui.diagram import Mixture, diagram

SHOWN = 5
PARTLY = '<div class="note">Counted and drawn without the marked cells, which cannot be trained.</div>'
DRAWN = 3  # further splits that are drawn besides the main one

Kind = tuple[str, ...]  # the words for down, gate and up; one alone: frozen


def method_card(method: Mapping[str, Any]) -> str:
    """What a method is and where it comes from; a badge where a paper had to be interpreted."""
    source = f"<small>{ui.escape(method['source'])}</small>" if method["source"] else ""
    title = f"<b>{ui.escape(method['title'])}</b>{ui.badge(method['badge'])}"
    more = f'<a href="/methods?method={quote(method["name"])}">about it</a>'
    return f"<p>{title} {ui.escape(method['summary'])} {source} {more}</p>"


def method_label(method: Mapping[str, Any]) -> str:
    """The name of a method where it is offered, with its badge."""
    return method["title"] + (f" · {method['badge']}" if method["badge"] else "")


def split_card(split: Mapping[str, Any], before: Mapping[str, Any] | None, size: Any) -> str:
    """The card of a split, and which method it began as; what is no word or has no place in the grid stays behind."""
    if before is None or before["name"] == "split":
        return method_card(split)
    title = ui.escape(before["title"])
    lost = (
        f" What PEFT itself computes for {title} is no word and stays behind." if "by PEFT" in before["source"] else ""
    )
    lost += " What it trains outside the layers has no row in the grid and stays behind." if size.outside else ""
    return method_card(split) + f"<p><small>It begins with the cells of {title}.{lost}</small></p>"


def summary(size: Any, speed: Any = None) -> dict[str, Any]:
    """The value of the figure panel: the preflight, the mixture as a figure, other splits in use."""
    adapted = [place for place in size.places if place.words]
    if not adapted:
        nothing = ui.empty("Nothing is adapted", "Paint a projection, or choose a preset.")
        return {"html": counts(size) + nothing, "name": "split"}
    kinds = Counter(kind for place in size.places if (kind := kind_of(place)))
    main = next(kind for kind, _ in kinds.most_common() if kind != FROZEN)
    picture = diagram(mixture(size, main))
    return {"html": preflight(size, speed) + picture + others(size, kinds, main), "name": "split"}


FROZEN: Kind = ("frozen",)


def kind_of(place: Any) -> Kind | None:
    return FROZEN if place.frozen else grids.words_at(place)


def mixture(size: Any, kind: Kind) -> Mixture:
    """The figure's data for one choice of words: the projection shape and the top layer's experts that it has."""
    mine = [place for place in size.places if kind_of(place) == kind]
    top = max(mine, key=lambda place: (place.experts, place.layer))
    shape = Counter((p.inputs, p.outputs) for p in mine).most_common(1)[0][0]
    alike = [p for p in mine if (p.inputs, p.outputs) == shape]
    names = list(dict.fromkeys(p.projection for p in alike))
    where = {"inputs": shape[0], "outputs": shape[1], "projection": ", ".join(names[:3])}
    if kind == FROZEN:
        return Mixture("", "", "", frozen=True, **where)
    shown = max(alike, key=lambda place: (place.experts, place.layer))
    down, gate, up = kind
    return Mixture(
        down=down,
        gate=gate,
        up=up,
        experts=top.experts,
        selected=top.selected,
        rank=top.rank,
        down_shared="down" in top.shared,
        up_shared="up" in top.shared,
        groups=top.groups,
        scope=top.scope,
        unit=top.unit,
        counts=shown.parts,
        depth=depth(mine),
        **where,
    )


def depth(places: Sequence[Any]) -> list[tuple[str, int]]:
    """(layers, experts) for each run of layers with one number of experts, lowest first."""
    experts: dict[int, int] = {}
    for place in places:
        experts[place.layer] = max(place.experts, experts.get(place.layer, 0))
    runs: list[tuple[list[int], int]] = []
    for layer in sorted(experts):
        if runs and runs[-1][1] == experts[layer]:
            runs[-1][0].append(layer)
        else:
            runs.append(([layer], experts[layer]))
    return [(grids.span_name(layers), number) for layers, number in runs]


def others(size: Any, kinds: Mapping[Kind, int], main: Kind) -> str:
    """Where the figure is not the whole truth: other words, each with its own figure, and what stays as it is."""
    places, drawn = len(size.places), 0
    lines = []
    for kind, count in sorted(kinds.items(), key=lambda item: (item[0] != main, -item[1])):
        names = list(dict.fromkeys(p.projection for p in size.places if kind_of(p) == kind))
        where = f"{_chips(kind)} in {count} of {places} places: {ui.escape(', '.join(names[:8]))}"
        if kind == main:
            lines.append(f"<li>{where} <small>drawn above</small></li>")
        elif drawn < DRAWN:
            drawn += 1
            lines.append(f"<li><details><summary>{where}</summary>{diagram(mixture(size, kind))}</details></li>")
        else:
            lines.append(f"<li>{where}</li>")
    left = places - sum(kinds.values())
    if left:
        lines.append(f"<li>{left} of {places} places are not adapted</li>")
    more = f"<li>and {len(lines) - SHOWN} more</li>" if len(lines) > SHOWN + 1 else ""
    return f'<ul class="splits">{"".join(lines[: SHOWN + 1])}{more}</ul>' if len(lines) > 1 else ""


def _chips(kind: Kind) -> str:
    if kind == FROZEN:
        return '<span class="chip word-off">frozen</span>'
    return "".join(
        f'<span class="chip word-{ui.escape(word)}">{part} {ui.escape(word.replace("_", " "))}</span>'
        for part, word in zip(grids.PARTS, kind, strict=True)
    )


def ready(rows: Mapping[str, int], seeds: Sequence[int], remarks: Sequence[str], changed: str) -> str:
    """What Start would do."""
    runs = "one run" if len(seeds) == 1 else f"{len(seeds)} runs, seeds {', '.join(map(str, seeds))}"
    tasks = "1 task" if len(rows) == 1 else f"{len(rows)} tasks"
    said = "".join(f"<p>{ui.escape(remark)}</p>" for remark in remarks)
    return (
        f'<div class="note">Start queues {runs} on {tasks}, {sum(rows.values()):,} training rows.{said}{changed}</div>'
    )


def too_large(size: Any) -> str:
    """Why Start would refuse a run that no device can hold; nothing where it may fit."""
    refused = size.memory.refusal()
    return ui.problem(refused) if refused else ""


def refused_cells(problems: Sequence[Any]) -> str:
    """Why Start would refuse: the first problem whole, the others are said beside the grid."""
    more = len(problems) - 1
    rest = f'<div class="note">{more} more: see the marked cells of the grid.</div>' if more else ""
    return ui.problem(problems[0]) + rest


def no_tasks(datasets: Sequence[Any]) -> str:
    """What to do while no task is chosen."""
    if datasets:
        return '<div class="note">Choose at least one task under “Tasks, trained together”.</div>'
    return ui.empty(
        "No tasks are stored yet",
        "Add your own on the Data page, or press “Use the demo tasks” above for four small ones.",
        "/data",
        "Add data",
    )


def cloned(run: str, found: Sequence[tuple[str, Any, Any]]) -> str:
    """What differs from the run that was cloned."""
    link = f'<a href="/runs?run={quote(run)}">{ui.escape(run)}</a>'
    if not found:
        return f"<p>The same settings as {link}; change one thing.</p>"
    items = "; ".join(
        f"<code>{ui.escape(name)}</code> {ui.escape(_short(a))} → <b>{ui.escape(_short(b))}</b>"
        for name, a, b in found[:12]
    )
    more = f" and {len(found) - 12} more" if len(found) > 12 else ""
    return f"<p>Differs from {link}: {items}{more}</p>"


def _short(value: Any) -> str:
    text = "default" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def started(runs: Sequence[str]) -> str:
    links = ", ".join(f'<a href="/runs?run={quote(run)}"><b>{ui.escape(run)}</b></a>' for run in runs)
    return f'<div class="note">In the queue: {links}. You may close this page; the runs go on.</div>'
