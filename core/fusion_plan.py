"""What fusing finished runs will need, found out before it is queued. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import catalog, fusion_memory, overrides
from core.adapters.cells import Cell
from core.adapters.folders import CONFIG, read_config
from core.adapters.methods import presets
from core.data.store import DatasetStore
from core.data.tasks import load_tasks
from core.errors import ConfigurationError, NotFoundError, StudioError
from core.fusion.methods import fusion_method, fusion_methods, options_of
from core.home import Home, RunFolder, read_json
from core.paths import allowed, is_name, real
from core.planning import Plan, check_device
from core.schema import MethodSpec, ModelSpec, RunSpec, TaskSpec

ROUTING = "end.npz"
USED_OF_TRAINING = ("train.max_length",)  # how long prompts may be


@dataclass(frozen=True)
class SourceRun:
    """A finished run, or an adapter folder, that is to be fused; ``task``: only that one of its tasks counts."""

    name: str
    adapter: Path
    spec: RunSpec | None
    task: str | None = None

    @property
    def routing(self) -> Path | None:
        """The snapshot of its gates at the end of training."""
        path = RunFolder(self.adapter.parent).routing / ROUTING
        return path if path.is_file() else None


def methods() -> list[dict[str, Any]]:
    """Every fusion method with its options, as plain data for forms, the command line and documentation."""
    return [
        {
            "name": method.name,
            "title": method.title,
            "summary": method.summary,
            "source": method.source,
            "badge": method.badge or None,
            "note": method.note,
            "learns": method.learns,
            "options": catalog.options_of(method.options),
        }
        for method in fusion_methods().values()
    ]


def find_source(name: str, runs: Path) -> SourceRun:
    """``run-3``, ``run-3:TASK``, or a folder with an adapter (and ``:TASK``).

    Raises:
        NotFoundError: there is no such run or folder, or it has no adapter yet.
    """
    head, _, task = name.partition(":")
    own = [(runs / head, task)] if is_name(head) else []
    for root, part in (*own, (real(name), ""), (real(head), task)):
        for folder in (root / "adapter", root):
            if (folder / CONFIG).is_file():
                folder = folder if runs in folder.parents else allowed(folder)
                spec = folder.parent / "spec.json"
                return SourceRun(name, folder, RunSpec.parse(read_json(spec)) if spec.is_file() else None, part or None)
    if is_name(head) and (runs / head / "spec.json").is_file():
        raise NotFoundError(f"{head} has no adapter to fuse.", "Wait until it is done, or resume it.")
    raise NotFoundError(f"There is no run {head!r}.", "Name finished runs such as run-3, or folders with an adapter.")


def check_source(source: SourceRun, model: ModelSpec) -> None:
    """Refuse what cannot be fused, or not on this base.

    Raises:
        ConfigurationError: with the reason.
    """
    config, own = read_config(source.adapter), source.spec.model if source.spec else None
    if own is not None and (own.base, own.revision) != (model.base, model.revision):
        raise ConfigurationError(
            f"{source.name} was trained on {_base(own)}, the others on {_base(model)}: their weights do not add up.",
            "Fuse runs of one base.",
        )
    method = str(config.get("method") or "")
    preset = presets().get(method)
    if config["peft_type"] == "POLY" or config.get("use_dora") or (preset is not None and preset.peft is not None):
        raise ConfigurationError(
            f"{source.name} is a {preset.title if preset else 'DoRA'} adapter, whose update is no sum of matrices.",
            "Fuse runs of other methods: lora, full, or a mixture.",
        )
    known = list(config.get("tasks") or [])
    if source.task is not None and source.task not in known:
        raise ConfigurationError(
            f"{source.name}: the run was not trained on {source.task}.", f"Its tasks are {', '.join(known) or 'none'}."
        )
    for cell in map(Cell.model_validate, config.get("cells", ())):
        _check_cell(source, cell, alone=source.task is not None or len(known) == 1)


def _check_cell(source: SourceRun, cell: Cell, *, alone: bool) -> None:
    """Gates must be replaceable by one weight for each expert."""
    if cell.frozen or cell.single:
        if cell.needs_task and not alone:
            raise _per_task(source)
        return
    if cell.gate.pairs_factors:
        raise ConfigurationError(
            f"{source.name}: its gate ({cell.gate.word}) pairs factors anew each time, so no weights stand for it.",
            "Fuse runs of other methods.",
        )
    if (cell.down.needs_task or cell.up.needs_task) and not alone:
        raise _per_task(source)
    decides = cell.gate.unit is not None and not (cell.gate.needs_task and alone)
    if decides and (cell.gate.per_task or cell.experts != 1) and source.routing is None:
        raise ConfigurationError(
            f"{source.name} is a mixture whose gates decide anew each time, and its routing was not recorded.",
            "Fuse it from where it was trained: its run folder holds routing/end.npz.",
        )


def _per_task(source: SourceRun) -> ConfigurationError:
    return ConfigurationError(
        f"{source.name} has matrices of its own for each task, so it is several updates at once.",
        f"Name one of its tasks: {source.name}:TASK.",
    )


def _base(model: ModelSpec) -> str:
    return model.base if model.revision is None else f"{model.base}@{model.revision}"


def reason(name: str, home: Home, like: ModelSpec | None) -> str:
    """Why a run cannot be fused (with runs on the base ``like``), or nothing."""
    try:
        source = find_source(name, home.runs)
        check_source(source, like or (source.spec.model if source.spec else ModelSpec()))
    except StudioError as error:
        return error.message
    return ""


def draft(names: Sequence[str], method: str, home: Home, changes: Mapping[str, Any]) -> RunSpec:
    """The settings of a fused run: the base and all tasks of its sources, with ``changes``."""
    fusion_method(method)
    if not names:
        raise ConfigurationError("No run is named to be fused.", "Choose finished runs, such as run-1 and run-2.")
    found = [find_source(name, home.runs) for name in names]
    first = next((source.spec for source in found if source.spec is not None), None)
    spec = RunSpec(
        sources=list(names),
        model=first.model if first else ModelSpec(),
        method=MethodSpec(name=method),
        tasks=_tasks(found),
        **({"evaluation": first.evaluation, "train": first.train} if first else {}),
    )
    return overrides.apply(spec, _used(changes))


def changed(spec: RunSpec, changes: Mapping[str, Any], home: Home) -> RunSpec:
    """The settings of a fused run with ``changes``; other sources bring their own tasks, unless those are named too."""
    found = overrides.apply(spec, _used(changes))
    if found.sources == spec.sources or any(name.partition(".")[0] == "tasks" for name in changes):
        return found
    return found.model_copy(update={"tasks": _tasks([find_source(name, home.runs) for name in found.sources])})


def _used(changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The changes, unless one is of a setting that fusing does not read."""
    for name in changes:
        if name.partition(".")[0] == "train" and name not in USED_OF_TRAINING:
            raise ConfigurationError(
                f"{name} is a setting of training, and a fused run is not trained.",
                "Change an option of its method, such as method.options.coefficient: python app.py methods --fusion",
            )
    return changes


