"""What a run is: a base model, tasks, a method and training settings. Imports no torch."""

from __future__ import annotations

import difflib
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from core.data.templates import PromptTemplate
from core.errors import ConfigurationError

BUNDLED_BASE = "tessera-base"

TaskKind = Literal["classification", "choice", "sentence", "generation"]
Split = Literal["train", "validation", "test"]


class Spec(BaseModel):
    """A part of a run; unknown keys are refused with the nearest known name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def parse(cls, data: Any, within: str = "") -> Self:
        """Validate plain data; a problem becomes one ``ConfigurationError`` that names every wrong field.

        ``within``: the dotted name of the group that holds the data, for what is said of its fields.
        """
        if not isinstance(data, dict):
            raise ConfigurationError(f"A {cls.__name__} is a mapping of names to values, not {type(data).__name__}.")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ConfigurationError(*_explain(cls, error, within)) from error

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            raise ConfigurationError(
                f"The YAML does not parse{place}.", "Check indentation, colons and quotes there."
            ) from error
        return cls.parse(data if data is not None else {})

    def to_yaml(self) -> str:
        """The settings that differ from the defaults, as YAML that ``from_yaml`` reads back."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


class ModelSpec(Spec):
    base: str = Field(BUNDLED_BASE, min_length=1, description="The bundled base, a local folder or a Hub id.")
    revision: str | None = Field(None, description="Branch, tag or commit of a Hub model.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on CUDA, float32 on CPU.")
    quantization: Literal["none", "4bit", "8bit"] = Field("none", description="Load the base in 4 or 8 bits (CUDA).")
    trust_remote_code: bool = Field(False, description="Run model code that comes with the weights.")


class TaskSpec(Spec):
    dataset: str = Field(min_length=1, description="Name or id of an uploaded data set.")
    task: str | None = Field(None, description="One task of a data set that holds several; empty: all of them.")
    instruction: str | None = Field(None, description="Replaces the data set's own instruction.")
    template: PromptTemplate = Field(PromptTemplate(), description="How rows become prompts.")
    metric: str | None = Field(None, description="Primary metric; empty: the task kind's default.")
    option_score: Literal["sum", "mean"] = Field(
        "sum", description="Log-likelihood of an option: summed over its tokens, or their mean (length-normalised)."
    )
    max_new_tokens: int = Field(96, ge=1, le=4096, description="Longest generated answer, in tokens.")
    train_rows: int | None = Field(None, ge=1, description="Use at most this many training rows, drawn by seed.")
    test_rows: int | None = Field(None, ge=1, description="Score at most this many rows, the first ones.")


class MethodSpec(Spec):
    """A preset of words with its options, or a split given cell by cell (``name: split``)."""

    name: str = Field(
        "mosld",
        description="lora, mosld, molora, hydralora, split, ...; base: no adapter at all; where sources are fused: "
        "task_arithmetic, ties, adamerging, ...",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="The preset's options; see `methods`.")
    cells: list[dict[str, Any]] = Field(default_factory=list, description="For split: the cells, first match wins.")

    @model_validator(mode="after")
    def _cells_belong_to_split(self) -> Self:
        if self.cells and self.name != "split":
            raise ValueError("cells are only read by the method split")
        return self


class TrainSpec(Spec):
    steps: int | None = Field(None, ge=1, description="Optimiser steps; empty: given by epochs.")
    epochs: float = Field(1.0, gt=0, le=1000, description="Passes over the sampled mixture; ignored if steps is set.")
    batch_size: int = Field(16, ge=1, description="Samples per device and micro-step.")
    gradient_accumulation: int = Field(1, ge=1, description="Micro-steps per optimiser step.")
    learning_rate: float = Field(1e-3, gt=0, le=1.0, description="Peak learning rate.")
    schedule: Literal["linear", "cosine", "constant"] = Field("cosine", description="After the warm-up.")
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the steps with rising learning rate.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    max_length: int = Field(512, ge=8, description="Tokens per sample; longer prompts lose their middle.")
    sampling: Literal["proportional", "temperature", "uniform"] = Field("proportional", description="Mix of tasks.")
    temperature: float = Field(2.0, ge=1, description="Temperature sampling: weights are sizes to the power 1/T.")
    packing: bool = Field(
        True, description="Lay short samples end to end in rows, where none sees another, instead of padding them."
    )
    group_by_length: bool = Field(
        False, description="Put samples of like lengths into one batch, where they are padded, not packed."
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="torch.compile of the base's blocks and CUDA graphs of whole steps. auto: on CUDA, compiled where "
        "the run is long enough to earn that back.",
    )
    activation_checkpointing: bool = Field(False, description="Recompute activations: less memory, more time.")
    log_every: int = Field(10, ge=1, description="Steps between points of the curves.")
    evaluate_every: int | None = Field(None, ge=1, description="Steps between validations; empty: ten per run.")
    validation_rows: int = Field(64, ge=1, description="Rows per task in the fixed validation probe.")
    early_stopping: int | None = Field(None, ge=1, description="Stop after this many validations without gain.")
    checkpoint_every: int | None = Field(None, ge=1, description="Steps between checkpoints; empty: five per run.")
    checkpoints_kept: int = Field(2, ge=1, description="Older checkpoints are deleted.")
    routing_moments: int = Field(5, ge=0, description="Routing snapshots while training; one more at the end.")


