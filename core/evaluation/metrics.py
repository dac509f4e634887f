"""The metrics and their registry. Imports no torch.

A metric is a row of ``METRICS``: ``row`` (an answer -> its value; the score is the mean over rows) or ``corpus`` (all
answers and row weights -> the score); with both, ``row`` only fills the predictions file. All lie between 0 and 1.
Text is compared after ``normalise``: lower case (Unicode case folding), runs of white space as one blank, ends
stripped; punctuation counts. Several references: the best one counts.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.util import find_spec

import numpy as np

from core.errors import ConfigurationError
from core.evaluation.predictions import Answer, Predictions

OPTION_KINDS = ("classification", "choice", "sentence")
_SPACE = re.compile(r"\s+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_NUMBER = re.compile(r"(?:(?<![\w)\]])[-\u2212])?[$€£]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")


@dataclass(frozen=True)
class Metric:
    """``kinds``: the task kinds it scores. ``weights`` of ``corpus`` are (resamples, rows); it returns (resamples,)."""

    name: str
    title: str
    summary: str
    kinds: tuple[str, ...]
    row: Callable[[Answer], float] | None
    corpus: Callable[[Sequence[Answer], np.ndarray], np.ndarray] | None = None
    needs: str | None = None  # a library that may be missing


def normalise(text: str) -> str:
    """Case folded, white space collapsed, ends stripped."""
    return _SPACE.sub(" ", text).strip().casefold()


def exact_match(prediction: str, reference: str) -> float:
    return float(normalise(prediction) == normalise(reference))


def squad_tokens(text: str) -> list[str]:
    """Words as SQuAD's scorer sees them: lower case, without punctuation and the articles a, an, the."""
    return _ARTICLES.sub(" ", _PUNCTUATION.sub("", text.casefold())).split()


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of word precision and recall (SQuAD); 1 where neither side has a word left."""
    given, wanted = squad_tokens(prediction), squad_tokens(reference)
    if not given or not wanted:
        return float(given == wanted)
    shared = sum((Counter(given) & Counter(wanted)).values())
    return 2 * shared / (len(given) + len(wanted))


def number(text: str) -> Decimal | None:
    """The first number after ``####`` if that stands in the text, else the last number in it; None without one.

    Thousands commas, a currency sign before and units after it are ignored; a minus counts unless it follows a word,
    a digit or a closing bracket (``9-4``).
    """
    _, mark, rest = text.partition("####")
    found = _NUMBER.findall(rest if mark else text)
    if not found:
        return None
    chosen = found[0] if mark else found[-1]
    return Decimal(chosen.replace("\u2212", "-").translate({ord(c): None for c in "$€£,"}))


def numeric(prediction: str, reference: str) -> float:
    """1 where both texts hold the same number, as decimals: 3 is 3.0."""
    given = number(prediction)
    return float(given is not None and given == number(reference))


def rouge_l(prediction: str, reference: str) -> float:
    """F measure of the longest common subsequence of words (rouge-score: lower case, no stemming).

    Of that package its words alone are taken: the scorer beside them loads nltk, for seconds.
    """
    from rouge_score.tokenize import tokenize

    given, wanted = tokenize(prediction, None), tokenize(reference, None)
    shared = common_subsequence(given, wanted)
    if not shared:
        return 0.0
    precision, recall = shared / len(given), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of its table at a time as the bits of a number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    row = whole = (1 << len(one)) - 1  # a zero for each place where the length grows
    for word in other:
        met = row & places.get(word, 0)
        row = ((row + met) | (row - met)) & whole
    return len(one) - row.bit_count()


def best(score: Callable[[str, str], float]) -> Callable[[Answer], float]:
    """The best over the references of a score of (prediction, reference)."""
    return lambda answer: max(score(answer.prediction, reference) for reference in answer.references)


@cache
def _bleu():
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)


def sentence_bleu(answer: Answer) -> float:
    """sacrebleu's sentence BLEU against all references, from 0 to 1."""
    return _bleu().sentence_score(answer.prediction, list(answer.references)).score / 100


def corpus_bleu(answers: Sequence[Answer], weights: np.ndarray) -> np.ndarray:
    """sacrebleu's corpus BLEU (13a tokens, exponential smoothing) from 0 to 1, of weighted rows."""
    counted = (_bleu().sentence_score(answer.prediction, list(answer.references)) for answer in answers)
    rows = np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in counted], dtype=np.float64)
    sums = weights @ rows
    correct, total, given, wanted = sums[:, :4], sums[:, 4:8], sums[:, 8], sums[:, 9]
    missed = correct == 0
    smoothed = 1 / np.maximum(2.0 ** np.cumsum(missed, axis=1) * total, 1)
    precision = np.where(missed, smoothed, correct / np.maximum(total, 1))
    brevity = np.exp(np.minimum(0, 1 - wanted / np.maximum(given, 1)))
    empty = missed.all(axis=1) | (total == 0).any(axis=1)
    return np.where(empty, 0.0, brevity * np.exp(np.log(precision).mean(axis=1)))


