"""Whose runs, data sets, conversations and users are: theirs alone to change, and the admins'."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from core.access import LOCAL, Actor, act_as
from core.errors import ConfigurationError, NotAllowedError, NotFoundError
from core.schema import RunSpec
from storage.queries import chats
from tests.access.conftest import password
from tests.support import seed
from tests.support.seed import QuietStudio

ADA, BEN, CLEO, VERA = (
    Actor("ada", "admin"),
    Actor("ben", "researcher"),
    Actor("cleo", "researcher"),
    Actor("vera", "viewer"),
)


@pytest.fixture
def run(studio: QuietStudio) -> str:
    """A queued run of Ben on a data set of Ben."""
    with act_as(BEN):
        info = seed.dataset(studio.home.root)
        task = {"dataset": info.id, "task": "topic"}
        return studio.submit(RunSpec.parse({"name": "ben's", "tasks": [task], "device": "cpu"}))


CHANGES: list[Callable[[QuietStudio, str], Any]] = [
    lambda studio, run: studio.annotate(run, notes="mine"),
    lambda studio, run: studio.annotate(run, name="mine", tags=["mine"]),
    lambda studio, run: studio.score(run),
    lambda studio, run: studio.cancel(run),
    lambda studio, run: studio.resume(run),
    lambda studio, run: studio.delete(run),
    lambda studio, run: studio.delete_dataset("reviews"),
]


def test_what_is_made_bears_its_makers_name(studio: QuietStudio, run: str):
    assert studio.run(run)["owner"] == "ben" and studio.dataset("reviews")["owner"] == "ben"
    with act_as(CLEO):
        assert studio.run(studio.clone(run))["owner"] == "cleo"
    assert studio.run(studio.clone(run))["owner"] is None


@pytest.mark.parametrize("change", CHANGES)
def test_others_change_nothing_of_somebodys(studio: QuietStudio, run: str, change: Callable[[QuietStudio, str], Any]):
    before = studio.run(run), studio.datasets()
    for actor in (CLEO, VERA, Actor("ben", "viewer")):
        with act_as(actor), pytest.raises(NotAllowedError):
            change(studio, run)
    assert (studio.run(run), studio.datasets()) == before


def test_owners_and_admins_change_what_is_theirs(studio: QuietStudio, run: str):
    for actor, notes in ((BEN, "Ben's"), (ADA, "Ada's"), (LOCAL, "the machine's")):
        with act_as(actor):
            assert studio.annotate(run, notes=notes)["notes"] == notes
    with act_as(BEN):
        studio.cancel(run)
        studio.delete(run)
        studio.delete_dataset("reviews")
    with pytest.raises(NotFoundError):
        studio.run(run)


def test_what_nobody_owns_is_the_admins(studio: QuietStudio, run: str):
    unowned = studio.clone(run)
    with act_as(BEN), pytest.raises(NotAllowedError, match="nobody who has an account"):
        studio.cancel(unowned)
    with act_as(ADA):
        studio.cancel(unowned)


def test_the_machine_is_the_admins(studio: QuietStudio):
    for actor in (VERA, BEN):
        with act_as(actor):
            for order in (lambda: studio.machine.clean(["caches"]), lambda: studio.dispatcher("stop")):
                with pytest.raises(NotAllowedError, match="needs an admin"):
                    order()
    with act_as(ADA):
        studio.machine.clean(["caches"])


def test_viewers_store_load_and_ask_nothing(studio: QuietStudio, run: str, tmp_path: Path):
    file = tmp_path / "mine.csv"
    file.write_text("text,label\na,b\nc,d\n")
    with act_as(VERA):
        for order in (
            lambda: studio.upload(file),
            lambda: studio.chats.warm(["base"]),
            lambda: studio.chats.ask(["base"], "hello"),
            lambda: studio.trace(run, "hello"),
            lambda: studio.clone(run),
            lambda: studio.import_(tmp_path),
            lambda: studio.preview(file),
            lambda: studio.drafts.look(file),
            lambda: studio.drafts.typed_source(str(file)),
        ):
            with pytest.raises(NotAllowedError):
                order()


def test_a_conversation_is_its_owners_alone(studio: QuietStudio):
    with studio.records.write() as session:
        mine = chats.start(session, title="a", models=["base"], owner="ben").id
    for actor in (ADA, CLEO, VERA):
        with act_as(actor):
            assert studio.chats.page().total == 0
            for order in (studio.chats.conversation, studio.chats.turns, studio.chats.delete, studio.chats.export):
                with pytest.raises(NotFoundError, match="no conversation"):
                    order(mine)
    for actor in (BEN, LOCAL):
        with act_as(actor):
            assert studio.chats.page().total == 1 and studio.chats.conversation(mine).owner == "ben"


def test_the_first_admin_takes_over_earlier_conversations(tmp_path: Path):
    studio = QuietStudio(tmp_path / "home")
    with studio.records.write() as session:
        early = chats.start(session, title="a", models=["base"]).id
    with pytest.raises(ConfigurationError, match="has to be an admin"):
        studio.users.add("vera", "viewer", "long enough")
    studio.users.add("ada", "admin", "long enough")
    studio.users.add("ben", "researcher", "long enough")
    with act_as(ADA):
        assert studio.chats.conversation(early).owner == "ada"
    studio.close()


def test_a_name_that_still_owns_something_is_given_again_only_to_inherit_it(studio: QuietStudio, run: str):
    users = studio.users
    with studio.records.write() as session:
        talks = [chats.start(session, title="a", models=["base"], owner="ben").id for _ in range(2)]
    left = users.remove("ben")
    assert str(left) == "1 run, 1 data set and 2 conversations" and users.owned("Ben ") == left
    for actor in (LOCAL, ADA):
        with act_as(actor), pytest.raises(ConfigurationError, match="left 1 run, 1 data set and 2 conversations"):
            users.add("ben", "researcher", "long enough")
    with act_as(ADA), pytest.raises(NotFoundError):
        studio.chats.conversation(talks[0])
    users.add("ben", "researcher", "long enough", inherit=True)
    with act_as(BEN):
        assert studio.chats.page().total == 2 and studio.annotate(run, notes="again")["owner"] == "ben"
    assert users.add("dora", "viewer", "long enough", inherit=True), "inherit asks for nothing that is there"


def test_conversations_of_who_is_removed_are_deleted_unread(studio: QuietStudio, run: str):
    users = studio.users
    with studio.records.write() as session:
        for name in ("ben", "ben", "cleo"):
            talk = chats.start(session, title="a", models=["base"], owner=name)
            chats.ask(session, conversation=talk.id, text="b", models=["base"], system="", settings={})
    for actor in (CLEO, VERA):
        with act_as(actor):
            for order in (lambda: users.remove("ben", conversations=True), lambda: users.owned("ben")):
                with pytest.raises(NotAllowedError):
                    order()
    users.remove("ben")
    with act_as(ADA):
        assert str(users.remove("ben", conversations=True)) == "1 run and 1 data set"
    assert studio.chats.page().total == 1, "Cleo's is there"
    for name in ("ben", "nobody"):
        with pytest.raises(NotFoundError):
            users.remove(name, conversations=True)
    with act_as(ADA), pytest.raises(ConfigurationError, match="only admin"):
        users.remove("ada", conversations=True)
    assert not users.remove("cleo", conversations=True) and studio.chats.page().total == 0


def test_the_command_line_says_what_is_left_and_whose_it_is(
    studio: QuietStudio, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "password"
    file.write_text("long enough\n")
    with studio.records.write() as session:
        chats.start(session, title="a", models=["base"], owner="ben")

    def users(*given: str) -> tuple[int, str]:
        code = main(["--home", str(studio.home.root), "users", *given])
        said = capsys.readouterr()
        return code, said.out + said.err

    adding = ("add", "ben", "--role", "viewer", "--password-file", str(file))
    assert "What bears their name: 1 run, 1 data set and 1 conversation." in users("remove", "ben", "--yes")[1]
    code, said = users(*adding)
    assert code == 1 and "left 1 run, 1 data set and 1 conversation" in said and "--inherit" in said
    code, said = users("remove", "ben", "--yes", "--conversations")
    assert code == 0 and "1 run and 1 data set" in said and "--conversations" not in said
    assert users(*adding, "--inherit")[0] == 0


def test_only_admins_manage_users(studio: QuietStudio):
    users = studio.users
    for actor in (BEN, VERA):
        with act_as(actor):
            for order in (
                users.list,
                lambda: users.add("eve", "admin", "long enough"),
                lambda: users.set_role("vera", "admin"),
                lambda: users.set_role("ben", "admin"),
                lambda: users.set_password("ada", "long enough"),
                lambda: users.disable("ada"),
                lambda: users.remove("cleo"),
                lambda: users.end_sessions("ada"),
                lambda: users.tokens("ada"),
                lambda: users.add_token("ada", "mine"),
            ):
                with pytest.raises(NotAllowedError):
                    order()
    with act_as(ADA), pytest.raises(NotAllowedError, match="made by those who use them"):
        users.add_token("ben", "not mine")


def test_there_is_always_an_admin(studio: QuietStudio):
    users = studio.users
    for order in (
        lambda: users.remove("ada"),
        lambda: users.disable("ada"),
        lambda: users.set_role("ada", "viewer"),
    ):
        with pytest.raises(ConfigurationError, match="only admin"):
            order()
    users.set_role("ben", "admin")
    users.disable("ada")
    with pytest.raises(ConfigurationError, match="only admin"):
        users.remove("ben")
    for name in ("ada", "cleo", "vera"):
        users.remove(name)
    with act_as(Actor("ben", "admin")), pytest.raises(ConfigurationError, match="only admin"):
        users.remove("ben")
    users.remove("ben")
    assert not users.any()


@pytest.mark.parametrize("name", ["", " ", "a b", "../x", "<b>", "-x", "x" * 41, "ada\n", "é", "a\0"])
def test_names_are_plain(studio: QuietStudio, name: str):
    if name.strip().lower() != "ada":
        with pytest.raises(ConfigurationError, match="not a name"):
            studio.users.add(name, "viewer", "long enough")
    with pytest.raises(ConfigurationError):
        studio.users.add(name, "viewer", "long enough")


@pytest.mark.parametrize("given", ["", "short", "x" * 1001, "new-user", "New-User "])
def test_bad_passwords_are_refused(studio: QuietStudio, given: str):
    with pytest.raises(ConfigurationError):
        studio.users.add("new-user", "viewer", given)


def test_passwords_and_tokens_are_kept_as_hashes(studio: QuietStudio):
    key, _ = studio.users.add_token("ben", "laptop")
    studio.close()
    stored = b"".join(path.read_bytes() for path in studio.home.root.glob("tessera.db*"))
    assert b"$argon2id$" in stored and hashlib.sha256(key.encode()).hexdigest().encode() in stored
    assert password("ben").encode() not in stored and key.encode() not in stored and key[4:].encode() not in stored


def test_tokens_end_with_their_time_their_user_and_when_revoked(studio: QuietStudio, monkeypatch: pytest.MonkeyPatch):
    users = studio.users
    key, row = users.add_token("ben", "laptop", days=1)
    lasting, _ = users.add_token("ben", "server", days=None)
    assert users.by_token(key) == BEN and users.by_token(lasting) == BEN
    assert [users.by_token(text) for text in ("", "tsr_", key + "x", key[:-1], "tsr_" + "x" * 5000)] == [None] * 5
    users.set_role("ben", "viewer")
    assert users.by_token(key) == Actor("ben", "viewer")
    users.disable("ben")
    assert users.by_token(key) is None
    users.disable("ben", False)
    with studio.records.write() as session:
        from storage import models

        session.get(models.ApiToken, row.id).expires = row.created
    assert users.by_token(key) is None and users.by_token(lasting)
    with act_as(Actor("ben", "viewer")):
        for token in users.tokens("ben"):
            users.revoke_token(token.id)
    assert users.by_token(lasting) is None
    again, _ = users.add_token("ben", "laptop")
    users.remove("ben")
    assert users.by_token(again) is None
