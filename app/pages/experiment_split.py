"""What the Experiment page answers when a split is edited: painted cells, settings of one cell, options of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from app.pages import experiment_form as form
from app.pages import experiment_grid as grids
from app.pages import experiment_views as views
from app.pages.experiment_parts import PARTS, Data, Parts, Values
from app.ui import components as ui
from core.errors import StudioError


class SplitDesk(Parts):
    """The answers about splits; ``answer`` and ``change`` are those of the whole page."""

    answer: Callable[..., list[Any]]
    change: Callable[..., list[Any]]
    form_method: Callable[[Values], str]

    def settled(self, values: Values) -> list[Any]:
        """After the form of a split changed: where it is of one cell, the grid holds what is that cell's own."""

        def parts() -> dict[str, Any]:
            controls, grid = self.scoped(values, self.bare(values))
            if grid is values.grid:
                return grids.drawn_anew(values.grid)
            kept = {name: value for name, value in grid.items() if name != "given"}
            return {"grid": {**kept, "controls": controls}}

        return self.tried(values, parts)

    def bare(self, values: Values) -> Any:
        """The size of the base alone."""
        return self.sized({"model": form.model_data(self.settings, values.base), "method": {"name": "base"}})

    def painted(self, *given: Any) -> list[Any]:
        """A painted grid is a split of one's own, with the controls that the preset had."""
        values = Values(*given)
        anew = grids.drawn_anew(values.grid)
        if self.form_method(values) == "split":
            return self.tried(values, lambda: {**anew, **self.form_for(values, anew.get("grid", values.grid))})

        def act(values: Values, data: Data, size: Any, before: str) -> dict[str, Any]:
            return {"method": "split", **self.as_split(size, values.grid, before), **anew}

        return self.change(values, act)

    def tried(self, values: Values, parts: Callable[[], dict[str, Any]]) -> list[Any]:
        """Answer with ``parts``, or with what keeps them from being made."""
        try:
            found = parts()
        except StudioError as error:
            return refused(error)
        return self.answer(values, **found)

    def form_for(self, values: Values, grid: Any) -> dict[str, Any]:
        """The form of the whole split where painting brought words into use, or left the form of one cell."""
        controls, settled = self.scoped(values._replace(grid=grid), self.bare(values))
        options = self.split_form(controls, settled)
        own = isinstance(values.options, Mapping)
        same = own and values.options.get("groups") == options["groups"] and not values.options.get("cell")
        left = {"grid": settled} if own and values.options.get("cell") else {}
        return left if same else {"options": options, **left}

    def picked(self, *given: Any) -> list[Any]:
        """The form turns to the cell that was picked, or back to the whole split; a preset becomes a split."""
        values = Values(*given)
        if self.form_method(values) == "split":
            return self.tried(values, lambda: self.turned(values, *self.scoped(values, self.bare(values))))

        def act(values: Values, data: Data, size: Any, before: str) -> dict[str, Any]:
            card = views.split_card(self.methods["split"], self.methods.get(before), size)
            found = self.turned(values, grids.controls_of(size, self.words), values.grid)
            return {"method": "split", "card": card, **found}

        return self.change(values, act)

    def turned(self, values: Values, controls: dict[str, Any], grid: Any) -> dict[str, Any]:
        """Grid and form for the cell that the grid says is picked."""
        grid = {name: value for name, value in grid.items() if name != "given"}
        cell = (grid.get("cells") or {}).get(key := str(grid.get("picked") or ""))
        if not isinstance(cell, Mapping) or cell.get("frozen"):
            return {"grid": {**grid, "picked": None}, "options": self.split_form(controls, grid)}
        options = self.cell_form(key, controls, grid, self.bare(values))
        return {"grid": {**grid, "controls": controls}, "options": options}

    def as_split(self, size: Any, grid: Any, before: str) -> dict[str, Any]:
        card = views.split_card(self.methods["split"], self.methods.get(before), size)
        return {"card": card, "options": self.split_form(grids.controls_of(size, self.words), grid)}


def refused(error: StudioError) -> list[Any]:
    """Nothing changes but what is said of the problem."""
    return [*[gr.skip()] * len(PARTS), gr.skip(), ui.problem(error), gr.skip(), gr.skip(), gr.skip()]
