"""What of Gradio's own addresses is open to whom: uploads, files, tabs; what the studio does not use is shut."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

from app.holders import FILES, TABS
from app.middleware import Scope, answer
from app.sign_in import path_of
from core.access import acting

# The proxy and the streams of media, the editors of Gradio's own, its monitoring, and descriptions of everything.
SHUT = re.compile(
    r"/gradio_api/(proxy=|stream/|vibe-|undo-vibe|process_recording|deep_link|dev/|custom_component/|token|openapi)"
    r"|/monitoring|/openapi\.json"
)
FILE = re.compile(r"/gradio_api/file[=/](.*)", re.S)
HEARTBEAT = re.compile(r"/gradio_api/heartbeat/([^/]*)")
UPLOAD, CANCEL = "/gradio_api/upload", "/gradio_api/cancel"
SMALL = 65_536


class Doors:
    """ASGI middleware inside ``SignIn``: it asks who acts."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, actor = path_of(scope), acting()
        file, heartbeat = FILE.match(path), HEARTBEAT.match(path)
        asked = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        tabs = asked.get("session_hash", [])
        if heartbeat:
            tabs.append(heartbeat[1])
        if path.rstrip("/") == CANCEL:
            receive, found = await _read(receive)
            tabs.append(found)
        if SHUT.match(path):
            await answer(scope, receive, send, 404, "The studio has no such address.")
        elif file and not FILES.may(file[1]):
            await answer(scope, receive, send, 403, "This file was not made for you.")
        elif not all(TABS.theirs(tab, actor) for tab in tabs):
            await answer(scope, receive, send, 403, "This tab is somebody else's.")
        elif path.rstrip("/") == UPLOAD:
            await self._upload(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Take files from those who may store data, and note whose they are before they are told where they lie."""
        actor = acting()
        if not actor.may("researcher"):
            await answer(scope, receive, send, 403, "Viewers upload nothing. Ask an admin for another role.")
            return
        plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        body, status = b"", 0

        async def noting(message: dict[str, Any]) -> None:
            nonlocal body, status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                body += message.get("body", b"")
                if status == 200 and not message.get("more_body"):
                    for path in json.loads(body):
                        FILES.note(path, actor)
            await send(message)

        await self._app({**scope, "headers": plain}, receive, noting)


async def _read(receive: Callable[..., Any]) -> tuple[Callable[..., Any], str]:
    """A small body of JSON to be received once more, and the tab that it names."""
    body, last = b"", {"type": "http.disconnect"}
    while len(body) <= SMALL:
        last = await receive()
        body += last.get("body", b"")
        if last["type"] != "http.request" or not last.get("more_body"):
            break
    try:
        tab = str(json.loads(body).get("session_hash", ""))
    except (ValueError, AttributeError):
        tab = ""
    again = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replayed() -> dict[str, Any]:
        return next(again, None) or await receive()

    return replayed, tab
