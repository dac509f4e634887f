"""What a run will need, found out before it is queued: data, base, method, size."""

from __future__ import annotations

import difflib
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import catalog, fitting, hub, overrides, room
from core.adapters.cells import Cell, Site
from core.adapters.cells import plan as plan_cells
from core.adapters.methods import presets, resolve
from core.data.store import DatasetStore
from core.data.tasks import Task, load_tasks
from core.errors import ConfigurationError, DataError, NotFoundError
from core.fitting import Fit
from core.home import Home
from core.jobs.devices import list_devices
from core.lengths import lengths
from core.memory import MemoryEstimate
from core.method_facts import labelled
from core.models import require_bitsandbytes, resolve_base
from core.paths import allowed, real
from core.schema import BUNDLED_BASE, MethodSpec, ModelSpec, RunSpec, TaskSpec, TrainSpec


@dataclass(frozen=True)
class Plan:
    """A run that may be queued: data sets by content hash, tasks by name, sizes counted.

    ``trainable`` is None while the base has not been downloaded: its shapes are unknown until then.
    """

    spec: RunSpec
    datasets: list[str]
    tasks: list[str]
    rows: dict[str, int]
    trainable: int | None
    memory: MemoryEstimate | None = None
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        size = "unknown until the base is downloaded" if self.trainable is None else f"{self.trainable:,}"
        lines = [f"{self.spec.name}: {labelled(self.spec.method.name)} on {self.spec.model.base}"]
        if self.spec.sources:
            lines += [f"fuses: {', '.join(self.spec.sources)}", f"tasks: {', '.join(self.tasks) or 'none'}"]
        else:
            memory = self.memory.describe() if self.memory else "unknown"
            lines += [f"trainable parameters: {size}", f"memory: {memory}"]
        lines += [f"{task}: {rows:,} training rows" for task, rows in self.rows.items()]
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])


def plan(spec: RunSpec, home: Home, store: DatasetStore, upload: Callable[[Path], str] | None = None) -> Plan:
    """Check everything that can be known now. ``upload`` stores a file that a task names and returns the data set's id.

    Raises the StudioError that the worker would only find minutes later.
    """
    if spec.method.name != "base":
        check_cells(resolve(spec.method))  # cheap, so before files are stored and a child looks at the base
    check_device(spec)
    spec = with_stored_tasks(spec, store, upload)
    tasks = load_tasks(store, spec.tasks, spec.seed)
    check_rows(spec, tasks)
    contradictions(spec, tasks)
    trainable, memory, notes = measure(spec, home, tasks)
    tight = room.require(trainable or 0, spec.train, home.runs)
    resolved = [task.spec.model_copy(update={"dataset": task.dataset_id, "task": task.info.name}) for task in tasks]
    names = [task.name for task in tasks]
    spec = spec.model_copy(update={"tasks": resolved, "name": spec.name or default_name(spec, names)})
    rows = {task.name: task.size("train") for task in tasks}
    return Plan(
        spec,
        list(dict.fromkeys(task.dataset_id for task in tasks)),
        names,
        rows,
        trainable,
        memory,
        [*notes, *filter(None, [tight]), *idle_settings(spec)],
    )


def method(name: str) -> dict[str, Any]:
    """One method of the catalogue by name; of a split also the options of a cell and of the words."""
    known = {one["name"]: one for one in catalog.methods()}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(known)}."
        raise NotFoundError(f"There is no method {name!r}.", hint)
    split = any(option["type"] == "cells" for option in known[name]["options"])
    return known[name] | ({"cell": catalog.cell_options(), "words": catalog.words()} if split else {})


def default_name(spec: RunSpec, tasks: list[str]) -> str:
    """``mosld on boolq, mnli and 3 more``."""
    shown = ", ".join(tasks[:2]) + (f" and {len(tasks) - 2} more" if len(tasks) > 2 else "")
    return f"{spec.method.name} on {shown}"[:120]


def with_stored_tasks(spec: RunSpec, store: DatasetStore, upload: Callable[[Path], str] | None = None) -> RunSpec:
    """The run with every data set named as it is stored; files that it names are stored first."""
    return spec.model_copy(update={"tasks": [_stored(task, store, upload) for task in spec.tasks]})


