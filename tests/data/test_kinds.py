"""Kinds, metrics, chance and trivial baselines come from the rows, unless somebody says otherwise."""

from __future__ import annotations

import pytest

from core.data.canonical import to_table
from core.data.describe import describe
from core.data.kinds import metrics_in
from core.errors import ConfigurationError


def tables(train, test=None):
    found = {"train": to_table(train)}
    return found | ({"test": to_table(test)} if test else {})


def row(output, choices=(), text="x", references=()):
    return {"input": text, "output": output, "choices": list(choices), "references": list(references)}


def test_the_same_choices_in_every_row_are_labels():
    info = describe("t", tables([row("a", "ab")] * 3 + [row("b", "ab")], [row("a", "ab"), row("b", "ab")] * 2))
    assert (info.kind, info.labels, info.chance, info.trivial) == ("classification", ["a", "b"], 0.5, 0.5)
    assert info.metrics == ["accuracy", "macro_f1"]


def test_choices_that_vary_have_the_mean_chance_of_their_sizes():
    test = [row("long one", ["long one", "b"]), row("d", ["c", "d", "e", "f"])]
    info = describe("t", tables([row("y", ["x", "y"])] * 5, test))
    assert info.kind == "choice" and info.labels == []
    assert info.chance == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert info.trivial == 0.5  # always the second place, as in training, or always the longest


def test_the_first_of_the_longest_choices_counts():
    info = describe("t", tables([row("aa", ["aa", "bb"]), row("cc", ["dd", "cc"])]))
    assert info.trivial == 0.5


def test_an_instruction_that_asks_for_whole_sentences_makes_sentences():
    data = tables([row("A b.", ["A b.", "B a."]), row("C d.", ["D c.", "C d."])])
    assert describe("t", data, instruction="Score the two choices as whole sentences.").kind == "sentence"
    assert describe("t", data).kind == "choice"


def test_few_outputs_that_recur_are_labels_and_others_are_texts():
    assert describe("t", tables([row("yes"), row("no")] * 10)).labels == ["no", "yes"]
    assert describe("t", tables([row(f"word{i}") for i in range(20)])).kind == "generation"
    assert describe("t", tables([row("yes", references=["yes", "yep"]), row("no")] * 10)).kind == "generation"


@pytest.mark.parametrize(
    ("outputs", "metric"),
    [
        ([str(i) for i in range(30)], "numeric"),
        ([f"short {i}" for i in range(30)], "exact_match"),
        ([f"a much longer answer with many words number {i}" for i in range(30)], "rouge_l"),
    ],
)
def test_the_primary_metric_of_generation_follows_the_answers(outputs, metric):
    assert describe("t", tables([row(text) for text in outputs])).metric == metric


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("accuracy, macro F1", ["accuracy", "macro_f1"]),
        ("exact match (case-insensitive), token F1", ["exact_match", "token_f1"]),
        ("BLEU or ROUGE-L against the references; share of facts mentioned", ["bleu", "rouge_l"]),
        ("token F1, ROUGE-L, best over the references", ["token_f1", "rouge_l"]),
        ("exact match of the number behind ####", ["numeric"]),
        ("rouge_l", ["rouge_l"]),
        ("beauty", []),
    ],
)
def test_metrics_are_read_from_phrases(text, names):
    assert metrics_in(text) == names


def test_what_is_given_wins():
    data = tables([row("yes"), row("no")] * 10)
    info = describe("t", data, kind="generation", metric="token_f1", trivial=0.25)
    assert (info.kind, info.metric, info.trivial, info.labels) == ("generation", "token_f1", 0.25, [])
    assert describe("t", data, metric="macro_f1").metrics == ["macro_f1", "accuracy"]
    with pytest.raises(ConfigurationError, match="'ranking' is not a kind"):
        describe("t", data, kind="ranking")


def test_the_commonest_training_answer_is_the_trivial_one():
    info = describe("t", tables([row("7")] * 3 + [row("8")] * 2, [row("8"), row("7"), row("9"), row("7")]))
    assert info.trivial == 0.5
