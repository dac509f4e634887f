"""Where things lie on disk: the studio's home folder and the folder of one run."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from core.errors import NotFoundError

PROJECT = Path(__file__).resolve().parent.parent
ASSETS = PROJECT / "assets"
BUNDLED_BASE_FOLDER = ASSETS / "base"
RESERVE = 2**28  # bytes of the disk that uploads leave to runs and the database


def default_home() -> Path:
    return Path(os.environ.get("TESSERA_HOME") or "~/.tessera").expanduser()


def data_roots() -> list[Path]:
    """Folders below which pages may read files that somebody names: ``TESSERA_DATA``, else one's own folder."""
    given = [part for part in os.environ.get("TESSERA_DATA", "").split(os.pathsep) if part]
    return [Path(part).expanduser() for part in given] or [Path.home()]


@dataclass(frozen=True)
class Home:
    """``tessera.db``, ``datasets/``, ``runs/``, ``cache/`` and ``dispatcher/`` below one folder."""

    root: Path

    @classmethod
    def open(cls, root: str | Path | None = None) -> Home:
        home = cls(Path(root).expanduser().resolve() if root else default_home().resolve())
        if not home.root.exists():
            home.root.mkdir(mode=0o700, parents=True)  # a home that exists keeps the rights that it was given
        for folder in (home.datasets, home.runs, home.cache, home.dispatcher):
            folder.mkdir(parents=True, exist_ok=True)
        return home

    @property
    def database_url(self) -> str:
        return os.environ.get("TESSERA_DATABASE_URL") or f"sqlite:///{self.root / 'tessera.db'}"

    @property
    def datasets(self) -> Path:
        return self.root / "datasets"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def dispatcher(self) -> Path:
        return self.root / "dispatcher"

    @property
    def inference(self) -> Path:
        """One folder for each inference worker: its socket, its lock, its log."""
        return self.root / "inference"

    @property
    def last_run(self) -> int:
        """The highest number of a run's folder; 0 without any."""
        names = (path.name.removeprefix("run-") for path in self.runs.glob("run-*"))
        return max((int(name) for name in names if name.isdecimal() and len(name) < 10), default=0)

    def run(self, run_id: str) -> RunFolder:
        """The folder of a run by its id; NotFoundError for what is a path, so that no name leads out of the home."""
        if run_id != Path(run_id).name or run_id == "..":
            raise NotFoundError(f"{run_id[:80]!r} is not the id of a run.", "Ids look like run-12.")
        return RunFolder(self.runs / run_id)


@dataclass(frozen=True)
class RunFolder:
    """Everything that one run leaves behind; can be copied to another machine and imported there."""

    root: Path

    @property
    def spec(self) -> Path:
        """The resolved ``RunSpec`` as JSON."""
        return self.root / "spec.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def adapter(self) -> Path:
        """The trained adapter, as PEFT saves one."""
        return self.root / "adapter"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def routing(self) -> Path:
        """Routing snapshots, one ``.npz`` each, named by the events."""
        return self.root / "routing"

    @property
    def predictions(self) -> Path:
        """Per-sample predictions, one JSON-lines file for each score."""
        return self.root / "predictions"

    @property
    def jobs(self) -> Path:
        """One JSON file for each job: what the worker is to do."""
        return self.root / "jobs"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def create(self) -> RunFolder:
        for folder in (self.root, self.jobs, self.logs, self.routing, self.predictions, self.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
        return self


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Write a whole file or nothing: a temporary file beside it, flushed to disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """As ``whole``, in UTF-8."""
    with whole(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
