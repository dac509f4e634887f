"""Requests that no browser sends: answered in a sentence, and none takes the studio's memory or time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.testclient import TestClient

from app import intake, sign_in
from app.middleware import LocalOnly
from benchmarks.load_browser import finished
from core import yaml_text
from core.adapters.cells import Cell, Linear
from core.errors import ConfigurationError
from core.units import MIB


async def inside(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


def asked(method: str = "GET", **headers: str) -> int:
    client = TestClient(LocalOnly(inside), base_url="http://127.0.0.1:7860")
    return client.request(
        method, "/", headers={name.replace("_", "-"): value for name, value in headers.items()}
    ).status_code


@pytest.mark.parametrize(
    "origin", ["http://[", "http://[::1", "null", "http://127.0.0.1:7861", "http://127.0.0.1:x", "//"]
)
def test_an_origin_that_is_none_is_another_site(origin: str):
    assert asked(origin=origin) == 403


def test_another_port_of_this_machine_is_another_site():
    assert asked(sec_fetch_site="same-site", sec_fetch_mode="no-cors") == 403
    assert asked("POST", sec_fetch_site="same-site", sec_fetch_mode="navigate") == 403
    assert asked(sec_fetch_site="same-site", sec_fetch_mode="navigate") == 204  # a link that leads here
    assert asked(sec_fetch_site="same-origin", sec_fetch_mode="cors") == asked(sec_fetch_site="none") == 204


def test_names_that_were_not_checked_reach_nobody_and_no_proxy_keeps_an_answer():
    heard: list[bytes] = []

    async def listening(scope: Any, receive: Any, send: Any) -> None:
        heard.extend(name for name, _ in scope["headers"])
        await inside(scope, receive, send)

    client = TestClient(LocalOnly(listening), base_url="http://127.0.0.1:7860")
    answer = client.get("/", headers={"X-Forwarded-Host": "evil.example", "x-gradio-server": "http://evil.example"})
    assert answer.headers["cache-control"] == "private"
    assert b"host" in heard and not {b"x-forwarded-host", b"x-gradio-server"} & set(heard)


@pytest.mark.parametrize("wanted", ["http://[", "//[", "/\\[", "//[x"])
def test_where_to_go_after_signing_in_may_be_no_address_at_all(wanted: str):
    request = type("Asked", (), {"scope": {}})
    assert sign_in._target(request, wanted) == "/"


def posted(path: str, **headers: str) -> int | None:
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    refused = intake.refusal({"type": "http", "method": "POST", "path": path, "headers": given})
    return None if refused is None else refused[0]


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/upload", "/login/", "/gradio_api/run/x/"])
def test_a_body_is_as_long_as_it_says(path: str):
    assert posted(path, content_length="5") is None
    assert posted(path) == posted(path, content_length="5", transfer_encoding="chunked") == 411
    assert path.endswith("upload") or posted(path, content_length=str(3 * MIB)) == 413


def parsed(body: bytes) -> Any:
    async def stream() -> AsyncIterator[bytes]:
        yield body

    headers = Headers({"content-type": "multipart/form-data; boundary=edge"})
    return finished(intake.Tidy(headers, stream(), max_file_size=MIB).parse())


def test_fields_beside_files_are_not_kept_whatever_their_size():
    part = b'--edge\r\nContent-Disposition: form-data; name="a"\r\n\r\n%b\r\n--edge--\r\n'
    assert parsed(part % b"short").get("a") == "short"
    with pytest.raises(MultiPartException, match="too long"):
        parsed(part % (b"x" * MIB))


def test_yaml_that_merges_itself_is_refused_before_it_is_written_out():
    lines = ["l0: &l0 {a: 1}"]
    for level in range(1, 40):
        lines.append(f"l{level}: &l{level} {{<<: [{', '.join([f'*l{level - 1}'] * 10)}]}}")
    with pytest.raises(ConfigurationError, match="more than 100,000 values"):
        yaml_text.read("\n".join(lines))
    assert yaml_text.read("a: &a {x: 1}\nb: {<<: *a, y: 2}")["b"] == {"x": 1, "y": 2}


def test_yaml_of_a_million_letters_is_refused_unread():
    with pytest.raises(ConfigurationError, match="Write at most"):
        yaml_text.read("- 1\n" * 250_000)


@pytest.mark.parametrize("pattern", [r"(\w|\.|\w\w)+[xyz]", r"(\w|\w\.|\.|\w\w)+[xz]\w?"])
def test_a_pattern_that_tries_endlessly_is_given_up(pattern: str):
    cell = Cell(modules=pattern)
    linear = Linear("model.layers.10.self_attn.quite_a_long_name_of_a_projection_q_proj", 8, 8)
    begun = time.process_time()
    with pytest.raises(ConfigurationError, match="takes too long"):
        cell.names(linear)
    assert time.process_time() - begun < 5
    assert Cell(modules=r".*\.(q|k)_proj|.*layers\.\d+\..*_q_proj").names(linear)
