"""One base in memory and many adapters on it, answering token by token."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from core.adapters.attach import load
from core.adapters.config import needs_task
from core.adapters.folders import read_config
from core.adapters.peft_methods import BaselineModel, is_baseline
from core.adapters.tape import BASE
from core.chat.pieces import Piece
from core.chat.settings import Sampling
from core.data.templates import TextEncoder, fit
from core.errors import ConfigurationError, NotFoundError, OutOfMemoryError
from core.evaluation.decode import Decoding, stop_ids
from core.evaluation.view import ModelView
from core.models import load_base, resolve_base
from core.schema import ModelSpec

Messages = Sequence[Mapping[str, str]]


class ChatEngine:
    """Answers interleave: each keeps its own KV cache, and a lock lets one forward pass run at a time."""

    def __init__(self, spec: ModelSpec, device: str = "auto") -> None:
        source = resolve_base(spec)
        self.encoder = TextEncoder(source)
        self.model = load_base(spec, device, folder=source)
        self.names: list[str] = []
        self._lock = threading.Lock()

    def apart(self, folder: str | Path) -> bool:
        """Whether an adapter folder and those that are loaded cannot share the base."""
        return bool(self.names) and (isinstance(self.model, BaselineModel) or is_baseline(read_config(folder)))

    def load(self, name: str, folder: str | Path) -> None:
        """Put an adapter folder beside the others."""
        with self._lock:
            self.model = load(self.model, folder, name=name).eval()
            self.names.append(name)

    def unload(self, name: str) -> None:
        """Drop an adapter; the last one leaves the bare base."""
        self.check(name)
        with self._lock:
            self.names.remove(name)
            if self.names:
                self.model.set_adapter(self.names[0])
                self.model.delete_adapter(name)
            else:
                self.model = self.model.unload()

    def stream(
        self, name: str | None, messages: Messages, sampling: Sampling, stop: threading.Event | None = None
    ) -> Iterator[Piece]:
        """One model's answer as it grows; the last piece says why it ended. After ``stop`` no token is computed."""
        return self.side_by_side([name], messages, sampling, stop)

    def side_by_side(
        self,
        names: Sequence[str | None],
        messages: Messages,
        sampling: Sampling,
        stop: threading.Event | None = None,
    ) -> Iterator[Piece]:
        """The answers of several models to one conversation, computed as one batch; None is the base alone."""
        for name in names:
            if name is not None:
                self.check(name)
        start = time.monotonic()
        view = ModelView(self.model, self.encoder)
        prompt = self._prompt(view, messages, sampling.max_new_tokens)
        mixed = [name or BASE for name in names] if view.adapted else None
        tasks = [self.task(name, sampling.task) for name in names]
        answers = [_Answer(name, len(prompt), sampling, self.encoder, start) for name in names]
        ends = stop_ids(view)
        with self.step():
            decoding = Decoding(view, [prompt] * len(names), tasks, mixed)
        for step in range(1, sampling.max_new_tokens + 1):
            stopped = stop is not None and stop.is_set()
            tokens = []
            for answer, logits in zip(answers, decoding.logits.cpu(), strict=True):
                going = answer.ended is None
                tokens.append(answer.take(logits, ends, stopped, step == sampling.max_new_tokens))
                if going:
                    yield answer.piece()
            if all(answer.ended for answer in answers):
                return
            with self.step():
                decoding.push([token if token is not None else self.encoder.pad_id for token in tokens])

    @contextmanager
    def step(self) -> Iterator[None]:
        """One forward pass at a time, without gradients; a full device is an error that people understand."""
        try:
            with self._lock, torch.no_grad():
                yield
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                "The conversation does not fit in the device's memory.", "Shorten it, or ask fewer models at once."
            ) from error

    def check(self, name: str) -> None:
        """Raise NotFoundError for an adapter that is not loaded."""
        if name not in self.names:
            raise NotFoundError(f"No adapter {name!r} is loaded.", f"Loaded are: {', '.join(self.names) or 'none'}.")

    def _prompt(self, view: ModelView, messages: Messages, new_tokens: int) -> list[int]:
        """The conversation's tokens; where they are too many, the oldest turns go first, then the middle."""
        kept = list(messages)
        room = None if view.positions is None else view.positions - new_tokens
        if room is not None and room < 1:
            raise ConfigurationError(
                f"max_new_tokens is {new_tokens}, but the base reads {view.positions} tokens in all.", "Lower it."
            )
        while True:
            chat = self.encoder.chat_template is not None
            ids = self.encoder.ids(self.encoder.render(kept), special=not chat)
            turns = [i for i, message in enumerate(kept) if message["role"] != "system"]
            if room is None or len(ids) <= room or len(turns) <= 1:
                return fit(ids, [], room).prompt
            drop = turns[:2] if len(turns) > 2 else turns[:1]  # a question goes with its answer
            kept = [message for i, message in enumerate(kept) if i not in drop]

    def task(self, name: str | None, task: str | None) -> int:
        """A task's number in an adapter; 0 where none is named and the adapter does not depend on it."""
        if name is None:
            return 0
        config = self.model.peft_config[name]
        known = list(config.tasks)
        if task is None:
            if len(known) > 1 and needs_task(config):
                raise ConfigurationError(
                    f"{name} answers by task, and none of its tasks was chosen.", f"Act as one: {', '.join(known)}."
                )
            return 0
        if task not in known:
            raise ConfigurationError(f"{name} was not trained on a task {task!r}.", f"It knows {', '.join(known)}.")
        return known.index(task)


class _Answer:
    """One growing answer: its own random numbers, so that company in the batch does not change it."""

    def __init__(
        self, name: str | None, prompt_tokens: int, sampling: Sampling, encoder: TextEncoder, start: float
    ) -> None:
        self.name, self.prompt_tokens, self.sampling, self.encoder, self.start = (
            name,
            prompt_tokens,
            sampling,
            encoder,
            start,
        )
        self.random = torch.Generator().manual_seed(sampling.seed)
        self.ids: list[int] = []
        self.told = ""
        self.ended: str | None = None

    def take(self, logits: Tensor, ends: set[int], stopped: bool, last: bool) -> int | None:
        """The next token, or None where the answer is over."""
        if self.ended:
            return None
        if stopped:
            self.ended = "stopped"
            return None
        token = draw(logits, self.sampling, self.random)
        if token in ends:
            self.ended = "end"
            return None
        self.ids.append(token)
        if last:
            self.ended = "length"
        return token

    def piece(self) -> Piece:
        """The text since the last piece; half of a multi-byte character waits for the rest."""
        text = self.encoder.decode(self.ids)
        if self.ended is None and text.endswith("\ufffd"):
            text = self.told
        fresh, self.told = text[len(self.told) :], text
        seconds = round(time.monotonic() - self.start, 3)
        return Piece(self.name, fresh, len(self.ids), self.prompt_tokens, seconds, self.ended)


def draw(logits: Tensor, sampling: Sampling, random: torch.Generator) -> int:
    """A token from logits (vocabulary,) by temperature, top-k and top-p (nucleus)."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    ordered, tokens = (logits.double() / sampling.temperature).softmax(dim=-1).sort(descending=True, stable=True)
    if sampling.top_k:
        ordered, tokens = ordered[: sampling.top_k], tokens[: sampling.top_k]
    kept = ordered.cumsum(dim=0) - ordered < sampling.top_p * ordered.sum()
    return int(tokens[torch.multinomial(ordered * kept, 1, generator=random)])
