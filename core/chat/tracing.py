"""Runs a text through an adapter once and reads what its gates wrote on the tape."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from core.adapters.attach import tape_of
from core.chat.engine import ChatEngine, Messages
from core.chat.trace import Trace
from core.data.templates import TextEncoder, fit
from core.errors import ConfigurationError
from core.evaluation.decode import Decoding, stop_ids
from core.evaluation.view import ModelView, left_padded
from core.routing.recorder import decisions_of
from core.routing.snapshot import SiteInfo

ROOM = 8  # prompt tokens that an answer always leaves


def steps(
    engine: ChatEngine,
    name: str,
    messages: Messages | None = None,
    *,
    raw: str | None = None,
    answer: str | None = None,
    generate: int = 0,
    task: str | None = None,
) -> Generator[None, None, Trace]:
    """The gates of adapter ``name`` for a conversation (or a ``raw`` text) and an answer, given or made greedily.

    Yields before every token that it makes, so that others can compute meanwhile; returns the trace.
    """
    start = time.monotonic()
    engine.check(name)
    view, encoder = ModelView(engine.model, engine.encoder), engine.encoder
    index, tasks = engine.task(name, task), list(engine.model.peft_config[name].tasks)
    ids = _prompt(encoder, messages, raw)
    given = [] if answer is None else encoder.ids(answer)
    room = None if view.positions is None else view.positions - (generate if answer is None else 0)
    if room is not None and room < ROOM:
        raise ConfigurationError(f"The base reads {view.positions} tokens in all.", "Generate fewer.")
    encoded = fit(ids, given[: None if room is None else room - ROOM], room)
    ended = None
    if answer is None and generate > 0:
        given, ended = yield from _greedy(engine, view, name, encoded.prompt, index, generate)
        encoded = replace(encoded, answer=given)
    with engine.step():
        weights, sites = _routed(view, name, encoded.prompt, encoded.answer, index)
    return Trace(
        run=name,
        tokens=pieces(encoder, encoded.ids),
        roles=["prompt"] * len(encoded.prompt) + ["answer"] * len(encoded.answer),
        sites=sites,
        weights=weights,
        task=tasks[index] if task is not None or len(tasks) == 1 else None,
        tasks=tasks,
        cut=encoded.cut,
        ended=ended,
        device=str(engine.model.device),
        seconds=round(time.monotonic() - start, 3),
    )


def trace(engine: ChatEngine, name: str, *given: Messages, **wanted: Any) -> Trace:
    """As ``steps``, all at once."""
    running = steps(engine, name, *given, **wanted)
    while True:
        try:
            next(running)
        except StopIteration as over:
            return over.value


def pieces(encoder: TextEncoder, ids: Sequence[int]) -> list[str]:
    """The text of every token, special ones written out; joined they are the text of all."""
    found: list[str] = []
    told = 0  # tokens whose text has been given
    for end in range(1, len(ids) + 1):
        before = encoder.decode(ids[max(told - 1, 0) : told], keep_special=True)
        text = encoder.decode(ids[max(told - 1, 0) : end], keep_special=True)
        if text.endswith("\ufffd") and end < len(ids) and end - told < 8:  # part of a character
            found.append("")
            continue
        found.append(text[len(before) :])
        told = end
    return found


def _prompt(encoder: TextEncoder, messages: Messages | None, raw: str | None) -> list[int]:
    if raw is not None:
        ids = encoder.ids(raw, special=True)
    else:
        chat = encoder.chat_template is not None
        ids = encoder.ids(encoder.render(list(messages or ())), special=not chat)
    if not ids:
        raise ConfigurationError("There is no text to look at.", "Type a prompt.")
    return ids


def _greedy(
    engine: ChatEngine, view: ModelView, name: str, prompt: list[int], task: int, most: int
) -> Generator[None, None, tuple[list[int], str]]:
    """The most likely answer, with the token that ends it."""
    ids, ends = [], stop_ids(view)
    with engine.step():
        decoding = Decoding(view, [prompt], [task], [name], most)
    while True:
        yield
        ids.append(int(decoding.logits[0].argmax()))
        if ids[-1] in ends:
            return ids, "end"
        if len(ids) == most:
            return ids, "length"
        with engine.step():
            decoding.push(ids[-1:])


def _routed(
    view: ModelView, name: str, prompt: list[int], answer: list[int], task: int
) -> tuple[np.ndarray, list[SiteInfo]]:
    """(sites, tokens, experts) and what the sites are, in the order of the model."""
    batch = left_padded([prompt], [task], view.encoder.pad_id, view.device, [answer])
    view(replace(batch, names=[name]), keep=1)
    tape, tokens = tape_of(view.model), len(prompt) + len(answer)
    slots = list(tape.written(name))
    sites = [decisions_of(slot.site) for slot in slots]
    widest = max((slot.site.experts for slot in slots), default=0)
    weights = np.full((sum(map(len, sites)), tokens, widest), np.nan, np.float32)
    row = 0
    for slot, parts in zip(slots, sites, strict=True):
        decided = slot.weights.detach().float().cpu().numpy()[0]  # (tokens or 1, experts), or with parts before experts
        decided = decided.reshape(len(decided), len(parts), -1).swapaxes(0, 1)
        weights[row : row + len(parts), :, : decided.shape[-1]] = decided
        row += len(parts)
        slot.clear()
    return weights, [site for parts in sites for site in parts]
