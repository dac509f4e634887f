"""What may be sent here: no more than the disk takes, in one piece, and nothing stays of a transfer that broke off."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio.route_utils
import gradio.routes
from gradio.route_utils import GradioMultiPartParser, MultiPartException
from gradio.utils import get_upload_folder
from starlette.datastructures import FormData

from app.sign_in import API
from core.home import RESERVE
from core.received import LARGEST
from core.units import GIB, MIB

Scope = MutableMapping[str, Any]
ENVELOPE = MIB  # bytes of a form around its files
ELSEWHERE = 2 * MIB  # bytes of any other event: texts and settings, of which each value takes a hundred times as much
UPLOAD = "/gradio_api/upload"


class Intake:
    """ASGI middleware: says of a form how large it may be before anything of it is written."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        refused = refusal(scope) if scope["type"] == "http" and scope["method"] == "POST" else None
        if refused is None:
            await self._app(scope, receive, send)
            return
        status, text = refused
        body = text.encode()
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
        await send({"type": "http.response.body", "body": body})


def refusal(scope: Scope) -> tuple[int, str] | None:
    """Status and sentence where a body is too large for its address or for the disk."""
    path = scope["path"].rstrip("/")
    if path.startswith(API):
        return None  # counts what it reads
    named = {name.lower(): value for name, value in scope["headers"]}
    given = named.get(b"content-length", b"")
    if not given.isdigit() or b"transfer-encoding" in named:  # pieces without an end, whatever length was said
        return 411, "How long the transfer is has to be said first (Content-Length)."
    size = int(given)
    if path != UPLOAD:
        return (413, f"An event takes at most {ELSEWHERE // MIB} MiB.") if size > ELSEWHERE else None
    if size > LARGEST + ENVELOPE:
        return 413, (
            f"The files have {size / GIB:.1f} GiB; one transfer takes {LARGEST // GIB} GiB. "
            "Copy them to the studio's machine and name their folder instead."
        )
    free = shutil.disk_usage(_standing(Path(get_upload_folder()))).free
    if size > max(0, free - RESERVE):
        return 507, (
            f"The files have {size / GIB:.1f} GiB, and the studio's disk has {free / GIB:.1f} GiB free: "
            "nothing was taken. Make room there first."
        )
    return None


def _standing(folder: Path) -> Path:
    return folder if folder.exists() else _standing(folder.parent)


class Tidy(GradioMultiPartParser):
    """Leaves no file of a transfer that broke off, or that the disk refused; fields beside files hold little."""

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._current_part
        if part.file is None and len(part.data) + end - start > ENVELOPE // self.max_fields:
            raise MultiPartException("A field of the form is too long.")
        super().on_part_data(data, start, end)

    async def parse(self) -> FormData:
        try:
            return await super().parse()
        except BaseException as error:
            for file in self._files_to_close_on_error:
                with suppress(OSError, ValueError):
                    file.close()
                Path(file.name).unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise MultiPartException(f"The studio cannot keep the files: {error.strerror}.") from error
            raise


def install() -> None:
    """Have Gradio read forms so; once, however many studios a process serves."""
    for module in (gradio.route_utils, gradio.routes):
        if hasattr(module, "GradioMultiPartParser"):
            module.GradioMultiPartParser = Tidy
