"""What a task is: its kind, its metrics, its labels and the scores that need no understanding."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from core.data.canonical import column
from core.schema import TaskKind

KINDS: tuple[str, ...] = get_args(TaskKind)
METRICS = {
    "accuracy": "share of rows whose best-scored option is the right one",
    "macro_f1": "F1 of each label, averaged over the labels",
    "exact_match": "share of answers equal to a reference; case and repeated blanks are ignored",
    "token_f1": "overlap of the words of answer and reference, best over the references",
    "rouge_l": "longest common subsequence of answer and reference, best over the references",
    "bleu": "corpus BLEU against all references",
    "numeric": "share of answers whose number is the reference's number",
}
OPTION_KINDS = ("classification", "choice", "sentence")
SHORT_ANSWER_WORDS = 6
MOST_LABELS = 200
ROWS_PER_LABEL = 5
LABEL_WORDS = 5


class TaskInfo(BaseModel):
    """One task of a data set as it is stored."""

    model_config = ConfigDict(extra="ignore")

    name: str
    kind: TaskKind = "generation"
    instruction: str = ""
    metric: str = Field("", description="The primary metric.")
    metrics: list[str] = Field(default_factory=list, description="All metrics that are computed, primary first.")
    labels: list[str] = Field(default_factory=list, description="The classes of a classification task.")
    chance: float = Field(0.0, description="Score of uniform guessing: the mean of 1 / number of choices.")
    trivial: float | None = Field(None, description="Best score that needs no understanding; empty: not computed.")
    counts: dict[str, int] = Field(default_factory=dict, description="Rows per split.")
    about: dict[str, str] = Field(default_factory=dict, description="Source, licence and other remarks.")


Tables = Mapping[str, pa.Table]  # split -> rows of one task


def detect_kind(tables: Tables, instruction: str = "") -> TaskKind:
    """The kind of a task from its rows.

    The same choices in every row: classification. Choices that vary: choice, or sentence where the instruction says
    that whole sentences are scored. No choices and few short outputs that recur: classification. Else generation.
    """
    offered = _offered(tables)
    if offered == 1:
        return "classification"
    if offered:
        return "sentence" if says_whole_sentences(instruction) else "choice"
    if any(table_has(table, "references") for table in tables.values()):
        return "generation"
    return "classification" if derived_labels(tables) else "generation"


def _offered(tables: Tables) -> int:
    """How many sets of choices the rows have, counted up to two; 0 where a row has none."""
    found: set[frozenset[str]] = set()
    for table in tables.values():
        for row in column(table, "choices"):
            if not row:
                return 0
            if len(found) < 2:
                found.add(frozenset(row))
    return len(found)


def says_whole_sentences(text: str) -> bool:
    """Whether a metadata text asks for choices to be scored as whole sentences, without a prompt."""
    return bool(re.search(r"\bwhole (sentence|text)s?\b", text, re.IGNORECASE))


def table_has(table: pa.Table, name: str) -> bool:
    return any(column(table, name))


def derived_labels(tables: Tables) -> list[str]:
    """The labels of a task whose rows list no choices, or nothing if its outputs do not recur like labels."""
    counts = distinct(tables, MOST_LABELS)
    rows = sum(map(len, tables.values()))
    few = 2 <= len(counts) <= min(MOST_LABELS, rows // ROWS_PER_LABEL)
    short = all(len(text.split()) <= LABEL_WORDS and "\n" not in text for text in counts)
    numbers = all(re.fullmatch(r"[-+]?\d+([.,]\d+)?", text) for text in counts) and len(counts) > 12
    return sorted(counts) if few and short and not numbers else []


def distinct(tables: Tables, most: int) -> set[str]:
    """The outputs that occur; where there are more than ``most``, some more than that."""
    found: set[str] = set()
    for table in tables.values():
        for text in column(table, "output"):
            found.add(text)
            if len(found) > most:
                return found
    return found


def labels_of(tables: Tables, given: Sequence[str] = ()) -> list[str]:
    """The labels of a classification task: given, else the first row's choices, else the outputs that occur."""
    if given:
        return list(given)
    for table in tables.values():
        for choices in column(table, "choices"):
            if choices:
                return list(choices)
    return sorted({text for table in tables.values() for text in column(table, "output")})


