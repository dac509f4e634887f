"""A conversation with trained runs, side by side on one base. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from core.chat.client import Connect, Question, batched
from core.chat.pieces import Piece
from core.chat.settings import Sampling
from core.errors import ConfigurationError
from core.home import Home
from core.schema import BUNDLED_BASE, ModelSpec, RunSpec

BASE = "base"
MOST = 4


class Run(Protocol):
    """What is asked of a run: its id and its settings as plain data."""

    id: str
    spec: dict[str, Any] | None


@dataclass(frozen=True)
class Reply:
    """A whole answer. ``ended``: end (by itself), length or stopped."""

    model: str
    text: str
    tokens: int
    prompt_tokens: int
    seconds: float
    ended: str

    @classmethod
    def of(cls, model: str, text: str, last: Piece) -> Self:
        """The answer of which ``last`` is the last piece."""
        return cls(model, text, last.tokens, last.prompt_tokens, last.seconds, last.ended)

    def figures(self) -> str:
        why = {"end": "", "length": ", cut at the longest answer", "stopped": ", stopped"}[self.ended]
        return f"{self.tokens} tokens in {self.seconds:.1f} s{why}"


@dataclass(frozen=True)
class Adapter:
    """An adapter as the inference worker knows it; without a name it is the base alone."""

    name: str | None
    folder: Path | None


class Conversation:
    """The turns so far and the models that answer them. Each model sees its own earlier answers, not the others'."""

    def __init__(
        self, connect: Connect, adapters: Mapping[str, Adapter], leave: Callable[[], None] = lambda: None
    ) -> None:
        self.models, self._connect, self._adapters, self._leave = list(adapters), connect, dict(adapters), leave
        self._turns: dict[str, list[dict[str, str]]] = {model: [] for model in adapters}

    def ask(self, prompt: str, *, system: str = "", **settings: Any) -> list[Reply]:
        """Every model's answer to ``prompt``; ``settings`` are those of ``Sampling``."""
        last = {}
        texts = dict.fromkeys(self.models, "")
        for model, piece in self.stream(prompt, system=system, **settings):
            texts[model] += piece.text
            last[model] = piece
        return [Reply.of(model, texts[model], last[model]) for model in self.models]

    def stream(self, prompt: str, *, system: str = "", **settings: Any) -> Iterator[tuple[str, Piece]]:
        """(model, piece) as the answers grow: all at once for the first question, then model by model."""
        sampling = Sampling.parse(settings)
        question = {"role": "user", "content": prompt}
        start = [{"role": "system", "content": system}] if system else []
        texts = dict.fromkeys(self.models, "")
        for group in self._groups():
            messages = [*start, *self._turns[group[0]], question]
            adapters = {model: self._adapters[model] for model in group}
            asked = [Question(one.name, one.folder, messages) for one in adapters.values()]
            for piece in batched(self._connect, asked, sampling):
                model = next(model for model, one in adapters.items() if one.name == piece.name)
                texts[model] += piece.text
                yield model, piece
        for model, turns in self._turns.items():
            turns += [question, {"role": "assistant", "content": texts[model]}]

    def told(self, prompt: str, *, system: str = "", **settings: Any) -> Iterator[str]:
        """``stream`` as one text that grows, for terminals: see ``grown``."""
        return grown(self.stream(prompt, system=system, **settings), self.models)

    def _groups(self) -> list[list[str]]:
        """Models with the same history, who can answer in one batch."""
        groups: list[list[str]] = []
        for model in self.models:
            same = next((group for group in groups if self._turns[group[0]] == self._turns[model]), None)
            groups.append([model]) if same is None else same.append(model)
        return groups

    def close(self) -> None:
        self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def grown(pieces: Iterable[tuple[str, Piece]], models: Sequence[str]) -> Iterator[str]:
    """Answers that grow at once as one text: the first model's as it comes, then the next one's so far, and so on."""
    texts, last = dict.fromkeys(models, ""), {}
    told, first = {}, 0  # model -> how much of its answer has been told; the first model that is not through
    for model, piece in pieces:
        texts[model] += piece.text
        last[model] = piece
        while first < len(models) and (current := models[first]) in last:
            text = texts[current].lstrip()
            yield ("" if current in told else f"{current}: ") + text[told.get(current, 0) :]
            told[current] = len(text)
            if last[current].ended is None:
                break
            yield f"\n  {Reply.of(current, text, last[current]).figures()}\n"
            first += 1


def adapters_of(home: Home, runs: Mapping[str, Run | None]) -> tuple[ModelSpec, dict[str, Adapter]]:
    """The base that runs share and the adapter of each, by the name they are to have; None is the untouched base.

    Raises ConfigurationError where the runs have different bases or no adapter yet.
    """
    if not 1 <= len(runs) <= MOST:
        raise ConfigurationError(f"{len(runs)} models cannot talk at once.", f"Name one to {MOST}.")
    model, adapters = _base_of(runs), {}
    for name, row in runs.items():
        if row is None or _spec(row).method.name == BASE:
            adapters[name] = Adapter(None, None)
            continue
        folder = home.run(row.id).adapter
        if not folder.is_dir():
            raise ConfigurationError(f"{name} has no trained adapter.", "Wait until its training is finished.")
        adapters[name] = Adapter(row.id, folder)
    if len(set(adapters.values())) < len(adapters):
        raise ConfigurationError("The same model is named twice.", "Name every run, and the base, once.")
    return model, adapters


def _base_of(runs: Mapping[str, Run | None]) -> ModelSpec:
    bases = {name: _spec(row).model for name, row in runs.items() if row is not None}
    if not bases:
        return ModelSpec(base=BUNDLED_BASE)
    first = next(iter(bases))
    for name, base in bases.items():
        if base != bases[first]:
            raise ConfigurationError(
                f"{first} is on the base {bases[first].base}, {name} on {base.base} or on other settings of it.",
                "Talk to runs of one base at a time.",
            )
    return bases[first]


def _spec(row: Run) -> RunSpec:
    return RunSpec.parse(row.spec)
