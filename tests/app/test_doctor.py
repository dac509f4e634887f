from __future__ import annotations

import sys
from pathlib import Path

from core import doctor, hub
from core.errors import NotFoundError
from core.home import Home
from core.studio import Studio


def by_name(findings: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in findings}


def test_a_sound_studio_has_nothing_wrong(studio: Studio, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = by_name(studio.doctor())
    assert {name for name, finding in found.items() if finding.state == "wrong"} == set()
    assert {"Python", "packages", "torch", "machine", "jobs at once", "home", "disk"} <= set(found)
    assert {"database", "dispatcher", "Hub"} <= set(found)
    assert "schema" in found["database"].found
    assert found["Hub"].state == "note" and "HF_HUB_OFFLINE" in found["Hub"].found
    assert "torch" not in sys.modules or "torch" in found  # asked in a child, never imported for the question


def test_packages_are_held_against_the_requirements(tmp_path: Path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("pydantic>=2\npydantic<2  # too old\n\nno-such-package-here>=1\n-r other.txt\n")
    found = doctor.packages(requirements)
    assert found.state == "wrong"
    assert "does not satisfy <2" in found.found and "no-such-package-here is not installed" in found.found
    assert "pip install -r" in found.remedy


def test_a_home_that_cannot_be_written_is_wrong(tmp_path: Path):
    home = Home.open(tmp_path / "home")
    home.root.rename(tmp_path / "elsewhere")
    home.root.write_text("a file where the folder was")
    finding = next(doctor.home_folder(home))
    assert finding.state == "wrong" and "--home" in finding.remedy


def test_a_network_file_system_under_sqlite_is_wrong(tmp_path: Path, monkeypatch):
    home = Home.open(tmp_path / "a b" / "home")
    mounts = tmp_path / "mounts"
    shown = str(tmp_path / "a b").replace(" ", "\\040")
    mounts.write_text(f"disk / ext4 rw 0 0\nserver:/x {shown} nfs4 rw 0 0\n")
    assert doctor.file_system(home.root, mounts) == "nfs4"
    assert doctor.file_system(tmp_path, mounts) == "ext4"
    assert doctor.file_system(tmp_path, tmp_path / "none") is None
    monkeypatch.setattr(doctor, "file_system", lambda folder: "nfs4")
    assert "SQLite" in by_name(list(doctor.home_folder(home)))["file system"].found
    monkeypatch.setenv("TESSERA_DATABASE_URL", "postgresql://host/x")
    assert "file system" not in by_name(list(doctor.home_folder(home)))


def test_what_raises_is_wrong_and_carries_its_hint(tmp_path: Path):
    def broken() -> str:
        raise NotFoundError("The database is away.", "Bring it back.")

    found = by_name(doctor.examine(Home.open(tmp_path), broken, lambda: "fine"))
    assert (found["database"].state, found["database"].remedy) == ("wrong", "Bring it back.")


def test_a_hub_that_does_not_answer_is_not_reachable(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert not hub.reachable(timeout=1.0)
