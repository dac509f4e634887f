"""Conversations (messages, ShareGPT) to rows: every answer is one row, with what was said before as its history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from core.data.canonical import Row
from core.errors import DataError

SPEAKERS = {
    "user": "user", "human": "user", "prompter": "user", "customer": "user", "question": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "chatbot": "assistant", "model": "assistant",
    "chatgpt": "assistant", "bard": "assistant", "bing": "assistant", "answer": "assistant",
    "system": "system", "developer": "system",
    "context": "context",
}  # fmt: skip


def conversation_rows(messages: Any, where: str, counts: Counter[str]) -> Iterator[Row]:
    """One row per answer; ``counts`` takes what was left out. A ``context`` turn is an answer that is not learnt."""
    if not isinstance(messages, list):
        raise DataError(
            f"{where}: a conversation must be a list of messages.", 'Write [{"role": ..., "content": ...}].'
        )
    system, history, open_turn = "", [], ""
    answered = False
    for number, message in enumerate(messages, start=1):
        speaker, text = _message(message, f"{where}, message {number}")
        if speaker == "system":
            system = f"{system}\n\n{text}" if system else text
        elif speaker == "user":
            open_turn = f"{open_turn}\n\n{text}" if open_turn else text  # two turns of the user in a row
        elif open_turn and text.strip():
            if speaker == "assistant":
                answered = True
                yield {"system": system, "history": list(history), "input": open_turn, "output": text.strip()}
            history += [{"role": "user", "content": open_turn}, {"role": "assistant", "content": text}]
            open_turn = ""
        elif not text.strip():
            counts["empty answers in conversations, left out"] += 1
        elif history:
            history[-1] = {**history[-1], "content": f"{history[-1]['content']}\n\n{text}"}
        else:
            counts["conversations that begin with an answer, which was left out"] += 1
    if open_turn:
        counts["conversations that end without an answer, their last turn was left out"] += 1
    if not answered:
        counts["conversations without any answer, left out"] += 1


def _message(message: Any, where: str) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise DataError(f"{where}: not a message.", 'Write {"role": "user", "content": "..."}.')
    name = message.get("role", message.get("from"))
    speaker = SPEAKERS.get(str(name).lower())
    if speaker is None:
        raise DataError(
            f"{where}: the role {name!r} is not known.", "Use system, user and assistant; leave out calls of tools."
        )
    content = message.get("content", message.get("value"))
    if isinstance(content, list):  # content in parts
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise DataError(f"{where}: a part that is not text.", "Only text can be learnt; remove images and audio.")
        content = "".join(parts)
    if content is None:
        content = ""
    if not isinstance(content, str):
        raise DataError(f"{where}: its content is a {type(content).__name__}.", "Write the content as a text.")
    return speaker, content
