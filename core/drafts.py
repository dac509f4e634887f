"""What forms ask while a person fills them in: cheap answers that queue, store and download nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from core import catalog, fitting, planning, preflight
from core.access import need
from core.adapters.cells import Cell, Site, plan
from core.adapters.methods import resolve
from core.data.look import look, typed_source
from core.data.store import DatasetStore
from core.data.tasks import load_tasks
from core.errors import ConfigurationError
from core.fitting import Fit
from core.home import Home, data_roots
from core.lengths import Lengths, lengths
from core.preflight import CellCount
from core.schema import MethodSpec, ModelSpec, RunSpec, TaskSpec, TrainSpec


class Place(BaseModel):
    """One projection in one layer of a base, and what a method does there; without words it is not adapted."""

    projection: str
    layer: int
    inputs: int
    outputs: int
    experts: int = 0
    selected: int = 0
    rank: int = 0
    alpha: float = 0
    parameters: int = 0
    frozen: bool = Field(False, description="Whether a cell says that it stays as the base has it.")
    shared: list[str] = Field(default_factory=list, description="Parts of which all experts have the same.")
    unit: str | None = Field(None, description="What one decision of the gate covers: token or sample.")
    scope: str = Field("projection", description="What shares one gate: projection, block or model.")
    groups: int = Field(1, description="Decisions of the gate beside each other, such as one for each rank.")
    parts: dict[str, int] = Field(default_factory=dict, description="Trainable parameters of down, gate and up.")
    words: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Part -> word with its options.")


class Size(BaseModel):
    """What a method is on a base, counted exactly; the memory is an estimate."""

    base: str
    total: int = Field(description="Parameters of the base.")
    layers: int
    places: list[Place]
    trainable: int
    outside: int = Field(
        0, description="Those of them outside the layers, as of the token embedding: no place shows them."
    )
    lora: int = Field(description="Parameters of a LoRA of rank 8 on the same projections, the embedding left out.")
    parts: dict[str, int] = Field(description="Trainable parameters of all down, gate and up words.")
    cells: list[CellCount]
    memory: Fit
    whole: bool = Field(True, description="Whether all-linear names these places and no others.")

    @property
    def projections(self) -> list[str]:
        return list(dict.fromkeys(place.projection for place in self.places))


class Problem(BaseModel):
    """What is wrong with a cell, and the (projection, layer) places that it would have."""

    cell: int | None
    message: str
    hint: str
    places: list[tuple[str, int]]


class Drafts:
    """Answers for forms over one home; ``Studio.drafts`` is one."""

    def __init__(self, home: Home, store: DatasetStore) -> None:
        self._home, self._store = home, store

    def settings(self) -> dict[str, list[dict[str, Any]]]:
        """The fields of each part of a run, of a cell and the roles of columns."""
        return catalog.settings() | {"cell": catalog.cell_options()}

    def words(self) -> dict[str, list[dict[str, Any]]]:
        """The words for down, gate and up with their options."""
        return catalog.words()

    def look(self, source: Any, *, header: bool | None = None) -> list[dict[str, Any]]:
        """The columns and first rows of each file as it is, for choosing what they mean."""
        need("researcher")
        return [glimpse.model_dump() for glimpse in look(source, header=header)]

    def typed_source(self, text: str) -> str:
        """A Hub id, or a path below ``core.home.data_roots``; everything else that was typed is refused."""
        need("researcher")
        return typed_source(text, data_roots())

    def size(
        self,
        method: MethodSpec,
        model: ModelSpec,
        train: TrainSpec,
        *,
        tasks: int = 1,
        device: str = "auto",
        rows: Lengths | None = None,
    ) -> Size:
        """How large a method is on a base. The first call for a base reads its shapes, which takes seconds.

        ``rows``: how long the rows are; without them they are taken to be as long as they may be.
        """
        base = _shapes(model, self._home.cache)
        cells = [] if method.name == "base" else resolve(method)
        found = plan(cells, base.linears, tasks) if cells else []
        return Size(
            base=base.model_type,
            total=base.parameters,
            layers=base.layers,
            places=placed(base, cells, found),
            trainable=sum(site.parameters() for site in found),
            outside=sum(site.parameters() for site in found if site.layer is None),
            lora=sum(8 * (site.in_features + site.out_features) for site in found if site.kind != "embedding"),
            parts=preflight.by_part(found),
            cells=preflight.by_cell(cells, base.linears, found),
            memory=fitting.examine(found, model, base, train, device, rows)[1],
            whole=all(linear.layer is not None for linear in base.linears if linear.usual),
        )

    def problems(self, method: MethodSpec, model: ModelSpec, tasks: int = 1) -> list[Problem]:
        """What is wrong with each cell of a method, and where it is; empty where all can be trained."""
        base = _shapes(model, self._home.cache)
        found = [] if method.name == "base" else planning.cell_problems(method, base, tasks)
        return [Problem(**vars(one), places=_places_of(method, one.cell, base)) for one in found]

    def lengths(self, specs: Sequence[TaskSpec], model: ModelSpec, max_length: int, seed: int = 0) -> Lengths | None:
        """How long the rows of these tasks are in tokens; None where nothing can tell."""
        return lengths(load_tasks(self._store, specs, seed), model, max_length)

    def examine(self, spec: RunSpec) -> tuple[dict[str, int], list[str]]:
        """Training rows by task, and remarks on settings that say nothing; StudioError where settings contradict."""
        planning.check_trains(spec)
        tasks = load_tasks(self._store, spec.tasks, spec.seed)
        planning.check_rows(spec, tasks)
        _needs_adapter(spec)
        planning.contradictions(spec, tasks)
        return {task.name: task.size("train") for task in tasks}, planning.idle_settings(spec)


@lru_cache(maxsize=32)
def _shapes(model: ModelSpec, cache: Path) -> catalog.BaseShapes:
    """Kept in memory: a Hub model's config would be asked for over the network at every change of a form."""
    return catalog.shapes(model, cache)


