"""Masks of Concrete subspace learning: a Bernoulli variable for each entry, relaxed (arXiv:2312.06173).

One mask for all runs. Its logits are learned; a sample is rescaled by its own mean for each tensor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from core.fusion.delta import Delta
from core.fusion.learned.objective import Gradient
from core.fusion.learned.sums import Part

FinalMask = Literal["sample", "discrete", "expected"]
OUT, IN = " out", " in"  # ends of the names of structured logits


def sample(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """``sigmoid((log u - log(1 - u) + x) / T)`` (equation 1); differentiable in ``x``."""
    return torch.sigmoid((uniform.logit() + logits) / temperature)


def rescaled(mask: Tensor) -> Tensor:
    """The mask over its own mean (equation 2); all zeros stay zeros."""
    return mask / mask.mean().clamp(min=torch.finfo(mask.dtype).tiny)


def logit_gradient(gradient: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Gradient of the logits from that of the rescaled mask: through the mean, the quotient and the sigmoid.

    With ``b = m / mean(m)``: ``dL/dm = (g - mean(g b)) / mean(m)`` and ``dm/dx = m (1 - m) / T``. In closed form,
    because it needs nothing kept but the mask. Overwrites ``gradient``.
    """
    mean = mask.mean().clamp(min=torch.finfo(mask.dtype).tiny)
    shared = torch.dot(gradient.flatten(), mask.flatten()) / (mask.numel() * mean)
    return gradient.sub_(shared).div_(mean * temperature).mul_(mask).mul_(1 - mask)


class Masks:
    """A logit for each entry of each projection that any run updates. ``current`` holds the mask that is drawn."""

    def __init__(self, parts: Mapping[str, Part], temperature: float, seed: int) -> None:
        self.temperature, self.seed = temperature, seed
        self.device = next(iter(parts.values())).up.device
        self.logits = {
            name: torch.zeros(shape, device=self.device, requires_grad=True) for name, shape in self._shapes(parts)
        }
        self.current: dict[str, Tensor] = {}

    def _shapes(self, parts: Mapping[str, Part]) -> list[tuple[str, tuple[int, ...]]]:
        return [(path, part.shape) for path, part in parts.items()]

    @torch.no_grad()
    def draw(self, key: str, kind: FinalMask = "sample") -> None:
        """Masks of this key, the same whenever it is asked for; ``discrete``: zeros and ones; ``expected``: the
        probabilities of a one."""
        self.current = {name: self._draw(name, x, key, kind) for name, x in self.logits.items()}

    def _draw(self, name: str, logits: Tensor, key: str, kind: FinalMask) -> Tensor:
        if kind == "expected":
            return logits.sigmoid()
        digest = hashlib.blake2b(f"{self.seed} {key} {name}".encode(), digest_size=7).digest()
        generator = torch.Generator(self.device).manual_seed(int.from_bytes(digest, "big"))
        uniform = torch.rand(logits.shape, generator=generator, device=self.device)
        if kind == "discrete":
            return (uniform.logit_().add_(logits) > 0).float()
        return uniform.logit_().add_(logits).div_(self.temperature).sigmoid_()

    def apply(self, path: str, delta: Delta) -> Delta:
        """The masked update (equation 3); no gradient flows into the mask."""
        return Delta(delta.dense() * rescaled(self.current[path]))

    @torch.no_grad()
    def learn_from(self, path: str, delta: Delta, gradient: Gradient) -> None:
        """Set the gradients of the logits from that of the masked update, of which ``delta`` is the unmasked one."""
        wanted = gradient[0].mul_(delta.dense())
        self.logits[path].grad = logit_gradient(wanted, self.current[path], self.temperature)

    @torch.no_grad()
    def density(self) -> tuple[float, list[list[str | float]]]:
        """The mean of the drawn mask over all entries, and for each projection its mean and its share above a half."""
        names = list(self.current)
        means = torch.stack([self.current[name].mean() for name in names]).tolist()
        above = torch.stack([(self.current[name] > 0.5).float().mean() for name in names]).tolist()
        sizes = [self.current[name].numel() for name in names]
        mean = sum(mean * size for mean, size in zip(means, sizes, strict=True)) / sum(sizes)
        return mean, [list(row) for row in zip(names, means, above, strict=True)]


class StructuredMasks(Masks):
    """A logit for each output and each input: the mask is their outer product, so that factors stay factors.

    ``outer(a, b) * (B A) = (diag(a) B)(A diag(b))``. An extension of the studio, not the published method.
    """

    def _shapes(self, parts: Mapping[str, Part]) -> list[tuple[str, tuple[int, ...]]]:
        sides = [(path, part.shape) for path, part in parts.items()]
        return [(f"{path}{end}", (size,)) for path, shape in sides for end, size in zip((OUT, IN), shape, strict=True)]

    def apply(self, path: str, delta: Delta) -> Delta:
        outputs, inputs = self._sides(path)
        if delta.down is None:
            return Delta(delta.up * outputs[:, None] * inputs)
        return Delta(delta.up * outputs[:, None], delta.down * inputs)

    @torch.no_grad()
    def learn_from(self, path: str, delta: Delta, gradient: Gradient) -> None:
        if delta.down is None:
            outputs, inputs = self._sides(path)
            wanted = delta.up * gradient[0]
            of_outputs, of_inputs = wanted @ inputs, outputs @ wanted
        else:
            of_outputs, of_inputs = (delta.up * gradient[0]).sum(1), (delta.down * gradient[1]).sum(0)
        for end, side in ((OUT, of_outputs), (IN, of_inputs)):
            name = f"{path}{end}"
            self.logits[name].grad = logit_gradient(side, self.current[name], self.temperature)

    def _sides(self, path: str) -> tuple[Tensor, Tensor]:
        return rescaled(self.current[f"{path}{OUT}"]), rescaled(self.current[f"{path}{IN}"])
