"""The parts of the Experiment page and the settings of a run, each made from the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gradio as gr

from app import forms
from app.pages import experiment_form as form
from app.pages import experiment_grid as grids
from app.pages import experiment_views as views
from core.errors import ConfigurationError, StudioError
from core.schema import MethodSpec, ModelSpec, RunSpec, TrainSpec
from core.studio import Studio

DEFAULT_METHOD = MethodSpec().name


Data = dict[str, Any]
Wish = tuple[Data, Sequence[int]]  # the settings of a run, and its seeds
NOTHING: Wish = ({}, [0])


class NothingPainted(ConfigurationError):
    """A split of which every projection is left as it is."""


class Values(NamedTuple):
    """What the page sends, in this order."""

    base: Any
    tasks: Any
    task_form: Any
    method: Any
    card: Any
    options: Any
    grid: Any
    blocks: Any
    training: Any
    address: Any


PARTS = Values._fields[:-1]


class Parts:
    """The translation for one studio; holds what never changes while it is open."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.methods = {one["name"]: one for one in studio.methods()}
        self.settings = studio.drafts.settings()
        self.words = studio.drafts.words()

    # Parts from settings

    def parts(
        self, sets: Sequence[Mapping[str, Any]], wish: Wish, earlier: Wish = NOTHING, blocks: Any = None
    ) -> tuple[dict[str, Any], int]:
        """The value of each part, and the blocks of the grid; changes are marked against an ``earlier`` wish."""
        (data, seeds), (before, before_seeds) = wish, earlier
        chosen, task_values = form.task_values(data.get("tasks") or [], sets)
        base_tasks = form.task_values(before.get("tasks") or [], sets)[1] if before.get("tasks") else {}
        method = data.get("method") or {}
        name = method.get("name", DEFAULT_METHOD)
        if name not in self.methods:
            name, method = DEFAULT_METHOD, {}
        grid, count, options = self.designed(name, method, data, blocks, before)
        found = {
            "base": forms.form(
                form.model_groups(self.settings), form.flat("model", data, self.settings),
                form.flat("model", before, self.settings),
            ),
            "tasks": gr.update(choices=form.task_choices(sets), value=chosen),
            "task_form": forms.form(form.task_groups(self.settings, chosen), task_values, base_tasks),
            "method": name,
            "card": views.method_card(self.methods[name]),
            "options": options,
            "grid": grid,
            "blocks": gr.update(value=count, maximum=max(2, min(self.depth(data), grids.MOST_BLOCKS))),
            "training": forms.form(
                form.train_groups(self.settings), form.train_values(data, seeds, self.settings),
                form.train_values(before, before_seeds, self.settings),
            ),
        }  # fmt: skip
        return found, count

    def designed(
        self, name: str, method: Mapping[str, Any], data: Data, blocks: Any, before: Data
    ) -> tuple[Any, int, dict[str, Any]]:
        """Grid, number of blocks and option form of a method; an empty grid where the base cannot be read."""
        try:
            size = self.sized({**data, "method": dict(method) or {"name": name}})
            count = int(blocks) if isinstance(blocks, int | float) and blocks >= 1 else grids.blocks_needed(size)
            count = max(1, min(count, size.layers, grids.MOST_BLOCKS))
            grid = grids.grid_of(size, self.words, count)
            if name == "split" and not self.faithful(grid, size, data, count):
                grid["given"] = list(method.get("cells") or [])
            return grid, count, self.option_form(name, method, size, before)
        except StudioError:
            return None, 1, self.option_form(name, method, None, before)

    def faithful(self, grid: Any, size: Any, data: Data, blocks: int) -> bool:
        """Whether the grid and its controls say all that the cells say."""
        painted = grids.checked(grid, size, self.words) or {}
        cells = grids.cells_of(painted, grids.controls_of(size), size, self.words, blocks)
        return bool(cells) and grids.same(size, self.sized({**data, "method": {"name": "split", "cells": cells}}))

    def option_form(self, name: str, method: Mapping[str, Any], size: Any, before: Data) -> dict[str, Any]:
        known = self.methods[name]
        groups = form.method_groups(known, self.settings, self.words, size.projections if size else [])
        if name == "split":
            found = grids.controls_of(size) if size else {}
            return forms.form(groups, {f"split.{key}": value for key, value in found.items()}, method=name)
        earlier = before.get("method") or {}
        same = earlier.get("name", DEFAULT_METHOD) == name
        base = form.option_values(known, (earlier.get("options") or {}) if same else {})
        return forms.form(groups, form.option_values(known, method.get("options") or {}), base, method=name)

    # Settings from all values

    def collect(self, values: Values) -> tuple[Data, list[int]]:
        """The settings that the forms say; StudioError names a field that cannot be read."""
        about, seeds = form.train_data(self.settings, values.training)
        model = form.model_data(self.settings, values.base)
        sets = self.studio.datasets()
        chosen = form.expanded(values.tasks or [], sets)
        tasks = form.task_data(self.settings, chosen, values.task_form, sets)
        data = {**about, "model": model, "tasks": tasks}
        return {**data, "method": self.method_data(values, data)}, seeds

    def method_data(self, values: Values, data: Data) -> Data:
        name = values.method
        if name not in self.methods:
            raise ConfigurationError(f"There is no method {str(name)[:60]!r}.", "Choose one of the list.")
        if name != "split":
            options = form.option_data(self.methods[name], values.options)
            return {"name": name, **({"options": options} if options else {})}
        given = values.grid.get("given") if isinstance(values.grid, Mapping) else None
        if isinstance(given, list) and given:
            return {"name": name, "cells": given}
        size = self.sized({**data, "method": {"name": "base"}})
        painted = grids.checked(values.grid, size, self.words)
        if painted is None:
            raise ConfigurationError(
                "The grid does not belong to this base model.", "Choose a method to paint it anew."
            )
        controls = form.controls(self.settings, self.words, values.options)
        cells = grids.cells_of(painted, controls, size, self.words, len(values.grid["cols"]))
        if not cells:
            raise NothingPainted("No projection is adapted.", "Paint at least one, or choose a preset.")
        return {"name": name, "cells": cells}

    def sized(self, data: Mapping[str, Any]) -> Any:
        """``Drafts.size`` of settings as plain data; one task stands for the tasks while none is chosen."""
        tasks = sum(len(self.task_names(task)) for task in data.get("tasks") or ()) or 1
        return self.studio.drafts.size(
            MethodSpec.parse(dict(data.get("method") or {})),
            ModelSpec.parse(dict(data.get("model") or {})),
            TrainSpec.parse(dict(data.get("train") or {})),
            tasks=tasks,
            device=str(data.get("device") or "auto"),
        )

    def task_names(self, task: Mapping[str, Any]) -> list[str]:
        if task.get("task"):
            return [task["task"]]
        return list(self.studio.dataset(task.get("dataset") or "")["tasks"])

    def depth(self, data: Data) -> int:
        try:
            return self.sized({**data, "method": {"name": "base"}}).layers
        except StudioError:
            return grids.MOST_BLOCKS

    def spelled_out(self, spec: RunSpec) -> Data:
        """All settings with every task by name and every option of the method, however briefly they were written."""
        data = spec.model_dump(mode="json")
        sets = self.studio.datasets()
        tasks = {}
        for row in data["tasks"]:
            said = {name: value for name, value in row.items() if name not in ("dataset", "task")}
            tasks |= dict.fromkeys((key.replace(form.TAB, ": ") for key in form.task_values([row], sets)[0]), said)
        known = {o["name"]: o["default"] for o in self.methods[spec.method.name]["options"] if o["type"] != "cells"}
        return {**data, "tasks": tasks, "method": {**data["method"], "options": {**known, **data["method"]["options"]}}}
