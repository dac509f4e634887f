"""Duplicates inside a split and rows that stand on both sides of a split."""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from core.data.canonical import Row, column, iterate, rows_at
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


def input_key(row: Row) -> int:
    """What makes two rows the same question: 64 bits of its letters and digits, lower-cased, with choices.

    Includes the row's own instruction and the history; order of the choices does not count.
    """
    said = [_plain(part["content"]) for part in row["history"]]
    instruction = _plain(row["instruction"]) if row["instruction"] else ""
    plain = "|".join([instruction, *said, _plain(row["input"])])
    if row["choices"]:
        plain += "||" + "|".join(sorted(map(_plain, row["choices"])))
    return int.from_bytes(blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _plain(text: str) -> str:
    bare = _NEITHER.sub("", text.lower())
    return bare or text.strip()  # an input of signs alone stays itself


def keys_of(table: pa.Table) -> np.ndarray:
    """The key of each row, 8 bytes."""
    return np.fromiter((input_key(row) for row in iterate(table.select(_BATCH))), np.uint64, len(table))


def duplicates(table: pa.Table, keys: np.ndarray) -> Duplicates:
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    origin = first[inverse]
    again = np.flatnonzero(origin != np.arange(len(keys)))
    outputs = np.fromiter(map(hash, column(table, "output")), np.int64, len(table))
    conflicts = int((outputs[again] != outputs[origin[again]]).sum())
    return Duplicates(rows=len(again), conflicts=conflicts, examples=_examples(table, again))


def overlap(known: np.ndarray, other: pa.Table, keys: np.ndarray) -> Overlap:
    """Rows of ``other``, which has these keys, whose input stands in training rows, whose keys are ``known``."""
    hits = np.flatnonzero(np.isin(keys, known))
    return Overlap(rows=len(hits), share=len(hits) / max(len(other), 1), examples=_examples(other, hits))


def without_overlap(tables: Tables, room: Path | None = None) -> tuple[dict[str, pa.Table], int]:
    """The splits with training rows removed whose input is in validation or test, and how many were."""
    if "train" not in tables:
        return dict(tables), 0
    scored = [keys_of(table) for split, table in tables.items() if split != "train"]
    keep = ~np.isin(keys_of(tables["train"]), np.concatenate(scored))
    return {**tables, "train": filtered(tables["train"], keep, room)}, int((~keep).sum())


def class_balance(outputs: Iterable[str]) -> dict[str, int]:
    """Rows per output, commonest first."""
    counts: dict[str, int] = {}
    for output in outputs:
        counts[output] = counts.get(output, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _examples(table: pa.Table, places: np.ndarray) -> list[str]:
    texts = []
    for row in rows_at(table, places[:EXAMPLES]):
        text = row["input"] or row["instruction"] or " / ".join(row["choices"])
        texts.append(text if len(text) <= 160 else text[:157] + "...")
    return texts
