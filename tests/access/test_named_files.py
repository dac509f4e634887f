"""An event may name no file but an uploaded one: Gradio would copy it, read it or fetch it before any handler runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from fastapi import FastAPI
from gradio import processing_utils
from starlette.testclient import TestClient

from app import server
from app.auth import Access
from app.uploads import MOST_NAMED
from benchmarks.load_browser import finished
from tests.access.conftest import client_of
from tests.support.seed import QuietStudio


@pytest.fixture
def app(studio: QuietStudio, access: Access, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return server.build(studio, access=access)


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that Gradio would have asked."""
    asked: list[str] = []

    async def fetch(url: str, cache_dir: str) -> str:
        asked.append(url)
        raise OSError("no network in tests")

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetch)
    return asked


def ways(app: FastAPI, client: TestClient, value: Any) -> list[tuple[int, str]]:
    """What an event answers whose text, whose form and whose uploaded file is ``value``."""
    pages = next(found for route in app.routes if (found := getattr(getattr(route, "app", None), "blocks", None)))
    taking: dict[type, gr.blocks.BlockFunction] = {}
    for fn in pages.fns.values():
        if fn.fn is not None:
            for block in fn.inputs:
                taking.setdefault(type(block), fn)
    told = []
    for kind in (gr.Textbox, gr.File, next(kind for kind in taking if issubclass(kind, gr.HTML))):
        fn = taking[kind]
        data = [value if isinstance(block, kind) else None for block in fn.inputs]
        answer = client.post("/gradio_api/run/x", json={"data": data, "fn_index": fn._id, "session_hash": "tab"})
        told.append((answer.status_code, answer.text))
    return told


def named(path: object) -> dict[str, Any]:
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def copies(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "gradio").rglob("*") if path.is_file()]


def test_files_of_the_machine_are_neither_read_nor_copied(app: FastAPI, access: Access, tmp_path: Path):
    secret = tmp_path / "secret.txt"
    secret.write_text("precious")
    (tmp_path / "gradio").mkdir(exist_ok=True)
    (tmp_path / "gradio" / "link").symlink_to(secret)
    around = tmp_path / "gradio" / ".." / "secret.txt"
    client = client_of(app, access, "vera")
    for path in (secret, around, tmp_path / "gradio" / "link", tmp_path / "home" / "tessera.db", "/dev/null", "a\0b"):
        for value in (named(path), [named(path)], {"values": {"x": [named(path)]}}):
            for status, text in ways(app, client, value):
                assert status == 500 and "was not uploaded here" in text, (path, text)
    assert copies(tmp_path) == [tmp_path / "gradio" / "link"]


def test_no_address_is_fetched_that_an_event_names(app: FastAPI, access: Access, fetched: list[str], tmp_path: Path):
    client = client_of(app, access, "vera")
    up = "/..".join([""] * 40)
    for path in ("http://example.org/x", "HTTPS://example.org/x", f"http://example.org{up}{tmp_path}/gradio/x"):
        assert {status for status, _ in ways(app, client, named(path))} == {500}
    assert fetched == []


def test_an_event_names_no_more_files_than_one_upload_takes(app: FastAPI, access: Access, tmp_path: Path):
    client = client_of(app, access, "vera")
    many = [named(tmp_path / "gradio" / str(number)) for number in range(MOST_NAMED + 1)]
    assert all("was not uploaded here" in text for _, text in ways(app, client, many))


def test_what_was_uploaded_is_taken(app: FastAPI, access: Access, tmp_path: Path):
    client = client_of(app, access, "ben")
    mine = client.post("/gradio_api/upload", files={"files": ("a.txt", b"mine")}).json()[0]
    assert [text for _, text in ways(app, client, named(mine)) if "was not uploaded here" in text] == []


def test_an_answer_carries_no_file_from_elsewhere(app: FastAPI, tmp_path: Path):
    """What a handler answers is checked by Gradio, once it believes that the pages are served."""
    pages = next(found for route in app.routes if (found := getattr(getattr(route, "app", None), "blocks", None)))
    box = gr.Textbox(render=False)

    async def answered() -> None:
        gr.context.LocalContext.blocks.set(pages)
        await processing_utils.async_move_files_to_cache(named("/etc/hostname"), box, postprocess=True)

    with pytest.raises(gr.exceptions.InvalidPathError):
        finished(answered())
