"""What a name may become: every way out of a folder is refused, wherever a name comes from."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from app import handouts, uploads
from core import fusion_plan, pipelines
from core.access import Actor, act_as
from core.data.store import DatasetStore
from core.errors import NotFoundError, StudioError
from core.home import Home, write_json
from core.jobs.ingest import ingest_events
from core.jobs.routing_files import read_arrays
from core.jobs.sinks import FileSink
from core.paths import LONGEST_NAME, child, copy_folder, inside, is_name
from core.schema import RunSpec
from core.studio import Studio
from tests.support.training import toy_spec

WAYS_OUT = [
    "",
    ".",
    "..",
    "../secret",
    "../../secret",
    "a/../../secret",
    "/etc/passwd",
    "//etc/passwd",
    "..\\secret",
    "C:\\secret",
    "a\0b",
    "a\nb",
    "\u202egpj.exe",
    "x" * (LONGEST_NAME + 1),
    "é" * LONGEST_NAME,
    "./x",
    "x/",
    "~/x",
]
ENCODED = ["%2e%2e%2fsecret", "%252e%252e%252fsecret", "..%c0%afsecret", "..％2fsecret"]
ANN = Actor("ann", "researcher")


@pytest.mark.parametrize("name", WAYS_OUT)
def test_a_way_out_is_no_name(name: str, tmp_path: Path):
    assert not is_name(name)
    with pytest.raises(StudioError, match="is not a file name"):
        child(tmp_path, name)


@pytest.mark.parametrize("name", ENCODED)
def test_what_was_encoded_stays_as_it_is(name: str, tmp_path: Path):
    """Nothing decodes a name twice: percent signs are letters, and the file is simply not there."""
    (tmp_path / "secret").write_text("s")
    (tmp_path / "in").mkdir()
    assert child(tmp_path / "in", name).parent == tmp_path / "in"
    assert not child(tmp_path / "in", name).exists()


def test_names_keep_their_case(tmp_path: Path):
    (tmp_path / "Events.jsonl").write_text("x")
    assert child(tmp_path, "Events.jsonl").is_file() and not child(tmp_path, "events.jsonl").exists()


def test_a_link_leads_no_further_than_its_folder(tmp_path: Path):
    inner = tmp_path / "in"
    inner.mkdir()
    (inner / "real").write_text("fine")
    (tmp_path / "secret").write_text("s")
    (inner / "good").symlink_to("real")
    (inner / "bad").symlink_to(tmp_path / "secret")
    (inner / "circle").symlink_to("circle")
    assert child(inner, "good").read_text() == "fine"
    for name in ("bad", "circle"):
        with pytest.raises(StudioError):
            child(inner, name)


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "~nobody-here/x", "/etc/passwd", "../../x", "circle"])
def test_what_no_path_can_be_is_a_sentence(path: str, tmp_path: Path, monkeypatch):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    monkeypatch.chdir(tmp_path)
    if path == "circle":
        pytest.importorskip("os")
        path = str(tmp_path / "circle")
    with pytest.raises(StudioError):
        inside(path, [tmp_path / "allowed"])


@pytest.mark.parametrize("name", [*WAYS_OUT[1:11], *ENCODED, "run-1/../../tessera.db"])
def test_runs_data_sets_and_experts_are_found_by_name_alone(name: str, tmp_path: Path):
    home = Home.open(tmp_path / "home")
    (tmp_path / "secret" / "adapter").mkdir(parents=True)
    if "/" in name or name == "..":
        with pytest.raises(NotFoundError):
            home.run(name)
    with pytest.raises(StudioError):
        DatasetStore(home.datasets).find(name)
    with pytest.raises(StudioError):
        pipelines.expert_folder(name, home.runs)
    with pytest.raises(StudioError):
        fusion_plan.find_source(name, home.runs)


def adapter(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return folder


def test_people_who_signed_in_name_files_below_the_data_folders_only(studio: Studio, tmp_path: Path, monkeypatch):
    """Whoever owns the account of the machine may name any file; others what TESSERA_DATA opens for them."""
    rows = tmp_path / "private" / "rows.csv"
    rows.parent.mkdir()
    rows.write_text("text,label\n" + "a,b\n" * 20)
    expert = adapter(tmp_path / "private" / "expert")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked.csv").symlink_to(rows)
    monkeypatch.setenv("TESSERA_DATA", str(tmp_path / "data"))
    spec = toy_spec("tessera-base").model_copy(
        update={"tasks": [RunSpec.parse({"tasks": [{"dataset": str(rows)}]}).tasks[0]]}
    )
    with act_as(ANN):
        for attempt in (
            lambda: studio.check(spec),
            lambda: pipelines.expert_folder(str(expert), studio.home.runs),
            lambda: fusion_plan.find_source(str(expert), studio.home.runs),
            lambda: studio.import_(expert),
            lambda: studio.preview(tmp_path / "data"),
        ):
            with pytest.raises(StudioError, match="outside the folders"):
                attempt()
    assert pipelines.expert_folder(str(expert), studio.home.runs)[0] == expert
    assert studio.preview(tmp_path / "data").tasks


# What a run folder from elsewhere may hold


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run as ``train --here`` leaves it, as far as importing looks."""
    folder = Home(tmp_path / "elsewhere").run("here-1").create()
    write_json(folder.spec, toy_spec("tessera-base").model_dump(mode="json"))
    sink = FileSink(folder.events, run="here-1", job="train", attempt=1)
    sink.emit("started")
    sink.emit("finished")
    adapter(folder.adapter)
    return folder.root


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


