"""Conversations page quickly, and a device has one holder."""

import time

import pytest

from storage import Database, MissingError
from storage.models import Message
from storage.queries import attempts, chats, holds, jobs, runs

SPEC = {"name": "r", "tasks": [{"dataset": "d", "task": "a"}], "method": {"name": "lora"}, "model": {"base": "b"}}
ANSWER = {"tokens": 3, "seconds": 0.5, "ended": "end"}
PROCESS = {"title": "inference", "pid": 10, "process_start": 1.0, "boot": "b"}


def test_questions_keep_their_answers_and_their_order(database: Database) -> None:
    with database.write() as session:
        talk = chats.start(session, title="Which  metal\nconducts best? " * 9, models=["run-1", "base"])
        for number in range(5):
            asked = chats.ask(
                session, conversation=talk.id, text=f"q{number}", models=["run-2"], system="s", settings={"seed": 1}
            )
            for model in ("run-1", "base")[: 1 + number % 2]:
                chats.answer(session, question=asked.id, model=model, text=f"a{number}", **ANSWER)
    assert talk.title.startswith("Which metal conducts best?") and len(talk.title) == chats.TITLE
    with database.session() as session:
        found = chats.turns(session, conversation=talk.id)
        assert [(q.text, [a.model for a in answers]) for q, answers in found][:2] == [
            ("q0", ["run-1"]),
            ("q1", ["run-1", "base"]),
        ]
        newest = chats.turns(session, conversation=talk.id, limit=2)
        assert [q.text for q, _ in newest] == ["q3", "q4"]
        older = chats.turns(session, conversation=talk.id, limit=2, before=newest[0][0].id)
        assert [q.text for q, _ in older] == ["q1", "q2"]
        again = chats.get(session, conversation=talk.id)
        assert (again.models, again.system, again.settings) == (["run-2"], "s", {"seed": 1})
        assert again.changed > talk.changed
        assert chats.message(session, message=found[1][1][0].id).text == "a1"


def test_a_deleted_conversation_is_gone_with_its_messages(database: Database) -> None:
    with database.write() as session:
        talk = chats.start(session, title="t", models=["base"])
        asked = chats.ask(session, conversation=talk.id, text="q", models=["base"], system="", settings={})
        chats.answer(session, question=asked.id, model="base", text="a", **ANSWER)
        chats.remove(session, conversation=talk.id)
        with pytest.raises(MissingError, match="no conversation"):
            chats.get(session, conversation=talk.id)
        with pytest.raises(MissingError, match="no message"):
            chats.message(session, message=asked.id)
        with pytest.raises(MissingError, match="was deleted"):
            chats.answer(session, question=asked.id, model="base", text="late", **ANSWER)
        assert chats.start(session, title="t", models=["base"]).id > talk.id


def test_ten_thousand_messages_page_quickly(database: Database) -> None:
    with database.write() as session:
        talk = chats.start(session, title="long", models=["base"])
        session.add_all(Message(conversation_id=talk.id, text=f"q{i}") for i in range(5000))
        session.flush()
        first = chats.turns(session, conversation=talk.id)[0][0].id
        session.add_all(
            Message(conversation_id=talk.id, question_id=first + i, model="base", text=f"a{i}") for i in range(5000)
        )
    with database.session() as session:
        start = time.perf_counter()
        found = chats.turns(session, conversation=talk.id, limit=30, before=first + 2500)
        seconds = time.perf_counter() - start
    assert [q.text for q, _ in found] == [f"q{i}" for i in range(2470, 2500)]
    assert all(answers[0].text == "a" + q.text[1:] for q, answers in found)
    assert seconds < 0.1


def test_the_newest_conversations_come_first_page_by_page(database: Database) -> None:
    with database.write() as session:
        made = [chats.start(session, title=f"t{i}", models=["base"]).id for i in range(5)]
        chats.ask(session, conversation=made[1], text="q", models=["base"], system="", settings={})
        first, second = (chats.page(session, limit=2, offset=offset) for offset in (0, 2))
    assert [row.id for row in first.rows] == [made[1], made[4]]
    assert ([row.id for row in second.rows], second.total) == ([made[3], made[2]], 5)


def test_a_device_has_one_holder_and_no_job_starts_on_it(database: Database) -> None:
    with database.write() as session:
        assert holds.take(session, holder="inference-a", device="cuda:0", **PROCESS)
        assert holds.take(session, holder="inference-a", device="cuda:0", **PROCESS | {"pid": 11})
        assert not holds.take(session, holder="inference-b", device="cuda:0", **PROCESS)
        assert attempts.leased_shares(session) == {"cuda:0": 1.0}
        holds.release(session, holder="inference-a", pid=10)
        assert [hold.pid for hold in holds.every(session)] == [11]
        holds.release(session, holder="inference-a")
        run, _ = runs.add(session, spec=SPEC)
        job = jobs.add(session, run=run.id, kind="train")
        attempts.begin(session, job=job.id, token="t", device="cuda:0", share=0.5, host="h")
        assert not holds.take(session, holder="inference-a", device="cuda:0", **PROCESS)
        assert holds.take(session, holder="inference-a", device="cuda:1", **PROCESS)
