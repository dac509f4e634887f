"""What a fusion method is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from core.data.tasks import Task
from core.data.templates import TextEncoder
from core.fusion.candidate import Candidate
from core.fusion.delta import Delta, TaskVector, paths_of
from core.home import RunFolder
from core.jobs.sinks import Cancelled, Sink
from core.models import load_base
from core.schema import RunSpec


@dataclass
class Setting:
    """One fusion job. ``tasks`` are what the fused model is for: methods that learn read their prompts from them."""

    spec: RunSpec
    folder: RunFolder
    sink: Sink
    vectors: list[TaskVector]
    tasks: Sequence[Task]
    encoder: TextEncoder
    device: str
    resume: bool = False

    @cached_property
    def candidate(self) -> Candidate:
        """The base, loaded when a method first asks for it: many need none."""
        return Candidate(load_base(self.spec.model, self.device), paths_of(self.vectors))

    @property
    def max_length(self) -> int:
        """Tokens of a sample at most: as in training, if the base reads that far."""
        positions = getattr(self.candidate.model.config.get_text_config(), "max_position_embeddings", None)
        return min(self.spec.train.max_length, positions or self.spec.train.max_length)

    def owner(self, task: Task) -> int | None:
        """The place of the first fused run that was trained on the task; None where that cannot be told."""
        known = {task.name, task.info.name}
        return next((place for place, vector in enumerate(self.vectors) if known & set(vector.tasks)), None)

    @property
    def names(self) -> list[str]:
        """The fused runs, in order."""
        return [vector.name for vector in self.vectors]

    @property
    def seed(self) -> int:
        return self.spec.seed

    def check(self, step: int = 0) -> None:
        """Raises Cancelled where the job is asked to stop; call it before each step."""
        if self.sink.cancelled():
            raise Cancelled(step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int = 0) -> None:
        """Say a table that pages show and the database keeps: ``coefficients``, ``mask_density``, ..."""
        self.sink.emit("table", name=name, step=step, columns=list(columns), rows=[list(row) for row in rows])


@dataclass
class Fused:
    """``deltas`` of the fused model on its base. ``step``: the last step of a method that learns."""

    deltas: dict[str, Delta]
    step: int = 0
    facts: dict[str, Any] = field(default_factory=dict)  # for the adapter's config: seeds, coefficients
