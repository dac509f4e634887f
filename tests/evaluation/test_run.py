"""A run's scores: which events and files, that they repeat, and that the base is scored once for all runs."""

import json

import pytest

from core.data.canonical import to_table
from core.data.describe import describe
from core.data.store import DatasetInfo, DatasetStore
from core.errors import ConfigurationError, DataError, NotFoundError
from core.evaluation import run as scoring
from core.evaluation.predictions import read_predictions
from core.evaluation.run import score
from core.evaluation.statistics import compare
from core.home import Home
from core.jobs.sinks import Cancelled, ListSink
from core.schema import RunSpec, TaskSpec
from tests.support.adapted import adapter_folder, method
from tests.support.tiny import tiny_base

COLOURS = ["red", "green", "blue"]
OPTION_METRICS = ["accuracy", "accuracy_sum", "accuracy_mean"]


def rows(split):
    numbers = range({"train": 12, "test": 9}[split])
    return {
        "colours": [
            {
                "instruction": "Name it.",
                "input": f"{split} {i}",
                "output": "green" if i % 3 else "red",
                "choices": COLOURS,
            }
            for i in numbers
        ],
        "facts": [
            {
                "input": f"{split} question {i}?",
                "output": f"yes {i}",
                "choices": [f"no {i}", f"yes {i}", "so"][: 2 + i % 2],
            }
            for i in numbers
        ],
        "grammar": [
            {"input": "order", "output": f"he is {i}.", "choices": [f"he is {i}.", f"is he {i}."]} for i in numbers
        ],
        "echo": [{"input": f"{split} {i}", "output": f"{split} {i}", "references": [f"{i}"]} for i in numbers],
    }


