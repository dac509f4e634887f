"""Option log-likelihoods on bases that take no attention mask of their own: from the prompt's KV cache, or in full."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.evaluation.trees import OptionSample
from core.evaluation.view import Batch, ModelView, can_select, left_padded, pad, select


def continued(view: ModelView, samples: list[OptionSample], batch_size: int) -> list[list[float]]:
    """Sums by sample and option; the options continue copies of the prompt's cache where that can be copied."""
    pad_id, device = view.encoder.pad_id, view.device
    prompts = left_padded([s.prompt for s in samples], [s.task_index for s in samples], pad_id, device)
    out = view(prompts, use_cache=True, keep=1)
    if not can_select(getattr(out, "past_key_values", None)):
        return repeated(view, samples, batch_size)
    first = out.logits[:, -1].float().log_softmax(dim=-1)
    flat = [(owner, option) for owner, sample in enumerate(samples) for option in sample.options]
    owners = torch.tensor([owner for owner, _ in flat], device=device)
    sums = first[owners, torch.tensor([option[0] for _, option in flat], device=device)]
    longer = [i for i, (_, option) in enumerate(flat) if len(option) > 1]
    longer.sort(key=lambda i: len(flat[i][1]))
    size = view.sequences(batch_size, prompts.ids.shape[1] + max(len(option) for _, option in flat))
    for start in range(0, len(longer), size):
        rows = torch.tensor(longer[start : start + size], device=device)
        options = [flat[i][1] for i in longer[start : start + size]]
        batch = prompts.follow(owners[rows], [option[:-1] for option in options], pad_id)
        logits = view(batch, cache=select(out.past_key_values, owners[rows]), use_cache=True).logits
        sums[rows] += _picked(logits, [option[1:] for option in options])
    return _by_sample(sums, samples)


def repeated(view: ModelView, samples: list[OptionSample], batch_size: int) -> list[list[float]]:
    """Sums by sample and option, each option behind its prompt."""
    pairs = [(sample, option) for sample in samples for option in sample.options]
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0].prompt) + len(pairs[i][1]))
    sums = torch.zeros(len(pairs), device=view.device)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        options = [pairs[i][1] for i in part]
        batch = _sequences_of([pairs[i] for i in part], view)
        keep = max(map(len, options)) + 1
        logits = view(batch, keep=keep).logits[:, -keep:-1]
        sums[torch.tensor(part, device=view.device)] = _picked(logits, options, side="left")
    return _by_sample(sums, samples)


def _sequences_of(pairs: list[tuple[OptionSample, list[int]]], view: ModelView) -> Batch:
    return left_padded(
        [sample.prompt for sample, _ in pairs],
        [sample.task_index for sample, _ in pairs],
        view.encoder.pad_id,
        view.device,
        [option for _, option in pairs],
    )


def _picked(logits: Tensor, targets: Sequence[Sequence[int]], side: str = "right") -> Tensor:
    """Summed log-probabilities of ``targets`` (padded at ``side``) under logits (samples, tokens, vocabulary)."""
    ids, present = pad(targets, 0, logits.device, side)
    logits = logits[:, : ids.shape[1]].float()
    chosen = logits.gather(-1, ids[..., None])[..., 0] - logits.logsumexp(dim=-1)
    return (chosen * present).sum(dim=1)


def _by_sample(sums: Tensor, samples: list[OptionSample]) -> list[list[float]]:
    values, found = iter(sums.tolist()), []
    for sample in samples:
        found.append([next(values) for _ in sample.options])
    return found
