"""One expert for all blocks: what the routers say on the prompt, counted before the pass that uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from .tape import Addressing, Routing

if TYPE_CHECKING:
    from .model import MixtureModel


def vote(model: MixtureModel, addressing: Addressing, args: tuple, kwargs: dict[str, Any]) -> dict[int, Routing]:
    """Decisions by slot number: for each sample the expert with the largest mean log-probability over its blocks.

    Runs the model once over the same batch without a cache and without gradient, each block with its own choice.
    """
    tape = model.tape
    voting = [(number, slot) for number, slot in enumerate(tape.slots) if _votes(model, slot, addressing)]
    if not voting:
        return {}
    given = {key: value for key, value in kwargs.items() if key not in ("labels", "past_key_values", "cache_position")}
    with torch.no_grad():
        tape.begin(addressing)
        model.model.forward(*args, **{**given, "use_cache": False})
        tape.end()
    decisions = {}
    voted = [(number, slot) for number, slot in voting if slot.probs is not None]  # none where adapters are disabled
    for adapter in dict.fromkeys(slot.adapter for _, slot in voted):
        mine = [(number, slot) for number, slot in voted if slot.adapter == adapter]
        probs = torch.stack([slot.probs for _, slot in mine])
        chosen = probs.clamp_min(torch.finfo(probs.dtype).tiny).log().mean(0).argmax(-1)
        weights = functional.one_hot(chosen, probs.shape[-1]).to(probs.dtype)
        decisions |= {number: Routing(slot.probs, weights) for number, slot in mine}
    return decisions


def _votes(model: MixtureModel, slot: Any, addressing: Addressing) -> bool:
    here = addressing.parts if addressing.parts is not None else model.active_adapters
    return slot.adapter in here and getattr(slot.site.gate, "decide", "") == "vote"
