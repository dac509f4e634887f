"""What can be said of a method before it stands on a base: unit of its gate, tasks, parameters as a formula."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from core.adapters.cells import Cell
from core.adapters.methods import Preset, presets
from core.adapters.words import Word
from core.fusion.methods import fusion_methods

SYMBOLS = {
    "in": "inputs of the projection",
    "out": "outputs of the projection",
    "r": "rank of one expert",
    "E": "experts of the projection",
    "tasks": "tasks that are trained together",
    "first": "1 in the first adapted projection of a block of layers, 0 in the others",
}
Values = dict[str, float | list[int]]


def facts(preset: Preset) -> dict[str, Any]:
    """What a method with its defaults is; every value is None for a split, where cells decide it.

    ``parts``: its words. ``unit``: what one decision of its gate covers (token, sample, none). ``tasks``: never,
    training (their names matter while it trains) or always (every sample must say its task). ``formula``: trainable
    parameters of one projection; ``symbols`` and ``defaults`` say what stands in it.
    """
    if any(field.is_required() for field in preset.options.model_fields.values()):
        return dict.fromkeys(("parts", "unit", "tasks", "needs_tasks", "formula", "symbols", "defaults"))
    cell = preset.cells(preset.options())[0]
    tasks = "always" if cell.needs_task else "training" if cell.gate.per_task else "never"
    formula, where = parameters(cell)
    return {
        "parts": {"down": cell.down.word, "gate": cell.gate.word, "up": cell.up.word},
        "unit": cell.gate.unit or "none",
        "tasks": tasks,
        "needs_tasks": tasks != "never",
        "formula": formula,
        "symbols": meaning(formula),
        "defaults": written(where),
    }


def badge(method: str) -> str | None:
    """What stands beside a method wherever it is reported; None for one that is unknown here."""
    known = presets().get(method) or fusion_methods().get(method)
    return (known.badge or None) if known else None


def title(method: str) -> str:
    """A method's name for people; of one that is unknown here, the name that settings have."""
    known = presets().get(method) or fusion_methods().get(method)
    return known.title if known else method


def labelled(method: str) -> str:
    """A method's name in text, with its badge: ``moa [interpretation]``."""
    told = badge(method)
    return f"{method} [{told}]" if told else method


@cache
def unrouted(method: str) -> str | None:
    """Why no run of a method has routing; None where one may have it."""
    preset = presets().get(method)
    if method in fusion_methods():
        return "It was fused into one constant update: there are no gates, and nothing is routed."
    if method == "base" or (preset is not None and facts(preset)["unit"] == "none"):
        return "Its method has one expert for everything: there are no gates, and nothing is routed."
    if preset is not None and preset.peft is not None:
        return "PEFT computes its method, and what that decides is not recorded."
    return None


def parameters(cell: Cell) -> tuple[str, Values]:
    """Trainable parameters that a cell brings to one projection, and the values of what the formula names."""
    found, where = [], {}
    for part, word in (("down", cell.down), ("up", cell.up), ("gate", cell.gate)):
        expression, named = _of_part(part, word)
        if expression != "0":
            found.append(expression)
            where |= named
    formula = " + ".join(found) or "0"
    if cell.experts == 1 and not cell.gate.per_task:
        formula = re.sub(r"\bE \* ", "", formula)
    if cell.gate.per_task:
        formula = re.sub(r"\bE\b", "tasks", formula)
    formula = re.sub(r"\br\b", cell.down.width, formula)
    known: Values = {"E": cell.experts, "r": cell.rank, **where}
    return formula, {name: value for name, value in known.items() if re.search(rf"(?<![\w.]){name}\b", formula)}


def _of_part(part: str, word: Word) -> tuple[str, Values]:
    """A word's expression, its options named by the part that they belong to."""
    if not word.expression:
        return f"parameters of {part} {word.word}", {}
    own = {name: f"{part}.{name}" for name in type(word).model_fields if name not in SYMBOLS}
    expression = re.sub(r"[A-Za-z_]\w*", lambda match: own.get(match[0], match[0]), word.expression)
    return expression, {full: getattr(word, name) for name, full in own.items() if full in expression}


def meaning(formula: str) -> dict[str, str]:
    """The symbols that a formula has, and what they are."""
    return {name: told for name, told in SYMBOLS.items() if re.search(rf"(?<![\w.]){name}\b", formula)}


def written(value: Mapping[str, Any]) -> str:
    """``E = 8, r = 12, down.share = 0.3333``."""
    return ", ".join(f"{name} = {_value(one)}" for name, one in value.items())


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(map(str, value)) + " from the bottom up"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
