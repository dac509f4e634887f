"""Duplicates inside a split and rows that stand on both sides of a split."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, Field

from core.data.canonical import Row, iterate
from core.data.kinds import Tables
from core.data.spill import filtered

EXAMPLES = 5
_NEITHER = re.compile(r"[\W_]+")  # neither letters nor digits
_BATCH = ("instruction", "input", "output", "choices", "history")


class Duplicates(BaseModel):
    """Rows of one split whose input came before."""

    rows: int = Field(0, description="Rows that repeat the input of an earlier row.")
    conflicts: int = Field(0, description="Of these, rows whose output differs from the earlier one's.")
    examples: list[str] = Field(default_factory=list)


class Overlap(BaseModel):
    """Scored rows whose input is also trained on."""

    rows: int = Field(0, description="Rows of the split whose input is in the training rows.")
    share: float = 0.0
    examples: list[str] = Field(default_factory=list)


def input_key(row: Row) -> bytes:
    """What makes two rows the same question: letters and digits, lower-cased, with choices where they vary.

    Includes the row's own instruction and the history; order of the choices does not count.
    """
    said = [_plain(part["content"]) for part in row["history"]]
    instruction = _plain(row["instruction"]) if row["instruction"] else ""
    plain = "|".join([instruction, *said, _plain(row["input"])])
    if row["choices"]:
        plain += "||" + "|".join(sorted(map(_plain, row["choices"])))
    return blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def _plain(text: str) -> str:
    bare = _NEITHER.sub("", text.lower())
    return bare or text.strip()  # an input of signs alone stays itself


def keys_of(table: pa.Table) -> list[bytes]:
    return [input_key(row) for row in iterate(table.select(_BATCH))]


def duplicates(table: pa.Table) -> Duplicates:
    seen: dict[bytes, int] = {}
    found = Duplicates()
    for row in iterate(table.select(_BATCH)):
        key = input_key(row)
        if key not in seen:
            seen[key] = hash(row["output"])
            continue
        found.rows += 1
        found.conflicts += seen[key] != hash(row["output"])
        if len(found.examples) < EXAMPLES:
            found.examples.append(_shown(row))
    return found


def overlap(train: pa.Table, other: pa.Table, known: set[bytes] | None = None) -> Overlap:
    """Rows of ``other`` whose input stands in ``train``; ``known``: the keys of ``train``, if they are at hand."""
    known = set(keys_of(train)) if known is None else known
    hits, examples = 0, []
    for row in iterate(other.select(_BATCH)):
        if input_key(row) in known:
            hits += 1
            examples += [_shown(row)] if len(examples) < EXAMPLES else []
    return Overlap(rows=hits, share=hits / max(len(other), 1), examples=examples)


def without_overlap(tables: Tables, room: Path | None = None) -> tuple[dict[str, pa.Table], int]:
    """The splits with training rows removed whose input is in validation or test, and how many were."""
    scored = {key for split, table in tables.items() if split != "train" for key in keys_of(table)}
    if "train" not in tables:
        return dict(tables), 0
    keep = [key not in scored for key in keys_of(tables["train"])]
    return {**tables, "train": filtered(tables["train"], keep, room)}, keep.count(False)


def class_balance(outputs: Iterable[str]) -> dict[str, int]:
    """Rows per output, commonest first."""
    counts: dict[str, int] = {}
    for output in outputs:
        counts[output] = counts.get(output, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _shown(row: dict[str, Any]) -> str:
    text = row["input"] or row["instruction"] or " / ".join(row["choices"])
    return text if len(text) <= 160 else text[:157] + "..."
