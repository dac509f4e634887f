"""The chat process and the conversation over it, with real children."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from core.chat.client import ChatProcess
from core.chat.conversation import open_conversation
from core.chat.settings import Sampling
from core.errors import ConfigurationError, StudioError
from core.home import PROJECT, Home
from core.schema import ModelSpec
from tests.support.adapted import adapter_folder, method
from tests.support.tiny import tiny_base

MESSAGES = [{"role": "user", "content": "Say red."}]
SHORT = Sampling(max_new_tokens=6, temperature=0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def home(base, tmp_path_factory):
    home = Home.open(tmp_path_factory.mktemp("home"))
    for number, gate in enumerate(("token", "sequence")):
        adapter_folder(base, home.run(f"run-{number}").create().adapter, method(gate), seed=number)
    return home


@pytest.fixture(scope="module")
def process(base):
    with ChatProcess(ModelSpec(base=str(base)), "cpu") as process:
        yield process


def row(base, number, **spec):
    return SimpleNamespace(
        id=f"run-{number}",
        spec={"model": {"base": str(base)}, "tasks": [{"dataset": "d"}], "method": {"name": "split"}} | spec,
    )


def text(pieces, name):
    return "".join(piece["text"] for piece in pieces if piece["name"] == name)


def test_an_adapter_is_loaded_answers_and_is_dropped(process, home):
    process.load("one", home.run("run-0").adapter)
    pieces = list(process.chat(["one", None], MESSAGES, SHORT))
    assert text(pieces, "one") != text(pieces, None)
    ends = {piece["name"]: piece["ended"] for piece in pieces if piece["ended"]}
    assert ends.keys() == {"one", None} and set(ends.values()) <= {"end", "length"}
    assert text(process.chat(["one"], MESSAGES, SHORT), "one") == text(pieces, "one")
    process.unload("one")
    with pytest.raises(StudioError, match="No adapter 'one' is loaded"):
        list(process.chat(["one"], MESSAGES, SHORT))


def test_leaving_the_loop_stops_the_answer_and_the_next_one_is_its_own(process):
    for piece in process.chat([None], MESSAGES, Sampling(max_new_tokens=450, temperature=0)):
        if piece["tokens"] == 2:
            break
    pieces = list(process.chat([None], MESSAGES, SHORT))
    assert pieces[0]["tokens"] == 1 and pieces[-1]["tokens"] <= 6


def test_requests_that_make_no_sense_are_answered(base):
    lines = [
        "{",
        json.dumps({"op": "dance"}),
        json.dumps({"op": "chat", "names": [], "messages": [], "settings": {"x": 1}}),
    ]
    spec = ModelSpec(base=str(base)).model_dump_json()
    child = subprocess.run(
        [sys.executable, "-m", "core.chat.serve", spec, "--device", "cpu"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        cwd=PROJECT,
        timeout=120,
    )
    replies = [json.loads(line) for line in child.stdout.splitlines()]
    assert child.returncode == 0
    assert [reply["op"] for reply in replies] == ["ready", "error", "error", "error"]
    assert {reply["message"].split(":")[0] for reply in replies[1:]} >= {"A request is one JSON object a line"}
    assert any("x is not a setting" in reply["message"] for reply in replies[1:])


def test_a_base_that_is_not_there_is_said_by_the_starter(tmp_path):
    with pytest.raises(StudioError, match="does not exist"):
        ChatProcess(ModelSpec(base=str(tmp_path / "nothing")), "cpu")


def test_a_killed_process_is_noticed(base):
    with ChatProcess(ModelSpec(base=str(base)), "cpu") as process:
        os.kill(process._child.pid, signal.SIGKILL)
        with pytest.raises(StudioError, match="The chat process ended"):
            list(process.chat([None], MESSAGES, SHORT))


def test_runs_talk_side_by_side_and_remember_their_own_words(base, home):
    runs = {"first": row(base, 0), "second": row(base, 1), "base": None}
    with open_conversation(home, runs, "cpu") as conversation:
        answers = conversation.ask("Say red.", max_new_tokens=6, temperature=0)
        assert [answer.model for answer in answers] == ["first", "second", "base"]
        assert len({answer.text for answer in answers}) == 3
        assert all(answer.tokens <= 6 and "tokens in" in answer.figures() for answer in answers)
        again = conversation.ask("Say red.", max_new_tokens=6, temperature=0)
        assert all(new.prompt_tokens > old.prompt_tokens for old, new in zip(answers, again, strict=True))
    with open_conversation(home, {"second": row(base, 1)}, "cpu") as conversation:
        alone = [conversation.ask("Say red.", max_new_tokens=6, temperature=0)[0].text for _ in range(2)]
    assert alone == [answers[1].text, again[1].text]


def test_runs_that_cannot_share_a_base_are_refused(base, home, tmp_path):
    with pytest.raises(ConfigurationError, match="one base at a time"):
        open_conversation(home, {"a": row(base, 0), "b": row(tmp_path, 1)}, "cpu")
    with pytest.raises(ConfigurationError, match="has no trained adapter"):
        open_conversation(home, {"c": row(base, 7)}, "cpu")
    with pytest.raises(ConfigurationError, match="named twice"):
        open_conversation(home, {"a": row(base, 0), "b": row(base, 0)}, "cpu")
    with pytest.raises(ConfigurationError, match="one to 4"):
        open_conversation(home, {}, "cpu")


def test_talking_loads_no_torch_here():
    code = "import sys, core.chat.conversation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0
