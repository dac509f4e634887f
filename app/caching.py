"""What a browser may keep: scripts and fonts whose names change with their content are asked for once."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
NAMED = re.compile(r"/assets/[^/]+-[\w-]{8,}\.(js|css|woff2?|svg|png)$")  # Vite: the name ends in a hash of the content
FONTS = re.compile(r"/static/fonts/.+\.woff2?$")
YEAR, DAY = b"private, max-age=31536000, immutable", b"private, max-age=86400"


class Kept:
    """ASGI middleware: without it, a browser asks again for some sixty files at every page."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        kept = how_long(scope["path"], scope.get("query_string", b"")) if scope["type"] == "http" else None

        async def sending(message: MutableMapping[str, Any]) -> None:
            if kept and message["type"] == "http.response.start" and message["status"] in (200, 206, 304):
                given = [pair for pair in message.get("headers", []) if pair[0].lower() != b"cache-control"]
                message["headers"] = [*given, (b"cache-control", kept)]
            await send(message)

        await self._app(scope, receive, sending if kept else send)


def how_long(path: str, query: bytes) -> bytes | None:
    """The rule for one address; None where the studio itself answers."""
    if NAMED.search(path) or (path.endswith("/theme.css") and query.startswith(b"v=")):
        return YEAR
    return DAY if FONTS.search(path) else None
