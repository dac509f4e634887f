"""Who may talk to the studio: a check of host and origin around everything that is mounted."""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from core.errors import ConfigurationError

Scope = MutableMapping[str, Any]
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
NAMING = (b"x-forwarded-host", b"x-gradio-server")  # Gradio would write these names into its pages, unchecked
OWN_SITE = ("none", "same-origin")  # not "same-site": other ports and names of one site are other studios
FETCHER = re.compile(r"/(file=|file/|proxy=)\s*https?:", re.I)  # Gradio would fetch what an address names
# Gradio's pages hold scripts of their own and compile templates, so inline ones run; what data could bring from
# elsewhere or send there (pictures in an answer, forms, frames, requests) does not.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-src 'none'; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'self'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"referrer-policy", b"same-origin"),
    (b"cache-control", b"private"),  # a proxy keeps nothing of one person for the next
)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address or name."""
    name = host.strip("[]")
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def require_users(host: str, names: Sequence[str], users: bool) -> None:
    """Raise ConfigurationError where others could come in and nobody asks them who they are."""
    beyond = [name for name in (host, *names) if not is_loopback(name)]
    if beyond and not users:
        raise ConfigurationError(
            f"The studio does not serve {beyond[0]} without users: whoever reaches it could train, read and "
            "delete everything.",
            "Add one with `python app.py users add NAME --role admin`, or stay on 127.0.0.1 and come through a "
            "tunnel: ssh -L 7860:127.0.0.1:7860 <this machine>.",
        )


def own_names(host: str) -> tuple[str, ...]:
    """Names under which a studio that serves on ``host`` may be asked for: for 0.0.0.0 and ::, all of this machine."""
    given = host.strip("[]").lower()
    if is_loopback(given):
        return tuple(dict.fromkeys((*LOOPBACK_NAMES, given)))
    if given not in ("0.0.0.0", "::"):
        return (*LOOPBACK_NAMES, given)
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    cards = (one for card in psutil.net_if_addrs().values() for one in card if one.family in families)
    name = socket.gethostname().lower()
    found = (
        *LOOPBACK_NAMES,
        name,
        f"{name.partition('.')[0]}.local",
        *(one.address.partition("%")[0] for one in cards),
    )
    return tuple(dict.fromkeys(found))


class LocalOnly:
    """ASGI middleware: the Host header must name this machine, and a browser's Origin must be the studio itself.

    The first check stops DNS rebinding (a foreign name that resolves to 127.0.0.1), the second stops other sites
    from sending requests with the browser of the person who has the studio open.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], hosts: tuple[str, ...] = LOOPBACK_NAMES) -> None:
        self._app = app
        self._hosts = frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
        elif (problem := self.problem(scope)) is not None:
            await answer(scope, receive, send, 403, problem)
        elif FETCHER.search(scope["path"]):
            await answer(scope, receive, send, 404, "The studio fetches no addresses for others.")
        else:
            headers = [pair for pair in scope["headers"] if pair[0].lower() not in NAMING]
            await self._app({**scope, "headers": headers}, receive, with_headers(send))

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
        if headers.get("sec-fetch-site", ["none"])[0] not in OWN_SITE and not _navigation(scope, headers):
            return "The request comes from another site."
        return None

    def _same(self, origin: str, host: str) -> bool:
        return _hostname(origin) in self._hosts and urlsplit(origin).netloc == host


def _navigation(scope: Scope, headers: dict[str, list[str]]) -> bool:
    """A link on another site that leads here: opening a page changes nothing."""
    return scope.get("method") == "GET" and headers.get("sec-fetch-mode", [""])[0] == "navigate"


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def with_headers(send: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """``send`` that tells browsers not to guess types, not to show the studio inside other sites, to keep addresses."""

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            given = list(message.get("headers", []))
            named = {name.lower() for name, _ in given}
            message["headers"] = given + [pair for pair in HEADERS if pair[0] not in named]
        await send(message)

    return sending


async def answer(scope: Scope, receive: Callable[..., Any], send: Callable[..., Any], status: int, reason: str) -> None:
    """Refuse a request in the way of its protocol."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": reason})
        return
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
