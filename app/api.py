"""The HTTP API, ``/api/v1``: each call of ``core.calls`` is one method of ``Studio``, run as the user of its token."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from app import api_files
from app.api_bodies import InvalidCallError, body, parsed, query
from app.api_gate import Gate, RefusedError
from core import access
from core.calls import CALLS, Call
from core.errors import NotAllowedError, NotFoundError, StudioError
from core.studio import Studio
from core.wire import dumps

ROOT = "/api/v1"
QUICK, SLOW = 16, 4  # calls at once; the pages have threads of their own
FRESH = {"cache-control": "no-store"}

Endpoint = Callable[[Request], Awaitable[Response]]


def add_routes(app: FastAPI, studio: Studio) -> None:
    """The API below ``/api/v1``; add it before the pages, which would take every path."""
    gate, limits = Gate(studio), {True: CapacityLimiter(SLOW), False: CapacityLimiter(QUICK)}
    routes = [
        Route(f"/{call.name}", endpoint(call, studio, gate, limits[call.slow]), methods=[call.verb])
        for call in CALLS.values()
    ]
    handlers: dict[Any, Any] = {StudioError: refused, HTTPException: unknown, Exception: broken}
    app.mount(ROOT, Starlette(routes=[*routes, *api_files.routes(studio, gate)], exception_handlers=handlers))


def endpoint(call: Call, studio: Studio, gate: Gate, limit: CapacityLimiter) -> Endpoint:
    """Answer one call: who asks, may they, what do they ask; then the method, in a thread."""

    async def answer(request: Request) -> Response:
        actor = await gate.enter(request)
        if call.kind != "read":
            with access.act_as(actor):
                access.need("researcher")
        text = await body(request) if call.verb == "POST" else b""

        def work() -> Response:
            with access.act_as(actor):
                return _respond(call, studio, _arguments(call, studio, request, text))

        return await to_thread.run_sync(work, limiter=limit)

    return answer


def _arguments(call: Call, studio: Studio, request: Request, text: bytes) -> dict[str, Any]:
    try:
        return call.arguments(studio, query(request, call) if call.verb == "GET" else parsed(text))
    except (NotFoundError, NotAllowedError):
        raise
    except StudioError as error:
        raise InvalidCallError(error.message, error.hint) from error


def _respond(call: Call, studio: Studio, arguments: dict[str, Any]) -> Response:
    if not call.file:
        value = getattr(studio, call.name)(**arguments)
        return Response(dumps(value), media_type="application/json", headers=FRESH)
    path = api_files.made(call, studio, arguments)
    return FileResponse(
        path, filename=path.name, headers=FRESH, background=BackgroundTask(api_files.remove, path.parent)
    )


async def refused(request: Request, error: StudioError) -> Response:
    """What went wrong as the command line's ``--json`` says it."""
    status = error.status if isinstance(error, RefusedError) else _status(error)
    more = error.headers if isinstance(error, RefusedError) else {}
    told = {"message": error.message, "hint": error.hint, "kind": error.kind}
    return JSONResponse({"error": told}, status, headers={**FRESH, **more})


def _status(error: StudioError) -> int:
    for kind, status in ((NotAllowedError, 403), (NotFoundError, 404), (InvalidCallError, 422)):
        if isinstance(error, kind):
            return status
    return 400


async def unknown(request: Request, error: HTTPException) -> Response:
    """No such call, or not with this verb."""
    name = Path(request.url.path).name
    if error.status_code == 405 and name in CALLS:
        told = RefusedError(405, f"{name} is called with {CALLS[name].verb}.", "See docs/api.md.")
    else:
        near = difflib.get_close_matches(name, CALLS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(CALLS)}."
        told = RefusedError(error.status_code, f"There is no call {name[:40]!r}.", hint)
    return await refused(request, told)


async def broken(request: Request, error: Exception) -> Response:
    """A fault of the studio; the server's log has the rest."""
    told = RefusedError(500, "The studio failed at this call.", "Its log says why; please report it.")
    told.kind = "internal"
    return await refused(request, told)
