"""The compute loop: requests take turns, stop within a token, fail alone."""

import threading

import pytest
import torch

from core.chat.engine import ChatEngine
from core.chat.work import Ticket, Work
from core.evaluation.decode import Decoding
from core.schema import MethodSpec, ModelSpec
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


def test_a_request_is_over_once_though_all_its_answers_end_with_the_same_token(engine):
    desk = Desk(engine)
    for number, tokens in ((1, 1), (2, 3)):
        desk.ask(number, [None, None], tokens=tokens)
        desk.ask(number + 2, [None], tokens=8)
    desk.run()
    for number in (1, 2):
        ops = [reply["op"] for reply in desk.of(number)]
        assert ops == ["piece"] * (len(ops) - 1) + ["done"]
        assert [reply.get("ended") for reply in desk.of(number)[-3:-1]] in (["length"] * 2, ["end"] * 2)
    assert not desk.work.active


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
    monkeypatch.setattr(type(engine), "prompt", lambda *_: (_ for _ in ()).throw(RuntimeError("odd")))
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


METHODS = {"mosld": MethodSpec(name="mosld"), "lora": MethodSpec(name="lora"), "task": method("task")}
LONG = "A long text, line after line. " * 12
PANES = (("m-mosld", "Say red."), ("m-lora", LONG), ("m-task", "Grüße, 漢字 🙂!"), (None, "Say blue."))


@pytest.fixture(scope="module")
def panes(base, tmp_path_factory):
    """Four panes of different methods with different questions: number -> the request's names and more."""
    root = tmp_path_factory.mktemp("panes")
    found = {}
    for number, (name, question) in enumerate(PANES, 1):
        more = {"messages": [{"role": "user", "content": question}]}
        more["settings"] = {"max_new_tokens": 20, "temperature": 0, "task": "echo" if name == "m-task" else None}
        if name is not None:
            spec = METHODS[name.removeprefix("m-")]
            more["adapters"] = {name: str(adapter_folder(base, root / name, spec, seed=number + 4))}
        found[number] = {"names": [name], **more}
    return found


@pytest.fixture(scope="module")
def pane_engine(base):
    return ChatEngine(ModelSpec(base=str(base)), "cpu")


@pytest.fixture(scope="module")
def alone(pane_engine, panes):
    """What each pane says when nobody else asks."""
    texts, known = {}, {}
    for number, pane in panes.items():
        desk = Desk(pane_engine)
        desk.work._adapters = known
        desk.ask(number, **pane)
        texts[number] = text(desk.run())
        known = desk.work._adapters
    assert len(set(texts.values())) == len(panes) and all(len(said) > 10 for said in texts.values())
    return texts, known


def desk_of(pane_engine, alone, on=lambda reply: None):
    desk = Desk(pane_engine, on)
    desk.work._adapters = alone[1]
    return desk


def test_panes_of_different_methods_are_one_batch_and_say_what_each_says_alone(pane_engine, panes, alone, monkeypatch):
    sizes, push = [], Decoding.push
    monkeypatch.setattr(Decoding, "push", lambda self, tokens: sizes.append(len(tokens)) or push(self, tokens))
    desk = desk_of(pane_engine, alone)
    for number, pane in panes.items():
        desk.ask(number, **pane)
    desk.run()
    assert {number: text(desk.of(number)) for number in panes} == alone[0]
    assert sizes[0] == 4 and len(sizes) < 20, "one pass for a token of all"


def test_a_pane_that_is_stopped_and_one_that_joins_change_no_other(pane_engine, panes, alone):
    tickets = {}

    def on(reply):
        if reply["id"] == 1 and reply.get("tokens") == 4:
            tickets[1].stop.set()
        if reply["id"] == 2 and reply.get("tokens") == 7:
            for number in (3, 4):
                tickets[number] = desk.ask(number, **panes[number])

    desk = desk_of(pane_engine, alone, on)
    tickets |= {number: desk.ask(number, **panes[number]) for number in (1, 2)}
    desk.run()
    last = desk.of(1)[-2]
    assert (last["ended"], last["tokens"]) == ("stopped", 4) and alone[0][1].startswith(text(desk.of(1)))
    assert {number: text(desk.of(number)) for number in (2, 3, 4)} == {n: alone[0][n] for n in (2, 3, 4)}


def test_one_pane_that_fails_leaves_the_others(pane_engine, panes, alone, monkeypatch):
    desk = desk_of(pane_engine, alone)
    without_task = {**panes[3], "settings": {"max_new_tokens": 5, "temperature": 0}}
    for number, pane in (panes | {3: without_task}).items():
        desk.ask(number, **pane)
    desk.run()
    assert "none of its tasks was chosen" in desk.of(3)[-1]["message"]
    assert {number: text(desk.of(number)) for number in (1, 2, 4)} == {n: alone[0][n] for n in (1, 2, 4)}

    prompt = ChatEngine.prompt

    def odd(self, messages, new_tokens):
        if LONG in str(messages):
            raise ValueError("odd")
        return prompt(self, messages, new_tokens)

    monkeypatch.setattr(ChatEngine, "prompt", odd)
    desk = desk_of(pane_engine, alone)
    for number, pane in panes.items():
        desk.ask(number, **pane)
    desk.run()
    assert desk.of(2)[-1]["message"] == "ValueError: odd"
    assert {number: text(desk.of(number)) for number in (1, 3, 4)} == {n: alone[0][n] for n in (1, 3, 4)}


def test_a_pass_that_fails_ends_what_grows_and_the_next_question_is_answered(pane_engine, panes, alone, monkeypatch):
    def fail(self, tokens):
        raise torch.OutOfMemoryError("full")

    desk = desk_of(pane_engine, alone)
    with monkeypatch.context() as patch:
        patch.setattr(Decoding, "push", fail)
        desk.ask(1, **panes[1])
        desk.ask(4, **panes[4])
        desk.run()
    assert all("device's memory" in desk.of(number)[-1]["message"] for number in (1, 4))
    desk.ask(1, **panes[1])
    assert text(desk.run()[-30:]).endswith(alone[0][1]) and not desk.work.active
