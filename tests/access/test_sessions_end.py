"""A session ends with everything that changes what its user may do; open tabs and growing answers notice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio.context import LocalContext
from starlette.testclient import TestClient

from app import server, sign_in
from app.acting import as_actor
from app.auth import Access
from app.handouts import handout
from core.access import Actor, act_as, acting, need
from core.errors import ConfigurationError
from core.sessions import IDLE, LONGEST
from core.studio import Studio
from tests.access.conftest import ADDRESS, client_of, password, peopled
from tests.support.seed import QuietStudio

Browser = Callable[[str | None], TestClient]
SECOND = timedelta(seconds=1)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """One application for the tests that need one: they change nobody of ``PEOPLE``."""
    studio = peopled(tmp_path_factory.mktemp("sessions") / "home")
    access = Access(studio.users)
    yield SimpleNamespace(studio=studio, access=access, app=server.build(studio, access=access))
    studio.close()


@pytest.fixture
def browser(served: SimpleNamespace) -> Browser:
    return lambda name: client_of(served.app, served.access, name)


def session(access: Access, name: str) -> str:
    return access.sign_in(name, password(name), "test").token or ""


ENDS: dict[str, Callable[[Studio], object]] = {
    "another password": lambda studio: studio.users.set_password("ben", "something else"),
    "another role": lambda studio: studio.users.set_role("ben", "viewer"),
    "shut out": lambda studio: studio.users.disable("ben"),
    "shut out and let in": lambda studio: studio.users.disable("ben") and studio.users.disable("ben", False),
    "removed": lambda studio: studio.users.remove("ben"),
    "removed and added": lambda studio: (studio.users.remove("ben"), studio.users.add("ben", "admin", "long enough")),
    "signed out everywhere": lambda studio: studio.users.end_sessions("ben"),
}


@pytest.mark.parametrize("why", ENDS)
def test_a_session_ends_when_its_user_changes(studio: QuietStudio, access: Access, why: str):
    ben, cleo = session(access, "ben"), session(access, "cleo")
    assert access.actor(ben) == Actor("ben", "researcher")
    ENDS[why](studio)
    assert access.actor(ben) is None and access.actor(cleo)


def test_a_change_by_another_process_counts_within_moments(studio: QuietStudio, access: Access):
    ben = session(access, "ben")
    assert access.actor(ben)
    other = Studio(studio.home.root)
    other.users.remove("ben")
    other.close()
    deadline = time.monotonic() + 10
    while access.actor(ben) is not None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert access.actor(ben) is None


def test_from_the_first_user_on_everybody_signs_in_and_never_again_nobody_beyond_loopback(tmp_path: Path):
    studio = QuietStudio(tmp_path / "home")
    alone, shared = Access(studio.users), Access(studio.users, alone=False)
    assert alone.actor("").name is None and shared.actor("") is None
    studio.users.add("ada", "admin", "long enough")
    assert alone.actor("") is None and shared.actor("") is None
    studio.users.remove("ada")
    assert alone.actor("").name is None and shared.actor("") is None
    studio.close()


def test_a_studio_for_others_does_not_start_without_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    studio = QuietStudio(tmp_path / "home")
    with pytest.raises(ConfigurationError, match="without users"):
        server.run(studio, host="0.0.0.0", port=0)
    file = tmp_path / "password"
    file.write_text("short\n")
    with pytest.raises(ConfigurationError, match="5 characters"):
        server.run(studio, host="0.0.0.0", port=0, password_file=file)
    file.write_text("correct horse\n")
    served = []
    monkeypatch.setattr(server, "build", lambda *given, **named: served.append(named))
    monkeypatch.setattr(server.uvicorn, "Server", lambda config: SimpleNamespace(run=lambda sockets: None))
    server.run(studio, host="0.0.0.0", port=0, password_file=file)
    assert served and studio.users.check("admin", "correct horse").actor == Actor("admin", "admin")
    file.write_text("another one entirely\n")
    server.run(studio, host="127.0.0.1", port=0, password_file=file)
    assert studio.users.check("admin", "another one entirely") is None
    studio.close()


def test_unused_and_old_sessions_end_and_ticks_are_no_use(
    served: SimpleNamespace, browser: Browser, monkeypatch: pytest.MonkeyPatch
):
    now = [datetime.now(UTC)]
    monkeypatch.setattr(served.access.sessions, "_clock", lambda: now[0])
    ben = browser("ben")
    events = ben.get("/config").json()["dependencies"]
    tick = next(one for one in events if one["targets"][0][1] == "tick")
    sent = {"data": [None] * len(tick["inputs"]), "fn_index": tick["id"], "session_hash": "idle"}
    now[0] += IDLE - 10 * SECOND
    assert ben.post("/gradio_api/run/x", json=sent).status_code != 401
    now[0] += 20 * SECOND
    assert ben.post("/gradio_api/run/x", json=sent).status_code == 401
    ben, began = browser("ben"), now[0]
    while now[0] - began < LONGEST:
        assert ben.get("/runs", headers={"accept": "text/html"}).status_code == 200
        now[0] += IDLE - SECOND
    assert ben.get("/config").status_code == 401


def test_a_removed_users_open_tab_is_refused(served: SimpleNamespace, browser: Browser):
    served.studio.users.add("dora", "researcher", password("dora"))
    dora = browser("dora")
    events = dora.get("/config").json()["dependencies"]
    load = next(one for one in events if one["targets"][0][1] == "load")
    sent = {"data": [], "fn_index": load["id"], "session_hash": "open tab"}
    assert dora.post("/gradio_api/run/x", json=sent).status_code == 200
    served.studio.users.remove("dora")
    assert dora.post("/gradio_api/run/x", json=sent).status_code == 401
    assert dora.post("/gradio_api/queue/join", json=sent).status_code == 401
    assert dora.post("/gradio_api/upload", files={"files": ("a.txt", b"x")}).status_code == 401


def sent_by(token: str, tab: str = "tab") -> None:
    """Pretend that Gradio runs an event of whoever has this session."""
    headers = [(b"cookie", f"{sign_in.COOKIE}={token}".encode())]
    scope = {"type": "http", "path": "/gradio_api/queue/join", "headers": headers}
    LocalContext.request.set(SimpleNamespace(request=SimpleNamespace(scope=scope), session_hash=tab))


def test_an_answer_stops_growing_when_its_session_ends(studio: QuietStudio, access: Access):
    closed: list[Actor] = []

    def answer() -> Iterator[str]:
        try:
            while True:
                yield acting().name or ""
        finally:
            closed.append(acting())

    sent_by(session(access, "ben"), "growing")
    growing = as_actor(answer, access, person=True)()
    assert [next(growing), next(growing)] == ["ben", "ben"]
    studio.users.disable("ben")
    with pytest.raises(gr.Error, match="Sign in again"):
        next(growing)
    assert [one.name for one in closed] == ["ben"]


def test_a_handler_says_why_somebody_may_not(access: Access):
    sent_by(session(access, "vera"), "vera's")
    with pytest.raises(gr.Error, match="vera has the role viewer, and this needs a researcher"):
        as_actor(lambda: need("researcher"), access, person=True)()


def test_another_ones_tab_is_refused(served: SimpleNamespace, browser: Browser):
    access = served.access
    sent_by(session(access, "ben"), "ben's tab")
    assert as_actor(lambda: acting().name, access, person=True)() == "ben"
    cleo = browser("cleo")
    assert cleo.get("/gradio_api/queue/data?session_hash=ben's tab").status_code == 403
    assert cleo.get("/gradio_api/heartbeat/ben's tab").status_code == 403
    assert cleo.get("/gradio_api/queue/data?session_hash=").status_code == 403  # what everybody names is nobody's
    order = {"session_hash": "ben's tab", "fn_index": 0, "event_id": "x"}
    assert cleo.post("/gradio_api/cancel", json=order).status_code == 403
    sent_by(session(access, "cleo"), "ben's tab")
    with pytest.raises(gr.Error, match="Sign in again"):
        as_actor(lambda: acting().name, access, person=True)()


def test_uploads_and_downloads_are_theirs_who_made_them(browser: Browser):
    ben = browser("ben")
    upload = ben.post("/gradio_api/upload", files={"files": ("a.csv", b"only Ben's")}).json()[0]
    with act_as(Actor("ben", "researcher")):
        made = handout("result.zip")
    made.write_bytes(b"also Ben's")
    for path in (upload, made, f"{Path(upload).parent}/./{Path(upload).name}"):
        for way in ("file=", "file/"):
            address = f"/gradio_api/{way}{path}"
            assert ben.get(address).status_code == 200
            for name in ("ada", "cleo", "vera"):
                assert browser(name).get(address).status_code == 403, name
            assert browser(None).get(address).status_code == 401
    assert browser("vera").post("/gradio_api/upload", files={"files": ("a.csv", b"x")}).status_code == 403


def test_a_file_that_another_uploaded_cannot_be_stored(browser: Browser):
    from app.uploads import received
    from core.errors import DataError

    upload = browser("ben").post("/gradio_api/upload", files={"files": ("b.csv", b"a,b\n1,2\n")}).json()[0]
    with act_as(Actor("ben", "researcher")):
        assert received(upload)
    with act_as(Actor("cleo", "researcher")), pytest.raises(DataError, match="not uploaded here"):
        received(upload)


def test_unknown_names_take_as_long_as_known_ones(tmp_path: Path):
    studio = QuietStudio(tmp_path / "home")
    studio.users.add("ada", "admin", "long enough")
    hashed: list[str] = []
    hasher = studio.users.passwords.hasher
    studio.users.passwords.hasher = SimpleNamespace(
        hash=hasher.hash, verify=lambda kept, given: hashed.append(kept) or hasher.verify(kept, given)
    )
    for name in ("ada", "nobody", "", "ADA "):
        assert studio.users.check(name, "wrong") is None
    assert len(hashed) == 4 and len({kept[:31] for kept in hashed}) == 1  # the same costs
    studio.close()


def test_several_cookies_or_none_are_nobody(served: SimpleNamespace):
    app, access = served.app, served.access
    token = session(access, "ben")
    for cookie in ("", f"{sign_in.COOKIE}={token}; {sign_in.COOKIE}={token}", f"{sign_in.COOKIE}={token[:-1]}"):
        client = TestClient(app, base_url=ADDRESS, headers={"cookie": cookie})
        assert client.get("/config").status_code == 401
    assert client_of(app, access, "ben").get("/config").json()["username"] == "researcher ben"
