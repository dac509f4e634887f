"""The web process: pages on FastAPI behind the studio's own middleware. Trains nothing and imports no torch."""

from __future__ import annotations

import socket
import sys
import warnings
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI, Response
from gradio.utils import get_upload_folder

from app import api, intake, sessions, shell, sign_in, uploads
from app.auth import Access, password_from
from app.caching import Kept
from app.doors import Doors
from app.middleware import LOOPBACK_NAMES, LocalOnly, is_loopback, own_names, require_users
from app.ui import first_paint, theme
from core.errors import ConfigurationError
from core.home import PROJECT
from core.studio import Studio

PORTS_TRIED = 20


def build(studio: Studio, *, names: Sequence[str] = LOOPBACK_NAMES, access: Access | None = None) -> FastAPI:
    """The whole application of one studio, ready for any ASGI server.

    It answers to ``names`` only, and where its home has users to those only who signed in. ``access`` is made here
    unless given.
    """
    access = access or Access(studio.users, alone=all(map(is_loopback, names)))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with studio.web_presence():
            yield

    app = FastAPI(title="Tessera", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    @app.get("/health")
    def health(response: Response) -> dict[str, str]:
        """200 when the database answers, 503 otherwise; why is told to those only who may know."""
        state = studio.health()
        response.status_code = 200 if state["database"] == "ok" else 503
        return {"database": "does not answer"} if state["database"] != "ok" and access.strangers() else state

    sign_in.add_routes(app, access)
    api.add_routes(app, studio)
    mount(app, studio, shell.blocks(studio, access), access)
    app.add_middleware(Doors)
    app.add_middleware(sign_in.SignIn, access=access)
    app.add_middleware(LocalOnly, hosts=tuple(names))  # outermost: the last one added
    return app


def mount(app: FastAPI, studio: Studio, pages: gr.Blocks, access: Access | None = None) -> None:
    """Put the pages at the root; Gradio itself asks for the session once more before every event and file."""
    first_paint.install()
    intake.install()
    app.add_middleware(Kept)
    app.add_middleware(intake.Intake)
    with warnings.catch_warnings():  # it says that rendering on the server is off, which is what was asked for
        warnings.filterwarnings("ignore", message="SSR mode")
        gr.mount_gradio_app(
            app,
            pages,
            path="/",
            theme=theme.theme(),
            css=theme.css(),
            head=theme.head(),
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            max_file_size=intake.LARGEST,
            blocked_paths=private_folders(studio),
            show_error=False,
            auth_dependency=None if access is None else sign_in.require(access),
        )
    sessions.install(app, pages)


def private_folders(studio: Studio) -> list[str]:
    """What no address may name: the home, the checkout, and the folder of the process, which Gradio would hand out."""
    here = Path.cwd()
    kept = Path(get_upload_folder()).resolve()
    return [str(folder) for folder in (studio.home.root, PROJECT, here) if not kept.is_relative_to(folder)]


def run(
    studio: Studio,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    password_file: Path | None = None,
    allow_hosts: Sequence[str] = (),
) -> None:
    """Serve until Ctrl-C; the next free port is taken when ``port`` is in use."""
    studio.records.describe()  # what is wrong with the database is said here, not by the server that starts
    first_admin(studio, password_from(password_file))
    require_users(host, allow_hosts, studio.users.any())
    names = (*own_names(host), *(name.lower().strip("[]") for name in allow_hosts))
    listener = listen(host, port)
    chosen = listener.getsockname()[1]
    if port and chosen != port:
        print(f"Port {port} is in use; taking {chosen}.", file=sys.stderr)
    with uploads.own_folder():
        app = build(studio, names=names)
        print(f"The studio is at {address(host, chosen)} (home: {studio.home.root}). Ctrl-C ends it.", flush=True)
        if studio.users.any():
            print(f"It asks for name and password and answers to {', '.join(names)}.", file=sys.stderr, flush=True)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3, server_header=False)
        with suppress(KeyboardInterrupt):  # raised again after the orderly end that it asked for
            uvicorn.Server(config).run(sockets=[listener])


def first_admin(studio: Studio, password: str | None) -> None:
    """Make the user ``admin`` of a home without users; one that has some keeps theirs."""
    if password is None:
        return
    if studio.users.any():
        print("The home has users already: the password that was given is not used.", file=sys.stderr)
        return
    studio.users.add("admin", "admin", password)
    print("The first user is admin, with the password that was given.", file=sys.stderr)


def address(host: str, port: int) -> str:
    """Where a browser finds the studio; for all addresses at once, the machine's name."""
    host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host.strip("[]"), host.strip("[]"))
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on ``port`` or one of the next free ones; 0 lets the system choose."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, min(port + PORTS_TRIED, 65536)) if port else (0,):
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, else asyncio leaves Nagle on
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host.strip("[]"), candidate))
            listener.listen(128)
            return listener
        except OSError:
            listener.close()
    raise ConfigurationError(
        f"No port from {port} to {port + PORTS_TRIED - 1} is free on {host}.", "Name another with --port."
    )
