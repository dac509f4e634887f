"""``tasks.json``: what people know about tasks and rows do not say. Documented in docs/data.md."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.data.kinds import KINDS, METRICS, metrics_in, says_whole_sentences
from core.errors import DataError
from core.texts import HALF, HALF_REMEDY, half_at

FILE = "tasks.json"
SCORED_AS = ("options", "sentence", "generation")
KNOWN = ("name", "kind", "instruction", "metric", "labels", "scored_as", "chance", "trivial")
_ALIASES = {"chance_uniform": "chance", "trivial_baseline": "trivial"}
_ABOUT = ("source", "source_commit", "licence", "license", "notes", "homepage", "citation")


class TaskMetadata(BaseModel):
    """One task's entry; everything but the name may be left out."""

    model_config = ConfigDict(extra="ignore")

    name: str
    kind: str = Field("", description="A kind's name, or a text such as 'multiple choice, 4'.")
    instruction: str = ""
    metric: str = Field("", description="A metric's name, or a text that names metrics.")
    labels: list[str] | None = None
    scored_as: str | None = None
    chance: float | None = Field(None, ge=0, le=1)
    trivial: float | None = Field(None, ge=0, le=1)
    about: dict[str, str] = Field(default_factory=dict)

    def task_kind(self) -> str | None:
        """The kind that the entry asks for; None leaves it to the rows.

        ``scored_as`` decides first, then an instruction that asks for whole sentences, then the text of ``kind``.
        """
        text = self.kind.lower()
        if self.scored_as == "sentence" or text == "sentence":
            return "sentence"
        if self.scored_as == "generation":
            return "generation"
        choice = "multiple choice" in text or text == "choice"
        if choice and says_whole_sentences(f"{self.kind} {self.instruction}"):
            return "sentence"
        if text.startswith("classification"):
            return "classification"
        if choice:
            return "choice"
        return "generation" if text.startswith(("generation", "extraction")) else None


def folder_metadata(folder: Path) -> dict[str, TaskMetadata]:
    """The entries of a folder's own ``tasks.json``, or the folder's entry in the one a level up."""
    if (path := folder / FILE).is_file():
        return read_metadata(path)
    folder = folder.resolve()
    if (path := folder.parent / FILE).is_file():
        return {name: entry for name, entry in read_metadata(path).items() if name == folder.name}
    return {}


def read_metadata(path: Path) -> dict[str, TaskMetadata]:
    """Task name -> entry; the file holds a list of entries, or an object from name to entry."""
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path.name}, line {error.lineno}, column {error.colno}: {error.msg}.", "Mend the JSON there."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 (byte {error.start}).", "Save it as UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name}: {error}.", "Write plain entries with texts and numbers.") from error
    if place := half_at(content):
        raise DataError(f"{path.name}: {place} holds {HALF}.", HALF_REMEDY)
    if isinstance(content, dict):
        content = [{"name": name, **entry} if isinstance(entry, dict) else entry for name, entry in content.items()]
    if not isinstance(content, list):
        raise DataError(f"{path.name} must hold a list of tasks.", 'Write [{"name": ..., "instruction": ...}].')
    entries = [_entry(path.name, number, value) for number, value in enumerate(content, start=1)]
    if twice := next((name for name, count in Counter(one.name for one in entries).items() if count > 1), None):
        raise DataError(f"{path.name}: the task {twice!r} stands twice.", "Keep one entry of each name.")
    return {entry.name: entry for entry in entries}


def _entry(file: str, number: int, value: Any) -> TaskMetadata:
    where = f"{file}, entry {number}"
    if not isinstance(value, Mapping) or not value.get("name"):
        raise DataError(f"{where} has no name.", 'Every entry is an object with a "name".')
    where = f"{where} ({value['name']})"
    plain = {_ALIASES.get(key, key): entry for key, entry in value.items()}
    about = {key: str(plain[key]) for key in _ABOUT if plain.get(key)}
    try:
        entry = TaskMetadata.model_validate({**plain, "about": about})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{where}: {place}: {first['msg']}.", "Correct that value.") from error
    if entry.scored_as is not None and entry.scored_as not in SCORED_AS:
        near = difflib.get_close_matches(entry.scored_as, SCORED_AS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Write one of {', '.join(SCORED_AS)}."
        raise DataError(f"{where}: scored_as {entry.scored_as!r} is not known.", hint)
    if entry.labels and len(set(entry.labels)) < len(entry.labels):
        twice = next(label for label in entry.labels if entry.labels.count(label) > 1)
        raise DataError(f"{where}: labels has {twice[:60]!r} twice.", "Name every label once.")
    if entry.kind and entry.task_kind() is None:
        raise DataError(
            f"{where}: the kind {entry.kind!r} is not known.",
            f"Write one of {', '.join(KINDS)}, or 'multiple choice, ...'.",
        )
    if entry.metric and not metrics_in(entry.metric):
        raise DataError(f"{where}: {entry.metric!r} names no metric.", f"The metrics are {', '.join(METRICS)}.")
    return entry
