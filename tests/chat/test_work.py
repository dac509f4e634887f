"""The compute loop: requests take turns, stop within a token, fail alone."""

import threading

import pytest

from core.chat.engine import ChatEngine
from core.chat.work import Ticket, Work
from core.schema import ModelSpec
from tests.support.adapted import adapter_folder, method

MESSAGES = [{"role": "user", "content": "Say red."}]


@pytest.fixture(scope="module")
def folders(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    return {f"a-{i}": str(adapter_folder(base, root / str(i), method(gate), seed=i)) for i, gate in enumerate(GATES)}


GATES = ("token", "sequence")


@pytest.fixture(scope="module")
def engine(base):
    return ChatEngine(ModelSpec(base=str(base)), "cpu")


class Desk:
    """Runs requests through a ``Work`` in this thread; ``on`` is called with every reply."""

    def __init__(self, engine, on=lambda reply: None):
        self.work, self.engine, self.replies, self.on = Work(), engine, [], on

    def ask(self, number, names=(None,), tokens=6, **more):
        request = {"op": "chat", "id": number, "names": list(names), "messages": MESSAGES, **more}
        request.setdefault("settings", {"max_new_tokens": tokens, "temperature": 0})
        ticket = Ticket(request, self._reply)
        self.work.submit(ticket)
        return ticket

    def run(self):
        self.work.run(self.engine, lambda: True, pause=0.0)
        return self.replies

    def of(self, number):
        return [reply for reply in self.replies if reply["id"] == number]

    def _reply(self, **fields):
        self.replies.append(fields)
        self.on(fields)


def text(replies):
    return "".join(reply.get("text", "") for reply in replies)


def test_answers_take_turns_token_by_token(engine):
    desk = Desk(engine)
    for number in (1, 2, 3):
        desk.ask(number)
    order = [reply["id"] for reply in desk.run() if reply["op"] == "piece"]
    assert order[:6] == [1, 2, 3, 1, 2, 3]
    assert [desk.of(number)[-1]["op"] for number in (1, 2, 3)] == ["done"] * 3
    assert text(desk.of(1)) == text(desk.of(2)) != ""
    assert desk.work.computed == sum(desk.of(n)[-2]["tokens"] for n in (1, 2, 3))


def test_a_stopped_answer_computes_nothing_more_and_the_others_go_on(engine):
    tickets = {}

    def stop_after_two(reply):
        if reply["id"] == 1 and reply.get("tokens") == 2:
            tickets[1].stop.set()

    desk = Desk(engine, stop_after_two)
    tickets = {number: desk.ask(number, tokens=12) for number in (1, 2)}
    desk.run()
    last = desk.of(1)[-2]
    assert (last["ended"], last["tokens"], last["text"]) == ("stopped", 2, "")
    rest = desk.of(2)[-2]["tokens"]
    assert desk.of(2)[-2]["ended"] in ("end", "length") and desk.work.computed == 2 + rest


def test_an_adapter_may_come_while_others_answer_and_changes_nothing(engine, folders):
    alone = Desk(engine)
    alone.ask(1, ["a-1"], tokens=16, adapters={"a-1": folders["a-1"]})
    wanted = text(alone.run())
    late = []

    def one_more(reply):
        if reply.get("tokens") == 3 and not late:
            late.append(desk.ask(2, ["a-0"], adapters={"a-0": folders["a-0"]}))

    desk = Desk(engine, one_more)
    desk.ask(1, ["a-1"], tokens=16, adapters={"a-1": folders["a-1"]})
    desk.work._adapters = alone.work._adapters  # the engine has this one already
    desk.run()
    assert text(desk.of(1)) == wanted
    assert text(desk.of(2)) not in ("", wanted)


def test_one_failure_ends_one_request(engine, monkeypatch):
    desk = Desk(engine)
    desk.ask(1, settings={"temperature": -1})
    desk.ask(2)
    desk.ask(3, ["nobody"])
    desk.work.submit(Ticket({"op": "dance", "id": 4}, desk._reply))
    desk.run()
    assert "temperature" in desk.of(1)[-1]["message"]
    assert desk.of(2)[-1]["op"] == "done"
    assert "No adapter 'nobody' is loaded" in desk.of(3)[-1]["message"]
    assert "is not understood" in desk.of(4)[-1]["message"]
    monkeypatch.setattr(type(engine), "side_by_side", lambda *_: (_ for _ in ()).throw(RuntimeError("odd")))
    desk.ask(5)
    desk.run()
    assert desk.of(5)[-1]["message"] == "RuntimeError: odd"


def test_an_adapter_that_changed_on_disk_is_read_again(engine, base, tmp_path):
    folder = adapter_folder(base, tmp_path / "a", method("token"), seed=5)
    desk = Desk(engine)
    desk.ask(1, ["b"], adapters={"b": str(folder)})
    desk.run()
    adapter_folder(base, folder, method("token"), seed=6)
    desk.ask(2, ["b"], adapters={"b": str(folder)})
    desk.run()
    assert text(desk.of(1)) != text(desk.of(2))
    desk.ask(3, ["b"], adapters={"b": str(tmp_path / "gone")})
    desk.run()
    assert "There is no trained adapter" in desk.of(3)[-1]["message"]


def test_what_waits_is_refused_when_there_is_no_model():
    from core.errors import NotFoundError

    desk = Desk(None)
    desk.ask(1)
    assert desk.work.busy and desk.work.refuse_all(NotFoundError("no base", "Name another."))
    assert desk.replies[0]["class"] == "NotFoundError" and not desk.work.busy


def test_requests_come_from_any_thread(engine):
    desk = Desk(engine)
    threads = [threading.Thread(target=desk.ask, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    desk.run()
    assert {reply["id"] for reply in desk.replies if reply["op"] == "done"} == set(range(8))
