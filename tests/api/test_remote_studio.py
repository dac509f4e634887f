"""A studio elsewhere answers as one here, waits for its server, and is spoken to safely."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest

from core import remote_files, remote_line
from core.errors import ConfigurationError, DataError, NotAllowedError, NotFoundError
from core.fusion_results import Conflicts
from core.jobs.sinks import FileSink
from core.remote import RemoteStudio
from core.remote_files import layout, unpacked
from core.remote_line import LostError, checked
from core.schema import MethodSpec, ModelSpec
from core.wire import decode, dumps
from storage.queries import jobs
from tests.api.conftest import House, Served
from tests.support import seed
from tests.support.seed import QuietStudio, Seeded


@pytest.fixture(scope="module")
def far(reading: QuietStudio) -> Iterator[RemoteStudio]:
    """The seeded studio, over HTTP."""
    server = Served(reading)
    made = RemoteStudio(server.url)
    yield made
    made.close()
    server.stop()


@pytest.fixture
def remote(served: Served) -> Iterator[RemoteStudio]:
    made = RemoteStudio(served.url)
    yield made
    made.close()


def alike(there, here) -> None:
    """The same values of the same kinds; what is no number here is none there."""
    assert type(there) is type(here)
    if isinstance(here, pd.DataFrame):
        pd.testing.assert_frame_equal(there, here, check_dtype=False, check_index_type=False)
        assert there.attrs == here.attrs
    elif isinstance(here, np.ndarray):
        np.testing.assert_array_equal(there, here)
    elif dataclasses.is_dataclass(here):
        for field in dataclasses.fields(here):
            alike(getattr(there, field.name), getattr(here, field.name))
    elif isinstance(here, list | tuple):
        assert len(there) == len(here)
        for one, other in zip(there, here, strict=True):
            alike(one, other)
    elif isinstance(here, dict):
        assert list(there) == list(here)
        for key in here:
            alike(there[key], here[key])
    else:
        assert there == here or (here != here and there != there)


LOOKS = {
    "datasets": {},
    "dataset": {"name": "reviews"},
    "rows": {"dataset": "reviews", "task": "topic", "split": "test", "limit": 3},
    "methods": {},
    "method": {"name": "split"},
    "fusion_methods": {},
    "runs": {"state": "done", "limit": 3},
    "run": {"run": "run-1"},
    "job": {"run": "run-1", "name": "train"},
    "logs": {"run": "run-1", "tail": 5},
    "said": {"run": "run-1", "after": 0},
    "curves": {"run": "run-1", "names": ["loss"], "max_points": 20},
    "scores": {"run": "run-1", "primary": False},
    "moments": {"run": "run-1"},
    "routing_table": {"run": "run-1", "role": "all"},
    "compare": {"runs": ["run-1", "run-4", "run-5"], "baseline": "base", "group_seeds": False},
    "fused": {},
    "dispatcher": {},
    "health": {},
}


@pytest.mark.parametrize("name", LOOKS)
def test_what_is_read_there_is_what_is_read_here(far: RemoteStudio, reading: QuietStudio, name: str):
    there, here = (getattr(studio, name)(**LOOKS[name]) for studio in (far, reading))
    assert here is not None
    alike(there, here)


def test_what_is_worked_out_there_is_the_same_too(far: RemoteStudio, reading: QuietStudio):
    alike(far.compare(["run-1", "run-4"]).render("markdown"), reading.compare(["run-1", "run-4"]).render("markdown"))
    budget = {"methods": [MethodSpec(name="lora"), "mosld"], "like": "molora", "base": ModelSpec(), "tasks": 2}
    alike(far.equal_budget(**budget), reading.equal_budget(**budget))
    spec = reading.cloned_spec("run-1", changes={"train.steps": 7})
    alike(far.cloned_spec("run-1", changes=["train.steps=7"]), spec)
    alike(far.check(spec), reading.check(spec))
    assert far.preflight(spec).text().partition("speed")[0] == reading.preflight(spec).text().partition("speed")[0]
    alike(far.fusion_spec(["run-1", "run-5"]), reading.fusion_spec(["run-1", "run-5"]))


def test_what_fusing_found_is_the_same_too(far: RemoteStudio, reading: QuietStudio, seeded: Seeded):
    run = seed.fused(reading, seeded.dataset, ["run-1", "run-5"])
    alike(far.fusion(run), reading.fusion(run))
    alike(far.tables(run, "coefficients"), reading.tables(run, "coefficients"))
    none = np.array([[1.0, np.nan], [np.nan, 1.0]])
    found = Conflicts(["a", "b"], ["q"], none[None], none[None], none[:1], none, none, none[0])
    alike(decode("core.fusion_results:Conflicts", json.loads(dumps(found))), found)


def test_routing_is_taken_along(far: RemoteStudio, reading: QuietStudio, tmp_path: Path):
    assert far.routing_files("run-1", csv=tmp_path / "far.csv") == [tmp_path / "far.csv"]
    reading.routing_files("run-1", csv=tmp_path / "near.csv")
    assert (tmp_path / "far.csv").read_text() == (tmp_path / "near.csv").read_text()


def test_errors_are_the_same_errors(far: RemoteStudio, reading: QuietStudio, seeded: Seeded):
    for ask in (
        lambda studio: studio.run("run-99"),
        lambda studio: studio.scores("nobody"),
        lambda studio: studio.routing(seeded.lora),
        lambda studio: studio.method("mosl"),
        lambda studio: studio.compare(["run-1"], baseline="run-4"),
        lambda studio: studio.delete_dataset("reviews"),
    ):
        with pytest.raises((NotFoundError, ConfigurationError)) as here:
            ask(reading)
        with pytest.raises(type(here.value)) as there:
            ask(far)
        assert (there.value.message, there.value.hint) == (here.value.message, here.value.hint)


def test_what_needs_the_other_machine_is_refused(far: RemoteStudio):
    for name in ("chat", "import_", "machine", "doctor", "demo", "store"):
        with pytest.raises(ConfigurationError, match="does not do this"):
            getattr(far, name)
    with pytest.raises(ConfigurationError, match="started and stopped"):
        far.dispatcher("stop")
    with pytest.raises(ConfigurationError, match="in this process"):
        far.train_here(None)


def test_files_of_this_machine_are_sent(remote: RemoteStudio, served: Served, colours: Path, tmp_path: Path):
    far = remote.upload(colours, name="hues")
    assert served.studio.upload(colours)["id"] == far["id"]  # the same content
    folder = tmp_path / "glue"
    for task, split in (("rte", "train"), ("rte", "test"), ("sst", "train"), ("sst", "test")):
        (folder / task).mkdir(parents=True, exist_ok=True)
        (folder / task / f"{split}.csv").write_text(
            "text,label\n" + "".join(f"{task} {split} {i},{i % 2}\n" for i in range(20))
        )
    (folder / "notes.md").write_text("no data")
    stored = remote.upload(folder)
    assert (stored["name"], list(stored["tasks"])) == ("glue", ["rte", "sst"])
    alike(stored["tasks"], served.studio.upload(folder)["tasks"])
    seen = remote.preview([folder / "rte" / "train.csv", folder / "rte" / "test.csv"], name="one")
    assert list(seen.tasks) == ["rte"] and {"train", "test"} <= set(seen.tasks["rte"].info.counts)
    assert not list((served.studio.home.cache / "received").glob("*"))
    with pytest.raises(NotFoundError, match="There is no file"):
        remote.upload(tmp_path / "missing.csv")


def test_a_run_brings_the_files_that_it_names(remote: RemoteStudio, served: Served, colours: Path):
    text = f"tasks: [{{dataset: {colours}}}]\nmethod: {{name: lora}}\ndevice: cpu\n"
    run = remote.submit(text, request_id="key")
    assert remote.submit(text, request_id="key") == run
    assert remote.run(run)["spec"]["tasks"][0]["dataset"] == served.studio.datasets()[0]["id"]
    assert [one["id"] for one in remote.runs()] == [run]
    assert remote.cancel(run)["state"] == "cancelled" and remote.delete(run) is None
    assert remote.runs() == []


@pytest.mark.parametrize("arrives", [True, False])
def test_a_file_is_sent_over_a_line_that_breaks(remote: RemoteStudio, served: Served, tmp_path, monkeypatch, arrives):
    """Every third piece breaks, after or before it arrived; what is stored is what was sent."""
    path = tmp_path / "long.csv"
    path.write_text("text,label\n" + "".join(f"row {i} of a long file,{i % 2}\n" for i in range(4000)))
    monkeypatch.setattr(remote_files, "PIECE", 9_000)
    once, count = remote._line._once, iter(range(1000))

    def breaking(verb, *rest):
        broken = verb == "PUT" and next(count) % 3 == 2
        if not broken or arrives:
            answer = once(verb, *rest)
        if broken:
            raise httpx.ReadError("broken")
        return answer

    monkeypatch.setattr(remote._line, "_once", breaking)
    assert remote.upload(path)["id"] == served.studio.upload(path)["id"]
    assert next(count) > 10


def test_a_file_whose_line_stays_broken_is_given_up(remote: RemoteStudio, served: Served, colours, monkeypatch):
    once = remote._line._once

    def breaking(verb, *rest):
        if verb == "PUT":
            raise httpx.ReadError("broken")
        return once(verb, *rest)

    monkeypatch.setattr(remote._line, "_once", breaking)
    with pytest.raises(LostError):
        remote.upload(colours)
    assert served.studio.datasets() == []


def test_a_run_is_followed_through_restarts_of_the_server(served: Served):
    """Every line once and in order, though the server goes away twice in between."""
    studio, said = served.studio, []
    data = seed.dataset(studio.home.root)
    run = seed.queued(studio, data.id)
    sink = FileSink(studio.home.run(run).events, run=run, job="train", attempt=1)
    told: list[str] = []
    remote = RemoteStudio(served.url, say=told.append)
    follower = threading.Thread(target=lambda: said.extend(remote.follow(run)), daemon=True)
    follower.start()
    for step in range(1, 7):
        sink.emit("metrics", step=step, values={"loss": 1 / step})
        time.sleep(0.3)
        if step in (2, 4):
            served.stop()
            sink.emit("log", level="warning", message=f"away at {step}")
            time.sleep(1.2)
            served.start()
    with studio.records.write() as session:
        jobs.cancel_run(session, run=run)
    follower.join(30)
    sink.close()
    lines = [line for line in said if not line.startswith("waiting")]
    assert not follower.is_alive()
    assert lines == [
        "step 1: loss 1.0000", "step 2: loss 0.5000", "warning: away at 2", "step 3: loss 0.3333",
        "step 4: loss 0.2500", "warning: away at 4", "step 5: loss 0.2000", "step 6: loss 0.1667",
        "cancelled before it started",
    ]  # fmt: skip
    assert any("waiting for it" in one for one in told)
    remote.close()


def test_reads_are_tried_again_and_changes_are_not(remote: RemoteStudio, served: Served, monkeypatch):
    assert remote.runs() == []
    once, tried = remote._line._once, []

    def failing(verb, path, *rest):
        tried.append(path)
        if len(tried) == 1:
            raise httpx.ReadError("reset")
        return once(verb, path, *rest)

    monkeypatch.setattr(remote._line, "_once", failing)
    assert remote.runs() == [] and tried == ["runs", "runs"]
    tried.clear()
    with pytest.raises(LostError, match="broke before it answered") as lost:
        remote.delete("run-1")
    assert tried == ["delete"] and "Look first" in lost.value.hint


def test_a_studio_that_does_not_answer_is_said_at_once(monkeypatch):
    began = time.monotonic()
    with pytest.raises(LostError, match="does not answer"):
        RemoteStudio("http://127.0.0.1:9").runs()
    assert time.monotonic() - began < 5


def test_roles_and_owners_hold_over_the_wire(house: House):
    server = Served(house.studio, house.app)
    viewer, stranger = RemoteStudio(server.url, house.keys["vic"]), RemoteStudio(server.url, "tsr_wrong")
    with pytest.raises(NotAllowedError, match="viewer"):
        viewer.cancel("run-1")
    with pytest.raises(ConfigurationError, match="unknown, expired or revoked"):
        stranger.runs()
    with pytest.raises(ConfigurationError, match="have a token"):
        RemoteStudio(server.url).runs()
    server.stop()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://gpu.lab.org:7860", "plain http"),
        ("http://192.168.1.7", "plain http"),
        ("http://127.0.0.1.evil.example", "plain http"),
        ("ftp://x", "not the address"),
        ("gpu:7860", "not the address"),
        ("", "not the address"),
        ("https://ann:secret@gpu.lab.org", "holds a name or password"),
        ("https://gpu.lab.org/?token=x", "not the address"),
        ("https://x\x00", "not an address"),
    ],
)
def test_addresses_that_are_not_spoken_to(url: str, says: str):
    with pytest.raises(ConfigurationError, match=says) as refused:
        checked(url, insecure=False)
    assert "secret" not in str(refused.value)


def test_addresses_that_are_spoken_to():
    for url in ("https://gpu.lab.org", "http://127.0.0.1:7860/", "http://localhost", "http://[::1]:7860"):
        assert checked(url, insecure=False)
    assert checked("http://gpu.lab.org:7860", insecure=True)


@pytest.mark.parametrize(("status", "body"), [(200, "<html>"), (302, ""), (404, "no"), (502, "bad"), (500, "{}")])
def test_what_is_no_studio_is_said(status: int, body: str):
    line = remote_line.Line("http://127.0.0.1:1")
    answer = httpx.Response(status, text=body, headers={"location": "https://there"} if status == 302 else {})
    line._client = httpx.Client(base_url="http://x", transport=httpx.MockTransport(lambda _: answer))
    with pytest.raises(ConfigurationError, match="leads on to|not as a studio does"):
        line.ask("GET", "runs", again=True)


def test_an_archive_unpacks_into_its_folder_only(tmp_path: Path):
    for number, name in enumerate(("../evil.txt", "/evil.txt", "a/../../evil.txt")):
        archive = tmp_path / f"{number}.zip"
        with zipfile.ZipFile(archive, "w") as packed:
            packed.writestr(name, "x")
        with pytest.raises(DataError, match="outside"):
            unpacked(archive, tmp_path / "in" / "adapter")
    assert not list(tmp_path.rglob("evil.txt")) and not (tmp_path / "in" / "adapter").exists()


def test_files_keep_the_folders_that_name_their_tasks(tmp_path: Path):
    for folder in ("a", "b", "other/b"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "train.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b" / "tasks.json").write_text("{}")
    files, sources = layout([tmp_path / folder / "train.csv" for folder in ("a", "b", "other/b")])
    assert sources == ["a/train.csv", "b/train.csv", "3/b/train.csv"]
    assert set(files) == {*sources, "b/tasks.json"} and files["3/b/train.csv"] == tmp_path / "other/b/train.csv"
    with pytest.raises(DataError, match="holds no data files"):
        (tmp_path / "empty").mkdir()
        layout([tmp_path / "empty"])
