"""Data sets and methods: upload, datasets, methods."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from app.commands.common import Home, Json, Yes, confirm, session, table
from core.errors import ConfigurationError
from core.studio import Studio


def register(app: typer.Typer) -> None:
    for command in (upload, datasets, methods):
        app.command()(command)


def upload(
    context: typer.Context,
    source: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Files, one folder, or a Hub data set id.")],
    name: Annotated[str | None, typer.Option(help="Name of the data set; otherwise the file's.")] = None,
    task: Annotated[str | None, typer.Option(help="Name of the task, where no column tells it.")] = None,
    kind: Annotated[str | None, typer.Option(help="classification, choice, sentence or generation.")] = None,
    instruction: Annotated[str | None, typer.Option(help="What every row asks for.")] = None,
    role: Annotated[
        list[str] | None, typer.Option("--map", metavar="ROLE=COLUMN", help="Correct the detected mapping.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option("--split", metavar="FILE=SPLIT", help="A file's split, where its name hides it.")
    ] = None,
    validation: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the rows left for training, where no split is given.")
    ] = 0.1,
    test: Annotated[float, typer.Option(min=0, max=0.9, help="Share of rows, where no split is given.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Draws the splits.")] = 0,
    metric: Annotated[str | None, typer.Option(help="Primary metric; otherwise the kind's default.")] = None,
    drop_overlap: Annotated[
        bool, typer.Option("--drop-overlap", help="Leave out training rows whose input is also scored.")
    ] = False,
    header: Annotated[
        bool | None, typer.Option("--header/--no-header", help="csv, tsv: the first line names columns, or not.")
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Show what would be stored; store nothing.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Store a data set, or preview how its rows become prompts."""
    here = session(context, home, as_json)
    given: dict[str, Any] = {"name": name, "task": task, "kind": kind, "instruction": instruction, "metric": metric}
    given |= {"drop_overlap": drop_overlap, "header": header}
    options = (
        given
        | {"splits": _splits(split)}
        | {"mapping": _roles(role), "validation": validation, "test": test, "seed": seed}
    )
    if preview:
        seen = here.studio.preview(source[0] if len(source) == 1 else source, **options)
        here.answer(seen, lambda: _preview(seen))
        return
    heard = {"told": _said} if isinstance(here.studio, Studio) else {}  # a studio elsewhere reads out of sight
    info = here.studio.upload(source[0] if len(source) == 1 else source, **heard, **options)
    here.answer(info, lambda: _describe(info) + _also(info, name))


def _said(text: str) -> None:
    """How far a large file is read, on one line of a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text[:78]:<78}", end="\n" if text.startswith("Storing") else "", file=sys.stderr, flush=True)


def _also(info: dict[str, Any], name: str | None) -> str:
    """Said where the content was stored before under another name."""
    known = name is None or name == info["name"]
    return "" if known else f"\nThe same content is stored already; {name} is one more name for it."


def _roles(assignments: list[str] | None) -> dict[str, str] | None:
    roles = {}
    for text in assignments or ():
        role, sign, column = text.partition("=")
        if not sign:
            raise ConfigurationError(f"{text!r} is not of the form ROLE=COLUMN.", "For example: --map input=question.")
        roles[role.strip()] = column.strip()
    return roles or None


def _splits(assignments: list[str] | None) -> dict[str, str] | None:
    splits = {}
    for text in assignments or ():
        file, sign, split = text.rpartition("=")
        if not sign:
            raise ConfigurationError(f"{text!r} is not of the form FILE=SPLIT.", "For example: --split b.csv=test.")
        splits[file.strip()] = split.strip()
    return splits or None


def _preview(seen: Any) -> str:
    """Tasks with counts and token lengths, and one row of each exactly as the model reads it, answer in brackets."""
    lines = [seen.name, *(f"Note: {note}" for note in seen.notes)]
    for name, task in seen.tasks.items():
        counts = ", ".join(f"{split} {count:,}" for split, count in task.info.counts.items())
        lines += ["", f"{name}: {task.info.kind}, {task.info.metric}; {counts}"]
        for split, lengths in task.lengths.items():
            longest = f"up to {lengths.total['max']:.0f} tokens" if lengths.total else "no rows"
            lines.append(f"  {split}: {longest}, {lengths.truncated} of {lengths.measured} rows are cut")
        lines += [f"  {line}" for split in task.info.counts for line in _noticed(task, split)]
        if task.rows:
            lines.append("".join(f"[{s.text}]" if s.loss else s.text for s in task.rows[0].segments))
    return "\n".join(lines)


def _noticed(task: Any, split: str, most: int = 8) -> list[str]:
    """Class balance, repeated inputs and rows that are trained on too, of one split."""
    lines = []
    if balance := task.balance.get(split):
        whole = sum(balance.values())
        shown = ", ".join(f"{label} {count / whole:.0%}" for label, count in list(balance.items())[:most])
        lines.append(f"{split}: {shown}" + (f" and {len(balance) - most} more" if len(balance) > most else ""))
    repeated, shared = task.duplicates.get(split), task.overlap.get(split)
    if repeated and repeated.rows:
        other = f", {repeated.conflicts} of them with another answer" if repeated.conflicts else ""
        lines.append(f"{split}: {repeated.rows:,} rows repeat an input{other}, such as {repeated.examples[0]!r}")
    if shared and shared.rows:
        lines.append(
            f"{split}: {shared.rows:,} rows ({shared.share:.1%}) are also trained on, such as {shared.examples[0]!r}"
        )
    return lines


def datasets(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="One data set: its tasks and first rows.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete this data set.")] = False,
    yes: Yes = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List the stored data sets, or show or delete one."""
    here = session(context, home, as_json)
    if name is None:
        found = here.studio.datasets()
        columns = {
            "name": "name",
            "id": "id",
            "tasks": "tasks",
            "rows": "rows",
            "source": "source",
            "created": "created",
        }
        rows = [row | {"tasks": list(row["tasks"]), "rows": sum(row["counts"].values())} for row in found]
        here.answer(found, lambda: table(rows, columns, "No data sets yet: python app.py upload FILE"))
    elif delete:
        confirm(f"Delete the data set {name}?", yes)
        here.studio.delete_dataset(name)
        here.answer({"deleted": name}, f"Deleted {name}.")
    else:
        info = here.studio.dataset(name)
        here.answer(info, lambda: _describe(info))