PLANTED: dict[str, Callable[[Path], None]] = {
    "a link to a file outside": lambda path: path.symlink_to("/etc/passwd"),
    "a link to a folder outside": lambda path: path.symlink_to("/etc"),
    "a relative link outside": lambda path: path.symlink_to("../../../../../../etc/passwd"),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a device behind a link": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": pipe,
    "a socket": listening,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("place", ["adapter/README.md", "routing/x.npz", "predictions/x.jsonl", "logs/x.log", "x"])
@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_in_a_run_folder_is_refused_before_anything_is_stored(
    what: str, place: str, run_folder: Path, studio: Studio
):
    PLANTED[what](run_folder / place)
    with pytest.raises(StudioError, match="link that leads out|no plain file"):
        studio.import_(run_folder)
    assert studio.runs() == [] and not [path for path in studio.home.runs.iterdir() if path.name.startswith("run-")]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["spec.json", "events.jsonl"])
def test_the_files_that_are_read_first_are_checked_first(name: str, run_folder: Path, studio: Studio, tmp_path: Path):
    content = (run_folder / name).rename(tmp_path / name)
    (run_folder / name).symlink_to(content)
    with pytest.raises(StudioError, match="link that leads out"):
        studio.import_(run_folder)


def test_a_whole_run_folder_comes_in_without_pickles(run_folder: Path, studio: Studio):
    (run_folder / "adapter" / "training_args.bin").write_bytes(b"x")
    (run_folder / "adapter" / "inner.json").symlink_to("adapter_config.json")
    run = studio.import_(run_folder)
    found = studio.home.run(run["id"]).adapter
    assert (found / "inner.json").is_file() and not (found / "inner.json").is_symlink()
    assert not (found / "training_args.bin").exists()


@pytest.mark.parametrize("name", ["run.zip", "run.tar", "run.tar.gz", "run.tgz", "run.7z"])
def test_an_archive_is_not_unpacked_but_explained(name: str, studio: Studio, tmp_path: Path):
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(StudioError, match="archive.*Unpack it"):
        studio.import_(tmp_path / name)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["../../tessera.db", "/etc/passwd", "pipe.npz", "out.npz", "x\0.npz", "y" * 400, "."])
