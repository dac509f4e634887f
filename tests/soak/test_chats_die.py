"""The chat worker is killed while it answers, while it starts and with its web server; and what is wrong is noticed."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import soak_chat_checks as checks
from benchmarks.soak import ENVIRONMENT
from benchmarks.soak_chat import IDLE, Asked, Blow, Kill, Talk, interrupted
from benchmarks.soak_home import CHAT, DISPATCHER, WEB, House, until
from benchmarks.soak_kills import CHATS, Killer
from benchmarks.soak_runs import People
from benchmarks.soak_watch import Watcher
from core.studio import Studio
from storage.queries import chats


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_way_to_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    house, chance = House(tmp_path / "home", tmp_path / "log"), random.Random(3)
    talk, watcher = Talk(house, chance), Watcher(house, lambda: None, list)
    killer = Killer(house, People(house.studio, "d", chance, 1), watcher, talk, chance)
    try:
        house.serve()
        assert until(house.answers, 120), house.log.read_text()[-2000:]
        talk.start()
        assert until(lambda: house.seen(CHAT), 60)
        for kind in CHATS:
            assert killer.do(kind).pids
            assert until(lambda: not talk.waiting(), 90), f"nobody was answered after {kind}"
        talk.stop()
        found = [checks.again(talk, talk.answered()), checks.answers(house.studio, talk)]
        found += [checks.undisturbed(talk, killer.killed), checks.workers(house, watcher.crowded)]
        assert [one for one in found if one.wrong] == [] and all(one.looked_at for one in found)
        assert len(talk.blows) == len(CHATS) and {one.kind for one in watcher.happened} == {
            "chat worker and web server"
        }
    finally:
        house.close()


def test_an_answer_that_grows_for_ever_or_says_nothing_is_noticed(tmp_path: Path) -> None:
    studio, talk = Studio(tmp_path), SimpleNamespace(asked=[])
    for number, ended in enumerate(("end", "failed", None, "nobody")):
        with studio.records.write() as session:
            kept = {"models": ["base"], "system": "", "settings": {}}
            chat = chats.start(session, title="x", models=["base"])
            asked = chats.ask(session, conversation=chat.id, text=f"Question {number}", **kept)
            if ended in ("end", "failed"):
                said = {"text": "", "tokens": 1, "seconds": 1.0, "ended": ended}
                chats.answer(session, question=asked.id, model="base", **said)
    talk.asked = [Asked("Question 9", 0.0, began=True), Asked("Question 10", 0.0)]
    found = checks.answers(studio, talk)
    assert found.looked_at == 4 and [text.split(":")[0] for text in found.wrong] == [
        "Question 3", "Question 2", "Question 1", "Question 9"
    ]  # fmt: skip
    studio.close()


def test_who_may_fail_to_answer() -> None:
    asked = Asked("?", 10.0, began=True, over=12.0, state="failed")
    kills = [Kill(9.0, frozenset({CHAT})), Kill(11.0, frozenset({DISPATCHER}))]
    assert not interrupted(asked, kills) and interrupted(asked, [*kills, Kill(11.5, frozenset({WEB}))])
    talk = SimpleNamespace(
        asked=[asked], problems=[], blows=[Blow("chat worker", 1.0, 1), Blow("x", 2.0, 1, again=3.0)]
    )
    assert checks.undisturbed(talk, kills).wrong and not checks.undisturbed(talk, [Kill(10.0, frozenset({CHAT}))]).wrong
    assert len(checks.again(talk, True).wrong) == 1 and len(checks.again(talk, False).wrong) == 2


def test_a_worker_that_stays_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(tmp_path / "home", tmp_path / "log")
    place = house.home.inference / "x"
    place.mkdir(parents=True)
    assert checks.workers(house, 0.0).wrong == ()
    (place / "socket").touch()
    assert len(checks.workers(house, IDLE + 1.0).wrong) == 2
    house.close()
