"""What a run is: a base model, tasks, a method and training settings. Imports no torch."""

from __future__ import annotations

import difflib
import re
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from core import yaml_text
from core.data.templates import PromptTemplate
from core.errors import ConfigurationError
from core.texts import HALF, HALF_REMEDY, half_at

BUNDLED_BASE = "tessera-base"

TaskKind = Literal["classification", "choice", "sentence", "generation"]
Split = Literal["train", "validation", "test"]

LONG_TEXT = 20_000  # characters
MOST_STEPS = 10**8
MOST_TAGS = 50
LONGEST_TAG = 60  # characters


class Spec(BaseModel):
    """A part of a run; unknown keys are refused with the nearest known name."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, data: Any, within: str = "") -> Self:
        """Validate plain data; a problem becomes one ``ConfigurationError`` that names every wrong field.

        ``within``: the dotted name of the group that holds the data, for what is said of its fields.
        """
        if not isinstance(data, dict):
            raise ConfigurationError(
                f"{within or 'What is given'} is {_shown(data)}, not a mapping of names to values.",
                "Write names and values, such as name: value.",
            )
        if place := half_at(data, within):
            raise ConfigurationError(f"{place} holds {HALF}.", HALF_REMEDY)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ConfigurationError(*_explain(cls, error, within)) from error

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        data = yaml_text.read(text)
        return cls.parse(data if data is not None else {})

    def to_yaml(self) -> str:
        """The settings that differ from the defaults, as YAML that ``from_yaml`` reads back."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


class ModelSpec(Spec):
    base: str = Field(
        BUNDLED_BASE, min_length=1, max_length=4096, description="The bundled base, a local folder or a Hub id."
    )
    revision: str | None = Field(None, max_length=200, description="Branch, tag or commit of a Hub model.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on CUDA, float32 on CPU.")
    quantization: Literal["none", "4bit", "8bit"] = Field("none", description="Load the base in 4 or 8 bits (CUDA).")
    trust_remote_code: bool = Field(
        False,
        description="Run model code that comes with the weights, where TESSERA_TRUSTED_CODE allows this revision.",
    )


class TaskSpec(Spec):
    dataset: str = Field(min_length=1, max_length=4096, description="Name or id of an uploaded data set.")
    task: str | None = Field(
        None, max_length=300, description="One task of a data set that holds several; empty: all of them."
    )
    instruction: str | None = Field(None, max_length=LONG_TEXT, description="Replaces the data set's own instruction.")
    template: PromptTemplate = Field(PromptTemplate(), description="How rows become prompts.")
    metric: str | None = Field(None, max_length=60, description="Primary metric; empty: the task kind's default.")
    option_score: Literal["sum", "mean"] = Field(
        "sum", description="Log-likelihood of an option: summed over its tokens, or their mean (length-normalised)."
    )
    max_new_tokens: int = Field(96, ge=1, le=4096, description="Longest generated answer, in tokens.")
    train_rows: int | None = Field(
        None, ge=1, le=10**9, description="Use at most this many training rows, drawn by seed."
    )
    test_rows: int | None = Field(None, ge=1, le=10**9, description="Score at most this many rows, the first ones.")


class MethodSpec(Spec):
    """A preset of words with its options, or a split given cell by cell (``name: split``)."""

    name: str = Field(
        "mosld",
        max_length=60,
        description="lora, mosld, molora, hydralora, split, ...; base: no adapter at all; where sources are fused: "
        "task_arithmetic, ties, adamerging, ...",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="The preset's options; see `methods`.")
    cells: list[dict[str, Any]] = Field(
        default_factory=list, max_length=1000, description="For split: the cells, first match wins."
    )

    @model_validator(mode="after")
    def _cells_belong_to_split(self) -> Self:
        if self.cells and self.name != "split":
            raise ValueError("cells are only read by the method split")
        return self


