"""Writes ``fixtures/<revision>.sql``: a database of the checkout's newest schema with rows in every table.

    python -m tests.storage.make_fixture

Run it before a revision is added: what was made by the code of its time is what later code has to read. A column that
a revision does not know is left out, and a table without rows here is refused.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert

from storage import Database
from storage.models import Base

BEGAN = datetime(2026, 3, 1, 9, tzinfo=UTC)
STEPS = np.arange(1, 41)


def at(minutes: float) -> datetime:
    return BEGAN + timedelta(minutes=minutes)


def spec(name: str, seed: int) -> dict[str, Any]:
    return {
        "name": name,
        "model": {"base": "tessera-base", "revision": None, "dtype": "auto", "quantization": "none"},
        "tasks": [{"dataset": "d" * 16, "task": "topic", "max_new_tokens": 4}],
        "method": {"name": "mosld", "options": {"rank": 4}, "cells": []},
        "train": {"steps": 40, "epochs": 1.0, "batch_size": 4, "gradient_accumulation": 1, "learning_rate": 0.001,
                  "schedule": "cosine", "checkpoint_every": 5},
        "evaluation": {"split": "test", "base": True, "batch_size": 8},
        "seed": seed, "device": "cpu", "tags": ["old"], "notes": "",
    }  # fmt: skip


def run(number: int, name: str, state: str, **more: Any) -> dict[str, Any]:
    slug = f"run-{number}"
    return {
        "id": number, "slug": slug, "folder": slug, "name": name, "spec": spec(name, number), "method": "mosld",
        "base": "tessera-base", "tasks": ["topic"], "seed": number, "setting_hash": "0123456789abcdef", "state": state,
        "created": at(number), "notes": "noted", "events_offset": 0, "owner": "admin", **more,
    }  # fmt: skip


def job(number: int, owner: int, name: str, state: str, **more: Any) -> dict[str, Any]:
    arguments = {"steps": 12} if state in ("running", "queued") else {}
    return {
        "id": number, "run_id": owner, "name": name, "kind": name.partition("-")[0], "state": state, "priority": 0,
        "position": number, "arguments": arguments, "device": "cpu", "submitted": at(1), "resume": False,
        "lost_attempts": 0, **more,
    }  # fmt: skip


ROWS: dict[str, list[dict[str, Any]]] = {
    "datasets": [{"id": "d" * 16, "name": "reviews", "source": "reviews.csv", "created": at(0), "counts": {"train": 8},
                  "tasks": {"topic": {"kind": "classification"}}, "info": {"notes": []}}],
    "users": [{"id": 1, "name": "admin", "role": "admin", "password": "$argon2id$old", "stamp": "s" * 16,
               "created": at(0)}],
    "api_tokens": [{"id": 1, "user_id": 1, "label": "laptop", "hash": "f" * 64, "created": at(1)}],
    "user_sessions": [{"hash": "e" * 64, "user_id": 1, "stamp": "s" * 16, "began": at(1), "acted": at(2)}],
    "runs": [
        run(1, "first", "done", started=at(2), finished=at(8), trainable_parameters=1000, total_parameters=9000,
            memory_estimate=2**30, memory_peak=2**29, request_id="click-1"),
        run(2, "unfinished", "running", started=at(9), parent_id=1, lineage="clone"),
        run(3, "waiting", "queued"),
    ],
    "run_tags": [{"run_id": 1, "tag": "old"}],
    "run_datasets": [{"run_id": 1, "dataset_id": "d" * 16}],
    "jobs": [
        job(1, 1, "train", "done", started=at(2), finished=at(8), step=40, total=40, phase="scoring"),
        job(2, 2, "train", "running", started=at(9), step=5, total=12, phase="training", seconds_left=60.0),
        job(3, 2, "score", "queued"),
        job(4, 3, "train", "queued"),
        job(5, 1, "score", "failed", failure="data", message="A row is empty.", hint="Fill it.", tail="line"),
    ],
    "job_needs": [{"job_id": 3, "needs_id": 2}],
    "attempts": [
        {"id": 1, "job_id": 1, "number": 1, "outcome": "done", "token": "a" * 32, "device": "cpu", "host": "here",
         "created": at(2), "started": at(2), "ended": at(8), "exit_code": 0, "last_seq": 90, "resumed_from": 0,
         "checkpoint_step": 40, "versions": {"torch": "2.11"}, "said": "done"},
        {"id": 2, "job_id": 2, "number": 1, "token": "b" * 32, "device": "cpu", "host": "here", "boot": "before",
         "pid": 4242, "process_start": 77.0, "created": at(9), "started": at(9), "heartbeat": at(10), "last_seq": 9,
         "resumed_from": 0, "checkpoint_step": 5},
    ],
    "leases": [{"job_id": 2, "device": "cpu", "share": 1.0, "since": at(9)}],
    "device_holds": [{"holder": "w", "device": "cuda:7", "title": "chat", "pid": 4243, "process_start": 78.0,
                      "boot": "before", "since": at(9)}],
    "series": [{"id": 1, "run_id": 1, "job_id": 1, "name": "loss", "count": 40, "last_step": 40, "last_value": 0.25}],
    "series_chunks": [{"series_id": 1, "first_step": 1, "last_step": 40, "count": 40,
                       "steps": STEPS.astype("<i4").tobytes(), "values": (10 / STEPS).astype("<f4").tobytes()}],
    "routing_snapshots": [{"id": 1, "run_id": 1, "job_id": 1, "moment": "end", "step": 40, "split": "test",
                           "file": "end.npz", "axes": {"tasks": ["topic"]}, "created": at(7)}],
    "routing_arrays": [{"snapshot_id": 1, "name": "mean_gate", "shape": [1, 4],
                        "data": np.full((1, 4), 0.25, "<f4").tobytes()}],
    "scores": [{"id": 1, "run_id": 1, "job_id": 1, "task": "topic", "dataset": "d" * 16, "split": "test",
                "model": "adapter", "metric": "accuracy", "value": 0.75, "stderr": 0.05, "rows": 80, "primary": True,
                "chance": 0.25, "key": "k", "predictions": "topic.jsonl", "extras": {}, "created": at(8)}],
    "run_tables": [{"id": 1, "run_id": 1, "job_id": 1, "name": "sweep", "step": 0, "columns": ["noise", "score"],
                    "rows": [[0.1, 0.7]]}],
    "log_lines": [
        {"id": 1, "run_id": 1, "job_id": 1, "attempt": 1, "at": at(3), "level": "info", "message": "It began."},
        {"id": 2, "run_id": 1, "job_id": 1, "attempt": 1, "at": at(4), "level": "warning", "name": "diverged",
         "step": 4, "message": "The loss is high."},
    ],
    "settings": [{"key": "dispatcher", "value": {"value": {"pid": 1}}, "changed": at(5)}],
    "studies": [{"id": 1, "name": "ranks", "notes": "why", "created": at(6)}],
    "study_runs": [{"study_id": 1, "run_id": 1}],
    "conversations": [{"id": 1, "title": "Hello", "models": ["run-1", "base"], "system": "", "settings": {},
                       "created": at(20), "changed": at(21), "owner": "admin"}],
    "messages": [
        {"id": 1, "conversation_id": 1, "text": "Hello?", "settings": {}, "created": at(20)},
        {"id": 2, "conversation_id": 1, "question_id": 1, "model": "run-1", "text": "Hello.", "tokens": 3,
         "seconds": 0.5, "ended": "stop", "settings": {}, "created": at(21)},
    ],
}  # fmt: skip


def write(folder: Path) -> Path:
    """Fill a fresh database of the newest schema; returns the SQL file that makes it again."""
    with tempfile.TemporaryDirectory() as room:
        path = Path(room) / "tessera.db"
        with Database(f"sqlite:///{path}") as database, database.write() as session:
            for table in Base.metadata.sorted_tables:
                rows = [{name: row[name] for name in row if name in table.c} for row in ROWS[table.name]]
                for row in rows:
                    session.execute(insert(table).values(row))
        with closing(sqlite3.connect(path)) as connection:
            (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            target = folder / f"{revision}.sql"
            target.write_text("\n".join(connection.iterdump()) + "\n", "utf-8")
    return target


if __name__ == "__main__":
    print(write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("fixtures")))