def _stored(task: TaskSpec, store: DatasetStore, upload: Callable[[Path], str] | None) -> TaskSpec:
    try:
        return task.model_copy(update={"dataset": store.find(task.dataset).id})
    except NotFoundError:
        path = real(task.dataset)
        if upload is None or not (path.exists() or Path(task.dataset).is_absolute()):
            raise
        if not allowed(path).exists():
            raise
        return task.model_copy(update={"dataset": upload(path)})


@dataclass(frozen=True)
class CellProblem:
    """What is wrong with one cell; ``cell`` counts from 1, None where it is the method as a whole."""

    cell: int | None
    message: str
    hint: str


def cell_problems(method: MethodSpec, base: catalog.BaseShapes, tasks: int = 0) -> list[CellProblem]:
    """Every cell that cannot be trained, with its reason; what a whole method cannot do comes alone."""
    try:
        cells = resolve(method)
    except ConfigurationError as error:
        place = re.match(r"(?:method\.)?cells\.(\d+)\.", error.message)
        return [CellProblem(int(place[1]) + 1 if place else None, error.message, error.hint)]
    found = {number: error for number, cell in enumerate(cells, 1) if (error := _refused(cell, number, base, tasks))}
    try:
        check_cells(cells)
        check_ranks(plan_cells(cells, base.linears, tasks))
    except ConfigurationError as error:
        place = re.match(r"Cell (\d+)", error.message)
        found.setdefault(int(place[1]) if place else None, error)
    return [CellProblem(number, error.message, error.hint) for number, error in found.items()]


def _refused(cell: Cell, number: int, base: catalog.BaseShapes, tasks: int) -> ConfigurationError | None:
    """What is wrong with a cell by itself, wherever the other cells stand."""
    if cell.frozen:
        return None
    try:
        check_cells([cell])
        plan_cells([cell], base.linears, tasks)
    except ConfigurationError as error:
        return ConfigurationError(error.message.replace("Cell 1", f"Cell {number}", 1), error.hint)
    return None


def check_cells(cells: Sequence[Cell]) -> None:
    """Refuse gates that would use more experts than any of their projections has."""
    for index, cell in enumerate(cells, 1):
        top_k = getattr(cell.gate, "top_k", None)
        most = max(cell.experts) if isinstance(cell.experts, list) else cell.experts
        if top_k is not None and not cell.single and not cell.frozen and 1 < most < top_k:
            raise ConfigurationError(
                f"Cell {index} ({_modules(cell)}): top_k is {top_k}, but there are {most} experts at most.",
                f"Set top_k to {most} or less, or raise experts.",
            )


def check_ranks(sites: Sequence[Site]) -> None:
    """Refuse a rank above a projection's narrower side: no update of it has more."""
    for site in sites:
        most = min(site.in_features, site.out_features)
        if site.down.word != "identity" and site.rank > most:
            raise ConfigurationError(
                f"{site.name}: the rank is {site.rank}, but the projection is {site.in_features} by "
                f"{site.out_features}, so that no update has a rank above {most}.",
                f"Set rank to {most} or less, or leave this projection out.",
            )


def _modules(cell: Cell) -> str:
    return cell.modules if isinstance(cell.modules, str) else ", ".join(cell.modules)


def check_trains(spec: RunSpec) -> None:
    """Refuse a fusion where what training takes is asked."""
    if spec.sources:
        raise ConfigurationError(
            f"These are the settings of a fusion of {', '.join(spec.sources)}, which is not trained.",
            "Fuse on the page Fusion, or with python app.py fuse.",
        )


def check_device(spec: RunSpec) -> None:
    """Refuse a GPU that this machine does not have, and what only a GPU can do where there is none."""
    try:
        names = [device.name for device in list_devices()]
    except (OSError, subprocess.SubprocessError):
        return  # nvidia-smi does not answer now; the dispatcher asks again
    gpus = [name for name in names if name != "cpu"]
    wants_gpu = spec.device.startswith("cuda")
    if wants_gpu and not gpus:
        raise ConfigurationError(f"device is {spec.device}, but this machine has no GPU.", "Set device to auto or cpu.")
    if wants_gpu and spec.device != "cuda" and spec.device not in gpus:
        raise ConfigurationError(
            f"device is {spec.device}, but this machine has {', '.join(gpus)}.", "Name one of these, or auto."
        )
    if spec.model.quantization != "none" and not gpus:
        raise ConfigurationError(
            f"model.quantization is {spec.model.quantization}, but the run would use the CPU.",
            "Quantised bases need CUDA: set model.quantization to none.",
        )
    if spec.model.quantization != "none":
        require_bitsandbytes(f"model.quantization is {spec.model.quantization}")


