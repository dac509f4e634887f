"""A mixture with one of its experts added, replaced or removed, as a run of its own. Imports no torch."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from core import children, transfer
from core.errors import ConfigurationError
from core.home import Home
from core.pipelines import expert_folder

if TYPE_CHECKING:
    from core.records import Records


def change(
    run: str,
    home: Home,
    records: Records,
    *,
    add: str | None,
    replace: str | None,
    remove: str | None,
    name: str | None,
) -> str:
    """Returns the new run's id; the run that it was made from stays. ``add`` and ``replace``: ``TASK=EXPERT``, where
    EXPERT is a run, ``RUN:TASK`` or an adapter folder.

    Raises:
        ConfigurationError: not exactly one change, no such task, or an expert that does not fit.
    """
    wanted = {"add": add, "replace": replace, "remove": remove}
    given = [(verb, value) for verb, value in wanted.items() if value]
    if len(given) != 1:
        raise ConfigurationError("Exactly one change makes a new run.", "Give one of add, replace and remove.")
    verb, value = given[0]
    task, _, expert = value.partition("=")
    if (verb == "remove") == bool(expert):
        form = "TASK" if verb == "remove" else "TASK=EXPERT, for example reviews=run-3"
        raise ConfigurationError(f"{value!r} does not say what to {verb}.", f"Write {form}.")
    row = records.find(run)
    source, _ = expert_folder(row.id, home.runs)
    with tempfile.TemporaryDirectory(dir=home.cache, prefix="experts-") as temporary:
        target = Path(temporary) / "adapter"
        arguments = {"verb": verb, "folder": str(source), "task": task, "target": str(target)}
        if expert:
            folder, part = expert_folder(expert, home.runs)
            arguments |= {"source": str(folder), "part": part}
        children.call("core.adapters.experts", "change_expert", **arguments)
        said = f"{row.id}, {verb} {value}"
        options = {"base": row.base, "name": name or f"{row.name}, {verb} {task}"[:120], "origin": said}
        return transfer.import_adapter(str(target), home, records, **options)
