"""What can be chosen and what it costs: methods, words, layer shapes of a base, parameter and memory estimates.

Imports no torch: the shapes of a base are read once by a child process and cached.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from core import hub, method_facts
from core.access import need
from core.adapters.cells import Cell, Kind, Linear, Site, plan
from core.adapters.methods import presets, resolve
from core.adapters.words import WORDS
from core.base_files import DECODERS, check_config, read_config
from core.catalog_shapes import UNSUITABLE
from core.data.mapping import Mapping
from core.data.templates import PromptTemplate
from core.errors import ConfigurationError, NotFoundError
from core.home import ASSETS, BUNDLED_BASE_FOLDER, PROJECT, read_json, write_json
from core.memory import Batch, MemoryEstimate, estimate
from core.schema import BUNDLED_BASE, EvaluationSpec, MethodSpec, ModelSpec, RunSpec, TaskSpec, TrainSpec
from core.secrets import for_work

# Of the bundled base, so that the first look at it starts no process; written by shapes(ModelSpec(), SHIPPED_SHAPES).
SHIPPED_SHAPES = ASSETS / "shapes"
SHAPES_SECONDS = 300.0

# Of options that are called alike wherever they are; a field says another one in its json_schema_extra.
UNITS = {
    "rank": "dimensions",
    "expert_rank": "dimensions",
    "layers": "numbers of layers",
    "experts": "experts",
    "top_k": "experts",
    "clusters": "clusters",
    "width": "dimensions",
    "vectors": "factors",
    "down_vectors": "factors",
    "up_vectors": "factors",
    "samples": "tokens",
    "after": "optimiser steps",
    "dropout": "probability",
    **dict.fromkeys(("balance", "contrastive", "supervision", "weight"), "weight of a loss"),
    **dict.fromkeys(("steps", "log_every", "evaluate_every", "checkpoint_every"), "optimiser steps"),
    **dict.fromkeys(("train_rows", "test_rows", "validation_rows", "batch_size"), "samples"),
    **dict.fromkeys(("max_length", "max_new_tokens"), "tokens"),
}


def methods() -> list[dict[str, Any]]:
    """Every preset with its options and formula, as plain data for forms, the command line and documentation.

    ``peft``: computed by PEFT, so that its words only say where it stands and what it costs, and no split equals it.
    """
    return [
        {
            "name": preset.name,
            "title": preset.title,
            "summary": preset.summary,
            "badge": preset.badge,
            "peft": preset.peft is not None,
            "source": preset.source,
            **method_facts.facts(preset),
            "options": options_of(preset.options),
        }
        for preset in presets().values()
    ]


def words() -> dict[str, list[dict[str, Any]]]:
    """The words for down, gate and up with their options, for building a split."""
    return {
        part: [
            {
                "name": name,
                "summary": " ".join((word.__doc__ or "").split()),
                "formula": word.formula,
                "options": [option for option in options_of(word) if option["name"] != "word"],
            }
            for name, word in known.items()
        ]
        for part, known in WORDS.items()
    }


def cell_options() -> list[dict[str, Any]]:
    """The fields of a cell."""
    return options_of(Cell)


def settings() -> dict[str, list[dict[str, Any]]]:
    """The fields of each part of a run, and the roles of columns, as forms need them."""
    parts = {"run": RunSpec, "model": ModelSpec, "task": TaskSpec, "template": PromptTemplate, "train": TrainSpec}
    parts |= {"evaluation": EvaluationSpec, "columns": Mapping}
    return {name: options_of(part) for name, part in parts.items()}


def options_of(model: type[BaseModel]) -> list[dict[str, Any]]:
    """The fields of a pydantic model: name, type, default and bounds (both in words too), help, choices and unit.

    ``type`` is one of integer, number, text, boolean, choice, names (one or several), integers (one or several),
    ranges, several (a list of texts), numbers (a list), cells, word or json; ``optional`` says whether the value may
    be left empty.
    """
    return [_option(name, field) for name, field in model.model_fields.items()]


def _option(name: str, field: FieldInfo) -> dict[str, Any]:
    default = field.get_default(call_default_factory=True)
    default = None if default is PydanticUndefined else default
    kind, choices = _kind(field.annotation)
    bounds = {}
    for bound in field.metadata:
        for key, label in (("ge", "minimum"), ("gt", "above"), ("le", "maximum"), ("lt", "below")):
            if hasattr(bound, key):
                bounds[label] = getattr(bound, key)
    return {
        "name": name,
        "type": kind,
        "default": default,
        "default_text": "must be given" if field.is_required() else _written(default),
        "required": field.is_required(),
        "optional": NoneType in get_args(field.annotation),
        "help": field.description or "",
        "choices": choices,
        "bounds": bounds,
        "range": _range(choices, bounds),
        "unit": (field.json_schema_extra or {}).get("unit", UNITS.get(name)),
    }


def _written(default: Any) -> str:
    if default is None or default == []:
        return "empty"
    if isinstance(default, bool):
        return "yes" if default else "no"
    return ", ".join(map(str, default)) if isinstance(default, list) else str(default)


def _range(choices: list[Any], bounds: dict[str, float]) -> str:
    """``1 to 1024``, ``> 0``, or the choices; empty where there are neither."""
    if choices:
        return " | ".join(map(str, choices))
    low, high = bounds.get("minimum"), bounds.get("maximum")
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    signs = (("minimum", "≥"), ("above", ">"), ("maximum", "≤"), ("below", "<"))
    return ", ".join(f"{sign} {bounds[label]:g}" for label, sign in signs if label in bounds)


def _kind(annotation: Any) -> tuple[str, list[Any]]:
    parts = [part for part in get_args(annotation) if part is not NoneType]
    if get_origin(annotation) in (Union, UnionType) and len(parts) == 1:
        return _kind(parts[0])
    if get_origin(annotation) is Literal:
        return "choice", list(parts)
    if set(parts) == {list[str], str}:
        return "names", []
    if set(parts) == {list[int], int}:
        return "integers", []
    if annotation == list[int | str]:
        return "ranges", []
    if annotation == list[str]:
        return "several", []
    if annotation == list[float]:
        return "numbers", []
    if annotation == list[Cell]:
        return "cells", []
    if isinstance(annotation, type) and getattr(annotation, "part", None) in WORDS:
        return "word", list(WORDS[annotation.part])
    names = {bool: "boolean", int: "integer", float: "number", str: "text"}
    return names.get(annotation, "json"), []


@dataclass(frozen=True)
class BaseShapes:
    """What a base's config says about its size."""

    model_type: str
    parameters: int
    layers: int
    hidden: int
    feed_forward: int
    vocabulary: int
    positions: int | None
    linears: tuple[Linear, ...]
    tied: bool = False  # whether the output head has the weight of the token embedding
    few_bits: bool = False  # whether its weights were saved quantised, so that the shapes say too much of their size

    @property
    def projections(self) -> list[str]:
        """Names of the projections that all-linear adapts, in order."""
        return list(dict.fromkeys(linear.projection for linear in self.linears if linear.usual))


