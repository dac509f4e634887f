"""What gates are told of each sample before a pass: how near its prompt is to the clusters of an intuition gate.

The prompt is embedded by the frozen base itself, with its adapters silent, or by a sentence encoder; its similarities
to the centroids become ``Slot.prior``. No gradient flows here, and only prompt tokens are read, so neither padding nor
the answer changes anything.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ConfigurationError
from .tape import PROMPT, Addressing, Slot

if TYPE_CHECKING:
    from .model import MixtureModel

SIDE = "intuition"  # the side input that replaces the embedding: (batch, clusters of all such gates side by side)
BASE_EMBEDDER = "base"


class Prelude:
    """Of one tuner. Holds the sentence encoders that its adapters ask for; they are no part of the model."""

    def __init__(self) -> None:
        self._encoders: dict[str, SentenceEncoder] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_encoders": {}}

    def prepare(
        self, tuner: MixtureModel, batch: Tensor, addressing: Addressing, kept: Mapping[int, Tensor] | None
    ) -> dict[int, Tensor]:
        """Fill the priors of this pass; returns them by number of the leading slot, to be kept with the text.

        ``kept`` are those of an earlier part of the same text.
        """
        for slot in tuner.tape.slots:
            slot.prior = None
        leaders = _leaders(tuner, addressing)
        if not leaders:
            return {}
        if kept is not None and all(number in kept for number, _ in leaders):
            priors = {number: _of_rows(kept[number], batch, slot, addressing) for number, slot in leaders}
        else:
            priors = self._fresh(tuner, batch, addressing, leaders)
        for slot in tuner.tape.slots:
            if slot.site.gate.guided:
                slot.prior = next((priors[n] for n, lead in leaders if _leads(lead, slot)), None)
        return priors

    def _fresh(
        self, tuner: MixtureModel, batch: Tensor, addressing: Addressing, leaders: Sequence[tuple[int, Slot]]
    ) -> dict[int, Tensor]:
        priors: dict[int, Tensor] = {}
        for adapter in dict.fromkeys(slot.adapter for _, slot in leaders):
            mine = [(number, slot) for number, slot in leaders if slot.adapter == adapter]
            part = addressing if addressing.parts is None else addressing.parts[adapter]
            if SIDE in part.side:
                priors |= _given(part.side[SIDE], mine)
                continue
            if addressing.continued:
                raise ConfigurationError(
                    "An intuition gate cannot read the prompt from the middle of a text that it did not see begin.",
                    "Continue with the KV cache that this model returned for the prompt, with the same adapter.",
                )
            rows = batch if part.rows is None else batch.index_select(0, part.rows.to(batch.device))
            prompt = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
            if part.token_role is not None:
                prompt = part.token_role.to(rows.device) == PROMPT
            found: dict[str, Tensor] = {}
            for number, slot in mine:
                name = slot.site.gate.embedder
                if name not in found:
                    found[name] = self.embed(tuner, rows, prompt, name)
                priors[number] = similarity(found[name], centroids_of(tuner, slot))
        return priors

    def embed(self, tuner: MixtureModel, batch: Tensor, prompt: Tensor, embedder: str = BASE_EMBEDDER) -> Tensor:
        """Embeddings (rows, width) of length one in float32: of token ids or input embeddings, ``prompt`` saying where.

        A row without prompt tokens has the embedding zero.
        """
        if embedder == BASE_EMBEDDER:
            return _by_base(tuner, batch, prompt)
        if batch.dim() != 2:
            raise ConfigurationError(
                f"The sentence encoder {embedder} reads text, but the model was given embeddings instead of token ids.",
                "Use the embedder base, or pass input_ids.",
            )
        if embedder not in self._encoders:
            self._encoders[embedder] = SentenceEncoder(embedder, tuner.model.config._name_or_path)
        return self._encoders[embedder](batch, prompt)


class SentenceEncoder:
    """A sentence-transformers style encoder: the mean over its tokens, of length one. Frozen, never saved."""

    def __init__(self, name: str, base: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        try:
            self.reads = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
            self.writes = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            model = AutoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=False)
            self.model = model.eval().requires_grad_(False)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"The sentence encoder {name} cannot be loaded beside {base}: {str(error).splitlines()[0]}",
                "Give a folder or Hub id of an encoder with safetensors weights; the base needs its tokenizer too.",
            ) from error

    @torch.no_grad()
    def __call__(self, ids: Tensor, prompt: Tensor) -> Tensor:
        """Of the text that the prompt's token ids stand for."""
        self.model.to(ids.device)
        rows = zip(ids.tolist(), prompt.tolist(), strict=True)
        texts = [[token for token, kept in zip(row, mask, strict=True) if kept] for row, mask in rows]
        texts = [self.reads.decode(text, skip_special_tokens=True) for text in texts]
        longest = min(self.writes.model_max_length, getattr(self.model.config, "max_position_embeddings", 512))
        read = self.writes(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(ids.device)
        with torch.autocast(ids.device.type, enabled=False):
            states = self.model(**read).last_hidden_state
        return pooled(states, read["attention_mask"].bool())


def pooled(states: Tensor, counted: Tensor) -> Tensor:
    """The mean of ``states`` (rows, tokens, width) where ``counted``, of length one, in float32 or wider."""
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    states = states.masked_fill(~counted.unsqueeze(-1).to(states.device), 0)  # fully masked rows can hold NaN
    mean = states.sum(1) / counted.sum(1, keepdim=True).clamp_min(1).to(states)
    return functional.normalize(mean, dim=-1)


def similarity(embeddings: Tensor, centroids: Tensor) -> Tensor:
    """``c = C e`` (rows, clusters), without softmax or centring."""
    return embeddings.to(centroids) @ centroids.t()


def width_of(model: nn.Module, embedder: str) -> int:
    """The width of an embedder's vectors."""
    if embedder == BASE_EMBEDDER:
        return model.config.get_text_config().hidden_size
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(embedder, trust_remote_code=False).hidden_size
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"The sentence encoder {embedder} cannot be read: {str(error).splitlines()[0]}",
            "Give a folder or Hub id of an encoder, or use the embedder base.",
        ) from error


