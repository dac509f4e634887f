"""How the chosen runs are fused: methods to choose from, the form of one, and what it says back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from app import forms
from app.pages.fusion_choice import ABOUT, OPTION, Choice
from app.ui import components as ui
from core.errors import ConfigurationError

FORM = ("form", "rank")  # options that every method has: what is saved
e = ui.escape

Methods = Sequence[Mapping[str, Any]]
Settings = Mapping[str, Sequence[Mapping[str, Any]]]


def method_of(methods: Methods, name: str) -> Mapping[str, Any]:
    """The method with a name; the sentence of the error names those there are."""
    for one in methods:
        if one["name"] == name:
            return one
    known = ", ".join(one["name"] for one in methods)
    raise ConfigurationError(f"There is no fusion method {name!r}.", f"There are {known}.")


def listed(methods: Methods, choice: Choice) -> dict[str, Any]:
    """The value of the list of methods; each is a link that keeps the chosen runs."""
    found = []
    for one in methods:
        query = urlencode({"runs": ",".join(choice.runs), "method": one["name"]}, safe=",")
        entry = {name: one[name] for name in ("name", "title", "summary")}
        words = f"{one['source']} {'learns' if one['learns'] else 'learns nothing'}"
        found.append(entry | {"badge": one["badge"], "words": words, "href": f"/fusion?{query}"})
    return {"methods": found, "chosen": choice.method}


def card(method: Mapping[str, Any]) -> str:
    """What a method does, where it comes from, what it needs."""
    learns = (
        "It learns from prompts of the tasks, never from their answers: a progress bar, curves, cancel and resume."
        if method["learns"]
        else "It learns nothing: done as soon as the vectors are read; most of the time goes into scoring."
    )
    badge = f' <span class="badge">{e(method["badge"])}</span>' if method["badge"] else ""
    told = f'<p class="note">{e(method["note"])}</p>' if method["note"] else ""
    source = f"<p><small>{e(method['source'])}</small></p>" if method["source"] else ""
    return f"<h2>{e(method['title'])}{badge}</h2><p>{e(method['summary'])}</p>{source}{told}<p>{learns}</p>"


def groups(method: Mapping[str, Any], settings: Settings) -> list[dict[str, Any]]:
    """Options of the method, what is saved, and what this run is called and where it works."""
    own = [one for one in method["options"] if one["name"] not in FORM]
    saved = [one for one in method["options"] if one["name"] in FORM]
    run = {one["name"]: one for one in settings["run"]}
    about = _fields([run[name] for name in ABOUT if name in run], "")
    for one in about:
        if one["name"] == "name":
            one["empty"] = "made from method and runs"
    found = [forms.group("Options", _fields(own, OPTION))] if own else []
    found.append(forms.group("This run", about))
    return found + ([forms.group("What is saved", _fields(saved, OPTION), fold=True)] if saved else [])


def _fields(options: Sequence[Mapping[str, Any]], prefix: str) -> list[forms.Field]:
    """What is left empty is the default, which stands there faintly."""
    found = []
    for one in options:
        default = one["default"]
        shown = "" if default in (None, [], {}) or isinstance(default, bool) else as_text(default)
        found.append(forms.field(one, prefix, empty=shown))
    return found


def as_text(value: Any) -> str:
    """A setting as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "empty"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def defaults(method: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Every field with its default."""
    run = {one["name"]: one["default"] for one in settings["run"]}
    options = {f"{OPTION}{one['name']}": one["default"] for one in method["options"]}
    return options | {name: run[name] for name in ABOUT if name in run}


def form(method: Mapping[str, Any], settings: Settings, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The value of the form; what differs from the method's defaults is marked."""
    plain = defaults(method, settings)
    values = plain | {name: value for name, value in changes.items() if name in plain}
    return forms.form(groups(method, settings), values, base=plain)


def changes(method: Mapping[str, Any], settings: Settings, raw: Any) -> dict[str, Any]:
    """What a form says differently than the defaults; raises ConfigurationError for what cannot be read."""
    given = raw.get("values") if isinstance(raw, Mapping) else None
    plain = defaults(method, settings)
    found = forms.read(forms.fields_of(groups(method, settings)), given)
    optional = {f"{OPTION}{one['name']}" for one in method["options"] if one["optional"]}
    return {n: v for n, v in found.items() if v != plain[n] and (v not in (None, "", []) or n in optional)}


def carried(before: Mapping[str, Any], after: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Changes that the next method knows too."""
    known = defaults(after, settings)
    return {name: value for name, value in before.items() if name in known}


def request(token: Any, choice: Choice) -> str:
    """The same for the same wish from the same opening of the page."""
    return hashlib.sha256(f"{str(token)[:40]} {choice.query()}".encode()).hexdigest()[:40]


def wish(choice: Choice, method: Mapping[str, Any]) -> str:
    """What the button would do, or what is missing."""
    if not choice.runs:
        return ui.empty("Choose runs", "Two or more finished runs on the same base, above.")
    if len(choice.runs) < 2:
        return ui.empty("Choose another run", f"{choice.runs[0]} alone is what it already is.")
    names = ", ".join(choice.runs[:-1]) + f" and {choice.runs[-1]}"
    changed = ", ".join(f"{name.removeprefix(OPTION)} {as_text(v)}" for name, v in choice.changes.items())
    more = f" <small>with {e(changed)}</small>" if changed else ""
    return (
        f'<div class="note"><b>{e(method["title"])}</b> of {e(names)}{more}.'
        "<p>It is queued as a run of its own and scored on the test rows of all their tasks.</p></div>"
    )
