"""The one place that unpacks an archive: what a studio elsewhere sends as a download. Nothing else is unpacked."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path, PurePosixPath

from core.errors import DataError
from core.paths import is_name
from core.room import trouble
from core.units import GIB, MIB

MOST_FILES = 10_000
MOST_BYTES = 64 * GIB  # an adapter of all weights of a large base
MOST_RATIO = 200  # of unpacked to packed; what weights and texts reach is a tenth of it
RATIO_FREE = 64 * MIB  # bytes that any archive may unpack to
CHUNK = MIB
REMEDY = "Ask who made it, and look at it before you unpack it by hand."


def unpack(archive: Path, target: Path) -> None:
    """Write the files of a zip below ``target``, which is an empty folder.

    Raises:
        DataError: no zip, or one with names that lead out of its folder, links, special or encrypted files, a name
            twice, too many files, or more bytes than it says or than its size can mean.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = [(entry, _place(entry, archive)) for entry in _bounded(packed, archive)]
            for entry, place in entries:
                if not entry.is_dir():
                    _write(packed, entry, target / place, archive)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError) as error:
        if (disk := trouble(error, "fetch it again")) is not None:
            raise disk from error
        raise DataError(f"{archive.name} is no whole zip archive: {error}.", "Fetch it again.") from error


def _bounded(packed: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    entries = packed.infolist()
    names = {entry.filename.rstrip("/").casefold() for entry in entries}
    size, whole = archive.stat().st_size, sum(entry.file_size for entry in entries)
    if len(entries) > MOST_FILES:
        raise DataError(f"{archive.name} holds {len(entries):,} files.", REMEDY)
    if len(names) < len(entries):
        raise DataError(f"{archive.name} holds two files of one name.", REMEDY)
    if whole > MOST_BYTES or whole > max(RATIO_FREE, MOST_RATIO * size):
        raise DataError(f"{archive.name} would unpack to {whole / MIB:,.0f} MiB from {size:,} bytes.", REMEDY)
    return entries


def _place(entry: zipfile.ZipInfo, archive: Path) -> PurePosixPath:
    """Where an entry goes, below the folder that it is unpacked into."""
    parts = entry.filename.rstrip("/").split("/")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if not all(map(is_name, parts)):
        raise DataError(f"{archive.name} names files outside its folder.", REMEDY)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or entry.flag_bits & 1:
        raise DataError(f"{archive.name} holds a link, a special or an encrypted file ({parts[-1]}).", REMEDY)
    return PurePosixPath(*parts)


def _write(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, archive: Path) -> None:
    """No byte more than the entry says: its size was counted before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with packed.open(entry) as source, path.open("xb") as out:
        while chunk := source.read(CHUNK):
            written += len(chunk)
            if written > entry.file_size:
                raise DataError(f"{archive.name} holds more than it says ({path.name}).", REMEDY)
            out.write(chunk)
