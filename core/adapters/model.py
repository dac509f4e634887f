"""The tuner that PEFT instantiates: swaps linear layers for mixture layers and lends them all one tape."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import get_quantization_kwargs, resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import ConfigurationError
from .cells import Linear, Site, plan
from .config import MixtureConfig, needs_task
from .embedding import EmbeddingLayer, output_head, tied_head, token_embedding
from .layer import MixtureLayer
from .packed import Pack
from .prelude import Prelude
from .siblings import Siblings, siblings_of
from .tape import ANSWER, BASE, PROMPT, Addressing, RoutingTape, roles
from .voting import vote


class MixtureModel(BaseTuner):
    prefix = "tessera_"
    tuner_layer_cls = MixtureLayer
    target_module_mapping: dict[str, list[str]] = {}
    uses_shared_state = True  # the tape

    def _pre_injection_hook(self, model: nn.Module, config: MixtureConfig, adapter_name: str) -> None:
        # Runs once, after nn.Module.__init__ and before the first layer is replaced: the one place for shared state.
        self.tape = RoutingTape()
        self.prelude = Prelude()
        self.siblings: dict[tuple[str, int], Siblings] = {}
        self._names: list[str] | None = None
        self._by_task: dict[str, bool] = {}  # whether an adapter depends on the task
        self._checkpointed: list[nn.Module] | None = None

    def _prepare_adapter_config(self, peft_config: MixtureConfig, model_config: dict) -> MixtureConfig:
        return peft_config

    def _prepare_model(self, peft_config: MixtureConfig, model: nn.Module) -> None:
        sites = plan(peft_config.parsed_cells(), linears_of(model), len(peft_config.tasks))
        self._plan = {site.name: site for site in sites}
        self._two_texts = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        reading = next((s for s in sites if s.gate.guided or (s.gate.unit == "sample" and s.gate.word != "task")), None)
        if self._two_texts and reading is not None:
            raise ConfigurationError(
                f"{reading.name}: a {reading.gate.word} gate decides from the prompt before the answer, but this base "
                "reads the prompt in its encoder and writes the answer in its decoder.",
                "Use token or task gates on an encoder-decoder base.",
            )

    def _check_target_module_exists(self, peft_config: MixtureConfig, key: str) -> bool:
        return key in self._plan

    def _create_and_replace(
        self,
        peft_config: MixtureConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        site: Site = self._plan[current_key]
        if isinstance(target, MixtureLayer):
            target.update_layer(adapter_name, site, inference_mode=peft_config.inference_mode)
            return
        if site.kind == "embedding":
            layer = EmbeddingLayer(target, self.tape, tied_head(self.model, target))
        else:
            layer = MixtureLayer(target, self.tape, **get_quantization_kwargs(self))
            key = None if self._two_texts else siblings_of(current_key)  # attention may read another text's keys
            if key is not None:
                layer.join(self.siblings.setdefault(key, Siblings()))
        layer.train(target.training)
        layer._active_adapter = self.active_adapter
        layer.update_layer(adapter_name, site, inference_mode=peft_config.inference_mode)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """PEFT raises parameters to float32 over a bfloat16 base; the buffers of words go with them."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for layer in self.model.modules() if autocast_adapter_dtype else ():
            if isinstance(layer, MixtureLayer):
                for buffer_owner in layer.modules_of(adapter_name):
                    for name, buffer in buffer_owner.named_buffers(recurse=False):
                        if buffer.dtype in (torch.bfloat16, torch.float16):
                            setattr(buffer_owner, name, buffer.float())

    def _get_tied_target_modules(self, model: nn.Module) -> list[str]:
        """What PEFT warns of before it merges into a weight that two layers have: a head follows its embedding here."""
        followed = {path for path, layer in model.named_modules() if isinstance(layer, EmbeddingLayer)}
        return [path for path in super()._get_tied_target_modules(model) if path not in followed]

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        embeddings = [layer for layer in self.model.modules() if isinstance(layer, EmbeddingLayer)]
        model = super()._unload_and_optionally_merge(*args, **kwargs)
        for layer in embeddings:
            layer.release()
        return model

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self._by_task.pop(adapter_name, None)
        self.tape.drop(adapter_name)

    def forward(
        self,
        *args: Any,
        task_index: Tensor | None = None,
        token_role: Tensor | None = None,
        side_inputs: dict[str, Tensor] | None = None,
        pack: Pack | None = None,
        **kwargs: Any,
    ) -> Any:
        """With ``pack`` the rows hold several samples, and what is said of the batch is said of these."""
        if self.training:
            self._refuse_reentrant_checkpointing()
        given = _Given(task_index, token_role, side_inputs or {}, pack)
        cache = self._begin(given, args, kwargs)
        output = self.model(*args, **kwargs)
        self._end(cache if cache is not None else getattr(output, "past_key_values", None))
        return output

    def generate(
        self,
        *args: Any,
        task_index: Tensor | None = None,
        token_role: Tensor | None = None,
        side_inputs: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers generates; the tape follows every step. ``token_role`` speaks of the prompt."""
        given = _Given(task_index, token_role, side_inputs or {})
        with self._following(given):
            if self._two_texts:  # the encoder runs first, by itself
                self._begin(given, args, kwargs)
            return self.model.generate(*args, **kwargs)

    @contextmanager
    def _following(self, given: _Given) -> Iterator[None]:
        """Keep the tape while transformers' generation loop calls the inner model itself."""
        given.generating = True
        caches: list[Any] = []

        def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            caches.append(self._begin(given, args, kwargs))

        def after(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            cache = caches.pop()
            self._end(cache if cache is not None else getattr(output, "past_key_values", None))

        hooks = [
            self.model.register_forward_pre_hook(before, with_kwargs=True),
            self.model.register_forward_hook(after, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _begin(self, given: _Given, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Address the batch; returns the KV cache that it goes on from or fills."""
        batch = kwargs.get("input_ids", args[0] if args else None)
        batch = kwargs.get("inputs_embeds") if batch is None else batch
        batch = kwargs.get("decoder_input_ids") if batch is None else batch
        cache = kwargs.get("past_key_values")
        samples = any(slot.site.gate.unit == "sample" or slot.site.gate.guided for slot in self.tape.slots)
        past = int(cache.get_seq_length()) if samples and hasattr(cache, "get_seq_length") else 0
        if batch is None:
            self.tape.begin(Addressing(given.task_index, given.token_role, given.side))
            return cache
        addressing = given.address(batch, kwargs.get("attention_mask"), kwargs.get("labels"), past > 0)
        if self._two_texts:  # roles and shape are those of one text
            addressing = replace(addressing, token_role=None, shape=None)
        if self._names is not None and given.pack is not None:
            raise ConfigurationError("A pack of samples cannot use several adapters.", "Leave adapter_names out.")
        if self._names is not None:
            addressing = addressing.split(_repeat(self._names, batch.shape[0], "adapter_names"), batch.device)
        self._check_tasks(addressing)
        kept = getattr(cache, "tessera_priors", None) if past else given.priors
        if given.pack is not None:
            given.priors = self.prelude.prepare(self, given.pack.apart(batch), addressing.pack.samples, kept)
        else:
            given.priors = self.prelude.prepare(self, batch, addressing, kept)
        if past:
            decisions = getattr(cache, "tessera_decisions", None)
        else:
            decisions = None if self.training else vote(self, addressing, args, kwargs)
        self.tape.begin(addressing, decisions)
        return cache

    def _check_tasks(self, addressing: Addressing) -> None:
        """Name a task that an adapter does not have; on a GPU that would mean waiting for it, so there it is not."""
        parts = addressing.parts
        for adapter in self.active_adapters if parts is None else parts:
            if adapter not in self._by_task:
                self._by_task[adapter] = needs_task(self.peft_config[adapter])
            if not self._by_task[adapter]:
                continue
            index = (addressing if parts is None else parts[adapter]).task_index
            tasks = self.peft_config[adapter].tasks
            if index is None and self._disabled():
                continue
            if index is None:
                raise ConfigurationError(
                    f"Adapter {adapter!r} depends on the task, but the batch does not say which task each sample "
                    "belongs to.",
                    f"Pass task_index, one number for each row, counted from 0: {', '.join(tasks)}.",
                )
            if index.device.type != "cpu":
                continue
            if int(index.min()) < 0 or int(index.max()) >= len(tasks):
                raise ConfigurationError(
                    f"Adapter {adapter!r} has {len(tasks)} tasks, counted from 0 ({', '.join(tasks)}), but the batch "
                    f"names task {int(index.max())}.",
                    "Number the tasks in the order in which the adapter was trained.",
                )

    def _disabled(self) -> bool:
        return next(layer for layer in self.model.modules() if isinstance(layer, MixtureLayer)).disable_adapters

    def _end(self, cache: Any) -> None:
        decisions, priors = self.tape.end(), self.tape.priors()
        if cache is not None and hasattr(cache, "get_seq_length"):
            if decisions:
                cache.tessera_decisions = decisions
            if priors:
                cache.tessera_priors = priors

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT's way to hand in ``adapter_names``: one adapter, or ``__base__``, for each row of the batch."""
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        for name in dict.fromkeys(names):
            if name != BASE and name not in self.peft_config:
                near = difflib.get_close_matches(str(name), self.peft_config, n=1)
                raise ConfigurationError(
                    f"The model has no adapter {name!r}.",
                    f"Did you mean {near[0]}?" if near else f"It has {', '.join(self.peft_config)}, and {BASE}.",
                )
        self._names = list(names)
        try:
            yield
        finally:
            self._names = None

    def _refuse_reentrant_checkpointing(self) -> None:
        if self._checkpointed is None:
            self._checkpointed = [m for m in self.model.modules() if hasattr(m, "gradient_checkpointing")]
        for module in self._checkpointed:
            function = getattr(module, "_gradient_checkpointing_func", None)
            if module.gradient_checkpointing and getattr(function, "keywords", {}).get("use_reentrant", False):
                raise ConfigurationError(
                    "Reentrant activation checkpointing loses the gradients of auxiliary losses.",
                    'Enable it with {"use_reentrant": False}; the gradients are then exact.',
                )


class _Given:
    """What the caller said of the batch, and what one generation has seen of it so far."""

    def __init__(
        self,
        task_index: Tensor | None,
        token_role: Tensor | None,
        side: dict[str, Tensor],
        pack: Pack | None = None,
    ) -> None:
        self.task_index, self.token_role, self.side, self.pack = task_index, token_role, side, pack
        self.generating = False
        self.priors: dict[int, Tensor] | None = None  # by slot number: what gates were told of the prompts
        self._prompt: Tensor | None = None
        self._steps = 0

    def address(self, batch: Tensor, mask: Any, labels: Tensor | None, continued: bool) -> Addressing:
        if self.pack is not None:
            return self.pack.address(self.task_index, self.token_role, self.side)
        rows, tokens = batch.shape[:2]
        if self.generating:
            role = self._generation_role(batch, mask)
        else:
            role = roles(self.token_role, mask, labels, tokens)
        return Addressing(
            _rows(self.task_index, rows, "task_index"),
            _rows(role, rows, "token_role"),
            {name: _rows(value, rows, name) for name, value in self.side.items()},
            continued=continued,
            shape=(rows, tokens),
        )

    def _generation_role(self, batch: Tensor, mask: Any) -> Tensor:
        """The first call holds the prompt; what comes later is answer, alone (cached) or behind the prompt."""
        rows, tokens = batch.shape[:2]
        self._steps += 1
        if self._steps == 1:
            role = _rows(roles(self.token_role, mask, None, tokens), rows, "token_role")
            role = torch.full((rows, tokens), PROMPT, dtype=torch.int8, device=batch.device) if role is None else role
            self._prompt = role
            return role
        answer = torch.full((rows, tokens), ANSWER, dtype=torch.int8, device=batch.device)
        if tokens > self._prompt.shape[1] and rows == self._prompt.shape[0]:
            answer[:, : self._prompt.shape[1]] = self._prompt
        return answer


def linears_of(model: nn.Module) -> list[Linear]:
    """The linear layers and the token embedding of a base in order, whether or not adapters stand on them."""
    head, table = output_head(model), token_embedding(model)
    found, inside, sparse = [], (), ()
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        if _routes(module):
            sparse = (*sparse, f"{name}.")
        expert = name.startswith(sparse)
        if expert:
            found += _fused(name, module)
        base = module.get_base_layer() if isinstance(module, MixtureLayer) else module
        if isinstance(module, MixtureLayer):
            inside = (*inside, f"{name}.")
        if base is table:
            found.append(Linear(name, base.num_embeddings, base.embedding_dim, kind="embedding"))
        elif isinstance(base, Conv1D):
            found.append(Linear(name, base.weight.shape[0], base.weight.shape[1], module is head, "transposed"))
        elif isinstance(base, nn.Linear) or (name and resolve_quantization_backend(base) is not None):
            kind = "expert" if expert else "linear"
            found.append(Linear(name, base.in_features, base.out_features, module is head, kind))
    return found


def _routes(module: nn.Module) -> bool:
    """Whether it is a mixture-of-experts block of a base: one of its parts holds experts."""
    return any(name == "experts" or type(part).__name__.endswith("Experts") for name, part in module.named_children())


def _fused(name: str, module: nn.Module) -> list[Linear]:
    """Parameters that stack the matrices of all experts, (experts, outputs, inputs)."""
    stacks = [(key, value.shape) for key, value in module.named_parameters(recurse=False) if value.dim() == 3]
    return [Linear(f"{name}.{key}", shape[2], shape[1], kind="fused") for key, shape in stacks]


def _repeat(values: Sequence[Any], rows: int, what: str) -> list[Any]:
    """One value per row, where beam search or several answers per prompt repeat each row."""
    if not values or rows % len(values):
        raise ConfigurationError(f"{what} has {len(values)} entries for {rows} rows.", "Give one for each row.")
    return [value for value in values for _ in range(rows // len(values))]


def _rows(value: Tensor | None, rows: int, what: str) -> Tensor | None:
    if value is None or value.shape[0] == rows:
        return value
    if value.shape[0] == 0 or rows % value.shape[0]:
        raise ConfigurationError(f"{what} has {value.shape[0]} rows for a batch of {rows}.", "Give one for each row.")
    return value.repeat_interleave(rows // value.shape[0], 0)
