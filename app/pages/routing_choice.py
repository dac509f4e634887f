"""What the Routing page shows, as its address says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from core.figures import DEFINITIONS

if TYPE_CHECKING:
    from core.routing.atlas import Atlas
    from core.studio import Studio

ROLES = {"answer": "Answer", "prompt": "Prompt", "all": "Both"}
ALL = "all"
MOST = 28  # columns of panels that a page has room for
NUMBER = re.compile("-?[0-9]{1,9}")


@dataclass(frozen=True)
class Cell:
    """The chosen cell by name; ``expert`` is None where a figure has one value for all experts of a layer."""

    task: str
    projection: str
    layer: int
    expert: int | None = None

    @classmethod
    def parse(cls, text: str) -> Cell | None:
        """``task|projection|layer|expert`` as the page keeps it; no expert is not expert 0."""
        parts = text.rsplit("|", 3)
        if len(parts) != 4 or not NUMBER.fullmatch(parts[2]) or not re.fullmatch("[0-9]{0,9}", parts[3]):
            return None
        return cls(parts[0], parts[1], int(parts[2]), int(parts[3]) if parts[3] else None)

    def __str__(self) -> str:
        return f"{self.task}|{self.projection}|{self.layer}|{'' if self.expert is None else self.expert}"


@dataclass(frozen=True)
class Choice:
    """``beside``: nothing, ``run:<run>``, ``moment:<moment>`` or ``task:<task>``; ``moment`` empty: the newest."""

    run: str = ""
    moment: str = ""
    figure: str = "mean_gate"
    role: str = "answer"
    projection: str = ALL
    beside: str = ""
    cell: Cell | None = None

    @classmethod
    def from_query(cls, query: Mapping[str, Any]) -> Choice:
        names = {field.name for field in fields(cls)} - {"cell"}
        plain = {name: str(query[name]) for name in names if query.get(name)}
        texts = [str(query.get(name, "")) for name in ("task", "site", "layer", "expert")]
        return cls(**plain, cell=Cell.parse("|".join(texts)))

    def query(self) -> str:
        """The address that shows the same again."""
        plain = {"run": self.run, "moment": self.moment, "figure": self.figure, "role": self.role}
        plain |= {"projection": self.projection, "beside": self.beside}
        if self.cell is not None:
            plain |= {"task": self.cell.task, "site": self.cell.projection}
            plain |= {"layer": str(self.cell.layer)}
            plain |= {} if self.cell.expert is None else {"expert": str(self.cell.expert)}
        return urlencode({name: value for name, value in plain.items() if value})

    @property
    def one_role(self) -> str | None:
        return None if self.role == ALL else self.role


OWNED = ("run", "moment", "figure", "role", "projection", "beside", "task", "site", "layer", "expert")


def shown_projection(atlas: Atlas, asked: str) -> str:
    """What is asked for, else all of it; where that is more than a page holds, the first that it does."""
    places = atlas.projections
    if asked not in (*places, *atlas.whole):
        asked = ALL
    columns = {ALL: len(places)} | {name: sum(p.startswith(f"{name} ") for p in places) for name in atlas.whole}
    if columns.get(asked, 1) <= MOST:
        return asked
    return next((name for name in atlas.whole if columns[name] <= MOST), places[0])


def settle(studio: Studio, choice: Choice) -> Choice:
    """``choice`` with everything that does not exist replaced by what does; the run must have routing."""
    atlas = studio.routing_atlas(choice.run)
    moments = [moment.name for moment in atlas.moments]
    figures = [figure.name for figure in DEFINITIONS.figures]
    choice = replace(
        choice,
        moment=choice.moment if choice.moment in moments else moments[-1],
        figure=choice.figure if choice.figure in figures else figures[0],
        role=choice.role if choice.role in ROLES else "answer",
        projection=shown_projection(atlas, choice.projection),
    )
    kind, _, name = choice.beside.partition(":")
    known = {"moment": moments, "task": atlas.tasks, "run": studio.routed([name])}.get(kind, [])
    return choice if name and name in known else replace(choice, beside="")
