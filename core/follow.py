"""What a run says, as lines for people: from its events file, which is whole even while the database lags."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.home import RunFolder
from core.jobs.sinks import describe

if TYPE_CHECKING:
    from core.studio import Studio

ENDED = ("done", "failed", "cancelled", "lost")
POLL = 0.5
LOOK_AFTER_DISPATCHER = 10.0


def logs(folder: RunFolder, tail: int, state: dict[str, Any]) -> dict[str, list[str]]:
    """The last ``tail`` lines of the newest worker's output and of the events; ``state``: the run as ``Studio.run``."""
    files = sorted(folder.logs.glob("*.log"), key=lambda path: path.stat().st_mtime)
    output = _last_lines(files[-1], tail) if files else []
    events = [line for event in _events(folder.events)[0] if (line := _line(event)) is not None]
    if state["state"] in ENDED:
        events += [line for line in _ending(state, None) if line not in events]
    elif waiting := _waiting(state):
        events.append(waiting)
    return {"output": output, "events": events[-tail:]}


def lines(studio: Studio, run: str, job: str | None = None) -> Iterator[str]:
    """Every line from the run's first event on, then what is added, until the run (or ``job``) has ended.

    Looks after the dispatcher too: should it die, another is started.
    """
    folder, offset = studio.home.run(run), 0
    told, looked = "", time.monotonic()
    while True:
        state = studio.run(run) if job is None else studio.job(run, job)
        events, offset = _events(folder.events, offset)
        for event in events:
            if (job is None or event.get("job") == job) and (line := _line(event)) is not None:
                yield line
        if state["state"] in ENDED:
            yield from _ending(state, job)
            return
        if (waiting := _waiting(state)) not in ("", told):
            told = waiting
            yield waiting
        if time.monotonic() - looked > LOOK_AFTER_DISPATCHER:
            looked = time.monotonic()
            studio.dispatcher("start")
        time.sleep(POLL)


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


def _events(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The events in the whole lines behind ``offset``, and the offset behind them."""
    if not path.is_file():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read()
    end = block.rfind(b"\n") + 1
    events = []
    for line in block[:end].splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # half a line of a killed writer
        if isinstance(event, dict):
            events.append(event)
    return events, offset + end


def _last_lines(path: Path, count: int, block: int = 1 << 16) -> list[str]:
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - block))
        text = file.read().decode("utf-8", "replace")
    return text.splitlines()[-count:] if count > 0 else []
