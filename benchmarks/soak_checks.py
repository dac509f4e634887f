"""What must hold when everything has ended, however it was treated: one check for each promise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, text

from benchmarks.soak_home import DISPATCHER, WEB, House, processes
from benchmarks.soak_runs import OPEN, Ordered
from core.home import Home
from storage import Database
from storage.models import Attempt, DeviceHold, Job, Lease, Run
from storage.queries import scores, series

NOT_REPEATABLE = ("tokens_per_second", "memory_gib")
OUTCOMES = ("done", "failed", "cancelled", "lost")
Curves = dict[str, tuple[list[int], bytes]]


@dataclass(frozen=True)
class Check:
    promise: str
    looked_at: int
    wrong: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return not self.wrong


def requests(database: Database, ordered: Sequence[Ordered]) -> Check:
    """Every request has exactly one run, and there is no other."""
    with database.session() as session:
        rows = session.execute(select(Run.request_id, func.count(), func.min(Run.slug)).group_by(Run.request_id)).all()
    found = {request: (count, slug) for request, count, slug in rows}
    wrong = [f"{one.id}: {found.get(one.request)}" for one in ordered if found.get(one.request) != (1, one.id)]
    known = {one.request for one in ordered}
    wrong += [f"{slug}: nobody asked for it" for request, (_, slug) in found.items() if request not in known]
    return Check("every submission is one run: none lost, none twice", len(ordered), tuple(wrong))


def ended(database: Database) -> Check:
    with database.session() as session:
        runs = session.execute(select(Run.slug, Run.state)).all()
        jobs = session.execute(select(Run.slug, Job.name, Job.state).join(Run, Run.id == Job.run_id)).all()
    wrong = [f"{slug} is {state}" for slug, state in runs if state in OPEN]
    wrong += [f"{slug}/{name} is {state}" for slug, name, state in jobs if state in OPEN]
    return Check("every job comes to an end", len(jobs), tuple(wrong))


def attempts(database: Database) -> Check:
    """Numbered from 1 without gaps, each with an outcome; a job is done by its last attempt and by no other."""
    wrong, seen = [], 0
    with database.session() as session:
        for job, run in session.execute(select(Job, Run).join(Run, Run.id == Job.run_id)).all():
            tries = session.scalars(select(Attempt).where(Attempt.job_id == job.id).order_by(Attempt.number)).all()
            outcomes, seen = [one.outcome for one in tries], seen + len(tries)
            name = f"{run.slug}/{job.name}"
            if [one.number for one in tries] != list(range(1, len(tries) + 1)):
                wrong.append(f"{name}: numbers {[one.number for one in tries]}")
            if not all(one.ended and one.outcome in OUTCOMES for one in tries):
                wrong.append(f"{name}: outcomes {outcomes}")
            if outcomes.count("done") != (job.state == "done") or "done" in outcomes[:-1]:
                wrong.append(f"{name} is {job.state} after {outcomes}")
            if job.name == "train" and run.state != job.state:
                wrong.append(f"{run.slug} is {run.state}, its training {job.state}")
    return Check("attempts are numbered, ended and agree with their job", seen, tuple(wrong))


def curves(database: Database, run: str) -> Curves:
    with database.session() as session:
        found = series.read(session, run=run)
    kept = {name: curve for name, curve in found.items() if name.split("/")[0] not in NOT_REPEATABLE}
    return {name: (curve.steps.tolist(), curve.values.tobytes()) for name, curve in kept.items()}


def steps(database: Database, ids: Sequence[str], total: int) -> Check:
    """A finished run has each step of its loss once and in order."""
    wrong = []
    for run in ids:
        found = curves(database, run).get("loss", ([], b""))[0]
        if found != list(range(1, total + 1)):
            wrong.append(f"{run}: {len(found)} points, {found[:3]} ... {found[-3:]}")
    return Check("each step stands once in a finished run's curve", len(ids), tuple(wrong))


def twins(home: Home, database: Database, pairs: Sequence[tuple[str, str, str]]) -> Check:
    """``pairs``: an uninterrupted run, one that was killed, paused or cancelled, and that one's state.

    Finished ones have the same curves, scores and adapter bit for bit; cancelled ones the beginning of the curves.
    """
    wrong = []
    for reference, run, state in pairs:
        expected, got = curves(database, reference), curves(database, run)
        if state == "done":
            wrong += [f"{run}: {name} differs from {reference}" for name in _different(expected, got)]
            wrong += [] if _scores(database, run) == _scores(database, reference) else [f"{run}: other scores"]
            same = _adapter(home, run) == _adapter(home, reference)
            wrong += [] if same else [f"{run}: another adapter than {reference}"]
        else:
            wrong += [f"{run}: {name} is no beginning of {reference}'s" for name in _no_beginning(expected, got)]
    return Check("interrupted runs equal uninterrupted ones bit for bit", len(pairs), tuple(wrong))


def _different(expected: Curves, got: Curves) -> list[str]:
    return sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))


def _no_beginning(expected: Curves, got: Curves) -> Iterator[str]:
    for name, (numbers, values) in got.items():
        whole = expected.get(name, ([], b""))
        if whole[0][: len(numbers)] != numbers or not whole[1].startswith(values):
            yield name


def _scores(database: Database, run: str) -> list[tuple[Any, ...]]:
    with database.session() as session:
        found = scores.of_run(session, run=run)
    return sorted((one.task, one.model, one.metric, one.value) for one in found if one.split == "test")


def _adapter(home: Home, run: str) -> dict[str, str]:
    files = sorted(home.run(run).adapter.glob("*.safetensors"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def devices(database: Database) -> Check:
    with database.session() as session:
        left = [f"job {lease.job_id} on {lease.device}" for lease in session.scalars(select(Lease))]
        left += [f"{hold.title} on {hold.device}" for hold in session.scalars(select(DeviceHold))]
    return Check("no lease and no hold of a device is left", 1, tuple(left))


def orphans(house: House, database: Database) -> Check:
    """No process carries a token of an attempt or names the home, but one web server and at most one dispatcher."""
    with database.session() as session:
        tokens = frozenset(token for token in session.scalars(select(Attempt.token)) if token)
    found = processes(house.home.root, tokens)
    roles = [one.role for one in found]
    wrong = [f"pid {one.pid}, {one.role}" for one in found if one.role not in (WEB, DISPATCHER)]
    wrong += [f"{roles.count(role)} x {role}" for role in (WEB, DISPATCHER) if roles.count(role) > 1]
    return Check("no process is left of any attempt", len(tokens), tuple(wrong))


def database_whole(database: Database) -> Check:
    with database.session() as session:
        whole = session.execute(text("PRAGMA integrity_check")).scalars().all()
        broken = session.execute(text("PRAGMA foreign_key_check")).all()
    wrong = [] if whole == ["ok"] else whole
    return Check("the data base passes its own checks", 2, (*wrong, *(str(row) for row in broken)))


def halves(root: Path) -> Check:
    """Whatever is written whole or not at all is written under a hidden name first. Caches are shared:
    what is left there goes when it is a day old."""
    hidden = [path for path in root.rglob(".*") if path.relative_to(root).parts[0] != "cache"]
    files = sum(1 for path in root.rglob("*") if path.is_file())
    return Check("no half-written file is left", files, tuple(str(path.relative_to(root)) for path in sorted(hidden)))