def _tasks(sources: Sequence[SourceRun]) -> list[TaskSpec]:
    """Every task of the sources once, as the first that has it asks it."""
    found: dict[tuple[str, str | None], TaskSpec] = {}
    for source in sources:
        for task in source.spec.tasks if source.spec else ():
            if source.task in (None, task.task):
                found.setdefault((task.dataset, task.task), task)
    return list(found.values())


def plan(spec: RunSpec, home: Home, store: DatasetStore) -> Plan:
    """Check a fused run as a whole.

    Raises the StudioError that the worker would only find later.
    """
    method, options = fusion_method(spec.method.name), options_of(spec.method)
    twice = {name for name in spec.sources if spec.sources.count(name) > 1}
    if twice:
        raise ConfigurationError(f"{min(twice)} is named twice.", "Name every run once; its weight can be doubled.")
    sources = [find_source(name, home.runs) for name in spec.sources]
    for source in sources:
        check_source(source, spec.model)
    check_device(spec)
    tasks = load_tasks(store, spec.tasks, spec.seed)
    if method.check is not None:
        method.check(options, spec.sources, tasks)
    scored = [task for task in tasks if task.size(spec.evaluation.split)]
    fusion_memory.require(spec, method, options, [source.adapter for source in sources], home, bool(scored))
    notes = [] if len(scored) == len(tasks) and tasks else [_unscored(spec, [t.name for t in tasks if t not in scored])]
    resolved = [task.spec.model_copy(update={"dataset": task.dataset_id, "task": task.info.name}) for task in tasks]
    name = spec.name or f"{method.title} of {', '.join(spec.sources)}"[:120]
    return Plan(
        spec.model_copy(update={"tasks": resolved, "name": name}),
        list(dict.fromkeys(task.dataset_id for task in tasks)),
        [task.name for task in tasks],
        {},
        0,
        notes=notes,
    )


def _unscored(spec: RunSpec, names: Sequence[str]) -> str:
    what = ", ".join(names) or "The fused model"
    return f"{what} will not be scored: no {spec.evaluation.split} rows."
