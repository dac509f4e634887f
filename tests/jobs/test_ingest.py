import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from core.home import RunFolder
from core.jobs.ingest import PASS_BYTES, close_imported, ingest_events
from core.jobs.sinks import FileSink
from storage import Database
from storage.models import Attempt
from storage.queries import attempts, jobs, logs, routing, runs, scores, series
from storage.types import now


class Tale:
    """A run whose events a test writes, as a worker would."""

    def __init__(self, root: Path) -> None:
        self.database = Database(f"sqlite:///{root / 'tessera.db'}")
        self.folder = RunFolder(root / "run-1").create()
        with self.database.write() as session:
            run, _ = runs.add(session, spec={"tasks": []}, imported_from="elsewhere")
        assert run.id == "run-1"

    def attempt(self, number: int = 1, job: str = "train") -> FileSink:
        return FileSink(self.folder.events, run="elsewhere-7", job=job, attempt=number)

    def write(self, text: bytes) -> None:
        with self.folder.events.open("ab") as file:
            file.write(text)

    def ingest(self, **options: Any) -> Any:
        return ingest_events(self.database, self.folder, **options)

    def forget_offset(self) -> None:
        with self.database.write() as session:
            runs.row(session, run="run-1").events_offset = 0

    def loss(self) -> dict[int, float]:
        return self.curve("loss")

    def curve(self, name: str) -> dict[int, float]:
        with self.database.session() as session:
            curve = series.read(session, run="run-1").get(name)
        return {} if curve is None else dict(zip(curve.steps.tolist(), curve.values.tolist(), strict=True))

    def job(self, name: str = "train") -> jobs.JobRow:
        with self.database.session() as session:
            return next(job for job in jobs.of_run(session, run="run-1") if job.name == name)

    def messages(self) -> list[str]:
        with self.database.session() as session:
            return [line.message for line in logs.of_run(session, run="run-1")]

    def everything(self) -> Any:
        with self.database.session() as session:
            curves = {k: (c.steps.tolist(), c.values.tolist()) for k, c in series.read(session, run="run-1").items()}
            told = [line.message for line in logs.of_run(session, run="run-1")]
            marks = [(s.task, s.value) for s in scores.of_run(session, run="run-1", every=True)]
            moments = [m.moment for m in routing.moments(session, run="run-1")]
            return curves, told, marks, moments, runs.get(session, run="run-1").state


@pytest.fixture
def tale(tmp_path: Path) -> Tale:
    return Tale(tmp_path)


def steps(sink: FileSink, first: int, last: int, scale: float = 1.0) -> None:
    for step in range(first, last + 1):
        sink.emit("metrics", step=step, values={"loss": step * scale})


def score(value: float) -> dict[str, Any]:
    return {"task": "t", "split": "test", "model": "adapter", "metric": "accuracy", "value": value}


def whole_run(tale: Tale) -> None:
    sink = tale.attempt()
    sink.emit("started", step=0, device="cpu", trainable=5, total=50)
    steps(sink, 1, 10)
    np.savez(tale.folder.routing / "end.npz", mean_gate=np.ones((2, 2)), head=np.array(json.dumps({"tasks": ["t"]})))
    sink.emit("routing", step=10, moment="end", split="validation", file="end.npz")
    sink.emit("score", **score(0.5), surprise=[1, 2])
    sink.emit("alarm", name="nan", step=4, message="The loss is not a number.")
    sink.emit("finished", step=10)


def test_taking_everything_in_again_changes_nothing(tale: Tale) -> None:
    whole_run(tale)
    assert tale.ingest().applied == 15
    first = tale.everything()
    assert tale.ingest().applied == 0
    tale.forget_offset()
    assert tale.ingest().applied == 0
    assert tale.everything() == first
    assert first[-1] == "done" and first[2] == [("t", 0.5)] and first[3] == ["end"]


def test_a_run_from_another_machine_brings_its_jobs(tale: Tale) -> None:
    whole_run(tale)
    again = tale.attempt(job="score-2")
    again.emit("started", step=0)
    again.emit("score", **score(0.6))
    tale.ingest()
    train, second = tale.job(), tale.job("score-2")
    assert (train.kind, train.state, train.step, train.attempt) == ("train", "done", 10, 1)
    assert (second.kind, second.state) == ("score", "running")
    close_imported(tale.database, run="run-1")
    assert tale.job("score-2").state == "lost" and tale.job().state == "done"
    with tale.database.session() as session:
        run = runs.get(session, run="run-1")
        newest = scores.of_run(session, run="run-1")
        (moment,) = routing.moments(session, run="run-1")
        axes, _ = routing.read(session, snapshot=moment.id)
        assert scores.of_run(session, run="run-1", every=True)[0].extras == {"surprise": [1, 2]}
    assert (run.state, run.trainable_parameters) == ("done", 5)
    assert [s.value for s in newest] == [0.6] and axes == {"head": {"tasks": ["t"]}}


