"""A large file goes through the studio without being in anybody's memory, and what cannot be taken is refused first."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pandas
import psutil
import pytest

from app import intake
from app import waiting as waiting_room
from app.uploads import own_folder
from app.waiting import sentences
from benchmarks.pages import chromium, served
from core.data import apart, pace, prepare
from core.data.store import DatasetStore
from core.data.upload import upload
from core.errors import DataError
from core.home import PROJECT
from core.studio import Studio

MIB = 2**20
ROOM = 40  # MiB that a file ten times as large may take more
LONG = "and what stands around it " * 9
BOUNDARY = "--XX"


def rows(path: Path, mib: float, words: int = 900) -> Path:
    """JSON lines of questions that all differ."""
    text = " ".join(f"word{number}" for number in range(words))
    line = len(json.dumps({"input": f"{0:9d} {text}", "output": "short"})) + 1
    with path.open("w") as file:
        for number in range(int(mib * MIB) // line):
            file.write(json.dumps({"input": f"{number:9d} {text}", "output": f"answer {number}"}) + "\n")
    return path


def child(what: str, root: Path, given: str) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).with_name("measured_child.py")), what, str(root), given]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_storing_ten_times_as_much_takes_no_more_memory(tmp_path):
    small = child("upload", tmp_path / "sets", str(rows(tmp_path / "small.jsonl", 5)))
    large = child("upload", tmp_path / "sets", str(rows(tmp_path / "large.jsonl", 50)))
    assert large["most"] - small["most"] < ROOM
    assert not [path for path in (tmp_path / "sets").iterdir() if path.name.startswith((".", "tmp"))]


@pytest.mark.long
def test_looking_at_ten_times_as_much_takes_no_more_memory(tmp_path):
    small = child("preview", tmp_path, str(rows(tmp_path / "small.jsonl", 10)))
    large = child("preview", tmp_path, str(rows(tmp_path / "large.jsonl", 100)))
    assert large["most"] - small["most"] < ROOM


@pytest.mark.long
def test_encoding_ten_times_as_much_takes_no_more_memory(tmp_path):
    store = DatasetStore(tmp_path / "sets")
    figures = []
    for name, mib in (("small", 0.5), ("large", 5)):
        upload(store, rows(tmp_path / f"{name}.jsonl", mib, words=90), test=0, validation=0)
        figures.append(child("prepared", store.root, name)["most"])
    assert figures[1] - figures[0] < ROOM


def test_a_large_file_is_read_elsewhere_and_says_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(apart, "LARGE", MIB)
    studio, said = Studio(tmp_path / "home"), []
    path = rows(tmp_path / "large.jsonl", 2, words=20)
    before = psutil.Process().memory_info().rss
    seen = studio.preview(path, told=said.append)
    stored = studio.upload(path, told=said.append)
    assert psutil.Process().memory_info().rss - before < ROOM * MIB
    assert seen.tasks["large"].info.counts == stored["tasks"]["large"]["counts"]
    assert any("rows of large.jsonl read" in text for text in said) and said[-1].startswith("Storing")
    with pytest.raises(DataError, match="line 1"):
        (tmp_path / "broken.jsonl").write_text("{" * (2 * MIB))
        studio.upload(tmp_path / "broken.jsonl", told=said.append)
    studio.close()


@pytest.mark.parametrize("name", ["large.jsonl", "large.csv", "large.parquet", "large.json"])
def test_how_much_is_read_is_told_with_the_time_left(tmp_path, monkeypatch, name):
    monkeypatch.setattr(pace, "SOON", 0)
    path, said = tmp_path / name, []
    table = pandas.DataFrame({"input": [f"question {number} {LONG}" for number in range(20_000)], "output": "answer"})
    writer = {".csv": table.to_csv, ".parquet": table.to_parquet}.get(path.suffix)
    if writer:
        writer(path, index=False)
    else:
        table.to_json(path, orient="records", lines=path.suffix == ".jsonl")
    prepare.prepare(path, prepare.Options(), tmp_path, said.append)
    shares = [int(found[1]) for text in said if (found := re.search(r"read, (\d+)% of .*, about \d+ s left\.$", text))]
    assert len(shares) >= 3 and shares == sorted(shares) and 10 < shares[0] < 50 and shares[-1] > 60
    assert said[0] == f"Opening {name}."


def test_who_leaves_ends_the_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(apart, "LARGE", MIB)
    monkeypatch.setattr(waiting_room, "SECONDS", 0.02)
    studio = Studio(tmp_path / "home")
    path = rows(tmp_path / "large.jsonl", 8, words=20)
    others = set(psutil.Process().children())  # a browser of tests before this one
    waiting = sentences(lambda told: studio.upload(path, told=told), lambda text: text)
    assert any("rows of" in text for text in waiting)
    assert set(psutil.Process().children()) > others
    waiting.close()
    deadline = time.monotonic() + 10
    while set(psutil.Process().children()) > others and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(psutil.Process().children()) <= others and not studio.datasets()
    studio.close()


def test_what_the_disk_cannot_take_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = rows(tmp_path / "large.jsonl", 20)
    free = SimpleNamespace(total=2**40, used=0, free=prepare.RESERVE + 10 * MIB)
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(DataError, match="GiB free"):
        prepare.prepare(path, prepare.Options(), tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["large.jsonl"]


def posted(length: int, path: str = "/gradio_api/upload") -> tuple[int, str] | None:
    headers = [(b"content-length", str(length).encode())]
    return intake.refusal({"type": "http", "method": "POST", "path": path, "headers": headers})


def test_forms_are_refused_by_what_they_say_of_themselves(uploads, monkeypatch):
    assert posted(100 * MIB) is None and posted(10, "/gradio_api/run/predict") is None
    assert posted(100 * MIB, "/gradio_api/run/predict")[0] == 413
    assert posted(100 * MIB, "/gradio_api/component_server")[0] == 413
    assert posted(3 * 2**30)[0] == 413 and "2 GiB" in posted(3 * 2**30)[1]
    assert intake.refusal({"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": []})[0] == 411
    free = SimpleNamespace(total=2**40, used=0, free=intake.RESERVE + 50 * MIB)
    monkeypatch.setattr(intake.shutil, "disk_usage", lambda folder: free)
    assert posted(40 * MIB) is None and posted(100 * MIB)[0] == 507


def form(path: Path, until: int | None = None) -> Iterator[bytes]:
    yield f'{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'.encode()
    with path.open("rb") as file:
        while part := file.read(2**18):
            if until is not None and file.tell() > until:
                raise ConnectionAbortedError
            yield part
    yield f"\r\n{BOUNDARY}--\r\n".encode()


def sent(address: str, path: Path, until: int | None = None) -> httpx.Response:
    around = sum(map(len, (first for first in [next(form(path))]))) + len(f"\r\n{BOUNDARY}--\r\n")
    headers = {"content-type": "multipart/form-data; boundary=XX", "content-length": str(path.stat().st_size + around)}
    return httpx.post(
        f"{address}/gradio_api/upload", content=form(path, until), headers=headers, timeout=300, trust_env=False
    )


def most(process: psutil.Process, done: threading.Event, found: list[int]) -> None:
    while not done.is_set():
        found.append(process.memory_info().rss)
        time.sleep(0.02)


def files_in(uploads: Path) -> list[Path]:
    return [path for path in uploads.rglob("*") if path.is_file() and path.suffix != ".lock"]


def through_http(home: Path, uploads: Path, path: Path) -> float:
    """MiB by which the server grew meanwhile; half a transfer must leave nothing, a whole one the file."""
    with served(home) as (address, server):
        httpx.get(f"{address}/data", trust_env=False)
        done, found = threading.Event(), [server.memory_info().rss]
        watching = threading.Thread(target=most, args=(server, done, found))
        watching.start()
        with pytest.raises((ConnectionAbortedError, httpx.HTTPError)):
            sent(address, path, path.stat().st_size // 2)
        deadline = time.monotonic() + 10
        while files_in(uploads) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not files_in(uploads)
        answer = sent(address, path)
        kept = Path(answer.json()[0])
        assert kept.stat().st_size == path.stat().st_size and uploads in kept.parents
        done.set()
        watching.join()
    return (max(found) - found[0]) / MIB


def test_what_a_killed_server_had_received_is_swept_by_the_next(tmp_path, uploads):
    path = rows(tmp_path / "large.jsonl", 4)
    with served(tmp_path / "home") as (address, server):
        sent(address, path)

        def killed() -> Iterator[bytes]:
            for part in form(path):
                yield part
                if len(files_in(uploads)) > 1:  # the second is on its way
                    server.kill()
                    server.wait()
                    raise ConnectionAbortedError

        headers = {"content-type": "multipart/form-data; boundary=XX", "content-length": str(path.stat().st_size + 999)}
        with pytest.raises(ConnectionAbortedError):
            httpx.post(f"{address}/gradio_api/upload", content=killed(), headers=headers, trust_env=False)
    assert len(files_in(uploads)) == 2
    with own_folder() as folder:
        assert not files_in(uploads)
        (folder / "held.csv").touch()
        with served(tmp_path / "home"):
            assert files_in(uploads) == [folder / "held.csv"]  # of a server that lives
    assert not folder.exists() and not files_in(uploads)


def test_a_file_comes_through_http_piece_by_piece(tmp_path, uploads):
    assert through_http(tmp_path / "home", uploads, rows(tmp_path / "large.jsonl", 50)) < ROOM


@pytest.mark.long
def test_a_gibibyte_is_taken_stored_and_trained_on_in_little_memory(tmp_path, uploads):
    needs(tmp_path, 8)
    small, large = rows(tmp_path / "small.jsonl", 10), rows(tmp_path / "large.jsonl", 1024)
    assert through_http(tmp_path / "home", uploads, large) < 300
    store = tmp_path / "home" / "datasets"
    figures = {
        what: [child(what, store, given)["most"] for given in (str(small), str(large))]
        for what in ("upload", "preview")
    }
    figures |= {"prepared": [child("prepared", store, name)["most"] for name in ("small", "large")]}
    assert all(much - little < 300 for little, much in figures.values()), figures


SEEN = """() => { window.seen = new Set();
  setInterval(() => { for (const one of document.querySelectorAll('.uploading, #told'))
  for (const text of [one.dataset.share, one.innerText]) if (text) window.seen.add(text.trim()); }, 50); }"""


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_gibibyte_goes_from_the_browser_into_the_store_in_little_memory(tmp_path, uploads, capsys):
    needs(tmp_path, 8)
    playwright = pytest.importorskip("playwright.sync_api")
    mib = int(os.environ.get("TESSERA_LARGE_MIB", 1024))
    path, figures, began = rows(tmp_path / "large.jsonl", mib, words=90), {}, time.monotonic()
    with served(tmp_path / "home") as (address, server), playwright.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(600_000)
        page.goto(f"{address}/data")
        page.locator("#preview").wait_for()
        page.evaluate(SEEN)
        with watched(server, figures):
            page.set_input_files("#files input[type=file]", path)
            page.locator("#store").click()
            page.get_by_text("Stored as").wait_for()
        seen = page.evaluate("[...window.seen]")
        browser.close()
    with capsys.disabled():
        print(f"\n{mib} MiB in {time.monotonic() - began:.0f} s, most MiB at once: {figures}")
    for said in (r"\d+% sent", r"rows of large.jsonl read, \d+% of .* left"):
        assert any(re.search(said, text) for text in seen), seen
    assert figures["server"] < 300 and figures["reader"] < 400
    counts = DatasetStore(tmp_path / "home" / "datasets").list()[0].counts
    assert sum(counts.values()) == sum(1 for _ in path.open())


def needs(folder: Path, gib: int) -> None:
    if (free := psutil.disk_usage(str(folder)).free) < gib * 2**30:
        pytest.skip(f"needs {gib} GiB of disk, {free / 2**30:.1f} are free")


@contextmanager
def watched(server: psutil.Process, figures: dict[str, float]) -> Iterator[None]:
    """The most memory, without pages of files, of a server and of whichever child of it holds most."""
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for name, those in (("server", [server]), ("reader", server.children(recursive=True))):
                figures[name] = max([figures.get(name, 0), *map(anonymous, those)])
            time.sleep(0.05)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        done.set()
        watching.join()


def anonymous(process: psutil.Process) -> float:
    try:
        told = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return 0.0
    return round(int(next((line for line in told.splitlines() if line.startswith("RssAnon")), "a 0").split()[1]) / 1024)
