"""What an adapter needs of its training rows before the first step; each preparation is in the list below."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from core.adapters.model import MixtureModel
from core.adapters.prelude import SIDE, centroids_of, guided_slots, similarity
from core.data.batches import PROMPT, TaskDataset
from core.jobs.sinks import Cancelled, Sink
from core.training import checkpoints
from core.training.clusters import k_means
from core.training.trainer import restore_model

if TYPE_CHECKING:
    from peft import PeftModel

PHASE = "embedding prompts"


@dataclass(frozen=True)
class Setting:
    """What a preparation works with. ``checkpoint``: where the run goes on from; None: it starts."""

    model: PeftModel
    dataset: TaskDataset
    sink: Sink
    seed: int
    batch_size: int
    pad_id: int
    checkpoint: Path | None = None
    adapter: str = "default"

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
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    found: Tensor | None = None
    for start in _batches(setting, len(order)):
        rows = order[start : start + setting.batch_size]
        longest = len(prompts[rows[0]])
        ids = torch.full((len(rows), longest), setting.pad_id)
        for place, row in zip(ids, rows, strict=True):
            place[: len(prompts[row])] = torch.tensor(prompts[row])
        counted = torch.arange(longest) < torch.tensor([len(prompts[row]) for row in rows]).unsqueeze(1)
        part = tuner.prelude.embed(tuner, ids.to(device), counted.to(device), embedder)
        found = part.new_empty(len(prompts), part.shape[1]) if found is None else found
        found[torch.tensor(rows, device=part.device)] = part
    return found


def _batches(setting: Setting, total: int) -> Iterator[int]:
    """The first row of each batch; says about once a second how far it is, and stops where it is asked to."""
    begun = told = time.monotonic()
    setting.sink.emit("progress", step=0, total=total, phase=PHASE, seconds_left=None)
    for start in range(0, total, setting.batch_size):
        if setting.sink.cancelled():
            raise Cancelled(setting.step)
        yield start
        now, done = time.monotonic(), min(total, start + setting.batch_size)
        if now - told >= 1 or done == total:
            told, left = now, round((now - begun) / done * (total - done), 1)
            setting.sink.emit("progress", step=done, total=total, phase=PHASE, seconds_left=left)


def _prompt(item: dict[str, list[int]]) -> list[int]:
    return [token for token, role in zip(item["input_ids"], item["token_role"], strict=True) if role == PROMPT]


def _tell_clusters(setting: Setting, found: int, wanted: int) -> None:
    if found < wanted:
        message = (
            f"The training rows have {found} different prompts for {wanted} clusters: {wanted - found} clusters stay "
            "empty, and tell their experts nothing. Take fewer clusters, or templates with the rows' own text."
        )
        setting.sink.emit("log", level="warning", message=message)


PREPARATIONS = (cluster_prompts,)
