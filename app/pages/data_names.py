"""Names of data sets on pages: of several versions with one name, the name means the one that was given it last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Datasets = Sequence[Mapping[str, Any]]


def meant(datasets: Datasets) -> dict[str, Mapping[str, Any]]:
    """Every id, name and alias -> the data set that the store finds under it."""
    found: dict[str, Mapping[str, Any]] = {}
    for data in datasets:
        for name in (data["name"], *data["aliases"]):
            if name not in found or _given(data, name) > _given(found[name], name):
                found[name] = data
    return found | {data["id"]: data for data in datasets}


def _given(data: Mapping[str, Any], name: str) -> str:
    return data["named"].get(name, data["created"])


def shown(data: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> str:
    """What leads to this data set: its name, or its id where the name means another."""
    return data["name"] if known[data["name"]]["id"] == data["id"] else data["id"]
