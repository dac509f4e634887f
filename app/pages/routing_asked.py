"""What the inspector of the Routing page looks into: a text, as the address, the page's state or its form says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

from core.errors import NotFoundError, StudioError
from core.studio import Studio

LONGEST_LINK = 1500
ANSWERS = {"true": "its true answer", "made": "an answer that the model makes", "none": "no answer"}
NAMES = ("text", "raw", "system", "answer", "said", "acts", "row", "turn", "at", "on", "token")


@dataclass(frozen=True)
class Asked:
    """What is looked into: a ``text`` (or a kept answer, ``turn``), as its address says it.

    ``answer``: true (``said``, the row's own), made or none; ``acts``: the task acted as; ``at`` and ``on``: layer
    and projection; ``row``: where the text came from; ``raw``: no chat template around it.
    """

    text: str = ""
    raw: str = ""
    system: str = ""
    answer: str = "none"
    said: str = ""
    acts: str = ""
    row: str = ""
    turn: str = ""
    at: str = ""
    on: str = ""
    token: str = ""

    @classmethod
    def from_query(cls, query: Mapping[str, Any]) -> Asked:
        return cls(**{name: str(query[name]) for name in NAMES if query.get(name)})

    def state(self) -> str:
        """All of it, which ``kept`` reads back."""
        return urlencode(asdict(self))

    def query(self) -> str:
        """The address; a long text is left out of it."""
        values = asdict(self)
        if self.turn:
            values |= dict.fromkeys(("text", "said", "answer", "system", "raw", "row"), "")
        if len(self.text) + len(self.said) > LONGEST_LINK:
            values |= {"text": "", "said": ""}
        if not (values["text"] or values["turn"]):
            return ""
        return urlencode({name: value for name, value in values.items() if value})


def kept(text: Any) -> Asked:
    """What the page looks into now, from its own state."""
    return Asked.from_query(dict(parse_qsl(str(text or ""), keep_blank_values=True)))


def from_row(studio: Studio, run: str, task: str, row: int) -> Asked | StudioError:
    """A row was picked: its prompt as the run asks it, followed by its true answer."""
    try:
        found = studio.prompts(run, task, row, 1)
    except StudioError as error:
        return error
    if not found:
        return NotFoundError(f"{task} has no test row {row + 1}.", "Choose another one.")
    prompt = found[0]
    return Asked(prompt.text, "1" if prompt.raw else "", prompt.system, "true", prompt.answer, task, str(row))


def asked_of(studio: Studio, run: str, task: str, row: int, text: str, answer: str, before: str) -> Asked:
    """What the form says. A text that was changed is no longer the row's, and has no true answer."""
    old = kept(before)
    there = {"at": old.at, "on": old.on}
    answer = answer if answer in ANSWERS else "none"
    if text == old.text and old.turn:
        return Asked(text, old.raw, old.system, "true", old.said, old.acts, turn=old.turn, **there)
    if text == old.text and (old.row or old.said):
        return replace(old, answer=answer, token="")
    try:
        found = studio.prompts(run, task, row, 1) if row or task else []
    except StudioError:
        found = []
    if found and found[0].text == text:
        prompt = found[0]
        said = prompt.answer if answer == "true" else ""
        return Asked(text, "1" if prompt.raw else "", prompt.system, answer, said, task, str(row), **there)
    return Asked(text, answer="none" if answer == "true" else answer, acts=task, **there)


def number(text: Any) -> int:
    """0 where ``text`` is not a whole number."""
    return int(text) if str(text or "").isdecimal() else 0
