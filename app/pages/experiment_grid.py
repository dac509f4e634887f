"""The grid of the split designer and the cells of a method, each made from the other. Plain data in, plain data out.

A painted cell is its three words, or frozen, with those settings of its own (experts, rank, alpha, options of words)
that differ from the controls of the whole split. The names of options are those of ``experiment_words``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.pages.experiment_words import PARTS, Words, option_keys

MOST_BLOCKS = 16
ALL = "all-linear"
SIZES = ("experts", "rank", "alpha")  # settings of a cell besides its words

Position = tuple[str, int]  # projection, block


@dataclass(frozen=True)
class Painted:
    """What one cell of the grid says. ``words``: down, gate and up; None for frozen. ``own``: (setting, JSON)."""

    words: tuple[str, ...] | None
    own: tuple[tuple[str, str], ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        return {name: json.loads(value) for name, value in self.own}


FROZEN = Painted(None)


def painted(words: Sequence[str], own: Mapping[str, Any] | None = None) -> Painted:
    return Painted(tuple(words), tuple(sorted((name, json.dumps(value)) for name, value in (own or {}).items())))


def block_of(layer: int, layers: int, blocks: int) -> int:
    """The block that a layer belongs to, where ``layers`` are cut into equal blocks from below."""
    return layer * blocks // layers


def spans(layers: int, blocks: int) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in range(blocks)]
    for layer in range(layers):
        found[block_of(layer, layers, blocks)].append(layer)
    return found


def span_name(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"


def words_at(place: Any) -> tuple[str, ...] | None:
    return tuple(place.words[part]["word"] for part in PARTS) if place.words else None


def blocks_needed(size: Any) -> int:
    """The fewest equal blocks of layers within which nothing changes; as many as fit on a page where none do."""
    most = max(1, min(size.layers, MOST_BLOCKS))
    for blocks in range(1, most + 1):
        seen: dict[Position, Any] = {}
        if all(
            seen.setdefault((p.projection, block_of(p.layer, size.layers, blocks)), signature(p)) == signature(p)
            for p in size.places
        ):
            return blocks
    return most


def signature(place: Any) -> Any:
    """What makes two places the same split; frozen and not adapted are the same."""
    return (place.experts, place.rank, place.alpha, repr(place.words)) if place.words else None


def grid_of(size: Any, words: Words, blocks: int) -> dict[str, Any]:
    """The value of ``components.split_grid``: what most layers of a block do."""
    controls = controls_of(size, words)
    general = experts_by_layer(controls.get("experts", 1), size.layers)
    votes: dict[str, list[Any]] = {}
    for place in size.places:
        votes.setdefault(f"{place.projection}|{block_of(place.layer, size.layers, blocks)}", []).append(place)
    cells = {
        f"{row}|{col}": _shown(votes.get(f"{row}|{col}", ()), controls, general, words)
        for row in size.projections
        for col in range(blocks)
    }
    return {
        "rows": size.projections,
        "cols": [span_name(numbers) for numbers in spans(size.layers, blocks)],
        "words": {part: [word["name"] for word in words[part]] for part in PARTS},
        "about": {part: {word["name"]: word["summary"] for word in words[part]} for part in PARTS},
        "cells": cells,
    }


def _shown(
    places: Sequence[Any], controls: Mapping[str, Any], general: Sequence[int], words: Words
) -> dict[str, Any] | None:
    """A cell as the grid's script holds it, from the places that it covers."""
    if not places:
        return None
    most = Counter(repr(signature(place)) for place in places).most_common(1)[0][0]
    place = next(place for place in places if repr(signature(place)) == most)
    if not place.words:
        return {"frozen": True} if place.frozen else None
    own = _own(place, controls, general[place.layer], words)
    return dict(zip(PARTS, words_at(place), strict=True)) | ({"own": own} if own else {})


