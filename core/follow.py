"""What a run says, as lines for people: from its events file, which is whole even while the database lags."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import watching
from core.home import RunFolder
from core.jobs.sinks import describe
from core.units import MIB

if TYPE_CHECKING:
    from core.studio import Studio

ENDED = ("done", "failed", "cancelled", "lost")
POLL = 0.5
LOOK_AFTER_DISPATCHER = 10.0
BLOCK = MIB  # bytes of events that are read at once


def logs(folder: RunFolder, tail: int, state: dict[str, Any]) -> dict[str, list[str]]:
    """The last ``tail`` lines of the newest worker's output and of the events; ``state``: the run as ``Studio.run``."""
    tried = [job for job in state.get("jobs", []) if job["attempt"]]
    working = [job for job in tried if job["state"] not in ENDED] or tried
    newest = f"{working[-1]['name']}-{working[-1]['attempt']}" if working else ""
    output = watching.output(folder, newest, tail)
    events = [line for event in _events(folder.events)[0] if (line := _line(event)) is not None]
    if state["state"] in ENDED:
        events += [line for line in _ending(state, None) if line not in events]
    elif waiting := _waiting(state):
        events.append(waiting)
    return {"output": output, "events": events[-tail:]}


def said(folder: RunFolder, state: dict[str, Any], job: str | None, after: int) -> dict[str, Any]:
    """What a run said behind byte ``after`` of its events; ``state``: the run, or its ``job``, as it was before.

    ``lines``, where to go on (``next``), what it waits for (``waiting``), and whether that was all (``ended``).
    """
    events, offset, whole = _events(folder.events, after, BLOCK)
    lines = [
        line for event in events if (job is None or event.get("job") == job) and (line := _line(event)) is not None
    ]
    ended = whole and state["state"] in ENDED
    lines += _ending(state, job) if ended else ()
    return {"lines": lines, "next": offset, "waiting": _waiting(state), "ended": ended}


def lines(studio: Studio, run: str, job: str | None = None, *, tend: bool = True) -> Iterator[str]:
    """Every line from the run's first event on, then what is added, until the run (or ``job``) has ended.

    ``tend``: looks after the dispatcher too: should it die, another is started.
    """
    after, told, looked = 0, "", time.monotonic()
    while True:
        found = studio.said(run, job=job, after=after)
        yield from found["lines"]
        if found["ended"]:
            return
        if (waiting := found["waiting"]) not in ("", told):
            told = waiting
            yield waiting
        if tend and time.monotonic() - looked > LOOK_AFTER_DISPATCHER:
            looked = time.monotonic()
            studio.dispatcher("start")
        if found["next"] == after or not found["lines"]:
            time.sleep(POLL)
        after = found["next"]


def _line(event: dict[str, Any]) -> str | None:
    try:
        return describe(event["kind"], event)
    except (KeyError, TypeError, ValueError):
        return None  # an event of another version: the file still tells it


def _waiting(state: dict[str, Any]) -> str:
    if state["state"] != "queued":
        return ""
    ahead = next((job["ahead"] for job in state.get("jobs", [state]) if job["state"] == "queued"), None)
    return "waiting for a device" if not ahead else f"waiting, {ahead} ahead in the queue"


def _ending(state: dict[str, Any], job: str | None) -> Iterator[str]:
    """What the dispatcher knows and the worker could not say: that it was killed, or never started."""
    steps = state["jobs"] if job is None else [state]
    ended = next((step for step in reversed(steps) if step["state"] in ENDED), None)
    if ended and ended["state"] == "cancelled" and ended["started"] is None:
        yield "cancelled before it started"
    if ended and ended["state"] in ("failed", "lost") and ended["message"]:
        yield f"{ended['state']} ({ended['failure']}): {ended['message']} {ended['hint'] or ''}".rstrip()


def _events(path: Path, offset: int = 0, most: int = -1) -> tuple[list[dict[str, Any]], int, bool]:
    """The events in the whole lines behind ``offset``, the offset behind them, and whether that is the whole file.

    ``most``: about so many bytes are read.
    """
    if not path.is_file():
        return [], offset, True
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(most)
        whole = len(block) != most
        if not whole and b"\n" not in block:
            block += file.readline()
    end = block.rfind(b"\n") + 1
    events = []
    for line in block[:end].splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # half a line of a killed writer
        if isinstance(event, dict):
            events.append(event)
    return events, offset + end, whole
