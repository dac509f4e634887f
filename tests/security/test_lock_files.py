"""The lock files agree with the requirements, hold hashes for everything and name no index."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from core.home import PROJECT
from recipes import audit, lock

PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def wanted(name: str) -> list[Requirement]:
    lines = (PROJECT / name).read_text("utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith(("-r", "#"))]


def entries(name: str) -> dict[str, list[tuple[Requirement, list[str]]]]:
    """Package -> its entries: requirement with marker, and hashes."""
    found: dict[str, list[tuple[Requirement, list[str]]]] = {}
    text = (PROJECT / name).read_text("utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line.strip())
            one = Requirement(requirement)
            found.setdefault(canonicalize_name(one.name), []).append((one, hashes))
    return found


LOCKS = {"requirements.txt": "requirements.lock", "requirements-dev.txt": "requirements-dev.lock"}


@pytest.mark.parametrize("name", LOCKS)
@pytest.mark.parametrize("python", PYTHONS)
def test_everything_that_is_required_is_locked_at_a_version_that_fits(name: str, python: str):
    locked = entries(LOCKS[name])
    where = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    for one in wanted(name):
        if lock.LEFT_OUT.match(one.name):
            continue
        found = [entry for entry, _ in locked.get(canonicalize_name(one.name), [])]
        fits = [entry for entry in found if entry.marker is None or entry.marker.evaluate(where)]
        assert len(fits) == 1, f"{one} is not in {LOCKS[name]}: run `make lock`"
        [version] = [spec.version for spec in fits[0].specifier]
        assert one.specifier.contains(Version(version)), f"{fits[0]} does not fit {one}: run `make lock`"


@pytest.mark.parametrize("name", LOCKS.values())
def test_every_entry_is_one_version_with_hashes(name: str):
    for package, found in entries(name).items():
        assert not lock.LEFT_OUT.match(package), f"{package} depends on the machine"
        for one, hashes in found:
            assert [spec.operator for spec in one.specifier] == ["=="] and one.url is None
            assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), package


@pytest.mark.parametrize("name", LOCKS.values())
def test_no_index_stands_in_a_lock_file(name: str):
    text = (PROJECT / name).read_text("utf-8")
    assert "://" not in text and not re.search(r"^\s*--(?!hash)", text, re.M)


def answers(monkeypatch, *given: dict[str, object] | None) -> None:
    """pip-audit answers with these, one after the other; None: no source of advisories."""
    waiting = list(given)

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        told = waiting.pop(0)
        if told is not None:
            Path(command[command.index("--output") + 1]).write_text(json.dumps(told))
        return subprocess.CompletedProcess(command, 1, "", "ConnectionError: no route")

    monkeypatch.setattr(audit.subprocess, "run", run)


def test_the_audit_fails_on_a_known_advisory_alone(monkeypatch, capsys):
    clean = {"dependencies": [{"name": "a", "version": "1", "vulns": []}]}
    bad = {"dependencies": [{"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1"}]}]}
    answers(monkeypatch, clean, bad)
    assert audit.main() == 1 and "b 2: PYSEC-1" in capsys.readouterr().out
    answers(monkeypatch, None, clean)
    assert audit.main() == 0 and "was not audited: no source" in capsys.readouterr().out
