"""Fusing finished runs: fuse, conflicts, fusion."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from app.commands.common import (
    Changes,
    Detach,
    Here,
    Home,
    Json,
    Out,
    Priority,
    Request,
    Run,
    Session,
    refuse_out,
    session,
    table,
)
from app.commands.runs import follow
from core import sheets
from core.home import write_text

Sources = Annotated[list[str], typer.Argument(metavar="RUN[:TASK]...", help="Finished runs of one base.")]
SCORES = ("task", "metric", "base", "own", "fused", "fused_stderr", "joint", "lost", "lost_stderr")
CSV = typer.Option(help="Write the table as CSV.")


def register(app: typer.Typer) -> None:
    for command in (fuse, conflicts, fusion):
        app.command()(command)


def fuse(
    context: typer.Context,
    run: Sources,
    method: Annotated[str, typer.Option(help="See: python app.py methods --fusion")] = "task_arithmetic",
    name: Annotated[str, typer.Option(help="For people; made from method and runs otherwise.")] = "",
    set_: Changes = None,
    here: Here = False,
    out: Out = None,
    priority: Priority = 0,
    detach: Detach = False,
    check: Annotated[bool, typer.Option("--check", help="Validate; start nothing.")] = False,
    request: Request = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """One model from several finished runs, scored on all of their tasks."""
    mine = session(context, home, as_json)
    refuse_out(out, here)
    changes = [*([f"name={name}"] if name else []), *(set_ or ())]
    if here or check:
        spec = mine.studio.fusion_spec(run, method=method, changes=changes)
        if check:
            plan = mine.studio.check(spec)
            mine.answer(plan, plan.text)
            return
        folder = mine.studio.train_here(spec, out=out)
        mine.answer({"folders": [folder]}, f"The fused run is in {folder}.")
        return
    fused = mine.studio.fuse(run, method=method, changes=changes, priority=priority, request_id=request)
    if detach:
        mine.answer({"runs": [fused]}, f"Queued {fused}. Follow it: python app.py logs {fused} -f")
        return
    follow(mine, fused)
    ended = mine.studio.run(fused)
    if ended["state"] != "done":
        mine.answer(ended, f"{fused} is {ended['state']}. See why: python app.py logs {fused}")
        raise typer.Exit(1)
    _tell(mine, fused)


def fusion(
    context: typer.Context,
    run: Run,
    of: Annotated[
        str | None, typer.Option("--table", help="Another table: coefficients, mask_density, form or sweep.")
    ] = None,
    csv: Annotated[Path | None, CSV] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """What a fused run kept of its sources' scores, and what it learned."""
    mine = session(context, home, as_json)
    if of is None:
        _tell(mine, run, csv)
        return
    found = mine.studio.tables(run, of)
    if not found:
        print(f"{run} has no table {of}.", file=sys.stderr)
        raise typer.Exit(1)
    frame = found[-1][1]
    _write(frame, csv)
    mine.answer(frame, lambda: _text(frame, list(frame.columns)))


def conflicts(
    context: typer.Context,
    run: Sources,
    csv: Annotated[Path | None, CSV] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """How much runs would be in each other's way: cosine and sign disagreement of their task vectors."""
    mine = session(context, home, as_json)
    found = mine.studio.conflicts(run)
    frame = found.frame()
    _write(frame, csv)
    whole = frame[frame["projection"] == "all"]
    mine.answer(frame, lambda: _text(whole, list(frame.columns)))


def _tell(mine: Session, run: str, csv: Path | None = None) -> None:
    found = mine.studio.fusion(run)
    _write(found.table, csv)
    badge = f" [{found.method['badge']}]" if found.method["badge"] else ""
    head = f"{found.run['id']}: {found.method['title']}{badge} of {', '.join(s['name'] for s in found.sources)}"
    mine.answer(found, lambda: f"{_text(found.table, list(SCORES), 'No scores yet.')}\n{head}")


def _text(frame: Any, columns: list[str], empty: str = "Nothing here.") -> str:
    return table(frame.to_dict(orient="records"), {name: name for name in columns}, empty)


def _write(frame: Any, path: Path | None) -> None:
    if path is not None:
        write_text(path, sheets.of_frame(frame))
        print(f"Wrote {path}.", file=sys.stderr)
