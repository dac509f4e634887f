"""The parts of the Experiment page and the settings of a run, each made from the other."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gradio as gr

from app import forms
from app.pages import experiment_form as form
from app.pages import experiment_grid as grids
from app.pages import experiment_views as views
from core.errors import ConfigurationError, StudioError
from core.schema import MethodSpec, ModelSpec, RunSpec, TaskSpec, TrainSpec
from core.studio import Studio

DEFAULT_METHOD = MethodSpec().name


Data = dict[str, Any]
Wish = tuple[Data, Sequence[int]]  # the settings of a run, and its seeds
NOTHING: Wish = ({}, [0])


class NothingPainted(ConfigurationError):
    """A split of which every projection is left as it is."""


class _Sent(NamedTuple):
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


class Values(_Sent):
    """What the page sends, in this order; what no page sends counts as empty."""

    __slots__ = ()

    def __new__(cls, *given: Any) -> Values:
        sent = _Sent(*given)
        forms = {
            name: value if isinstance(value := getattr(sent, name), Mapping) else {}
            for name in ("base", "task_form", "options", "grid", "training", "address")
        }
        tasks = [str(task) for task in sent.tasks] if isinstance(sent.tasks, list) else []
        blocks = sent.blocks if isinstance(sent.blocks, int | float) and math.isfinite(sent.blocks) else None
        return super().__new__(cls, **sent._replace(tasks=tasks, blocks=blocks, **forms)._asdict())


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
        """Grid, number of blocks and option form of a method; an empty grid where the base cannot be read.

        Cells that were given stay as they were written until the grid is edited.
        """
        whole = {**data, "method": dict(method) or {"name": name}}
        try:
            size = self.sized(whole)
        except StudioError:
            return self.undesigned(name, whole, blocks, before)
        count = int(blocks) if isinstance(blocks, int | float) and blocks >= 1 else grids.blocks_needed(size)
        count = max(1, min(count, size.layers, grids.MOST_BLOCKS))
        grid = grids.grid_of(size, self.words, count)
        if name == "split":
            grid["given"] = list(method.get("cells") or [])
        return grid, count, self.option_form(name, method, size, before, grid)

    def undesigned(self, name: str, data: Data, blocks: Any, before: Data) -> tuple[Any, int, dict[str, Any]]:
        """As ``designed``, for a method that cannot be counted: what is right is painted, what is wrong as written."""
        method = data["method"]
        try:
            size = self.sized({**data, "method": {"name": "base"}})
        except StudioError:
            return None, 1, self.option_form(name, method, None, before, None)
        problems = self.problems(data)
        with contextlib.suppress(StudioError):
            size = self.sized(without(data, problems))
        count = max(1, min(int(blocks) if isinstance(blocks, int | float) else 1, size.layers, grids.MOST_BLOCKS))
        grid = grids.grid_of(size, self.words, count)
        if name == "split":
            cells = list(method.get("cells") or [])
            grid["given"] = cells
            for one in problems:
                painted = grids.as_written(cells[one.cell - 1], self.words) if one.cell else None
                if painted:
                    keys = grids.keys_at(one.places, size.layers, count)
                    grid["cells"] |= {key: dict(painted) for key in keys}
        return grid, count, self.option_form(name, method, size, before, grid)

    def option_form(self, name: str, method: Mapping[str, Any], size: Any, before: Data, grid: Any) -> dict[str, Any]:
        known = self.methods[name]
        if name == "split":
            return self.split_form(grids.controls_of(size, self.words) if size else {}, grid)
        projections = size.projections if size else []
        groups = form.method_groups(known, self.settings, self.words, projections, grids.in_use(grid, self.words))
        earlier = before.get("method") or {}
        same = earlier.get("name", DEFAULT_METHOD) == name
        base = form.option_values(known, (earlier.get("options") or {}) if same else {})
        return forms.form(groups, form.option_values(known, method.get("options") or {}), base, method=name)

    def split_form(self, controls: Mapping[str, Any], grid: Any) -> dict[str, Any]:
        """The controls of the whole split, for the words that the grid has."""
        groups = form.split_groups(self.settings, self.words, grids.in_use(grid, self.words))
        values = form.split_values(self.settings, self.words, controls)
        return forms.form(groups, values, method="split")

    def cell_form(self, key: str, controls: Mapping[str, Any], grid: Mapping[str, Any], size: Any) -> dict[str, Any]:
        """The settings of one cell, marked where they are its own."""
        cell = grid["cells"][key]
        used = {part: [cell[part]] for part in grids.PARTS}
        groups = form.split_groups(self.settings, self.words, used, f"Only {grids.title_of(grid, key)}")
        general = grids.settings_at(grid, key, controls, size)
        values = form.split_values(self.settings, self.words, {**general, **cell.get("own", {})})
        base = form.split_values(self.settings, self.words, general)
        return forms.form(groups, values, base, method="split", cell=key)

    # Settings from all values

    def scoped(self, values: Values, size: Any) -> tuple[dict[str, Any], Any]:
        """The controls of the whole split and the grid, after what the form says: of the split, or of one cell."""
        chosen, grid = form.controls(self.settings, self.words, values.options), values.grid
        key = values.options.get("cell") if isinstance(values.options, Mapping) else None
        if not isinstance(grid, Mapping) or not key:
            return chosen, grid
        controls = grid.get("controls") if isinstance(grid.get("controls"), Mapping) else {}
        if key not in (grid.get("cells") or {}):
            return dict(controls), grid
        general = grids.settings_at(grid, key, controls, size)
        return dict(controls), grids.with_own(grid, key, chosen, general, self.words)

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
        controls, grid = self.scoped(values, size)
        painted = grids.checked(grid, size, self.words)
        if painted is None:
            raise ConfigurationError(
                "The grid does not belong to this base model.", "Choose a method to paint it anew."
            )
        cells = grids.cells_of(painted, controls, size, self.words, len(grid["cols"]))
        if not cells:
            raise NothingPainted("No projection is adapted.", "Paint at least one, or choose a preset.")
        return {"name": name, "cells": cells}

    def sized(self, data: Mapping[str, Any]) -> Any:
        """``Drafts.size`` of settings as plain data; one task stands for the tasks while none is chosen."""
        model, train = ModelSpec.parse(dict(data.get("model") or {})), TrainSpec.parse(dict(data.get("train") or {}))
        return self.studio.drafts.size(
            MethodSpec.parse(dict(data.get("method") or {})),
            model,
            train,
            tasks=self.task_count(data),
            device=str(data.get("device") or "auto"),
            rows=self.lengths(data, model, train),
        )

    def task_count(self, data: Mapping[str, Any]) -> int:
        return sum(len(self.task_names(task)) for task in data.get("tasks") or ()) or 1

    def lengths(self, data: Mapping[str, Any], model: ModelSpec, train: TrainSpec) -> Any:
        """How long the rows of the chosen tasks are; None where none is chosen or nothing can tell."""
        tasks = [TaskSpec.parse(dict(task)) for task in data.get("tasks") or ()]
        return self.studio.drafts.lengths(tasks, model, train.max_length) if tasks else None

    def problems(self, data: Mapping[str, Any]) -> list[Any]:
        """What is wrong with single cells of the method; nothing while the base cannot be read."""
        try:
            method = MethodSpec.parse(dict(data.get("method") or {}))
            return self.studio.drafts.problems(
                method, ModelSpec.parse(dict(data.get("model") or {})), self.task_count(data)
            )
        except StudioError:
            return []

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


def without(data: Data, problems: Sequence[Any]) -> Data:
    """The settings with every cell that is wrong held frozen, or left out where it stands nowhere."""
    method = dict(data.get("method") or {})
    wrong = {one.cell - 1: bool(one.places) for one in problems if one.cell}
    cells = []
    for index, cell in enumerate(method.get("cells") or []):
        if index not in wrong:
            cells.append(cell)
        elif wrong[index]:
            cells.append({name: cell[name] for name in ("modules", "layers") if name in cell} | {"frozen": True})
    return {**data, "method": {**method, "cells": cells}}
