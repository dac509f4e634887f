from __future__ import annotations

import csv
import io
import statistics
from dataclasses import replace

import pytest

from core.compare import BASE, Column, build
from core.errors import ConfigurationError, NotFoundError
from core.evaluation import metrics
from core.evaluation import statistics as statistics_of
from core.evaluation.predictions import Answer, Predictions
from storage.queries.scores import ScoreRow
from storage.types import now

RIGHT = {  # run -> which of eight rows are answered rightly
    "run-1": (1, 1, 1, 1, 0, 0, 1, 1),
    "run-2": (1, 1, 0, 0, 0, 0, 0, 1),
    "run-3": (1, 1, 1, 0, 0, 0, 0, 1),
    BASE: (0, 0, 0, 0, 0, 0, 0, 1),
}


def score(run: str, model: str = "adapter", key: str = "k", task: str = "colours") -> ScoreRow:
    right = RIGHT[BASE if model == BASE else run]
    return ScoreRow(
        id=hash((run, model, key, task)),
        run=run,
        job="train",
        task=task,
        dataset="d",
        split="test",
        model=model,
        metric="accuracy",
        value=sum(right) / len(right),
        stderr=0.1,
        rows=len(right),
        primary=True,
        chance=1 / 3,
        key=key,
        predictions=f"{run}-{model}.jsonl",
        extras={},
        created=now(),
    )


def read(one: ScoreRow) -> Predictions:
    right = RIGHT[BASE if one.model == BASE else one.run]
    answers = [Answer("red" if hit else "blue", ("red",)) for hit in right]
    return Predictions(one.key, list(range(len(right))), answers, {"accuracy": [float(hit) for hit in right]})


def comparison(**options):
    columns = [Column("mosld", ["run-1"], "mosld", 4096), Column("lora", ["run-2", "run-3"], "lora", 1024)]
    scores = {run: [score(run), score(run, BASE)] for run in ("run-1", "run-2", "run-3")}
    return build(columns, scores, read, **options)


def test_seeds_become_mean_and_standard_deviation():
    lora = comparison().rows[0].cells[1]
    assert lora.value == pytest.approx(statistics.mean([3 / 8, 4 / 8]))
    assert lora.spread == pytest.approx(statistics.stdev([3 / 8, 4 / 8]))
    assert (lora.seeds, lora.stderr) == (2, None)


def test_the_base_is_a_column_of_its_own_and_the_best_is_marked():
    found = comparison()
    assert [column.label for column in found.columns] == ["mosld", "lora", BASE]
    assert [cell.best for cell in found.rows[0].cells] == [True, False, False]


def test_differences_are_paired_on_the_same_rows():
    mosld, lora, base = comparison(baseline=BASE).rows[0].cells
    assert mosld.difference.value == pytest.approx(5 / 8)
    assert (mosld.difference.wins, mosld.difference.losses, mosld.difference.test) == (5, 0, "mcnemar")
    assert lora.difference.value == pytest.approx(7 / 16 - 1 / 8)
    assert base.difference is None


def test_scores_of_other_rows_are_shown_but_not_paired():
    columns = [Column("one", ["run-1"]), Column("two", ["run-2"])]
    found = build(columns, {"run-1": [score("run-1")], "run-2": [score("run-2", key="x")]}, read, baseline="one")
    assert found.rows[0].cells[1].value == 3 / 8 and found.rows[0].cells[1].difference is None


def test_scores_without_predictions_are_shown_but_not_paired():
    def gone(_: ScoreRow) -> Predictions:
        raise NotFoundError("no file")

    columns = [Column("one", ["run-1"]), Column("two", ["run-2"])]
    found = build(columns, {"run-1": [score("run-1")], "run-2": [score("run-2")]}, gone, baseline="one")
    assert found.rows[0].cells[1].difference is None


def test_a_task_that_one_run_lacks_leaves_its_cell_empty():
    scores = {"run-1": [score("run-1"), score("run-1", task="shapes")], "run-2": [score("run-2")]}
    found = build([Column("one", ["run-1"]), Column("two", ["run-2"])], scores, read)
    assert {row.task: row.cells[1] is None for row in found.rows} == {"colours": False, "shapes": True}
    assert "-" in found.render().splitlines()[2]


