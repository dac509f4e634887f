"""The grid of the split designer and the cells of a method, each made from the other. Plain data in, plain data out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PARTS = ("down", "gate", "up")
MOST_BLOCKS = 16
ALL = "all-linear"

Position = tuple[str, int]  # projection, block
Triple = tuple[str, ...]  # the words for down, gate and up


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


def words_at(place: Any) -> Triple | None:
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
    """What makes two places the same split."""
    return (place.experts, place.rank, place.alpha, repr(place.words)) if place.words else None


def grid_of(size: Any, words: Mapping[str, Sequence[Mapping[str, Any]]], blocks: int) -> dict[str, Any]:
    """The value of ``components.split_grid``: what most layers of a block do."""
    votes: dict[str, dict[Triple | None, int]] = {}
    for place in size.places:
        key = f"{place.projection}|{block_of(place.layer, size.layers, blocks)}"
        found = words_at(place)
        votes.setdefault(key, {})[found] = votes.get(key, {}).get(found, 0) + 1
    cells = {
        f"{row}|{col}": _painted(votes[f"{row}|{col}"]) if f"{row}|{col}" in votes else None
        for row in size.projections
        for col in range(blocks)
    }
    return {
        "rows": size.projections,
        "cols": [span_name(numbers) for numbers in spans(size.layers, blocks)],
        "words": {part: [word["name"] for word in words[part]] for part in PARTS},
        "cells": cells,
    }


def _painted(votes: Mapping[Triple | None, int]) -> dict[str, str] | None:
    best = max(votes, key=lambda found: votes[found])
    return None if best is None else dict(zip(PARTS, best, strict=True))


def checked(grid: Any, size: Any, words: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[Position, Triple] | None:
    """What a browser painted, by position; None where it is no grid of this base."""
    if not isinstance(grid, Mapping) or list(grid.get("rows") or ()) != size.projections:
        return None
    blocks, cells = len(grid.get("cols") or ()), grid.get("cells")
    if not 1 <= blocks <= max(1, min(size.layers, MOST_BLOCKS)) or not isinstance(cells, Mapping):
        return None
    known = {part: {word["name"] for word in words[part]} for part in PARTS}
    painted: dict[Position, Triple] = {}
    for row in size.projections:
        for col in range(blocks):
            cell = cells.get(f"{row}|{col}")
            if cell is None:
                continue
            if not isinstance(cell, Mapping) or any(cell.get(part) not in known[part] for part in PARTS):
                return None
            painted[row, col] = tuple(cell[part] for part in PARTS)
    return painted


def cells_of(
    painted: Mapping[Position, Triple],
    controls: Mapping[str, Any],
    size: Any,
    words: Mapping[str, Sequence[Mapping[str, Any]]],
    blocks: int,
) -> list[dict[str, Any]]:
    """The fewest patterns that say what is painted; the first match wins, so later ones may run over earlier ones.

    ``controls``: experts (a number, or one for each equal block of all layers), rank, alpha, and options of words as
    ``down.dropout``.
    """
    where = {(p.projection, block_of(p.layer, size.layers, blocks)) for p in size.places}
    real = {position: words_there for position, words_there in painted.items() if position in where}
    order = sorted(set(real.values()), key=lambda t: (sum(v == t for v in real.values()), t))
    rows, columns = _patterns(real, order, 0), _patterns(real, order, 1)
    shorter = rows if len(rows) <= len(columns) else columns
    return [_cell(triple, part, controls, size, words, blocks) for triple, part in shorter]


def _patterns(
    real: Mapping[Position, Triple], order: Sequence[Triple], axis: int
) -> list[tuple[Triple, set[Position]]]:
    """Rectangles of equal words, grown along one axis; rarer words come first, commoner ones may cover them."""
    taken: set[Position] = set()
    found = []
    for triple in order:
        need = {position for position, there in real.items() if there == triple}
        groups: list[tuple[set[Any], set[Any], set[Any]]] = []  # lines, wanted on the other axis, allowed there
        lines = dict.fromkeys(position[axis] for position in real if position in need)
        for line in sorted(lines, key=lambda one: -sum(p[axis] == one for p in need)):
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
            found.append((triple, pairs if axis == 0 else {(b, a) for a, b in pairs}))
        taken |= need
    return found


def _cell(
    triple: Triple,
    positions: set[Position],
    controls: Mapping[str, Any],
    size: Any,
    words: Mapping[str, Sequence[Mapping[str, Any]]],
    blocks: int,
) -> dict[str, Any]:
    names = [name for name in size.projections if any(row == name for row, _ in positions)]
    chosen = {col for _, col in positions}
    layers = [layer for layer in range(size.layers) if block_of(layer, size.layers, blocks) in chosen]
    mine = {p.layer for p in size.places if p.projection in names} & set(layers)
    cell: dict[str, Any] = {"modules": ALL if names == size.projections and size.whole else names}
    if len(layers) < size.layers:
        cell["layers"] = ranges(layers)
    experts = experts_by_layer(controls.get("experts", 1), size.layers)
    cell["experts"] = shortest([experts[layer] for layer in sorted(mine)])
    cell |= {name: controls[name] for name in ("rank", "alpha") if controls.get(name) is not None}
    return cell | {part: _word(part, word, controls, words) for part, word in zip(PARTS, triple, strict=True)}


def _word(part: str, name: str, controls: Mapping[str, Any], words: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """A word with those of its options that were set; alone where none was."""
    options = next(word["options"] for word in words[part] if word["name"] == name)
    chosen = {}
    for option in options:
        value = controls.get(f"{part}.{option['name']}")
        if value is not None and value != option["default"]:
            chosen[option["name"]] = value
    return {"word": name, **chosen} if chosen else name


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


def controls_of(size: Any) -> dict[str, Any]:
    """The controls of the designer that a method stands for; where places differ, the first one's."""
    adapted = [place for place in size.places if place.words]
    if not adapted:
        return {}
    controls: dict[str, Any] = {"rank": adapted[0].rank, "alpha": adapted[0].alpha}
    by_layer: dict[int, int] = {}
    for place in adapted:
        by_layer[place.layer] = max(place.experts, by_layer.get(place.layer, 1))
    last = next(iter(by_layer.values()))
    counts = []
    for layer in range(size.layers):
        last = by_layer.get(layer, last)
        counts.append(last)
    controls["experts"] = shortest(counts)
    for place in adapted:
        for part, word in place.words.items():
            for name, value in word.items():
                if name != "word":
                    controls.setdefault(f"{part}.{name}", value)
    return controls


def same(first: Any, second: Any) -> bool:
    """Whether two sizes describe the same mixture, place by place."""
    return [signature(place) for place in first.places] == [signature(place) for place in second.places]


def moved(grid: Any, size: Any, words: Mapping[str, Sequence[Mapping[str, Any]]], blocks: int) -> dict[str, Any]:
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
