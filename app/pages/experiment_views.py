"""What the Experiment page shows of a run that is being made: size, figure, method, remarks. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from app.pages import experiment_grid as grids
from app.ui import components as ui
from app.ui.diagram import Mixture, diagram

GIB = 2**30
SHOWN = 5


def method_card(method: Mapping[str, Any]) -> str:
    """What a method is and where it comes from; a badge where a paper had to be interpreted."""
    badge = f' <span class="badge">{ui.escape(method["badge"])}</span>' if method["badge"] else ""
    source = f"<small>{ui.escape(method['source'])}</small>" if method["source"] else ""
    return f"<p><b>{ui.escape(method['title'])}</b>{badge} {ui.escape(method['summary'])} {source}</p>"


def summary(size: Any) -> dict[str, Any]:
    """The value of the figure panel: trainable parameters, memory, the mixture as a figure, other splits in use."""
    adapted = [place for place in size.places if place.words]
    if not adapted:
        nothing = ui.empty("Nothing is adapted", "Paint a projection, or choose a preset.")
        return {"html": counts(size) + nothing, "name": "split"}
    kinds = Counter(grids.words_at(place) for place in adapted)
    main = kinds.most_common(1)[0][0]
    picture = diagram(mixture(size, main))
    return {"html": counts(size) + picture + others(size, kinds, main), "name": "split"}


def counts(size: Any) -> str:
    """Exact parameters, put beside the base and a LoRA; and the memory estimate."""
    share = f"{size.trainable / size.total:.2%} of the base" if size.total else ""
    ratio = f"{size.trainable / size.lora:.2f} × a LoRA of rank 8" if size.lora else ""
    about = " · ".join(filter(None, ("trainable parameters", share, ratio)))
    parts = ", ".join(f"{name} {_gib(number)}" for name, number in size.memory.items())
    total = _gib(sum(size.memory.values()))
    where = "on a GPU" if size.cuda else "on the CPU"
    return (
        f'<div class="count"><b class="num">{size.trainable:,}</b><span>{about}</span></div>'
        f'<p class="memory num">about {total} of memory {where} (an estimate: {parts})</p>'
    )


def _gib(number: float) -> str:
    return f"{number / GIB:.1f} GiB" if number >= GIB / 10 else f"{number / 2**20:.0f} MiB"


def mixture(size: Any, words: tuple[str, ...]) -> Mixture:
    """The figure's data for one choice of words: the projection shape and the top layer's experts that it has."""
    mine = [place for place in size.places if grids.words_at(place) == words]
    top = max(mine, key=lambda place: (place.experts, place.layer))
    shape = Counter((p.inputs, p.outputs) for p in mine).most_common(1)[0][0]
    names = list(dict.fromkeys(p.projection for p in mine if (p.inputs, p.outputs) == shape))
    down, gate, up = words
    return Mixture(
        down=down,
        gate=gate,
        up=up,
        experts=top.experts,
        selected=top.selected,
        rank=top.rank,
        inputs=shape[0],
        outputs=shape[1],
        projection=", ".join(names[:3]),
        down_shared=down == "shared",
        up_shared=up == "shared",
        depth=depth(mine),
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


def others(size: Any, kinds: Mapping[tuple[str, ...], int], main: tuple[str, ...]) -> str:
    """Where the figure is not the whole truth: other words, and projections that stay as they are."""
    places = len(size.places)
    lines = []
    for words, count in sorted(kinds.items(), key=lambda item: -item[1]):
        names = list(dict.fromkeys(p.projection for p in size.places if grids.words_at(p) == words))
        chips = "".join(
            f'<span class="chip word-{ui.escape(word)}">{part} {ui.escape(word)}</span>'
            for part, word in zip(grids.PARTS, words, strict=True)
        )
        shown = "drawn above" if words == main else ""
        lines.append(
            f"<li>{chips} in {count} of {places} places: {ui.escape(', '.join(names[:8]))} <small>{shown}</small></li>"
        )
    left = places - sum(kinds.values())
    if left:
        lines.append(f"<li>{left} of {places} places are not adapted</li>")
    more = f"<li>and {len(lines) - SHOWN} more</li>" if len(lines) > SHOWN + 1 else ""
    return f'<ul class="splits">{"".join(lines[: SHOWN + 1])}{more}</ul>' if len(lines) > 1 else ""


def ready(rows: Mapping[str, int], seeds: Sequence[int], remarks: Sequence[str], changed: str) -> str:
    """What Start would do."""
    runs = "one run" if len(seeds) == 1 else f"{len(seeds)} runs, seeds {', '.join(map(str, seeds))}"
    tasks = "1 task" if len(rows) == 1 else f"{len(rows)} tasks"
    said = "".join(f"<p>{ui.escape(remark)}</p>" for remark in remarks)
    return (
        f'<div class="note">Start queues {runs} on {tasks}, {sum(rows.values()):,} training rows.{said}{changed}</div>'
    )


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
