"""What the Chat page makes of the studio's data."""

from datetime import UTC, datetime
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import gradio as gr
import pytest

from app.pages import chat_answers as answers
from app.pages import chat_state as state
from app.pages import chat_views as views
from core.errors import StudioError
from core.studio import Studio

RUNS = [
    {"id": "run-4", "name": "mosld on two tasks", "method": "mosld", "base": "b", "trainable": 737_280},
    {"id": "run-3", "name": "", "method": "lora", "base": "other", "trainable": None},
    {"id": "run-2", "name": "<b>lora</b>", "method": "lora", "base": "b", "trainable": 5},
]


def said(model="run-4", text="red", **more):
    fields = {"id": 7, "model": model, "text": text, "tokens": 4, "seconds": 2.0, "ended": "end", "problem": ""}
    return SimpleNamespace(**fields | {"turn": 7, "hint": ""} | more)


@pytest.fixture
def studio(tmp_path):
    studio = Studio(tmp_path / "home")
    yield studio
    studio.close()


def test_only_runs_of_the_chosen_base_are_offered():
    assert [value for _, value in views.choices(RUNS, [])] == ["base", "run-4", "run-3", "run-2"]
    assert [value for _, value in views.choices(RUNS, ["base", "run-2"])] == ["base", "run-4", "run-2"]
    assert views.choices(RUNS, ["run-3"])[0][0] == "base · other"


def test_the_page_opens_with_the_newest_runs_beside_their_base():
    assert views.first_choice(RUNS) == ["run-4", "run-2", "base"]
    assert views.first_choice([]) == ["base"]


def test_a_pane_holds_the_turns_of_its_model_with_a_way_to_their_routing():
    turns = [
        (SimpleNamespace(text="q1"), [said(), said("base")]),
        (SimpleNamespace(text="q2"), [said("base")]),
    ]
    pane = views.pane("run-4", RUNS[0], turns)
    assert (pane["name"], pane["about"]) == ("run-4 · mosld on two tasks", "mosld · 737.3 k trainable")
    (turn,) = pane["turns"]
    assert (turn["question"], turn["text"], turn["note"]) == ("q1", "red", "4 tokens · 2.0 tokens/s")
    link = urlsplit(turn["link"])
    assert link.path == "/routing" and parse_qs(link.query) == {"run": ["run-4"], "turn": ["7"]}
    fused = views.pane("run-4", RUNS[0] | {"unrouted": "It was fused.", "trainable": 0}, turns)
    assert fused["turns"][0]["link"] == "" and fused["about"] == "mosld"
    base = views.pane("base", None, turns)
    assert len(base["turns"]) == 2 and base["turns"][0]["link"] == ""
    assert views.pane("run-9", None, [])["about"] == "no such run"


def test_an_answer_says_how_it_ended():
    note = {ended: views.kept("q", said(ended=ended))["note"] for ended in ("length", "stopped")}
    assert note["length"].endswith("length limit") and note["stopped"].endswith("stopped")
    failed = views.kept("q", said(text="", tokens=0, ended="failed", problem="No memory.", hint="Ask fewer."))
    assert failed["problem"] == "No memory. Ask fewer." and failed["link"] == "" and not failed["copy"]


def test_a_growing_answer_says_what_is_happening():
    waiting = views.growing("q", None)
    assert (waiting["state"], waiting["note"]) == ("growing", "reading the question")
    now = views.growing("q", said(ended=None, text="\nre", tokens=1, seconds=0.25))
    assert (now["text"], now["note"], now["link"]) == ("re", "1 token · 4.0 tokens/s", "")
    assert views.growing("q", said())["state"] == "end"


def test_the_list_names_each_conversation_and_marks_the_open_one():
    row = {"id": 3, "title": "<i>hi", "models": ["run-4", "base"], "changed": datetime(2026, 5, 4, 9, 5, tzinfo=UTC)}
    page = SimpleNamespace(rows=[SimpleNamespace(**row)], total=45, offset=20)
    value = views.history(page, 3)
    assert value["rows"][0] == {
        "title": "<i>hi",
        "about": "2026-05-04 09:05 · run-4, base",
        "href": "/chat?conversation=3",
        "on": True,
    }
    assert (value["page"], value["pages"], value["total"]) == (2, 3, "45 conversations")


def test_where_answers_are_computed_is_said():
    worker = {"base": "<b>", "device": "cpu", "held": "", "note": "cuda:0 is held by run-1/train", "state": "ready"}
    worker |= {"adapters": ["a", "b"], "active": 1}
    text = views.where([worker], ["cuda:0: run-1", "cuda:1: chat and token inspector on b"])
    assert "&lt;b&gt;" in text and "the CPU (cuda:0 is held by run-1/train)" in text and "2 adapters" in text
    assert "Held by training: cuda:0: run-1" in text and "cuda:1" not in text
    held = views.where([worker | {"device": "cuda", "held": "cuda:0", "note": "", "active": 0}], [])
    assert "on cuda:0" in held and "a training job that waits for it gets it" in held
    assert "being loaded" in views.where([worker | {"state": "loading"}], [])
    assert "No model is in memory" in views.where([], [])