def _own(place: Any, controls: Mapping[str, Any], experts: int, words: Words) -> dict[str, Any]:
    """The settings of a place that the controls of the whole split do not say."""
    said = {"experts": experts, "rank": controls.get("rank"), "alpha": controls.get("alpha")}
    own = {name: getattr(place, name) for name in SIZES if getattr(place, name) != said[name]}
    for part, chosen in place.words.items():
        defaults = {o["name"]: o["default"] for o in _options(words, part, chosen["word"])}
        for name, key in option_keys(words, part, chosen["word"]).items():
            if chosen.get(name) != controls.get(key, defaults[name]):
                own[key] = chosen.get(name)
    return own


def as_written(cell: Mapping[str, Any], words: Words) -> dict[str, Any] | None:
    """A cell of a split as the grid's script holds it, whether or not it can be trained; None for unknown words."""
    own = {name: cell[name] for name in SIZES if isinstance(cell.get(name), int | float)}
    found: dict[str, Any] = {}
    for part, default in zip(PARTS, ("unique", "none", "unique"), strict=True):
        word = cell.get(part) or default
        options = dict(word) if isinstance(word, Mapping) else {"word": word}
        found[part] = options.pop("word", default)
        keys = option_keys(words, part, found[part])
        own |= {keys[name]: value for name, value in options.items() if name in keys}
    shown = found | ({"own": own} if own else {})
    return shown if _read(shown, words) is not None else None


def checked(grid: Any, size: Any, words: Words) -> dict[Position, Painted] | None:
    """What a browser painted, by position; None where it is no grid of this base."""
    if not isinstance(grid, Mapping) or list(grid.get("rows") or ()) != size.projections:
        return None
    blocks, cells = len(grid.get("cols") or ()), grid.get("cells")
    if not 1 <= blocks <= max(1, min(size.layers, MOST_BLOCKS)) or not isinstance(cells, Mapping):
        return None
    found: dict[Position, Painted] = {}
    for row in size.projections:
        for col in range(blocks):
            cell = cells.get(f"{row}|{col}")
            if cell is None:
                continue
            read = _read(cell, words)
            if read is None:
                return None
            found[row, col] = read
    return found


def _read(cell: Any, words: Words) -> Painted | None:
    if not isinstance(cell, Mapping):
        return None
    if cell.get("frozen"):
        return FROZEN
    if any(cell.get(part) not in {word["name"] for word in words[part]} for part in PARTS):
        return None
    own = cell.get("own") if isinstance(cell.get("own"), Mapping) else {}
    known = {*SIZES, *(key for part in PARTS for key in option_keys(words, part, cell[part]).values())}
    return painted([cell[part] for part in PARTS], {name: value for name, value in own.items() if name in known})


def cells_of(
    found: Mapping[Position, Painted], controls: Mapping[str, Any], size: Any, words: Words, blocks: int
) -> list[dict[str, Any]]:
    """The fewest patterns that say what is painted; the first match wins, so later ones may run over earlier ones.

    ``controls``: experts (a number, or one for each equal block of all layers), rank, alpha, and options of words as
    ``down.dropout``.
    """
    where = {(p.projection, block_of(p.layer, size.layers, blocks)) for p in size.places}
    real = {position: there for position, there in found.items() if position in where}
    if all(there == FROZEN for there in real.values()):
        return []
    counts = Counter(real.values())
    order = sorted(counts, key=lambda one: (counts[one], one.words or (), one.own))
    rows, columns = _patterns(real, order, 0), _patterns(real, order, 1)
    shorter = rows if len(rows) <= len(columns) else columns
    return [_cell(one, part, controls, size, words, blocks) for one, part in shorter]


def _patterns(
    real: Mapping[Position, Painted], order: Sequence[Painted], axis: int
) -> list[tuple[Painted, set[Position]]]:
    """Rectangles of equal cells, grown along one axis; rarer ones come first, commoner ones may cover them."""
    taken: set[Position] = set()
    found = []
    for one in order:
        need = {position for position, there in real.items() if there == one}
        groups: list[tuple[set[Any], set[Any], set[Any]]] = []  # lines, wanted on the other axis, allowed there
        lines = dict.fromkeys(position[axis] for position in real if position in need)
        for line in sorted(lines, key=lambda line: -sum(p[axis] == line for p in need)):
            wanted = {p[1 - axis] for p in need if p[axis] == line}
            allowed = wanted | {p[1 - axis] for p in taken if p[axis] == line}
            for i, (members, has, may) in enumerate(groups):
                if has | wanted <= may & allowed:
                    groups[i] = (members | {line}, has | wanted, may & allowed)
                    break
            else:
                groups.append(({line}, wanted, allowed))
        for members, has, _ in groups:
            pairs = {(a, b) for a in members for b in has}
            found.append((one, pairs if axis == 0 else {(b, a) for a, b in pairs}))
        taken |= need
    return found


