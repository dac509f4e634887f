"""A studio elsewhere that answers whatever it likes: the terminal, the disk and the token of who asks stay theirs."""

from __future__ import annotations

import gzip
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from app import cli
from core import remote_line
from core.texts import tame
from core.units import MIB

EVIL = "\x1b]0;mine\x07\x1b[2J\x9b31m\r"
Asking = Callable[..., tuple[int, str]]


class Studio(ThreadingHTTPServer):
    """Gives every request the same answer."""

    daemon_threads = True
    body: bytes = b"null"
    status: int = 200
    headers: dict[str, str] = {}
    asked = 0


class Answering(BaseHTTPRequestHandler):
    server: Studio

    def do_GET(self) -> None:
        self.server.asked += 1
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hostile() -> Iterator[Studio]:
    with Studio(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def ask(hostile: Studio, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Asking:
    monkeypatch.setenv("TESSERA_TOKEN", "tsr_" + "a" * 40)

    def asking(*arguments: str, body: bytes = b"null", status: int = 200, **headers: str) -> tuple[int, str]:
        hostile.body, hostile.status = body, status
        hostile.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        code = cli.main(["--url", f"http://127.0.0.1:{hostile.server_port}", *arguments])
        said = capsys.readouterr()
        return code, said.out + said.err

    return asking


def packed(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "1")
    return file.getvalue()


def obeyed(text: str) -> bool:
    return tame(text) != text


def test_errors_and_names_do_nothing_to_the_terminal(ask: Asking):
    error = json.dumps({"error": {"message": f"no {EVIL}", "hint": EVIL, "kind": EVIL}}).encode()
    code, said = ask("runs", body=error, status=400)
    assert code == 1 and "no " in said and not obeyed(said)
    row = {"name": EVIL, "tasks": [EVIL], "owner": EVIL, "rows": 1, "id": EVIL}
    for command in (("datasets",), ("datasets", "--json"), ("runs",), ("logs", "run-1"), ("scores", "run-1")):
        for body in ([row], row, {"lines": [EVIL]}, [EVIL], EVIL):
            assert not obeyed(ask(*command, body=json.dumps(body).encode())[1]), (command, body)


@pytest.mark.parametrize("body", [b"null", b"7", b'"x"', b"[1,[2],{}]", b'{"a":1}', b"[" * 99_999, b"\xff", b""])
def test_answers_of_no_studio_are_said_in_a_sentence(ask: Asking, body: bytes):
    for command in (("runs",), ("logs", "run-1"), ("datasets",), ("cancel", "run-1"), ("scores", "run-1")):
        code, said = ask(*command, body=body)
        assert "Traceback" not in said and (code == 0 or "Error: " in said), (command, said)


def test_answers_are_held_up_to_a_size(ask: Asking, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote_line, "MOST_ANSWER", MIB)
    bomb = gzip.compress(b" " * 64 * MIB)
    for given in ({"body": b" " * 2 * MIB}, {"body": bomb, "content_encoding": "gzip"}):
        for status in (200, 500):
            assert "sends more than fits" in ask("runs", status=status, **given)[1]


def test_files_are_written_as_far_as_there_is_room(ask: Asking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote_line, "MOST_FILE", MIB)
    bomb = gzip.compress(b" " * 64 * MIB)
    code, said = ask("export", "run-1", str(tmp_path / "out"), body=bomb, content_encoding="gzip")
    assert code == 1 and "sends more than fits" in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", [(), ("a/x", "b/y"), ("x",), ("../x/y",), ("/x/y",)])
def test_an_export_is_one_folder(ask: Asking, tmp_path: Path, names: tuple[str, ...]):
    code, said = ask("export", "run-1", str(tmp_path / "room" / "out"), body=packed(*names))
    assert code == 1 and "Error: " in said
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_token_goes_nowhere_else(ask: Asking, hostile: Studio):
    with Studio(("127.0.0.1", 0), Answering) as other:
        thread = threading.Thread(target=other.serve_forever, args=(0.01,))
        thread.start()
        for status in (301, 302, 303, 307, 308):
            code, said = ask("runs", status=status, location=f"http://127.0.0.1:{other.server_port}/api/v1/runs")
            assert code == 1 and "leads on to" in said
        assert other.asked == 0 and hostile.asked >= 5
        other.shutdown()
        thread.join()
