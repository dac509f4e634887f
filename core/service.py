"""The studio as a running thing: its dispatcher, its health, its state at a glance."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from core import access
from core.errors import NotFoundError, StudioError
from core.home import Home
from core.records import Records, explained

if TYPE_CHECKING:
    from core.studio import Studio

DEMO_TAG = "demo"


def dispatcher(home: Home, records: Records, action: str) -> dict[str, Any]:
    """``status``, ``start`` (if none lives), ``stop``, or ``run`` in this process until idle."""
    from core.jobs import service

    if action != "status":
        access.need("researcher" if action == "start" else "admin")
    if action == "start":
        service.ensure_dispatcher(home)
    elif action == "stop":
        service.stop_dispatcher(home)
    elif action == "run":
        _run(home)
    return asdict(service.dispatcher_status(home)) | queue(records)


def _run(home: Home) -> None:
    with explained():
        from core.jobs.dispatcher import Dispatcher

        owner = Dispatcher(home)
        try:
            if not owner.run():
                print("Another dispatcher of this home is at work.", file=sys.stderr)
        except KeyboardInterrupt:
            owner.stop()


def queue(records: Records) -> dict[str, Any]:
    """Who works, who waits, and who holds which device."""
    from core.jobs import holds
    from storage.queries import attempts, jobs

    with records.read() as session:
        found = jobs.queue(session)
        held = attempts.leases(session)
        chats = holds.living(session)
    working = [f"{job.run}/{job.name}" for job in found if job.state != "queued"]
    waiting = [f"{job.run}/{job.name}" for job in found if job.state == "queued"]
    devices = [f"{one['device']}: {one['run']}{_part(one['share'])}" for one in held]
    devices += [f"{one.device}: {one.title}" for one in chats]
    return {"working": working, "waiting": waiting, "devices": devices}


def _part(share: float) -> str:
    return "" if share == 1 else f" ({share:.0%})"


def describe(home: Home, records: Records) -> str:
    """One line for the doctor; raises when something waits and nobody starts it."""
    state = dispatcher(home, records, "status")
    waits = len(state["waiting"])
    if state["alive"]:
        return f"at work as process {state['pid']}, {len(state['working'])} working, {waits} waiting"
    if waits:
        raise NotFoundError(
            f"{waits} jobs wait, but no dispatcher is alive.",
            f"python app.py dispatcher start; its log is {state['log']}.",
        )
    return "not needed now; it starts with the next run"


@contextmanager
def web_presence(home: Home, records: Records) -> Iterator[None]:
    """Start a dispatcher if none lives, keep it while this is entered, and replace one that dies while jobs need it."""
    from core.jobs import service

    queue(records)  # opens and migrates the database before another process looks at it
    service.ensure_dispatcher(home)
    with service.register_web(home), service.watch_over(home, lambda: _busy(records)):
        yield


def _busy(records: Records) -> bool:
    from storage.queries import jobs

    with records.read() as session:
        return jobs.busy(session) > 0


def health(records: Records) -> dict[str, str]:
    try:
        queue(records)
        return {"database": "ok"}
    except StudioError as error:
        return {"database": error.message}


def overview(studio: Studio, recent: int) -> dict[str, Any]:
    """Counts, the newest runs, and the commands that lead on from here."""
    from storage.queries import runs

    with studio.records.read() as session:
        states = runs.counts(session)
    sets = len(studio.store.list())
    working = sum(states.get(state, 0) for state in ("starting", "running", "cancelling"))
    counts = {"data sets": sets, "runs": sum(states.values()), "running": working, "queued": states.get("queued", 0)}
    newest = studio.runs(limit=recent)
    shown = {"demo": _demo(studio), "routed": _routed(studio)}
    return {"counts": counts, "runs": newest, "next": _next(sets, newest, states), **shown}


def _demo(studio: Studio) -> list[dict[str, Any]]:
    """The newest runs of the demo, one of each method; none where nobody asked for it."""
    from core.demo import METHODS

    found = studio.runs(tag=DEMO_TAG, limit=4 * len(METHODS))
    marked = [run for run in found if any(tag.startswith(f"{DEMO_TAG}-") for tag in run["tags"])]
    newest = {run["method"]: run for run in reversed(marked)}
    return [newest[method] for method in METHODS if method in newest]


def _routed(studio: Studio) -> str | None:
    """The newest finished run that recorded routing."""
    from core import results

    done = [run["id"] for run in studio.runs(state="done", limit=20)]
    known = results.routed(studio.records, done)
    return next((run for run in done if run in known), None)


def _next(sets: int, newest: list[dict[str, Any]], states: dict[str, int]) -> list[dict[str, str]]:
    steps = []
    if not states:
        steps.append(("Train three methods on tasks that the studio makes itself:", "python app.py demo"))
    if not sets:
        steps.append(("Bring your own rows (CSV, JSON lines, Parquet, a Hub id):", "python app.py upload FILE"))
    elif not states:
        steps.append(("Describe a run in YAML and train it:", "python app.py train RUN.yaml"))
    done = [run["id"] for run in newest if run["state"] == "done"]
    failed = [run["id"] for run in newest if run["state"] in ("failed", "lost")]
    if failed:
        steps.append((f"Read why {failed[0]} failed:", f"python app.py logs {failed[0]}"))
    if len(done) > 1:
        steps.append(("Put runs side by side:", f"python app.py compare {' '.join(done[:3])}"))
    mixture = next((run["id"] for run in newest if run["state"] == "done" and not run["unrouted"]), None)
    if mixture:
        steps.append(("See which expert speaks for which task:", f"python app.py routing {mixture} --png routing.png"))
    if done:
        steps.append(("Talk to a trained model beside its base:", f"python app.py chat {done[0]} base"))
    elif states and not failed:
        newest_id = newest[0]["id"]
        steps.append(("Follow the newest run:", f"python app.py logs {newest_id} -f"))
    return [{"text": text, "command": command} for text, command in steps]
