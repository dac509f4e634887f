"""Secrets that stand in the environment or in a token's file are found in nothing that the studio writes or says."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from core import secrets
from core.home import PROJECT, write_json
from core.jobs.devices import Device
from core.jobs.executors import LocalExecutor
from core.studio import Studio
from tests.support.training import toy_spec

PLANTED = {
    "HF_TOKEN": "hf_SentinelOfTheEnvironment00",
    "TESSERA_PASSWORD": "sentinel of the password",
    "TESSERA_TOKEN": "tsr_sentinelOfTheApiToken000",
}
DATABASE = "sentinelOfTheDatabase"
ENDPOINT = "sentinelOfTheMirror"
FILE = "hf_SentinelOfTheTokensFile00000"
SENTINELS = (*PLANTED.values(), DATABASE, ENDPOINT, FILE)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch) -> dict[str, str]:
    """An environment full of secrets."""
    (tmp_path / "token").write_text(FILE + "\n")
    address = f"http://me:{ENDPOINT}@127.0.0.1:9"
    given = {**PLANTED, "HF_TOKEN_PATH": str(tmp_path / "token"), "HF_ENDPOINT": address, "OMP_NUM_THREADS": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return dict(os.environ)


def told(*texts: str | bytes) -> list[str]:
    """The sentinels that stand in texts."""
    whole = b"\n".join(text.encode() if isinstance(text, str) else text for text in texts)
    return [sentinel for sentinel in SENTINELS if sentinel.encode() in whole]


def below(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def command(home: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(PROJECT / "app.py"), "--home", str(home), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={name: value for name, value in os.environ.items() if name != "TESSERA_TOKEN"},
    )
    return done.stdout + done.stderr


WORK = """
import os, sys, traceback
from core.jobs.sinks import FileSink
from core.secrets import guard_output
from pathlib import Path
guard_output()
print(dict(os.environ))
print("asked with", os.environ["HF_TOKEN"], file=sys.stderr)
sink = FileSink(Path(sys.argv[1]).parent / "events.jsonl", run="run-1", job="train", attempt=1)
sink.emit("log", level="info", message="the token is " + os.environ["HF_TOKEN"])
raise RuntimeError("401 for https://me:" + "sentinelOfTheMirror" + "@host with " + os.environ["HF_TOKEN"])
"""


def test_a_worker_gets_what_it_needs_and_tells_none_of_it(planted: dict[str, str], tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TESSERA_DATABASE_URL", f"postgresql://me:{DATABASE}@there/studio")
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    log = tmp_path / "logs" / "worker.log"
    executor = LocalExecutor([sys.executable, "-c", WORK])
    device = Device("cpu", "CPU", visible="", slots=1)
    process = executor.start(tmp_path / "job.json", log=log, device=device, token="t")
    while executor.alive(process):
        time.sleep(0.05)
    text = log.read_text()
    assert "'HF_TOKEN': '[hidden]'" in text and "RuntimeError: 401 for https://[hidden]@host" in text
    assert "TESSERA_PASSWORD" not in text and "TESSERA_TOKEN" not in text and "TESSERA_DATABASE_URL" not in text
    assert told(*below(tmp_path / "logs"), (tmp_path / "events.jsonl").read_bytes()) == []
    executor.end(process, "t")


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_run_that_fails_at_the_hub_leaves_no_secret_anywhere(planted: dict[str, str], tmp_path: Path, tiny: Path):
    """A real worker on a base that the Hub does not give, then everything that can be exported of it."""
    studio = Studio(tmp_path / "home")
    rows = tmp_path / "toy.csv"
    rows.write_text("text,label\n" + "".join(f"thing {i},{'ab'[i % 2]}\n" for i in range(40)))
    studio.upload(rows, name="toy")
    from storage.queries import jobs, runs

    spec = toy_spec("owner/private").model_dump(mode="json")
    with studio.records.write() as session:
        row, _ = runs.add(session, spec=spec, name="a run")
        jobs.add(session, run=row.id, kind="train", device="cpu")
    folder = studio.home.run(row.id).create()
    write_json(folder.spec, spec)
    job = {"run": row.id, "job": "train", "kind": "train", "attempt": 1, "home": str(studio.home.root), "device": "cpu"}
    write_json(folder.jobs / "train-1.json", job)
    with (folder.logs / "train-1.log").open("wb") as out:
        worker = [sys.executable, "-m", "core.jobs.worker", str(folder.jobs / "train-1.json")]
        environment = secrets.for_work(os.environ) | {"PYTHONPATH": str(PROJECT)}
        subprocess.run(worker, cwd=PROJECT, env=environment, stdout=out, stderr=out, timeout=100)
    from core.jobs.ingest import ingest_events

    ingest_events(studio.records.database, folder)
    studio.watch.bundle(row.id, tmp_path / "bundle.zip")
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        bundled = [archive.read(name) for name in archive.namelist()]
    spoken = [command(studio.home.root, *words) for words in (["doctor"], ["logs", row.id], ["show", row.id], ["runs"])]
    dump = "\n".join(sqlite3.connect(studio.home.root / "tessera.db").iterdump())
    assert "private" in dump and "failed" in folder.events.read_text()
    assert told(*below(tmp_path / "home"), *bundled, dump, *spoken, str(studio.job(row.id, "train"))) == []
    studio.close()


@pytest.mark.long
def test_the_password_of_a_database_is_never_said(planted: dict[str, str], tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TESSERA_DATABASE_URL", f"postgresql://me:{DATABASE}@127.0.0.1:9/studio")
    assert told(*(command(tmp_path / "home", word) for word in ("doctor", "runs"))) == []


def test_what_looks_like_a_secret_is_hidden_wherever_it_comes_from():
    text = "hf_abcdefghijklmnopqrstuv, tsr_abcdefghijklmnopqrstuv, https://me:word@host/x and https://host/x"
    assert secrets.masked(text) == "[hidden], [hidden], https://[hidden]@host/x and https://host/x"
    assert secrets.masked("nothing to hide: a@b, 10:30, http://x/y@z") == "nothing to hide: a@b, 10:30, http://x/y@z"


def test_short_secrets_hide_no_words(monkeypatch):
    monkeypatch.setenv("TESSERA_PASSWORD", "the")
    assert secrets.masked("the end") == "the end"
