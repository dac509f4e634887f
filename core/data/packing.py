"""Samples laid end to end in a few rows of one length, so that no row is filled up to the longest sample.

Attention costs ``rows * length ** 2`` and everything else ``rows * length``: short samples share a single row, more of
them as many rows as keep each about ``ROW`` tokens long. Lengths are multiples of ``STEP``; coarse ones come in four
sizes between a number and its double, so that few shapes come again and again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROW = 1024
STEP = 16
NARROW = 32  # the least width of the layout of a sample a row, where it is coarse
SAVED = 0.2  # the share of a padded batch that a pack must save


def even(tokens: float, longest: int) -> tuple[int, int]:
    """Rows and their length for so many tokens, were they spread evenly."""
    rows = max(1, -(-int(tokens) // max(ROW, longest)))
    return rows, rounded(int(tokens / rows))


def rounded(length: int, coarse: bool = False) -> int:
    """Up to what a row is filled."""
    step = max(4 * STEP, 1 << max(0, length.bit_length() - 3)) if coarse else STEP
    return -(-length // step) * step


def width(longest: int, coarse: bool = False) -> int:
    """Of the layout of a sample a row, which only numbers the tokens: a power of two where it is coarse."""
    return max(NARROW, 1 << (longest - 1).bit_length()) if coarse else longest


def pays(pack: tuple[int, int], samples: int, longest: int) -> tuple[int, int] | None:
    """``pack``, rows and their length, where it saves enough of a padded batch."""
    return pack if pack[0] * pack[1] <= (1 - SAVED) * samples * longest else None


def shape(lengths: Sequence[int], coarse: bool = False) -> tuple[int, list[list[int]]]:
    """The length of the rows, and the samples of each row in order.

    The longest samples are placed first, each in the row that is emptiest then.
    """
    rows: list[list[int]] = [[] for _ in range(even(sum(lengths), max(lengths))[0])]
    filled = [0] * len(rows)
    for sample in np.argsort(lengths, kind="stable")[::-1].tolist():
        row = min(range(len(rows)), key=filled.__getitem__)
        rows[row].append(sample)
        filled[row] += lengths[sample]
    return rounded(max(filled), coarse), rows


def places(lengths: Sequence[int], coarse: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Where samples of ``lengths`` lie in a pack: ``place`` (samples, width) and ``back`` (rows, length).

    ``place`` counts the pack's places row after row and ``back`` those of a layout of a sample a row; where one has no
    token, it says how many places the other has.
    """
    length, rows = shape(lengths, coarse)
    longest = width(max(lengths), coarse)
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
