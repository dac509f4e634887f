"""The command line: every command is one call on ``Studio``; exit codes 0 done, 1 failed with a reason, 2 usage."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from app.commands import data, design, fusion, models, results, runs, system, tokens, users
from app.commands.common import INSECURE, URL, Session, stop_quietly
from core.errors import StudioError
from core.room import trouble
from core.texts import tame

app = typer.Typer(
    help="Tessera: train, score and compare mixtures of LoRA experts.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for module in (system, data, design, runs, fusion, results, models, users, tokens):
    module.register(app)


@app.callback(invoke_without_command=True)
def session(
    context: typer.Context,
    home: Path | None = typer.Option(None, "--home", help="The data folder (default: TESSERA_HOME or ~/.tessera)."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of text."),
    url: str | None = typer.Option(None, "--url", help=URL),
    insecure: bool = typer.Option(False, "--insecure", help=INSECURE),
) -> None:
    context.obj = Session(home, as_json, url, insecure)
    if context.invoked_subcommand is None:
        system.serve(context, host="127.0.0.1", port=7860)


def command_names() -> list[str]:
    """Every command, as it is typed."""
    return list(command_parameters())


def command_parameters() -> dict[str, list[str]]:
    """Command -> its options as they are typed, longest form of each."""
    commands = typer.main.get_group(app).commands
    return {
        name: [max(parameter.opts, key=len) for parameter in command.params if parameter.param_type_name == "option"]
        for name, command in commands.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args=_in_front(given), prog_name="python app.py")
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except StudioError as error:
        _tell(error, as_json="--json" in given)
        return 1
    except ModuleNotFoundError as error:
        _tell(_missing(error), as_json="--json" in given)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `... | head` closed the other end
        stop_quietly()
        return 0
    except OSError as error:
        if (disk := trouble(error, "try again")) is None:
            raise
        _tell(disk, as_json="--json" in given)
        return 1
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if not _elsewhere(given):
            raise
        _tell(_unreadable(error), as_json="--json" in given)
        return 1
    return 0


def _elsewhere(arguments: Sequence[str]) -> bool:
    """Whether a studio elsewhere answers, whose answers may be anything."""
    return bool(os.environ.get("TESSERA_URL")) or any(word.partition("=")[0] == "--url" for word in arguments)


def _unreadable(error: Exception) -> StudioError:
    return StudioError(
        f"The studio elsewhere answered what this command cannot read ({type(error).__name__}: {error}).",
        "Has it another version, or is it no studio? Check --url (TESSERA_URL).",
    )


def _in_front(arguments: Sequence[str]) -> list[str]:
    """``--url`` and ``--insecure`` before the command, wherever they were typed: they belong to every command."""
    front: list[str] = []
    rest: list[str] = []
    left = list(arguments)
    while left and left[0] != "--":
        word = left.pop(0)
        if word == "--url" and left:
            front += [word, left.pop(0)]
        else:
            (front if word == "--insecure" or word.startswith("--url=") else rest).append(word)
    return [*front, *rest, *left]


def _missing(error: ModuleNotFoundError) -> StudioError:
    """A machine that only trains needs neither the database's nor the pages' packages; anything else is a fault."""
    if (error.name or "").split(".")[0] in ("app", "core", "storage", ""):
        raise error
    return StudioError(
        f"This command needs {error.name}, which is not installed.",
        "Install requirements.txt; without database and pages, only train RUN.yaml --here works.",
    )


def _tell(error: StudioError, as_json: bool) -> None:
    """With ``--json`` the error takes the place of the answer on standard output."""
    if as_json:
        print(json.dumps({"error": {"message": error.message, "hint": error.hint, "kind": error.kind}}))
        return
    print(f"Error: {tame(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"  {tame(error.hint)}", file=sys.stderr)
