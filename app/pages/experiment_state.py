"""What the Experiment page answers: values of its parts in, what is to be shown out. Knows Gradio's updates alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr
import yaml

from app.pages import data_names
from app.pages import experiment_form as form
from app.pages import experiment_grid as grids
from app.pages import experiment_views as views
from app.pages.experiment_parts import NOTHING, PARTS, Data, NothingPainted, Values, Wish, without
from app.pages.experiment_split import SplitDesk, refused
from app.ui import components as ui
from core.errors import ConfigurationError, StudioError
from core.home import ASSETS
from core.schema import RunSpec

SEEDS = re.compile(r"^# one run for each seed: ([\d, ]+)$", re.M)
DEMO = "demo"
QUERY = ("clone", "dataset", "method", "options")


def new_token() -> str:
    """What makes a second click the same wish as the first."""
    return secrets.token_hex(8)


def drafted(kept: Mapping[str, Any]) -> tuple[Data, list[int], dict[str, str]]:
    """Settings, seeds and address of the draft that a browser kept."""
    address = kept.get("address") if isinstance(kept.get("address"), Mapping) else {}
    data = dict(kept["data"])
    if "tasks" in data:
        rows = data["tasks"] if isinstance(data["tasks"], list) else []
        data["tasks"] = [row for row in rows if isinstance(row, Mapping)]
    return data, form.seeds_of(kept.get("seeds") or [0]), {n: str(address.get(n) or "") for n in QUERY}


class Desk(SplitDesk):
    """The answers for one studio."""

    # Opening

    def first(self) -> dict[str, Any]:
        """What a fresh page shows before it asks, so that little moves when the answer comes."""
        parts, _ = self.parts([], NOTHING)
        return {**parts, "figure": views.summary(self.sized({}))}

    def open(self, draft: Any, query: Mapping[str, str]) -> list[Any]:
        """Everything that is shown first: the draft of this address, what the address asks for, or a fresh run."""
        address = {name: str(query.get(name) or "")[:2000] for name in QUERY}
        kept = draft if isinstance(draft, Mapping) and isinstance(draft.get("data"), Mapping) else {}
        if any(address.values()) and kept.get("address") != address:
            kept = {}
        try:
            if not kept:
                return self.fill(*self.asked(address), address)
            return self.fill(*drafted(kept), kept.get("blocks"))
        except StudioError as error:
            problem = ui.problem(error)
        if kept:  # most often a data set that was deleted since: everything else stays
            with contextlib.suppress(StudioError):
                data, seeds, address = drafted(kept)
                return self.fill({**data, "tasks": []}, seeds, address, kept.get("blocks"), said=problem)
        return self.fill({}, [0], dict.fromkeys(QUERY, ""), said=problem)

    def asked(self, address: Mapping[str, str]) -> Wish:
        """The settings that an address names."""
        if address["clone"]:
            spec = self.studio.cloned_spec(address["clone"])
            refuse_fusion(spec, address["clone"], f"Open /runs?run={address['clone']} and choose Fuse again.")
            return form.plain_data(spec), [spec.seed]
        data: Data = {}
        sets = self.studio.datasets()
        if address["dataset"]:
            found = self.studio.dataset(address["dataset"])
            data["tasks"] = [{"dataset": data_names.shown(found, data_names.meant(sets))}]
        elif len(sets) == 1:
            data["tasks"] = [{"dataset": sets[0]["name"]}]
        if address["method"]:
            data["method"] = {"name": self.studio.method(address["method"])["name"], **options_in(address["options"])}
        return data, [0]

    def compared(self, address: Any) -> Wish | None:
        """The run that was cloned: what changes are marked against."""
        run = address.get("clone") if isinstance(address, Mapping) else ""
        if not run:
            return None
        try:
            return self.asked({**dict.fromkeys(QUERY, ""), "clone": run})
        except StudioError:
            return None

    def fill(
        self, data: Data, seeds: Sequence[int], address: Mapping[str, str], blocks: Any = None, said: str = ""
    ) -> list[Any]:
        """The whole page for the settings of a run."""
        sets = self.studio.datasets()
        parts, count = self.parts(sets, (data, seeds), self.compared(address) or NOTHING, blocks)
        view = self.view(data, seeds, address, count)
        if said:
            view[1] = said
        return [*(parts[part] for part in PARTS), *view, dict(address)]

    # What is shown of them

    def view(self, data: Data, seeds: Sequence[int], address: Any, blocks: Any) -> list[Any]:
        """[figure, what Start would do or what is wrong, YAML, marks of cells that are wrong, draft]"""
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)
        said = figure = ""
        problems = self.problems(data)
        try:
            size = self.sized(data)
            figure = views.summary(size, self.speed(data))
            said = views.too_large(size)
        except StudioError as error:
            figure, said = self.rest(data, problems) or {"html": ui.problem(error), "name": "split"}, ui.problem(error)
        if problems:
            said = views.refused_cells(problems)
        try:
            spec = RunSpec.parse({**data, "seed": seeds[0]})
            text = spec.to_yaml()
            said = said or views.ready(*self.examined(spec, seeds, address))
        except StudioError as error:
            said = ui.problem(error) if data.get("tasks") else views.no_tasks(self.studio.datasets())
        if len(seeds) > 1:
            text = f"# one run for each seed: {', '.join(map(str, seeds))}\n{text}"
        draft = {"data": data, "seeds": list(seeds), "blocks": blocks, "address": dict(address or {})}
        return [figure, said, text, self.marks(problems, data, blocks), draft]

    def rest(self, data: Data, problems: Sequence[Any]) -> dict[str, Any] | None:
        """The figure of what is right about a split; None where nothing is left."""
        with contextlib.suppress(StudioError):
            found = views.summary(self.sized(without(data, problems)))
            return {**found, "html": views.PARTLY + found["html"]}
        return None

    def marks(self, problems: Sequence[Any], data: Data, blocks: Any) -> dict[str, Any]:
        """The value of ``components.cell_marks``: the sentence of every cell of the grid that is wrong."""
        if not problems:
            return {}
        layers = self.depth(data)
        count = max(1, min(int(blocks or 1), layers))
        found: dict[str, str] = {}
        for one in problems:
            found |= dict.fromkeys(grids.keys_at(one.places, layers, count), f"{one.message} {one.hint}")
        return {"cells": found, "said": [{"message": one.message, "hint": one.hint} for one in problems]}

    def speed(self, data: Data) -> Any:
        """What earlier runs say of the speed; None while the settings say nothing that can run."""
        with contextlib.suppress(StudioError):
            return self.studio.expected_speed(RunSpec.parse(data))
        return None

    def examined(self, spec: RunSpec, seeds: Sequence[int], address: Any) -> tuple[Any, ...]:
        rows, remarks = self.studio.drafts.examine(spec)
        before = self.compared(address)
        changed = ""
        if before is not None:
            earlier = self.spelled_out(RunSpec.parse(before[0]))
            changed = views.cloned(address["clone"], form.differences(earlier, self.spelled_out(spec)))
        return rows, seeds, remarks, changed

    def show(self, *given: Any) -> list[Any]:
        """What follows from the forms as they are."""
        values = Values(*given)
        try:
            data, seeds = self.collect(values)
        except NothingPainted as error:
            bare = {"model": form.model_data(self.settings, values.base), "method": {"name": "base"}}
            return [views.summary(self.sized(bare)), ui.problem(error), gr.skip(), {}, gr.skip()]
        except StudioError as error:
            return [gr.skip(), ui.problem(error), gr.skip(), gr.skip(), gr.skip()]
        return self.view(data, seeds, values.address, blocks_of(values))

    def answer(self, values: Values, **parts: Any) -> list[Any]:
        """The parts that a handler changed, and what follows from all of them."""
        plain = {name: p["value"] if isinstance(p, dict) and "__type__" in p else p for name, p in parts.items()}
        return [*(parts.get(name, gr.skip()) for name in PARTS), *self.show(*values._replace(**plain))]

    # Changes. What a person edits is sent back only where the answer changes it: they may have gone on meanwhile.

    def tasks_changed(self, *given: Any) -> list[Any]:
        values = Values(*given)
        chosen = form.expanded(values.tasks or [], self.studio.datasets())
        parts = {} if chosen == values.tasks else {"tasks": gr.update(value=chosen)}
        task_form = {**(values.task_form or {}), "groups": form.task_groups(self.settings, chosen)}
        return self.answer(values, task_form=task_form, **parts)

    def method_changed(self, *given: Any) -> list[Any]:
        """Another method: options that both have stay as they were changed; the grid shows the new one."""

        def act(values: Values, data: Data, size: Any, before: str) -> dict[str, Any]:
            name = values.method
            if name not in self.methods:
                raise ConfigurationError("No method is chosen.", "Choose one of the list.")
            if name == "split":
                return self.as_split(size, values.grid, before)
            old = form.option_data(self.methods[before], values.options) if before in self.methods else {}
            method = {"name": name, "options": form.carried(self.methods[before], self.methods[name], old)}
            grid, count, options = self.designed(name, method, data, None, (self.compared(values.address) or ({},))[0])
            card = views.method_card(self.methods[name])
            return {"card": card, "options": options, "grid": grid, "blocks": gr.update(value=count)}

        return self.change(Values(*given), act)

    def options_changed(self, *given: Any) -> list[Any]:
        """Options decide what the grid shows; of a split they are the grid's own."""
        values = Values(*given)
        if values.method == "split":
            return self.settled(values)
        try:
            data, _ = self.collect(values)
            size = self.sized(data)
        except StudioError as error:
            return refused(error)
        count = grids.blocks_needed(size)
        return self.answer(values, grid=grids.grid_of(size, self.words, count), blocks=gr.update(value=count))

    def change(self, values: Values, act: Callable[[Values, Data, Any, str], dict[str, Any]]) -> list[Any]:
        """Apply ``act``, which gets the settings and the size of the method that the option form belongs to."""
        try:
            before = self.form_method(values)
            data, _ = self.collect(values._replace(method=before))
            parts = act(values, data, self.sized(data), before)
        except NothingPainted:
            return self.answer(values)
        except StudioError as error:
            return refused(error)
        return self.answer(values, **parts)

    def form_method(self, values: Values) -> str:
        """The method whose options the form shows: the one chosen before the drop-down changed."""
        known = values.options.get("method") if isinstance(values.options, Mapping) else None
        return known if known in self.methods else values.method

    def blocks_changed(self, *given: Any) -> list[Any]:
        values = Values(*given)
        try:
            data, _ = self.collect(values)
            size = self.sized(data)
        except StudioError as error:
            return refused(error)
        count = max(1, min(int(values.blocks or 1), size.layers, grids.MOST_BLOCKS))
        grid = grids.grid_of(size, self.words, count)
        form_too = {"options": self.option_form("split", {}, size, {}, grid)} if values.method == "split" else {}
        return self.answer(values, grid=grid, blocks=gr.update(value=count), **form_too)

    def base_changed(self, *given: Any) -> list[Any]:
        """Another base: presets are painted on its projections; a split keeps what it can."""
        values = Values(*given)
        try:
            model = form.model_data(self.settings, values.base)
            bare = self.sized({"model": model, "method": {"name": "base"}})
            if values.method == "split":
                count = max(1, min(len((values.grid or {}).get("cols") or [1]), bare.layers))
                grid = grids.moved(values.grid, bare, self.words, count)
            else:
                data, _ = self.collect(values)
                size = self.sized(data)
                count = grids.blocks_needed(size)
                grid = grids.grid_of(size, self.words, count)
        except StudioError as error:
            problem = {"html": ui.problem(error), "name": "split"}
            return [*[gr.skip()] * len(PARTS), problem, ui.problem(error), gr.skip(), {}, gr.skip()]
        maximum = max(2, min(bare.layers, grids.MOST_BLOCKS))
        return self.answer(values, grid=grid, blocks=gr.update(value=count, maximum=maximum))

    # YAML, demo, start

    def apply(self, text: str, address: Any) -> list[Any]:
        """The whole page from YAML; what is wrong is named and nothing else changes."""
        try:
            spec = self.studio.read_spec(str(text or ""))[0]
            refuse_fusion(spec, "This YAML", "Choose runs and method on the page Fusion.")
            found = SEEDS.search(str(text or ""))
            seeds = form.seeds_of([int(part) for part in found[1].split(",") if part.strip()] if found else [spec.seed])
            return self.fill(form.plain_data(spec), seeds, {n: str((address or {}).get(n, "")) for n in QUERY})
        except StudioError as error:
            return [*refused(error), gr.skip()]

    def with_demo(self, *given: Any) -> list[Any]:
        """Store the tasks of the demo, if they are not, and choose them."""
        values = Values(*given)
        try:
            self.studio.upload(ASSETS / "demo", name=DEMO)  # the name means these tasks from now on
        except StudioError as error:
            return [*refused(error), gr.skip()]
        try:
            data, seeds = self.collect(values)
        except StudioError:
            data, seeds = {}, [0]
        return self.fill({**data, "tasks": [{"dataset": DEMO}]}, seeds, values.address or {}, values.blocks)

    def start(self, *given: Any) -> str:
        """Queue one run for each seed; the same wish from the same page is queued once."""
        *values, token = given
        try:
            data, seeds = self.collect(Values(*values))
            specs = [RunSpec.parse({**data, "seed": seed}) for seed in seeds]
            self.studio.drafts.examine(specs[0])
            self.sized(data)
            parent = (Values(*values).address or {}).get("clone") or None
            runs = [self.studio.submit(s, request_id=request(token, s), parent=parent) for s in specs]
        except StudioError as error:
            return ui.problem(error)
        return views.started(runs)


def refuse_fusion(spec: RunSpec, what: str, hint: str) -> None:
    """Runs that fuse others have no place in this form."""
    if spec.sources:
        raise ConfigurationError(f"{what} is a fusion of {', '.join(spec.sources)}: this form is for training.", hint)


def options_in(text: str) -> Data:
    """The options of a method as an address has them: one JSON object."""
    if not text:
        return {}
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise ConfigurationError("The address names options that cannot be read.", "Choose them in the form.")
    return {"options": options}


def blocks_of(values: Values) -> int:
    """The blocks of layers that the grid has."""
    shown = values.grid.get("cols") if isinstance(values.grid, Mapping) else None
    return len(shown) if shown else int(values.blocks or 1)


def request(token: Any, spec: RunSpec) -> str:
    """The same for the same settings from the same opening of the page."""
    text = json.dumps([str(token)[:40], spec.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:40]
