"""The rows that every point of a sweep is scored on, and what those scores are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from core.data.tasks import Task
from core.data.templates import PromptTemplate, TextEncoder
from core.errors import DataError
from core.evaluation.answers import Rows, answer
from core.evaluation.batching import Progress
from core.evaluation.metrics import Metric, judge, select
from core.evaluation.statistics import estimate
from core.evaluation.view import ModelView
from core.fusion.combine import weighted_sum
from core.fusion.delta import Deltas, TaskVector
from core.fusion.resilient.disentanglement import Decision, decisions, disagreement
from core.fusion.setting import Setting
from core.jobs.sinks import Sink

if TYPE_CHECKING:
    from core.fusion.resilient.resilience import Resilience


@dataclass(frozen=True)
class Outcome:
    """A fused model by task: its score, and what it decided in every row."""

    scores: dict[str, float]
    decisions: dict[str, list[Decision]]
    relative_mse: float


@dataclass(frozen=True)
class References:
    """Scores by task: of the base, of the noise-free sum, of the run that was trained on it (where one is known).

    ``own``: what the base plus that run's vector alone, with its coefficient, decides in every row.
    """

    base: dict[str, float]
    clean: dict[str, float]
    individual: dict[str, float]
    own: dict[str, list[Decision]]

    def normalised(self, task: str, score: float) -> float | None:
        """Share of the score of the task's own run."""
        return score / self.individual[task] if self.individual.get(task) else None

    def resilience(self, task: str, score: float) -> float | None:
        """Share of what the noise-free sum gains over the base that is left; None where it gains nothing."""
        gain = self.clean[task] - self.base[task]
        return (score - self.base[task]) / gain if gain else None

    def disentanglement_error(self, task: str, found: Sequence[Decision]) -> float | None:
        return disagreement(self.own[task], found) if task in self.own else None

    def sentence(self) -> str:
        named = {"base": self.base, "without noise": self.clean, "each task's own run": self.individual}
        means = [f"{name} {fmean(scores.values()):.3f}" for name, scores in named.items() if scores]
        return f"Mean scores that the sweep is held against: {', '.join(means)}."


@dataclass(frozen=True)
class Sheet:
    task: Task
    rows: Rows
    metric: Metric
    owner: int | None  # place of the run that was trained on it


class Bench:
    """Scores updates on the first rows of every task; rows are encoded once."""

    def __init__(self, lab: Resilience) -> None:
        self.lab, setting = lab, lab.setting
        self.batch_size = setting.spec.evaluation.batch_size
        encoder = _Remembering(setting.encoder)
        self.view = ModelView(setting.candidate.model, encoder, max_length=setting.max_length)
        self.sheets = self._sheets(setting)

    def _sheets(self, setting: Setting) -> list[Sheet]:
        split, sheets = setting.spec.evaluation.split, []
        for task in setting.tasks:
            if rows := task.rows(split)[: self.lab.options.sweep_rows]:
                sheets.append(Sheet(task, rows, select(task.info.kind, task.metrics)[0], setting.owner(task)))
            else:
                self.lab.say(f"{task.name} has no {split} rows: the sweep leaves it out.", level="warning")
        if not sheets:
            raise DataError(f"None of the tasks has {split} rows for the sweep.", "Upload some, or empty sweep_snr.")
        return sheets

    def outcome(
        self, deltas: Deltas, relative_mse: float = 0.0, only: int | None = None, loud: bool = False
    ) -> Outcome:
        """Scores and decisions of the base with ``deltas``; ``only``: on the tasks of one run."""
        progress = Progress(_Muted(self.lab.setting.sink, loud), 0)
        candidate, scores, decided = self.lab.setting.candidate, {}, {}
        dtype = candidate.model.dtype  # cast once here, not in every pass
        with candidate.using({path: delta.to(candidate.device, dtype) for path, delta in deltas.items()}):
            for sheet in self.sheets:
                if only is not None and sheet.owner != only:
                    continue
                name, batch = sheet.task.name, self.batch_size
                answers = answer(self.view, sheet.task, sheet.rows, progress, task_index=0, batch_size=batch)
                scores[name] = estimate(sheet.metric, judge("", answers, [sheet.metric])).value
                decided[name] = decisions(
                    self.view, sheet.task, sheet.rows, progress, batch_size=batch, answers=answers
                )
        return Outcome(scores, decided, relative_mse)

    def references(self) -> References:
        """Computed once: the base, the noise-free sum, and every run alone on its own tasks."""
        lab, individual, own = self.lab, {}, {}
        base = self.outcome({}, loud=True)
        clean = self.outcome(weighted_sum(lab.vectors, lab.weights))
        for user, (vector, weight) in enumerate(zip(lab.vectors, lab.weights, strict=True)):
            if all(sheet.owner != user for sheet in self.sheets):
                continue
            expert = self._alone(vector, user, 1.0)
            individual |= expert.scores
            own |= (expert if weight == 1 else self._alone(vector, user, weight)).decisions
        return References(base.scores, clean.scores, individual, own)

    def _alone(self, vector: TaskVector, user: int, weight: float) -> Outcome:
        return self.outcome(weighted_sum([vector], [weight]), only=user)


class _Remembering:
    """An encoder that encodes the same row once; rows must live as long as it."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._prompts: dict[tuple[int, PromptTemplate], list[int]] = {}
        self._answers: dict[str, list[int]] = {}

    def prompt_ids(self, row: dict[str, Any], template: PromptTemplate) -> list[int]:
        key = (id(row), template)
        if key not in self._prompts:
            self._prompts[key] = self._encoder.prompt_ids(row, template)
        return self._prompts[key]

    def answer_ids(self, text: str) -> list[int]:
        if text not in self._answers:
            self._answers[text] = self._encoder.answer_ids(text)
        return self._answers[text]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)


class _Muted:
    """Passes on the wish to stop; what is said of rows is said once, not for every point."""

    def __init__(self, sink: Sink, loud: bool) -> None:
        self._sink, self._loud = sink, loud

    def emit(self, kind: str, **fields: Any) -> None:
        if self._loud and kind == "log":
            self._sink.emit(kind, **fields)

    def cancelled(self) -> bool:
        return self._sink.cancelled()
