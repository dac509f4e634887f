"""Nobody passes without a session: middleware around everything that is mounted, and the page to sign in."""

from __future__ import annotations

import html
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from http.cookies import SimpleCookie
from math import ceil
from urllib.parse import parse_qs, quote

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse, Response

from app.auth import Access
from app.middleware import Scope, answer
from app.ui.theme import asset
from core.access import Actor, act_as
from core.errors import StudioError

COOKIE = "tessera-session"
OPEN = ("/login", "/health")
API = "/api/v1/"  # asks for a token itself, and a session opens nothing there
BODY_LIMIT = 4096
UNANSWERED = "The database of the studio does not answer, so nothing was changed. Try again in a minute."
POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"


class SignIn:
    """ASGI middleware: requests without a session are led to the sign-in page, or answered with 401.

    What is inside runs as the actor of its request.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Callable[..., Awaitable], send: Callable[..., Awaitable]) -> None:
        asked = scope["type"] in ("http", "websocket")
        if not asked or path_of(scope) in OPEN or path_of(scope).startswith(API):
            await self._app(scope, receive, send)
            return
        try:
            actor = await run_in_threadpool(self._entering, scope)
        except StudioError as error:
            await answer(scope, receive, send, 503, error.message)
            return
        if actor is None:
            await _turn_away(scope, receive, send)
            return
        with act_as(actor):
            await self._app(scope, receive, send)

    def _entering(self, scope: Scope) -> Actor | None:
        """Who sent a request; whoever opens a page is there."""
        actor = actor_of(self._access, scope)
        if actor is not None and scope["type"] == "http" and wants_page(scope):
            self._access.sessions.acted(token_of(scope))
        return actor


def actor_of(access: Access, scope: Scope) -> Actor | None:
    """Who sent a request; None for strangers."""
    return access.actor(token_of(scope))


def require(access: Access) -> Callable[[Request], str | None]:
    """The second wall, inside the pages: Gradio asks it before every event, upload and file; None is refused.

    Pages are told role and name (``assets/ui/session.js``).
    """

    def user(request: Request) -> str | None:
        actor = actor_of(access, request.scope)
        return None if actor is None else f"{actor.role} {actor.name or ''}"

    return user


def add_routes(app: FastAPI, access: Access) -> None:
    """``/login`` and ``/logout``; add them before the pages, which would take every path."""

    @app.get("/login")
    def login(request: Request) -> Response:
        wanted = request.query_params.get("next", "")
        return (
            page(wanted) if actor_of(access, request.scope) is None else RedirectResponse(_target(request, wanted), 303)
        )

    @app.post("/login")
    async def enter(request: Request) -> Response:
        given = await _form(request)
        name, address = given.get("name", ""), request.client.host if request.client else ""
        attempt = await run_in_threadpool(access.sign_in, name, given.get("password", ""), address)
        if attempt.token is None:
            return page(given.get("next", ""), name, _refusal(attempt.wait), attempt.wait)
        leave = RedirectResponse(_target(request, given.get("next", "")), 303)
        leave.headers["set-cookie"] = cookie(attempt.token, request.scope, access.sessions.longest)
        return leave

    @app.post("/logout")
    def leave(request: Request) -> Response:
        access.sessions.end(token_of(request.scope))
        gone = RedirectResponse(f"{request.scope.get('root_path', '')}/login", 303)
        gone.headers["set-cookie"] = cookie("", request.scope, timedelta(0))
        gone.headers["clear-site-data"] = '"cache"'
        return gone

    @app.exception_handler(StudioError)
    def unanswered(_: Request, __: Exception) -> Response:
        """Why is told to nobody here, who may be a stranger."""
        return page(problem=UNANSWERED, status=503)


def token_of(scope: Scope) -> str:
    """The session cookie of a request; empty where there is none, or not exactly one."""
    found = []
    for name, value in scope["headers"]:
        if name == b"cookie":
            for part in value.decode("latin-1").split(";"):
                key, _, text = part.strip().partition("=")
                found += [text] if key == COOKIE else []
    return found[0] if len(found) == 1 else ""


def cookie(token: str, scope: Scope, lasts: timedelta) -> str:
    """The Set-Cookie header: out of reach of scripts and of other sites; over https it stays there."""
    jar = SimpleCookie()
    jar[COOKIE] = token
    seconds = int(lasts.total_seconds())
    jar[COOKIE] |= {"path": scope.get("root_path") or "/", "max-age": seconds, "httponly": True, "samesite": "Strict"}
    if scope.get("scheme") in ("https", "wss"):
        jar[COOKIE]["secure"] = True
    return jar[COOKIE].OutputString()


async def _turn_away(scope: Scope, receive: Callable[..., Awaitable], send: Callable[..., Awaitable]) -> None:
    if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and wants_page(scope):
        query = scope.get("query_string", b"").decode("latin-1")
        wanted = quote(path_of(scope) + (f"?{query}" if query else ""), safe="")
        where = f"{scope.get('root_path', '')}/login" + (f"?next={wanted}" if wanted != "%2F" else "")
        await RedirectResponse(where, 303, headers={"cache-control": "no-store"})(scope, receive, send)
        return
    await answer(scope, receive, send, 401, "Sign in first.")


def wants_page(scope: Scope) -> bool:
    accepted = b"".join(value for name, value in scope["headers"] if name == b"accept")
    return b"text/html" in accepted and not path_of(scope).startswith("/gradio_api/")


def path_of(scope: Scope) -> str:
    root = scope.get("root_path", "")
    path = scope["path"]
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _target(request: Request, wanted: str) -> str:
    """Where to go after signing in: a path of this studio, never another site."""
    safe = wanted.startswith("/") and not wanted.startswith("//") and "\\" not in wanted and wanted.isprintable()
    return request.scope.get("root_path", "") + (wanted if safe else "/")


async def _form(request: Request) -> dict[str, str]:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY_LIMIT:
            return {}
    try:
        fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=10)
    except ValueError:
        return {}
    return {name: values[0] for name, values in fields.items()}


def _refusal(wait: float) -> str:
    return f"Wait {ceil(wait)} s, then try again." if wait > 0 else "Name and password do not belong together."


def page(next_path: str = "", name: str = "", problem: str = "", wait: float = 0.0, status: int = 401) -> HTMLResponse:
    """The sign-in page: one file without scripts, so that nothing of the studio is served to strangers."""
    told = f'<p class="problem" role="alert">{html.escape(problem)}</p>' if problem else ""
    filled = {"told": told, "next": html.escape(next_path[:2000]), "name": html.escape(name[:100])}
    body = re.sub(r"%(told|next|name)%", lambda place: filled[place[1]], asset("sign-in.html"))
    headers = {"content-security-policy": POLICY, "cache-control": "no-store", "referrer-policy": "same-origin"}
    if wait > 0:
        return HTMLResponse(body, 429, headers={**headers, "retry-after": str(ceil(wait))})
    return HTMLResponse(body, status if problem else 200, headers=headers)
