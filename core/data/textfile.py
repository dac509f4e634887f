"""Bytes on disk to text: compression, kind of file and encoding, each found out and said."""

from __future__ import annotations

import codecs
import errno
import gzip
import os
import re
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from charset_normalizer import from_bytes

from core.errors import DataError, NotFoundError
from core.room import FULL
from core.texts import printable
from core.units import MIB

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
LARGEST_UNPACKED = 8 * 2**30  # bytes
LARGEST_RATIO = 200  # text rarely packs better than 20 to 1
RATIO_FREE = 64 * MIB  # bytes that any archive may unpack to

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive or an office document", "Unpack it, or save the sheet as CSV."),
    (b"%PDF", "a PDF", "Save its rows as CSV or JSON lines."),
    (b"BZh", "bzip2-compressed", "Unpack it, or compress it with gzip."),
    (b"\xfd7zXZ", "xz-compressed", "Unpack it, or compress it with gzip."),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "Unpack it, or compress it with gzip."),
    (b"ARROW1", "an Arrow file", "Save it as Parquet."),
    (b"SQLite format 3", "an SQLite database", "Export the table as CSV."),
    (b"\xd0\xcf\x11\xe0", "an old office document", "Save the sheet as CSV."),
    (b"PARE", "an encrypted Parquet file", "Save it without encryption."),
    (b"\x1f\x8b", "compressed twice", "Unpack it once yourself."),
    (b"version https://git-lfs", "a pointer of Git LFS to the data", "Fetch the file itself with `git lfs pull`."),
    (b"{\\rtf", "an RTF document", "Save its rows as CSV or JSON lines."),
)
_MARKUP = (  # what texts begin with, after blanks and without case
    (b"<!doctype html", "an HTML page", "Download the file itself: a page of the web was saved in its place."),
    (b"<html", "an HTML page", "Download the file itself: a page of the web was saved in its place."),
    (b"<?xml", "XML", "Save its rows as CSV or JSON lines."),
)
_CHUNK = 1 << 20
_BY_NUMBER = Path("/proc/self/fd")


@dataclass
class SourceFile:
    """A file ready to be read: ``plain`` is the unpacked file, ``name`` what people call it."""

    path: Path
    plain: Path
    name: str
    format: str
    encoding: str = ""
    notes: list[str] = field(default_factory=list)
    share: Callable[[], float] = lambda: 0.0  # of the file that is read, by whoever reads it now

    @contextmanager
    def text(self, newline: str | None = None) -> Iterator[TextIO]:
        """The unpacked file, open for reading."""
        with self.plain.open(encoding=self.encoding, newline=newline) as file:
            size = os.fstat(file.fileno()).st_size
            self.share = lambda: 1.0 if file.closed else file.buffer.tell() / size
            try:
                yield file
            except UnicodeDecodeError as error:
                raise DataError(f"{self.name}: bytes that are not {self.encoding}.", "Save it as UTF-8.") from error


def open_source(path: str | Path) -> SourceFile:
    """Unpack gzip, find format and encoding; refuse what is empty, binary or of another kind."""
    path = Path(path)
    if not path.is_file():
        if path.exists():
            raise DataError(f"{path.name} is no plain file.", "Name a file that holds rows.")
        raise NotFoundError(f"There is no file {path}.", "Check the path; it is read on the machine of the studio.")
    packed = path.suffix.lower() == ".gz"
    kind = FORMATS.get(Path(path.stem).suffix.lower() if packed else path.suffix.lower())
    if kind is None:
        raise DataError(
            f"{path.name}: {''.join(path.suffixes[-2:]) or 'no extension'} is not a supported format.",
            f"Supported are {', '.join(FORMATS)}, each also with .gz.",
        )
    if not path.stat().st_size:
        raise DataError(f"{path.name} is empty.", "Export the file again.")
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if packed and not zipped:
        raise DataError(f"{path.name} ends in .gz but is not gzip-compressed.", "Rename it without .gz.")
    source = SourceFile(path, path, printable(path.name), kind)
    if zipped:
        source.plain = _unpack(source)
        if not packed:
            source.notes.append(f"{path.name} is gzip-compressed although its name does not say so.")
    _refuse_foreign(source)
    if kind != "parquet":
        source.encoding = _encoding(source)
        if source.encoding not in ("utf-8", "utf-8-sig"):
            source.notes.append(f"{path.name} is not UTF-8; it was read as {source.encoding}.")
    return source


