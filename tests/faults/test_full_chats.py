"""Chats on a disk that is full, pages on a database that takes nothing: it is said, not for ever, and ends with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.soak_chat import ASKED, SHORT, last_turn
from benchmarks.soak_home import House, until
from benchmarks.soak_tabs import Tab
from core.errors import DiskError
from core.studio import Studio
from tests.support.full_disk import full
from tests.support.talkers import spec, talker
from tests.support.tiny import tiny_base


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Studio]:
    studio = Studio(tmp_path / "home")
    talker(studio, spec(tiny_base(tmp_path / "base"), method={"name": "base"}), name="plain")
    yield studio
    studio.chats.inference.stop()
    studio.close()


@pytest.mark.long
def test_chats_while_the_disk_is_full(plain: Studio) -> None:
    """No worker starts; one that lives answers, what it said cannot be kept, and none of it grows for ever."""
    with plain.chat(["plain"]) as talk, full(100):
        with pytest.raises(DiskError, match="full or cannot be written") as caught:
            talk.ask("Say red.", max_new_tokens=4)
        assert "ask again" in caught.value.hint
    asking = plain.chats.ask(["plain"], "Tell.", max_new_tokens=40, temperature=1.5, top_p=1.0)
    stream = iter(asking)
    next(stream)
    with full():
        answer = list(stream)[-1]
        assert answer.ended in ("end", "length") and answer.text and answer.turn is None
        assert "could not be kept" in answer.problem and answer.hint
        with pytest.raises(Exception, match="disk|Disk"):
            plain.chats.ask(["plain"], "And now?")
    ((_, (kept,)),) = plain.chats.turns(asking.conversation)
    assert kept.ended == "failed" and "Ask again" in kept.problem
    again = list(plain.chats.ask(["plain"], "Say red.", conversation=asking.conversation, max_new_tokens=4))[-1]
    assert again.ended in ("end", "length") and again.turn


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_living_web_server_on_a_database_that_takes_nothing(tmp_path: Path) -> None:
    """Pages are shown, changes say why they fail, the server lives on, and what is asked afterwards is done."""
    house = House(tmp_path / "home", tmp_path / "log")
    try:
        house.serve()
        assert until(house.answers, 120), house.log.read_text()[-2000:]
        pid = house.web.pid
        with httpx.Client(base_url=house.address, timeout=60, follow_redirects=True) as client:
            tab = Tab(client, "/chat?runs=base")
            assert "The disk of" not in tab.shown()
            with full(pid=pid):
                list(tab.press("chat-box", {ASKED: "Which colour is the sky?", **SHORT}))
                assert "The disk of" in tab.shown() and last_turn(tab) == {}, "no reason is shown"
                for path in ("/", "/runs", "/compare", "/routing", "/chat"):
                    Tab(client, path)
                assert client.get("/health").status_code == 200 and house.web.poll() is None
            list(tab.press("chat-box", {ASKED: "Which colour is the sky?", **SHORT}))
            assert last_turn(tab)["state"] in ("end", "length")
        assert house.log.read_text().count("Traceback") == 0, house.log.read_text()[-3000:]
        os.kill(pid, signal.SIGTERM)
        assert house.web.wait(20) in (0, -signal.SIGTERM)
    finally:
        house.close()
