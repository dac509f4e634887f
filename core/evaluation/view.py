"""One way to call a model that is scored: plain or adapted, adapter on or off, with a KV cache."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from core.data.batches import ANSWER, PAD, PROMPT
from core.data.templates import TextEncoder
from core.errors import ConfigurationError

if TYPE_CHECKING:
    from transformers import Cache


@dataclass(frozen=True)
class ModelView:
    """``adapter`` False speaks for the untouched base under a PeftModel; ``max_length`` is that of training."""

    model: Any
    encoder: TextEncoder
    adapter: bool = True
    max_length: int = 512

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def adapted(self) -> bool:
        """Whether the model is a PeftModel, which takes ``task_index`` and ``token_role``."""
        return hasattr(self.model, "peft_config")

    @property
    def positions(self) -> int | None:
        """The longest sequence that the base was made for, where its config names one."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def prompt_limit(self, new_tokens: int) -> int:
        """Prompt tokens kept before ``new_tokens`` are generated: as in training, if the base reads that far."""
        room = self.max_length - 1
        if self.positions is not None:
            room = min(room, self.positions - new_tokens)
        if room < 1:
            raise ConfigurationError(
                f"The base reads {self.positions} tokens: {new_tokens} generated ones leave no room for a prompt.",
                "Lower max_new_tokens, or choose a base with a longer context.",
            )
        return room

    def sequences(self, batch_size: int, tokens: int) -> int:
        """Sequences of ``tokens`` tokens that take the memory of ``batch_size`` of the longest, at least as many."""
        return max(batch_size, batch_size * self.max_length // tokens)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Evaluation mode without gradients, the adapter on or off; the model's mode is restored afterwards."""
        training = self.model.training
        off = self.model.disable_adapter() if self.adapted and not self.adapter else nullcontext()
        self.model.eval()
        try:
            with torch.no_grad(), off:
                yield
        finally:
            self.model.train(training)

    def at(self, batch: Batch, places: Tensor, *, cache: Cache | None = None) -> Tensor:
        """Logits (N, vocabulary) at the flat positions ``places`` (row * columns + column) alone.

        A head that is adapted sees the whole batch, as its gates may.
        """
        base = self.model.get_base_model() if self.adapted else self.model
        head = base.get_output_embeddings()
        narrow = isinstance(head, nn.Linear)
        hook = head.register_forward_pre_hook(lambda _, given: (_at(given[0], places),)) if narrow else None
        try:
            logits = self(batch, cache=cache, use_cache=cache is not None).logits
        finally:
            if hook is not None:
                hook.remove()
        return logits if narrow else _at(logits, places)

    def __call__(self, batch: Batch, *, cache: Cache | None = None, keep: int = 0, use_cache: bool = False) -> Any:
        """A forward pass; ``keep``: logits of the last so many positions only (0: of all)."""
        extra: dict[str, Any] = {}
        if self.adapted:
            extra = {"task_index": batch.task_index, "token_role": batch.roles}
            if batch.names is not None:
                extra["adapter_names"] = batch.names
        return self.model(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            past_key_values=cache,
            use_cache=use_cache,
            logits_to_keep=keep,
            **extra,
        )


@dataclass(frozen=True)
class Batch:
    """``ids``, ``positions`` and ``roles`` are (samples, tokens); ``mask`` also covers what lies in the cache, or is
    (samples, 1, tokens, tokens seen) and added to attention scores.

    ``names``: the adapter of each sample where they differ, ``__base__`` for none.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    roles: Tensor
    task_index: Tensor
    names: list[str] | None = None

    def follow(self, owners: Tensor, tokens: Sequence[Sequence[int]], pad_id: int) -> Batch:
        """The batch of ``tokens`` that continue the samples ``owners`` after a cached pass over this one."""
        ids, present = pad(tokens, pad_id, self.ids.device, side="right")
        lengths = self.mask.sum(dim=1)[owners]
        return Batch(
            ids,
            torch.cat([self.mask[owners], present], dim=1),
            lengths[:, None] + torch.arange(ids.shape[1], device=ids.device),
            torch.where(present.bool(), ANSWER, PAD).to(torch.int8),
            self.task_index[owners],
            None if self.names is None else [self.names[owner] for owner in owners.tolist()],
        )


def left_padded(
    prompts: Sequence[Sequence[int]],
    task_index: Sequence[int],
    pad_id: int,
    device: torch.device,
    answers: Sequence[Sequence[int]] | None = None,
) -> Batch:
    """Prompts, each followed by its answer if there are any, ending at the same column."""
    answers = answers or [()] * len(prompts)
    ids, mask = pad([[*p, *a] for p, a in zip(prompts, answers, strict=True)], pad_id, device, side="left")
    roles = torch.where(mask.bool(), PROMPT, PAD).to(torch.int8)
    for row, answer in zip(roles, answers, strict=True):
        row[len(row) - len(answer) :] = ANSWER
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return Batch(ids, mask, positions, roles, torch.tensor(task_index, device=device))


def pad(sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device, side: str) -> tuple[Tensor, Tensor]:
    """(samples, tokens) ids and mask of sequences of different lengths."""
    length = max(map(len, sequences))
    ids = torch.full((len(sequences), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(sequences), length), dtype=torch.long)
    for i, sequence in enumerate(sequences):
        place = slice(length - len(sequence), length) if side == "left" else slice(0, len(sequence))
        ids[i, place] = torch.tensor(sequence, dtype=torch.long)
        mask[i, place] = 1
    return ids.to(device), mask.to(device)


def _at(states: Tensor, places: Tensor) -> Tensor:
    return states.flatten(0, 1).index_select(0, places)


def can_select(cache: Any) -> bool:
    """Whether every layer of the cache keeps plain keys and values, whose rows can be picked."""
    from transformers.cache_utils import DynamicLayer

    return all(isinstance(layer, DynamicLayer) for layer in getattr(cache, "layers", [None]))


def select(cache: Cache, rows: Tensor) -> Cache:
    """A cache of the given rows, repeated as often as they are named; ``cache`` itself stays as it is.

    The decisions of sample-level gates, and what gates were told of the prompts, travel with the cache and are picked
    along.
    """
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(rows)
    if decisions := getattr(cache, "tessera_decisions", None):
        chosen.tessera_decisions = {
            slot: replace(
                routing,
                probs=routing.probs[rows],
                weights=routing.weights[rows],
                folded=None if routing.folded is None else routing.folded[rows],
            )
            for slot, routing in decisions.items()
        }
    if priors := getattr(cache, "tessera_priors", None):
        chosen.tessera_priors = {slot: prior[rows] for slot, prior in priors.items()}
    return chosen
