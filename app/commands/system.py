"""The studio itself: serve, demo, dispatcher, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from app.commands.common import Home, Json, Yes, confirm, session, table
from core.units import GIB, MIB


def register(app: typer.Typer) -> None:
    for command in (serve, demo, dispatcher, disk, doctor):
        app.command()(command)


def serve(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Beyond this machine (0.0.0.0): with users only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free port.")] = 7860,
    password_file: Annotated[
        Path | None, typer.Option(help="Makes the first user, admin, with its first line; otherwise TESSERA_PASSWORD.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Another name of this machine, as a proxy passes it on.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Serve the studio's pages (also without any command)."""
    studio = session(context, home, as_json).studio
    state = studio.dispatcher()
    if not state["alive"] and (state["working"] or state["waiting"]):
        studio.dispatcher("start")  # pages take seconds to be built, and runs need it now

    from app import server

    server.run(studio, host=host, port=port, password_file=password_file, allow_hosts=allow_host or ())


def demo(
    context: typer.Context,
    out: Annotated[Path | None, typer.Option(help="Folder of the heatmap; otherwise out/demo.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Train anew even if these runs are done already.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Queue the runs and return.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Train three methods on tasks that the studio makes itself, and compare them."""
    here = session(context, home, as_json)
    found = here.studio.demo(out=out, again=again, follow=not detach)
    here.answer(found, lambda: found.text())


def dispatcher(
    context: typer.Context,
    action: Annotated[
        Literal["status", "start", "stop", "run"], typer.Argument(help="run: in this terminal.")
    ] = "status",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """The process that starts queued runs: its state, start and stop."""
    here = session(context, home, as_json)
    state = here.studio.dispatcher(action)
    here.answer(state, lambda: "\n".join(f"{name}: {value}" for name, value in state.items()))


def disk(
    context: typer.Context,
    clean: Annotated[
        str | None, typer.Option(metavar="KINDS", help="Delete: checkpoints (of finished runs), caches, orphans.")
    ] = None,
    yes: Yes = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """What the home takes on disk by kind, and cleaning up."""
    here = session(context, home, as_json)
    machine = here.studio.machine
    if clean is not None:
        confirm(f"Delete {clean} in {here.studio.home.root}?", yes)
        freed = machine.clean([kind.strip() for kind in clean.split(",") if kind.strip()])
        here.answer(freed, lambda: "\n".join(f"{kind}: {mib(count)} freed" for kind, count in freed.items()))
        return
    found = machine.disk()
    rows = [
        {"kind": kind, "takes": mib(count), "can go": mib(found["removable"].get(kind, 0))}
        for kind, count in found["kinds"].items()
    ]
    free = f"{found['free'] / GIB:.1f} of {found['total'] / GIB:.1f} GiB are free."
    here.answer(found, lambda: table(rows, {name: name for name in rows[0]}) + f"\n{free}")


def mib(count: int) -> str:
    return f"{count / MIB:,.1f} MiB"


def doctor(context: typer.Context, home: Home = None, as_json: Json = False) -> None:
    """What this machine offers and what is wrong; exit code 1 when something is."""
    here = session(context, home, as_json)
    found = here.studio.doctor()
    rows = [{"": finding.mark, "what": finding.name, "found": finding.found, "do": finding.remedy} for finding in found]
    here.answer(found, lambda: table(rows, {"": "", "what": "what", "found": "found", "do": "what to do"}))
    if any(finding.state == "wrong" for finding in found):
        raise typer.Exit(1)
