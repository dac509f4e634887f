"""Changes to a run's settings by dotted names: ``train.steps=100``, ``tasks.0.test_rows=50``."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from core import yaml_text
from core.errors import ConfigurationError
from core.schema import RunSpec

Changes = Iterable[str] | Mapping[str, Any] | None
MOST_SEEDS = 1000  # runs that one command queues


def given(changes: Changes) -> dict[str, Any]:
    """Changes in either form as a mapping."""
    return dict(changes) if isinstance(changes, Mapping) else parse(changes or ())


def parse(assignments: Iterable[str]) -> dict[str, Any]:
    """``["train.steps=100"]`` to ``{"train.steps": 100}``; values are read as YAML."""
    changes = {}
    for text in assignments:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise ConfigurationError(
                f"{text[:60]!r} is not of the form key.path=value.", "For example: train.steps=100."
            )
        try:
            changes[name.strip()] = yaml_text.read(value) if value else ""
        except ConfigurationError as error:
            raise ConfigurationError(
                f"The value of {name[:60]} is not valid YAML: {value[:60]!r}. {error.message}", "Quote it."
            ) from error
    return changes


def apply(spec: RunSpec, changes: Mapping[str, Any]) -> RunSpec:
    """A copy of ``spec`` with the changes, validated as a whole."""
    data = copy.deepcopy(spec.model_dump(mode="json"))
    for path, value in changes.items():
        _assign(data, path, value)
    return RunSpec.parse(data)


def _assign(data: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    if len(parents) >= yaml_text.DEEPEST:
        raise ConfigurationError(f"{path[:60]}... is not a setting.", "Names have a few parts, such as train.steps.")
    for depth, part in enumerate(parents):
        data = _step(data, part, ".".join(parents[: depth + 1]), create=True)
    if isinstance(data, list):
        data[_index(data, last, path)] = value
    elif isinstance(data, dict):
        data[last] = value
    else:
        raise ConfigurationError(f"{path}: {parents[-1]} has no settings of its own.")


def _step(data: Any, part: str, path: str, create: bool) -> Any:
    if isinstance(data, list):
        return data[_index(data, part, path)]
    if not isinstance(data, dict):
        raise ConfigurationError(f"{path} is not a group of settings.")
    return data.setdefault(part, {}) if create else data[part]


def _index(items: list[Any], part: str, path: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise ConfigurationError(f"{path}: there are {len(items)} items, numbered from 0.")
    return int(part)


def differences(specs: Mapping[str, RunSpec], *, every: bool = False) -> dict[str, dict[str, Any]]:
    """Settings that are not equal everywhere (or all): dotted name -> run -> value; names, tags and notes aside."""
    flat = {run: dict(_flatten(spec.model_dump(mode="json"))) for run, spec in specs.items()}
    names = dict.fromkeys(name for values in flat.values() for name in values)
    found = {}
    for name in names:
        if name.split(".")[0] in ("name", "tags", "notes", "origin"):
            continue
        values = {run: flat[run].get(name) for run in flat if not _unused(name, specs[run])}
        if values and (every or len({repr(value) for value in values.values()}) > 1):
            found[name] = {run: values.get(run) for run in flat}
    return found


def _unused(name: str, spec: RunSpec) -> bool:
    """A fused run carries the training settings of its first source, but only the length of prompts is read."""
    return bool(spec.sources) and name.startswith("train.") and name != "train.max_length"


def _flatten(value: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{prefix}.{index}")
    else:
        yield prefix, value


def with_seeds(spec: RunSpec, seeds: str | None) -> list[RunSpec]:
    """``"0,1,2"`` to one spec for each seed; without seeds the spec alone."""
    if not seeds:
        return [spec]
    try:
        numbers = [int(part) for part in seeds.split(",")]
    except ValueError as error:
        raise ConfigurationError(f"{seeds[:60]!r} is not a list of seeds.", "For example: --seeds 0,1,2") from error
    if len(numbers) > MOST_SEEDS:
        raise ConfigurationError(
            f"{len(numbers):,} seeds would be as many runs; at most {MOST_SEEDS:,} are queued at once.",
            "Name fewer, or queue them in turns.",
        )
    return [RunSpec.parse(spec.model_dump(mode="json") | {"seed": seed}) for seed in dict.fromkeys(numbers)]