def _cell(
    one: Painted, positions: set[Position], controls: Mapping[str, Any], size: Any, words: Words, blocks: int
) -> dict[str, Any]:
    names = [name for name in size.projections if any(row == name for row, _ in positions)]
    chosen = {col for _, col in positions}
    layers = [layer for layer in range(size.layers) if block_of(layer, size.layers, blocks) in chosen]
    mine = {p.layer for p in size.places if p.projection in names} & set(layers)
    cell: dict[str, Any] = {"modules": ALL if names == size.projections and size.whole else names}
    if len(layers) < size.layers:
        cell["layers"] = ranges(layers)
    if one.words is None:
        return cell | {"frozen": True}
    said = {**controls, **one.settings}
    experts = experts_by_layer(said.get("experts", 1), size.layers)
    cell["experts"] = shortest([experts[layer] for layer in sorted(mine)])
    cell |= {name: said[name] for name in ("rank", "alpha") if said.get(name) is not None}
    return cell | {part: _word(part, word, said, words) for part, word in zip(PARTS, one.words, strict=True)}


def _word(part: str, name: str, said: Mapping[str, Any], words: Words) -> Any:
    """A word with those of its options that were set; alone where none was."""
    keys, chosen = option_keys(words, part, name), {}
    for option in _options(words, part, name):
        key = keys[option["name"]]
        value = said.get(key)
        if key in said and value != option["default"] and (value is not None or option["optional"]):
            chosen[option["name"]] = value
    return {"word": name, **chosen} if chosen else name


def _options(words: Words, part: str, name: str) -> Sequence[Mapping[str, Any]]:
    return next((word["options"] for word in words[part] if word["name"] == name), ())


