"""Each word says its parameters twice, as a number and as arithmetic for people; both are the same everywhere."""

from __future__ import annotations

import math
import re

import pytest
from adapters_support import MATRIX, TASKS, Row, _split, tiny

from core.adapters.cells import Cell, Site, plan
from core.adapters.methods import resolve
from core.adapters.model import linears_of
from core.adapters.words import WORDS, Word

FROZEN = [
    _split("frozen-down", {"experts": 3, "down": {"word": "shared", "trained": False}, "gate": "token"}),
    _split("frozen-downs", {"experts": 3, "down": {"word": "unique", "trained": False}, "gate": "rank"}),
    _split("frozen-subspace", {"experts": 3, "down": {"word": "subspace", "trained": False}, "gate": "token"}),
    _split("frozen-transform", {"experts": 3, "down": {"word": "task_transform", "trained": False}, "gate": "task"}),
    _split("frozen-up", {"experts": 3, "gate": "token", "up": {"word": "unique", "trained": False}}),
    _split("shares", {"experts": 3, "down": {"word": "subspace", "share": 0.7}, "gate": "token"}),
]


def evaluated(word: Word, site: Site, cell: Cell) -> int:
    known = {name: getattr(word, name) for name in type(word).model_fields}
    known |= {"E": site.experts, "r": cell.rank, "tasks": site.tasks, "first": int(site.leads)}
    known |= {"inputs": site.in_features, "outputs": site.out_features, "ceil": lambda x: math.ceil(x - 1e-6)}
    text = re.sub(r"\bin\b", "inputs", re.sub(r"\bout\b", "outputs", word.expression))
    text = re.sub(r"\br\b", cell.down.width, text) if word.part == "up" else text
    return eval(re.sub(r"\bin\b", "inputs", text), {"__builtins__": {}}, known)


def places(row: Row) -> list[tuple[Site, Cell]]:
    """The sites of a row on the tiny base, each with the cell that planned it."""
    linears = linears_of(tiny())
    found = []
    for cell in resolve(row.spec):
        matched = [linear for linear in linears if cell.matches(linear)]
        found += [(site, cell) for site in plan([cell], matched, len(TASKS))] if not cell.frozen else []
    return found


@pytest.mark.parametrize("row", [*MATRIX, *FROZEN], ids=lambda row: row.id)
def test_the_arithmetic_of_every_word_gives_its_count(row: Row):
    for site, cell in places(row):
        for word in (site.down, site.gate, site.up):
            assert evaluated(word, site, cell) == word.parameters(site), (site.name, word.word)


def test_every_word_stands_in_some_row():
    sites = [site for row in MATRIX for site, _ in places(row)]
    seen = {(word.part, word.word) for site in sites for word in (site.down, site.gate, site.up)}
    assert seen == {(part, name) for part, known in WORDS.items() for name in known}