def macro_f1(answers: Sequence[Answer], weights: np.ndarray) -> np.ndarray:
    """Mean of the labels' F1 over the labels that are wanted or given in the weighted rows."""
    labels = sorted({answer.target for answer in answers} | {answer.prediction for answer in answers})
    wanted = np.array([[answer.target == label for label in labels] for answer in answers], dtype=np.float64)
    given = np.array([[answer.prediction == label for label in labels] for answer in answers], dtype=np.float64)
    hits, sizes = weights @ (wanted * given), weights @ (wanted + given)
    f1 = 2 * hits / np.maximum(sizes, 1)
    return f1.sum(axis=1) / (sizes > 0).sum(axis=1)


def correct(answer: Answer) -> float:
    return float(answer.prediction in answer.references)


def _correct_by(scores: str) -> Callable[[Answer], float]:
    def row(answer: Answer) -> float:
        return float(answer.options[int(np.argmax(getattr(answer, scores)))] in answer.references)

    return row


_ALL = (
    Metric("accuracy", "Accuracy", "Share of rows whose chosen option is right.", OPTION_KINDS, correct),
    Metric(
        "accuracy_sum",
        "Accuracy (summed)",
        "Accuracy when the option with the highest summed log-likelihood is chosen.",
        OPTION_KINDS,
        _correct_by("sums"),
    ),
    Metric(
        "accuracy_mean",
        "Accuracy (length-normalised)",
        "Accuracy when the option with the highest mean log-likelihood per token is chosen.",
        OPTION_KINDS,
        _correct_by("means"),
    ),
    Metric("macro_f1", "Macro F1", "Mean of the labels' F1.", ("classification",), None, corpus=macro_f1),
    Metric("exact_match", "Exact match", "The whole answer, case aside.", ("generation",), best(exact_match)),
    Metric("token_f1", "Token F1", "Overlap of words (SQuAD).", ("generation",), best(token_f1)),
    Metric(
        "rouge_l",
        "ROUGE-L",
        "Longest common subsequence of words, F measure.",
        ("generation",),
        best(rouge_l),
        needs="rouge_score",
    ),
    Metric(
        "bleu",
        "BLEU",
        "Corpus BLEU on a scale from 0 to 1.",
        ("generation",),
        sentence_bleu,
        corpus=corpus_bleu,
        needs="sacrebleu",
    ),
    Metric("numeric", "Number", "The number after ####, or the last one.", ("generation",), best(numeric)),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
PRIMARY = {"classification": "accuracy", "choice": "accuracy", "sentence": "accuracy", "generation": "exact_match"}


def get(name: str) -> Metric:
    """The metric of that name; an unknown one raises ConfigurationError with the nearest."""
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"The metrics are {', '.join(METRICS)}."
        raise ConfigurationError(f"There is no metric {name}.", hint)
    return METRICS[name]


def select(kind: str, names: Sequence[str]) -> list[Metric]:
    """The metrics of a task by name, the primary one first; options also get both option scores.

    A metric whose library is missing is left out, unless it is the primary one: then, and where a metric does not
    score tasks of this kind, ConfigurationError.
    """
    chosen = [get(name) for name in names or [PRIMARY[kind]]]
    for metric in chosen:
        if kind not in metric.kinds:
            fitting = [other.name for other in METRICS.values() if kind in other.kinds]
            raise ConfigurationError(
                f"The metric {metric.name} does not score {kind} tasks.", f"Choose one of {', '.join(fitting)}."
            )
    if not available(chosen[0]):
        raise ConfigurationError(f"The metric {chosen[0].name} needs {chosen[0].needs}.", "Install it with pip.")
    if kind in OPTION_KINDS:
        chosen += [METRICS["accuracy_sum"], METRICS["accuracy_mean"]]
    return [metric for metric in dict.fromkeys(chosen) if available(metric)]


def available(metric: Metric) -> bool:
    """Whether the library that the metric needs is installed."""
    return metric.needs is None or find_spec(metric.needs) is not None


def judge(key: str, answers: Sequence[Answer], metrics: Sequence[Metric]) -> Predictions:
    """The answers with the value that each metric gives to each of them, where it gives values to single rows."""
    values = {metric.name: [metric.row(answer) for answer in answers] for metric in metrics if metric.row}
    return Predictions(key, list(range(len(answers))), list(answers), values)