class TrainSpec(Spec):
    steps: int | None = Field(None, ge=1, le=MOST_STEPS, description="Optimiser steps; empty: given by epochs.")
    epochs: float = Field(1.0, gt=0, le=1000, description="Passes over the sampled mixture; ignored if steps is set.")
    batch_size: int = Field(16, ge=1, le=65_536, description="Samples per device and micro-step.")
    gradient_accumulation: int = Field(1, ge=1, le=65_536, description="Micro-steps per optimiser step.")
    learning_rate: float = Field(1e-3, gt=0, le=1.0, description="Peak learning rate.")
    schedule: Literal["linear", "cosine", "constant"] = Field("cosine", description="After the warm-up.")
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the steps with rising learning rate.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW weight decay.")
    max_grad_norm: float = Field(1.0, gt=0, le=1e9, description="Gradients are clipped to this norm.")
    max_length: int = Field(512, ge=8, le=2**20, description="Tokens per sample; longer prompts lose their middle.")
    sampling: Literal["proportional", "temperature", "uniform"] = Field("proportional", description="Mix of tasks.")
    temperature: float = Field(
        2.0, ge=1, le=1000, description="Temperature sampling: weights are sizes to the power 1/T."
    )
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
    log_every: int = Field(10, ge=1, le=MOST_STEPS, description="Steps between points of the curves.")
    evaluate_every: int | None = Field(
        None, ge=1, le=MOST_STEPS, description="Steps between validations; empty: ten per run."
    )
    validation_rows: int = Field(64, ge=1, le=10**6, description="Rows per task in the fixed validation probe.")
    early_stopping: int | None = Field(
        None, ge=1, le=MOST_STEPS, description="Stop after this many validations without gain."
    )
    checkpoint_every: int | None = Field(
        None, ge=1, le=MOST_STEPS, description="Steps between checkpoints; empty: five per run."
    )
    checkpoints_kept: int = Field(2, ge=1, le=10_000, description="Older checkpoints are deleted.")
    on_alarm: Literal["continue", "stop"] = Field(
        "continue",
        description="At an alarm (a spike of the loss, exploding gradients, dead or collapsed experts) go on, or stop "
        "with a checkpoint until somebody resumes the run. A loss that is no number always stops it.",
    )
    routing_moments: int = Field(5, ge=0, le=1000, description="Routing snapshots while training; one more at the end.")


class EvaluationSpec(Spec):
    split: Split = Field("test", description="Rows that are scored after training.")
    base: bool = Field(True, description="Score the untouched base too.")
    batch_size: int = Field(
        32,
        ge=1,
        le=65_536,
        description="Sequences of train.max_length tokens that a forward pass may hold; of shorter ones more.",
    )


class RunSpec(Spec):
    name: str = Field("", max_length=120, description="For people; empty: made from method and tasks.")
    model: ModelSpec = Field(ModelSpec(), description="The base model.")
    origin: str = Field(
        "", max_length=4096, description="Where an imported adapter came from; empty for what the studio trained."
    )
    sources: list[str] = Field(
        default_factory=list,
        max_length=1000,
        description="Runs that are fused (run-3 or run-3:TASK); empty for what is trained.",
    )
    tasks: list[TaskSpec] = Field(
        default_factory=list, max_length=2000, validate_default=True, description="What is trained on and scored."
    )
    method: MethodSpec = Field(MethodSpec(), description="How the adapter is made.")
    train: TrainSpec = Field(TrainSpec(), description="How it is trained.")
    evaluation: EvaluationSpec = Field(EvaluationSpec(), description="How it is scored.")
    seed: int = Field(0, ge=0, lt=2**31, description="Draws everything that is random: start, order, rows.")
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto: a free GPU, else the CPU; or cpu, cuda, cuda:0."
    )
    tags: list[str] = Field(default_factory=list, description="For finding runs again.")
    notes: str = Field("", max_length=LONG_TEXT, description="For people.")

    @field_validator("tags")
    @classmethod
    def _short(cls, tags: list[str]) -> list[str]:
        if len(tags) > MOST_TAGS or any(len(tag) > LONGEST_TAG for tag in tags):
            raise ValueError(f"at most {MOST_TAGS} tags, each of at most {LONGEST_TAG} characters")
        return tags

    @field_validator("tasks")
    @classmethod
    def _something_to_train_on(cls, tasks: list[TaskSpec], info: ValidationInfo) -> list[TaskSpec]:
        if not tasks and not info.data.get("origin") and not info.data.get("sources"):
            raise ValueError("name at least one data set")
        return tasks


