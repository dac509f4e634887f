"""A conversation as a file: JSON lines for programs, Markdown for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from core.errors import ConfigurationError

if TYPE_CHECKING:
    from storage.queries.chats import ConversationRow, MessageRow


def write(conversation: ConversationRow, turns: Sequence[tuple[MessageRow, Sequence[MessageRow]]], kind: str) -> str:
    if kind == "jsonl":
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in map(_line, turns))
    if kind == "md":
        return _markdown(conversation, turns)
    raise ConfigurationError(f"{kind!r} is not a kind of export.", "Choose jsonl or md.")


def _line(turn: tuple[MessageRow, Sequence[MessageRow]]) -> dict[str, Any]:
    question, answers = turn
    fields = ("id", "model", "text", "tokens", "seconds", "ended", "problem")
    return {
        "question": question.text,
        "settings": question.settings,
        "asked": question.created.isoformat(),
        "answers": [{name: getattr(answer, name) for name in fields} for answer in answers],
    }


def _markdown(conversation: ConversationRow, turns: Sequence[tuple[MessageRow, Sequence[MessageRow]]]) -> str:
    parts = [f"# {conversation.title}", f"{', '.join(conversation.models)}; {conversation.created:%Y-%m-%d %H:%M} UTC"]
    told: dict[str, Any] | None = None
    for question, answers in turns:
        if question.settings != told:
            told = question.settings
            parts.append("; ".join(f"{name} {value}" for name, value in told.items() if value not in (None, "")))
        parts.append(_quoted(question.text))
        for answer in answers:
            note = f"{answer.tokens} tokens in {answer.seconds:.1f} s"
            note += "" if answer.ended == "end" else f", {answer.problem or answer.ended or 'still growing'}"
            parts += [f"**{answer.model}** ({note})", _fenced(answer.text)]
    return "\n\n".join(parts) + "\n"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())


def _fenced(text: str) -> str:
    """As it was said: a fence longer than any in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"
