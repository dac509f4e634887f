"""What is left of a task vector before it is combined: its largest entries, or a random share of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from peft.utils.merge_utils import prune
from torch import Tensor

from core.fusion.delta import TaskVector

LOW = 16  # bits of a float32 that the second histogram sorts


def largest(tensor: Tensor, density: float) -> Tensor:
    """The ``int(density * entries)`` entries of largest magnitude, the others zero."""
    return tensor if density >= 1 else prune(tensor, density, "magnitude")


def above(tensor: Tensor, threshold: float) -> Tensor:
    """The entries whose magnitude is at least ``threshold``, the others zero."""
    return torch.where(tensor.abs() >= threshold, tensor, 0)


def entries(vectors: Sequence[TaskVector]) -> int:
    """Of a whole task vector: a projection that a run does not touch is all zeros in it, if another one touches it."""
    shapes = {path: delta.shape for vector in vectors for path, delta in vector.deltas.items()}
    return sum(rows * columns for rows, columns in shapes.values())


@torch.no_grad()
def limit_of(vector: TaskVector, keep: int, device: str | torch.device) -> float:
    """The smallest magnitude among a vector's ``keep`` largest entries; 0 where it has no more than that."""
    if keep >= entries([vector]):
        return 0.0
    return magnitude_at(lambda: (delta.to(device).dense() for delta in vector.deltas.values()), keep)


def dropped(tensor: Tensor, density: float) -> Tensor:
    """Each entry kept with probability ``density`` and then divided by it, so that the expectation stays (DARE)."""
    return tensor if density >= 1 else prune(tensor, density, "random", rescale=True)


def magnitude_at(tensors: Callable[[], Iterable[Tensor]], keep: int) -> float:
    """The ``keep``-th largest magnitude of all entries of float32 tensors together, exactly; ``keep`` is at least 1.

    ``tensors`` is called twice and may make each tensor when it is asked for: nothing as long as all of them is held,
    so it works where ``torch.kthvalue`` has no memory and ``torch.quantile`` refuses. Magnitudes are sorted by their
    bits, which for floats of one sign have the order of the numbers: upper halves first, then lower ones.
    """
    upper, above_it = _find(tensors, keep, lambda bits: bits >> LOW)
    lower, _ = _find(tensors, keep - above_it, lambda bits: bits[bits >> LOW == upper] & ((1 << LOW) - 1))
    return torch.tensor(upper << LOW | lower, dtype=torch.int32).view(torch.float32).item()


def _find(tensors: Callable[[], Iterable[Tensor]], keep: int, digits: Callable[[Tensor], Tensor]) -> tuple[int, int]:
    """The digit of the ``keep``-th largest number, and how many have a larger one."""
    counts = torch.zeros(1 << LOW, dtype=torch.long)
    for tensor in tensors():
        bits = tensor.abs().flatten().view(torch.int32)
        counts += torch.bincount(digits(bits), minlength=1 << LOW).cpu()
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, keep))
    digit = len(counts) - 1 - place
    return digit, int(from_top[place] - counts[digit])
