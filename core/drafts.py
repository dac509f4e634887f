"""What forms ask while a person fills them in: cheap answers that queue, store and download nothing."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from core import catalog, planning
from core.adapters.cells import Site
from core.data.look import look, typed_source
from core.data.store import DatasetStore
from core.data.tasks import load_tasks
from core.errors import ConfigurationError
from core.home import Home
from core.schema import MethodSpec, ModelSpec, RunSpec, TrainSpec

LORA = MethodSpec(name="lora", options={"rank": 8})
COMPARED = "LoRA of rank 8"


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
    words: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Part -> word with its options.")


class Size(BaseModel):
    """What a method is on a base, counted exactly; the memory is an estimate."""

    base: str
    total: int = Field(description="Parameters of the base.")
    layers: int
    places: list[Place]
    trainable: int
    lora: int = Field(description="Parameters of a LoRA of rank 8 on the same projections.")
    memory: dict[str, int] = Field(default_factory=dict, description="Bytes by part.")
    cuda: bool = False
    whole: bool = Field(True, description="Whether all-linear names these places and no others.")

    @property
    def projections(self) -> list[str]:
        return list(dict.fromkeys(place.projection for place in self.places))


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
        return [glimpse.model_dump() for glimpse in look(source, header=header)]

    def typed_source(self, text: str) -> str:
        """A Hub id, or a path below ``Home.data_roots``; everything else that was typed is refused."""
        return typed_source(text, self._home.data_roots)

    def size(
        self, method: MethodSpec, model: ModelSpec, train: TrainSpec, *, tasks: int = 1, device: str = "auto"
    ) -> Size:
        """How large a method is on a base. The first call for a base reads its shapes, which takes seconds."""
        base = _shapes(model, self._home.cache)
        found = [] if method.name == "base" else catalog.sites(method, base, tasks)
        cuda = device != "cpu" and shutil.which("nvidia-smi") is not None
        parts = catalog.memory(method, model, base, train, tasks, cuda)
        return Size(
            base=base.model_type,
            total=base.parameters,
            layers=base.layers,
            places=_places(base, found),
            trainable=sum(site.parameters() for site in found),
            lora=sum(8 * (site.in_features + site.out_features) for site in found),
            memory={name: getattr(parts, name) for name in ("base", "adapter", "optimiser", "activations")},
            cuda=cuda,
            whole=all(linear.layer is not None for linear in base.linears if not linear.head),
        )

    def examine(self, spec: RunSpec) -> tuple[dict[str, int], list[str]]:
        """Training rows by task, and remarks on settings that say nothing; StudioError where settings contradict."""
        tasks = load_tasks(self._store, spec.tasks, spec.seed)
        planning.check_rows(spec, tasks)
        _needs_adapter(spec)
        planning.contradictions(spec, tasks)
        return {task.name: task.size("train") for task in tasks}, planning.idle_settings(spec)


@lru_cache(maxsize=32)
def _shapes(model: ModelSpec, cache: Path) -> catalog.BaseShapes:
    """Kept in memory: a Hub model's config would be asked for over the network at every change of a form."""
    return catalog.shapes(model, cache)


def _places(base: catalog.BaseShapes, found: Sequence[Site]) -> list[Place]:
    """Every projection of every layer once; of several linears of one name (experts of the base) the first."""
    adapted = {site.name: site for site in found}
    places: dict[tuple[str, int], Place] = {}
    for linear in base.linears:
        if linear.head or linear.layer is None:
            continue
        key = (linear.projection, linear.layer)
        site = adapted.get(linear.name)
        if key in places and (site is None or places[key].words):
            continue
        places[key] = Place(
            projection=linear.projection, layer=linear.layer, inputs=linear.in_features, outputs=linear.out_features
        )
        if site is not None:
            places[key] = places[key].model_copy(update=_adapted(site))
    return list(places.values())


def _adapted(site: Site) -> dict[str, Any]:
    words = {"down": site.down, "gate": site.gate, "up": site.up}
    return {
        "experts": site.experts,
        "selected": site.selected,
        "rank": site.rank,
        "alpha": round(site.scaling * site.rank, 6),
        "parameters": site.parameters(),
        "words": {part: word.model_dump(mode="json") for part, word in words.items()},
    }


def _needs_adapter(spec: RunSpec) -> None:
    if spec.method.name == "base":
        raise ConfigurationError("The method base adapts nothing, so there is nothing to train.", "Choose a method.")
