"""What all commands share: the home, JSON or text, tables."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from core.errors import ConfigurationError
from core.studio import Studio
from core.texts import tame

Home = Annotated[Path | None, typer.Option("--home", help="The data folder (default: TESSERA_HOME or ~/.tessera).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, the start of its id, or its name.")]
Runs = Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids or names of runs.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. train.steps=100.")
]
Here = Annotated[bool, typer.Option("--here", help="In this process, without dispatcher and database.")]
Out = Annotated[Path | None, typer.Option(help="With --here: the run folder to write.")]
Priority = Annotated[int, typer.Option(help="Higher goes first.")]
Detach = Annotated[bool, typer.Option("--detach", help="Queue it and return.")]
Request = Annotated[str | None, typer.Option(help="A key: the same key never queues twice.")]
URL = "The studio elsewhere that does this, with a token in TESSERA_TOKEN (default: TESSERA_URL)."
INSECURE = "Send the token over plain http too."

# What a studio elsewhere can be asked for; other commands need the files or the processes of its machine.
ELSEWHERE = (
    *("upload", "datasets", "methods", "preflight", "budget", "train", "fuse", "clone", "experts", "score"),
    *("runs", "logs", "scores", "routing", "compare", "conflicts", "fusion", "export"),
    *("move-to-front", "cancel", "resume", "alarms", "delete", "dispatcher"),
)
TOKEN_FILE = "~/.tessera-token"


class Session:
    """One call of the program: which studio it is for and how answers are printed."""

    def __init__(
        self, home: Path | None = None, as_json: bool = False, url: str | None = None, insecure: bool = False
    ) -> None:
        self.home = home
        self.as_json = as_json
        self.url = url
        self.insecure = insecure

    @cached_property
    def studio(self) -> Studio:
        """The studio of a home here, or one elsewhere, which has the same methods."""
        if self.url is None:
            return Studio(self.home)
        from core.remote import RemoteStudio

        return cast("Studio", RemoteStudio(self.url, token(), insecure=self.insecure))

    def answer(self, value: Any, text: Callable[[], str] | str) -> None:
        """Print ``value`` as JSON, or what ``text`` says about it."""
        print(to_json(value) if self.as_json else tame(text if isinstance(text, str) else text()))


def session(context: typer.Context, home: Path | None, as_json: bool) -> Session:
    """The session of a command: options after the command win over those before it.

    Raises:
        ConfigurationError: a studio elsewhere is named, and this command cannot be done there.
    """
    start: Session = context.obj
    home = home or start.home
    url = start.url
    if home is not None and url is not None:
        raise ConfigurationError(f"--home {home} is a studio here, --url {url} one elsewhere.", "Give one of them.")
    url = url or (os.environ.get("TESSERA_URL") or None if home is None else None)
    name = context.info_name if context.parent is not None else "serve"
    if url is not None and name not in ELSEWHERE:
        raise ConfigurationError(
            f"{name} works on the machine of the studio alone, not on {url}.",
            "Do it there; for a studio here leave out --url and TESSERA_URL, or give --home.",
        )
    return Session(home, as_json or start.as_json, url, start.insecure)


def token() -> str | None:
    """The token for a studio elsewhere: ``TESSERA_TOKEN``, else the first line of a file that only its owner reads.

    Raises:
        ConfigurationError: others can read the file, or it is missing though it was named.
    """
    if given := os.environ.get("TESSERA_TOKEN", "").strip():
        return given
    named = os.environ.get("TESSERA_TOKEN_FILE")
    path = Path(named or TOKEN_FILE).expanduser()
    if not named and not path.is_file():
        return None
    try:
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise ConfigurationError(f"Others can read the token in {path}.", f"Run: chmod 600 {path}")
        return path.read_text("utf-8").partition("\n")[0].strip() or None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"The token file {path} cannot be read: {error}.", "Check path and rights.") from error


def confirm(question: str, yes: bool) -> None:
    """Ask on a terminal; anywhere else ``--yes`` is needed."""
    if yes:
        return
    if not sys.stdin.isatty():
        print(f"{question} Add --yes to confirm.", file=sys.stderr)
        raise typer.Exit(2)
    typer.confirm(question, abort=True)


def refuse_out(out: Path | None, here: bool) -> None:
    """``--out`` is for runs of this process."""
    if out is not None and not here:
        raise typer.BadParameter("--out goes with --here; runs of the dispatcher lie in the home.")


def to_json(value: Any) -> str:
    text = json.dumps(_plain(value), ensure_ascii=False, indent=2, allow_nan=False)
    return re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)  # terminals obey these too


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "model_dump"):
        return _plain(value.model_dump(mode="json"))
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        return _plain(value.to_dict(orient="records"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], empty: str = "Nothing here.") -> str:
    """Aligned columns; ``columns`` maps keys to headings, numbers stand right."""
    if not rows:
        return empty
    cells = [[cell(row.get(key)) for key in columns] for row in rows]
    right = [
        all(isinstance(row.get(key), (int, float, type(None))) for row in rows) and any(row.get(key) for row in rows)
        for key in columns
    ]
    heads = list(columns.values())
    widths = [max(len(line[i]) for line in [heads, *cells]) for i in range(len(heads))]
    return "\n".join(_line(line, widths, right) for line in [heads, *cells])


def _line(cells: Iterable[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
    return "  ".join(parts).rstrip()


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M")
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return str(value)


def stop_quietly() -> None:
    """Keep Python from complaining about a closed pipe when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
