"""Work that needs torch, done by a child process so that this one never loads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from core.errors import ConfigurationError, DataError, NotFoundError, OutOfMemoryError, StudioError
from core.home import PROJECT

_KINDS = {error.__name__: error for error in (ConfigurationError, DataError, NotFoundError, OutOfMemoryError)}

_CALL = """
import importlib, json, sys
from core.errors import StudioError
module, function, arguments = json.loads(sys.argv[1])
try:
    answer = {"value": getattr(importlib.import_module(module), function)(**arguments)}
except StudioError as error:
    answer = {"error": [type(error).__name__, error.message, error.hint]}
print("\\n" + json.dumps(answer, default=str))
"""


def call(module: str, function: str, *, timeout: float = 600, **arguments: Any) -> Any:
    """``module.function(**arguments)`` in a child; arguments and answer are JSON. Its StudioErrors are raised here."""
    request = json.dumps([module, function, arguments], default=str)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", _CALL, request]
    try:
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise StudioError(
            f"{module}.{function} took more than {timeout:.0f} s.", "Try again on an idle machine."
        ) from error
    if child.returncode:
        last = child.stderr.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
        raise StudioError(f"{module}.{function} failed: {last[0]}.", "Ask `python app.py doctor` what is wrong.")
    answer = json.loads(child.stdout.strip().splitlines()[-1])
    if "error" in answer:
        name, message, hint = answer["error"]
        raise _KINDS.get(name, StudioError)(message, hint)
    return answer["value"]
