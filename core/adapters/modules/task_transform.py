"""A shared down matrix with a small matrix for each task behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...errors import ConfigurationError
from .down import SharedDownModule

if TYPE_CHECKING:
    from ..cells import Site
    from ..tape import Addressing
    from ..words.task_transform import TaskTransformDown


class TaskTransformDownModule(SharedDownModule):
    """``weight`` (rank, inputs), ``transform`` (tasks, rank, rank), or (tasks, rank) where it is diagonal.

    The transforms start as identities, so that tasks begin alike (MTL-LoRA).
    """

    def __init__(self, word: TaskTransformDown, site: Site) -> None:
        super().__init__(word, site)
        same = torch.ones(site.tasks, site.rank)
        self.transform = nn.Parameter(same if word.diagonal else torch.diag_embed(same))

    def hidden(self, product: Tensor, addressing: Addressing) -> Tensor:
        if addressing.task_index is None:
            raise ConfigurationError(
                "This adapter transforms by task, but the batch does not say which task each sample belongs to.",
                "Pass task_index, one task number for each row.",
            )
        if product.dim() != 3:
            raise ConfigurationError(
                f"A transform by task needs (batch, tokens, features), but the projection sees {product.dim()} axes.",
                "Use another down word for this projection.",
            )
        own = self.transform[addressing.task_index]
        product = product * own.unsqueeze(1) if own.dim() == 2 else torch.bmm(product, own.transpose(1, 2))
        return product.unsqueeze(-2)

    def experts(self, task: int | None = None) -> Tensor:
        if task is None:
            raise ConfigurationError(
                "This adapter transforms by task, so no single weight equals it.",
                "Merge it for one task: core.adapters.merging.merge_task.",
            )
        own = self.transform[task]
        return (own.unsqueeze(-1) * self.weight if own.dim() == 1 else own @ self.weight).unsqueeze(0)
