"""Archives: what the studio unpacks is bounded and plain; where it unpacks nothing it says what to do."""

from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from core import archives
from core.data import textfile
from core.data.upload import preview
from core.errors import DataError, StudioError
from core.routing import snapshot


def zipped(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes], level: int = zipfile.ZIP_DEFLATED) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", level) as archive:
        warnings.simplefilter("ignore")  # of names that stand twice
        for name, content in entries:
            archive.writestr(name, content)
    return path


def special(name: str, kind: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, (kind | 0o644) << 16
    return entry


def lying(path: Path) -> Path:
    """An entry that says it is small and unpacks to more."""
    zipped(path, ("x", b"0" * 100_000))
    content = path.read_bytes().replace(struct.pack("<I", 100_000), struct.pack("<I", 10))
    path.write_bytes(content)
    return path


ZIPS: dict[str, Callable[[Path], Path]] = {
    "traversal": lambda p: zipped(p, ("../x", b"1")),
    "traversal inside": lambda p: zipped(p, ("a/../../x", b"1")),
    "an absolute name": lambda p: zipped(p, ("/etc/x", b"1")),
    "another system's separators": lambda p: zipped(p, ("..\\x", b"1")),
    "a name of nothing": lambda p: zipped(p, ("a//x", b"1")),
    "a very long name": lambda p: zipped(p, ("x" * 300, b"1")),
    "a link": lambda p: zipped(p, (special("x", stat.S_IFLNK), b"/etc/passwd")),
    "a device": lambda p: zipped(p, (special("x", stat.S_IFCHR), b"")),
    "a pipe": lambda p: zipped(p, (special("x", stat.S_IFIFO), b"")),
    "a name twice": lambda p: zipped(p, ("x", b"1"), ("x", b"2")),
    "names that differ in case": lambda p: zipped(p, ("x", b"1"), ("X", b"2")),
    "a file that is a folder too": lambda p: zipped(p, ("x", b"1"), ("x/y", b"2")),
    "a bomb": lambda p: zipped(p, ("x", bytes(80 * 2**20))),
    "more than it says": lying,
    "very many files": lambda p: zipped(p, *((f"x{i}", b"") for i in range(archives.MOST_FILES + 1)), level=0),
    "no zip": lambda p: [p.write_bytes(b"PK\x03\x04 and no more"), p][1],
    "half a zip": lambda p: [zipped(p, ("x", b"1" * 99)), p.write_bytes(p.read_bytes()[:40]), p][2],
}


@pytest.mark.parametrize("what", ZIPS)
def test_a_bad_zip_is_refused_and_writes_nothing_outside(what: str, tmp_path: Path):
    archive, room = ZIPS[what](tmp_path / "a.zip"), tmp_path / "in" / "room"
    room.mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        archives.unpack(archive, room)
    assert caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "in"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["room"]
    assert sum(path.stat().st_size for path in room.rglob("*")) < 2**20


def test_a_good_zip_is_unpacked_and_archives_in_it_stay_packed(tmp_path: Path):
    inner = zipped(tmp_path / "inner.zip", ("deep", b"x")).read_bytes()
    archive = zipped(tmp_path / "a.zip", ("run-1/", b""), ("run-1/spec.json", b"{}"), ("run-1/inner.zip", inner))
    archives.unpack(archive, tmp_path / "room")
    found = sorted(p.relative_to(tmp_path / "room").as_posix() for p in (tmp_path / "room").rglob("*"))
    assert found == ["run-1", "run-1/inner.zip", "run-1/spec.json"]


def tarred(**kinds: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind in kinds.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
    return out.getvalue()


UPLOADS = {
    "rows.zip": b"PK\x03\x04" + bytes(30),
    "rows.csv": b"PK\x03\x04" + bytes(30),
    "rows.xlsx": b"PK\x03\x04" + bytes(30),
    "rows.tar": tarred(x=tarfile.SYMTYPE),
    "rows.tgz": gzip.compress(tarred(x=tarfile.SYMTYPE)),
    "rows.tar.gz": gzip.compress(tarred(x=tarfile.CHRTYPE)),
    "tar.csv": tarred(x=tarfile.FIFOTYPE),
    "tar.csv.gz": gzip.compress(tarred(x=tarfile.LNKTYPE)),
    "twice.csv.gz": gzip.compress(gzip.compress(b"text,label\na,b\n")),
    "rows.csv.bz2": b"BZh91AY&SY",
    "rows.7z": b"7z\xbc\xaf\x27\x1c",
    "cut.csv.gz": gzip.compress(b"text,label\n" + b"a,b\n" * 9999)[:-20],
}


@pytest.mark.parametrize("name", UPLOADS)
def test_an_uploaded_archive_is_refused_with_what_to_do(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(UPLOADS[name])
    with pytest.raises(StudioError) as caught:
        preview(tmp_path / name)
    assert caught.value.hint


@pytest.mark.parametrize("pieces", [1, 64])
def test_a_gzip_bomb_is_stopped_on_its_way(pieces: int, tmp_path: Path, monkeypatch):
    """By ratio and by size, also when it comes as many small members; nothing of it stays on the disk."""
    monkeypatch.setattr(textfile, "RATIO_FREE", 2**20)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    bomb = tmp_path / "bomb.csv.gz"
    bomb.write_bytes(gzip.compress(b"a," * (2**24 // pieces)) * pieces)
    with pytest.raises(DataError, match="unpacks to more than"):
        preview(bomb)
    monkeypatch.setattr(textfile, "LARGEST_RATIO", 10**9)
    monkeypatch.setattr(textfile, "LARGEST_UNPACKED", 2**20)
    with pytest.raises(DataError, match="unpacks to more than"):
        preview(bomb)
    assert sum(path.stat().st_size for path in (tmp_path / "temporary").rglob("*") if path.is_file()) == 0


def test_a_snapshot_of_routing_that_unpacks_to_too_much_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(snapshot, "MOST_BYTES", 2**20)
    path = tmp_path / "routing.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed, packed.open("head.npy", "w") as entry:
        entry.write(bytes(3 * 2**20))
    with pytest.raises(DataError, match="would unpack to 3 MiB"):
        snapshot.RoutingSnapshot.load(path)
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match="no routing snapshot"):
        snapshot.RoutingSnapshot.load(path)