def test_nothing_is_best_where_all_are_equal():
    two = [Column("a", ["run-2"], "lora", 1024), Column("b", ["run-3"], "lora", 1024)]
    equal = {"run-2": [score("run-2")], "run-3": [replace(score("run-3"), value=score("run-2").value)]}
    (row,) = build(two, equal, read).rows
    assert not any(cell.best or cell.tie for cell in row.cells)


def test_an_unknown_baseline_is_refused():
    with pytest.raises(ConfigurationError, match="not one of the compared columns"):
        comparison(baseline="run-9")


def test_csv_keeps_every_digit_and_one_line_for_each_cell():
    lines = list(csv.DictReader(io.StringIO(comparison(baseline=BASE).render("csv"))))
    assert [line["column"] for line in lines] == ["mosld", "lora", BASE]
    assert float(lines[0]["difference"]) == 0.625 and lines[1]["runs"] == "run-2 run-3"


def test_markdown_and_latex_are_tables_of_equal_width():
    found = comparison(settings={"train.steps": [10, 20]})
    pipes = [line.count("|") for line in found.render("markdown").splitlines() if line.startswith("| task")]
    assert pipes == [7] and "| train.steps | 10 | 20 |" in found.render("markdown")
    latex = found.render("latex").splitlines()
    assert latex[0] == r"\begin{tabular}{llrrrr}" and all(line.count("&") == 5 for line in latex if "&" in line)


def test_an_unknown_format_is_refused():
    with pytest.raises(ConfigurationError, match="is not a format"):
        comparison().render("xlsx")


def words(run: str, answers: list[str], model: str = "adapter") -> tuple[ScoreRow, Predictions]:
    """A BLEU score of a run with the predictions that it was made from."""
    metric = metrics.get("bleu")
    given = [Answer(answer, ("the cat sat on the mat",)) for answer in answers]
    predictions = metrics.judge("k", given, [metric])
    found = statistics_of.estimate(metric, predictions)
    one = replace(score("run-1", model), id=hash((run, model)), run=run, metric="bleu")
    return replace(one, value=found.value, stderr=found.stderr, predictions=run), predictions


def test_corpus_metrics_of_seeds_are_compared_over_all_rows_at_once():
    good, half, bad = ["the cat sat on the mat"] * 4, ["the cat sat on it"] * 4, ["a dog ran to the park today"] * 4
    made = {run: words(run, answers) for run, answers in (("a", good), ("b", half), ("c", bad))}
    columns = [Column("ab", ["a", "b"]), Column("c", ["c"])]
    scores = {run: [one] for run, (one, _) in made.items()}
    found = build(columns, scores, lambda one: made[one.run][1], baseline="c").rows[0].cells
    expected = (made["a"][0].value + made["b"][0].value) / 2 - made["c"][0].value
    assert found[0].difference.value == pytest.approx(expected)
    assert found[0].difference.test == "bootstrap"


def test_what_is_within_two_paired_errors_of_the_best_is_a_tie():
    cells = comparison().rows[0].cells
    assert [cell.tie for cell in cells] == [False, True, False]


def test_the_mean_is_over_tasks_that_every_column_has():
    scores = {run: [score(run), score(run, task="shapes")] for run in ("run-1", "run-2", "run-3")}
    scores["run-1"].append(score("run-1", task="only here"))
    columns = [Column("one", ["run-1"]), Column("two", ["run-2", "run-3"])]
    mean = build(columns, scores, read, baseline="one").mean
    assert mean.cells[0].value == pytest.approx(6 / 8) and mean.cells[0].best
    assert mean.cells[0].stderr == pytest.approx(0.1 * 2**0.5 / 2)
    assert mean.cells[1].spread == pytest.approx(statistics.stdev([3 / 8, 4 / 8]))
    assert mean.cells[1].difference.value == pytest.approx(7 / 16 - 6 / 8) and mean.cells[0].difference is None


def test_a_metric_that_nobody_has_is_refused():
    with pytest.raises(ConfigurationError, match="scored by 'rouge_l'"):
        comparison(metric="rouge_l")
