"""The fixed rows on which a run is watched: validation loss and routing in evaluation mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from core.data.batches import TaskDataset
from core.data.tasks import Task
from core.data.templates import TextEncoder
from core.training.loss import AnswerCollator, AnswerHead

if TYPE_CHECKING:
    from core.routing.recorder import RoutingRecorder


class Probe:
    """The first ``rows`` rows of each task in one split, batched once; tasks without rows there are left out."""

    def __init__(
        self, tasks: Sequence[Task], encoder: TextEncoder, split: str, *, rows: int, batch_size: int, max_length: int
    ) -> None:
        self.split, self.names = split, [task.name for task in tasks]
        dataset = TaskDataset(tasks, encoder, split, max_length)
        starts = [sum(dataset.sizes[:place]) for place in range(len(dataset.sizes))]
        chosen = [
            start + row for start, size in zip(starts, dataset.sizes, strict=True) for row in range(min(size, rows))
        ]
        items = sorted((dataset[index] for index in chosen), key=lambda item: len(item["input_ids"]))
        collate = AnswerCollator(encoder.pad_id)
        self.batches = [collate(items[i : i + batch_size]) for i in range(0, len(items), batch_size)]
        self.missing = [task.name for task, size in zip(tasks, dataset.sizes, strict=True) if not size]

    def __bool__(self) -> bool:
        return bool(self.batches)

    @torch.no_grad()
    def losses(
        self, model: nn.Module, device: torch.device | str, recorder: RoutingRecorder | None = None
    ) -> dict[str, float]:
        """Mean loss per answer token of each task, dropout off; ``recorder`` adds up the routing of the same passes."""
        was_training = model.training
        model.eval()
        head = AnswerHead(model)
        sums = torch.zeros(2, len(self.names), dtype=torch.float64, device=device)
        try:
            for batch in self.batches:
                batch = to_device(batch, device)
                losses = head.losses(batch).double()
                sums[0].index_add_(0, batch["target_task"], losses)
                sums[1].index_add_(0, batch["target_task"], torch.ones_like(losses))
                if recorder is not None:
                    recorder.update()
        finally:
            model.train(was_training)
        return {name: loss / count for name, loss, count in zip(self.names, *sums.tolist(), strict=True) if count}


def to_device(batch: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """The batch with its tensors there; what is for the host stays."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
