"""Nobody passes without a session: middleware around everything that is mounted, and the page to sign in."""

from __future__ import annotations

import html
from collections.abc import Awaitable, Callable
from http.cookies import SimpleCookie
from math import ceil
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, RedirectResponse, Response

from app.auth import SESSION_SECONDS, Access
from app.middleware import Scope, answer
from app.ui.theme import asset

COOKIE = "tessera-session"
OPEN = ("/login", "/health")
BODY_LIMIT = 4096
POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"


class SignIn:
    """ASGI middleware: requests without a session are led to the sign-in page, or answered with 401."""

    def __init__(self, app: Callable[..., Awaitable[None]], access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Callable[..., Awaitable], send: Callable[..., Awaitable]) -> None:
        if scope["type"] not in ("http", "websocket") or _path(scope) in OPEN:
            await self._app(scope, receive, send)
            return
        token = token_of(scope)
        if self._access.sessions.name(token) is None:
            await _turn_away(scope, receive, send)
            return
        later = self._access.sessions.renewed(token)

        async def renewing(message: dict) -> None:
            if later and message["type"] == "http.response.start" and _path(scope) != "/logout":
                message["headers"] = [*message.get("headers", []), (b"set-cookie", cookie(later, scope).encode())]
            await send(message)

        await self._app(scope, receive, renewing)


def require(access: Access) -> Callable[[Request], str | None]:
    """The second wall, inside the pages: Gradio asks it before every event, upload and file; None is refused."""

    def user(request: Request) -> str | None:
        return "owner" if access.sessions.name(token_of(request.scope)) is not None else None

    return user


def add_routes(app: FastAPI, access: Access) -> None:
    """``/login`` and ``/logout``; add them before the pages, which would take every path."""

    @app.get("/login")
    def login(request: Request) -> Response:
        if access.sessions.name(token_of(request.scope)) is not None:
            return RedirectResponse(_target(request, request.query_params.get("next", "")), 303)
        return page(next_path=request.query_params.get("next", ""))

    @app.post("/login")
    async def enter(request: Request) -> Response:
        given = await _form(request)
        address = request.client.host if request.client else ""
        attempt = await run_in_threadpool(access.sign_in, given.get("password", ""), address)
        if attempt.token is None:
            return page(next_path=given.get("next", ""), problem=_refusal(attempt.wait), wait=attempt.wait)
        leave = RedirectResponse(_target(request, given.get("next", "")), 303)
        leave.headers["set-cookie"] = cookie(attempt.token, request.scope)
        return leave

    @app.post("/logout")
    def leave(request: Request) -> Response:
        access.sessions.end(token_of(request.scope))
        gone = RedirectResponse(f"{request.scope.get('root_path', '')}/login", 303)
        gone.headers["set-cookie"] = cookie("", request.scope, seconds=0)
        gone.headers["clear-site-data"] = '"cache"'
        return gone


def token_of(scope: Scope) -> str:
    """The session cookie of a request; empty where there is none, or not exactly one."""
    found = []
    for name, value in scope["headers"]:
        if name == b"cookie":
            for part in value.decode("latin-1").split(";"):
                key, _, text = part.strip().partition("=")
                found += [text] if key == COOKIE else []
    return found[0] if len(found) == 1 else ""


def cookie(token: str, scope: Scope, seconds: int = SESSION_SECONDS) -> str:
    """The Set-Cookie header: out of reach of scripts and of other sites; over https it stays there."""
    jar = SimpleCookie()
    jar[COOKIE] = token
    jar[COOKIE] |= {"path": scope.get("root_path") or "/", "max-age": seconds, "httponly": True, "samesite": "Strict"}
    if scope.get("scheme") in ("https", "wss"):
        jar[COOKIE]["secure"] = True
    return jar[COOKIE].OutputString()


async def _turn_away(scope: Scope, receive: Callable[..., Awaitable], send: Callable[..., Awaitable]) -> None:
    if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and _wants_page(scope):
        query = scope.get("query_string", b"").decode("latin-1")
        wanted = quote(_path(scope) + (f"?{query}" if query else ""), safe="")
        where = f"{scope.get('root_path', '')}/login" + (f"?next={wanted}" if wanted != "%2F" else "")
        await RedirectResponse(where, 303, headers={"cache-control": "no-store"})(scope, receive, send)
        return
    await answer(scope, receive, send, 401, "Sign in first.")


def _wants_page(scope: Scope) -> bool:
    accepted = b"".join(value for name, value in scope["headers"] if name == b"accept")
    return b"text/html" in accepted and not _path(scope).startswith("/gradio_api/")


def _path(scope: Scope) -> str:
    root = scope.get("root_path", "")
    path = scope["path"]
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _target(request: Request, wanted: str) -> str:
    """Where to go after signing in: a path of this studio, never another site."""
    parts = urlsplit(wanted)
    safe = wanted.startswith("/") and not wanted.startswith(("//", "/\\")) and not parts.netloc and wanted.isprintable()
    return request.scope.get("root_path", "") + (wanted if safe and "\\" not in wanted else "/")


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
    return f"Wait {ceil(wait)} s, then try again." if wait > 0 else "That is not the password."


def page(next_path: str = "", problem: str = "", wait: float = 0.0) -> HTMLResponse:
    """The sign-in page: one file without scripts, so that nothing of the studio is served to strangers."""
    told = f'<p class="problem" role="alert">{html.escape(problem)}</p>' if problem else ""
    body = asset("sign-in.html").replace("%told%", told).replace("%next%", html.escape(next_path[:2000], quote=True))
    headers = {"content-security-policy": POLICY, "cache-control": "no-store", "referrer-policy": "same-origin"}
    if wait > 0:
        return HTMLResponse(body, 429, headers={**headers, "retry-after": str(ceil(wait))})
    return HTMLResponse(body, 401 if problem else 200, headers=headers)
