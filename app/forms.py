"""Descriptions of settings to forms and back: a name, its help and its bounds are written once, in the schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from core.errors import ConfigurationError

LISTS = ("names", "integers", "ranges", "several", "numbers")
YES = ("true", "yes", "on", "1")

Field = dict[str, Any]


def field(option: Mapping[str, Any], prefix: str = "", **more: Any) -> Field:
    """A form's field from an option as the catalogue describes it; ``more`` overrides."""
    kind = option["type"]
    shown = dict.fromkeys(("names", "integers", "ranges", "several", "numbers", "json"), "text").get(kind, kind)
    return {
        "name": f"{prefix}{option['name']}",
        "label": option["name"].replace("_", " "),
        "type": shown,
        "reads": kind,
        "help": option.get("help", ""),
        "choices": list(option.get("choices") or ()),
        "bounds": dict(option.get("bounds") or {}),
        "optional": bool(option.get("optional")),
    } | more


def plain(name: str, label: str, kind: str = "text", **more: Any) -> Field:
    """A field that is no setting of a schema."""
    return field({"name": name, "type": kind}, label=label, **more)


def group(title: str, fields: Iterable[Field], **more: Any) -> dict[str, Any]:
    return {"title": title, "fields": list(fields), **more}


def form(
    groups: Sequence[Mapping[str, Any]],
    values: Mapping[str, Any],
    base: Mapping[str, Any] | None = None,
    problems: Mapping[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The value of ``components.settings``."""
    return {
        "groups": [dict(part) for part in groups],
        "values": dict(values),
        "base": None if base is None else dict(base),
        "problems": dict(problems or {}),
        **more,
    }


def fields_of(groups: Iterable[Mapping[str, Any]]) -> list[Field]:
    return [one for part in groups for one in part["fields"]]


def values_in(raw: Any) -> dict[str, Any]:
    """The values of a form as a browser sent it; empty where it sent anything else."""
    values = raw.get("values") if isinstance(raw, Mapping) else None
    return dict(values) if isinstance(values, Mapping) else {}


def read(fields: Iterable[Field], raw: Any) -> dict[str, Any]:
    """What a browser sent for ``fields`` as plain values; other names are dropped, bounds are left to the schema.

    Raises:
        ConfigurationError: a text that is not what its field reads; the sentence names the field.
    """
    given = raw if isinstance(raw, Mapping) else {}
    return {one["name"]: value_of(one, given[one["name"]]) for one in fields if one["name"] in given}


def value_of(one: Field, raw: Any) -> Any:
    """One field's value; None where it is empty."""
    kind = one.get("reads", one["type"])
    if kind == "boolean":
        return raw if isinstance(raw, bool) else str(raw).lower() in YES
    if kind in LISTS:
        return _list(one, kind, raw)
    if raw is None or raw == "":
        return None if one["optional"] or kind in ("integer", "number", "choice") else ""
    if kind == "integer":
        return _number(one, raw, whole=True)
    if kind == "number":
        return _number(one, raw, whole=False)
    if kind == "choice":
        known = [choice[0] if isinstance(choice, list | tuple) else choice for choice in one["choices"]]
        if raw not in known:
            raise ConfigurationError(f"{one['label']}: {str(raw)[:60]!r} is not offered.", "Choose one of the list.")
    return str(raw)


def _number(one: Field, raw: Any, whole: bool) -> int | float:
    text = str(raw).strip().replace(",", "") if not whole else str(raw).strip().replace(",", "").replace("_", "")
    try:
        number = float(text)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise ConfigurationError(f"{one['label']}: {text[:40]!r} is not {kind}.", "Write digits, such as 16.") from None
    if whole and not number.is_integer():
        raise ConfigurationError(f"{one['label']}: {text[:40]} is not a whole number.", "Leave out the fraction.")
    return int(number) if whole else number


def _list(one: Field, kind: str, raw: Any) -> Any:
    """Several values from a list or from text with commas; one alone may stand for itself, as the options allow."""
    parts = [str(part).strip() for part in (raw if isinstance(raw, list) else str(raw or "").split(","))]
    parts = [part for part in parts if part]
    if not parts:
        return [] if kind in ("several", "numbers") else None
    if kind == "numbers":
        return [_number(one, part, whole=False) for part in parts]
    if kind == "several":
        return parts
    if kind == "names":
        return parts[0] if len(parts) == 1 and not parts[0].isidentifier() else parts
    if kind == "ranges":
        return [int(part) if part.isdecimal() else part for part in parts]
    numbers = [_number(one, part, whole=True) for part in parts]
    return numbers[0] if len(numbers) == 1 else numbers
