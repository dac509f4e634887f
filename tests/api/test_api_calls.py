"""The table of calls: who may make which, what is said to wrong ones; it agrees with ``Studio`` and the docs."""

from __future__ import annotations

import inspect
import re

import pytest
from starlette.testclient import TestClient

from core.calls import CALLS, Call
from core.home import PROJECT
from core.studio import Studio
from tests.api.conftest import OWN, House, bare, client
from tests.support.seed import QuietStudio, Seeded

every = pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
OTHERS = ("self", "options", "chosen")


def sent(caller: TestClient, call: Call, data: dict | None = None, verb: str | None = None):
    return caller.request(verb or call.verb, f"/api/v1/{call.name}", **({"json": data or {}} if verb != "GET" else {}))


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> House:
    """A house whose calls are all turned away."""
    return House(QuietStudio(tmp_path_factory.mktemp("doors") / "home"))


@every
def test_without_a_token_nothing_is_answered(doors: House, call: Call):
    for headers in ({}, OWN, {"Authorization": "Bearer tsr_" + "x" * 43}, {"Cookie": "tessera-session=x"}):
        answer = client(doors.app, headers, address=f"10.0.{len(call.name)}.{len(headers)}").request(
            call.verb, f"/api/v1/{call.name}", json={}
        )
        assert answer.status_code in (401, 429), (headers, answer.text)
        assert set(answer.json()["error"]) == {"message", "hint", "kind"}


@every
def test_viewers_read_and_change_nothing(doors: House, call: Call):
    answer = sent(doors.client("vic"), call, {"nonsense": 1})
    if call.kind == "read":
        assert answer.status_code in (200, 422), answer.text
    else:
        assert answer.status_code == 403 and "viewer" in answer.json()["error"]["message"]


@every
def test_a_wrong_parameter_is_named_with_the_nearest_known_one(doors: House, call: Call):
    caller, known = doors.client("rob"), next(iter(call.types), "nothing")
    wrong = {f"{known}x": "y"}
    answer = (
        caller.get(f"/api/v1/{call.name}", params=wrong)
        if call.verb == "GET"
        else caller.post(f"/api/v1/{call.name}", json=wrong)
    )
    assert answer.status_code == 422 and f"{known}x is not a setting" in answer.json()["error"]["message"]
    if call.types:
        assert f"Did you mean {known}?" in answer.json()["error"]["hint"]


@every
def test_the_other_verb_is_refused(doors: House, call: Call):
    answer = sent(doors.client("rob"), call, verb="POST" if call.verb == "GET" else "GET")
    assert answer.status_code == 405 and f"called with {call.verb}" in answer.json()["error"]["message"]


@every
def test_a_call_is_a_method_of_the_studio_and_in_the_docs(call: Call):
    known = inspect.signature(getattr(Studio, call.name)).parameters
    loose = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
    unknown = [name for name in call.types if name not in known]
    assert not unknown or loose
    required = {name for name, one in known.items() if one.default is one.empty and name not in OTHERS}
    assert required - set(call.types) <= {"target"}  # a folder of the caller's own machine
    assert re.search(rf"`{call.name}`", (PROJECT / "docs" / "api.md").read_text("utf-8"))


def test_an_unknown_call_is_refused_with_the_nearest(doors: House):
    answer = doors.client("rob").get("/api/v1/scors")
    assert answer.status_code == 404 and answer.json()["error"]["hint"] == "Did you mean scores?"
    assert doors.client("rob").get("/api/v1/").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"[]", b'"x"', b"[" * 5000, b'{"run": NaN}', b'{"run": "\\ud800"}', b'{"run": "a\\u0000b"}', b"\xff\xfe",
        b'{"run": ' + b"9" * 5000 + b"}", b'{"run": {"a": 1e400}}', b"{}" + b" " * (1 << 20),
    ],
)  # fmt: skip
def test_bodies_that_are_none_are_refused(doors: House, body: bytes):
    answer = doors.client("rob").post("/api/v1/cancel", content=body)
    assert answer.status_code == 422 and answer.json()["error"]["message"], answer.text


def test_yaml_that_grows_without_end_is_refused(doors: House):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{name}: &{name} [{', '.join([f'*{chr(ord(name) - 1)}'] * 9)}]" for name in "bcdefghi"]
    for data in ({"spec": "\n".join(lines)}, {"spec": "[" * 900}, {"spec": "- " * 900 + "x"}):
        assert doors.client("rob").post("/api/v1/check", json=data).status_code == 422


def test_a_studio_without_users_answers_programs_of_its_machine_alone(studio: QuietStudio):
    app = bare(studio)
    assert client(app, OWN).get("/api/v1/runs").json() == []
    assert client(app).get("/api/v1/runs").status_code == 403
    assert client(app, OWN, address="10.1.2.3").get("/api/v1/runs").status_code == 401
    assert client(app, OWN | {"Host": "studio.example.org"}).get("/api/v1/runs").status_code == 401
    form = client(app).post("/api/v1/delete_dataset", content=b"{}", headers={"Content-Type": "text/plain"})
    assert form.status_code == 403
    asked = client(app).options("/api/v1/delete_dataset", headers={"Access-Control-Request-Headers": "x-tessera"})
    assert asked.status_code == 405 and not [name for name in asked.headers if name.startswith("access-control")]


def test_a_fault_is_said_without_its_traceback(reading: QuietStudio, seeded: Seeded, monkeypatch):
    monkeypatch.setattr(QuietStudio, "runs", lambda *_, **__: 1 / 0)
    caller = TestClient(
        bare(reading), "http://127.0.0.1", headers=OWN, client=("127.0.0.1", 1), raise_server_exceptions=False
    )
    answer = caller.get("/api/v1/runs")
    assert answer.status_code == 500 and answer.json()["error"]["kind"] == "internal"
    assert "division" not in answer.text and "Traceback" not in answer.text
