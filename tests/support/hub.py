"""A stand-in for the Hugging Face Hub: a small HTTP server that hands out local folders as repositories.

It answers what ``huggingface_hub`` asks for reading: repository info, file tree, paths info, refs, and ``resolve`` with
HEAD, GET and byte ranges. There is one revision, ``main``, whose commit hash is made from the files.

    with LocalHub({"dataset:org/name": folder, "model:org/tiny": other}, gated={"model:org/tiny"}) as hub:
        subprocess.run(..., env=os.environ | hub.environment(tmp_path / "cache"))
"""

from __future__ import annotations

import hashlib
import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class LocalHub:
    """Serves ``repos`` (``model:org/name`` or ``dataset:org/name`` -> folder) on a free local port.

    Files of ``gated`` repositories need ``token``: 401 without any token, 403 with another one. Every request is
    kept in ``requests`` as (method, path).
    """

    def __init__(self, repos: dict[str, Path], gated: set[str] | None = None, token: str = "hf_local") -> None:
        self.repos = {key: Path(folder) for key, folder in repos.items()}
        self.gated, self.token = set(gated or ()), token
        self.requests: list[tuple[str, str]] = []

    def __enter__(self) -> LocalHub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def environment(self, cache: Path, token: str | None = None) -> dict[str, str]:
        """Environment variables that point a process at this Hub, with a cache of its own."""
        variables = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_CACHE": str(Path(cache) / "hub"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "HF_TOKEN": token or "",
        }
        return variables

    def commit(self, key: str) -> str:
        """The 40 hex digits of a repository's only commit."""
        digest = hashlib.sha1(key.encode())
        for path in self.files(key):
            digest.update(path.encode() + (self.repos[key] / path).read_bytes())
        return digest.hexdigest()

    def files(self, key: str) -> list[str]:
        root = self.repos[key]
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve(body=True)

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_POST(self) -> None:
        self._sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._serve(body=True)

    def log_message(self, *_: object) -> None:
        """Keep the test output quiet; ``LocalHub.requests`` has the requests."""

    def _serve(self, body: bool) -> None:
        self._body = body
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append((self.command, path))
        parts = path.split("/")
        if parts[0] == "api" and len(parts) >= 4 and parts[1] in ("models", "datasets"):
            self._api(f"{parts[1][:-1]}:{parts[2]}/{parts[3]}", parts[4:])
        elif parts[0] == "datasets" and len(parts) >= 6 and parts[3] in ("resolve", "raw"):
            self._file(f"dataset:{parts[1]}/{parts[2]}", parts[4], "/".join(parts[5:]))
        elif len(parts) >= 5 and parts[2] in ("resolve", "raw"):
            self._file(f"model:{parts[0]}/{parts[1]}", parts[3], "/".join(parts[4:]))
        else:
            self._error(HTTPStatus.NOT_FOUND, "", "Not found")

    def _api(self, key: str, rest: list[str]) -> None:
        if not self._known(key):
            return
        commit = self.hub.commit(key)
        match rest:
            case [] | ["revision", *_] if not rest or self._revision(key, rest[1]):
                self._json(self._info(key, commit))
            case ["tree", revision, *folder] if self._revision(key, revision):
                self._json(self._tree(key, "/".join(folder)))
            case ["paths-info", revision] if self._revision(key, revision):
                wanted = set(self._wanted())
                self._json([entry for entry in self._tree(key, "") if entry["path"] in wanted])
            case ["refs"]:
                branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit}
                self._json({"branches": [branch], "converts": [], "tags": []})
            case ["revision" | "tree" | "paths-info", *_]:
                return  # the refusal is sent already
            case _:
                self._error(HTTPStatus.NOT_FOUND, "", "Not found")

    def _info(self, key: str, commit: str) -> dict[str, Any]:
        siblings = [{"rfilename": name} for name in self.hub.files(key)]
        return {
            "_id": commit[:24],
            "id": key.split(":", 1)[1],
            "sha": commit,
            "private": False,
            "gated": "manual" if key in self.hub.gated else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
        }

    def _tree(self, key: str, folder: str) -> list[dict[str, Any]]:
        entries = []
        for name in self.hub.files(key):
            if not folder or name.startswith(folder + "/"):
                content = (self.hub.repos[key] / name).read_bytes()
                entries.append({"type": "file", "path": name, "size": len(content), "oid": _etag(content)})
        return entries

    def _wanted(self) -> list[str]:
        text = getattr(self, "_sent", b"").decode()
        if "json" in (self.headers.get("Content-Type") or ""):
            paths = json.loads(text)["paths"]
            return [paths] if isinstance(paths, str) else paths
        return parse_qs(text).get("paths", [])

    def _file(self, key: str, revision: str, name: str) -> None:
        if not (self._known(key) and self._revision(key, revision) and self._allowed(key)):
            return
        if name not in self.hub.files(key):
            self._error(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{name} does not exist")
            return
        content = (self.hub.repos[key] / name).read_bytes()
        headers = {
            "ETag": f'"{_etag(content)}"',
            "X-Repo-Commit": self.hub.commit(key),
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes=") and content:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first or 0), int(last or len(content) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            self._send(HTTPStatus.PARTIAL_CONTENT, content[start:stop], headers)
        else:
            self._send(HTTPStatus.OK, content, headers)

    def _known(self, key: str) -> bool:
        if key in self.hub.repos:
            return True
        self._error(HTTPStatus.NOT_FOUND, "RepoNotFound", "Repository not found")
        return False

    def _revision(self, key: str, revision: str) -> bool:
        if revision in ("main", "refs/heads/main", self.hub.commit(key)):
            return True
        self._error(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")
        return False

    def _allowed(self, key: str) -> bool:
        given = self.headers.get("Authorization", "").removeprefix("Bearer").strip()
        if key not in self.hub.gated or given == self.hub.token:
            return True
        status = HTTPStatus.FORBIDDEN if given else HTTPStatus.UNAUTHORIZED
        self._error(status, "GatedRepo", f"Access to {key.split(':', 1)[1]} is restricted")
        return False

    def _json(self, value: Any) -> None:
        self._send(HTTPStatus.OK, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: HTTPStatus, code: str, message: str) -> None:
        headers = {"X-Error-Message": message, "Content-Type": "application/json"}
        if code:
            headers["X-Error-Code"] = code
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: HTTPStatus, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self._body:
            self.wfile.write(content)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
