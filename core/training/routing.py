"""The routing of a run: auxiliary losses while training, snapshots at chosen moments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from core.adapters.attach import tape_of
from core.home import RunFolder
from core.jobs.sinks import Sink
from core.routing.recorder import RoutingRecorder
from core.routing.snapshot import RoutingSnapshot


class Routing:
    """What the gates of one model do, for one run."""

    def __init__(self, model: nn.Module, tasks: Sequence[str], folder: RunFolder, sink: Sink) -> None:
        self.tape, self.tasks, self.folder, self.sink = tape_of(model), list(tasks), folder, sink

    @property
    def gated(self) -> bool:
        """Whether there is anything to record."""
        return bool(self.tape.slots)

    @property
    def settled(self) -> int:
        """The number of optimiser steps after which no auxiliary loss begins any more."""
        return max((getattr(slot.site.up, "after", 0) for slot in self.tape.slots), default=0)

    def auxiliary_losses(self, step: int) -> dict[str, Tensor]:
        """The auxiliary losses of the last forward pass by name, weighted, after ``step`` optimiser steps."""
        self.tape.step = step
        return self.tape.auxiliary_losses()

    @contextmanager
    def recording(self, wanted: bool = True) -> Iterator[RoutingRecorder | None]:
        yield RoutingRecorder(self.tape, self.tasks) if wanted else None

    def publish(self, recorder: RoutingRecorder, step: int, moment: str, split: str) -> RoutingSnapshot:
        """Save what the recorder saw, say so, and return it."""
        snapshot = recorder.snapshot()
        file = f"{moment}.npz"
        snapshot.save(self.folder.routing / file)
        self.sink.emit("routing", step=step, moment=moment, split=split, file=file)
        return snapshot
