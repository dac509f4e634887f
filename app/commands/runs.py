"""Runs: train, score, runs, logs, move-to-front, cancel, resume, clone, delete."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

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
    Runs,
    Session,
    Yes,
    confirm,
    refuse_out,
    session,
    table,
)
from core.texts import tame

State = Literal["queued", "starting", "running", "cancelling", "done", "failed", "cancelled", "lost"]
COLUMNS = {
    "id": "id",
    "name": "name",
    "method": "method",
    "base": "base",
    "state": "state",
    "progress": "progress",
    "alarms": "alarms",
    "trainable": "trainable",
    "created": "created",
}


def register(app: typer.Typer) -> None:
    for command in (train, score, runs, logs, move_to_front, cancel, resume, alarms, clone, delete):
        app.command()(command)


def train(
    context: typer.Context,
    spec: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="What to train; - reads standard input.")],
    here: Here = False,
    out: Out = None,
    set_: Changes = None,
    seeds: Annotated[str | None, typer.Option(help="Several seeds, e.g. 0,1,2: one run each.")] = None,
    priority: Priority = 0,
    detach: Detach = False,
    check: Annotated[bool, typer.Option("--check", help="Validate and count parameters; start nothing.")] = False,
    request: Request = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Train and score what RUN.yaml describes, and follow the progress."""
    mine = session(context, home, as_json)
    refuse_out(out, here)
    settings = mine.studio.read_spec(sys.stdin.read() if str(spec) == "-" else spec, changes=set_, seeds=seeds)
    if check:
        plans = [mine.studio.check(one) for one in settings]
        mine.answer(plans, lambda: "\n\n".join(plan.text() for plan in plans))
    elif here:
        folders = [mine.studio.train_here(one, out=_own(out, one.seed, len(settings))) for one in settings]
        mine.answer({"folders": folders}, lambda: "\n".join(f"The run is in {folder}." for folder in folders))
    else:
        ids = [
            mine.studio.submit(one, request_id=request and f"{request}-{one.seed}", priority=priority)
            for one in settings
        ]
        _after_submit(mine, ids, detach)


def _own(out: Path | None, seed: int, count: int) -> Path | None:
    return out if out is None or count == 1 else out / f"seed-{seed}"


def _after_submit(mine: Session, ids: list[str], detach: bool) -> None:
    if detach:
        mine.answer({"runs": ids}, "\n".join(f"Queued {run}. Follow it: python app.py logs {run} -f" for run in ids))
        return
    for run in ids:
        follow(mine, run)
    ended = [mine.studio.run(run) for run in ids]
    mine.answer({"runs": ended}, lambda: "\n\n".join(_outcome(mine, run) for run in ended))
    if any(run["state"] != "done" for run in ended):
        raise typer.Exit(1)


def _outcome(mine: Session, run: dict[str, Any]) -> str:
    """The scores of a run that ended, and where to look next."""
    if run["state"] != "done":
        return f"{run['id']} is {run['state']}. See why: python app.py logs {run['id']}"
    found = mine.studio.scores(run["id"]).to_dict(orient="records")
    columns = {name: name for name in ("task", "split", "model", "metric", "value", "stderr", "chance", "rows")}
    memory = f"Memory: {run['memory']['said']}.\n" if run["memory"]["said"] else ""
    onward = "fusion" if run["spec"]["sources"] else "routing"
    return f"{table(found, columns, 'No scores.')}\n{memory}{run['id']} is done: python app.py {onward} {run['id']}"


