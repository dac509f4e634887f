"""Methods of two stages: what is trained alone for each task before the run itself. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core import access
from core.adapters.folders import CONFIG, read_config
from core.adapters.methods import preset_named
from core.errors import ConfigurationError
from core.home import Home, write_json
from core.paths import allowed, is_name, real
from core.schema import RunSpec

if TYPE_CHECKING:
    from core.planning import Plan
    from core.records import Records


def kind_of(spec: RunSpec) -> str:
    """The job that makes a run's adapter."""
    return "fuse" if spec.sources else "train"


def alone(spec: RunSpec, tasks: Sequence[str]) -> list[RunSpec]:
    """The runs that a run needs first: one for each of its tasks, or none."""
    if spec.method.name == "base" or spec.sources:
        return []
    preset = preset_named(spec.method.name)
    method = preset.alone(preset.options.parse(spec.method.options)) if preset.alone else None
    if method is None:
        return []
    evaluation = spec.evaluation.model_copy(update={"base": False})  # the run itself scores the base
    return [
        spec.model_copy(
            update={
                "name": f"{spec.name}: {name} alone"[:120],
                "method": method,
                "tasks": [task],
                "evaluation": evaluation,
            }
        )
        for name, task in zip(tasks, spec.tasks, strict=True)
    ]


def check(spec: RunSpec, tasks: Sequence[str], runs: Path) -> None:
    """Refuse experts that are not there, or not one for each task.

    Raises:
        ConfigurationError: says which expert, and what to name instead.
    """
    named: list[str] = spec.method.options.get("experts_from") or []
    if not named:
        return
    if len(named) != len(tasks):
        raise ConfigurationError(
            f"method.options.experts_from names {len(named)} experts for {len(tasks)} tasks ({', '.join(tasks)}).",
            "Name one for each task, in this order.",
        )
    for name in named:
        folder, task = expert_folder(name, runs)
        config = read_config(folder)
        if task is not None and task not in config.get("tasks", []):
            raise ConfigurationError(
                f"{name}: there is no expert for {task}.", f"Its tasks are {', '.join(config.get('tasks', []))}."
            )


def expert_folder(name: str, runs: Path) -> tuple[Path, str | None]:
    """The adapter folder that ``run-3``, ``run-3:TASK`` or a path (with ``:TASK``) names, and the task."""
    head, _, task = name.partition(":")
    if is_name(head) and (runs / head / "adapter" / CONFIG).is_file():
        return runs / head / "adapter", task or None
    for path, part in ((real(name), None), (real(head), task or None)):
        for folder in (path, path / "adapter"):
            if (folder / CONFIG).is_file():
                return allowed(folder), part
    raise ConfigurationError(
        f"{head} is neither a run with a trained adapter nor an adapter folder.",
        "Name a finished run such as run-3, or the folder that holds adapter_config.json.",
    )


def submit(
    plan: Plan,
    first: Sequence[Plan],
    home: Home,
    records: Records,
    *,
    request_id: str | None,
    priority: int,
    parent: str | None,
) -> str:
    """Queue a run and, where it needs some, the runs before it; returns its id. Their jobs may run side by side."""
    from storage.queries import jobs, runs

    owner = access.acting().name
    with records.write() as session:

        def add(one: Plan, needs: Sequence[int], arguments: dict, **more: str | None) -> tuple[str, int]:
            spec = one.spec.model_dump(mode="json")
            run, new = runs.add(
                session, spec=spec, name=one.spec.name, datasets=one.datasets, owner=owner, above=home.last_run, **more
            )
            if not new:
                return run.id, 0
            write_json(home.run(run.id).create().spec, spec)  # inside: a job is never visible before its spec file
            runs.set_parameters(session, run_id=run.number, trainable=one.trainable, total=None)
            runs.set_memory(session, run_id=run.number, estimate=one.memory.total if one.memory else None)
            job = jobs.add(
                session,
                run=run.id,
                kind=kind_of(one.spec),
                device=one.spec.device,
                priority=priority,
                needs=needs,
                arguments=arguments,
            )
            return run.id, job.id

        known = runs.requested(session, request_id=request_id)
        if known is not None:
            return known
        before = [add(one, (), {}) for one in first]
        arguments = {"experts": [run for run, _ in before]} if before else {}
        return add(plan, [job for _, job in before], arguments, parent=parent, request_id=request_id)[0]
