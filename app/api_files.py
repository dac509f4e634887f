"""Files on their way: pieces that callers send, and what is made for them to take along."""

from __future__ import annotations

import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.api_bodies import InvalidCallError
from app.api_gate import Gate
from core import access
from core.access import Actor
from core.calls import Call
from core.received import Received
from core.room import explained
from core.studio import Studio
from core.units import MIB

BLOCK = MIB  # bytes that are held while they come
KEPT_SECONDS = 3600.0  # of what was made for an answer that never ended


def routes(studio: Studio, gate: Gate) -> list[Route]:
    """``POST /files`` begins a parcel; its files are sent, asked for and deleted below its name."""
    parcels = Received(studio.home)

    async def begin(request: Request) -> Response:
        return JSONResponse({"parcel": await _as(await gate.enter(request), parcels.begin)})

    async def has(request: Request) -> Response:
        actor = await gate.enter(request)
        return JSONResponse({"received": await _as(actor, partial(parcels.size, request.path_params["name"]))})

    async def send(request: Request) -> Response:
        actor, name = await gate.enter(request), request.path_params["name"]
        at = request.query_params.get("at", "0")
        if not at.isdecimal() or len(at) > 15:
            raise InvalidCallError(f"at={at[:20]!r} is no number of bytes.", "Leave it out to begin anew.")
        with access.act_as(actor):
            return await _take(request, parcels, name, int(at))

    async def forget(request: Request) -> Response:
        actor = await gate.enter(request)
        await _as(actor, partial(parcels.forget, request.path_params["parcel"]))
        return JSONResponse(None)

    return [
        Route("/files", begin, methods=["POST"]),
        Route("/files/{parcel}", forget, methods=["DELETE"]),
        Route("/files/{name:path}", has, methods=["GET"]),
        Route("/files/{name:path}", send, methods=["PUT"]),
    ]


async def _take(request: Request, parcels: Received, name: str, at: int) -> Response:
    """Write a body as it comes; what came before a connection broke is kept, so that the sender goes on there."""
    held = bytearray()
    with parcels.writing(name, at) as file:

        async def write() -> None:
            block = bytes(held)
            held.clear()
            await run_in_threadpool(file.write, block)

        try:
            async for part in request.stream():
                held += part
                if len(held) >= BLOCK:
                    await write()
        except ClientDisconnect:
            await write()
            return Response(status_code=400)  # nobody reads it
        await write()
        return JSONResponse({"received": file.received})


async def _as(actor: Actor, work: Any) -> Any:
    def acting() -> Any:
        with access.act_as(actor):
            return work()

    return await run_in_threadpool(acting)


@explained("ask again")
def made(call: Call, studio: Studio, arguments: dict[str, Any]) -> Path:
    """The file that answers a call, in a folder of its own that ``remove`` takes away."""
    root = studio.home.cache / "sent"
    root.mkdir(parents=True, exist_ok=True)
    for old in root.iterdir():
        if time.time() - old.stat().st_mtime > KEPT_SECONDS:
            remove(old)
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        run = studio.run(arguments["run"])["id"]
        target = folder / f"{run}-{call.name}{call.file}"
        if call.name == "export":
            studio.watch.adapter(run, target)
        else:
            studio.routing(run, **{name: value for name, value in arguments.items() if name != "run"}).save(target)
    except BaseException:
        remove(folder)
        raise
    return target


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