def _remarks(spec: RunSpec, base: catalog.BaseShapes, fit: Fit) -> list[str]:
    """What will be done otherwise than it seems to be asked, and what may not fit."""
    found = []
    for cell in [] if spec.method.name == "base" else resolve(spec.method):
        layers = {linear.layer for linear in base.linears if cell.matches(linear)} - {None}
        if isinstance(cell.experts, list) and len(cell.experts) > len(layers):
            found.append(
                f"{_modules(cell)}: {len(cell.experts)} numbers of experts for {len(layers)} layers; not all are used."
            )
    if base.positions and spec.train.max_length > base.positions:
        found.append(f"The base reads {base.positions:,} tokens at most, whatever train.max_length says.")
    if fit.fits is False:
        found.append(f"Training needs {fit.text()}. {fit.advice}")
    return found


def contradictions(spec: RunSpec, tasks: Sequence[Task]) -> None:
    """Refuse settings that cannot all be followed."""
    train = spec.train
    if spec.model.quantization != "none" and spec.device == "cpu":
        raise ConfigurationError(
            f"Quantisation to {spec.model.quantization} needs CUDA, but the device is cpu.",
            "Choose another device, or no quantisation.",
        )
    check_few_bits(spec)
    if train.steps and train.evaluate_every and train.evaluate_every > train.steps:
        raise ConfigurationError(
            f"The first validation would come at step {train.evaluate_every}, after the last step ({train.steps}).",
            "Validate more often, or train longer.",
        )
    if train.steps and train.checkpoint_every and train.checkpoint_every > train.steps:
        raise ConfigurationError(
            f"train.checkpoint_every: the first checkpoint would come at step {train.checkpoint_every}, after the last "
            f"step ({train.steps}).",
            "Save more often, train longer, or leave it empty: the end is always saved.",
        )
    blind = [task.name for task in tasks if not task.size("validation")]
    if train.evaluate_every and tasks and len(blind) == len(tasks):
        raise ConfigurationError(
            f"train.evaluate_every is {train.evaluate_every}, but no task has validation rows.",
            "Upload the data with a validation share, or leave it empty.",
        )
    if train.early_stopping and len(blind) == len(tasks):
        raise ConfigurationError(
            "Early stopping needs validation rows, and no task has any.",
            "Upload the data with a validation share, or switch early stopping off.",
        )


def check_few_bits(spec: RunSpec) -> None:
    """Refuse quantised bases on which a method is not right."""
    bits, preset = spec.model.quantization, presets().get(spec.method.name)
    if preset is not None and bits not in ("none", *preset.few_bits):
        raise ConfigurationError(
            f"{preset.title} is not exact on a {bits} base: a fresh adapter already changes what the base says.",
            f"Set model.quantization to {' or '.join((*preset.few_bits, 'none'))}, or choose another method.",
        )


def idle_settings(spec: RunSpec) -> list[str]:
    """What is said about settings that change nothing."""
    train, default = spec.train, TrainSpec()
    remarks = []
    if train.steps and train.epochs != default.epochs:
        remarks.append(f"{train.steps:,} steps are trained; epochs {train.epochs:g} is not used.")
    if train.group_by_length and train.packing:
        remarks.append("Samples are padded, not packed: group_by_length is on.")
    if train.steps and train.early_stopping and train.early_stopping * (train.evaluate_every or 1) >= train.steps:
        remarks.append(f"Early stopping cannot act within {train.steps:,} steps.")
    if train.sampling != "temperature" and train.temperature != default.temperature:
        remarks.append(f"Temperature {train.temperature:g} is not used: sampling is {train.sampling}.")
    return remarks


def check_rows(spec: RunSpec, tasks: list[Task]) -> None:
    trains = spec.method.name != "base"
    for task in tasks:
        if trains and not task.size("train"):
            raise DataError(f"{task.name} has no training rows.", "Upload it with a train split, or leave it out.")
        if not task.size(spec.evaluation.split):
            have = ", ".join(split for split in ("train", "validation", "test") if task.size(split))
            raise DataError(
                f"{task.name} has no {spec.evaluation.split} rows to be scored on.",
                f"Set evaluation.split to one that it has ({have}), or upload it with that split.",
            )