def test_a_resumed_attempt_voids_what_lies_past_its_step(tale: Tale) -> None:
    first = tale.attempt(1)
    first.emit("started", step=0)
    steps(first, 1, 10)
    first.emit("routing", step=8, moment="step-8", split="v", file="missing.npz")
    tale.ingest()
    second = tale.attempt(2)
    second.emit("started", step=6)
    steps(second, 7, 12, scale=2.0)
    tale.ingest()
    assert tale.loss() == {s: float(s) for s in range(1, 7)} | {s: 2.0 * s for s in range(7, 13)}
    tale.forget_offset()
    tale.ingest()
    assert len(tale.loss()) == 12


def test_both_attempts_in_one_pass_come_out_alike(tale: Tale) -> None:
    for number, begin, scale in ((1, 0, 1.0), (2, 6, 2.0), (3, 3, 3.0)):
        sink = tale.attempt(number)
        sink.emit("started", step=begin)
        steps(sink, begin + 1, 10, scale)
    tale.ingest()
    assert tale.loss() == {s: float(s) for s in range(1, 4)} | {s: 3.0 * s for s in range(4, 11)}


def test_what_a_superseded_attempt_still_says_is_ignored(tale: Tale) -> None:
    old, new = tale.attempt(1), tale.attempt(2)
    old.emit("started", step=0)
    steps(old, 1, 5)
    new.emit("started", step=3)
    old.emit("failed", failure="memory", message="too late", hint="", tail="")
    steps(old, 6, 9)
    steps(new, 4, 6, scale=2.0)
    tale.ingest()
    assert tale.loss() == {1: 1.0, 2: 2.0, 3: 3.0, 4: 8.0, 5: 10.0, 6: 12.0}
    assert tale.job().state == "running" and tale.job().failure is None


def test_a_line_in_the_making_waits_for_its_end(tale: Tale) -> None:
    steps(tale.attempt(), 1, 2)
    whole = tale.folder.events.read_bytes()
    cut = len(whole) - 20
    tale.folder.events.write_bytes(whole[:cut])
    assert tale.ingest().applied == 1
    tale.write(whole[cut:])
    assert tale.ingest().applied == 1 and tale.loss() == {1: 1.0, 2: 2.0}


def test_a_killed_writers_half_line_is_skipped(tale: Tale) -> None:
    first = tale.attempt(1)
    first.emit("started", step=0)
    steps(first, 1, 3)
    tale.write(b'{"run": "x", "job": "train", "attempt": 1, "seq": 5, "kind": "metr')
    second = tale.attempt(2)
    second.emit("started", step=2)
    steps(second, 3, 4)
    assert tale.ingest().skipped == 1
    assert list(tale.loss()) == [1, 2, 3, 4]


def test_a_whole_event_behind_half_a_line_is_saved(tale: Tale) -> None:
    tale.write(b'{"run": "x", "job": "tra')  # the disk was full for a moment
    with tale.folder.events.open("ab") as file:
        event = {
            "run": "x",
            "job": "train",
            "attempt": 1,
            "seq": 9,
            "kind": "metrics",
            "step": 1,
            "values": {"loss": 1},
        }
        file.write(json.dumps(event).encode() + b"\n")
    tale.ingest()
    assert tale.loss() == {1: 1.0}


def test_infinite_and_missing_numbers_are_kept_as_such(tale: Tale) -> None:
    sink = tale.attempt()
    for step, value in enumerate((float("nan"), float("inf"), None, 1e300, True), start=1):
        sink.emit("metrics", step=step, values={"loss": value})
    sink.emit("score", **score(float("nan")))
    with np.errstate(over="ignore"):
        tale.ingest()
    found = list(tale.loss().values())
    assert np.isnan(found[0]) and np.isinf(found[1]) and np.isnan(found[2]) and np.isinf(found[3]) and found[4] == 1
    with tale.database.session() as session:
        assert scores.of_run(session, run="run-1")[0].value is None


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("gone.npz", None, "missing"),
        ("../../tessera.db", None, "not a file name"),
        ("broken.npz", b"PK\x03\x04 not a zip", "cannot be read"),
        ("empty.npz", b"", "cannot be read"),
    ],
)
def test_a_bad_routing_file_becomes_a_warning(tale: Tale, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tale.folder.routing / name).write_bytes(content)
    sink = tale.attempt()
    sink.emit("routing", step=1, moment="m", split="v", file=name)
    steps(sink, 1, 2)
    tale.ingest()
    assert reason in tale.messages()[0] and len(tale.loss()) == 2


def test_pickled_arrays_are_never_opened(tale: Tale) -> None:
    np.savez(tale.folder.routing / "evil.npz", mean_gate=np.array([{"a": 1}], dtype=object))
    tale.attempt().emit("routing", step=1, moment="m", split="v", file="evil.npz")
    tale.ingest()
    assert "cannot be read" in tale.messages()[0]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
kinds = ("started", "progress", "metrics", "routing", "score", "checkpoint", "log", "alarm", "finished", "failed", "x")
fields = (
    "step",
    "values",
    "total",
    "phase",
    "seconds_left",
    "file",
    "task",
    "split",
    "model",
    "metric",
    "value",
    "rows",
)
odd_event = st.fixed_dictionaries(
    {
        "job": st.sampled_from(["train", "other"]) | plain,
        "attempt": st.just(1) | plain,
        "seq": st.integers(2, 90) | plain,
    },
    optional={name: plain for name in (*fields, "message", "failure", "tail", "at", "name", "trainable", "versions")},
)


