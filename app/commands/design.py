"""Before a run starts: what it takes, and methods of equal size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml

from app.commands.common import Changes, Home, Json, session, table
from core.errors import ConfigurationError
from core.schema import MethodSpec, ModelSpec

COLUMNS = {
    "method": "method",
    "was": "before",
    "option": "option",
    "change": "changed",
    "trainable": "trainable",
    "difference": "difference",
}


def register(app: typer.Typer) -> None:
    for command in (preflight, budget):
        app.command()(command)


def preflight(
    context: typer.Context,
    spec: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="What would be trained; - reads standard input.")],
    set_: Changes = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """What RUN.yaml would take: parameters by component and cell, memory by part, tokens per second."""
    mine = session(context, home, as_json)
    settings = mine.studio.read_spec(sys.stdin.read() if str(spec) == "-" else spec, changes=set_)
    found = mine.studio.preflight(settings[0])
    mine.answer(found, found.text)


def budget(
    context: typer.Context,
    methods: Annotated[
        list[str],
        typer.Argument(metavar="METHOD...", help="Names, with options as in mosld:rank=4,modules=all-linear."),
    ],
    parameters: Annotated[int | None, typer.Option(min=1, help="As many trainable parameters each.")] = None,
    like: Annotated[str | None, typer.Option(metavar="METHOD", help="As many as this method has.")] = None,
    over: Annotated[Literal["rank", "experts"], typer.Option(help="What is set.")] = "rank",
    base: Annotated[str | None, typer.Option(help="The base model; otherwise the bundled one.")] = None,
    tasks: Annotated[int, typer.Option(min=1, help="How many tasks, for what exists once for each task.")] = 1,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make methods equal in trainable parameters: sets rank or experts and says what it changed."""
    mine = session(context, home, as_json)
    found = mine.studio.equal_budget(
        [method(text) for text in methods],
        parameters=parameters,
        like=None if like is None else method(like),
        over=over,
        base=None if base is None else ModelSpec(base=base),
        tasks=tasks,
    )
    rows = [share.row() for share in found]
    mine.answer({"target": found[0].target, "methods": rows}, lambda: _text(rows, found[0].target))


def method(text: str) -> MethodSpec:
    """``mosld:rank=4,experts=[2,4]`` as a method; values are read as YAML."""
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in _parts(rest):
        key, equals, value = part.partition("=")
        if not equals:
            raise ConfigurationError(f"{part!r} of {name} is no option.", f"Write {name}:rank=8, for example.")
        try:
            options[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigurationError(
                f"{value!r} is no value for {key}.", "Write a number, a name or [a, b]."
            ) from error
    return MethodSpec(name=name, options=options)


def _parts(text: str) -> list[str]:
    """Split at commas outside brackets."""
    found, depth = [""], 0
    for letter in text:
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return [part for part in found if part.strip()]


def _text(rows: list[dict[str, Any]], target: int) -> str:
    shown = [row | {"change": f"{_short(row['before'])} -> {_short(row['after'])}"} for row in rows]
    for row in shown:
        row["method"] += f" ({row['badge']})" if row["badge"] else ""
        row["difference"] = f"{row['difference']:+,} ({row['share']:+.2%})"
    return f"{table(shown, COLUMNS)}\nThe budget: {target:,} trainable parameters."


def _short(value: Any) -> str:
    return "-".join(map(_short, value)) if isinstance(value, list) else str(value)
