"""What the Fusion page shows, as its address has it: runs that are to be fused and how, or one fused run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

MOST = 24
RUN = re.compile(r"run-\d+(:.+)?")
METHOD = "task_arithmetic"
OPTION, ABOUT = "method.options.", ("name", "seed", "device")  # settings that the form has fields for
FIGURES = {"cosine": "Cosine", "signs": "Sign disagreement", "norms": "Norm"}
ALL = "all"
OWNED = ("run", "runs", "method", "figure", "at", "changes", "curve", "attack")


@dataclass(frozen=True)
class Choice:
    """Every field stands in the address. ``changes``: settings of the fusion that differ from their defaults."""

    run: str = ""
    runs: tuple[str, ...] = ()
    method: str = METHOD
    figure: str = "cosine"
    at: str = ALL
    changes: Mapping[str, Any] = field(default_factory=dict)
    curve: str = ""
    attack: str = ""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Choice:
        """From an address or from inputs; what makes no sense falls back to the plain view."""
        names = ("run", "method", "figure", "at", "curve", "attack")
        text = {name: str(values.get(name) or "")[:200] for name in names}
        return cls(
            run=text["run"],
            runs=runs_in(values.get("runs")),
            method=text["method"] or METHOD,
            figure=text["figure"] if text["figure"] in FIGURES else "cosine",
            at=text["at"] or ALL,
            changes=changes_in(values.get("changes")),
            curve=text["curve"],
            attack=text["attack"],
        )

    def query(self) -> str:
        """Of a fused run, what is looked at; else what is to be fused. Nothing is said that is the default."""
        if self.run:
            named = {"run": self.run, "curve": self.curve, "attack": self.attack}
        else:
            changes = json.dumps(dict(self.changes), ensure_ascii=False) if self.changes else ""
            named = {"runs": ",".join(self.runs), "method": self.method, "figure": self.figure, "at": self.at}
            named |= {"changes": changes}
        plain = {"method": METHOD, "figure": "cosine", "at": ALL}
        return urlencode({n: v for n, v in named.items() if v and v != plain.get(n)}, safe=",")


def again(spec: Mapping[str, Any], gone: Sequence[str] = ()) -> str:
    """The address that has a fused run's sources (without those that are gone), its method and what it changed."""
    changes = {f"method.options.{name}": value for name, value in spec["method"]["options"].items()}
    changes |= {name: spec[name] for name, plain in (("seed", 0), ("device", "auto")) if spec[name] != plain}
    runs = tuple(name for name in spec["sources"] if name not in gone)
    return f"/fusion?{Choice(runs=runs, method=spec['method']['name'], changes=changes).query()}"


def runs_in(value: Any) -> tuple[str, ...]:
    """Ids (and a task behind a colon) from a list or from text with commas, each once; folders are not for pages."""
    named: Sequence[Any] = value.split(",") if isinstance(value, str) else value or ()
    found = (str(run).strip()[:80] for run in named)
    return tuple(dict.fromkeys(run for run in found if RUN.fullmatch(run)))[:MOST]


def toggled(runs: Sequence[str], run: str) -> tuple[str, ...]:
    """A chosen run is taken out; another joins at the end."""
    return tuple(one for one in runs if one != run) if run in runs else runs_in([*runs, run])


def changes_in(value: Any) -> dict[str, Any]:
    """Changed settings, as one JSON object has them; what cannot be read, or has no field in the form, is none."""
    if isinstance(value, str) and value:
        try:
            value = json.loads(value[:10_000])
        except ValueError:
            value = None
    named = value.items() if isinstance(value, Mapping) else ()
    return {str(name): one for name, one in named if name in ABOUT or str(name).startswith(OPTION)}
