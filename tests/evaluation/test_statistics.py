"""Errors and tests of differences against values worked out by hand."""

import math

import numpy as np
import pytest

from core.errors import ConfigurationError, DataError
from core.evaluation.metrics import METRICS
from core.evaluation.predictions import Answer, Predictions, read_predictions, write_predictions
from core.evaluation.statistics import (
    compare,
    compare_seeds,
    estimate,
    group_seeds,
    mcnemar,
    mean_error,
    paired,
    sign_flip,
    unanimous_error,
)


def predictions(values, key="k", metric="exact_match", answers=None):
    answers = answers or [Answer("x", ("x",))] * len(values)
    return Predictions(key, list(range(len(values))), answers, {metric: list(values)})


def test_the_error_of_a_share_is_binomial():
    found = mean_error([1.0] * 30 + [0.0] * 10)
    assert found.value == 0.75 and found.rows == 40
    assert found.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 39))
    assert mean_error([1.0]).stderr is None
    with pytest.raises(DataError):
        mean_error([])


def test_a_score_without_exception_is_not_free_of_error():
    exact = METRICS["exact_match"]
    wrong = estimate(exact, predictions([0.0] * 20))
    assert wrong.value == 0 and wrong.stderr == pytest.approx(math.sqrt(0.5 * 20.5 / 21**2 / 21))
    assert unanimous_error(2000) < estimate(exact, predictions([1.0] * 20)).stderr == wrong.stderr
    assert estimate(exact, predictions([1.0])).stderr is None


def test_seeds_of_a_setting_become_mean_and_sample_deviation():
    group = group_seeds([0.5, 0.6, 0.7])
    assert (group.mean, group.std, group.n) == (pytest.approx(0.6), pytest.approx(0.1), 3)
    assert group_seeds([0.5]).std is None


def test_mcnemar_is_the_exact_binomial_test_of_the_unequal_rows():
    # 8 against 2: 2 * (1 + 10 + 45) / 1024
    assert mcnemar(8, 2) == mcnemar(2, 8) == pytest.approx(112 / 1024)
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(1000, 900) == pytest.approx(0.0231, abs=5e-4)  # the binomial test of 1000 in 1900


def test_sign_flips_are_counted_exactly_for_few_rows():
    # of the 8 sign patterns of (1, 2, 3) only +++ and --- reach a sum of 6
    assert sign_flip(np.array([1.0, 2.0, 3.0, 0.0])) == 2 / 8
    assert sign_flip(np.array([0.1, -0.1])) == 1.0
    assert sign_flip(np.zeros(5)) == 1.0


def test_drawn_sign_flips_agree_with_the_t_test_in_size():
    values = np.random.default_rng(1).normal(0.2, 1.0, 200)
    t = values.mean() / (values.std(ddof=1) / math.sqrt(200))
    assert sign_flip(values) == pytest.approx(math.erfc(abs(t) / math.sqrt(2)), abs=0.02)
    assert sign_flip(values) == sign_flip(values)


def test_a_paired_difference_is_surer_than_two_errors_apart():
    a = [1.0] * 60 + [0.0] * 40
    b = [1.0] * 52 + [0.0] * 48
    found = compare(predictions(a), predictions(b), "exact_match")
    assert (found.value, found.wins, found.losses, found.rows) == (pytest.approx(0.08), 8, 0, 100)
    # the differences are eight ones and 92 zeros
    assert found.stderr == pytest.approx(math.sqrt(0.08 * 0.92 / 99))
    assert found.stderr < math.hypot(mean_error(a).stderr, mean_error(b).stderr)
    assert found.test == "mcnemar" and found.p_value == pytest.approx(2 / 2**8)


def test_values_between_zero_and_one_are_tested_by_sign_flips():
    found = paired("token_f1", [0.5, 0.6, 0.9], [0.4, 0.4, 0.6])
    assert found.test == "sign-flip" and found.p_value == 2 / 8
    assert found.value == pytest.approx(0.2) and found.stderr == pytest.approx(0.1 / math.sqrt(3))


def test_corpus_metrics_are_compared_by_a_paired_bootstrap():
    targets = ["a", "b"] * 100
    right = [Answer(t, (t,)) for t in targets]
    wrong = [Answer("a" if i % 4 else "b", (t,)) for i, t in enumerate(targets)]
    a = predictions([1.0] * 200, answers=right)
    b = predictions([0.0] * 200, answers=wrong)
    found = compare(a, b, "macro_f1")
    assert found.test == "bootstrap" and found.p_value < 0.01
    assert found.value == pytest.approx(1 - estimate(METRICS["macro_f1"], b).value)
    same = compare(a, a, "macro_f1")
    assert (same.value, same.stderr, same.p_value) == (0, 0, 1)


def test_seeds_are_averaged_row_by_row_before_pairing():
    a = [predictions([1.0, 1.0, 0.0, 1.0]), predictions([1.0, 0.0, 0.0, 1.0])]
    b = [predictions([0.0, 1.0, 0.0, 1.0]), predictions([0.0, 0.0, 0.0, 0.0])]
    found = compare_seeds(a, b, "exact_match")  # rows differ by 1, 0, 0, 0.5
    assert found.value == pytest.approx(0.375) and found.test == "sign-flip"
    assert found.stderr == pytest.approx(np.std([1, 0, 0, 0.5], ddof=1) / 2)


def test_only_equal_keys_are_paired():
    with pytest.raises(ConfigurationError, match="cannot be paired"):
        compare(predictions([1.0], key="one"), predictions([1.0], key="two"), "exact_match")
    with pytest.raises(ConfigurationError, match="not scored by token_f1"):
        compare(predictions([1.0]), predictions([1.0]), "token_f1")


def test_predictions_survive_their_file(tmp_path):
    rows = [{"task": "t", "instruction": "Say.", "input": "über", "history": [], "output": "a"}, {"input": "b"}]
    answers = [Answer("a", ("a", "c"), ("a", "b"), (-1.0, -2.5), (-0.5, -1.25)), Answer("b", ("a",))]
    write_predictions(tmp_path / "p.jsonl", "abc", rows, answers, {"accuracy": [1.0, 0.0]})
    back = read_predictions(tmp_path / "p.jsonl")
    assert back == Predictions("abc", [0, 1], answers, {"accuracy": [1.0, 0.0]})
    assert "über" in (tmp_path / "p.jsonl").read_text("utf-8")
    (tmp_path / "p.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(DataError, match=r"p\.jsonl is not a predictions file"):
        read_predictions(tmp_path / "p.jsonl")
