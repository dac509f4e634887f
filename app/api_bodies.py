"""What a call brings along: a query or a body of JSON, checked before anything looks at its meaning."""

from __future__ import annotations

import json
from typing import Any, NoReturn, get_origin

from starlette.requests import Request

from core.calls import Call
from core.errors import ConfigurationError
from core.units import MIB
from core.wire import fit

LARGEST = MIB  # bytes of a body; files are sent in pieces of their own


class InvalidCallError(ConfigurationError):
    """A call whose parameters cannot be what its method takes."""


def query(request: Request, call: Call) -> dict[str, Any]:
    """The parameters of a GET; those that are lists are given once for each item."""
    fields = call.parameters.model_fields
    found: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name in fields and get_origin(fields[name].annotation) is list:
            found.setdefault(name, []).append(value)
        elif name in found:
            raise InvalidCallError(f"{name[:40]} is given twice.", "Give it once.")
        else:
            found[name] = value
    fit(found)
    return found


async def body(request: Request) -> bytes:
    """What a POST brings, up to a limit."""
    text = bytearray()
    async for part in request.stream():
        text += part
        if len(text) > LARGEST:
            raise InvalidCallError(f"The body is larger than {LARGEST // MIB} MiB.", "Send files as docs/api.md says.")
    return bytes(text)


def parsed(text: bytes) -> Any:
    """The JSON of a body; an empty one is an empty mapping."""
    try:
        data = json.loads(text.decode("utf-8"), parse_constant=_no_number) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise InvalidCallError("The body is not JSON.", "Send one object in UTF-8, such as {}.") from error
    fit(data)
    return data


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)
