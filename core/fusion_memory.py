"""What a fusion must hold in memory and write to the disk, from the headers of its sources. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core import capacity, catalog, memory, room
from core.adapters.folders import PREFIX, tensor_shapes
from core.errors import StudioError
from core.fitting import of_base
from core.fusion.methods import FusionMethod, FusionOptions
from core.home import Home
from core.schema import RunSpec

WIDTH = 4  # bytes: updates are float32
UP, DOWN = (".tessera_up.", ".lora_B."), (".tessera_down.", ".lora_A.")
FACTORS = "a method that keeps factors, such as task_arithmetic"


@dataclass(frozen=True)
class Update:
    """Bytes of one run's update: ``whole`` as matrices, ``dense`` those of them that it has no factors of."""

    whole: int
    dense: int


def require(
    spec: RunSpec, method: FusionMethod, options: FusionOptions, adapters: Sequence[Path], home: Home, scored: bool
) -> None:
    """Refuse a fusion that certainly fits neither the device that it could get nor the machine's memory and disk.

    Sums of adapters stay factors and take little. Shapes that cannot be read say nothing: the job does.

    Raises:
        OutOfMemoryError, DiskError: with the parts.
    """
    try:
        base = catalog.shapes(spec.model, home.cache)
        sizes = {line.name: WIDTH * line.in_features * line.out_features for line in base.linears}
        updates = [update_of(folder, sizes) for folder in adapters]
    except (StudioError, OSError):
        return
    one = sum(update.whole for update in updates) // len(updates)
    dense, whole = sum(update.dense for update in updates), one * method.whole(options, len(updates))
    what, fewer = f"Fusing {len(updates)} runs", [FACTORS, "fewer runs"] if whole else ["fewer runs"]
    learned = {"full fine-tunes": dense, "whole updates": whole} if method.learns else {}
    if (place := capacity.largest(spec.device)) is not None and (method.learns or scored):
        loaded = {"weights": memory.least_weights(spec.model, base, capacity.on_gpu(place[0]))}
        helps = fewer if sum(learned.values()) else []
        _refuse(loaded | learned, place, what, [*helps, *of_base(spec.model, base, place[0])])
    fused = {"full fine-tunes": dense, "the fused updates": 0 if method.learns else whole}
    _refuse(fused, capacity.place_of(capacity.CPU), what, fewer)
    if options.form == "dense":
        hint = f"{room.ROOM}, or choose the form svd."
        room.require_bytes(one, home.runs, "The whole matrices of the fused model", hint)


def _refuse(parts: dict[str, int], place: capacity.Place | None, what: str, remedies: Sequence[str]) -> None:
    if refused := capacity.refusal(parts, place, what, remedies):
        raise refused


def update_of(folder: Path, sizes: dict[str, int]) -> Update:
    """Of an adapter folder; ``sizes``: bytes of each projection's whole matrix by its path below the model."""
    found = {name.removeprefix(PREFIX): math.prod(shape) for name, shape in tensor_shapes(folder).items()}
    up = {name.partition(word)[0]: WIDTH * count for name, count in found.items() for word in UP if word in name}
    down = {name.partition(word)[0] for name in found for word in DOWN if word in name}
    return Update(
        whole=sum(sizes.get(path, 0) for path in up),
        dense=sum(size for path, size in up.items() if path not in down and size >= sizes.get(path, size + 1)),
    )
