"""Routers on tokens and sequences, and the table of tasks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...errors import ConfigurationError
from ..tape import PROMPT, Addressing, Routing, Slot
from .base import GateModule, wide

if TYPE_CHECKING:
    from ..cells import Site
    from ..words.gate import RouterGate, TaskGate

FEW = 8  # selected experts up to which maxima one after the other beat a sort, in compiled code


def route(logits: Tensor, selected: int, renormalise: bool = True) -> Routing:
    """Softmax in float32 (or wider); the ``selected`` largest are kept, made to sum to one or as they were."""
    probs = wide(logits).softmax(-1)
    if selected >= probs.shape[-1]:
        return Routing(probs, probs)
    if torch.compiler.is_compiling() and selected <= FEW:
        kept = _largest(probs.detach(), selected)
        weights = (probs * kept).clamp_min(torch.finfo(probs.dtype).tiny) * kept
        return Routing(probs, weights / weights.sum(-1, keepdim=True) if renormalise else weights)
    top = probs.topk(selected, dim=-1)
    values = top.values.clamp_min(torch.finfo(probs.dtype).tiny)  # a selected expert never has weight zero
    if renormalise:
        values = values / values.sum(-1, keepdim=True)
    return Routing(probs, torch.zeros_like(probs).scatter(-1, top.indices, values))


def _largest(probs: Tensor, selected: int) -> Tensor:
    """One where an expert is among the ``selected`` largest, else zero: maxima one after the other.

    A compiler makes one kernel of this and what surrounds it; of a sort it cannot.
    """
    experts = torch.arange(probs.shape[-1], device=probs.device)
    kept = torch.zeros_like(probs)
    for _ in range(selected):
        best = (probs - 2 * kept).argmax(-1, keepdim=True)
        kept = kept + (experts == best)
    return kept


def over_prompt(logits: Tensor, addressing: Addressing) -> Tensor:
    """The mean over each sample's prompt tokens: (batch, tokens, n) to (batch, 1, n) in float32.

    Raises:
        ConfigurationError: the pass holds no prompt, or the projection sees no axis of samples.
    """
    if addressing.continued:
        raise ConfigurationError(
            "A sequence gate cannot decide from the middle of a text: the KV cache carries no decision.",
            "Continue with the cache that this model returned for the prompt, with the same adapter.",
        )
    if logits.dim() != 3:
        raise ConfigurationError(
            f"A sequence gate needs (batch, tokens, features), but the projection sees {logits.dim()} axes.",
            "Use a token gate for this projection.",
        )
    logits = wide(logits)
    if addressing.token_role is None:
        return logits.mean(1, keepdim=True)
    prompt = (addressing.token_role == PROMPT).to(logits.dtype).unsqueeze(-1)
    return (logits * prompt).sum(1, keepdim=True) / prompt.sum(1, keepdim=True).clamp_min(1)


class RouterModule(GateModule):
    """``weight`` (experts, inputs)."""

    def __init__(self, word: RouterGate, site: Site) -> None:
        super().__init__()
        self.selected, self.renormalise = word.selected(site.experts), word.renormalise
        self.weight = nn.Parameter(torch.empty(site.experts, site.in_features))
        if word.init == "normal":
            nn.init.normal_(self.weight, std=0.02)
        else:
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def matrix(self) -> Tensor:
        return self.weight


class TokenGateModule(RouterModule):
    def forward(self, logits: Tensor, addressing: Addressing, slot: Slot, down: Tensor | None) -> Routing:
        return route(logits, self.selected, self.renormalise)


class SequenceGateModule(RouterModule):
    """The mean of the logits over the prompt is the logit of the mean, so one product serves both."""

    def forward(self, logits: Tensor, addressing: Addressing, slot: Slot, down: Tensor | None) -> Routing:
        if slot.decision is not None:
            return slot.decision
        pooled = over_prompt(logits, addressing)
        return route(pooled, self.selected, self.renormalise)


class TaskGateModule(GateModule):
    """``weight`` (tasks, experts)."""

    def __init__(self, word: TaskGate, site: Site) -> None:
        super().__init__()
        self.selected, self.renormalise = word.selected(site.experts), word.renormalise
        self.temperature = word.temperature
        self.weight = nn.Parameter(torch.empty(site.tasks, site.experts))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, logits: Tensor | None, addressing: Addressing, slot: Slot, down: Tensor | None) -> Routing:
        if addressing.task_index is None:
            raise ConfigurationError(
                "This adapter has a task gate, but the batch does not say which task each sample belongs to.",
                "Pass task_index, one task number for each row.",
            )
        return self._decided(addressing.task_index.unsqueeze(1))

    def of_task(self, task: int) -> Tensor:
        return self._decided(task).weights

    def _decided(self, task: Tensor | int) -> Routing:
        logits = wide(self.weight[task]) / self.temperature
        return route(logits, self.selected, self.renormalise)