_PLAIN = {
    "model_type": "a mapping of settings is expected",
    "model_attributes_type": "a mapping of settings is expected",
    "dict_type": "a mapping of names to values is expected",
    "string_pattern_mismatch": "not one of the forms that are known",
    "finite_number": "should be a finite number",
    "string_unicode": "should be a text of whole characters",
    "invalid_key": "names of settings are texts",
}
_SUBJECT = re.compile(r"^(Input|String|List|Dictionary|Value|Number) should")
# What pydantic adds to a place to say which kind of several it tried.
_UNION = re.compile(r"^(str|int|float|bool|none|list\[.*|dict\[.*|literal\[.*|function-.*|constrained-.*|nullable.*)$")
_OTHERWISE = "Correct it, or leave it out for the default."
MOST_SAID = 8


def _explain(cls: type[BaseModel], error: ValidationError, within: str) -> tuple[str, str]:
    problems: dict[str, list[str]] = {}
    hints = []
    for item in error.errors(include_url=False, include_context=False):
        named = len(item["loc"]) if item["type"] in ("extra_forbidden", "missing") else 0  # the last part is a name
        parts = enumerate(item["loc"], 1)
        path = tuple(one for n, one in parts if n == named or isinstance(one, int) or not _UNION.match(one))
        place = ".".join(filter(None, (within, *(str(part)[:60] for part in path)))) or "It"
        told = _description(cls, path)
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(path[-1]), _names(cls, path[:-1]), n=1)
            problems[f"{place} is not a setting"] = []
            hints.append(f"Did you mean {near[0]}?" if near else f"There are {', '.join(_names(cls, path[:-1]))}.")
        elif item["type"] == "missing":
            problems[f"{place} is missing"] = []
            hints.append(f"Give {place} a value: {told}" if told else f"Give {place} a value.")
        else:
            said = _PLAIN.get(item["type"]) or _SUBJECT.sub("should", item["msg"].removeprefix("Value error, "))
            given = problems.setdefault(f"{place} is {_shown(item.get('input'))}", [])
            given.append(said if not given else said.removeprefix("should be "))
            hints.append(f"{path[-1]}: {told}" if told else _OTHERWISE)
    texts = [f"{place}: {', or '.join(dict.fromkeys(said))}" if said else place for place, said in problems.items()]
    more = [f"and {len(texts) - MOST_SAID} more"] if len(texts) > MOST_SAID else []
    return "; ".join([*texts[:MOST_SAID], *more]) + ".", " ".join(dict.fromkeys(hints[:MOST_SAID]))


def _shown(value: Any) -> str:
    """A given value in a sentence, never longer than a few words."""
    if value is None:
        return "empty"
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a number of more than 40 digits"
    if not isinstance(value, (str, int, float, bool)):
        known = {dict: "a mapping", list: "a list", tuple: "a list"}
        return known.get(type(value), f"of the type {type(value).__name__}")
    return repr(value) if len(str(value)) <= 60 else f"{str(value)[:57]!r}..."


def _description(cls: type[BaseModel] | None, path: tuple[Any, ...]) -> str:
    """What the field says of itself that ``path`` leads to."""
    cls = _model_at(cls, path[:-1])
    field = cls.model_fields.get(str(path[-1])) if cls and path else None
    if field is None and path and isinstance(path[-1], int):
        return _description(cls, path[:-1])
    return (field.description or "") if field else ""


def _names(cls: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """The field names of the model that ``path`` leads to."""
    found = _model_at(cls, path)
    return list(found.model_fields) if found else []


def _model_at(cls: type[BaseModel] | None, path: tuple[Any, ...]) -> type[BaseModel] | None:
    for part in path:
        if isinstance(part, int) or cls is None:
            continue
        field = cls.model_fields.get(part)
        cls = next((c for c in _models(field.annotation)), None) if field else None
    return cls


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in getattr(annotation, "__args__", ()) for m in _models(a)]