@given(events=st.lists(st.tuples(st.sampled_from(kinds), odd_event), max_size=12), noise=st.binary(max_size=60))
@profile(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_event_whatever_stops_the_others(tale: Tale, events: Any, noise: bytes) -> None:
    for kind, event in events:
        tale.write(json.dumps({**event, "kind": kind}).encode() + b"\n")
    tale.write(noise.replace(b"\n", b" ") + b"\n")
    number = len(tale.curve("good")) + 1
    tale.attempt(number, job="good").emit("metrics", step=number, values={"good": 5.0})
    assert tale.ingest().caught_up
    assert len(tale.curve("good")) == number


def test_numbers_too_large_for_the_database_cost_only_their_event(tale: Tale) -> None:
    sink = tale.attempt()
    steps(sink, 1, 3)
    for kind in ("checkpoint", "progress", "finished", "alarm"):
        sink.emit(kind, step=10**30, total=10**30, message="m")
    sink.emit("score", **score(1.0), rows=10**30)
    tale.write(
        json.dumps({"job": "train", "attempt": 10**25, "seq": 1, "kind": "log", "message": "m"}).encode() + b"\n"
    )
    tale.write(
        json.dumps({"job": "train", "attempt": 1, "seq": 10**25, "kind": "log", "message": "m"}).encode() + b"\n"
    )
    steps(sink, 4, 6)
    tale.ingest()
    assert list(tale.loss()) == [1, 2, 3, 4, 5, 6]


def test_the_work_of_one_call_is_bounded(tale: Tale) -> None:
    sink = tale.attempt()
    for number in range(60):
        sink.emit("log", level="info", message=f"{number} " + "x" * 100_000)
    first = tale.ingest(max_bytes=PASS_BYTES)
    assert not first.caught_up and 0 < first.applied < 30
    assert tale.ingest().caught_up and len(tale.messages()) == 60


def test_a_writer_that_never_rests_does_not_hold_a_call_for_ever(tale: Tale) -> None:
    sink, resting = tale.attempt(), threading.Event()

    def write() -> None:
        step = 0
        while not resting.is_set():
            step += 1
            sink.emit("metrics", step=step, values={"loss": 1.0})

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        time.sleep(0.1)
        began = time.monotonic()
        tale.ingest()
        assert time.monotonic() - began < 20
    finally:
        resting.set()
        writer.join()


def test_a_line_that_never_ends_is_given_up(tale: Tale, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.jobs.ingest.LONGEST_LINE", 2 * PASS_BYTES)
    tale.write(b"x" * (7 * PASS_BYTES))
    assert tale.ingest().applied == 0
    tale.write(b"\n")
    steps(tale.attempt(), 1, 2)
    tale.ingest()
    assert list(tale.loss()) == [1, 2]


def test_a_file_that_was_replaced_is_read_from_its_start(tale: Tale) -> None:
    whole_run(tale)
    tale.ingest()
    tale.folder.events.write_bytes(b"".join(tale.folder.events.read_bytes().splitlines(keepends=True)[:5]))
    assert tale.ingest().applied == 0
    steps(tale.attempt(2), 11, 12)
    tale.ingest()
    assert list(tale.loss()) == list(range(1, 13))


def test_the_dispatchers_own_jobs_end_only_with_their_process(tale: Tale) -> None:
    with tale.database.write() as session:
        job = jobs.add(session, run="run-1", kind="train")
        jobs.claim(session, requests=["auto"])
        attempts.begin(session, job=job.id, token="t", device="cpu", share=1.0, host="h")
    whole_run(tale)
    tale.ingest()
    assert tale.job().state == "running" and tale.job().leased == "cpu"
    with tale.database.session() as session:
        assert session.query(Attempt).one().said == "done"


def test_an_event_without_a_time_gets_the_present_one(tale: Tale) -> None:
    tale.write(b'{"job": "train", "attempt": 1, "seq": 1, "kind": "log", "message": "m", "at": "yesterday"}\n')
    tale.ingest()
    with tale.database.session() as session:
        (line,) = logs.of_run(session, run="run-1")
    assert abs((now() - line.at).total_seconds()) < 60


def test_fifty_thousand_events_are_taken_in_quickly(tale: Tale) -> None:
    sink = tale.attempt()
    head = {"run": "r", "job": "train", "attempt": 1, "at": now().isoformat(), "kind": "metrics"}
    names = ("loss", "loss/a", "loss/b", "learning_rate", "grad_norm", "tokens_per_second")
    sink.emit("started", step=0)
    tale.write(
        b"".join(
            json.dumps({**head, "seq": step + 1, "step": step, "values": dict.fromkeys(names, 1.5)}).encode() + b"\n"
            for step in range(1, 50_001)
        )
    )
    began = time.process_time()
    assert tale.ingest().applied == 50_001
    assert time.process_time() - began < 10
    assert len(tale.loss()) == 50_000
