"""Stored rows of a run's tasks as the prompts that the run makes of them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from core.data.store import DatasetStore
from core.data.tasks import load_tasks
from core.errors import NotFoundError
from core.schema import RunSpec


@dataclass(frozen=True)
class Prompt:
    """One row: ``text`` is the user's turn, or with ``raw`` the bare text that stands before the answer."""

    row: int
    text: str
    answer: str
    system: str = ""
    raw: bool = False


def prompts(store: DatasetStore, spec: RunSpec, task: str, start: int, limit: int, split: str) -> list[Prompt]:
    tasks = {found.name: found for found in load_tasks(store, spec.tasks, spec.seed)}
    if task not in tasks:
        raise NotFoundError(f"The run has no task {task!r}.", f"It has {', '.join(tasks)}.")
    chosen = tasks[task]
    found = []
    for index, row in enumerate(store.rows(chosen.dataset_id, chosen.info.name, split, start, limit), start):
        row = row | {"task": task, "instruction": row["instruction"] or chosen.instruction}
        if chosen.info.kind == "classification":
            row["choices"] = row["choices"] or list(chosen.info.labels)
        template = chosen.template
        if template.style == "none":
            found.append(Prompt(index, row["output"], "", raw=True))
            continue
        text, plain = template.user_text(row), template.style == "plain"
        system = row.get("system") or template.system
        found.append(Prompt(index, f"{text}\n" if plain else text, row["output"], "" if plain else system, plain))
    return found
