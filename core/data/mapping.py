"""Which column plays which role: found out from names and values, and correctable by hand."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping as Given
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from core.data.names import OPTION_COLUMN, SPLIT_NAMES, USUAL_NAMES, USUAL_PAIRS, plain_name
from core.errors import DataError
from core.texts import listed

ROLES = ("task", "instruction", "system", "input", "output", "references", "choices", "label", "messages", "split")
SEVERAL = ("input", "references", "choices")

RawRow = dict[str, Any]


class Mapping(BaseModel):
    """Role -> column. ``input``, ``references`` and ``choices`` may be read from several columns."""

    model_config = ConfigDict(extra="forbid")

    task: str | None = None
    instruction: str | None = None
    system: str | None = None
    input: list[str] = Field(default_factory=list)
    output: str | None = None
    references: list[str] = Field(default_factory=list)
    choices: list[str] = Field(default_factory=list)
    label: str | None = Field(None, description="A class, or the number, letter or text of the right choice.")
    messages: str | None = Field(None, description="A conversation; each answer in it becomes a row.")
    split: str | None = Field(None, description="Names each row's split.")
    label_names: list[str] = Field(default_factory=list, description="Texts of the labels 0, 1, 2, ...")
    first_choice: int = Field(0, description="The number of the first choice: 0, or 1 where people count from 1.")

    def columns(self) -> list[str]:
        """All columns that are read."""
        single = [getattr(self, role) for role in ROLES if role not in SEVERAL]
        return [name for name in single if name] + [name for role in SEVERAL for name in getattr(self, role)]

    def shown(self) -> dict[str, Any]:
        """Only the roles that have a column, for people and for storage."""
        return {key: value for key, value in self.model_dump().items() if value or key == "first_choice" and value}


def parse_mapping(given: Given[str, Any] | None) -> dict[str, Any]:
    """Corrections as people write them: ``{"input": "premise,hypothesis", "label": "gold"}``, empty to unset a role."""
    roles: dict[str, Any] = {}
    for role, value in (given or {}).items():
        if role not in ROLES and role not in ("label_names", "first_choice"):
            near = difflib.get_close_matches(role, ROLES, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise DataError(f"{role!r} is not a role of a column.", f"{hint}The roles are {', '.join(ROLES)}.")
        if role in SEVERAL or role == "label_names":
            roles[role] = _texts(role, value)
        elif role == "first_choice":
            roles[role] = _place(value)
        elif value is None or isinstance(value, str):
            roles[role] = value or None
        else:
            raise DataError(f"The role {role} has one column, not {str(value)[:60]!r}.", "Name one column as a text.")
    return roles


def _texts(role: str, value: Any) -> list[str]:
    parts = value.split(",") if isinstance(value, str) else [] if value is None else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise DataError(f"{role} is {str(value)[:60]!r}.", "Write names with commas between, or a list of them.")
    return [part.strip() for part in parts if part.strip()]


def _place(value: Any) -> int:
    if str(value).strip() not in ("0", "1"):
        raise DataError(f"first_choice is {str(value)[:60]!r}.", "Write 0, or 1 where people count choices from 1.")
    return int(value)


def detect(
    columns: Sequence[str],
    rows: Sequence[RawRow],
    *,
    file: str = "The file",
    given: Given[str, Any] | None = None,
    label_names: Given[str, list[str]] | None = None,
) -> tuple[Mapping, list[str]]:
    """The mapping of a file's columns and notes about what was guessed.

    ``rows`` are the first ones; ``given`` corrects single roles; ``label_names`` are class names found in the file.
    """
    given = parse_mapping(given)
    _check_columns(given, columns, file)
    taken = {name for value in given.values() for name in (value if isinstance(value, list) else [value])}
    free = [name for name in columns if name not in taken]
    roles = given if "messages" in given else {"messages": _conversation(free, rows), **given}
    if not roles["messages"]:
        roles = {**_by_name(free, rows, given), **roles}
    mapping = Mapping(**roles)
    notes = [] if mapping.messages else _guess_missing(mapping, free, rows, given)
    if mapping.label and not mapping.label_names:
        mapping.label_names = list((label_names or {}).get(mapping.label, ()))
    if mapping.label and mapping.choices and "first_choice" not in given:
        mapping.first_choice = _first_number(mapping, rows)
    _check_complete(mapping, columns, file)
    unused = [name for name in columns if name not in mapping.columns()]
    if unused:
        notes.append(f"{file}: not used: {listed(unused, quoted=False)}.")
    return mapping, notes


def _check_columns(given: Given[str, Any], columns: Sequence[str], file: str) -> None:
    for role, value in given.items():
        if role in ("label_names", "first_choice"):
            continue
        for name in value if isinstance(value, list) else [value]:
            if name and name not in columns:
                near = difflib.get_close_matches(name, columns, n=1, cutoff=0.4)
                hint = f"Did you mean {near[0]!r}? " if near else ""
                raise DataError(
                    f"{file} has no column {name!r} for the role {role}.",
                    f"{hint}Its columns are {listed(columns)}.",
                )


def _conversation(columns: Sequence[str], rows: Sequence[RawRow]) -> str | None:
    """The column of role/content (or from/value) messages, if there is one."""
    wanted = {plain_name(name) for name in USUAL_NAMES["messages"]}
    ordered = sorted(columns, key=lambda name: plain_name(name) not in wanted)
    for name in ordered:
        value = next((row[name] for row in rows if row.get(name)), None)
        if is_conversation(value) and plain_name(name) not in ("prompt", "completion", "chosen", "rejected"):
            return name
    return None


def is_conversation(value: Any) -> bool:
    keys = ({"role", "content"}, {"from", "value"})
    return isinstance(value, list) and bool(value) and all(
        isinstance(part, dict) and any(pair <= set(part) for pair in keys) for part in value
    )  # fmt: skip


def _by_name(columns: Sequence[str], rows: Sequence[RawRow], given: Given[str, Any]) -> dict[str, Any]:
    """Roles of the columns that carry usual names."""
    plain = {plain_name(name): name for name in reversed(columns)}
    roles: dict[str, Any] = {}
    used: set[str] = set()

    def first(role: str) -> str | None:
        return next((c for name in USUAL_NAMES[role] if (c := plain.get(plain_name(name))) and c not in used), None)

    def take(role: str, value: Any) -> None:
        if value and role not in given:
            roles[role] = value
            used.update(value if isinstance(value, list) else [value])

    for role in ("task", "system", "instruction"):
        take(role, first(role))
    split = first("split")
    take("split", split if split and _all_splits(split, rows) else None)
    take("choices", [name] if (name := first("choices")) else _option_columns(columns, rows))
    take("references", [name] if (name := first("references")) else [])
    pair = next((p for p in USUAL_PAIRS if all(plain_name(n) in plain for n in p)), None)
    take("input", [plain[plain_name(name)] for name in pair] if pair else [n for n in [first("input")] if n])
    if not (given.get("output") or given.get("label")):
        take("output", first("output"))
        output = roles.get("output")
        if not output or (roles.get("choices") or given.get("choices")) and _indexes(output, rows):
            roles.pop("output", None)
            take("label", output or first("label"))
    return roles


def _all_splits(column: str, rows: Sequence[RawRow]) -> bool:
    return all(str(row.get(column)).lower() in SPLIT_NAMES for row in rows)


def _option_columns(columns: Sequence[str], rows: Sequence[RawRow]) -> list[str]:
    """Columns such as choice1, choice2 or A, B, C that hold one option each."""
    groups: dict[str, list[str]] = {}
    for name in columns:
        match = OPTION_COLUMN.match(str(name).strip().lower().replace(" ", "_"))
        if match and all(isinstance(row.get(name), str | None) for row in rows):
            groups.setdefault(match[1] or "", []).append(name)
    best = max(groups.values(), key=len, default=[])
    return best if len(best) >= 2 else []


def _indexes(column: str, rows: Sequence[RawRow]) -> bool:
    """Whether a column holds numbers or letters of choices rather than answers."""
    values = [row.get(column) for row in rows]
    return all(isinstance(v, int) or isinstance(v, str) and re.fullmatch(r"\(?([A-Ha-h]|\d)[).]?", v) for v in values)


def _guess_missing(mapping: Mapping, free: Sequence[str], rows: Sequence[RawRow], given: Given[str, Any]) -> list[str]:
    """Fill input and label by looking at the values where names said nothing."""
    notes = []
    left = [name for name in free if name not in mapping.columns() and _is_flat(name, rows)]
    if not mapping.input and not mapping.instruction and "input" not in given and left:
        others = left if mapping.output or mapping.label or len(left) > 1 else []
        longest = max(others, key=lambda name: _mean_length(name, rows), default=None)
        if longest is not None:
            mapping.input = [longest]
            left.remove(longest)
            notes.append(f"{longest!r} was taken as input, because its texts are the longest.")
    if not (mapping.output or mapping.label or mapping.references) and left:
        distinct = {name: len({str(row.get(name)) for row in rows}) for name in left}
        name = min(left, key=distinct.__getitem__)
        few = 2 <= distinct[name] <= max(2, len(rows) // 3)
        if few:
            mapping.label = name
            notes.append(f"{name!r} was taken as label: it has {distinct[name]} different values.")
        elif len(left) == 1:
            mapping.output = name
            notes.append(f"{name!r} was taken as output: it is the only column left.")
    return notes


def _is_flat(name: str, rows: Sequence[RawRow]) -> bool:
    return all(not isinstance(row.get(name), list | dict | bytes) for row in rows)


def _mean_length(name: str, rows: Sequence[RawRow]) -> float:
    return sum(len(str(row.get(name) or "")) for row in rows) / max(len(rows), 1)


def _first_number(mapping: Mapping, rows: Sequence[RawRow]) -> int:
    """1 if the numbers of the right choices never are 0 and reach the number of choices, else 0."""
    numbers = [int(v) for row in rows if re.fullmatch(r"\d+", str(v := row.get(mapping.label)))]
    count = len(mapping.choices)
    if count == 1:
        lists = [row.get(mapping.choices[0]) for row in rows]
        count = min((len(v) for v in lists if isinstance(v, list)), default=0)
    return 1 if numbers and min(numbers) == 1 and max(numbers) >= count > 0 else 0


def _check_complete(mapping: Mapping, columns: Sequence[str], file: str) -> None:
    shown = listed(columns)
    if not (mapping.messages or mapping.output or mapping.label or mapping.references):
        raise DataError(
            f"{file}: no column holds the wanted answers. Its columns are {shown}.",
            "Say which one does: output=COLUMN for texts, label=COLUMN for classes.",
        )
    if not (mapping.messages or mapping.input or mapping.instruction or mapping.choices):
        raise DataError(
            f"{file}: no column holds what the model is given. Its columns are {shown}.", "Say input=COLUMN."
        )
