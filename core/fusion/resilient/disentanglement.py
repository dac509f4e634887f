"""Weight disentanglement error: how often a fused model decides otherwise than each task's own vector alone would.

Equations (1) and (2) of the studio's specification, after Ortiz-Jimenez et al. 2023 (arXiv:2305.12827): the mean over
tasks of the share of rows where the two decide differently. A decision is the chosen option, or the greedy next token
where answers are free.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.data.kinds import OPTION_KINDS
from core.data.tasks import Task
from core.data.templates import fit
from core.evaluation.answers import Rows, answer
from core.evaluation.batching import Progress, in_batches
from core.evaluation.predictions import Answer
from core.evaluation.view import ModelView, left_padded

Decision = str | int


def decisions(
    view: ModelView, task: Task, rows: Rows, progress: Progress, *, batch_size: int, answers: Sequence[Answer] = ()
) -> list[Decision]:
    """What the model decides in every row; ``answers`` that are known already save asking for options again."""
    if task.info.kind not in OPTION_KINDS:
        return next_tokens(view, task, rows, progress, batch_size=batch_size)
    known = answers or answer(view, task, rows, progress, task_index=0, batch_size=batch_size)
    return [one.prediction for one in known]


def next_tokens(view: ModelView, task: Task, rows: Rows, progress: Progress, *, batch_size: int) -> list[int]:
    """The most likely first token of every answer."""
    limit = view.prompt_limit(task.spec.max_new_tokens)
    prompts = [fit(view.encoder.prompt_ids(row, task.template), [], limit).prompt for row in rows]

    def first(part: list[list[int]]) -> list[int]:
        progress.check()
        batch = left_padded(part, [0] * len(part), view.encoder.pad_id, view.device)
        return view(batch, keep=1).logits[:, -1].argmax(dim=-1).tolist()

    with view.active():
        return in_batches(prompts, first, size=batch_size, length=len)


def disagreement(one: Sequence[Decision], other: Sequence[Decision]) -> float:
    """The share of rows where two models decide differently."""
    return sum(a != b for a, b in zip(one, other, strict=True)) / len(one)
