"""What callers from elsewhere may name: what is stored here, what they sent, and what lies on the Hub.

A name never becomes a path of this machine, whoever asks: runs and data sets are looked up before anything else sees
their names, and what could only be a file is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import overrides, yaml_text
from core.errors import ConfigurationError, DataError
from core.home import PROJECT
from core.schema import BUNDLED_BASE, MethodSpec, ModelSpec, RunSpec
from core.wire import fit

if TYPE_CHECKING:
    from core.studio import Studio

HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
HUB_SET = re.compile(r"hub:[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?(:[\w./-]+)?")


def spec(studio: Studio, value: dict[str, Any] | str, _: Mapping[str, Any]) -> RunSpec:
    """A run as a mapping or as YAML, with its data sets by id."""
    data = _yaml(value) if isinstance(value, str) else value
    whole = RunSpec.parse(data if data is not None else {})
    return RunSpec.parse(_looked_up(studio, "", whole.model_dump(mode="json", exclude_unset=True)))


def changes(studio: Studio, value: dict[str, Any] | list[str], _: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(value, list):
        for text in value:
            _yaml(text.partition("=")[2])
        value = overrides.parse(value)
    return {name: _looked_up(studio, name, item) for name, item in value.items()}


def method(studio: Studio, value: str | dict[str, Any], _: Mapping[str, Any]) -> MethodSpec:
    return MethodSpec.parse(_looked_up(studio, "method", {"name": value} if isinstance(value, str) else value))


def methods(studio: Studio, value: Sequence[str | dict[str, Any]], _: Mapping[str, Any]) -> list[MethodSpec]:
    return [method(studio, one, _) for one in value]


def model(studio: Studio, value: str | dict[str, Any], _: Mapping[str, Any]) -> ModelSpec:
    return ModelSpec.parse(_looked_up(studio, "model", {"base": value} if isinstance(value, str) else value))


def base(_: Studio, value: str, __: Mapping[str, Any]) -> str:
    return _hub("model.base", value)


def sources(studio: Studio, value: Sequence[str], _: Mapping[str, Any]) -> list[str]:
    """``run-3`` or ``run-3:TASK``, whatever the run was called."""
    return [_run(studio, one) for one in value]


def expert(studio: Studio, value: str, _: Mapping[str, Any]) -> str:
    """``TASK=EXPERT``, where the expert is a run or ``RUN:TASK``."""
    task, sign, name = value.partition("=")
    return f"{task}={_run(studio, name.strip())}" if sign else value


def sent(studio: Studio, value: str | list[str], _: Mapping[str, Any]) -> str | list[Path]:
    """Files that were sent (``PARCEL/path``), or a Hub data set (``hub:owner/name``)."""
    from core.received import Received

    given = [value] if isinstance(value, str) else value
    if len(given) == 1 and given[0].startswith("hub:"):
        if not HUB_SET.fullmatch(given[0]) or ".." in given[0]:
            raise DataError(f"{given[0]!r} is not a Hub data set.", "Write hub:owner/name, with @revision if needed.")
        return given[0]
    return [Received(studio.home).path(one) for one in given]


def _looked_up(studio: Studio, name: str, value: Any) -> Any:
    """``value`` with the names of stored things as ids; ``name``: the dotted name of the setting that it is for."""
    if isinstance(value, dict):
        return {key: _looked_up(studio, f"{name}.{key}".strip("."), item) for key, item in value.items()}
    if isinstance(value, list):
        return [_looked_up(studio, name, item) for item in value]
    if not isinstance(value, str):
        return value
    parts = [part for part in name.split(".") if not part.isdecimal()]
    if parts in (["sources"], ["method", "options", "experts_from"]):
        return _run(studio, value)
    if parts == ["tasks", "dataset"]:
        return studio.dataset(value)["id"]
    if parts == ["model", "base"] or parts[-1] == "embedder":
        return _hub(name, value)
    return _no_file(name, value) if parts[0] == "method" else value


def _run(studio: Studio, name: str) -> str:
    head, colon, task = name.partition(":")
    return f"{studio.records.find(head).id}{colon}{task}"


def _hub(name: str, value: str) -> str:
    if value == BUNDLED_BASE or (HUB.fullmatch(value) and not _exists(value)):
        return value
    raise ConfigurationError(
        f"{name}: {value!r} is no model of the Hub.",
        f"Callers from elsewhere name {BUNDLED_BASE} or a Hub id such as owner/name, no folder of this machine.",
    )


def _no_file(name: str, value: str) -> str:
    if value.startswith(("/", "~", "\\")) or _exists(value):
        raise ConfigurationError(
            f"{name}: {value!r} names a file.", "Callers from elsewhere name no file of this machine."
        )
    return value


def _exists(value: str) -> bool:
    """Whether the web process or a worker would take this for a file."""
    try:
        return any((folder / value).exists() for folder in (Path.cwd(), PROJECT))
    except (OSError, ValueError):
        return True  # too long, or no name at all


def _yaml(text: str) -> Any:
    data = yaml_text.read(text)
    fit(data)
    return data
