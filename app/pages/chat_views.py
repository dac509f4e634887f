"""What the Chat page shows, from plain data: panes, the list of conversations, where answers are computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import urlencode

from app.ui import components as ui

BASE = "base"
PANES = 4
TURNS = 30
LISTED = 20
INVITE = {
    "title": "No finished runs yet",
    "text": "Train one to talk to it. Until then the base answers alone.",
    "href": "/experiment",
    "label": "Set up a run",
}
ELSEWHERE = "being answered in another tab; open the conversation again to read it"
WHY = {"end": "", "length": "length limit", "stopped": "stopped", "failed": "failed"}


def label(run: Mapping[str, Any]) -> str:
    return f"{run['id']} · {run['name'] or run['method']}"


def choices(runs: Sequence[Mapping[str, Any]], chosen: Sequence[str]) -> list[tuple[str, str]]:
    """The base, then finished runs; once one is chosen, only those on its base."""
    base = next((run["base"] for run in runs if run["id"] in chosen), None)
    fitting = [run for run in runs if base is None or run["base"] == base]
    return [
        (f"base · {base_name(base or 'tessera-base')}", BASE),
        *((label(run), run["id"]) for run in fitting),
    ]


def base_name(base: str) -> str:
    """What a base is called: its name, of a folder the last part."""
    return PurePath(base).name if base.startswith("/") else base


def first_choice(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The two newest runs of one base beside it; without runs the base alone."""
    if not runs:
        return [BASE]
    newest = [run["id"] for run in runs if run["base"] == runs[0]["base"]]
    return [*newest[:2], BASE]


def pane(model: str, run: Mapping[str, Any] | None, turns: Sequence[Any], *, earlier: bool = False) -> dict[str, Any]:
    """One model's side of the kept turns: (question, answers) as the studio has them."""
    shown, routed = [], not (run and run.get("unrouted"))
    for question, answers in turns:
        own = [answer for answer in answers if answer.model == model]
        if own:
            shown.append(placed(kept(question.text, own[-1]), routed))
    value = {
        "turns": shown,
        "growing": False,
        "earlier": earlier,
        "routed": routed,
    }
    if model == BASE:
        return value | {
            "name": BASE,
            "href": "",
            "about": "untouched",
            "empty": "The base answers without any adapter.",
        }
    if run is None:
        return value | {"name": model, "href": "", "about": "no such run", "empty": "This run does not exist any more."}
    badge = f" ({run['badge']})" if run.get("badge") else ""
    size = f" · {ui.short(run['trainable'])} trainable" if run["trainable"] else ""
    about = f"{run['method']}{badge}{size}"
    href = "/runs?" + urlencode({"run": run["id"]})
    return value | {
        "name": label(run),
        "href": href,
        "about": about,
        "empty": "It has not been asked anything here yet.",
    }


def placed(turn: dict[str, Any], routed: bool) -> dict[str, Any]:
    """A turn in a pane: without the link to its routing where the model has no gates."""
    return turn if routed else turn | {"link": ""}


def kept(question: str, answer: Any) -> dict[str, Any]:
    """A turn as it is kept; somebody may just be told it elsewhere."""
    if answer.ended is None:
        return _unfinished(question, "", ELSEWHERE)
    return _turn(question, answer, answer.id)


def growing(question: str, answer: Any | None) -> dict[str, Any]:
    """The turn that is being answered; ``answer`` is None before the first token."""
    if answer is None or (answer.ended is None and not answer.tokens):
        return _unfinished(question, "", "reading the question")
    if answer.ended is None:
        return _unfinished(question, answer.text, figures(answer.tokens, answer.seconds))
    return _turn(question, answer, answer.turn)


def _unfinished(question: str, text: str, note: str) -> dict[str, Any]:
    return {
        "question": question,
        "text": text.lstrip("\n"),
        "state": "growing",
        "note": note,
        "link": "",
        "copy": False,
    }


def _turn(question: str, answer: Any, number: int | None) -> dict[str, Any]:
    ended = answer.ended or "stopped"
    problem = " ".join(filter(None, (answer.problem, getattr(answer, "hint", ""))))
    notes = [figures(answer.tokens, answer.seconds), WHY.get(ended, ended)]
    routed = answer.model != BASE and number is not None and ended != "failed" and answer.text
    link = "/routing?" + urlencode({"run": answer.model, "turn": number}) if routed else ""
    return {
        "question": question,
        "text": answer.text.lstrip("\n"),
        "state": ended,
        "note": " · ".join(filter(None, notes)),
        "link": link,
        "copy": bool(answer.text),
        "problem": problem,
    }


def figures(tokens: int, seconds: float) -> str:
    """``36 tokens · 14.2 tokens/s``"""
    speed = f" · {tokens / seconds:.1f} tokens/s" if seconds and tokens else ""
    return f"{tokens} token{'' if tokens == 1 else 's'}{speed}"


def history(page: Any, current: int | None) -> dict[str, Any]:
    """The list of conversations, as ``assets/ui/chats.js`` draws it."""
    rows = [
        {
            "title": row.title or "(empty)",
            "about": f"{row.changed:%Y-%m-%d %H:%M} · {', '.join(row.models)}",
            "href": "/chat?" + urlencode({"conversation": row.id}),
            "on": row.id == current,
        }
        for row in page.rows
    ]
    pages = max(1, -(-page.total // LISTED))
    total = f"{page.total:,} conversations"
    return {"rows": rows, "page": page.offset // LISTED + 1, "pages": pages, "total": total, "empty": "None yet."}


def where(workers: Sequence[Mapping[str, Any]], devices: Sequence[str]) -> str:
    """Who computes the answers, on what, and who else holds a device."""
    lines = [_worker(worker) for worker in workers]
    if not lines:
        lines = ["No model is in memory: it is loaded with the first question and leaves after ten idle minutes."]
    others = [device for device in devices if "chat and token inspector" not in device]
    if others:
        held = ", ".join(map(ui.escape, others))
        lines.append(f"Held by training: {held}. Answers wait for nobody: they are computed on the CPU meanwhile.")
    return "".join(f'<p class="where num">{line}</p>' for line in lines)


def _worker(worker: Mapping[str, Any]) -> str:
    place = worker["held"] or ("the CPU" if worker["device"] == "cpu" else worker["device"])
    name = ui.escape(base_name(worker["base"]))
    if worker["state"] == "loading":
        return f"<b>{name}</b> is being loaded on {ui.escape(place)}."
    count = len(worker["adapters"])
    adapters = f"{count} adapter{'' if count == 1 else 's'}"
    busy = f"{worker['active']} answering now" if worker["active"] else "idle"
    note = f" ({ui.escape(worker['note'])})" if worker["note"] else ""
    gives = "; a training job that waits for it gets it after the present answers" if worker["held"] else ""
    return f"<b>{name}</b> on {ui.escape(place)}{note}: one copy with {adapters} in memory, {busy}{gives}."
