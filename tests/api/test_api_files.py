"""Sending files: in pieces, resumed, bounded, and never out of their parcel."""

from __future__ import annotations

import json
import socket
import time
import tracemalloc
from collections.abc import Iterator

import httpx
import pytest

from core import received
from core.data.hub_sets import parse_hub
from core.errors import DataError
from tests.api.conftest import OWN, House, Served, bare, client
from tests.support.seed import QuietStudio

LEAVING = [
    "..", "../a.csv", "a/../../b.csv", "%2e%2e/a.csv", "%2e%2e%2fa.csv", "/etc/passwd", "//etc/passwd", ".hidden",
    "a/.hidden", "a//b.csv", "a%00.csv", "a\\b.csv", "a/b/c/d/e/f/g.csv", "x" * 300, "%0a.csv", "",
]  # fmt: skip


@pytest.fixture
def caller(studio: QuietStudio):
    return client(bare(studio), OWN)


def test_a_file_goes_on_where_it_stopped(caller, studio: QuietStudio, colours):
    whole, parcel = colours.read_bytes(), caller.post("/api/v1/files").json()["parcel"]
    name = f"/api/v1/files/{parcel}/1/paints/colours.csv"
    assert caller.put(name, content=whole[:700]).json() == {"received": 700}
    assert caller.put(f"{name}?at=500", content=whole[500:]).status_code == 400
    assert caller.get(name).json() == {"received": 700}
    assert caller.put(f"{name}?at=700", content=whole[700:]).json() == {"received": len(whole)}
    seen = caller.post("/api/v1/preview", json={"source": [f"{parcel}/1/paints/colours.csv"]}).json()
    assert seen["tasks"]["colours"]["info"]["kind"] == "classification" and studio.datasets() == []
    stored = caller.post("/api/v1/upload", json={"source": f"{parcel}/1/paints", "name": "hues", "test": 0.5}).json()
    assert stored["counts"]["test"] == 45 and stored["name"] == "hues"
    assert caller.delete(f"/api/v1/files/{parcel}").status_code == 200
    assert not list((studio.home.cache / "received").glob("*"))


@pytest.mark.parametrize("name", LEAVING)
def test_no_name_leads_out_of_its_parcel(caller, studio: QuietStudio, name: str):
    parcel = caller.post("/api/v1/files").json()["parcel"]
    before = sorted(path for path in studio.home.root.rglob("*") if path.is_file())
    answer = caller.put(f"/api/v1/files/{parcel}/{name}", content=b"x")
    assert answer.status_code in (400, 404, 405), answer.text
    assert sorted(path for path in studio.home.root.rglob("*") if path.is_file()) == before
    assert caller.get(f"/api/v1/files/{parcel}/{name}").status_code in (400, 404, 405)


@pytest.mark.parametrize(
    "source",
    ["/etc/passwd", "~/x.csv", "{csv}", "../x.csv", "{parcel}/../../../tessera.db", "{parcel}/%2e%2e/owner", "{parcel}",
     "hub:a/b:../../../etc", "hub:../b", "owner/name", "hub:a/b@../x", "{parcel}/missing.csv", ["{csv}", "hub:a/b"]],
)  # fmt: skip
def test_only_what_was_sent_becomes_a_data_set(caller, studio: QuietStudio, colours, source):
    parcel = caller.post("/api/v1/files").json()["parcel"]
    caller.put(f"/api/v1/files/{parcel}/colours.csv", content=colours.read_bytes())
    given = [one.format(csv=colours, parcel=parcel) for one in ([source] if isinstance(source, str) else source)]
    for call in ("upload", "preview"):
        assert caller.post(f"/api/v1/{call}", json={"source": given}).status_code in (400, 404, 422)
    assert studio.datasets() == []


@pytest.mark.parametrize(
    "setting",
    [
        {"tasks": [{"dataset": "{csv}"}]},
        {"model": {"base": "{folder}"}},
        {"model": {"base": "assets/base"}},
        {"model": {"base": "../base"}},
        {"method": {"name": "moa", "options": {"experts_from": ["{folder}"]}}},
        {"method": {"name": "mor1e", "options": {"embedder": "{folder}"}}},
        {"method": {"name": "split", "cells": [{"gate": {"word": "intuition", "embedder": "{folder}"}}]}},
        {"sources": ["{folder}"]},
    ],
)
def test_a_run_names_no_file_of_the_studio(caller, studio: QuietStudio, colours, setting: dict):
    stored = studio.upload(colours)["id"]
    text = json.dumps({"tasks": [{"dataset": stored}]} | setting)
    spec = json.loads(text.replace("{csv}", str(colours.with_name("x.csv"))).replace("{folder}", str(colours.parent)))
    colours.with_name("x.csv").write_text("a,b\n" + "c,d\n" * 40)
    for call in ("submit", "check", "preflight"):
        answer = caller.post(f"/api/v1/{call}", json={"spec": spec})
        assert answer.status_code in (404, 422), answer.text
    changes = {f"{key}.{inner}" if isinstance(value, dict) else key: found
               for key, value in spec.items()
               for inner, found in (value.items() if isinstance(value, dict) else [("", value)])}  # fmt: skip
    run = caller.post("/api/v1/submit", json={"spec": {"tasks": [{"dataset": stored}], "device": "cpu"}}).json()
    assert caller.post("/api/v1/cloned_spec", json={"run": run, "changes": changes}).status_code in (404, 422)
    assert len(studio.datasets()) == 1 and len(studio.runs()) == 1


