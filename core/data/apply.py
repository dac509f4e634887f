"""Raw rows to canonical rows by a mapping; every refusal names file, place, column and remedy."""

from __future__ import annotations

import ast
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from core.data.canonical import TEXT_COLUMNS, Row, canonical
from core.data.conversation import conversation_rows
from core.data.formats import RawFile
from core.data.mapping import Mapping, is_conversation
from core.data.names import SPLIT_NAMES
from core.errors import DataError
from core.texts import HALF, HALF_REMEDY, blank, whole


@dataclass(frozen=True, slots=True)
class Mapped:
    """A canonical row, the split that its own column names, and the raw row it came from: its place and its number."""

    row: Row
    split: str | None
    place: int
    number: int


@dataclass
class RowReader:
    """Applies a mapping to a file row by row and counts what it noticed."""

    raw: RawFile
    mapping: Mapping
    counts: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Mapped]:
        found = False
        for number, (place, raw) in enumerate(self.raw):
            split = self._split(place, raw)
            for row in self._rows(place, raw):
                found = True
                if not _whole(row):
                    raise DataError(f"{self.raw.where(place)}: a text holds {HALF}.", HALF_REMEDY)
                yield Mapped(row, split, place, number)
        if not found:
            raise DataError(f"{self.raw.name} has no rows with an answer.", "Check the mapping of its columns.")

    def notes(self) -> list[str]:
        return [f"{self.raw.name}: {text}: {count} rows." for text, count in self.counts.items()]

    def _rows(self, place: int, raw: dict[str, Any]) -> Iterator[Row]:
        mapping = self.mapping
        shared = {
            "task": self._text(place, raw, mapping.task),
            "system": self._text(place, raw, mapping.system),
            "instruction": self._text(place, raw, mapping.instruction),
        }
        messages = self._messages(place, raw)
        if messages is not None:
            where = self.raw.where(place, mapping.messages or mapping.output)
            for row in conversation_rows(messages, where, self.counts):
                yield canonical(row | {k: v for k, v in shared.items() if v})
            return
        choices = self._choices(place, raw)
        output, references = self._answer(place, raw, choices)
        row = canonical({**shared, "input": self._input(place, raw), "output": output, "references": references})
        row["choices"] = choices
        if blank(row["input"]) and blank(row["instruction"]) and not choices:
            column = mapping.input[0] if mapping.input else mapping.instruction
            raise DataError(f"{self.raw.where(place, column)}: empty.", "Fill it in or remove the row.")
        self._match(place, row)
        yield row

    def _messages(self, place: int, raw: dict[str, Any]) -> Any:
        """A conversation: one column of messages, or prompt and completion as messages."""
        mapping = self.mapping
        if mapping.messages:
            value = raw.get(mapping.messages)
            return _decoded(value) if isinstance(value, str) else value if value is not None else []
        if len(mapping.input) == 1 and mapping.output and is_conversation(raw.get(mapping.input[0])):
            completion = raw.get(mapping.output)
            if isinstance(completion, str):
                completion = [{"role": "assistant", "content": completion}]
            if is_conversation(completion):
                start = raw[mapping.input[0]]
                before = [{**part, "role": "context"} if _speaks(part) else part for part in start]
                return [*before, *completion]
        return None

    def _split(self, place: int, raw: dict[str, Any]) -> str | None:
        if self.mapping.split is None:
            return None
        value = str(raw.get(self.mapping.split) or "").strip()
        if value.lower() in SPLIT_NAMES:
            return SPLIT_NAMES[value.lower()]
        raise DataError(
            f"{self.raw.where(place, self.mapping.split)}: {value!r} is not a split.",
            "Write train, validation or test, or unset the role split.",
        )

    def _text(self, place: int, raw: dict[str, Any], column: str | None) -> str:
        """The cell as text; empty for a missing one."""
        if column is None:
            return ""
        value = plain_text(raw.get(column))
        if value is None:
            raise DataError(
                f"{self.raw.where(place, column)}: {_named(raw[column])} where a text or a number is expected.",
                "Make the column one kind of value, or choose another column for this role.",
            )
        return value.strip("\n\r") if isinstance(raw.get(column), str) else value

    def _input(self, place: int, raw: dict[str, Any]) -> str:
        columns = self.mapping.input
        if len(columns) == 1:
            return self._text(place, raw, columns[0]).strip()
        parts = [(name, self._text(place, raw, name).strip()) for name in columns]
        return "\n".join(f"{name.replace('_', ' ').capitalize()}: {text}" for name, text in parts if text)

    def _choices(self, place: int, raw: dict[str, Any]) -> list[str]:
        columns = self.mapping.choices
        if len(columns) > 1:
            return [text for name in columns if (text := self._text(place, raw, name).strip())]
        return self._list(place, raw, columns[0]) if columns else []

    def _list(self, place: int, raw: dict[str, Any], column: str) -> list[str]:
        """A cell that holds a list, also ``{"text": [...]}`` and lists written as text."""
        value = raw.get(column)
        if isinstance(value, str):
            value = _decoded(value)
        if isinstance(value, dict):
            value = value.get("text", value.get("texts", value))
        if value is None or value == "":
            return []
        texts = [plain_text(v) for v in value] if isinstance(value, list | tuple) else [plain_text(value)]
        if any(text is None for text in texts):
            raise DataError(
                f"{self.raw.where(place, column)}: not a list of texts.", "Write a list such as [\"yes\", \"no\"]."
            )  # fmt: skip
        return [text.strip() for text in texts if text]

    def _answer(self, place: int, raw: dict[str, Any], choices: list[str]) -> tuple[str, list[str]]:
        """The wanted answer and all answers that count as right."""
        mapping = self.mapping
        references = [text for name in mapping.references for text in self._list(place, raw, name)]
        column = mapping.output or mapping.label or (mapping.references[0] if mapping.references else None)
        if mapping.output:
            value = raw.get(mapping.output)
            if isinstance(value, list | dict):
                answers = self._list(place, raw, mapping.output)
                output, references = (answers[0] if answers else ""), references or answers
            else:
                output = self._text(place, raw, mapping.output).strip()
        elif mapping.label:
            output = self._label(place, raw, choices)
        else:
            output = references[0] if references else ""
        if blank(output):
            raise DataError(f"{self.raw.where(place, column)}: the answer is empty.", "Fill it in or remove the row.")
        if references and output not in references:
            references = [output, *references]
        return output, references if len(references) > 1 else []

    def _label(self, place: int, raw: dict[str, Any], choices: list[str]) -> str:
        """The text of a class, or of the choice whose number, letter or name a cell holds."""
        mapping = self.mapping
        value = raw.get(mapping.label)
        text = self._text(place, raw, mapping.label).strip()
        if choices:
            index = self._choice_index(raw, text, choices, mapping)
            if index is not None and 0 <= index < len(choices):
                return choices[index]
            return text
        if mapping.label_names and text.removeprefix("-").isdecimal():
            index = int(text)
            if 0 <= index < len(mapping.label_names):
                return mapping.label_names[index]
            hidden = " It usually stands for a hidden label." if index == -1 else ""
            raise DataError(
                f"{self.raw.where(place, mapping.label)}: there is no label {index} among "
                f"{len(mapping.label_names)} label names.{hidden}",
                "Leave such rows (or this file) out, or correct label_names.",
            )
        return f"{value:g}" if isinstance(value, float) and value.is_integer() else text

    def _choice_index(self, raw: dict[str, Any], text: str, choices: list[str], mapping: Mapping) -> int | None:
        cell = raw.get(mapping.choices[0]) if len(mapping.choices) == 1 else None
        if isinstance(cell, dict) and isinstance(cell.get("label"), list):  # {"text": [...], "label": ["A", ...]}
            names = [str(name) for name in cell["label"]]
            return names.index(text) if text in names else None
        if text in choices:
            return choices.index(text)
        if text in mapping.choices:  # the name of the column that holds the right option
            return mapping.choices.index(text)
        bare = text.strip("().")
        if bare.isdecimal():
            return int(bare) - mapping.first_choice
        return "ABCDEFGH".find(bare.upper()) if len(bare) == 1 and bare.upper() in "ABCDEFGH" else None

    def _match(self, place: int, row: Row) -> None:
        """Make output and choices agree, or say where they do not."""
        choices = row["choices"]
        if not choices or row["output"] in choices:
            if len(choices) == 1:
                raise DataError(f"{self.raw.where(place)}: only one choice.", "Give at least two choices.")
            return
        same = [choice for choice in choices if _loose(choice) == _loose(row["output"])]
        if len(same) == 1:
            row["output"] = same[0]
            return
        column = self.mapping.output or self.mapping.label
        shown = ", ".join(repr(choice[:40]) for choice in choices[:6])
        raise DataError(
            f"{self.raw.where(place, column)}: the answer {row['output'][:60]!r} is not among the choices {shown}.",
            "Write the answer as it stands in the choices, or map its number or letter as label.",
        )


def plain_text(value: Any) -> str | None:
    """A cell as text: nothing is empty, truth values are true and false; None for lists, objects, bytes, infinity."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | dict | tuple | bytes) or isinstance(value, float) and math.isinf(value):
        return None
    return str(value)


def _decoded(value: str) -> Any:
    """A list or object written as text, in JSON or as Python prints it; other texts stay themselves."""
    text = value.strip()
    if text[:1] not in ("[", "{"):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return value


def _whole(row: Row) -> bool:
    said = [part["content"] for part in row["history"]]
    return whole("".join([*(row[name] for name in TEXT_COLUMNS), *row["references"], *row["choices"], *said]))


def _named(value: Any) -> str:
    names = {list: "a list", dict: "an object", bytes: "bytes", float: "an infinite number"}
    return names.get(type(value), type(value).__name__)


def _loose(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


def _speaks(part: dict[str, Any]) -> bool:
    return (part.get("role") or part.get("from")) in ("assistant", "gpt")