def experts_by_layer(experts: Any, layers: int) -> list[int]:
    counts = experts if isinstance(experts, list) and experts else [experts if isinstance(experts, int) else 1]
    return [counts[layer * len(counts) // layers] for layer in range(layers)]


def shortest(values: Sequence[int]) -> int | list[int]:
    """One number where all are equal, else as few as the equal blocks of these layers need."""
    count = len(values)
    for parts in range(1, count + 1):
        picked = [next(v for i, v in enumerate(values) if i * parts // count == part) for part in range(parts)]
        if all(picked[i * parts // count] == value for i, value in enumerate(values)):
            return picked[0] if parts == 1 else picked
    return list(values)


def ranges(layers: Sequence[int]) -> list[int | str]:
    """``[0, 1, 2, 5]`` as ``["0-2", 5]``."""
    found: list[list[int]] = []
    for layer in layers:
        if found and layer == found[-1][-1] + 1:
            found[-1].append(layer)
        else:
            found.append([layer])
    return [run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in found]


def controls_of(size: Any, words: Words) -> dict[str, Any]:
    """The controls of the designer that a method stands for: what most of its places have."""
    adapted = [place for place in size.places if place.words]
    if not adapted:
        return {}
    controls: dict[str, Any] = {
        name: Counter(getattr(place, name) for place in adapted).most_common(1)[0][0] for name in ("rank", "alpha")
    }
    by_layer: dict[int, Counter[int]] = {}
    for place in adapted:
        by_layer.setdefault(place.layer, Counter())[place.experts] += 1
    last = _commonest(by_layer[min(by_layer)])
    counts = []
    for layer in range(size.layers):
        last = _commonest(by_layer[layer]) if layer in by_layer else last
        counts.append(last)
    controls["experts"] = shortest(counts)
    votes: dict[str, Counter[str]] = {}
    for place in adapted:
        for part, word in place.words.items():
            for name, key in option_keys(words, part, word["word"]).items():
                votes.setdefault(key, Counter())[json.dumps(word.get(name))] += 1
    return controls | {key: json.loads(_commonest(found)) for key, found in votes.items()}


def _commonest(found: Counter[Any]) -> Any:
    return found.most_common(1)[0][0]


def same(first: Any, second: Any) -> bool:
    """Whether two sizes describe the same mixture, place by place."""
    return [signature(place) for place in first.places] == [signature(place) for place in second.places]


def moved(grid: Any, size: Any, words: Words, blocks: int) -> dict[str, Any]:
    """What was painted on another base, on the projections that this one has too; on all of them if it has none."""
    fresh = grid_of(size, words, blocks)
    cells = grid.get("cells") if isinstance(grid, Mapping) and isinstance(grid.get("cells"), Mapping) else {}
    known = [cell for cell in cells.values() if isinstance(cell, Mapping) and all(part in cell for part in PARTS)]
    for key in fresh["cells"]:
        row, _, col = key.rpartition("|")
        fresh["cells"][key] = cells.get(f"{row}|{min(int(col), blocks - 1)}")
    if known and not any(fresh["cells"].values()):
        fresh["cells"] = dict.fromkeys(fresh["cells"], dict(known[0]))
    return fresh


def drawn_anew(grid: Any) -> dict[str, Any]:
    """A grid that stood for cells written by hand, once it was edited: from then on it speaks for itself."""
    if not isinstance(grid, Mapping) or "given" not in grid:
        return {}
    return {"grid": {name: value for name, value in grid.items() if name != "given"}}


def settings_at(grid: Mapping[str, Any], key: str, controls: Mapping[str, Any], size: Any) -> dict[str, Any]:
    """What the controls of the whole split say at one cell: experts there are one number."""
    col = int(key.rpartition("|")[2])
    layer = spans(size.layers, len(grid["cols"]))[col][0]
    return {**controls, "experts": experts_by_layer(controls.get("experts", 1), size.layers)[layer]}


def with_own(
    grid: Mapping[str, Any], key: str, chosen: Mapping[str, Any], general: Mapping[str, Any], words: Words
) -> dict[str, Any]:
    """The grid after the settings of one cell were edited: what differs from ``general`` becomes the cell's own."""
    cell = grid["cells"].get(key)
    if not isinstance(cell, Mapping) or cell.get("frozen"):
        return dict(grid)
    own = {name: chosen[name] for name in SIZES if name in chosen and chosen[name] != general.get(name)}
    for part in PARTS:
        keys = option_keys(words, part, cell[part])
        for option in _options(words, part, cell[part]):
            name = keys[option["name"]]
            if name in chosen and chosen[name] != general.get(name, option["default"]):
                own[name] = chosen[name]
    bare = {part: cell[part] for part in PARTS}
    return {**grid, "cells": {**grid["cells"], key: bare | ({"own": own} if own else {})}}


def title_of(grid: Mapping[str, Any], key: str) -> str:
    row, _, col = key.rpartition("|")
    name = grid["cols"][int(col)]
    return f"{row}, {'layers' if '–' in name else 'layer'} {name}"


def in_use(grid: Any, words: Words) -> dict[str, list[str]]:
    """The words that any cell of a grid has, by part and in the order of the words."""
    cells = grid.get("cells") if isinstance(grid, Mapping) and isinstance(grid.get("cells"), Mapping) else {}
    used = [cell for cell in cells.values() if isinstance(cell, Mapping)]
    return {
        part: [word["name"] for word in words[part] if any(cell.get(part) == word["name"] for cell in used)]
        for part in PARTS
    }


def keys_at(places: Sequence[tuple[str, int]], layers: int, blocks: int) -> list[str]:
    """The grid's names of cells for (projection, layer) places."""
    return list(dict.fromkeys(f"{row}|{block_of(layer, layers, blocks)}" for row, layer in places))
