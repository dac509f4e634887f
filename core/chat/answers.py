"""Answers that grow: those of one base as one batch, whoever asked them and whatever adapters give them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from core.adapters.tape import BASE
from core.chat.pieces import Piece
from core.chat.settings import Sampling
from core.data.templates import TextEncoder
from core.evaluation.decode import Decoding, stop_ids
from core.evaluation.view import ModelView

if TYPE_CHECKING:
    from core.chat.engine import ChatEngine

TAIL = 16  # tokens whose text can still change with the tokens that follow them
LIKELY = 256  # tokens among which a draw looks first

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Asked:
    """What one model is asked; ``name`` is None for the base alone."""

    name: str | None
    messages: Messages
    sampling: Sampling


class Answer:
    """One growing answer: its own random numbers, so that company in the batch does not change it."""

    def __init__(self, asked: Asked, prompt_tokens: int, encoder: TextEncoder, start: float) -> None:
        self.name, self.sampling, self.prompt_tokens = asked.name, asked.sampling, prompt_tokens
        self.random = torch.Generator().manual_seed(asked.sampling.seed)
        self.ids: list[int] = []
        self.ended: str | None = None
        self._text, self._start = GrowingText(encoder), start

    def take(self, token: int, ends: set[int]) -> Piece:
        """Go on by a token, or end with it; returns what that adds to the text."""
        if token in ends:
            self.ended = "end"
            return self.piece()
        self.ids.append(token)
        if len(self.ids) == self.sampling.max_new_tokens:
            self.ended = "length"
        return self.piece()

    def stop(self) -> Piece:
        self.ended = "stopped"
        return self.piece()

    def piece(self) -> Piece:
        text = self._text.grown(self.ids, whole=self.ended is not None)
        seconds = round(time.monotonic() - self._start, 3)
        return Piece(self.name, text, len(self.ids), self.prompt_tokens, seconds, self.ended)


class GrowingText:
    """The text of tokens that come one by one; only the last few are decoded again."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._from = self._told = 0  # tokens: from which on text is decoded, and up to which it has been told

    def grown(self, ids: Sequence[int], *, whole: bool) -> str:
        """The text since the last call; half of a multi-byte character waits for the rest, unless this is the whole."""
        before = self._encoder.decode(ids[self._from : self._told])
        text = self._encoder.decode(ids[self._from :])
        if not whole and text.endswith("\ufffd"):
            return ""
        if len(ids) - self._from > 2 * TAIL:
            self._from = len(ids) - TAIL
        self._told = len(ids)
        return text[len(before) :]


class Answers:
    """``begin`` some, then ``step`` until none is ``growing``; a step computes one more token of every answer.

    What cannot be one batch (a base whose cache cannot be joined) is computed one batch after the other.
    """

    def __init__(self, engine: ChatEngine) -> None:
        self._engine = engine
        self._batches: list[_Batch] = []

    @property
    def growing(self) -> bool:
        return bool(self._batches)

    def begin(self, asked: Sequence[Asked]) -> list[tuple[Answer, Piece]]:
        """Read the prompts as one batch; each answer with its first piece, in the order of asking."""
        engine, start = self._engine, time.monotonic()
        view = ModelView(engine.model, engine.encoder)
        prompts = [engine.prompt(one.messages, one.sampling.max_new_tokens) for one in asked]
        tasks = [engine.task(one.name, one.sampling.task) for one in asked]
        answers = [Answer(one, len(prompt), engine.encoder, start) for one, prompt in zip(asked, prompts, strict=True)]
        with engine.step():
            names = [one.name or BASE for one in asked] if view.adapted else None
            longest = max(one.sampling.max_new_tokens for one in asked)
            decoding = Decoding(view, prompts, tasks, names, longest)
            batch = _Batch(decoding, answers)
            drawn = batch.draw()
        self._batches.append(batch)
        return drawn

    def stop(self, answer: Answer) -> Piece:
        """End an answer before its next token."""
        return answer.stop()

    def step(self) -> list[tuple[Answer, Piece]]:
        """One token more of every answer."""
        view = ModelView(self._engine.model, self._engine.encoder)
        with self._engine.step():
            batches: list[_Batch] = []
            for batch in self._batches:
                batch.decoding.under(view)
                if batch.leave() and not any(other.join(batch) for other in batches):
                    batches.append(batch)
            self._batches = batches
            drawn = []
            for batch in batches:
                batch.push()
                drawn += batch.draw()
        return drawn

    def drop(self) -> None:
        """Forget all that grows."""
        self._batches = []