def fill_widths(cells: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """Dumped cells with the width of the embeddings that their gates are told of."""
    for cell in cells:
        gate = cell["gate"]
        if "embedder" in gate and gate["width"] is None:
            if Path(gate["embedder"]).expanduser().is_dir():
                gate["embedder"] = str(Path(gate["embedder"]).expanduser().resolve())
            gate["width"] = width_of(model, gate["embedder"])
    return cells


def guided_slots(tuner: MixtureModel, adapter: str) -> list[Slot]:
    """The leading slots of an adapter's intuition gates, in order."""
    return [s for s in tuner.tape.slots if s.adapter == adapter and s.site.gate.guided and s.site.leads]


def centroids_of(tuner: MixtureModel, slot: Slot) -> Tensor:
    """The centroids (clusters, width) that a leading slot's gate holds."""
    return tuner.model.get_submodule(slot.site.name).tessera_gate[slot.adapter].centroids


def _leaders(tuner: MixtureModel, addressing: Addressing) -> list[tuple[int, Slot]]:
    """The slots whose gates hold centroids that this pass needs, with their numbers."""
    here = tuner.active_adapters if addressing.parts is None else addressing.parts
    wanted = [
        (number, slot)
        for number, slot in enumerate(tuner.tape.slots)
        if slot.site.gate.guided and slot.site.leads and slot.adapter in here
    ]
    return [(n, slot) for n, slot in wanted if not tuner.model.get_submodule(slot.site.name).disable_adapters]


def _leads(leader: Slot, slot: Slot) -> bool:
    return (leader.adapter, leader.site.name) == (slot.adapter, slot.site.leader)


def _given(side: Tensor, leaders: Sequence[tuple[int, Slot]]) -> dict[int, Tensor]:
    sizes = [slot.site.gate.centroids(slot.site.experts) for _, slot in leaders]
    if side.dim() != 2 or side.shape[1] != sum(sizes):
        raise ConfigurationError(
            f"The side input {SIDE} has shape {tuple(side.shape)}, but the gates have {sum(sizes)} clusters.",
            "Give each row its similarities to all clusters, or leave it out: the model computes it.",
        )
    return {number: part for (number, _), part in zip(leaders, side.split(sizes, 1), strict=True)}


def _of_rows(prior: Tensor, batch: Tensor, slot: Slot, addressing: Addressing) -> Tensor:
    rows = batch.shape[0] if addressing.parts is None else len(addressing.parts[slot.adapter].rows)
    if prior.shape[0] == rows:
        return prior
    if prior.shape[0] == 0 or rows % prior.shape[0]:
        raise ConfigurationError(
            f"The prompts of {prior.shape[0]} rows were read, but {rows} rows go on from them.",
            "Continue with the cache of the same batch.",
        )
    return prior.repeat_interleave(rows // prior.shape[0], 0)


@torch.no_grad()
def _by_base(tuner: MixtureModel, batch: Tensor, prompt: Tensor) -> Tensor:
    """Of the frozen base: its last hidden states over the prompt."""
    backbone = tuner.model.base_model
    given: dict[str, Any] = {"input_ids" if batch.dim() == 2 else "inputs_embeds": batch}
    if "position_ids" in inspect.signature(backbone.forward).parameters:
        given["position_ids"] = (prompt.long().cumsum(-1) - 1).clamp_min(0)
    with _silent(tuner):
        states = backbone(**given, attention_mask=prompt.long(), use_cache=False).last_hidden_state
    return pooled(states, prompt)


@contextmanager
def _silent(tuner: MixtureModel) -> Iterator[None]:
    """The base alone and without dropout."""
    training = [module for module in tuner.model.modules() if module.training]
    for module in training:
        module.training = False
    tuner.tape.silent = True
    try:
        yield
    finally:
        tuner.tape.silent = False
        for module in training:
            module.training = True
