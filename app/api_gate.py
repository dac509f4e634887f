"""Who calls the API: whoever holds a token; on a studio without users, programs of its own machine."""

from __future__ import annotations

from math import ceil

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from app.auth import Throttle
from app.middleware import is_loopback
from core.access import LOCAL, Actor
from core.errors import StudioError
from core.studio import Studio

OWN = "x-tessera"  # a header that no page of another site can send without asking first, which is refused
SCHEME = "bearer "


class RefusedError(StudioError):
    """A call that nobody answers for; ``status`` and ``headers`` as HTTP wants them."""

    kind = "configuration"

    def __init__(self, status: int, message: str, hint: str, **headers: str) -> None:
        super().__init__(message, hint)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Gate:
    """Turns calls away, or says who they are. A right token always passes; wrong ones of one address are slowed down.

    Cookies are never looked at: what a browser sends by itself opens nothing here.
    """

    def __init__(self, studio: Studio) -> None:
        self._users = studio.users
        self._throttle = Throttle()

    async def enter(self, request: Request) -> Actor:
        given = request.headers.getlist("authorization")
        token = given[0][len(SCHEME) :].strip() if len(given) == 1 and given[0].lower().startswith(SCHEME) else None
        if not await run_in_threadpool(self._users.any):
            return self._local(request, token)
        if token is None:
            raise RefusedError(
                401,
                "This studio answers to those who have a token.",
                "Send it as `Authorization: Bearer tsr_...`; make one with python app.py tokens create, or on the page "
                "Account.",
                www_authenticate="Bearer",
            )
        address = request.client.host if request.client else ""
        actor = await run_in_threadpool(self._users.by_token, token)
        if actor is not None:
            return actor
        wait = self._throttle.wait(address)
        if wait > 0:
            raise RefusedError(429, "Too many wrong tokens.", f"Wait {ceil(wait)} s.", retry_after=str(ceil(wait)))
        self._throttle.failed(address)
        raise RefusedError(
            401, "The token is unknown, expired or revoked.", "Make a new one.", www_authenticate="Bearer"
        )

    def _local(self, request: Request, token: str | None) -> Actor:
        """Nobody has to sign in: programs of this machine may call, pages of other sites in its browsers may not."""
        client = request.client.host if request.client else ""
        if not is_loopback(client) or not is_loopback(request.url.hostname or ""):
            raise RefusedError(
                401, "This studio has no users, so it answers its own machine alone.", "Add users: docs/serving.md."
            )
        if token is None and OWN not in request.headers:
            raise RefusedError(403, "The call lacks the header X-Tessera.", "Send `X-Tessera: 1`, or a token.")
        return LOCAL