class _Batch:
    """A decoding, and the answers by the numbers of its rows."""

    def __init__(self, decoding: Decoding, answers: Sequence[Answer]) -> None:
        self.decoding, self.answers = decoding, list(answers)
        self._ends = stop_ids(decoding.view)
        self._tokens: dict[int, int] = {}

    def leave(self) -> bool:
        """Let what has ended go; whether something grows on."""
        going = [place for place, row in enumerate(self.decoding.rows) if self.answers[row].ended is None]
        if going and len(going) < len(self.decoding.rows):
            self.decoding.keep(going)
        return bool(going)

    def join(self, other: _Batch) -> bool:
        first = 1 + max(self.decoding.rows)
        if not self.decoding.join(other.decoding):
            return False
        self.answers = self.answers[:first] + other.answers
        self._tokens |= {first + row: token for row, token in other._tokens.items()}
        return True

    def push(self) -> None:
        pad = self.decoding.view.encoder.pad_id
        self.decoding.push([self._tokens.get(row, pad) for row in self.decoding.rows])

    def draw(self) -> list[tuple[Answer, Piece]]:
        """A token more for every answer that grows, in the order of the answers."""
        drawn, rows = {}, self.decoding.rows
        tokens = draw(self.decoding.logits, [self.answers[row] for row in rows])
        for row, token in zip(rows, tokens, strict=True):
            if self.answers[row].ended is None:
                self._tokens[row] = token
                drawn[row] = (self.answers[row], self.answers[row].take(token, self._ends))
        return [drawn[row] for row in sorted(drawn)]


def draw(logits: Tensor, answers: Sequence[Answer]) -> list[int]:
    """A token for each row of logits (rows, vocabulary) by its answer's temperature, top-k and top-p (nucleus)."""
    hot = [row for row, answer in enumerate(answers) if answer.sampling.temperature > 0]
    if not hot:
        return logits.argmax(-1).tolist()
    settings = [answers[row].sampling for row in hot]
    chances = torch.stack([torch.rand((), generator=answers[row].random, dtype=torch.float64) for row in hot])
    temperature, top_p, top_k = (
        torch.tensor(values, dtype=torch.float64).to(logits.device)
        for values in zip(*((one.temperature, one.top_p, one.top_k or torch.inf) for one in settings), strict=True)
    )
    place = torch.tensor(hot, device=logits.device)
    drawn = nucleus(logits[place], chances.to(logits.device), temperature, top_p, top_k)
    tokens = drawn if len(hot) == len(answers) else logits.argmax(-1).index_copy(0, place, drawn)
    return tokens.tolist()


def nucleus(logits: Tensor, chances: Tensor, temperature: Tensor, top_p: Tensor, top_k: Tensor) -> Tensor:
    """Tokens (rows,), drawn with ``chances`` in [0, 1) from the ``top_k`` likeliest that reach ``top_p`` of their sum.

    The likeliest few are looked at first: a whole vocabulary takes long to sort.
    """
    scores = logits.double() / temperature.unsqueeze(-1)
    whole, top_k, top_p = scores.logsumexp(-1, keepdim=True), top_k.unsqueeze(-1), top_p.unsqueeze(-1)
    for size in (min(LIKELY, scores.shape[-1]), scores.shape[-1]):
        top = scores.topk(size, -1)
        likely = (top.values - whole).exp() * (torch.arange(size, device=scores.device) < top_k)
        reached = likely.cumsum(-1)
        last = reached[:, -1:]
        if size == scores.shape[-1] or bool(((top_k <= size) | (top_k.isinf() & (last >= top_p))).all()):
            break
    total = torch.where(top_k <= size, last, last.clamp(min=1.0))
    kept = (likely * (reached - likely < top_p * total)).cumsum(-1)
    place = torch.searchsorted(kept, chances.unsqueeze(-1) * kept[:, -1:], right=True).clamp(max=size - 1)
    return top.indices.gather(-1, place).squeeze(-1)
