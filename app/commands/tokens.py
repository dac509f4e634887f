"""API tokens: what programs show instead of a password."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from app.commands.common import Home, Json, Session, session, table
from core.errors import ConfigurationError


def register(app: typer.Typer) -> None:
    app.command()(tokens)


def tokens(
    context: typer.Context,
    action: Annotated[Literal["list", "create", "revoke"], typer.Argument()] = "list",
    number: Annotated[int | None, typer.Argument(metavar="TOKEN", help="For revoke: its number in the list.")] = None,
    user: Annotated[str | None, typer.Option(help="Whose: of several users, list shows all.")] = None,
    label: Annotated[str, typer.Option(help="For create: what it is for.")] = "command line",
    expires: Annotated[
        int, typer.Option(metavar="DAYS", min=0, max=3650, help="For create: it ends by itself; 0 never does.")
    ] = 90,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Tokens for the API and for the command line with --url; a new one is printed once."""
    here = session(context, home, as_json)
    if (number is None) == (action == "revoke"):
        raise typer.BadParameter("Give the number of a token with revoke, and with nothing else.")
    if action == "create":
        key, made = here.studio.users.add_token(_only(here, user), label, expires or None)
        ends = f"until {made.expires:%Y-%m-%d}" if made.expires else "without an end"
        here.answer({"token": key, "id": made.id, "user": made.user, "expires": made.expires}, key)
        if not as_json:
            print(f"Token {made.id} of {made.user}, {ends}. It is not shown again.", file=sys.stderr)
    elif action == "revoke":
        gone = here.studio.users.revoke_token(number or 0)
        here.answer({"revoked": gone.id}, f"Token {gone.id} of {gone.user} ({gone.label}) opens nothing any more.")
    else:
        names = [user] if user else [one.name for one in here.studio.users.list()]
        found = [token for name in names for token in here.studio.users.tokens(name)]
        columns = ("id", "user", "label", "created", "expires", "used")
        rows = [{name: getattr(token, name) for name in columns} for token in found]
        here.answer(rows, lambda: table(rows, {name: name for name in columns}, "No tokens."))


def _only(here: Session, user: str | None) -> str:
    """The user who is named, or the only one that there is."""
    names = [one.name for one in here.studio.users.list()]
    if user is None and len(names) != 1:
        raise ConfigurationError(
            f"There are {len(names)} users." if names else "This home has no users, so nobody needs a token.",
            f"Name one with --user: {', '.join(names)}." if names else "Users come first: python app.py users",
        )
    return user or names[0]
