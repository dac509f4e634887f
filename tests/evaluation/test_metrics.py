"""Metrics against values worked out by hand, and against the reference libraries for whole corpora."""

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, strategies
from rouge_score.rouge_scorer import RougeScorer

from core.data.kinds import METRICS as STORED_METRICS
from core.errors import ConfigurationError
from core.evaluation.metrics import METRICS, best, exact_match, get, normalise, number, select, token_f1
from core.evaluation.predictions import Answer
from core.evaluation.statistics import corpus_estimate


def texts():
    return strategies.text("ab Bé'1-", max_size=16)


def generated(prediction, *references):
    return Answer(prediction, references)


def chosen(prediction, target, options=(), sums=(), means=()):
    return Answer(prediction, (target,), options, sums, means)


def value(metric, answer):
    return METRICS[metric].row(answer)


def corpus(metric, answers):
    return float(METRICS[metric].corpus(answers, np.ones((1, len(answers))))[0])


def test_normalise_ignores_case_and_blanks_but_not_punctuation():
    assert normalise("  The\tNew \n York ") == "the new york"
    assert exact_match("NEW  york", "new york") == 1
    assert exact_match("new york.", "new york") == 0


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("the cat sat", "a cat sat down", 2 * 2 / (2 + 3)),  # articles do not count
        ("cat cat", "cat", 2 * 1 / (2 + 1)),  # a word is shared as often as both have it
        ("Cat!", "cat", 1.0),
        ("the", "a", 1.0),  # nothing left on either side
        ("", "cat", 0.0),
        ("dog", "cat", 0.0),
    ],
)
def test_token_f1(prediction, reference, expected):
    assert token_f1(prediction, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6 * 7 = 42\n#### 42", "42"),
        ("so 5 apples\n#### 1,234 apples, not 9", "1234"),
        ("first 3, then 43.", "43"),
        ("it costs $1,250.50 in all", "1250.50"),
        ("12 - 9-4", "4"),
        ("x = -.5", "-0.5"),
        ("−7 degrees", "-7"),
        ("none", None),
        ("#### none", None),
    ],
)
def test_number(text, expected):
    assert number(text) == (None if expected is None else Decimal(expected))


def test_numbers_are_compared_as_decimals():
    assert value("numeric", generated("the answer is 3.0", "3")) == 1
    assert value("numeric", generated("0.1", "0.10000000000000001")) == 0
    assert value("numeric", generated("nothing", "nothing")) == 0


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence():
    # LCS of "police killed the gunman" and "police kill the gunman" is 3 of 4 words on both sides
    assert value("rouge_l", generated("police kill the gunman", "police killed the gunman")) == pytest.approx(0.75)
    assert value("rouge_l", generated("gunman the police", "police killed the gunman")) == pytest.approx(2 / 7)


@given(texts(), texts())
def test_rouge_l_is_that_of_rouge_score(prediction, reference):
    wanted = RougeScorer(["rougeL"], use_stemmer=False).score(reference, prediction)["rougeL"].fmeasure
    assert value("rouge_l", generated(prediction, reference)) == wanted


def test_the_best_reference_counts():
    answer = generated("Paris", "Lyon", "paris")
    assert best(exact_match)(answer) == 1
    assert value("token_f1", generated("big red dog", "cat", "red dog")) == pytest.approx(0.8)


def test_bleu_equals_sacrebleu_with_a_varying_number_of_references():
    sacrebleu = pytest.importorskip("sacrebleu")
    texts = ["the cat sat on the mat today", "hello there world", "a b c d e", "never seen"]
    references = [("the cat sat on a mat", "a cat sat on the mat"), ("hello world",), ("a b c d e f",), ("other",)]
    streams = [[r[i] if i < len(r) else None for r in references] for i in range(2)]
    answers = [Answer(text, r) for text, r in zip(texts, references, strict=True)]
    assert corpus("bleu", answers) == pytest.approx(sacrebleu.corpus_bleu(texts, streams).score / 100)
    assert corpus("bleu", answers[2:3]) == pytest.approx(np.exp(1 - 6 / 5))  # all n-grams right, one word short
    smoothed = [Answer("the cat", ("the dog",))] * 2  # no bigram right: exponential smoothing, but no trigram at all
    assert corpus("bleu", smoothed) == 0
    assert corpus("bleu", [Answer("", ("a b c d",))]) == 0
    weights = np.array([[2.0, 0, 1, 0]])
    picked = [texts[0], texts[0], texts[2]]
    expected = sacrebleu.corpus_bleu(picked, [[s[0], s[0], s[2]] for s in streams]).score / 100
    assert METRICS["bleu"].corpus(answers, weights)[0] == pytest.approx(expected)


def test_macro_f1_by_hand_and_as_scikit_learn_counts_it():
    targets = ["a", "a", "a", "b", "b", "c"]
    predictions = ["a", "a", "b", "b", "a", "d"]
    answers = [chosen(p, t) for p, t in zip(predictions, targets, strict=True)]
    # a: 2*2/(3+3), b: 2*1/(2+2), c: 0, d (given but never wanted): 0
    assert corpus("macro_f1", answers) == pytest.approx((2 / 3 + 1 / 2) / 4)
    sklearn = pytest.importorskip("sklearn.metrics")
    assert corpus("macro_f1", answers) == pytest.approx(sklearn.f1_score(targets, predictions, average="macro"))


def test_both_option_scores_give_an_accuracy():
    answer = chosen("long one", "short", ("long one", "short"), sums=(-3.0, -4.0), means=(-0.5, -2.0))
    other = chosen("long one", "short", ("long one", "short"), sums=(-5.0, -4.0), means=(-0.5, -2.0))
    assert value("accuracy_sum", answer) == 0 and value("accuracy_sum", other) == 1
    assert value("accuracy_mean", other) == 0
    assert value("accuracy", answer) == 0


def test_the_bootstrap_error_of_an_average_is_near_its_formula():
    answers = [chosen("a", "a")] * 150 + [chosen("a", "b")] * 25 + [chosen("b", "b")] * 100 + [chosen("b", "a")] * 25
    estimate = corpus_estimate(METRICS["macro_f1"], _predictions(answers))
    accuracy = 250 / 300
    assert estimate.stderr == pytest.approx((accuracy * (1 - accuracy) / 300) ** 0.5, rel=0.15)
    assert corpus_estimate(METRICS["macro_f1"], _predictions(answers)) == estimate  # the seed is fixed


def _predictions(answers):
    from core.evaluation.predictions import Predictions

    return Predictions("key", list(range(len(answers))), answers, {})


def test_a_task_is_scored_by_its_metrics_the_primary_first():
    assert [m.name for m in select("classification", ["macro_f1", "accuracy"])] == [
        "macro_f1",
        "accuracy",
        "accuracy_sum",
        "accuracy_mean",
    ]
    assert [m.name for m in select("sentence", [])] == ["accuracy", "accuracy_sum", "accuracy_mean"]
    assert [m.name for m in select("generation", ["numeric", "exact_match"])] == ["numeric", "exact_match"]


def test_an_unknown_or_unfitting_metric_is_refused_with_a_remedy():
    with pytest.raises(ConfigurationError, match="Did you mean rouge_l"):
        get("rouge-l")
    with pytest.raises(ConfigurationError, match="does not score generation tasks. Choose one of exact_match"):
        select("generation", ["accuracy"])


def test_every_metric_that_a_data_set_can_name_is_here():
    assert set(STORED_METRICS) <= set(METRICS)