KINDS = {"colours": "classification", "facts": "choice", "grammar": "sentence", "echo": "generation"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return adapter_folder(base, tmp_path_factory.mktemp("adapter"), method("token"), tasks=list(KINDS))


@pytest.fixture
def home(tmp_path):
    return Home.open(tmp_path / "home")


@pytest.fixture
def store(home):
    splits = {split: rows(split) for split in ("train", "test")}
    tasks = {}
    for name, kind in KINDS.items():
        tables = {split: to_table(own[name]) for split, own in splits.items()}
        tasks[name] = describe(name, tables, kind=kind, metric="bleu, exact match" if kind == "generation" else "")
    store = DatasetStore(home.datasets)
    store.add(DatasetInfo(name="small", tasks=tasks), splits)
    return store


@pytest.fixture
def spec(base):
    return RunSpec.parse(
        {
            "model": {"base": str(base)},
            "tasks": [{"dataset": "small", "max_new_tokens": 8}],
            "method": {"name": "mosld"},
            "train": {"max_length": 128},
            "device": "cpu",
        }
    )


def folder(home, adapter, name="run-1"):
    run = home.run(name).create()
    run.adapter.symlink_to(adapter)
    return run


def test_every_task_is_scored_by_all_its_metrics_for_adapter_and_base(home, store, spec, adapter):
    run, sink = folder(home, adapter), ListSink()
    score(spec, run, store, sink, device="cpu")
    found = {(e["task"], e["model"], e["metric"]): e for e in sink.of("score")}
    expected = {"colours": ["macro_f1", *OPTION_METRICS], "facts": OPTION_METRICS, "grammar": OPTION_METRICS}
    expected["echo"] = ["bleu", "exact_match", "token_f1", "rouge_l"]
    assert set(found) == {
        (t, m, metric) for t, names in expected.items() for metric in names for m in ("adapter", "base")
    }
    assert len(sink.of("score")) == len(found)
    assert {key[:2] for key, event in found.items() if event["primary"]} == {key[:2] for key in found}
    dataset = store.find("small").id
    for event in found.values():
        assert event["dataset"] == dataset and event["split"] == "test" and event["rows"] == 9
        assert 0 <= event["value"] <= 1 and event["stderr"] >= 0
        assert (run.predictions / event["predictions"]).is_file()
    assert found["colours", "base", "accuracy"]["chance"] == pytest.approx(1 / 3)
    assert found["colours", "base", "accuracy"]["trivial"] == pytest.approx(6 / 9)
    assert found["colours", "base", "macro_f1"]["trivial"] == pytest.approx(2 * 6 / (6 + 9) / 2)
    assert found["facts", "base", "accuracy"]["chance"] == pytest.approx((5 / 2 + 4 / 3) / 9)
    assert found["echo", "adapter", "exact_match"]["chance"] == 0
    assert found["echo", "adapter", "exact_match"]["copy"] == 1
    progress = [event for event in sink.of("progress") if event["phase"] == "scoring"]
    assert progress[-1]["step"] == progress[-1]["total"] == 2 * 4 * 9 and progress[-1]["seconds_left"] == 0


def test_predictions_keep_what_was_asked_answered_and_wanted(home, store, spec, adapter):
    run, sink = folder(home, adapter), ListSink()
    score(spec, run, store, sink, device="cpu", models=("adapter",))
    by_task = {event["task"]: event for event in sink.of("score")}
    lines = [json.loads(line) for line in (run.predictions / by_task["colours"]["predictions"]).open(encoding="utf-8")]
    assert [line["row"] for line in lines] == list(range(9))
    assert lines[3]["input"] == "test 3" and lines[3]["instruction"] == "Name it." and lines[3]["options"] == COLOURS
    for line in lines:
        assert line["prediction"] == COLOURS[max(range(3), key=line["sums"].__getitem__)]
        assert line["values"]["accuracy"] == float(line["prediction"] == line["target"])
    for event in sink.of("score"):
        if event["metric"] not in ("macro_f1", "bleu"):
            values = read_predictions(run.predictions / event["predictions"]).values[event["metric"]]
            assert event["value"] == pytest.approx(sum(values) / 9)
    echo = read_predictions(run.predictions / by_task["echo"]["predictions"])
    assert echo.answers[2].references == ("test 2", "2")


def test_the_length_normalised_score_chooses_by_the_mean(home, store, spec, adapter):
    sums, means = ListSink(), ListSink()
    for sink, option_score in ((sums, "sum"), (means, "mean")):
        task = TaskSpec(dataset="small", task="facts", option_score=option_score)
        run = folder(home, adapter, f"run-{option_score}")
        score(spec, run, store, sink, tasks=[task], models=("base",), device="cpu")
    first, second = ({e["metric"]: e["value"] for e in sink.of("score")} for sink in (sums, means))
    assert first["accuracy"] == first["accuracy_sum"] == second["accuracy_sum"]
    assert second["accuracy"] == second["accuracy_mean"] == first["accuracy_mean"]
    assert sums.of("score")[0]["key"] != means.of("score")[0]["key"]


def test_scoring_again_gives_the_same_and_asks_the_base_only_once(home, store, spec, adapter, monkeypatch):
    first, again = ListSink(), ListSink()
    score(spec, folder(home, adapter), store, first, device="cpu")
    asked = []
    answer = scoring.answer
    monkeypatch.setattr(scoring, "answer", lambda view, *a, **k: asked.append(view.adapter) or answer(view, *a, **k))
    other = folder(home, adapter, "run-2")
    score(spec, other, store, again, device="cpu")
    assert first.of("score") and _plain(first) == _plain(again)
    assert asked == [True] * 4
    for event in again.of("score"):
        assert (other.predictions / event["predictions"]).is_file()


def _plain(sink):
    return [{name: value for name, value in event.items() if name != "seq"} for event in sink.of("score")]


def test_adapter_and_base_are_paired_and_other_prompts_are_not(home, store, spec, adapter):
    run, sink = folder(home, adapter), ListSink()
    tasks = [TaskSpec(dataset="small", task="colours")]
    score(spec, run, store, sink, tasks=tasks, device="cpu")
    ours, base = (
        read_predictions(run.predictions / next(e for e in sink.of("score") if e["model"] == model)["predictions"])
        for model in ("adapter", "base")
    )
    values = {e["model"]: e["value"] for e in sink.of("score") if e["metric"] == "accuracy"}
    assert compare(ours, base, "accuracy").value == pytest.approx(values["adapter"] - values["base"])
    asked = ListSink()
    score(spec, run, store, asked, tasks=[tasks[0].model_copy(update={"instruction": "Which colour?"})], device="cpu")
    # the rows of this task bring an instruction of their own, so only the key tells the two apart
    assert asked.of("score")[0]["key"] != sink.of("score")[0]["key"]


def test_other_rows_are_scored_as_a_job_of_their_own(home, store, spec, adapter):
    unseen = [{"input": f"q{i}", "output": "up", "choices": ["up", "down"]} for i in range(4)]
    store.add(DatasetInfo(name="unseen"), {"validation": {"direction": unseen}})
    sink, run = ListSink(), folder(home, adapter)
    score(
        spec,
        run,
        store,
        sink,
        tasks=[TaskSpec(dataset="unseen")],
        split="validation",
        models=("adapter",),
        device="cpu",
    )
    (event, *_) = sink.of("score")
    assert event["task"] == "direction" and event["split"] == "validation" and event["rows"] == 4
    assert not any(e["model"] == "base" for e in sink.of("score"))


def test_a_task_gate_refuses_a_task_it_was_not_trained_on(home, store, spec, base, tmp_path):
    run = folder(home, adapter_folder(base, tmp_path / "gated", method("task"), tasks=["colours"]))
    sink = ListSink()
    score(spec, run, store, sink, tasks=[TaskSpec(dataset="small", task="colours")], device="cpu")
    assert sink.of("score")
    with pytest.raises(ConfigurationError, match="was not trained on facts"):
        score(spec, run, store, sink, tasks=[TaskSpec(dataset="small", task="facts")], device="cpu")


def test_long_prompts_and_impossible_rows_are_said(home, store, spec, adapter):
    wild = [{"input": "many words " * 60, "output": "blue", "choices": ["red", "green"]}] * 3
    store.add(DatasetInfo(name="wild"), {"test": {"wild": wild}})
    sink = ListSink()
    score(spec, folder(home, adapter), store, sink, tasks=[TaskSpec(dataset="wild")], models=("base",), device="cpu")
    messages = [event["message"] for event in sink.of("log")]
    assert any("3 prompts are longer than 128 tokens" in message for message in messages)
    assert any("in 3 rows the right answer is not among the choices" in message for message in messages)
    assert sink.of("score")[0]["value"] == 0


def test_refusals_name_the_remedy(home, store, spec, adapter):
    with pytest.raises(DataError, match="None of the tasks has validation rows"):
        score(spec, folder(home, adapter), store, ListSink(), split="validation", models=("base",), device="cpu")
    with pytest.raises(NotFoundError, match="has no adapter"):
        score(spec, home.run("bare").create(), store, ListSink(), device="cpu")


def test_a_cancelled_job_stops(home, store, spec, adapter):
    sink = ListSink()
    sink.stop = True
    with pytest.raises(Cancelled):
        score(spec, folder(home, adapter), store, sink, device="cpu")
    assert not sink.of("score")