def _unpack(source: SourceFile) -> Path:
    """The unpacked file, gone with ``source``, however that ends; refuses what grows out of proportion."""
    handle = tempfile.NamedTemporaryFile(prefix="tessera-", suffix=".unpacked", delete=False)  # noqa: SIM115
    plain = Path(handle.name)
    weakref.finalize(source, _drop, handle)
    if _BY_NUMBER.is_dir():  # a file without a name is gone even when this process is killed
        plain.unlink()
        plain = _BY_NUMBER / str(handle.fileno())
    packed, written = source.path.stat().st_size, 0
    try:
        with gzip.open(source.path) as file:
            while chunk := file.read(_CHUNK):
                written += len(chunk)
                if written > LARGEST_UNPACKED or written > max(RATIO_FREE, LARGEST_RATIO * packed):
                    raise DataError(
                        f"{source.name} unpacks to more than {written // MIB} MiB from {packed} bytes.",
                        "Unpack it yourself and upload the plain file if it is meant to be so large.",
                    )
                handle.write(chunk)
        handle.flush()
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno in (*FULL, errno.EFBIG):
            raise
        raise DataError(
            f"{source.name} is a damaged gzip file: after {written} bytes, {error}.", "Copy it again."
        ) from error
    if not written:
        raise DataError(f"{source.name} is empty once unpacked.", "Export the file again.")
    return plain


def _drop(handle: Any) -> None:
    handle.close()
    Path(handle.name).unlink(missing_ok=True)


def _refuse_foreign(source: SourceFile) -> None:
    with source.plain.open("rb") as file:
        head = file.read(512)
    text = head.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    for magic, what, remedy in (*_FOREIGN, *_MARKUP):
        if head.startswith(magic) or text.startswith(magic):
            raise DataError(f"{source.name} is {what}, not {source.format}.", remedy)
    if (source.format == "parquet") != head.startswith(b"PAR1"):
        if source.format == "parquet":
            raise DataError(
                f"{source.name} is not a Parquet file.", "Name it by what it holds, such as .csv or .jsonl."
            )
        raise DataError(f"{source.name} is a Parquet file, not {source.format}.", "Rename it to end in .parquet.")


def _encoding(source: SourceFile) -> str:
    """The file's encoding: its byte-order mark, UTF-8 where that decodes, else the likeliest."""
    with source.plain.open("rb") as file:
        head = file.read(_CHUNK)
    for mark, name in _BOMS:
        if head.startswith(mark):
            return name
    wide = _wide(head)
    if wide:
        return wide
    found = _not_utf8(source)
    if found is None:
        return "utf-8"
    failure, line = found
    with source.plain.open("rb") as file:
        file.seek(max(0, failure - 4096))
        near = file.read(65536)
    if _mostly_utf8(near):
        raise DataError(
            f"{source.name}, line {line}: a byte that is not UTF-8 (0x{near[min(failure, 4096)]:02x}), though the text "
            "around it is.",
            "Save the whole file as UTF-8; was it cut off, or joined from files of different encodings?",
        )
    best = from_bytes(head[:65536] if failure < 65536 else near).best()
    name = best.encoding if best is not None else "cp1252"
    # Short western texts look alike in many code pages; cp1252 is what spreadsheets write.
    return "cp1252" if _looks_western(near) and not name.startswith(("utf", "big5", "gb", "shift", "euc")) else name


def _looks_western(content: bytes) -> bool:
    """Whether cp1252 gives mostly plain letters with a few accents and typographic signs among them."""
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        return False
    high = [c for c in text if ord(c) > 127]
    letters = sum(c.isalpha() for c in text)
    usual = re.compile(r"[\u00a0-\u00ff\u2013-\u201e\u2020-\u2026\u20ac\u0152\u0153\u0160\u0161\u017d\u017e\u2122]")
    return len(high) < 0.3 * max(letters, 1) and all(usual.match(c) for c in high)


def _wide(head: bytes) -> str:
    """UTF-16 without a mark: every other byte of mostly Latin text is zero, and no other."""
    sample = head[: 4096 if len(head) >= 4096 else len(head) // 2 * 2]
    even, odd = sample[::2], sample[1::2]
    if len(even) < 8:
        return ""
    for zeros, others, name in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if zeros.count(0) > 0.6 * len(zeros) and others.count(0) == 0:
            return name
    return ""


def _mostly_utf8(content: bytes) -> bool:
    """Whether far more signs beyond ASCII are right UTF-8 than are wrong."""
    signs = [sign for sign in content.decode("utf-8", "replace") if ord(sign) > 127]
    wrong = signs.count("\ufffd")
    return len(signs) - wrong > 4 * wrong


def _not_utf8(source: SourceFile) -> tuple[int, int] | None:
    """Offset and line of the first byte that is not UTF-8; refuses NUL bytes."""
    decoder, offset, line = codecs.getincrementaldecoder("utf-8")(), 0, 1
    with source.plain.open("rb") as file:
        while chunk := file.read(_CHUNK):
            if (zero := chunk.find(b"\0")) >= 0:
                raise DataError(
                    f"{source.name}, line {line + chunk.count(10, 0, zero)}: a NUL byte; the file looks binary.",
                    "Save it as UTF-8 text, or name it by its real format.",
                )
            begun = len(decoder.getstate()[0])  # bytes of a sign that the chunk before cut
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                return offset - begun + error.start, line + chunk.count(10, 0, max(0, error.start - begun))
            offset += len(chunk)
            line += chunk.count(b"\n")
    cut = len(decoder.getstate()[0])
    return (offset - cut, line) if cut else None
