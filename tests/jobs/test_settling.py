from pathlib import Path
from typing import Any

import pytest

from core.jobs.settling import judge, read_tail
from storage.queries.attempts import LastWords


def words(**known: Any) -> LastWords:
    return LastWords(
        **{**dict.fromkeys(LastWords.__dataclass_fields__), "cancelling": False, "lost_attempts": 0, **known}
    )


@pytest.mark.parametrize(
    ("known", "exit_code", "state"),
    [
        ({"outcome": "done"}, 0, "done"),
        ({"outcome": "done"}, -9, "done"),
        ({"outcome": "done", "cancelling": True}, 0, "done"),
        ({"cancelling": True}, -9, "cancelled"),
        ({"outcome": "cancelled"}, 3, "cancelled"),
        ({"outcome": "failed", "failure": "data"}, 1, "failed"),
        ({}, 0, "failed"),
        ({}, 1, "failed"),
        ({}, -11, "queued"),
        ({}, None, "queued"),
        ({"lost_attempts": 2}, -9, "failed"),
        ({"lost_attempts": 2, "checkpoint_step": 8, "resumed_from": 4}, -9, "queued"),
        ({"lost_attempts": 2, "checkpoint_step": 4, "resumed_from": 4}, -9, "failed"),
    ],
)
def test_what_an_end_means(known: dict[str, Any], exit_code: int | None, state: str) -> None:
    ending = judge(words(**known), exit_code, "", limit=3)
    assert ending.state == state and ending.resume == (state == "queued")
    if state == "failed":
        assert ending.failure and (known.get("outcome") or ending.hint)


def test_a_shutdown_that_asked_the_worker_to_end_is_no_cancellation() -> None:
    assert judge(words(outcome="cancelled"), None, "", limit=1, rebooted=True).resume
    assert "other than the studio" in (judge(words(outcome="cancelled"), 3, "", limit=1).message or "")


def test_a_full_disk_is_named() -> None:
    tail = "OSError: [Errno 28] No space left on device"
    assert judge(words(), 1, tail, limit=3).message == "The disk is full."
    ended = judge(words(), 1, "OSError: [Errno 30] Read-only file system: 'x'", limit=3)
    assert (ended.failure, ended.message) == ("disk", "The disk can only be read.") and "resume" in ended.hint


def test_only_the_end_of_a_log_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * (50 << 20) + b"\n" + b"".join(b"line %d \xff\0\n" % n for n in range(80)))
    lines = read_tail(path).splitlines()
    assert len(lines) == 50 and lines[-1].startswith("line 79")
    assert read_tail(tmp_path / "none") == ""
