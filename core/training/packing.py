"""Whether a base can be trained on packs: rows that hold several samples, none of which sees another."""

from __future__ import annotations

import torch
from peft import PeftType
from torch import Tensor, nn

from core.adapters.attach import tape_of
from core.adapters.packed import Pack
from core.data.packing import places

SAMPLES = (5, 3, 4)  # tokens of the samples that are tried
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
LOW = 0.05  # of narrower types and of few bits
WINDOWS = ("sliding_window", "attention_chunk_size")


def obstacle(model: nn.Module, length: int) -> str:
    """Why an adapted model cannot be trained on packs of samples of up to ``length`` tokens; empty: it can.

    What configs do not tell is tried: the frozen base reads a few samples in one row, and has to make of each what it
    makes of it alone.
    """
    base = model.get_base_model()
    config = base.config.get_text_config()
    if getattr(base.config, "is_encoder_decoder", False):
        return "it reads the prompt in an encoder"
    if any(config.peft_type == PeftType.POLY for config in model.peft_config.values()):
        return "Poly mixes its skills by row"
    if any(getattr(slot.site.gate, "pool_over", "") == "all" for slot in tape_of(model).slots):
        return "a gate that pools over all counts padding too"
    for name in WINDOWS:
        window = getattr(config, name, None)
        if window and window < length and getattr(config, f"use_{name}", True):
            return f"its attention reaches {window} tokens back, and samples have up to {length}"
    try:
        apart = _differs(model, base)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        return f"it takes no packs ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    return "its samples would see each other" if apart else ""


@torch.no_grad()
def _differs(model: nn.Module, base: nn.Module) -> bool:
    """Whether the base, with the adapters silent, makes other states of samples in a row than of each one alone."""
    backbone, tape, training = base.base_model, tape_of(model), model.training
    place, back = (torch.from_numpy(part).to(model.device) for part in places(SAMPLES))
    pack = Pack(place, back)
    ids = torch.arange(place.numel(), device=place.device).view(place.shape) * 7
    ids = ids % base.config.get_text_config().vocab_size
    model.eval()
    tape.silent = True
    try:
        alone = [_states(backbone, input_ids=row[None, :size])[0] for row, size in zip(ids, SAMPLES, strict=True)]
        packed = _states(
            backbone,
            input_ids=pack.together(ids),
            position_ids=pack.positions,
            attention_mask=pack.mask(base.dtype),
        )
    finally:
        tape.silent = False
        model.train(training)
    found, wanted = pack.apart(packed)[place < back.numel()].float(), torch.cat(alone).float()
    kept = LOW if getattr(base, "is_quantized", False) else TOLERANCE.get(base.dtype, LOW)
    return not (found - wanted).norm() <= kept * wanted.norm()


def _states(backbone: nn.Module, **given: Tensor) -> Tensor:
    return backbone(**given, use_cache=False).last_hidden_state
