"""What experts write to prompts that have no options: asked once, so that the merged model never reads its own text."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from core.evaluation.generate import GenerationSample, generate
from core.evaluation.view import ModelView
from core.fusion.delta import TaskVector
from core.fusion.learned.layout import repeated
from core.fusion.learned.objective import Objective
from core.fusion.learned.prompts import LONGEST_ANSWER, Prompt, TaskPrompts
from core.fusion.setting import Setting

Answers = dict[str, list[int]]  # number of the prompt -> tokens
JUDGED = 32  # prompts by which the surest expert is found


def write_answers(setting: Setting, objective: Objective, known: dict[str, Answers]) -> dict[str, Answers]:
    """Give the prompts of open-ended tasks the greedy answer of their task's expert, by task.

    The expert is the one run that was trained on the task (the first of several). Where none is known to be, it is the
    run that gives its own greedy answers the highest mean log-probability: the surest one. ``known`` answers, of an
    earlier attempt, are not asked again.
    """
    answers = dict(known)
    for task in objective.sequence_tasks():
        if task.name not in answers:
            answers[task.name] = _ask(setting, objective, task)
        for number, tokens in answers[task.name].items():
            task.set_answer(int(number), tokens)
    return answers


def _ask(setting: Setting, objective: Objective, task: TaskPrompts) -> Answers:
    owner = setting.owner(task.task)
    if owner is not None:
        expert = setting.vectors[owner]
    else:
        few = range(min(JUDGED, len(task)))
        expert = max(setting.vectors, key=lambda vector: _sureness(setting, objective, task, vector, few))
        message = f"{task.name}: no run says that it was trained on it; the surest, {expert.name}, writes its answers."
        setting.sink.emit("log", level="info", message=message)
    return _answers(setting, task, expert, range(len(task)))


def _answers(setting: Setting, task: TaskPrompts, expert: TaskVector, numbers: Sequence[int]) -> Answers:
    """Greedy answers, with the end of sequence where they reach it."""
    longest = min(LONGEST_ANSWER, task.task.spec.max_new_tokens)
    setting.sink.emit("progress", step=0, total=len(numbers), phase=f"asking {expert.name}", seconds_left=None)
    moved = {path: delta.to(setting.device) for path, delta in expert.deltas.items()}
    with setting.candidate.using(moved) as model:
        view = ModelView(model, setting.encoder, max_length=setting.spec.train.max_length)
        samples = [GenerationSample(task[number].ids) for number in numbers]
        batch = setting.spec.evaluation.batch_size
        texts = generate(view, samples, max_new_tokens=longest, batch_size=batch, check=setting.check)
    return {
        str(number): setting.encoder.answer_ids(text)[:longest] for number, text in zip(numbers, texts, strict=True)
    }


@torch.no_grad()
def _sureness(
    setting: Setting, objective: Objective, task: TaskPrompts, expert: TaskVector, numbers: Sequence[int]
) -> float:
    """Mean log-probability of a token of the expert's own answers."""
    written = _answers(setting, task, expert, numbers)
    prompts = [Prompt(task[number].ids, (tuple(written[str(number)]),)) for number in numbers]
    moved = {path: delta.to(setting.device) for path, delta in expert.deltas.items()}
    with setting.candidate.using(moved) as model:
        order = [
            (n, prompt.options[0][:cut]) for n, prompt in enumerate(prompts) for cut in range(len(prompt.options[0]))
        ]
        logits = repeated(prompts).layout(order, objective.pad_id, setting.candidate.device).logits(model)
    tokens = torch.tensor([token for prompt in prompts for token in prompt.options[0]], device=logits.device)
    return float(logits.float().log_softmax(-1).gather(-1, tokens[:, None]).mean())