def shapes(model: ModelSpec, cache: Path) -> BaseShapes:
    """The layer shapes of a base, read by a child process from its config alone and kept under ``cache``."""
    folder = _config_folder(model)
    content = (folder / "config.json").read_bytes()
    # What is kept of another version of the studio is not read.
    fields = ",".join([*BaseShapes.__dataclass_fields__, *Linear.__dataclass_fields__, *get_args(Kind)])
    key = hashlib.sha256(content + f"|{model.trust_remote_code}|{fields}".encode()).hexdigest()[:16]
    name = f"shapes-{key}.json"
    path = SHIPPED_SHAPES / name if (SHIPPED_SHAPES / name).is_file() else Path(cache) / name
    if not path.is_file():
        write_json(path, _read_shapes(folder, model))
    data = read_json(path)
    return BaseShapes(**{**data, "linears": tuple(Linear(*line) for line in data["linears"])})


def _read_shapes(folder: Path, model: ModelSpec) -> dict[str, Any]:
    check_config(folder, read_config(folder, model), model)
    command = [sys.executable, "-m", "core.catalog_shapes", str(folder.resolve())]
    bare = for_work(os.environ, hub=False)  # code of a base may run there
    if model.trust_remote_code:
        command.append("--trust-remote-code")
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=SHAPES_SECONDS, env=bare)
    except subprocess.TimeoutExpired as error:
        raise ConfigurationError(
            f"The config of {model.base} describes a model that is not built in {SHAPES_SECONDS:.0f} s.",
            "Look at the sizes in its config.json.",
        ) from error
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        if done.returncode == UNSUITABLE:
            raise ConfigurationError(f"{model.base} {reason}", DECODERS)
        raise ConfigurationError(
            f"The config of {model.base} describes no causal language model that transformers can build: {reason}",
            "Choose a causal language model; one with its own code needs trust_remote_code.",
        )
    return json.loads(done.stdout.strip().splitlines()[-1])


def _config_folder(model: ModelSpec) -> Path:
    """A folder with the base's ``config.json``; of a Hub model, nothing else is fetched.

    Viewers make the studio read and fetch nothing that they name.
    """
    if model.base != BUNDLED_BASE:
        need("researcher")
    folder = BUNDLED_BASE_FOLDER if model.base == BUNDLED_BASE else Path(model.base).expanduser()
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return folder
        raise NotFoundError(f"{folder} has no config.json.", "Give the folder of a saved transformers model.")
    if hub.is_path(model.base):
        raise NotFoundError(
            f"The base model folder {model.base} does not exist.",
            "Check the path, or give a Hub id such as owner/name.",
        )
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        with hub.quiet():
            here_alone = not hub.reachable()  # the client itself would try for half a minute
            source = {"revision": model.revision, "endpoint": hub.endpoint(), "local_files_only": here_alone}
            if model.trust_remote_code:  # the shapes are those that its code makes
                return Path(snapshot_download(model.base, allow_patterns=["config.json", "*.py"], **source))
            return Path(hf_hub_download(model.base, "config.json", **source)).parent
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise NotFoundError(
            f"{model.base} is neither a folder nor a model that can be read from the Hub: {str(error).splitlines()[0]}",
            "Check the name, your connection and, for gated models, your access.",
        ) from error


def sites(method: MethodSpec, base: BaseShapes, tasks: int = 0) -> list[Site]:
    """Every projection that a method adapts on a base, with its words and experts."""
    return plan(resolve(method), base.linears, tasks)


def trainable_parameters(method: MethodSpec, base: BaseShapes, tasks: int = 0) -> int:
    """The exact number of trainable parameters, from the words' closed forms; ``tasks`` counts for task gates."""
    return sum(site.parameters() for site in sites(method, base, tasks))


def memory(
    method: MethodSpec | None,
    model: ModelSpec,
    base: BaseShapes,
    train: TrainSpec,
    tasks: int = 0,
    cuda: bool = True,
    batch: Batch | None = None,
) -> MemoryEstimate:
    """The peak of training memory by part; without a ``batch`` every row is taken to be as long as it may be."""
    found = [] if method is None or method.name == "base" else sites(method, base, tasks)
    return estimate(found, model, base, train, batch or Batch.of(train, base.positions), cuda)