def test_pictures_come_at_a_bounded_rate_and_ends_at_once():
    times = iter(range(100))
    grown = [said("a", ended=None, tokens=n) for n in range(1, 40)] + [said("b", ended=None, tokens=9), said("a")]
    slow = list(answers.frames(grown, clock=lambda: next(times) * 0.01))
    assert len(slow) < 8 and slow[0] == {"a"} and slow[-1] == {"a", "b"}


def test_an_empty_studio_says_what_to_do_and_still_has_the_base(studio):
    told, models, *rest = state.start(studio, {})
    assert told == "" and models["value"] == ["base"]
    (pane,) = [part for part in rest if isinstance(part, dict) and "turns" in part]
    assert "No finished runs" in pane["invite"]["title"] and pane["invite"]["href"] == "/experiment"


def test_an_address_of_things_that_are_gone_is_explained(studio):
    assert "is no finished run" in state.start(studio, {"runs": "run-9,<b>"})[0]
    assert "&lt;b&gt;" in state.start(studio, {"runs": "run-9,<b>"})[0]
    told, *_ = state.start(studio, {"conversation": "12"})
    assert "There is no conversation 12." in told
    assert state.start(studio, {"conversation": "1 or 1", "runs": ",,"})[0] == ""
    assert state.start(studio, {"conversation": "²"})[0] == ""


@pytest.mark.parametrize(
    ("prompt", "models", "words"),
    [("", ["base"], "There is no question"), ("x", [], "0 models cannot talk"), ("x", ["run-9"], "no run")],
)
def test_what_cannot_be_asked_is_said_and_the_question_stays(studio, prompt, models, words):
    askings = {}
    (only,) = answers.answer(studio, askings, "tab", prompt, models, "", 30, dict(state.STANDARD))
    box, told, *others = only
    assert words in told and all(one == gr.skip() for one in (box, *others))
    assert askings == {} and studio.chats.page().total == 0


class Breaking:
    """An asking whose first answer ends, and which then cannot be kept."""

    conversation = 1

    def __init__(self):
        self.answers = {name: said(name, ended=None, tokens=0, text="") for name in ("run-4", "base")}

    def __iter__(self):
        self.answers["run-4"] = said("run-4")
        yield self.answers["run-4"]
        raise StudioError("The disk is full.", "Make room.")

    def close(self):
        self.answers["base"] = said("base", ended="stopped", text="", tokens=0)


def test_while_answers_grow_nothing_else_can_change_the_panes_and_afterwards_all_can(studio, monkeypatch):
    monkeypatch.setattr(studio.chats, "ask", lambda *_, **__: Breaking())
    askings = {}
    stream = answers.answer(studio, askings, "tab", "q", ["run-4", "base"], "", 30, dict(state.STANDARD))
    seen = [dict(zip(answers.PARTS, parts, strict=True)) for parts in stream]
    first, last = seen[0], seen[-1]
    assert [first[name]["interactive"] for name in ("send", "models", "fresh", "halt")] == [False, False, False, True]
    assert first["pane0"]["growing"] and first["pane1"]["growing"] and first["box"] == ""
    assert [last[name]["interactive"] for name in ("send", "models", "fresh", "halt")] == [True, True, True, False]
    assert "The disk is full." in last["told"] and askings == {}
    assert [last[pane]["turns"][-1]["state"] for pane in ("pane0", "pane1")] == ["end", "stopped"]
    assert not last["pane0"]["growing"] and not last["pane1"]["growing"]


def test_numbers_from_the_browser_are_checked():
    assert [state.number(text) for text in ("7", "", None, "-1", "1e3", "9" * 30, 7)] == [7, *[None] * 6]


def test_a_kept_conversation_is_opened_with_its_settings(studio):
    from storage.queries import chats

    with studio.records.write() as session:
        settings = {"temperature": 0.0, "seed": 5, "max_new_tokens": 9, "top_p": 0.5, "task": None}
        talk = chats.start(session, title="q", models=["base"], settings=settings)
        asked = chats.ask(
            session, conversation=talk.id, text="q", models=["base"], system="Be brief.", settings=settings
        )
        chats.answer(session, question=asked.id, model="base", text="a", tokens=1, seconds=1, ended="end")
    told, models, conversation, tokens, temperature, top_p, seed, _, system, *view = state.start(
        studio, {"conversation": str(talk.id)}
    )
    assert (tokens, temperature, top_p, seed, system) == (9, 0.0, 0.5, 5, "Be brief.")
    assert conversation == str(talk.id) and models["value"] == ["base"]
    assert view[views.PANES]["turns"][0]["text"] == "a"