def follow(mine: Session, run: str) -> None:
    """Print what a run says until it ends; Ctrl-C leaves it running."""
    print(f"{run} is queued.", file=sys.stderr)
    try:
        for line in mine.studio.follow(run):
            print(tame(line), file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print(f"\n{run} goes on without you. Follow it again: python app.py logs {run} -f", file=sys.stderr)
        raise typer.Exit(0) from None


def score(
    context: typer.Context,
    run: Run,
    dataset: Annotated[
        list[str] | None, typer.Option("--dataset", metavar="NAME[:TASK]", help="Otherwise the run's own tasks.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    base: Annotated[bool, typer.Option("--base/--no-base", help="Score the untouched base too.")] = True,
    detach: Detach = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Score a finished run again, on its own tasks or on other data sets."""
    mine = session(context, home, as_json)
    job = mine.studio.score(run, datasets=dataset, split=split, base=base)
    if not detach:
        for line in mine.studio.follow(run, job=job):
            print(tame(line), file=sys.stderr, flush=True)
    state = mine.studio.job(run, job)
    mine.answer(state, f"{job} of {run}: {state['state']}.")
    if state["state"] in ("failed", "lost", "cancelled"):
        raise typer.Exit(1)


def runs(
    context: typer.Context,
    state: Annotated[State | None, typer.Option(help="Only runs in this state.")] = None,
    search: Annotated[str | None, typer.Option(help="Only runs whose name, notes or method contain this.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only runs with this tag.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, newest first.")] = 50,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List runs."""
    mine = session(context, home, as_json)
    narrowed = any(part is not None for part in (state, search, tag))
    empty = "No run matches." if narrowed else "No runs yet: python app.py train RUN.yaml"
    found = mine.studio.runs(state=state, search=search, tag=tag, limit=limit)
    told = [run | {"method": f"{run['method']} [{run['badge']}]"} if run["badge"] else run for run in found]
    mine.answer(found, lambda: table(told, COLUMNS, empty))


def logs(
    context: typer.Context,
    run: Run,
    following: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends.")] = False,
    tail: Annotated[int, typer.Option(min=1, help="Last lines.")] = 40,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """What a run said: events in one line each, and the worker's own output."""
    mine = session(context, home, as_json)
    if following:
        follow(mine, run)
        return
    found = mine.studio.logs(run, tail=tail)
    mine.answer(found, lambda: "\n".join([*found["output"], *found["events"]]) or "Nothing was said yet.")


def cancel(context: typer.Context, run: Runs, home: Home = None, as_json: Json = False) -> None:
    """Cancel runs; what they reached is kept in their last checkpoint."""
    _each(session(context, home, as_json), run, "cancel")


def move_to_front(context: typer.Context, run: Runs, home: Home = None, as_json: Json = False) -> None:
    """Let queued runs start next."""
    _each(session(context, home, as_json), run, "move_to_front")


def resume(context: typer.Context, run: Runs, home: Home = None, as_json: Json = False) -> None:
    """Continue cancelled, failed or lost runs from their last checkpoint."""
    _each(session(context, home, as_json), run, "resume")


def alarms(
    context: typer.Context,
    run: Run,
    go_on: Annotated[
        bool, typer.Option("--go-on", help="They are seen: a run that stopped at one goes on past it.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Cancel the run, with a checkpoint.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """The alarms of a run, and what to do about them."""
    mine = session(context, home, as_json)
    if go_on and stop:
        raise typer.BadParameter("--go-on and --stop exclude each other.")
    if go_on or stop:
        state = mine.studio.go_on(run) if go_on else mine.studio.cancel(run)
        mine.answer(state, f"{state['id']}: {state['state']}")
        return
    found = mine.studio.alarms(run)
    mine.answer(
        found, lambda: table(found, {name: name for name in ("step", "name", "message")}, "No alarm was raised.")
    )


def _each(mine: Session, names: list[str], action: str) -> None:
    states = [getattr(mine.studio, action)(name) for name in names]
    mine.answer(states, lambda: "\n".join(f"{state['id']}: {state['state']}" for state in states))


def clone(
    context: typer.Context,
    run: Run,
    set_: Changes = None,
    print_only: Annotated[bool, typer.Option("--print", help="Print the YAML; start nothing.")] = False,
    priority: Priority = 0,
    detach: Detach = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Train again what a run describes, with changes."""
    mine = session(context, home, as_json)
    if print_only:
        spec: Any = mine.studio.cloned_spec(run, changes=set_)
        mine.answer(spec, spec.to_yaml)
        return
    _after_submit(mine, [mine.studio.clone(run, changes=set_, priority=priority)], detach)


def delete(context: typer.Context, run: Runs, yes: Yes = False, home: Home = None, as_json: Json = False) -> None:
    """Delete runs with their files."""
    mine = session(context, home, as_json)
    known = [mine.studio.run(name)["id"] for name in run]
    confirm(f"Delete {', '.join(known)} with all files?", yes)
    for name in known:
        mine.studio.delete(name)
    mine.answer({"deleted": known}, f"Deleted {', '.join(known)}.")
