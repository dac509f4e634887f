"""What the studio's layers are measured against: PEFT's LoRA and routed methods, and the loops over experts.

The loops follow what public implementations compute: one call of every expert's matrices for each layer.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import torch
from peft import LilyConfig, LoraConfig, PeftModel, XLoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from benchmarks.bases import PROJECTIONS, sharing_weights


def peft_lora(base: LlamaForCausalLM, experts: int, rank: int) -> PeftModel:
    return get_peft_model(base, _lora(rank))


def peft_lily(base: LlamaForCausalLM, experts: int, rank: int) -> PeftModel:
    """Every layer has a down matrix of its own; the up matrices, ``experts`` of them, are shared by all layers."""
    config = LilyConfig(r=rank, stride_A=1, num_B=experts, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM")
    return get_peft_model(base, config)


def peft_xlora(base: LlamaForCausalLM, experts: int, rank: int) -> PeftModel:
    """Trained LoRAs under a classifier that reads the frozen base first: two passes of the base in every step."""
    with tempfile.TemporaryDirectory() as folder:
        lora = get_peft_model(sharing_weights(base), _lora(rank))
        lora.save_pretrained(folder)
        del lora
        config = XLoraConfig(
            task_type="CAUSAL_LM",
            hidden_size=base.config.hidden_size,
            adapters={str(number): folder for number in range(experts)},
            layerwise_scalings=True,
            use_trainable_adapters=True,
        )
        return get_peft_model(base, config).train()


def _lora(rank: int) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM")


class _Loop(nn.Module):
    """A projection with experts that are called one after the other, in float32 parameters as PEFT keeps them."""

    def __init__(self, base: nn.Linear, experts: int, rank: int, downs: int) -> None:
        super().__init__()
        place = {"device": base.weight.device, "dtype": torch.float32, "bias": False}
        self.base, self.scaling = base, 2.0
        self.router = nn.Linear(base.in_features, experts, **place)
        self.down = nn.ModuleList(nn.Linear(base.in_features, rank, **place) for _ in range(downs))
        self.up = nn.ModuleList(nn.Linear(rank, base.out_features, **place) for _ in range(experts))


class HydraLoop(_Loop):
    """As HydraLoRA's public layer: every expert computes every token, and the down product is done for each anew."""

    def __init__(self, base: nn.Linear, experts: int, rank: int) -> None:
        super().__init__(base, experts, rank, downs=1)

    def forward(self, x: Tensor) -> Tensor:
        result = self.base(x)
        gates = functional.softmax(self.router(x), dim=-1, dtype=torch.float32).to(result.dtype)
        for index, up in enumerate(self.up):
            result = result + gates[..., index : index + 1] * up(self.down[0](x)) * self.scaling
        return result


class SparseLoop(_Loop):
    """Separate LoRAs, two for each token: tokens are gathered for every expert and added back, as Mixtral's loop."""

    def __init__(self, base: nn.Linear, experts: int, rank: int) -> None:
        super().__init__(base, experts, rank, downs=experts)

    def forward(self, x: Tensor) -> Tensor:
        result, tokens = self.base(x), x.flatten(0, -2)
        added = torch.zeros_like(result).flatten(0, -2)
        probs = functional.softmax(self.router(tokens), dim=-1, dtype=torch.float32)
        weights, chosen = torch.topk(probs, min(2, len(self.up)), dim=-1)
        weights = (weights / weights.sum(-1, keepdim=True)).to(result.dtype)
        for index, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            token, place = torch.where(chosen == index)
            update = up(down(tokens[token])).to(result.dtype) * weights[token, place, None]
            added.index_add_(0, token, update * self.scaling)
        return result + added.view_as(result)


def _looped(layer: type[_Loop]) -> Callable[[LlamaForCausalLM, int, int], LlamaForCausalLM]:
    def build(base: LlamaForCausalLM, experts: int, rank: int) -> LlamaForCausalLM:
        for module in list(base.modules()):
            for name, child in list(module.named_children()):
                if name in PROJECTIONS:
                    setattr(module, name, layer(child, experts, rank))
        return base

    return build


def frozen(base: LlamaForCausalLM, experts: int, rank: int) -> LlamaForCausalLM:
    """The base alone: what nothing that trains inside it can beat."""
    return base


RIVALS: dict[str, Callable[[LlamaForCausalLM, int, int], nn.Module]] = {
    "frozen": frozen,
    "peft-lora": peft_lora,
    "peft-xlora": peft_xlora,
    "peft-lily": peft_lily,
    "hydra-loop": _looped(HydraLoop),
    "sparse-loop": _looped(SparseLoop),
}
