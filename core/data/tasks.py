"""The tasks of a run: stored rows with the run's own instruction, prompt template and limits."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from core.data.canonical import Row
from core.data.describe import known_metric
from core.data.kinds import OPTION_KINDS, TaskInfo
from core.data.store import DatasetStore
from core.data.templates import PromptTemplate
from core.errors import ConfigurationError, NotFoundError
from core.schema import TaskSpec


@dataclass(frozen=True)
class Task:
    """One task of a run. ``index`` is its place in the run, the number that gates and embeddings see."""

    index: int
    name: str
    info: TaskInfo
    spec: TaskSpec
    dataset_id: str
    store: DatasetStore
    seed: int = 0

    @property
    def instruction(self) -> str:
        return self.info.instruction if self.spec.instruction is None else self.spec.instruction

    @property
    def template(self) -> PromptTemplate:
        """The run's template; whole sentences have no prompt."""
        if self.info.kind == "sentence":
            return self.spec.template.model_copy(update={"style": "none"})
        return self.spec.template

    @property
    def metric(self) -> str:
        return self.spec.metric or self.info.metric

    @property
    def metrics(self) -> list[str]:
        """All metrics to compute, the primary one first."""
        return [self.metric, *(name for name in self.info.metrics if name != self.metric)]

    def size(self, split: str) -> int:
        """Rows that ``rows`` returns."""
        count = self.info.counts.get(split, 0)
        limit = {"train": self.spec.train_rows, "test": self.spec.test_rows}.get(split)
        return count if limit is None else min(count, limit)

    def rows(self, split: str) -> list[Row]:
        """All rows of ``iterate`` at once."""
        return list(self.iterate(split))

    def iterate(self, split: str) -> Iterator[Row]:
        """The rows with name and instruction filled in, few of them in memory. A row's own instruction stays.

        ``train_rows`` are drawn by the run's seed and keep their order; ``test_rows`` are the first ones.
        """
        rows = self.store.iterate(self.dataset_id, self.info.name, split, self._first(split))
        count = self.info.counts.get(split, 0)
        if split == "train" and count > self.size(split):
            drawn = np.zeros(count, bool)
            drawn[np.random.default_rng([self.seed, self.index]).permutation(count)[: self.size(split)]] = True
            rows = compress(rows, drawn)
        for row in rows:
            row["task"] = self.name
            row["instruction"] = row["instruction"] or self.instruction
            if self.info.kind == "classification":
                row["choices"] = row["choices"] or list(self.info.labels)
            yield row

    def _first(self, split: str) -> int | None:
        return self.spec.test_rows if split == "test" else None


def load_tasks(store: DatasetStore, specs: Sequence[TaskSpec], seed: int = 0) -> list[Task]:
    """The tasks that ``specs`` name, in order; a spec without ``task`` stands for all tasks of its data set.

    Tasks of one name from several data sets are called ``<data set>/<task>``.
    """
    found = []
    for spec in specs:
        dataset = store.find(spec.dataset)
        names = [spec.task] if spec.task else list(dataset.tasks)
        for name in names:
            if name not in dataset.tasks:
                near = difflib.get_close_matches(name, dataset.tasks, n=1, cutoff=0)
                raise NotFoundError(
                    f"The data set {dataset.name!r} has no task {name!r}.",
                    f"Did you mean {near[0]!r}? It holds {len(dataset.tasks)}: {', '.join(dataset.tasks)}.",
                )
            _check_metric(dataset.tasks[name], spec)
            found.append((dataset, dataset.tasks[name], spec))
    counts = Counter(info.name for _, info, _ in found)
    names = [f"{data.name}/{info.name}" if counts[info.name] > 1 else info.name for data, info, _ in found]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigurationError(f"The task {twice[0]!r} is listed twice.", "Name every task of a run once.")
    return [
        Task(i, name, info, spec, data.id, store, seed)
        for i, (name, (data, info, spec)) in enumerate(zip(names, found, strict=True))
    ]


def _check_metric(info: TaskInfo, spec: TaskSpec) -> None:
    if spec.metric is None:
        return
    of_options = known_metric(spec.metric) in ("accuracy", "macro_f1")
    if of_options and info.kind not in OPTION_KINDS:
        raise ConfigurationError(
            f"{spec.metric} needs choices, but {info.name} is free generation.",
            f"Choose one of {', '.join(info.metrics)}, or upload the rows with choices.",
        )
    if spec.metric == "macro_f1" and info.kind != "classification":
        raise ConfigurationError(f"macro_f1 needs fixed labels; the choices of {info.name} vary.", "Use accuracy.")
    if not of_options and info.kind in OPTION_KINDS:
        raise ConfigurationError(
            f"{spec.metric} scores written answers, but {info.name} is scored by option likelihood.",
            f"Choose one of {', '.join(info.metrics)}, or upload it with kind generation.",
        )
