"""Work that needs torch or much memory, done by a child process so that this one never loads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any

from core.access import acting
from core.errors import ConfigurationError, DataError, DiskError, NotFoundError, OutOfMemoryError, StudioError
from core.home import PROJECT
from core.secrets import for_work

_KINDS = {
    error.__name__: error for error in (ConfigurationError, DataError, DiskError, NotFoundError, OutOfMemoryError)
}

_CALL = """
import importlib, json, sys
from core.access import Actor, act_as
from core.errors import StudioError
from core.room import explained
module, function, arguments, actor, heard = json.loads(sys.argv[1])
if heard:
    arguments["told"] = lambda text: print(json.dumps({"told": text}), flush=True)
try:
    with act_as(Actor(*actor)), explained():
        answer = {"value": getattr(importlib.import_module(module), function)(**arguments)}
except StudioError as error:
    answer = {"error": [type(error).__name__, error.message, error.hint]}
print("\\n" + json.dumps(answer, default=str))
"""


def call(
    module: str, function: str, *, timeout: float = 600, told: Callable[[str], None] | None = None, **arguments: Any
) -> Any:
    """``module.function(**arguments)`` in a child that acts as this one does; arguments and answer are JSON.

    Its StudioErrors are raised here. ``told`` hears the sentences that the function gives to its own ``told``; what it
    raises ends the child.
    """
    actor = acting()
    request = json.dumps([module, function, arguments, [actor.name, actor.role], told is not None], default=str)
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    environment = for_work(os.environ) | {"PYTHONPATH": path}
    command = [sys.executable, "-c", _CALL, request]
    with tempfile.TemporaryFile("w+") as complaints:
        answer, code = _listen(command, environment, complaints, timeout, told)
        complaints.seek(0)
        last = complaints.read().strip().splitlines()[-1:] or [f"exit code {code}"]
    if code is None:
        raise StudioError(f"{module}.{function} took more than {timeout:.0f} s.", "Try again on an idle machine.")
    if code or answer is None:
        raise StudioError(f"{module}.{function} failed: {last[0]}.", "Ask `python app.py doctor` what is wrong.")
    if "error" in answer:
        name, message, hint = answer["error"]
        raise _KINDS.get(name, StudioError)(message, hint)
    return answer["value"]


def _listen(
    command: list[str], environment: dict[str, str], complaints: Any, timeout: float, told: Any
) -> tuple[dict[str, Any] | None, int | None]:
    """The last word of a child and its exit code; None for one that took too long. Nothing of it lives on."""
    answer, late = None, threading.Event()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=complaints, text=True)

    def end() -> None:
        late.set()
        child.kill()

    clock = threading.Timer(timeout, end)
    clock.start()
    try:
        for line in child.stdout or ():
            word = _parsed(line)
            if word is not None and "told" in word and told is not None:
                told(word["told"])
            elif word is not None:
                answer = word
        child.wait()
    finally:
        clock.cancel()
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()
    return answer, None if late.is_set() else child.returncode


def _parsed(line: str) -> dict[str, Any] | None:
    """A word of the child, or None for what else was printed."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and {"value", "error", "told"} & set(found) else None