def metrics_for(kind: TaskKind, tables: Tables, text: str = "") -> list[str]:
    """The metrics of a task, primary first; ``text`` is what a metadata file says about them."""
    if kind == "classification":
        return ["accuracy", "macro_f1"]
    if kind in OPTION_KINDS:
        return ["accuracy"]
    named = metrics_in(text)
    if named:
        extra = [name for name in ("exact_match", "token_f1", "rouge_l") if name not in named]
        return [*named, *extra]

    def outputs() -> Iterator[str]:
        return (text for table in tables.values() for text in column(table, "output"))

    count = sum(map(len, tables.values()))
    if count and all(re.fullmatch(r"[-+]?[\d,]*\.?\d+", text.strip()) for text in outputs()):
        return ["numeric", "exact_match"]
    words = sum(len(text.split()) for text in outputs()) / max(count, 1)
    if words <= SHORT_ANSWER_WORDS:
        return ["exact_match", "token_f1", "rouge_l"]
    return ["rouge_l", "token_f1", "bleu", "exact_match"]


def metrics_in(text: str) -> list[str]:
    """The metrics that a phrase such as ``token F1, ROUGE-L, best over the references`` names, in its order."""
    patterns = {
        "numeric": r"\bnumber\b|\bnumeric",
        "token_f1": r"token[ _-]?f1",
        "macro_f1": r"macro[ _-]?f1",
        "rouge_l": r"rouge",
        "bleu": r"bleu",
        "exact_match": r"exact[ _-]?match",
        "accuracy": r"accuracy",
    }
    found = {name: match.start() for name, p in patterns.items() if (match := re.search(p, text, re.IGNORECASE))}
    if "numeric" in found and "exact_match" in found:  # "exact match of the number" is one metric
        found["numeric"] = min(found["numeric"], found["exact_match"])
        del found["exact_match"]
    return sorted(found, key=found.__getitem__)


def chance_level(kind: TaskKind, tables: Tables, labels: Sequence[str]) -> float:
    """Mean of 1 / number of choices over the rows that are scored."""
    if kind not in OPTION_KINDS:
        return 0.0
    sizes = [len(row) or len(labels) for row in column(scored(tables), "choices")]
    return math.fsum(1 / size for size in sizes if size) / max(len(sizes), 1)


def trivial_score(kind: TaskKind, tables: Tables, metric: str) -> float | None:
    """The best score without understanding, chosen on the training rows and measured on the scored ones.

    Classification and exact answers: the commonest training output. Choices: always the commonest position, the
    longest or the shortest choice. Other metrics: not computed here.
    """
    train, test = tables.get("train", scored(tables)), scored(tables)
    if kind in ("choice", "sentence"):
        return max(_by_position(train, test), _by_length(test, max), _by_length(test, min))
    if metric not in ("accuracy", "exact_match", "numeric"):
        return None
    commonest = _commonest(train) if len(train) else ""
    answers = zip(column(test, "output"), column(test, "references"), strict=True)
    return sum(_same(commonest, [out, *refs]) for out, refs in answers) / max(len(test), 1)


def _commonest(table: pa.Table) -> str:
    """The output that comes most often, of several the one that comes first; by 8 bytes of each."""
    marks = np.fromiter(map(hash, column(table, "output")), np.int64, len(table))
    _, first, counts = np.unique(marks, return_index=True, return_counts=True)
    return table["output"][int(first[counts == counts.max()].min())].as_py()


def scored(tables: Tables) -> pa.Table:
    """The rows that scores are about: test, else validation, else whatever there is."""
    for split in ("test", "validation", "train"):
        if split in tables and len(tables[split]):
            return tables[split]
    return next(iter(tables.values()))


def _by_position(train: pa.Table, test: pa.Table) -> float:
    places = Counter(_places(train))
    position = places.most_common(1)[0][0] if places else 0
    return sum(place == position for place in _places(test)) / max(len(test), 1)


def _places(table: pa.Table) -> list[int]:
    pairs = zip(column(table, "choices"), column(table, "output"), strict=True)
    return [choices.index(output) for choices, output in pairs if output in choices]


def _by_length(test: pa.Table, pick) -> float:
    pairs = zip(column(test, "choices"), column(test, "output"), strict=True)
    return sum(pick(choices, key=len) == output for choices, output in pairs if choices) / max(len(test), 1)


def _same(answer: str, references: Sequence[str]) -> bool:
    plain = " ".join(answer.split()).lower()
    return any(plain == " ".join(text.split()).lower() for text in references)