class EvaluationSpec(Spec):
    split: Split = Field("test", description="Rows that are scored after training.")
    base: bool = Field(True, description="Score the untouched base too.")
    batch_size: int = Field(
        32, ge=1, description="Sequences of train.max_length tokens that a forward pass may hold; of shorter ones more."
    )


class RunSpec(Spec):
    name: str = Field("", max_length=120, description="For people; empty: made from method and tasks.")
    model: ModelSpec = Field(ModelSpec(), description="The base model.")
    origin: str = Field("", description="Where an imported adapter came from; empty for what the studio trained.")
    sources: list[str] = Field(
        default_factory=list, description="Runs that are fused (run-3 or run-3:TASK); empty for what is trained."
    )
    tasks: list[TaskSpec] = Field(
        default_factory=list, validate_default=True, description="What is trained on and scored."
    )
    method: MethodSpec = Field(MethodSpec(), description="How the adapter is made.")
    train: TrainSpec = Field(TrainSpec(), description="How it is trained.")
    evaluation: EvaluationSpec = Field(EvaluationSpec(), description="How it is scored.")
    seed: int = Field(0, ge=0, lt=2**31, description="Draws everything that is random: start, order, rows.")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: a free GPU, else the CPU; or cpu, cuda, cuda:0."
    )
    tags: list[str] = Field(default_factory=list, description="For finding runs again.")
    notes: str = Field("", max_length=20_000, description="For people.")

    @field_validator("tasks")
    @classmethod
    def _something_to_train_on(cls, tasks: list[TaskSpec], info: ValidationInfo) -> list[TaskSpec]:
        if not tasks and not info.data.get("origin") and not info.data.get("sources"):
            raise ValueError("name at least one data set")
        return tasks


_PLAIN = {
    "model_type": "a mapping of settings is expected",
    "model_attributes_type": "a mapping of settings is expected",
    "string_pattern_mismatch": "not one of the forms that are known",
}


def _explain(cls: type[BaseModel], error: ValidationError, within: str) -> tuple[str, str]:
    problems, hints = [], []
    for item in error.errors():
        place = ".".join(filter(None, (within, *map(str, item["loc"]))))
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(item["loc"][-1]), _names(cls, item["loc"][:-1]), n=1)
            problems.append(f"{place} is not a setting")
            hints.append(f"Did you mean {near[0]}?" if near else "Remove it.")
        elif item["type"] == "missing":
            problems.append(f"{place} is missing")
            hints.append(f"Give {place} a value.")
        else:
            given = item.get("input")
            shown = f" (given: {given!r})" if isinstance(given, (str, int, float, bool)) else ""
            said = _PLAIN.get(item["type"]) or item["msg"].removeprefix("Value error, ")
            problems.append(f"{place}: {said}{shown}")
            if item["type"] == "string_pattern_mismatch" and (told := _description(cls, item["loc"])):
                hints.append(told)
    return "; ".join(problems) + ".", " ".join(dict.fromkeys(hints))


def _description(cls: type[BaseModel], path: tuple[Any, ...]) -> str:
    field = cls.model_fields.get(str(path[-1])) if len(path) == 1 else None
    return (field.description or "") if field else ""


def _names(cls: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """The field names of the model that ``path`` leads to."""
    for part in path:
        if isinstance(part, int) or cls is None:
            continue
        field = cls.model_fields.get(part)
        cls = field and next((c for c in _models(field.annotation)), None)
    return list(cls.model_fields) if cls else []


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in getattr(annotation, "__args__", ()) for m in _models(a)]
