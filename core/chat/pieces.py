"""What an answer grows by. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """``name`` is None for the base; ``ended``: end, length, stopped or failed, once it is over.

    ``tokens`` so far, ``prompt_tokens`` read, ``seconds`` since the question was taken up; ``problem`` and ``hint``
    say why an answer failed.
    """

    name: str | None
    text: str
    tokens: int
    prompt_tokens: int
    seconds: float
    ended: str | None = None
    problem: str = ""
    hint: str = ""
