"""Token-by-token decoding of a batch with a KV cache; finished samples leave the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from core.evaluation.view import Batch, ModelView, can_select, left_padded, select


class Decoding:
    """The state of several growing answers. ``logits`` (samples, vocabulary) are those of the next token, float32.

    Call within ``view.active()``. ``rows`` names the original samples that are still in the batch; ``names`` gives
    each sample an adapter of its own.
    """

    def __init__(
        self,
        view: ModelView,
        prompts: Sequence[Sequence[int]],
        task_index: Sequence[int],
        names: Sequence[str] | None = None,
    ) -> None:
        self.view = view
        batch = left_padded(prompts, task_index, view.encoder.pad_id, view.device)
        self._batch = batch if names is None else replace(batch, names=list(names))
        self.rows = list(range(len(prompts)))
        self._forward(None)

    def push(self, tokens: Sequence[int]) -> None:
        """Append one token to every sample of the batch and compute the next logits."""
        everyone = torch.arange(len(self.rows), device=self.view.device)
        self._batch = self._batch.follow(everyone, [[token] for token in tokens], self.view.encoder.pad_id)
        self._forward(self._cache)

    def keep(self, places: Sequence[int]) -> bool:
        """Go on with the samples at these places of the batch alone; False where the cache cannot be divided.

        Mixed batches stay whole: their gates' decisions are kept by adapter, not by row.
        """
        if self._batch.names is not None or not can_select(self._cache):
            return False
        chosen = torch.tensor(places, device=self.view.device)
        batch = self._batch
        parts = (batch.ids, batch.mask, batch.positions, batch.roles, batch.task_index)
        self._batch = Batch(*(part[chosen] for part in parts))
        self._cache = select(self._cache, chosen)
        self.logits = self.logits[chosen]
        self.rows = [self.rows[place] for place in places]
        return True

    def _forward(self, cache) -> None:
        out = self.view(self._batch, cache=cache, use_cache=True, keep=1)
        self._cache = out.past_key_values
        self.logits = out.logits[:, -1].float()


def stop_ids(view: ModelView) -> set[int]:
    """The tokens that end an answer: the tokenizer's end of sequence and those of the base's generation settings."""
    settings = getattr(view.model, "generation_config", None)
    named = getattr(settings, "eos_token_id", None)
    return {view.encoder.eos_id, *(named if isinstance(named, list) else [named] if named is not None else [])}
