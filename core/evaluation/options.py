"""Log-likelihoods of answer options.

An option's log-likelihood is the sum of the log-probabilities of its tokens after the prompt, the end-of-sequence
token included; its length-normalised variant is the mean over the same tokens. A sample is one row: the prompt stands
in it once and the options behind it as a tree (``trees``); what all prompts begin with is computed once in all.
Log-probabilities are taken in float32, at the positions that predict option tokens alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core.evaluation.batching import Coming, in_batches
from core.evaluation.continuing import continued, repeated
from core.evaluation.prefix import Prefix, reads_trees
from core.evaluation.trees import OptionSample, plant
from core.evaluation.view import ModelView

LOGITS = 2**26  # of the positions whose logits are made float32 at once
LIGHT = 2**15  # logits that take about the memory of a token on its way through a base
ON_CPU = 1024  # tokens of a pass there: what it makes still lies in the caches when it is read


@dataclass(frozen=True, slots=True)
class OptionScores:
    """One value for each option of a sample, in the options' order."""

    sums: tuple[float, ...]
    means: tuple[float, ...]


def score_options(
    view: ModelView,
    samples: Sequence[OptionSample],
    *,
    batch_size: int = 32,
    way: str = "tree",
    done: Callable[[int], None] = lambda rows: None,
) -> list[OptionScores]:
    """The scores of every sample's options; a pass has the tokens of ``batch_size`` of the longest sequences.

    ``way``: ``tree``, or for bases that take no attention mask of their own ``cache`` (the options continue copies of
    the prompt's KV cache) and ``repeat`` (each option behind its prompt). A way that the base cannot go gives way to
    the next.
    """
    with view.active():
        if not samples:
            return []
        if way == "tree" and reads_trees(view, samples):
            return _in_trees(view, samples, batch_size, done)
        work = repeated if way == "repeat" else continued
        return in_batches(
            samples,
            lambda part: [
                _scores(sums, sample.options) for sample, sums in zip(part, work(view, part, batch_size), strict=True)
            ],
            size=batch_size,
            length=lambda sample: sample.length,
            done=done,
        )


def _in_trees(
    view: ModelView, samples: Sequence[OptionSample], batch_size: int, done: Callable[[int], None]
) -> list[OptionScores]:
    prefix = Prefix.of(view, samples)
    weight = view.model.config.get_text_config().vocab_size / LIGHT

    def cost(sample: OptionSample) -> int:
        """In tokens: those of its row, and the logits."""
        nodes = len(sample.tree.ids)
        return len(sample.prompt) + nodes + int(weight * (1 + nodes))

    def batch(part: list[OptionSample]) -> Callable[[], list[OptionScores]]:
        found = Coming(_chosen(view, part, prefix))
        return lambda: _parted(found.numpy(), part)

    room = batch_size * view.max_length
    room = min(room, ON_CPU) if view.device.type == "cpu" else room
    with precision(view):
        return in_batches(samples, batch, size=lambda tokens: max(1, room // tokens), length=cost, done=done)


def _chosen(view: ModelView, samples: Sequence[OptionSample], prefix: Prefix) -> Tensor:
    """Log-probabilities of all tokens of all options, one after the other."""
    planted = plant(samples, prefix.length, view.encoder.pad_id, view.device, view.model.dtype)
    logits = view.at(planted.batch, planted.places, cache=prefix.cache)
    return log_probabilities(logits, planted.source, planted.target)


def log_probabilities(logits: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Those of the tokens ``target`` at the places ``source`` of ``logits`` (places, vocabulary), in float32."""
    rows = max(1, LOGITS // logits.shape[1])
    totals = torch.cat([part.float().logsumexp(dim=-1) for part in logits.split(rows)])
    return logits[source, target].float() - totals[source]


def _parted(chosen: np.ndarray, samples: Sequence[OptionSample]) -> list[OptionScores]:
    lengths = np.concatenate([sample.tree.lengths for sample in samples])
    sums = np.add.reduceat(chosen.astype(np.float64), np.cumsum(lengths) - lengths).tolist()
    found, start = [], 0
    for sample in samples:
        found.append(_scores(sums[start : start + len(sample.options)], sample.options))
        start += len(sample.options)
    return found


def _scores(sums: Sequence[float], options: Sequence[Sequence[int]]) -> OptionScores:
    return OptionScores(tuple(sums), tuple(total / len(option) for total, option in zip(sums, options, strict=True)))


def precision(view: ModelView) -> torch.autocast | nullcontext:
    """An adapter over a base in half precision computes as it was trained: under autocast, not in float32."""
    dtype = view.model.dtype
    half = dtype in (torch.bfloat16, torch.float16) and view.device.type == "cuda"
    return torch.autocast("cuda", dtype) if half and view.adapted and view.adapter else nullcontext()
