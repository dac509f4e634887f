"""Short keyword-only functions on a session, one module for each noun.

Runs are named by their slug (``run-12``), jobs by their number. Functions that change something need a session of
``Database.write()``.
"""

from storage.queries import attempts, datasets, jobs, logs, routing, runs, scores, series, settings, studies, users

__all__ = [
    "attempts",
    "datasets",
    "jobs",
    "logs",
    "routing",
    "runs",
    "scores",
    "series",
    "settings",
    "studies",
    "users",
]