def _places_of(method: MethodSpec, number: int | None, base: catalog.BaseShapes) -> list[tuple[str, int]]:
    """Where a cell stands, as far as its modules and layers can be read."""
    if number is None:
        return []
    try:
        cells = [Cell.model_validate(preflight.bare(cell)) for cell in method.cells] or resolve(method)
    except (ConfigurationError, ValueError):
        return []
    owner = preflight.owners(cells, base.linears)
    mine = [line for line in base.linears if owner.get(line.name) == number - 1 and line.layer is not None]
    return list(dict.fromkeys((line.projection, line.layer) for line in mine))


def placed(base: catalog.BaseShapes, cells: Sequence[Cell], found: Sequence[Site]) -> list[Place]:
    """Every projection of every layer once; of several linears of one name (experts of the base) the first."""
    adapted = {site.name: site for site in found}
    owner = preflight.owners(cells, base.linears)
    places: dict[tuple[str, int], Place] = {}
    for linear in base.linears:
        site, cell = adapted.get(linear.name), owner.get(linear.name)
        if linear.head or linear.layer is None or (cell is None and not linear.usual):
            continue
        key = (linear.projection, linear.layer)
        if key in places and (cell is None or places[key].words or places[key].frozen):
            continue
        places[key] = Place(
            projection=linear.projection, layer=linear.layer, inputs=linear.in_features, outputs=linear.out_features
        )
        if cell is not None:
            more = {"frozen": True} if site is None else _adapted(site, cells[cell])
            places[key] = places[key].model_copy(update=more)
    return list(places.values())


def _adapted(site: Site, cell: Cell) -> dict[str, Any]:
    words = {"down": site.down, "gate": site.gate, "up": site.up}
    return {
        "experts": site.experts,
        "selected": site.selected,
        "rank": cell.rank,
        "alpha": cell.alpha,
        "parameters": site.parameters(),
        "shared": [part for part, word in words.items() if getattr(word, "shared", False)],
        "unit": site.gate.unit,
        "scope": site.gate.scope,
        "groups": site.gate.groups(site),
        "parts": preflight.by_part([site]),
        "words": {part: word.model_dump(mode="json") for part, word in words.items()},
    }


def _needs_adapter(spec: RunSpec) -> None:
    if spec.method.name == "base":
        raise ConfigurationError("The method base adapts nothing, so there is nothing to train.", "Choose a method.")
