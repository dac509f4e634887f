"""Every address of the served studio: refused to strangers, by both walls, and no file of the home through any.

Addresses, handlers and their names are read off the application, so that a new one is asked too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
from fastapi import FastAPI
from starlette.routing import Mount, Route
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from app import server, shell, sign_in
from app.auth import FREE_ATTEMPTS, Access
from app.doors import SHUT
from core.home import PROJECT
from tests.access.conftest import ADDRESS, client_of, password, peopled
from tests.support.seed import QuietStudio

ADA = {"name": "ada", "password": password("ada")}
OPEN = {("GET", "/health"), ("GET", "/login"), ("POST", "/login")}
PARAMETER = re.compile(r"\{(\w+)(:path)?\}")
# What runs forever when it is let in; these are asked with a session elsewhere, by browsers.
ENDLESS = ("/gradio_api/heartbeat/", "/gradio_api/queue/data", "/gradio_api/dev/reload")
# The doors to handlers and files, which Gradio itself must refuse without a session when no middleware stands before.
DOORS = [
    ("POST", "/gradio_api/queue/join"),
    ("GET", "/gradio_api/queue/data?session_hash=x"),
    ("POST", "/gradio_api/upload"),
    ("POST", "/gradio_api/component_server"),
    ("GET", "/gradio_api/file=/etc/passwd"),
    ("GET", "/config"),
    ("GET", "/gradio_api/info"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("endpoints") / "home"


@pytest.fixture(scope="module")
def studio(home: Path) -> Iterator[QuietStudio]:
    made = peopled(home)
    yield made
    made.close()


@pytest.fixture(scope="module")
def access(studio: QuietStudio) -> Access:
    return Access(studio.users)


@pytest.fixture(scope="module")
def app(studio: QuietStudio, access: Access) -> FastAPI:
    return server.build(studio, access=access)


@pytest.fixture(scope="module")
def pages(app: FastAPI) -> gr.Blocks:
    return next(found for route in app.routes if (found := getattr(getattr(route, "app", None), "blocks", None)))


@pytest.fixture
def stranger(app: FastAPI, access: Access) -> TestClient:
    return client_of(app, access, None)


@pytest.fixture
def owner(app: FastAPI, access: Access) -> TestClient:
    return client_of(app, access, "ada")


def addresses(app: FastAPI) -> list[tuple[str, str]]:
    """(method, path) of every route, those of mounted applications too, with something in place of parameters."""
    return sorted(set(_addresses(app.routes, "")))


def _addresses(routes: list, before: str) -> Iterator[tuple[str, str]]:
    for route in routes:
        if isinstance(route, Mount):
            yield from _addresses(route.routes or [], before + route.path)
        elif isinstance(route, Route) or hasattr(route, "methods"):
            path = PARAMETER.sub(lambda found: "file.txt" if found[2] else "1", route.path)
            yield from ((method, before + path) for method in route.methods or ())
        elif hasattr(route, "effective_candidates"):
            yield from _included(route, before)


def _included(route: object, before: str) -> Iterator[tuple[str, str]]:
    """A router that was included as a whole, as newer versions of FastAPI keep it."""
    for found in route.effective_candidates():
        path = PARAMETER.sub(lambda one: "file.txt" if one[2] else "1", found.path)
        yield from ((method, before + path) for method in found.methods or ())


def test_all_addresses_are_found(app: FastAPI):
    found = {path for _, path in addresses(app)}
    wanted = ("/health", "/login", "/logout", "/config", "/gradio_api/queue/join", "/gradio_api/queue/data")
    wanted += ("/gradio_api/upload", "/gradio_api/heartbeat/1", "/gradio_api/cancel", "/gradio_api/component_server")
    assert [path for path in wanted if path not in found] == []
    assert {page.path for page in shell.PAGES} <= found
    assert len(found) > 50


def test_strangers_are_refused_at_every_address(app: FastAPI, stranger: TestClient):
    for method, path in addresses(app):
        if (method, path) not in OPEN and path not in ("/login", "/health"):
            assert stranger.request(method, path).status_code == 401, (method, path)
            if path.startswith(sign_in.API):
                continue  # programs are not led to the sign-in page
            page = stranger.request(method, path, headers={"accept": "text/html,*/*"})
            led = page.status_code == 303 and page.headers["location"].startswith("/login")
            assert led or page.status_code == 401, (method, path)


def test_no_way_of_writing_an_address_leads_around(stranger: TestClient):
    for path in ("/login/", "/login/../config", "//config", "/%6cogin/x", "/health/", "/LOGIN", "/config?/login"):
        answer = stranger.get(path)
        assert answer.status_code in (401, 404), path
        assert "dependencies" not in answer.text


def test_who_signed_in_is_let_in_everywhere_but_where_nobody_is(app: FastAPI, owner: TestClient):
    for method, path in addresses(app):
        if path not in ("/login", "/logout") and not path.startswith((*ENDLESS, sign_in.API)):
            status = owner.request(method, path).status_code
            assert status == 404 if SHUT.match(path) else status not in (401, 303), (method, path)


def test_a_session_opens_nothing_of_the_api(app: FastAPI, owner: TestClient):
    calls = [(method, path) for method, path in addresses(app) if path.startswith(sign_in.API)]
    assert calls
    for method, path in calls:
        assert owner.request(method, path, headers={"x-tessera": "1"}).status_code == 401, path


def test_an_address_that_is_added_is_found_and_refused(app: FastAPI, access: Access, request: pytest.FixtureRequest):
    app.add_api_route("/gradio_api/new/{name}", lambda name: name, methods=["PUT"])
    app.router.routes.insert(0, app.router.routes.pop())
    request.addfinalizer(lambda: app.router.routes.pop(0))
    assert ("PUT", "/gradio_api/new/1") in addresses(app)
    assert client_of(app, access, None).put("/gradio_api/new/1").status_code == 401
    assert client_of(app, access, "vera").put("/gradio_api/new/1").text == '"1"'


def test_every_event_and_name_of_the_pages_is_refused_to_strangers(pages: gr.Blocks, stranger: TestClient):
    config = pages.config
    functions = [dependency["id"] for dependency in config["dependencies"]]
    names = {dependency["api_name"] for dependency in config["dependencies"] if dependency["api_name"]}
    assert len(functions) > 40
    for number in functions:
        body = {"data": [], "fn_index": number, "session_hash": "x"}
        assert stranger.post("/gradio_api/queue/join", json=body).status_code == 401
        assert stranger.post("/gradio_api/run/predict", json=body).status_code == 401
    for name in names:
        for way in ("run", "api", "call", "call/v2"):
            assert stranger.post(f"/gradio_api/{way}/{name}", json={"data": []}).status_code == 401, name


def test_gradio_refuses_too_when_no_middleware_stands_before_it(studio: QuietStudio, pages: gr.Blocks, access: Access):
    bare = FastAPI()
    server.mount(bare, studio, pages, access)
    client = TestClient(bare, base_url=ADDRESS, raise_server_exceptions=False)
    names = [dependency["api_name"] for dependency in pages.config["dependencies"] if dependency["api_name"]]
    doors = DOORS + [("POST", f"/gradio_api/{way}/{name}") for way in ("run", "api", "call") for name in names]
    for method, path in doors:
        assert client.request(method, path, json={"data": []} if method == "POST" else None).status_code == 401, path
    for dependency in pages.config["dependencies"]:
        body = {"data": [], "fn_index": dependency["id"], "session_hash": "x"}
        assert client.post("/gradio_api/queue/join", json=body).status_code == 401
    client.cookies.set(sign_in.COOKIE, access.sign_in(**ADA, address="x").token)
    assert client.get("/config").status_code == 200


def test_web_sockets_are_refused_to_strangers(stranger: TestClient):
    with pytest.raises(WebSocketDisconnect) as closed, stranger.websocket_connect("/gradio_api/queue/join"):
        pass
    assert closed.value.code == 1008


def test_signing_in_staying_and_leaving(stranger: TestClient):
    led = stranger.get("/routing?run=run-1", headers={"accept": "text/html"})
    assert led.headers["location"] == "/login?next=%2Frouting%3Frun%3Drun-1"
    shown = stranger.get(led.headers["location"])
    assert 'value="/routing?run=run-1"' in shown.text and "script" not in shown.text.lower()
    wrong = stranger.post("/login", data={"name": '"><i>%told%', "password": "wrong", "next": '"><b>'})
    assert wrong.status_code == 401 and "do not belong together" in wrong.text
    assert "<b>" not in wrong.text and "<i>" not in wrong.text and wrong.text.count('role="alert"') == 1
    entered = stranger.post("/login", data={**ADA, "next": "/routing?run=run-1"})
    assert (entered.status_code, entered.headers["location"]) == (303, "/routing?run=run-1")
    cookie = entered.headers["set-cookie"]
    assert (
        "HttpOnly" in cookie
        and "SameSite=Strict" in cookie
        and f"Max-Age={7 * 24 * 3600}" in cookie
        and "Secure" not in cookie
    )
    token = stranger.cookies[sign_in.COOKIE]
    assert stranger.get("/config").status_code == 200
    assert stranger.post("/logout").headers["location"] == "/login"
    stranger.cookies.set(sign_in.COOKIE, token)
    assert stranger.get("/config").status_code == 401


def test_over_https_the_cookie_stays_there(app: FastAPI):
    client = TestClient(app, base_url="https://127.0.0.1:7860", follow_redirects=False)
    assert "Secure" in client.post("/login", data=ADA).headers["set-cookie"]


@pytest.mark.parametrize("wanted", ["https://evil.example/", "//evil.example", "/\\evil.example", "x", "/a\nb: c", ""])
def test_signing_in_leads_to_the_studio_alone(app: FastAPI, wanted: str):
    client = TestClient(app, base_url=ADDRESS, follow_redirects=False, client=("10.1.1.1", 1))
    assert client.post("/login", data={**ADA, "next": wanted}).headers["location"] == "/"


def test_other_sites_cannot_sign_anybody_in_or_out(app: FastAPI):
    client = TestClient(app, base_url=ADDRESS, headers={"origin": "http://evil.example"})
    assert client.post("/login", data=ADA).status_code == 403
    assert client.post("/logout").status_code == 403


def test_guessing_is_slowed_down(app: FastAPI):
    client = TestClient(app, base_url=ADDRESS, client=("10.2.2.2", 1))
    for _ in range(FREE_ATTEMPTS):
        answer = client.post("/login", data={**ADA, "password": "wrong"})
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
    assert client.post("/login", data=ADA).status_code == 429


def test_forms_that_are_no_forms_are_wrong_passwords(app: FastAPI):
    for number, body in enumerate((b"\xff\xfe", b"a&" * 900, b"password=" + b"x" * 100_000)):
        client = TestClient(app, base_url=ADDRESS, client=(f"10.3.3.{number}", 1))
        assert client.post("/login", content=body).status_code == 401


def test_health_is_open_and_tells_nothing(stranger: TestClient, studio: QuietStudio, monkeypatch: pytest.MonkeyPatch):
    assert stranger.get("/health").json() == {"database": "ok"}
    monkeypatch.setattr(studio, "health", lambda: {"database": "/secret/path is locked"})
    answer = stranger.get("/health")
    assert answer.status_code == 503 and "secret" not in answer.text


def test_files_of_the_home_are_handed_out_to_nobody(
    owner: TestClient, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = home / "runs" / "run-1"
    run.mkdir(parents=True, exist_ok=True)
    (run / "events.jsonl").write_text("precious")
    (home / "tessera.db").touch()
    link = tmp_path / "link.txt"
    link.symlink_to(run / "events.jsonl")
    relative = os.path.relpath(run / "events.jsonl")
    upload = owner.post("/gradio_api/upload", files={"files": ("a.txt", b"mine")})
    mine = upload.json()[0]
    assert owner.get(f"/gradio_api/file={mine}").text == "mine"
    around = f"{Path(mine).parent}/{os.path.relpath(run / 'events.jsonl', Path(mine).parent)}"
    for path in (run / "events.jsonl", home / "tessera.db", link, relative, around, PROJECT / "app.py", "/etc/passwd"):
        for way in ("file=", "file/"):
            answer = owner.get(f"/gradio_api/{way}{path}")
            assert answer.status_code in (403, 404), path
            assert "precious" not in answer.text and "root:" not in answer.text


def test_the_studio_fetches_nothing_for_others(owner: TestClient):
    for path in ("file=http://127.0.0.1:1/", "file=HTTPS://example.org/x", "proxy=https://example.org/x"):
        assert owner.get(f"/gradio_api/{path}").status_code == 404
