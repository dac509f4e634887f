"""What a run will take, told before it starts: parameters by component and cell, memory by part, tokens per second."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from core import capacity
from core.adapters.cells import Cell, Linear, Site
from core.errors import ConfigurationError
from core.fitting import Fit
from core.jobs.devices import Device
from core.schema import RunSpec, TrainSpec

if TYPE_CHECKING:
    from core.drafts import Drafts
    from core.records import Records

PARTS = ("down", "gate", "up")
LOOKED_AT = 5  # earlier runs that the guess of the speed rests on, the newest ones


class CellCount(BaseModel):
    """One cell of a method and what it brings."""

    cell: int = Field(description="Its number, from 1, in the order in which cells are matched.")
    title: str
    projections: int
    trainable: int
    parts: dict[str, int]
    frozen: bool = False


class Speed(BaseModel):
    """A guess of the training speed, and the runs that it comes from."""

    tokens_per_second: float
    runs: list[str]
    method: str = Field("", description="Their method; empty where they have several.")
    alike: bool = Field(description="Whether they have the method of this run.")

    def text(self) -> str:
        what = "" if self.alike else f" of {self.method or 'other methods'}"
        return f"about {self.tokens_per_second:,.0f} tokens per second, as {', '.join(self.runs)}{what}"


class Preflight(BaseModel):
    """What ``Studio.preflight`` answers."""

    method: str
    base: str
    trainable: int
    share: float = Field(description="Trainable parameters by the parameters of the base.")
    parts: dict[str, int] = Field(description="Trainable parameters of all down, gate and up words.")
    cells: list[CellCount]
    memory: Fit
    speed: Speed | None = Field(None, description="Empty where no earlier run tells.")
    notes: list[str] = Field(default_factory=list)

    def text(self) -> str:
        lines = [
            f"trainable parameters: {self.trainable:,} ({self.share:.2%} of {self.base})",
            "  by component: " + ", ".join(f"{name} {count:,}" for name, count in self.parts.items()),
            *(f"  cell {one.cell} ({one.title}): {one.trainable:,}" for one in self.cells),
            f"memory: {self.memory.text()}",
            *self.memory.verdict(),
            f"speed: {self.speed.text() if self.speed else 'no earlier run on such a device tells'}",
            *(f"Note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def owners(cells: Sequence[Cell], linears: Sequence[Linear]) -> dict[str, int]:
    """Projection -> the index of the cell that has it: the first that matches."""
    found = {}
    for linear in linears:
        index = next((i for i, cell in enumerate(cells) if cell.matches(linear)), None)
        if index is not None:
            found[linear.name] = index
    return found


def bare(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell as far as it says where it stands."""
    return {name: cell[name] for name in ("modules", "layers", "frozen") if name in cell}


def by_part(sites: Sequence[Site]) -> dict[str, int]:
    """Trainable parameters of all down, gate and up words."""
    return {part: sum(getattr(site, part).parameters(site) for site in sites) for part in PARTS}


def by_cell(cells: Sequence[Cell], linears: Sequence[Linear], sites: Sequence[Site]) -> list[CellCount]:
    """What each cell brings; a frozen one brings nothing and says how many projections it holds back."""
    owner = owners(cells, linears)
    mine: dict[int, list[Site]] = {index: [] for index in range(len(cells))}
    for site in sites:
        mine[owner[site.name]].append(site)
    held = list(owner.values())
    return [
        CellCount(
            cell=index + 1,
            title=titled(cell),
            projections=held.count(index),
            trainable=sum(by_part(mine[index]).values()),
            parts=by_part(mine[index]),
            frozen=cell.frozen,
        )
        for index, cell in enumerate(cells)
    ]


def titled(cell: Cell) -> str:
    """``q_proj, v_proj in layers 0-3``."""
    names = cell.modules if isinstance(cell.modules, str) else ", ".join(cell.modules)
    return names + (f" in layers {', '.join(map(str, cell.layers))}" if cell.layers else "")


def speed(records: Records, base: str, method: str, train: TrainSpec, device: Device | None) -> Speed | None:
    """The median speed of earlier runs on this base and the same kind of device; of this method where there are any.

    Runs that checkpoint activations where this one does not, or the other way round, are another kind.
    """
    if device is None:
        return None
    try:
        from storage.queries import series, speeds
    except ModuleNotFoundError:  # a machine that only trains has no database
        return None
    titles = {one.name: one.title for one in capacity.devices()}
    with records.read() as session:
        found = [
            one
            for one in speeds.trained(session, base=base)
            if titles.get(one.device) == device.title
            and bool(one.train.get("activation_checkpointing")) == train.activation_checkpointing
        ]
        alike = [one for one in found if one.method == method]
        chosen = (alike or found)[:LOOKED_AT]
        curves = series.read_many(session, runs=[one.run for one in chosen], names=[speeds.NAME])
    medians = [statistics.median(curve[speeds.NAME].values.tolist()) for curve in curves.values() if curve]
    if not medians:
        return None
    methods = {one.method for one in chosen}
    return Speed(
        tokens_per_second=statistics.median(medians),
        runs=[one.run for one in chosen],
        method=methods.pop() if len(methods) == 1 else "",
        alike=bool(alike),
    )


def examine(spec: RunSpec, drafts: Drafts, records: Records) -> Preflight:
    """Everything that is known of a run before it starts."""
    rows, notes = drafts.examine(spec)
    if problems := drafts.problems(spec.method, spec.model, len(rows)):
        hints = dict.fromkeys(one.hint for one in problems)
        raise ConfigurationError(" ".join(one.message for one in problems), " ".join(hints))
    size = drafts.size(
        spec.method,
        spec.model,
        spec.train,
        tasks=len(rows),
        device=spec.device,
        rows=drafts.lengths(spec.tasks, spec.model, spec.train.max_length, spec.seed),
    )
    return Preflight(
        method=spec.method.name,
        base=spec.model.base,
        trainable=size.trainable,
        share=size.trainable / size.total,
        parts=size.parts,
        cells=size.cells,
        memory=size.memory,
        speed=speed(records, spec.model.base, spec.method.name, spec.train, capacity.device_for(spec.device)),
        notes=notes,
    )
