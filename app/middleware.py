"""Who may talk to the studio: a check of host and origin around everything that is mounted."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from core.errors import ConfigurationError

Scope = MutableMapping[str, Any]
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def require_loopback(host: str) -> None:
    """Raise ConfigurationError for an address that other machines could reach: the studio has no sign-in."""
    name = host.strip("[]")
    if name == "localhost":
        return
    try:
        if ipaddress.ip_address(name).is_loopback:
            return
    except ValueError:
        pass
    raise ConfigurationError(
        f"The studio does not serve on {host}: whoever reaches that address could train, read and delete everything.",
        "Serve on 127.0.0.1 and reach it from elsewhere through a tunnel: ssh -L 7860:127.0.0.1:7860 <this machine>.",
    )


class LocalOnly:
    """ASGI middleware: the Host header must name this machine, and a browser's Origin must be the studio itself.

    The first check stops DNS rebinding (a foreign name that resolves to 127.0.0.1), the second stops other sites
    from sending requests with the browser of the person who has the studio open.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], hosts: tuple[str, ...] = LOOPBACK_NAMES) -> None:
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] in ("http", "websocket") and (problem := self.problem(scope)) is not None:
            await _refuse(scope, receive, send, problem)
            return
        await self._app(scope, receive, send)

    def problem(self, scope: Scope) -> str | None:
        """Why a request is refused, or None."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts = headers.get("host", [])
        if len(hosts) != 1 or _hostname(f"//{hosts[0]}") not in self._hosts:
            return "The Host header does not name this machine."
        for origin in headers.get("origin", []):
            if not self._same(origin, hosts[0]):
                return "The request comes from another site."
        if headers.get("sec-fetch-site", ["none"])[0] == "cross-site" and not _navigation(scope, headers):
            return "The request comes from another site."
        return None

    def _same(self, origin: str, host: str) -> bool:
        return urlsplit(origin).netloc == host and _hostname(origin) in self._hosts


def _navigation(scope: Scope, headers: dict[str, list[str]]) -> bool:
    """A link on another site that leads here: opening a page changes nothing."""
    return scope.get("method") == "GET" and headers.get("sec-fetch-mode", [""])[0] == "navigate"


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


async def _refuse(scope: Scope, receive: Callable[..., Any], send: Callable[..., Any], reason: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": reason})
        return
    body = json.dumps({"error": reason}).encode()
    await send(
        {
            "type": "http.response.start",
            "status": 403,
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        }
    )
    await send({"type": "http.response.body", "body": body})
