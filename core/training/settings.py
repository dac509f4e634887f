"""A run's settings as transformers' TrainingArguments, for every supported version."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from core.schema import RunSpec
from core.training.plan import Plan

SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
# Settings that may change between attempts; how steps are computed moves the curve by no more than rounding.
NOT_THE_CURVE = ("checkpoint_every", "checkpoints_kept", "on_alarm", "packing", "compile")
LOADERS = 2  # processes that encode rows while a GPU computes; rows that are ids already need none


def training_arguments(
    spec: RunSpec, plan: Plan, output: Path, device: str, bf16: bool, encoded: bool = False
) -> TrainingArguments:
    """Arguments for one device; saving, validation and reporting are left to the studio's own trainer.

    ``encoded``: rows come as ids, so that making a batch takes less time than handing it over between processes.
    """
    train, cuda = spec.train, device.startswith("cuda")
    loaders = LOADERS if cuda and not encoded else 0
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=plan.total,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation,
        learning_rate=train.learning_rate,
        lr_scheduler_type=SCHEDULES[train.schedule],
        warmup_steps=plan.warmup,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim="adamw_torch_fused",
        bf16=bf16,
        use_cpu=not cuda,
        seed=spec.seed,
        logging_strategy="steps",
        logging_steps=train.log_every,
        logging_nan_inf_filter=False,  # it would wait for the device at every step and hide divergence
        save_strategy="no",
        eval_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        dataloader_num_workers=loaders,
        dataloader_multiprocessing_context="fork" if loaders else None,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # one device per job: never DataParallel
    return arguments


def checkpoint_activations(model: nn.Module) -> None:
    """Recompute activations in the backward pass. Never reentrant: that loses the auxiliary losses' gradients."""
    base = model.get_base_model()
    kwargs = {"use_reentrant": False}
    if hasattr(base, "activation_checkpointing_enable"):  # the name in later transformers
        base.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs)
    else:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)


def fingerprint(spec: RunSpec) -> str:
    """Hash of all settings that shape the loss curve; a checkpoint only continues a run that has the same."""
    data: dict[str, Any] = spec.model_dump(mode="json", include={"model", "tasks", "method", "train", "seed"})
    for name in NOT_THE_CURVE:
        del data["train"][name]
    if not spec.train.group_by_length:  # checkpoints of before it was a setting go on
        del data["train"]["group_by_length"]
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    import platform

    import peft
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
