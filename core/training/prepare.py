"""What an adapter needs of its training rows before the first step; each preparation is in the list below."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from core.adapters.model import MixtureModel
from core.adapters.prelude import SIDE, centroids_of, guided_slots, similarity
from core.data.batches import PROMPT, TaskDataset
from core.evaluation.batching import in_batches
from core.jobs.sinks import Cancelled, Sink
from core.training import checkpoints
from core.training.clusters import k_means
from core.training.experts import place_experts
from core.training.trainer import restore_model

if TYPE_CHECKING:
    from peft import PeftModel

PHASE = "embedding prompts"


@dataclass(frozen=True)
class Setting:
    """What a preparation works with. ``checkpoint``: where the run goes on from; None: it starts.

    ``experts``: what a mixture of experts begins with: name, adapter folder, and a task where that holds several.
    """

    model: PeftModel
    dataset: TaskDataset
    sink: Sink
    seed: int
    batch_size: int
    pad_id: int
    checkpoint: Path | None = None
    adapter: str = "default"
    experts: Sequence[tuple[str, Path, str | None]] = ()

    @property
    def step(self) -> int:
        return 0 if self.checkpoint is None else checkpoints.step_of(self.checkpoint)


def prepare(setting: Setting) -> None:
    """Bring a fresh or resumed adapter and its rows to where training can start.

    Raises Cancelled where the sink asks to stop.
    """
    for preparation in PREPARATIONS:
        preparation(setting)


def cluster_prompts(setting: Setting) -> None:
    """Give intuition gates their centroids, and every training row its similarities to them.

    The prompts of all training rows are embedded and clustered; a run that goes on has its centroids already. The
    similarities travel with the batches, so training pays for no second pass of the base.
    """
    tuner = setting.model.base_model
    slots = guided_slots(tuner, setting.adapter) if isinstance(tuner, MixtureModel) else []
    if not slots:
        return
    if setting.checkpoint is not None:
        restore_model(setting.model, setting.checkpoint)
    prompts = [_prompt(setting.dataset[index]) for index in range(len(setting.dataset))]
    found, known = {}, []
    for slot in slots:
        gate, centroids = slot.site.gate, centroids_of(tuner, slot)
        if gate.embedder not in found:
            found[gate.embedder] = embed_prompts(setting, prompts, gate.embedder)
        embeddings = found[gate.embedder]
        if setting.checkpoint is None:
            made, clusters = k_means(embeddings, len(centroids), seed=setting.seed)
            _tell_clusters(setting, clusters, len(centroids))
            centroids.copy_(functional.normalize(made, dim=-1) if gate.cosine else made)
        known.append(similarity(embeddings, centroids))
    setting.dataset.side[SIDE] = torch.cat(known, 1).cpu()


def embed_prompts(setting: Setting, prompts: list[list[int]], embedder: str) -> Tensor:
    """(rows, width), one row for each prompt; prompts of like length are embedded together."""
    tuner, device = setting.model.base_model, setting.model.device

    def embed(part: list[list[int]]) -> list[Tensor]:
        lengths = torch.tensor([len(prompt) for prompt in part])
        ids = torch.full((len(part), int(lengths.max())), setting.pad_id)
        for row, prompt in zip(ids, part, strict=True):
            row[: len(prompt)] = torch.tensor(prompt)
        counted = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)
        return list(tuner.prelude.embed(tuner, ids.to(device), counted.to(device), embedder))

    progress = _Progress(setting, len(prompts))
    return torch.stack(in_batches(prompts, embed, size=setting.batch_size, length=len, done=progress.add))


class _Progress:
    """Says about once a second how far the prompts are, and stops where it is asked to."""

    def __init__(self, setting: Setting, total: int) -> None:
        self.setting, self.total, self.rows = setting, total, 0
        self.begun = self.told = time.monotonic()
        self._emit(None)

    def add(self, rows: int) -> None:
        if self.setting.sink.cancelled():
            raise Cancelled(self.setting.step)
        self.rows += rows
        now = time.monotonic()
        if now - self.told >= 1 or self.rows == self.total:
            self.told = now
            self._emit(round((now - self.begun) / self.rows * (self.total - self.rows), 1))

    def _emit(self, left: float | None) -> None:
        self.setting.sink.emit("progress", step=self.rows, total=self.total, phase=PHASE, seconds_left=left)


def _prompt(item: dict[str, list[int]]) -> list[int]:
    return [token for token, role in zip(item["input_ids"], item["token_role"], strict=True) if role == PROMPT]


def _tell_clusters(setting: Setting, found: int, wanted: int) -> None:
    if found < wanted:
        message = (
            f"The training rows have {found} different prompts for {wanted} clusters: {wanted - found} clusters stay "
            "empty, and tell their experts nothing. Take fewer clusters, or templates with the rows' own text."
        )
        setting.sink.emit("log", level="warning", message=message)


PREPARATIONS = (place_experts, cluster_prompts)
