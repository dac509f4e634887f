"""Trained adapters: chat, export, import."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from app.commands.common import Home, Json, Run, Runs, Session, session, to_json
from core.texts import tame


def register(app: typer.Typer) -> None:
    app.command()(chat)
    app.command()(export)
    app.command()(experts)
    app.command("import")(import_)


def chat(
    context: typer.Context,
    run: Runs,
    prompt: Annotated[
        str | None, typer.Option(help="Ask once and end; otherwise read prompts from the terminal.")
    ] = None,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, max=4096, help="Longest answer.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, max=5, help="0 picks the most likely token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same for every model.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:<n>.")] = "auto",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Talk to one to four models side by side; `base` is the untouched base."""
    here = session(context, home, as_json)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    with here.studio.chat(run, device=device) as conversation:
        if prompt is not None:
            _ask(here, conversation, prompt, system, options)
            return
        while (text := _read()) is not None:
            if text.strip():
                _ask(here, conversation, text, system, options)


def _read() -> str | None:
    try:
        return input("> ") if sys.stdin.isatty() else (sys.stdin.readline() or None)
    except (EOFError, KeyboardInterrupt):
        return None


def _ask(here: Session, conversation: Any, prompt: str, system: str, options: dict[str, Any]) -> None:
    if here.as_json:
        print(to_json({"prompt": prompt, "answers": conversation.ask(prompt, system=system, **options)}))
        return
    for part in conversation.told(prompt, system=system, **options):
        print(tame(part), end="", flush=True)


def export(
    context: typer.Context,
    run: Run,
    target: Annotated[Path, typer.Argument(help="The folder to write.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write the adapter as a folder that loads without the studio."""
    here = session(context, home, as_json)
    folder = here.studio.export(run, target)
    here.answer({"folder": folder}, f"Wrote {folder}. Its README.md says how to load it.")


def experts(
    context: typer.Context,
    run: Run,
    add: Annotated[str | None, typer.Option(metavar="TASK=EXPERT", help="One task more.")] = None,
    replace: Annotated[str | None, typer.Option(metavar="TASK=EXPERT", help="Another expert for a task.")] = None,
    remove: Annotated[str | None, typer.Option(metavar="TASK", help="Take a task's expert out.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the new run.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Change the experts of a moa run into a new run; an EXPERT is a run, RUN:TASK or an adapter folder."""
    here = session(context, home, as_json)
    made = here.studio.change_experts(run, add=add, replace=replace, remove=remove, name=name)
    here.answer(made, lambda: f"{made['id']}: {made['name']}.")


def import_(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="A run folder, a PEFT adapter folder, or a Hub id of an adapter.")],
    base: Annotated[
        str | None, typer.Option(help="The base of an adapter, where its own name for it does not serve.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub adapter.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Bring a run from another machine, or an adapter trained elsewhere, into the studio."""
    here = session(context, home, as_json)
    run = here.studio.import_(source, base=base, name=name, revision=revision)
    here.answer(run, lambda: f"{run['id']}: {run['name']} ({run['state']}).")