def _describe(info: dict[str, Any]) -> str:
    rows = [
        {"task": name, **{key: task.get(key) for key in ("kind", "metric", "chance", "trivial")}, **task["counts"]}
        for name, task in info["tasks"].items()
    ]
    columns = {key: key for key in ("task", "kind", "metric", "chance", "trivial", "train", "validation", "test")}
    lines = [f"{info['name']} ({info['id']})", table(rows, columns)]
    return "\n".join([*lines, *(f"Note: {note}" for note in info["notes"])])


def methods(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="One method with its options.")] = None,
    fusion: Annotated[bool, typer.Option("--fusion", help="Methods that fuse finished runs.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List the methods, or show the options of one."""
    here = session(context, home, as_json)
    fusing = {one["name"]: one for one in here.studio.fusion_methods()}
    if name in fusing:
        here.answer(fusing[name], lambda: _fusion_method(fusing[name]))
        return
    if fusion and name is None:
        columns = {"name": "name", "learns": "learns", "badge": "badge", "summary": "summary", "source": "source"}
        here.answer(list(fusing.values()), lambda: table(list(fusing.values()), columns))
        return
    if name is None:
        found = here.studio.methods()
        columns = {"name": "name", "unit": "gate", "tasks": "tasks", "badge": "badge", "summary": "summary"}
        columns |= {"source": "source"}
        here.answer(found, lambda: table(found, columns))
        return
    method = here.studio.method(name)
    here.answer(method, lambda: _method(method))


def _fusion_method(method: dict[str, Any]) -> str:
    badge = f" [{method['badge']}]" if method["badge"] else ""
    head = [f"{method['title']} ({method['name']}){badge}", method["summary"], f"Source: {method['source']}"]
    head += [method["note"]] if method["note"] else []
    return "\n".join([*head, "", _options(method["options"])])


def _method(method: dict[str, Any]) -> str:
    """What a method is, its options and parameters; of a split also the options of a cell and of every word."""
    badge = f" [{method['badge']}: its paper was not fully read]" if method["badge"] else ""
    lines = [f"{method['title']} ({method['name']}){badge}", method["summary"]]
    lines += [f"Source: {method['source']}"] if method["source"] else []
    if method["formula"] is not None:
        words = ", ".join(f"{part} {word}" for part, word in method["parts"].items())
        lines += [f"Words: {words}. One decision of the gate covers: {method['unit']}. Needs tasks: {method['tasks']}."]
        lines += [f"Trainable parameters of one projection: {method['formula']}"]
        symbols = ", ".join(f"{name}: {told}" for name, told in method["symbols"].items())
        lines += [f"  {symbols}" + (f"; by default {method['defaults']}" if method["defaults"] else "")]
    lines += ["", _options(method["options"])]
    if "cell" in method:
        lines += ["", "A cell:", _options(method["cell"])]
    for part, known in method.get("words", {}).items():
        for one in known:
            lines += ["", f"{part}: {one['name']}  {one['summary']}", f"  parameters: {one['formula']}"]
            lines += [_options(one["options"])] if one["options"] else []
    if "cell" in method:
        lines += ["", "Words with options are written as mappings: gate: {word: token, top_k: 2}. First match wins."]
    return "\n".join(lines)


def _options(options: list[dict[str, Any]]) -> str:
    columns = {
        "name": "option",
        "type": "type",
        "default": "default",
        "range": "range",
        "unit": "unit",
        "help": "meaning",
    }
    return table(options, columns)
