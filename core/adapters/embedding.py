"""The layer of the token embedding, which an output head with the same weight follows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layer import MixtureLayer, add_product
from .tape import Addressing, RoutingTape


class EmbeddingLayer(MixtureLayer):
    """A linear map of one-hot inputs: to token ``t`` it adds column ``t`` of the up matrix (width, vocabulary).

    ``head``: the output head that has the same weight. Hidden states times the same matrix are added to its logits, so
    that the two remain one; merged, the weight that both have holds the update and neither adds anything.
    """

    def __init__(
        self, base_layer: nn.Embedding, tape: RoutingTape, head: nn.Module | None = None, **quantization: Any
    ) -> None:
        super().__init__(base_layer, tape, **quantization)
        self.transposed = True
        # A bound method: the head of a copied model follows the copy.
        self._followed = None if head is None else head.register_forward_hook(self._follow)

    def release(self) -> None:
        """Let the head go back to what the base computes."""
        if self._followed is not None:
            self._followed.remove()

    def _add(self, adapter: str, x: Tensor, result: Tensor, addressing: Addressing) -> Tensor:
        base, table = self.get_base_layer(), self.tessera_up[adapter].matrix().t()
        found = functional.embedding(x, table, base.padding_idx)  # as in the base, padding moves no row from here
        return result + found * (getattr(base, "embed_scale", 1.0) * self.scaling[adapter])

    def _follow(self, head: nn.Module, given: tuple[Tensor, ...], logits: Tensor) -> Tensor | None:
        return None if self.idle else self._adapt(given[0], logits, self._add_to_logits)

    def _add_to_logits(self, adapter: str, hidden: Tensor, logits: Tensor, addressing: Addressing) -> Tensor:
        up = self.tessera_up[adapter]
        if not torch.is_autocast_enabled(hidden.device.type):
            hidden = self._cast_input_dtype(hidden, up.dtype)
        return add_product(logits, hidden * self.scaling[adapter], up.matrix().t())


def token_embedding(model: nn.Module) -> nn.Embedding | None:
    """The table by which all texts enter a base; None where it has several, or hides it."""
    two_texts = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if two_texts or not hasattr(model, "get_input_embeddings"):
        return None
    try:
        found = _bare(model.get_input_embeddings())
    except (NotImplementedError, AttributeError):
        return None
    return found if isinstance(found, nn.Embedding) else None


def output_head(model: nn.Module) -> nn.Module | None:
    """The layer that makes the logits, or the mixture that stands on it."""
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def tied_head(model: nn.Module, table: nn.Embedding) -> nn.Module | None:
    """The output head of a base where its weight is that of the token embedding."""
    head = _bare(output_head(model))
    return head if getattr(head, "weight", None) is table.weight else None


def _bare(module: Any) -> Any:
    return module.get_base_layer() if isinstance(module, MixtureLayer) else module
