"""Data files to a studio elsewhere, and what it makes from there: in pieces, so that a broken connection costs one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from core import archives
from core.data.hub_sets import PREFIX, parse_hub
from core.data.metadata import FILE
from core.data.sources import is_data_file
from core.errors import ConfigurationError, DataError, NotFoundError, StudioError
from core.received import LARGEST
from core.remote_line import Line, LostError
from core.units import GIB, MIB

PIECE = 8 * MIB  # bytes
SAID = 64 * MIB  # bytes between two words on how far it is
TRIES = 8  # in a row without a byte more
LEVELS = 3  # of folders, as they are read


class Sending:
    """Files as a studio elsewhere finds them: enter it for the names to give to ``upload`` or ``preview``."""

    def __init__(self, line: Line, source: str | Path | Sequence[str | Path]) -> None:
        self._line = line
        self._given = [source] if isinstance(source, str | Path) else list(source)
        self._parcel: str | None = None

    def __enter__(self) -> list[str]:
        hub = _hub(self._given)
        if hub is not None:
            return [hub]
        files, sources = layout([Path(one).expanduser() for one in self._given])
        self._parcel = self._line.ask("POST", "files", again=False)["parcel"]
        for name, path in files.items():
            _send(self._line, f"{self._parcel}/{name}", path)
        return [f"{self._parcel}/{name}" for name in sources]

    def __exit__(self, *_: object) -> None:
        if self._parcel is not None:
            with suppress(StudioError):  # it is forgotten by itself after a day
                self._line.ask("DELETE", f"files/{self._parcel}", again=True)


def _hub(given: Sequence[str | Path]) -> str | None:
    found = parse_hub(given[0]) if len(given) == 1 else None
    return None if found is None else f"{PREFIX}{found}"


def layout(sources: Sequence[Path]) -> tuple[dict[str, Path], list[str]]:
    """Name -> file of all that is sent, and the names of the sources themselves.

    Each keeps the name of the folder that it is in, which may name its task; a ``tasks.json`` beside it goes along.
    """
    files: dict[str, Path] = {}
    rooms: dict[Path, str] = {}
    named = []
    for source in sources:
        if not source.exists():
            raise NotFoundError(f"There is no file or folder {source}.", "Check the path on this machine.")
        whole = source.resolve()
        folder = whole if whole.is_dir() else whole.parent
        plain = folder.name.lstrip(".") or "files"
        another = folder not in rooms and plain in rooms.values()  # a second folder of that name
        room = rooms.setdefault(folder, f"{len(rooms) + 1}/{plain}" if another else plain)
        if whole.is_dir():
            files |= {f"{room}/{path.relative_to(whole).as_posix()}": path for path in _below(whole)}
            named.append(room)
        else:
            beside = folder / FILE
            files |= {f"{room}/{path.name}": path for path in (whole, beside) if path.is_file()}
            named.append(f"{room}/{whole.name}")
    if not files:
        raise DataError(f"{sources[0]} holds no data files.", "See docs/data.md for the formats.")
    return files, named


def _below(folder: Path) -> list[Path]:
    found = []
    for place, folders, names in os.walk(folder):
        deep = len(Path(place).relative_to(folder).parts)
        folders[:] = [name for name in sorted(folders) if deep < LEVELS - 1 and not name.startswith(".")]
        paths = [Path(place) / name for name in sorted(names)]
        found += [path for path in paths if path.is_file() and (is_data_file(path) or path.name == FILE)]
    return found


def _send(line: Line, name: str, path: Path) -> None:
    """One file, from where the other side has it."""
    size = path.stat().st_size
    if size > LARGEST:
        raise DataError(
            f"{path} has {size / GIB:.1f} GiB; {LARGEST / GIB:g} are taken over HTTP.",
            "Split it, or store it on the studio's own machine with python app.py upload.",
        )
    address, at, failed = f"files/{quote(name)}", 0, 0
    with path.open("rb") as file:
        while at < size or not size:
            file.seek(at)
            try:
                reached = line.ask("PUT", f"{address}?at={at}", again=False, content=file.read(PIECE))["received"]
            except LostError:
                failed += 1
                if failed >= TRIES:
                    raise
                reached = _received(line, address)
            if reached // SAID > at // SAID:
                line.say(f"{path.name}: {reached / MIB:,.0f} of {size / MIB:,.0f} MiB")
            failed, at = failed if reached <= at else 0, reached
            if not size:
                return


def _received(line: Line, address: str) -> int:
    try:
        return line.ask("GET", address, again=True)["received"]
    except NotFoundError:
        return 0


def unpacked(archive: Path, target: Path) -> Path:
    """The one folder of a zip as ``target``; names that lead out of it are refused."""
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise ConfigurationError(f"{target} exists and is not empty.", "Name a folder that does not exist yet.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tessera-") as room:
        archives.unpack(archive, Path(room))
        folder, *more = [*Path(room).iterdir(), None]
        if folder is None or more != [None] or not folder.is_dir():
            raise DataError("What the studio sent is not one folder in a zip.", "Check --url (TESSERA_URL).")
        if target.is_dir():
            target.rmdir()
        shutil.move(folder, target)
    return target.resolve()