@pytest.mark.parametrize("text", ["hub:a/b:..", "hub:a/b@main:../../etc", "a/b:x/../../.."])
def test_a_folder_of_a_hub_set_lies_inside_it(text: str):
    with pytest.raises(DataError, match="leads out"):
        parse_hub(text)
    assert parse_hub("a/b@main:data/en").folder == "data/en"


def test_what_is_too_large_or_too_much_is_refused_cleanly(caller, monkeypatch):
    parcel = caller.post("/api/v1/files").json()["parcel"]
    monkeypatch.setattr(received, "LARGEST", 1000)
    answer = caller.put(f"/api/v1/files/{parcel}/a.csv", content=b"x" * 1001)
    assert answer.status_code == 400 and "too large" in answer.json()["error"]["message"]
    assert caller.put(f"/api/v1/files/{parcel}/a.csv", content=b"x" * 600).status_code == 200
    assert caller.put(f"/api/v1/files/{parcel}/a.csv?at=600", content=b"x" * 401).status_code == 400
    monkeypatch.setattr(received, "MOST_BYTES", 1500)
    assert caller.put(f"/api/v1/files/{parcel}/b.csv", content=b"x" * 1000).status_code == 400
    monkeypatch.setattr(received, "MOST_FILES", 2)
    assert caller.put(f"/api/v1/files/{parcel}/c.csv", content=b"x").status_code == 400
    monkeypatch.setattr(received, "MOST_PARCELS", 1)
    assert caller.post("/api/v1/files").status_code == 400
    monkeypatch.setattr(received, "KEPT_SECONDS", -1.0)
    assert caller.post("/api/v1/files").status_code == 200  # what was old has made room
    assert caller.get(f"/api/v1/files/{parcel}/a.csv").status_code == 404


def test_a_full_disk_is_said_and_what_came_stays(caller, monkeypatch):
    parcel = caller.post("/api/v1/files").json()["parcel"]
    name = f"/api/v1/files/{parcel}/a.csv"
    assert caller.put(name, content=b"x" * 10).status_code == 200
    monkeypatch.setattr(received, "RESERVE", 2**62)
    answer = caller.put(f"{name}?at=10", content=b"x" * 10)
    assert answer.status_code == 400 and "room on the disk" in answer.json()["error"]["message"]
    monkeypatch.undo()
    assert caller.get(name).json() == {"received": 10}
    assert caller.put(f"{name}?at=10", content=b"x" * 10).json() == {"received": 20}


def test_a_large_file_is_never_held_whole(served: Served):
    """48 MiB arrive while the server's memory grows by a few."""

    def blocks() -> Iterator[bytes]:
        block = b"x" * 2**16
        for _ in range(768):
            yield block

    with httpx.Client(base_url=f"{served.url}/api/v1", headers=OWN, trust_env=False, timeout=60) as line:
        parcel = line.post("files").json()["parcel"]
        tracemalloc.start()
        answer = line.put(f"files/{parcel}/large.csv", content=blocks())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert answer.json() == {"received": 48 * 2**20} and peak < 12 * 2**20


def has(line: httpx.Client, name: str, size: int) -> None:
    """Wait until so many bytes have come."""
    deadline = time.monotonic() + 10
    while (answer := line.get(name)).status_code != 200 or answer.json()["received"] != size:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)


def test_a_broken_transfer_leaves_what_came(served: Served):
    with httpx.Client(base_url=f"{served.url}/api/v1", headers=OWN, trust_env=False) as line:
        parcel = line.post("files").json()["parcel"]
        lines = (
            f"PUT /api/v1/files/{parcel}/a.csv HTTP/1.1",
            "Host: 127.0.0.1",
            "X-Tessera: 1",
            "Content-Length: 90000",
        )
        with socket.create_connection(("127.0.0.1", served.port)) as raw:
            raw.sendall("\r\n".join((*lines, "", "")).encode())
            has(line, f"files/{parcel}/a.csv", 0)  # it listens
            raw.sendall(b"x" * 40_000)
            time.sleep(0.5)
        has(line, f"files/{parcel}/a.csv", 40_000)
        assert line.put(f"files/{parcel}/a.csv?at=40000", content=b"y" * 50_000).json() == {"received": 90_000}


def test_the_house_of_somebody_else_is_not_counted(house: House, monkeypatch):
    monkeypatch.setattr(received, "MOST_PARCELS", 1)
    assert [house.client(name).post("/api/v1/files").status_code for name in ("rob", "ria", "rob")] == [200, 200, 400]
