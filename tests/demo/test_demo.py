"""The demo goes through the real queue, says what it reuses, and draws what it trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.demo import METHODS, RECIPE, run_demo
from core.errors import StudioError
from core.home import Home
from core.schema import RunSpec
from core.studio import Studio
from tests.support.tiny import tiny_base

ROWS = {"train": 12, "validation": 4, "test": 8}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A tiny base, two tasks of a few rows, and the demo's recipe cut to two steps."""
    root = tmp_path_factory.mktemp("demo")
    base = tiny_base(root / "base")
    facts = []
    for task, labels in (("colour", ["red", "green"]), ("answer", ["yes", "no"])):
        for split, count in ROWS.items():
            path = root / "data" / task / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [
                {"task": task, "input": f"{split} {i}", "output": labels[i % 2], "choices": labels}
                for i in range(count)
            ]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        facts.append({"name": task, "instruction": f"Say the {task}.", "kind": "classification", "labels": labels})
    (root / "data" / "tasks.json").write_text(json.dumps(facts))
    spec = RunSpec.from_yaml(RECIPE.read_text("utf-8")).model_dump(mode="json")
    spec["model"]["base"] = str(base)
    spec["train"] |= {"steps": 2, "batch_size": 2, "evaluate_every": 2, "checkpoint_every": 2, "routing_moments": 1}
    recipe = root / "recipe.yaml"
    recipe.write_text(RunSpec.parse(spec).to_yaml())
    return SimpleNamespace(root=root, data=root / "data", recipe=recipe)


@pytest.fixture(scope="module")
def studio(small: SimpleNamespace) -> Iterator[Studio]:
    studio = Studio(small.root / "home")
    yield studio
    studio.dispatcher("stop")
    studio.close()


@pytest.mark.slow
def test_the_demo_trains_compares_draws_and_says_what_it_reuses(studio: Studio, small: SimpleNamespace, tmp_path: Path):
    told: list[str] = []
    options = {"recipe": small.recipe, "data": small.data, "out": tmp_path / "out", "say": told.append}
    first = run_demo(studio, **options)
    assert list(first.runs) == first.trained == list(METHODS)
    assert {row.task for row in first.comparison.rows} == {"colour", "answer"}
    assert set(first.gains) == {f"{method} on {task}" for method in METHODS for task in ("colour", "answer")}
    assert [path.name for path in first.files] == ["routing.html", "routing.png"]
    assert all(path.stat().st_size > 1000 for path in first.files)
    settings = [studio.run(run)["spec"] for run in first.runs.values()]
    assert (
        len({json.dumps({**spec, "name": "", "tags": [], "method": spec["method"]["options"]}) for spec in settings})
        == 1
    )
    text = first.text()
    assert "trainable" in text and "±" in text and "Trained lora, molora, mosld" in text
    for run in first.runs.values():
        assert run in text

    again = run_demo(studio, **options)
    assert again.runs == first.runs and again.trained == []
    assert "Nothing was trained" in again.text()

    new = run_demo(studio, again=True, follow=False, **options)
    assert not set(new.runs.values()) & set(first.runs.values())
    assert "app.py logs" in new.text()
    for run in new.runs.values():
        studio.cancel(run)


def test_the_demo_says_which_run_did_not_finish(small: SimpleNamespace, tmp_path: Path):
    """The studio's answers are enough here: a run that failed is not worth training one that fails."""
    failing = SimpleNamespace(
        home=Home.open(tmp_path),
        upload=lambda *_, **__: {"id": "x"},
        read_spec=lambda *_, **__: [RunSpec.from_yaml(small.recipe.read_text())],
        runs=lambda **_: [],
        submit=lambda spec: "run-1",
        run=lambda run: {"state": "failed"},
    )
    with pytest.raises(StudioError, match="run-1") as caught:
        run_demo(failing, say=lambda line: None, data=small.data, recipe=small.recipe)
    assert "logs run-1" in caught.value.hint