def test_a_routing_file_named_by_an_event_is_one_of_its_run(name: str, run_folder: Path, studio: Studio):
    run = studio.home.run(studio.import_(run_folder)["id"])
    os.mkfifo(run.routing / "pipe.npz")
    (run.routing / "out.npz").symlink_to("/etc/passwd")
    with pytest.raises(ValueError):
        read_arrays(run.routing, name)
    sink = FileSink(run.events, run=run.root.name, job="train", attempt=1)
    sink.emit("routing", step=1, moment="end", split="validation", file=name)
    ingest_events(studio.records.database, run)
    assert studio.moments(run.root.name) == []


@pytest.mark.parametrize("name", ["../../../tessera.db", "/etc/passwd", "pipe.jsonl", "out.jsonl"])
@pytest.mark.timeout(20)
def test_predictions_named_by_a_score_are_those_of_its_run(name: str, tmp_path: Path):
    from core.comparisons import predictions

    folder = tmp_path / "predictions"
    folder.mkdir()
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "out.jsonl").symlink_to("/etc/passwd")
    with pytest.raises(StudioError):
        predictions(child(folder, Path(name).name))


# Uploads and downloads


@pytest.fixture
def gradio_folder(tmp_path: Path, monkeypatch) -> Path:
    folder = tmp_path / "gradio"
    folder.mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    return folder


@pytest.mark.timeout(20)
def test_only_what_was_uploaded_is_an_upload(gradio_folder: Path, tmp_path: Path, studio: Studio):
    (tmp_path / "home" / "secret.csv").write_text("a,b\n1,2\n")
    (gradio_folder / "link.csv").symlink_to(tmp_path / "home" / "secret.csv")
    os.mkfifo(gradio_folder / "pipe.csv")
    (gradio_folder / "folder.csv").mkdir()
    (gradio_folder / "good.csv").write_text("a,b\n1,2\n")
    assert uploads.received(str(gradio_folder / "good.csv")) == [gradio_folder / "good.csv"]
    for bad in [
        str(tmp_path / "home" / "secret.csv"),
        str(tmp_path / "home" / "tessera.db"),
        f"{gradio_folder}/../home/secret.csv",
        f"{gradio_folder}/%2e%2e/home/secret.csv",
        str(gradio_folder / "link.csv"),
        str(gradio_folder / "pipe.csv"),
        str(gradio_folder / "folder.csv"),
        str(gradio_folder),
        "/dev/zero",
        "/proc/self/environ",
        "a\0b",
        "x" * 5000,
        "",
    ]:
        with pytest.raises(StudioError, match="not uploaded"):
            uploads.received([bad])


@pytest.mark.parametrize("name", ["../../x.csv", "/etc/cron.d/x", "a\0b.csv", "..", "x" * 900 + ".csv", "run\n1.csv"])
def test_a_download_is_written_into_a_folder_of_its_own(name: str, gradio_folder: Path):
    if not any(letter.isalnum() for letter in name):
        with pytest.raises(StudioError):
            handouts.handout(name)
        return
    path = handouts.handout(name)
    path.write_text("x")
    assert path.parent.parent == gradio_folder and path.parent.stat().st_mode & 0o077 == 0


def test_uploads_lie_where_other_accounts_cannot_read(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(uploads.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(uploads.tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    folder = uploads.private_folder()
    assert folder.stat().st_mode & 0o777 == 0o700 and os.environ["GRADIO_TEMP_DIR"] == str(folder)
    monkeypatch.delenv("GRADIO_TEMP_DIR")
    folder.rmdir()
    folder.symlink_to("/var")  # somebody was here first
    other = uploads.private_folder()
    assert other != folder and other.stat().st_uid == os.getuid() and other.stat().st_mode & 0o777 == 0o700


def test_copying_a_folder_follows_no_link_to_a_folder(tmp_path: Path):
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file").write_text(json.dumps(1))
    (source / "again").symlink_to("inner")
    copy_folder(source, tmp_path / "target")
    assert sorted(p.relative_to(tmp_path / "target").as_posix() for p in (tmp_path / "target").rglob("*")) == [
        "inner",
        "inner/file",
    ]
