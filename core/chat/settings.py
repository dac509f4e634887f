"""How an answer is drawn. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from core.schema import Spec


class Sampling(Spec):
    """The same settings and seed for every model that answers, so that only the models differ."""

    max_new_tokens: int = Field(256, ge=1, le=8192, description="Longest answer, in tokens.")
    temperature: float = Field(0.7, ge=0, le=5, description="0: always the most likely token.")
    top_p: float = Field(0.9, gt=0, le=1, description="Draw from the likeliest tokens that reach this probability.")
    top_k: int = Field(0, ge=0, le=1_000_000, description="Draw from at most this many tokens; 0: any number.")
    seed: int = Field(0, ge=0, lt=2**31, description="Draws the tokens.")
    task: str | None = Field(None, description="For adapters that choose experts by task: the task to act as.")
