"""The web process: pages on FastAPI behind the studio's own middleware. Trains nothing and imports no torch."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI, Response

from app.middleware import LocalOnly, require_loopback
from app.pages import overview
from app.ui import theme
from core.errors import ConfigurationError
from core.studio import Studio

STATIC = Path(__file__).resolve().parent / "static"
UPLOAD_LIMIT = "2gb"
PORTS_TRIED = 20


def build(studio: Studio) -> FastAPI:
    """The whole application of one studio, ready for any ASGI server."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with studio.web_presence():
            yield

    app = FastAPI(title="Tessera", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    @app.get("/health")
    def health(response: Response) -> dict[str, str]:
        """200 when the database answers, 503 otherwise."""
        state = studio.health()
        response.status_code = 200 if state["database"] == "ok" else 503
        return state

    gr.mount_gradio_app(
        app,
        pages(studio),
        path="/",
        theme=theme.theme(),
        css=theme.css() + (STATIC / "overview.css").read_text("utf-8"),
        head=theme.head(),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        max_file_size=UPLOAD_LIMIT,
        blocked_paths=[str(Path.cwd()), str(studio.home.root)],
        show_error=False,
    )
    app.add_middleware(LocalOnly)
    return app


def pages(studio: Studio) -> gr.Blocks:
    """All pages; each is built inside its own context by one function."""
    with gr.Blocks(title="Tessera", fill_width=True, analytics_enabled=False) as demo:
        overview.build(studio, demo)
    demo.queue(default_concurrency_limit=20)
    return demo


def run(studio: Studio, *, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve until Ctrl-C; the next free port is taken when ``port`` is in use."""
    require_loopback(host)
    listener = listen(host, port)
    chosen = listener.getsockname()[1]
    if port and chosen != port:
        print(f"Port {port} is in use; taking {chosen}.", file=sys.stderr)
    shown = f"[{host}]" if ":" in host else host
    print(f"The studio is at http://{shown}:{chosen} (home: {studio.home.root}). Ctrl-C ends it.", flush=True)
    config = uvicorn.Config(build(studio), log_level="warning", timeout_graceful_shutdown=3, server_header=False)
    with suppress(KeyboardInterrupt):  # raised again after the orderly end that it asked for
        uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on ``port`` or one of the next free ones; 0 lets the system choose."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, min(port + PORTS_TRIED, 65536)) if port else (0,):
        listener = socket.socket(family, socket.SOCK_STREAM)
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
