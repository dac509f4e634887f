"""Free answers: batched greedy generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.evaluation.batching import in_batches
from core.evaluation.decode import Decoding, stop_ids
from core.evaluation.view import ModelView


@dataclass(frozen=True, slots=True)
class GenerationSample:
    prompt: list[int]
    task_index: int = 0


def generate(
    view: ModelView,
    samples: Sequence[GenerationSample],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
    done: Callable[[int], None] = lambda rows: None,
    check: Callable[[], None] = lambda: None,
) -> list[str]:
    """The most likely continuation of every prompt, token by token, without the end token, ends stripped.

    Stops at an end-of-sequence token or after ``max_new_tokens``. ``check`` is called at every step and may raise.
    """

    def batch(part: list[GenerationSample]) -> list[str]:
        return [view.encoder.decode(ids).strip() for ids in _greedy(view, part, max_new_tokens, check)]

    with view.active():
        return in_batches(
            samples,
            batch,
            size=lambda tokens: view.sequences(batch_size, tokens),
            length=lambda sample: len(sample.prompt) + max_new_tokens,
            done=done,
        )


def _greedy(
    view: ModelView, samples: list[GenerationSample], max_new_tokens: int, check: Callable[[], None]
) -> list[list[int]]:
    stop = stop_ids(view)
    answers: list[list[int]] = [[] for _ in samples]
    ended = [False] * len(samples)
    prompts, tasks = [sample.prompt for sample in samples], [sample.task_index for sample in samples]
    decoding = Decoding(view, prompts, tasks, new_tokens=max_new_tokens)
    for step in range(max_new_tokens):
        check()
        tokens = decoding.logits.argmax(dim=-1).tolist()
        for row, token in zip(decoding.rows, tokens, strict=True):
            ended[row] = ended[row] or token in stop
            if not ended[row]:
                answers[row].append(token)
        going = [place for place, row in enumerate(decoding.rows) if not ended[row]]
        if not going or step + 1 == max_new_tokens:
            break
        if len(going) < len(tokens) and decoding.keep(going):
            tokens = [tokens[place] for place in going]
        decoding.push(tokens)
    return answers
