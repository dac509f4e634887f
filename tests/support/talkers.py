"""Finished runs that can really answer: small adapters on the tiny base, stored as rows and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.studio import Studio
from tests.support.adapted import TASKS, adapter_folder, method


def spec(base: Path, gate: str = "token", **more: Any) -> dict[str, Any]:
    cells = [{"experts": 2, "rank": 4, "down": "shared", "gate": gate}]
    tasks = [{"dataset": "d", "task": task} for task in TASKS]
    return {"model": {"base": str(base)}, "tasks": tasks, "method": {"name": "split", "cells": cells}} | more


def talker(studio: Studio, spec: dict[str, Any], *, on: Path | None = None, seed: int = 0, name: str = "") -> str:
    """A finished run; with ``on``, a base folder, it has an adapter whose tensors have moved."""
    from storage.queries import runs

    with studio.records.write() as session:
        run, _ = runs.add(session, spec=spec, name=name or f"talker {seed}")
        runs.row(session, run=run.id).state = "done"
        runs.set_parameters(session, run_id=run.number, trainable=12_345, total=None)
    if on is not None:
        gate = spec["method"]["cells"][0]["gate"]
        adapter_folder(on, studio.home.run(run.id).create().adapter, method(gate), seed=seed)
    return run.id
