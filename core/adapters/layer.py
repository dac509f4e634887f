"""The linear layer that composes down, gate and up, and folds them into two products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import resolve_quantization_backend
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from ..errors import ConfigurationError
from .cells import Site
from .modules.base import wide
from .ops import close_products
from .siblings import Siblings
from .tape import Addressing, RoutingTape, Slot

# Adapter, inputs, results and their addressing to the results with that adapter's update.
Add = Callable[[str, Tensor, Tensor, Addressing], Tensor]


class MixtureLayer(nn.Module, BaseTunerLayer):
    """``y = W0 x + (alpha / r) * sum_e g_e(x) U_e D_e x`` for any number of adapters.

    The sum over experts is one product: the gates scale the hidden states, laid side by side, and the up matrices
    stand side by side too.
    """

    adapter_layer_names = ("tessera_down", "tessera_gate", "tessera_up")
    other_param_names = ("scaling", "sites", "slots")

    def __init__(self, base_layer: nn.Module, tape: RoutingTape, **quantization: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.tape = tape
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer(), **quantization)
        self.transposed = isinstance(self.get_base_layer(), Conv1D)
        self.plain = type(self.base_layer) is nn.Linear
        self.join(Siblings())
        self.scaling: dict[str, float] = {}
        self.sites: dict[str, Site] = {}
        self.slots: dict[str, Slot] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        for container in self.adapter_layer_names:
            setattr(self, container, nn.ModuleDict())

    def update_layer(self, adapter: str, site: Site, inference_mode: bool = False) -> None:
        self.scaling[adapter] = site.scaling
        self.sites[adapter] = site
        self.tessera_down[adapter] = site.down.build(site)
        self.tessera_up[adapter] = site.up.build(site)
        gate = site.gate.build(site)
        if gate is not None:
            self.tessera_gate[adapter] = gate
            self.slots[adapter] = self.tape.add(adapter, site)
        for module in self.modules_of(adapter):
            module.train(self.training)
        self._move_adapter_to_device_of_base_layer(adapter)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def join(self, siblings: Siblings) -> None:
        """Become one of those that read the same tensor."""
        self.siblings, self.place = siblings, siblings.add(self)

    def modules_of(self, adapter: str) -> list[nn.Module]:
        """The adapter's down, gate and up, as far as it has them here."""
        containers = [getattr(self, name) for name in self.adapter_layer_names]
        return [container[adapter] for container in containers if adapter in container]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.tape.decoder is not None and not self.idle:
            return self.tape.decoder(self, x)
        if self.plain and not self.idle and (adapter := self._alone(x)) is not None:
            return self._with_base(adapter, x)
        result = self.base_layer(x, *args, **kwargs)
        if self.idle:
            return result
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        return self._adapt(x, result, self._add)

    @property
    def idle(self) -> bool:
        """Whether what the base computes stays as it is: nothing is asked for, or its weight holds it."""
        return self.disable_adapters or self.merged or self.tape.silent

    def _alone(self, x: Tensor) -> str | None:
        """The one adapter whose products can be taken together with the base's; None: the general way."""
        here = [adapter for adapter in self.active_adapters if adapter in self.scaling]
        if len(here) != 1 or self.tape.addressing.parts is not None:
            return None
        (adapter,), base = here, self.base_layer
        if self.sites[adapter].down.width == "in" or base._forward_hooks or base._forward_pre_hooks:
            return None
        weight, kind = base.weight, x.device.type
        if torch.is_autocast_enabled(kind):
            return adapter if weight.dtype == torch.get_autocast_dtype(kind) else None
        return adapter if weight.dtype == x.dtype == self.tessera_up[adapter].dtype else None

    def joins(self, adapter: str, x: Tensor) -> bool:
        """Whether the adapter's products with ``x`` can be taken together with the base's, router and all."""
        return not self.idle and self.plain and self._alone(x) == adapter and self._whole(adapter)

    def _whole(self, adapter: str) -> bool:
        """Whether down matrix and router see the same, each with its gradient."""
        gate = self.tessera_gate[adapter] if adapter in self.slots else None
        return not self.tessera_down[adapter].drops and (gate is None or gate.matrix() is None or not gate.detached)

    def matrices(self, adapter: str) -> tuple[Tensor, Tensor | None]:
        """The down matrix of this pass and the router's, where the gate has one."""
        gate = self.tessera_gate[adapter] if adapter in self.slots else None
        return self.tessera_down[adapter].matrix(), None if gate is None else gate.matrix()

    def _with_base(self, adapter: str, x: Tensor) -> Tensor:
        """Base and adapter together: each product that joins another accumulates into it."""
        base, addressing, read = self.base_layer, self.tape.addressing, x
        x = x.to(base.weight.dtype)
        flat = x.dim() == 2 and addressing.lies_flat(x)
        if flat:
            x = x.unflatten(0, addressing.shape)
        if self._whole(adapter):
            opened = self.siblings.open(self.place, adapter, read, x)
            folded, up = self._mix(adapter, opened.product, opened.logits, opened.down, addressing)
            result = close_products(opened.ticket, x, base.weight, base.bias, folded, up)
        else:
            result = add_product(base(x), *self._fold(adapter, x, addressing))
        return result.flatten(0, 1) if flat else result

    def _adapt(self, x: Tensor, result: Tensor, add: Add) -> Tensor:
        """The base's ``result`` for ``x`` with the updates of the adapters added, each by ``add``."""
        addressing, dtype = self.tape.addressing, result.dtype
        shape = addressing.shape if x.dim() == 2 and addressing.lies_flat(x) else None
        if shape is not None:
            x, result = x.unflatten(0, shape), result.unflatten(0, shape)
        if addressing.parts is not None:
            for adapter, part in addressing.parts.items():
                if adapter in self.scaling:
                    rows = part.rows.to(result.device)
                    own = add(adapter, x.index_select(0, part.rows.to(x.device)), result.index_select(0, rows), part)
                    result = result.index_copy(0, rows, own.to(dtype))
        else:
            for adapter in self.active_adapters:
                if adapter in self.scaling:
                    result = add(adapter, x, result, addressing)
        return (result if shape is None else result.flatten(0, 1)).to(dtype)

    def _add(self, adapter: str, x: Tensor, result: Tensor, addressing: Addressing) -> Tensor:
        """``result`` with what one adapter adds to it; wider where the adapter computes in a wider type."""
        return add_product(result, *self._fold(adapter, x, addressing))

    def _fold(self, adapter: str, x: Tensor, addressing: Addressing) -> tuple[Tensor, Tensor]:
        """The scaled hidden state (..., columns) and the up matrix (outputs, columns) whose product is the update."""
        down = self.tessera_down[adapter]
        if not torch.is_autocast_enabled(x.device.type):  # autocast casts both sides of a product itself
            x = self._cast_input_dtype(x, self.tessera_up[adapter].dtype)
        gate = self.tessera_gate[adapter] if adapter in self.slots else None
        matrix, router = self.matrices(adapter)
        product, logits = self._products(x, down.enter(x), matrix, gate, router)
        return self._mix(adapter, product, logits, matrix, addressing)

    def _products(
        self, x: Tensor, entered: Tensor, matrix: Tensor | None, gate: nn.Module | None, router: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """What the down matrix makes of ``entered`` and the router of ``x``: one product where both see the same."""
        if router is not None and matrix is not None and entered is x and not gate.detached:
            joint = functional.linear(x, torch.cat((matrix, router)))
            return joint.split((matrix.shape[0], router.shape[0]), dim=-1)
        product = entered if matrix is None else functional.linear(entered, matrix)
        logits = None if router is None else functional.linear(x.detach() if gate.detached else x, router)
        return product, logits

    def _mix(
        self, adapter: str, product: Tensor, logits: Tensor | None, matrix: Tensor | None, addressing: Addressing
    ) -> tuple[Tensor, Tensor]:
        """From both products to the scaled hidden state and the up matrix; the gate's decision goes on the tape."""
        down, up = self.tessera_down[adapter], self.tessera_up[adapter]
        pack = addressing.pack if self.sites[adapter].by_sample else None
        if pack is not None:  # these words see a sample a row
            product, logits = pack.apart(product), None if logits is None else pack.apart(logits)
            addressing = pack.samples
        hidden = down.hidden(product, addressing)
        if adapter not in self.slots:
            folded = up.fold(hidden, None, self.scaling[adapter])
            return folded if pack is None else pack.together(folded), up.matrix()
        slot = self.slots[adapter]
        routing = self.tessera_gate[adapter](logits, addressing, slot, matrix)
        losses = up.losses(hidden, routing, addressing) if self.training else {}
        slot.write(routing, addressing.rows, losses)
        folded = up.fold(hidden, routing.mixing, self.scaling[adapter])
        return folded if pack is None else pack.together(folded), up.matrix()

    def delta_weight(self, adapter: str, weights: Tensor | None = None, task: int | None = None) -> Tensor:
        """The update (outputs, inputs) for fixed gate ``weights``; None: the experts are added up.

        ``weights`` is (experts,), or (groups, experts) where several decisions stand beside each other.
        ``task``: the number of the task that down words with a part for each task are taken at.
        """
        up, down = self.factors(adapter, weights, task)
        return up if down is None else up @ down

    def factors(
        self, adapter: str, weights: Tensor | None = None, task: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """``delta_weight`` as up (outputs, columns) times down (columns, inputs), the scaling in up.

        Experts stand side by side; what all of them share stands there once, so that the columns stay few. ``down`` is
        None where it is the identity.
        """
        up = wide(self.tessera_up[adapter].experts()) * self.scaling[adapter]
        identity = self.sites[adapter].down.width == "in"
        down = None if identity else wide(self.tessera_down[adapter].experts(task)).to(up)
        experts = len(up) if down is None else max(len(down), len(up))
        shares = up.new_ones(experts, up.shape[-1])  # of every expert in every rank
        if weights is not None:
            weights = weights.to(up).view(-1, experts)
            shares = weights.repeat_interleave(up.shape[-1] // len(weights), 0).t()
        if down is None or len(down) == 1:
            return (up * shares.unsqueeze(1)).sum(0), None if down is None else down[0]
        if len(up) == 1:
            return up[0], (down * shares.unsqueeze(2)).sum(0)
        return (up * shares.unsqueeze(1)).transpose(0, 1).flatten(1), down.flatten(0, 1)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter not in self.scaling:
                continue
            site = self.sites[adapter]
            if site.gate.unit is not None and (site.experts > 1 or not site.gate.sums_to_one):
                raise ConfigurationError(
                    f"Adapter {adapter!r} weighs its experts anew for each {site.gate.unit}, so no single "
                    f"weight of {site.name} equals it.",
                    "Merge it for one of its tasks: core.adapters.merging.merge_task."
                    if site.gate.needs_task
                    else "Keep it as an adapter, or merge it with its recorded mean gates: "
                    "core.adapters.merging.merge_mean_gates.",
                )
            self.add_to_base(self.delta_weight(adapter), safe_merge)
            self.merged_adapters.append(adapter)

    @torch.no_grad()
    def unmerge(self) -> None:
        while self.merged_adapters:
            self.add_to_base(-self.delta_weight(self.merged_adapters.pop()))

    def add_to_base(self, delta: Tensor, check: bool = False) -> None:
        weight = self.get_base_weight()
        merged = (wide(weight) + (delta.T if self.transposed else delta).to(weight.device)).to(weight.dtype)
        if check and not torch.isfinite(merged).all():
            raise ConfigurationError("The merged weight is not finite.", "The adapter is broken: train it again.")
        self.set_base_weight(merged)

    def __repr__(self) -> str:
        return "tessera." + super().__repr__()


def add_product(result: Tensor, folded: Tensor, up: Tensor) -> Tensor:
    """``result + folded @ up.T`` in one kernel where the types allow it."""
    if result.dtype != folded.dtype:
        return result + functional.linear(folded, up)
    flat = torch.addmm(result.flatten(0, -2), folded.flatten(0, -2), up.t())
    return flat.view(result.shape)
