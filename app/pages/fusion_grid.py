"""Values of projections as heatmaps of layer x projection, one for each run or pair of runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.figures import short

LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Grid:
    """Where every path stands: ``places`` are (line, column); what is outside the layers has the line below them."""

    paths: tuple[str, ...]
    layers: tuple[int, ...]  # -1: outside
    names: tuple[str, ...]
    places: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, paths: Sequence[str]) -> Grid:
        split = [_split(path) for path in paths]
        inside = dict.fromkeys(name for layer, name in split if layer >= 0)
        last = [name.rpartition(".")[2] for name in inside]
        plain = {name: name.rpartition(".")[2] for name in inside if last.count(name.rpartition(".")[2]) == 1}
        named = [(layer, plain.get(name, name)) for layer, name in split]
        layers = tuple(sorted({layer for layer, _ in named}))
        names = tuple(dict.fromkeys(name for _, name in named))
        places = tuple((layers.index(layer), names.index(name)) for layer, name in named)
        return cls(tuple(paths), layers, names, places)

    @property
    def layered(self) -> bool:
        """Whether these are projections of layers, and not a word such as ``all``."""
        return any(layer >= 0 for layer in self.layers)

    def panels(self, rows: Sequence[str], values: np.ndarray) -> dict[str, Any]:
        """The value of a heatmap, a panel for each row; ``values`` (rows, paths), NaN where nothing is."""
        found = np.full((len(rows), len(self.layers), len(self.names)), np.nan)
        for index, (line, column) in enumerate(self.places):
            found[:, line, column] = values[:, index]
        filled = found.round(5).astype(object)
        filled[~np.isfinite(found)] = None
        return {
            "rows": list(rows),
            "cols": [""],
            "layers": ["–" if layer < 0 else layer for layer in self.layers],
            "across": [short(name) for name in self.names],
            "acrossName": "projection",
            "experts": len(self.names),
            "values": [[one] for one in filled.tolist()],
        }

    def path_at(self, clicked: Any) -> str | None:
        """The path of a cell that was clicked; what comes from a browser may be anything."""
        try:
            return self.paths[self.places.index((int(clicked["layer"]), int(clicked["expert"])))]
        except (KeyError, TypeError, ValueError):
            return None

    def picked(self, path: str) -> str | None:
        """The cell of a path in the first panel."""
        if path not in self.paths:
            return None
        line, column = self.places[self.paths.index(path)]
        return f"0,0,{line},{column}"


def _split(path: str) -> tuple[int, str]:
    """Layer and the rest of a path; -1 for what stands outside the layers, such as an embedding."""
    found = LAYER.search(path)
    return (int(found[1]), path[found.end() :] or path) if found else (-1, path)


def round_up(value: float) -> float:
    """Two digits: an end of a scale that reads well."""
    if value <= 0 or not np.isfinite(value):
        return 0.0
    step = 10.0 ** (np.floor(np.log10(value)) - 1)
    return float(round(np.ceil(value / step - 1e-9) * step, 6))
