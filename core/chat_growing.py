"""Which kept answers still grow: the process that asked says so, so that none grows for ever when it has died."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from core.jobs.processes import Process, alive, this_process

if TYPE_CHECKING:
    from storage.queries.chats import MessageRow

INTERRUPTED = "This answer was interrupted, and nothing of it could be kept. Ask again."

asked: WeakValueDictionary[str, Any] = WeakValueDictionary()  # id -> asking of this process that has not ended


def sign(asking: str) -> dict[str, Any]:
    """What an answer that grows carries."""
    return {"asking": asking, **asdict(this_process())}


def settled(answers: Sequence[MessageRow]) -> list[MessageRow]:
    """An answer that nobody computes any more has failed, whatever became of who asked."""
    return [one if one.ended or _grows(one.settings) else _interrupted(one) for one in answers]


def _grows(signed: dict[str, Any]) -> bool:
    try:
        process = Process(*(signed[name] for name in ("pid", "start", "boot")))
    except KeyError:
        return False
    return alive(process) and (process != this_process() or signed.get("asking") in asked)


def _interrupted(answer: MessageRow) -> MessageRow:
    return replace(answer, ended="failed", problem=INTERRUPTED)
