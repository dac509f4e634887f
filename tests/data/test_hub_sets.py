"""Data sets of the Hub, fetched from a stand-in for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.data.hub_sets import HubSet, fetch, parse_hub
from core.data.store import DatasetStore
from core.data.upload import upload
from core.errors import DataError, NotFoundError
from tests.support.hub import LocalHub


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    (folder / "data").mkdir(parents=True)
    for part in range(2):
        table = pa.table({"text": [f"text {part} {i}" for i in range(20)], "label": ["good", "bad"] * 10})
        pq.write_table(table, folder / "data" / f"train-0000{part}-of-00002.parquet")
    pq.write_table(
        pa.table({"text": ["x", "y"], "label": ["good", "bad"]}), folder / "data" / "test-00000-of-00001.parquet"
    )
    (folder / "README.md").write_text("# Tiny")
    (folder / "photo.png").write_bytes(b"\x89PNG" * 100)
    return folder


@pytest.fixture
def hub(repository, tmp_path, monkeypatch):
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "load.py").write_text("raise SystemExit")
    repos = {
        "dataset:people/tiny": repository,
        "dataset:people/closed": repository,
        "dataset:people/script": tmp_path / "script",
    }
    with LocalHub(repos, gated={"dataset:people/closed"}) as hub:
        for name, value in hub.environment(tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        yield hub


def test_a_hub_set_is_read_file_by_file(hub, tmp_path):
    store = DatasetStore(tmp_path / "datasets")
    info = upload(store, "people/tiny", validation=0)
    assert info.name == "tiny" and info.source == "hub:people/tiny" and list(info.tasks) == ["tiny"]
    assert info.tasks["tiny"].counts == {"train": 40, "test": 2} and info.tasks["tiny"].kind == "classification"
    fetched = {path.rsplit("/", 1)[-1] for method, path in hub.requests if method == "GET" and "/resolve/" in path}
    assert len(fetched) == 3 and "photo.png" not in fetched
    assert upload(store, "hub:people/tiny@main", validation=0).id == info.id


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (HubSet("people/nothing"), NotFoundError, "no Hub data set people/nothing"),
        (HubSet("people/tiny", revision="v9"), NotFoundError, "no revision 'v9'"),
        (HubSet("people/closed"), DataError, "gated"),
        (HubSet("people/script"), DataError, "only a script"),
        (HubSet("people/tiny", folder="other"), DataError, "holds no csv"),
    ],
)
def test_what_cannot_be_fetched_is_explained(hub, tmp_path, source, error, words):
    with pytest.raises(error, match=words) as caught:
        fetch(source, tmp_path / "cache" / "hub")
    assert caught.value.hint


def test_a_token_opens_a_gated_set(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert (fetch(HubSet("people/closed"), tmp_path / "cache" / "hub") / "data").is_dir()


def test_without_a_network_the_cache_serves_or_the_refusal_says_so(hub, tmp_path):
    code = (
        "import sys; from pathlib import Path; from core.data.hub_sets import *\n"
        "from core.errors import StudioError\n"
        "try: print(sorted(p.name for p in fetch(parse_hub(sys.argv[1])).rglob('*.parquet')))\n"
        "except StudioError as error: print(error)\n"
        "assert 'torch' not in sys.modules"
    )

    def run(name, **more):
        env = os.environ | hub.environment(tmp_path / "cache") | more
        done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert "not in the cache" in run("people/tiny", **offline)
    assert "test-00000-of-00001.parquet" in run("people/tiny")
    assert "test-00000-of-00001.parquet" in run("people/tiny", **offline)


def test_a_hub_that_does_not_answer_is_said_at_once(tmp_path):
    code = (
        "import sys; from core.data.hub_sets import *\nfrom core.errors import StudioError\n"
        "try: fetch(parse_hub(sys.argv[1]))\nexcept StudioError as error: print(error.message)"
    )
    env = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code, "people/tiny"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=20)
    assert "not in the cache and the Hub cannot be reached" in done.stdout and done.stderr == ""


def test_names_of_hub_sets(tmp_path):
    assert parse_hub("people/tiny") == HubSet("people/tiny")
    assert parse_hub("hub:people/tiny@v1:en") == HubSet("people/tiny", "v1", "en")
    assert str(parse_hub("hub:people/tiny@refs/convert/parquet")) == "people/tiny@refs/convert/parquet"
    assert parse_hub("folder/rows.csv") is None and parse_hub(tmp_path) is None
    with pytest.raises(DataError, match="not a Hub data set"):
        parse_hub("hub:tiny")
