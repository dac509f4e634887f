"""Samples laid end to end in a few rows of one length, so that no row is filled up to the longest sample.

Attention costs ``rows * length ** 2`` and everything else ``rows * length``: short samples share a single row, more of
them as many rows as keep each about ``ROW`` tokens long. Lengths are multiples of ``STEP``, so that shapes come again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROW = 1024
STEP = 64
SAVED = 0.1  # the share of a padded batch that a pack must save


def even(tokens: float, longest: int) -> tuple[int, int]:
    """Rows and their length for so many tokens, were they spread evenly."""
    rows = max(1, -(-int(tokens) // max(ROW, longest)))
    return rows, -(-int(tokens / rows) // STEP) * STEP


def pays(pack: tuple[int, int], samples: int, longest: int) -> tuple[int, int] | None:
    """``pack``, rows and their length, where it saves enough of a padded batch."""
    return pack if pack[0] * pack[1] <= (1 - SAVED) * samples * longest else None


def shape(lengths: Sequence[int]) -> tuple[int, list[list[int]]]:
    """The length of the rows, and the samples of each row in order.

    The longest samples are placed first, each in the row that is emptiest then.
    """
    rows: list[list[int]] = [[] for _ in range(even(sum(lengths), max(lengths))[0])]
    filled = [0] * len(rows)
    for sample in np.argsort(lengths, kind="stable")[::-1].tolist():
        row = min(range(len(rows)), key=filled.__getitem__)
        rows[row].append(sample)
        filled[row] += lengths[sample]
    return -(-max(filled) // STEP) * STEP, rows


def places(lengths: Sequence[int], longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Where samples of ``lengths`` lie in a pack: ``place`` (samples, longest) and ``back`` (rows, length).

    ``place`` counts the pack's places row after row and ``back`` those of a layout of a sample a row; where one has no
    token, it says how many places the other has.
    """
    length, rows = shape(lengths)
    place = np.full((len(lengths), longest), len(rows) * length)
    back = np.full((len(rows), length), place.size)
    for row, samples in enumerate(rows):
        start = 0
        for sample in samples:
            stop = start + lengths[sample]
            place[sample, : lengths[sample]] = np.arange(row * length + start, row * length + stop)
            back[row, start:stop] = np.arange(lengths[sample]) + sample * longest
            start = stop
    return place, back