def measure(spec: RunSpec, home: Home, tasks: Sequence[Task]) -> tuple[int | None, MemoryEstimate | None, list[str]]:
    """Trainable parameters, the estimated peak of memory, and what is to be said about the base."""
    note = _not_here(spec.model)
    notes = [] if note is None else [note]
    try:
        base = catalog.shapes(spec.model, home.cache)
    except NotFoundError:
        if note is None:
            raise
        return None, None, notes
    sites = [] if spec.method.name == "base" else catalog.sites(spec.method, base, len(tasks))
    check_ranks(sites)
    rows = lengths(tasks, spec.model, spec.train.max_length)
    memory, fit = fitting.examine(sites, spec.model, base, spec.train, spec.device, rows)
    if refused := fit.refusal():
        raise refused
    return sum(site.parameters() for site in sites), memory, [*notes, *_remarks(spec, base, fit)]


def _not_here(model: ModelSpec) -> str | None:
    """None when the base lies on this machine, else a note; a wrong or gated Hub id raises."""
    try:
        resolve_base(model, offline=True)
        return None
    except (NotFoundError, ConfigurationError):  # the cache may hold a Hub model's config alone
        local = model.base == BUNDLED_BASE or hub.is_path(model.base)
        if local or Path(model.base).is_dir():
            raise
    if "/" not in model.base and difflib.get_close_matches(model.base, [BUNDLED_BASE], cutoff=0.8):
        raise NotFoundError(f"There is no base {model.base!r}.", f"Did you mean {BUNDLED_BASE}?")
    if hub.offline():
        raise NotFoundError(
            f"{model.base} is not in the local cache, and HF_HUB_OFFLINE keeps it from being downloaded.",
            "Unset HF_HUB_OFFLINE, or give the folder of a copy.",
        )
    if hub.require_model(model.base, model.revision):
        return f"{model.base} is downloaded when the run starts."
    return f"{model.base} is not in the local cache and the Hub does not answer now; the run needs it when it starts."


def read_spec(source: str | Path, changes: dict[str, Any], seeds: str | None) -> list[RunSpec]:
    """YAML text or the name of a YAML file, changed, once for each seed. Files named in it are looked for beside it."""
    text, beside = source, None
    if isinstance(source, Path):
        if not source.is_file():
            raise NotFoundError(f"There is no file {source}.", "Write one as docs/cli.md shows, or clone a run.")
        try:
            text, beside = source.read_text("utf-8-sig"), source.resolve().parent
        except UnicodeDecodeError as error:
            raise DataError(f"{source} is not UTF-8 text.", "Save it as UTF-8.") from error
    spec = overrides.apply(RunSpec.from_yaml(str(text)), changes)
    if beside is not None:
        spec = spec.model_copy(update={"tasks": [_beside(task, beside) for task in spec.tasks]})
    return overrides.with_seeds(spec, seeds)


def _beside(task: TaskSpec, folder: Path) -> TaskSpec:
    path = Path(task.dataset).expanduser()
    near = folder / path
    return task.model_copy(update={"dataset": str(near)}) if not path.is_absolute() and near.exists() else task


def scoring(
    run: str, spec: RunSpec, store: DatasetStore, datasets: Sequence[str] | None, split: str, base: bool
) -> dict[str, Any]:
    """The arguments of a scoring job: the run's own tasks, or every ``NAME[:TASK]`` that is given."""
    if split not in ("train", "validation", "test"):
        raise ConfigurationError(f"{split!r} is not a split.", "Choose train, validation or test.")
    given = [_named(name) for name in datasets or ()] or list(spec.tasks)
    if not given:
        raise ConfigurationError(f"{run} was imported and has no tasks of its own.", "Name data sets with --dataset.")
    tasks = load_tasks(store, given, spec.seed)
    for task in tasks:
        if not task.size(split):
            raise DataError(f"{task.name} has no {split} rows.", "Choose another split.")
    resolved = [task.spec.model_copy(update={"dataset": task.dataset_id, "task": task.info.name}) for task in tasks]
    adapter = [] if spec.method.name == "base" else ["adapter"]
    models = [*adapter, "base"] if base or not adapter else adapter
    return {"tasks": [task.model_dump(mode="json") for task in resolved], "split": split, "models": models}


def _named(name: str) -> TaskSpec:
    dataset, _, task = name.partition(":")
    return TaskSpec.parse({"dataset": dataset, "task": task or None})
