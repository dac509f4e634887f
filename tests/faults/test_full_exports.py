"""Exports on a disk that is full: a sentence, nothing half-written, no trace, and the same call works with room."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from app import api_files, handouts
from app.cli import main
from app.pages import compare, runs
from core import room
from core.adapters.folders import WEIGHTS
from core.calls import CALLS
from core.errors import DiskError
from core.home import write_json, write_text
from core.remote import RemoteStudio
from core.studio import Studio
from tests.support import seed
from tests.support.full_disk import full
from tests.support.talkers import spec, talker
from tests.support.tiny import tiny_base


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Studio, Any]]:
    root = tmp_path_factory.mktemp("seeded")
    found = seed.few(root)
    studio = seed.QuietStudio(root)
    studio.runs()  # the connection is there before the disk is full
    yield studio, found
    studio.close()


@pytest.fixture(autouse=True)
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    return tmp_path / "uploads"


def refused(work: Callable[[], Any], *folders: Path) -> str:
    """What is said; nothing is left below the folders."""
    before = {path for folder in folders for path in folder.rglob("*")}
    with full(), pytest.raises((DiskError, gr.Error)) as caught:
        work()
    left = {path for folder in folders for path in folder.rglob("*")} - before
    assert not [path for path in left if path.is_file()], left
    said = getattr(caught.value, "message", str(caught.value))
    assert "no file that large" in said, said
    return said


def test_a_bundle(seeded, uploads: Path) -> None:
    studio, found = seeded
    refused(lambda: runs.packed(studio, "bundle", found.lora), uploads)
    made = runs.packed(studio, "bundle", found.lora)
    assert zipfile.ZipFile(made).testzip() is None and Path(made).parent.parent == uploads


def test_tables_and_conversations(seeded, uploads: Path, tmp_path: Path) -> None:
    studio, found = seeded
    choice = compare.Choice(runs=tuple(found.done), every=True)
    whole = len(compare.compared(studio, choice).render("csv"))
    assert whole > 600, "the table fits"
    refused(lambda: compare.exported(studio, choice, "csv"), uploads)
    assert Path(compare.exported(studio, choice, "csv")).stat().st_size > whole
    old = tmp_path / "table.csv"
    old.write_text("whole")
    with full(), pytest.raises(OSError) as caught:
        write_text(old, "x" * 5000)
    assert room.trouble(caught.value, "press again").hint.endswith("then press again.")
    assert old.read_text() == "whole" and list(tmp_path.glob(".table*")) == []
    refused(lambda: handouts.handed("x.md", lambda path: path.write_text("x" * 5000)), uploads)


def test_figures_and_tables_of_the_command_line(seeded, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    studio, found = seeded
    wanted = [argument for kind in ("png", "csv") for argument in (f"--{kind}", str(tmp_path / f"out.{kind}"))]
    for given in (wanted[:2], wanted[2:]):
        with full():
            assert main(["--home", str(studio.home.root), "routing", found.mosld[0], *given]) == 1
        said = capsys.readouterr().err
        assert said.startswith("Error: The disk takes no file that large") and "then try again" in said
        assert not list(tmp_path.glob(f"*out.{given[0][2:]}*"))
        assert main(["--home", str(studio.home.root), "routing", found.mosld[0], *given]) == 0
    assert (tmp_path / "out.png").stat().st_mode & 0o777 == 0o644


def test_what_is_sent_elsewhere(seeded) -> None:
    studio, found = seeded
    wanted = {"run": found.mosld[0], "moment": "end"}
    sent = studio.home.cache / "sent"
    said = refused(lambda: api_files.made(CALLS["routing"], studio, wanted), studio.home.cache)
    assert said and list(sent.iterdir()) == []
    assert api_files.made(CALLS["routing"], studio, wanted).stat().st_size > 600


class Line:
    """Answers every ``fetch`` with an adapter of 100 kB."""

    def fetch(self, name: str, target: Path, params: dict[str, str]) -> Path:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("run-1-adapter/README.md", "short")
            archive.writestr("run-1-adapter/weights", bytes(100_000))
        return target


def test_an_archive_from_elsewhere(tmp_path: Path) -> None:
    """It is small and whole; what is in it is not."""
    studio = object.__new__(RemoteStudio)
    studio._line = Line()
    refused(lambda: studio.export("run-1", tmp_path / "adapter"), tmp_path)
    assert list(tmp_path.glob("*adapter*")) == list(tmp_path.glob(".tessera-*")) == []
    assert (studio.export("run-1", tmp_path / "adapter") / "weights").stat().st_size == 100_000


@pytest.mark.long
def test_an_adapter(tmp_path: Path, uploads: Path) -> None:
    """Written by a child process, which is as limited."""
    base = tiny_base(tmp_path / "base")
    studio = Studio(tmp_path / "home")
    run = talker(studio, spec(base), on=base)
    write_json(studio.home.run(run).spec, studio.run(run)["spec"])
    out = tmp_path / "out"
    out.mkdir()
    refused(lambda: studio.export(run, out / "adapter"), out)
    assert list(out.iterdir()) == []
    packed = runs.packed(studio, "adapter", run)
    assert WEIGHTS in {Path(name).name for name in zipfile.ZipFile(packed).namelist()}
    studio.close()
