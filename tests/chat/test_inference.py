"""The inference worker as a real process: started on demand, shared, stopped, killed, gone when nobody needs it."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

from core.chat.client import replies
from core.chat.lines import Connection, private_socket
from core.chats import Chats
from core.errors import ConfigurationError, NotFoundError, StudioError
from core.home import PROJECT, Home
from core.jobs.devices import Device
from core.jobs.processes import identify
from core.jobs.service import register_web
from core.schema import ModelSpec
from core.studio import Studio
from tests.support.talkers import spec, talker

SHORT = {"max_new_tokens": 6, "temperature": 0}


@pytest.fixture
def inference(studio):
    return studio.chats.inference


def last(answers):
    return {answer.model: answer for answer in answers}


def worker(inference):
    (found,) = inference.workers()
    return found


def until(check, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"waited {seconds} s"
        time.sleep(0.05)
    return found


def test_models_answer_from_one_process_and_what_they_say_is_kept(studio, inference):
    asking = studio.chats.ask(["run-1", "run-2", "base"], "Say red.", task="colours", **SHORT)
    answers = last(asking)
    assert set(answers) == {"run-1", "run-2", "base"}
    assert len({answer.text for answer in answers.values()}) == 3
    assert {answer.ended for answer in answers.values()} <= {"end", "length"}
    first = worker(inference)
    assert first["adapters"] == ["run-1", "run-2"] and first["device"] == "cpu"
    again = last(studio.chats.ask(["run-1", "base"], "Say blue.", conversation=asking.conversation, **SHORT))
    assert again["run-1"].prompt_tokens > answers["run-1"].prompt_tokens
    assert worker(inference)["pid"] == first["pid"]
    turns = studio.chats.turns(asking.conversation)
    assert [question.text for question, _ in turns] == ["Say red.", "Say blue."]
    assert {a.model: a.text for a in turns[0][1]} == {name: a.text for name, a in answers.items()}
    assert studio.chats.conversation(asking.conversation).models == ["run-1", "base"]
    kept = studio.chats.turn(again["run-1"].turn)
    assert [m["role"] for m in kept["messages"]] == ["user", "assistant", "user"]
    assert kept["messages"][1]["content"] == answers["run-1"].text


def test_the_routing_of_an_answer_and_of_a_text(studio):
    answer = last(studio.chats.ask(["run-2"], "Say red.", system="Be brief.", task="echo", **SHORT))["run-2"]
    found = studio.chats.trace_turn(answer.turn)
    assert found.answer == answer.text and found.task == "echo" and "Be brief." in found.text
    direct = studio.trace("run-1", "Say red.", generate=4)
    assert direct.run == "run-1" and "answer" in direct.roles and direct.weights.shape[1] == len(direct.tokens)
    assert studio.trace("run-1", "Say red.", raw=True).text.endswith("Say red.")
    with pytest.raises(ConfigurationError, match="no gates"):
        studio.trace("base", "x")
    with pytest.raises(ConfigurationError, match="no text"):
        studio.trace("run-1", " ")
    base = last(studio.chats.ask(["run-5"], "Say red.", **SHORT))["run-5"]
    with pytest.raises(ConfigurationError, match="no gates"):
        studio.chats.trace_turn(base.turn)
    with pytest.raises(NotFoundError, match="is a question"):
        studio.chats.turn(base.turn - 1)


def test_a_stopped_answer_stops_computing_and_the_others_go_on(studio, inference):
    asking = studio.chats.ask(["run-1", "base"], "Tell.", max_new_tokens=300, temperature=1.5, top_p=1.0, seed=1)
    for answer in asking:
        if answer.model == "run-1" and answer.tokens == 3:
            studio.chats.stop(asking.id, "run-1")
        if answer.model == "base" and answer.tokens == 30:
            studio.chats.stop(asking.id)
    assert {name: answer.ended for name, answer in asking.answers.items()} == {"run-1": "stopped", "base": "stopped"}
    assert asking.answers["run-1"].tokens <= 20 < asking.answers["base"].tokens
    counted = worker(inference)["computed"]
    time.sleep(0.4)
    assert worker(inference)["computed"] == counted and worker(inference)["active"] == 0
    turns = studio.chats.turns(asking.conversation)
    assert {answer.model: answer.ended for answer in turns[0][1]} == {"run-1": "stopped", "base": "stopped"}


def test_a_reader_that_leaves_stops_the_answer_and_keeps_what_was_said(studio, inference):
    asking = studio.chats.ask(["run-5"], "Tell.", max_new_tokens=400, temperature=1.5, top_p=1.0)
    stream = iter(asking)
    while next(stream).tokens < 3:
        pass
    stream.close()
    until(lambda: worker(inference)["active"] == 0)
    counted = worker(inference)["computed"]
    time.sleep(0.3)
    assert worker(inference)["computed"] == counted
    ((_, (kept,)),) = studio.chats.turns(asking.conversation)
    assert kept.ended == "stopped" and kept.text


def test_one_model_that_fails_shows_its_problem_and_the_other_answers(studio):
    adapter = studio.home.run("run-1").adapter / "adapter_config.json"
    hidden = adapter.rename(adapter.with_name("hidden"))
    try:
        answers = last(studio.chats.ask(["run-1", "base"], "Say red.", **SHORT))
    finally:
        hidden.rename(adapter)
    assert answers["run-1"].ended == "failed" and "no trained adapter" in answers["run-1"].problem
    assert answers["base"].ended in ("end", "length")


def test_a_killed_worker_is_noticed_and_the_next_question_starts_another(studio, inference):
    asking = studio.chats.ask(["run-5"], "Tell.", max_new_tokens=400, temperature=1.5, top_p=1.0)
    stream = iter(asking)
    next(stream)
    pid = worker(inference)["pid"]
    os.kill(pid, signal.SIGKILL)
    answer = list(stream)[-1]
    assert answer.ended == "failed" and "ended before it answered" in answer.problem
    assert last(studio.chats.ask(["run-5"], "Say red.", **SHORT))["run-5"].ended in ("end", "length")
    assert worker(inference)["pid"] != pid


def test_a_worker_that_is_asked_to_end_finishes_its_answer_and_leaves_the_place(studio, inference):
    asking, pids = studio.chats.ask(["run-5"], "Tell.", max_new_tokens=120, temperature=1.5, top_p=1.0), []
    for answer in asking:
        if not pids:
            pids.append(worker(inference)["pid"])
            os.kill(pids[0], signal.SIGTERM)
        if answer.tokens == 40 and len(pids) == 1:
            until(lambda: not inference.workers())
            last(studio.chats.ask(["run-5"], "Say red.", **SHORT))
            pids.append(worker(inference)["pid"])
    assert answer.ended in ("end", "length") and pids[0] != pids[1]


def test_the_socket_is_private_also_where_the_path_is_long(studio, inference, tmp_path):
    last(studio.chats.ask(["run-5"], "Say red.", **SHORT))
    (facts,) = studio.home.inference.glob("*/worker.json")
    path = json.loads(facts.read_text())["socket"]
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    listener, path = private_socket(tmp_path / ("long-" * 22))
    assert len(os.fsencode(path)) < 108 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    listener.close()
    path.unlink()
    path.parent.rmdir()


def test_nonsense_is_answered(studio, inference):
    with inference.connect(ModelSpec(**spec_model(studio))) as connection:
        connection._socket.sendall(b"{\n[1]\n")
        assert "one JSON object a line" in connection.receive()["message"]
        connection.receive()
        connection.send(op="dance", id=3)
        assert "not understood" in connection.receive()["message"]


def spec_model(studio):
    return studio.run("run-1")["spec"]["model"]


def test_what_cannot_be_asked_is_refused_before_anything_starts(studio):
    for models, words in (
        (["run-1", "run-3"], "one base at a time"),
        (["run-4"], "has no trained adapter"),
        (["run-1", "run-1"], "named twice"),
        ([], "cannot talk at once"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            studio.chats.ask(models, "Say red.")
    with pytest.raises(NotFoundError, match="no run"):
        studio.chats.ask(["run-99"], "Say red.")
    with pytest.raises(ConfigurationError, match="no question"):
        studio.chats.ask(["base"], "  ")
    with pytest.raises(ConfigurationError, match="temperature"):
        studio.chats.ask(["base"], "x", temperature=9)
    with pytest.raises(NotFoundError, match="no conversation"):
        studio.chats.ask(["run-1"], "x", conversation=9999)


def test_exports_hold_every_word(studio):
    asking = studio.chats.ask(["run-1", "base"], "Say ```red```.", **SHORT)
    answers = last(asking)
    lines = [json.loads(line) for line in studio.chats.export(asking.conversation, "jsonl").splitlines()]
    assert lines[0]["question"] == "Say ```red```." and lines[0]["settings"]["temperature"] == 0
    assert {a["model"]: a["text"] for a in lines[0]["answers"]} == {n: a.text for n, a in answers.items()}
    markdown = studio.chats.export(asking.conversation, "md")
    assert "> Say ```red```." in markdown and answers["base"].text in markdown
    with pytest.raises(ConfigurationError, match="not a kind"):
        studio.chats.export(asking.conversation, "exe")
    studio.chats.delete(asking.conversation)
    with pytest.raises(NotFoundError):
        studio.chats.turns(asking.conversation) or studio.chats.conversation(asking.conversation)


def test_a_base_that_is_not_there_is_said(home):
    studio = Studio(home.root)
    missing = ModelSpec(base=str(home.root / "nothing"))
    with pytest.raises(StudioError, match="does not exist"):
        list(replies(lambda: studio.chats.inference.connect(missing), {"op": "load", "id": 1, "adapters": {}}))
    until(lambda: studio.chats.inference.workers() == [])
    studio.close()


def test_a_conversation_of_a_command_leaves_no_process_behind(home, base):
    studio = Studio(home.root)
    talker(studio, spec(base, method={"name": "base"}), name="plain")
    with studio.chat(["plain"]) as conversation:
        (answer,) = conversation.ask("Say red.", max_new_tokens=4, temperature=0)
        assert answer.tokens <= 4 and len(studio.chats.inference.workers()) == 1
    until(lambda: not studio.chats.inference.workers())
    with register_web(home), studio.chat(["plain"]) as conversation:
        conversation.ask("Say red.", max_new_tokens=4, temperature=0)
        conversation.close()
        assert len(studio.chats.inference.workers()) == 1, "the web process still needs it"
    assert studio.chats.inference.stop() == 1
    studio.close()


def test_idle_workers_leave_and_so_do_those_whose_home_is_gone(home, base, monkeypatch):
    import shutil

    monkeypatch.setenv("TESSERA_INFERENCE_IDLE", "1")
    model = ModelSpec(base=str(base))
    inference = Studio(home.root).chats.inference
    with register_web(home):
        with inference.connect(model) as connection:
            pid = connection.hello["pid"]
        until(lambda: not inference.workers())
    monkeypatch.setenv("TESSERA_INFERENCE_IDLE", "600")
    with inference.connect(model) as connection:
        pid = connection.hello["pid"]
        connection.send(op="load", id=1, adapters={})
        assert connection.receive()["op"] == "done"
    shutil.rmtree(home.inference)
    until(lambda: identify(pid) is None)


def test_two_that_start_at_once_get_one_worker(home, base):
    inference, pids = Studio(home.root).chats.inference, []

    def start():
        with inference.connect(ModelSpec(base=str(base))) as connection:
            pids.append(connection.hello["pid"])

    threads = [threading.Thread(target=start) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(pids) == 4 and len(set(pids)) == 1
    assert inference.stop() == 1


class Devices:
    """``_place`` alone: which device a worker would get."""

    def __init__(self, home, monkeypatch, gpus):
        self.studio = Studio(home.root)
        monkeypatch.setattr("core.jobs.holds.list_devices", lambda: [*gpus, Device("cpu", "CPU", visible="")])

    def place(self, device="auto"):
        return self.studio.chats.inference._place(ModelSpec(), device)


def test_a_free_gpu_is_taken_and_one_in_use_is_left(home, monkeypatch):
    from storage.queries import attempts, holds, jobs, runs

    devices = Devices(home, monkeypatch, [Device("cuda:0", "A", visible="0"), Device("cuda:1", "B", visible="1")])
    with devices.studio.records.write() as session:
        run, _ = runs.add(session, spec=spec("b"), name="r")
        job = jobs.add(session, run=run.id, kind="train")
        attempts.begin(session, job=job.id, token="t", device="cuda:0", share=1.0, host="h")
    assert devices.place("cpu").device == "cpu" and devices.place("cpu").held == ""
    place = devices.place()
    assert (place.device, place.visible, place.held) == ("cuda", "1", "cuda:1")
    second = devices.place()
    assert second.device == "cpu" and second.visible == ""
    assert "cuda:0 is held by run-1/train" in second.note and "cuda:1 is held by chat" in second.note
    with pytest.raises(ConfigurationError, match="cuda:0 is held by run-1/train"):
        devices.place("cuda:0")
    with pytest.raises(ConfigurationError, match="has no cuda:7"):
        devices.place("cuda:7")
    with devices.studio.records.read() as session:
        assert [hold.device for hold in holds.every(session)] == ["cuda:1"]


def test_asking_loads_no_torch_here():
    code = "import sys, core.chats, core.inference, core.chat.trace; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0


def test_the_worker_is_not_reached_through_a_stale_file(home):
    folder = home.inference / "x"
    folder.mkdir(parents=True)
    (folder / "worker.json").write_text('{"socket": "/nowhere"}')
    assert Chats(home, None).inference.workers() == []
    with pytest.raises(OSError):
        Connection("/nowhere")
    assert isinstance(home, Home)
