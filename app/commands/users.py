"""Users: who may sign in, and as what."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands.common import Home, Json, Yes, confirm, session, table
from core.access import MEANS, ROLES, Role
from core.errors import ConfigurationError

if TYPE_CHECKING:
    from core.users import Owned

ACTIONS = ("list", "add", "role", "password", "sign-out", "disable", "enable", "remove")
DONE = {
    "add": "{name} may sign in, as {role}.",
    "role": "{name} has the role {role} and signs in anew.",
    "password": "{name} has another password and signs in anew.",
    "sign-out": "{name} is signed out everywhere.",
    "disable": "{name} is shut out.",
    "enable": "{name} may sign in again.",
    "remove": "{name} is removed. {left}",
}


def register(app: typer.Typer) -> None:
    app.command()(users)


def users(
    context: typer.Context,
    action: Annotated[str, typer.Argument(help=f"{', '.join(ACTIONS)}.")] = "list",
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Whom; not for list.")] = None,
    role: Annotated[str | None, typer.Option(help=f"For add and role: {', '.join(ROLES)}.")] = None,
    password_file: Annotated[
        Path | None,
        typer.Option(help="For add and password: its first line; - is standard input. Otherwise the terminal asks."),
    ] = None,
    inherit: Annotated[
        bool, typer.Option("--inherit", help="For add: have what somebody left who had this name and was removed.")
    ] = False,
    conversations: Annotated[
        bool, typer.Option("--conversations", help="For remove: delete their conversations, also of who is removed.")
    ] = False,
    yes: Yes = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Who may sign in and as what. From the first user on, who has to be an admin, everybody signs in."""
    here = session(context, home, as_json)
    if action not in ACTIONS:
        raise typer.BadParameter(f"{action!r} is none of {', '.join(ACTIONS)}.")
    if (name is None) != (action == "list"):
        raise typer.BadParameter("Name a user." if name is None else "list takes no name.")
    known, said = here.studio.users, {"user": name, "done": action}
    if name is None:
        rows = [_row(one) for one in known.list()]
        empty = "No users: only this machine is served, and it asks nobody. python app.py users add NAME --role admin"
        here.answer(rows, lambda: table(rows, {key: key for key in rows[0]} if rows else {}, empty))
        return
    if action == "add":
        known.add(name, _role(role), password_of(password_file), inherit=inherit)
    elif action == "role":
        known.set_role(name, _role(role))
    elif action == "password":
        known.set_password(name, password_of(password_file))
    elif action == "sign-out":
        known.end_sessions(name)
    elif action in ("disable", "enable"):
        known.disable(name, action == "disable")
    else:
        confirm(f"Remove the user {name}{' and their conversations' if conversations else ''}?", yes)
        left = known.remove(name, conversations=conversations)
        here.answer(said | {"left": asdict(left)}, DONE[action].format(name=name, left=_left(left)))
        return
    here.answer(said, DONE[action].format(name=name, role=role))


def _left(owned: Owned) -> str:
    """What a removed user leaves, and whose that is."""
    told = f"What bears their name: {owned}." if owned else "Nothing bears their name."
    if owned.runs or owned.datasets:
        told += " Runs and data sets are the admins' to change."
    if owned.conversations:
        told += " Nobody reads the conversations; remove the name again with --conversations to delete them."
    return told


def _row(user: object) -> dict[str, object]:
    found = {field: getattr(user, field) for field in ("name", "role", "created", "seen")}
    return found | {"state": "disabled" if getattr(user, "disabled", None) else "may sign in"}


def _role(given: str | None) -> Role:
    for role in ROLES:
        if role == given:
            return role
    what = "; ".join(f"{role} {does}" for role, does in MEANS.items())
    raise ConfigurationError(f"There is no role {given!r}." if given else "A role is missing.", f"--role: {what}.")


def password_of(file: Path | None) -> str:
    """A password from a file, from a pipe, or asked twice on the terminal: never from the command itself."""
    if file is not None and str(file) != "-":
        from app.auth import first_line

        return first_line(file)
    if file is not None or not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    return typer.prompt("Password", hide_input=True, confirmation_prompt=True)
