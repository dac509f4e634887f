"""The routing of one text, token by token, as plain arrays. Imports no torch."""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from core.routing.snapshot import SiteInfo, places


@dataclass(frozen=True)
class Trace:
    """What every gate of a run's adapter decided for every token of a prompt and its answer.

    The ``tokens`` joined are the whole text; special tokens are written out, and a token that holds part of a
    character is empty: the one that completes it shows the character. ``roles`` are prompt or answer. ``weights``
    (sites, tokens, experts), float32, are the gates as applied: zero where an expert was not selected, NaN past a
    site's experts, negative perhaps where it is ``signed``. Where ``sites[i].unit`` is sample, the one decision stands
    in every row; a projection whose parts are decided on by themselves is a site for each. ``cut``: prompt tokens left
    out of the middle because the base reads no more. ``task`` is the one acted as, None where none was named;
    ``tasks`` are those that the adapter knows.
    """

    run: str
    tokens: list[str]
    roles: list[str]
    sites: list[SiteInfo]
    weights: np.ndarray
    task: str | None
    tasks: list[str]
    cut: int = 0
    ended: str | None = None
    device: str = "cpu"
    seconds: float = 0.0

    @property
    def places(self) -> list[str]:
        """What routes within a layer, in order: projections, or parts of them."""
        return places(self.sites)

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def answer(self) -> str:
        """The answer's text, with the token that ended it."""
        return "".join(token for token, role in zip(self.tokens, self.roles, strict=True) if role == "answer")

    def packed(self) -> dict[str, Any]:
        """As JSON; the weights as base64 of little-endian float32."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return fields | {
            "sites": [asdict(site) for site in self.sites],
            "shape": list(self.weights.shape),
            "weights": base64.b64encode(self.weights.astype("<f4").tobytes()).decode("ascii"),
        }

    @classmethod
    def unpacked(cls, fields: dict[str, Any]) -> Trace:
        fields = {name: value for name, value in fields.items() if name in (*cls.__dataclass_fields__, "shape")}
        shape = fields.pop("shape")
        weights = np.frombuffer(base64.b64decode(fields["weights"]), dtype="<f4").reshape(shape)
        sites = [SiteInfo(**site) for site in fields["sites"]]
        return cls(**fields | {"weights": weights, "sites": sites})
