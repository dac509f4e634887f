"""One base in memory and many adapters on it, answering token by token."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from core.adapters.attach import load
from core.adapters.config import needs_task
from core.adapters.folders import read_config
from core.adapters.peft_methods import BaselineModel, is_baseline
from core.chat.answers import Answers, Asked, Messages
from core.chat.pieces import Piece
from core.chat.settings import Sampling
from core.data.templates import TextEncoder, fit
from core.errors import ConfigurationError, NotFoundError, OutOfMemoryError
from core.evaluation.view import ModelView
from core.models import load_base, resolve_base
from core.schema import ModelSpec


class ChatEngine:
    """``side_by_side`` answers by itself, ``Answers`` for all who ask; a lock lets one forward pass run at a time."""

    def __init__(self, spec: ModelSpec, device: str = "auto") -> None:
        source = resolve_base(spec)
        self.encoder = TextEncoder(source)
        self.model = load_base(spec, device, folder=source)
        self.names: list[str] = []
        self._lock = threading.Lock()

    @classmethod
    def over(cls, model: Any, encoder: TextEncoder) -> ChatEngine:
        """An engine for a model that is loaded already, with the adapters that it has."""
        engine = cls.__new__(cls)
        engine.model, engine.encoder, engine._lock = model.eval(), encoder, threading.Lock()
        engine.names = list(getattr(model, "peft_config", ()))
        return engine

    def warm(self) -> None:
        """Answer a word, so that the first question does not wait for the device's libraries."""
        list(self.stream(None, [{"role": "user", "content": "."}], Sampling(max_new_tokens=4, temperature=0)))

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
        answers = Answers(self)
        pieces = answers.begin([Asked(name, messages, sampling) for name in names])
        while pieces:
            yield from (piece for _, piece in pieces)
            if stop is not None and stop.is_set():
                yield from (answer.stop() for answer, _ in pieces if answer.ended is None)
                return
            pieces = answers.step()

    @contextmanager
    def step(self) -> Iterator[None]:
        """One forward pass at a time, without gradients; a full device is an error that people understand."""
        try:
            with self._lock, torch.inference_mode():
                yield
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                "The conversation does not fit in the device's memory.", "Shorten it, or ask fewer models at once."
            ) from error

    def check(self, name: str) -> None:
        """Raise NotFoundError for an adapter that is not loaded."""
        if name not in self.names:
            raise NotFoundError(f"No adapter {name!r} is loaded.", f"Loaded are: {', '.join(self.names) or 'none'}.")

    def prompt(self, messages: Messages, new_tokens: int) -> list[int]:
        """The conversation's tokens; where they are too many, the oldest turns go first, then the middle."""
        kept, view = list(messages), ModelView(self.model, self.encoder)
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
        """A task's number in an adapter that is loaded; 0 where none is named and the adapter does not depend on it."""
        if name is None:
            return 0
        self.check(name)
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
