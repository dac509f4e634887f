"""Whose a file in Gradio's folder is, and whose an open tab: told while the process lives, unknown after a restart."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from core.access import LOCAL, Actor, acting

KEPT = 50_000


class Files:
    """Uploads and files made for a download. Equal uploads of several people are one file, which is all of theirs."""

    def __init__(self) -> None:
        self._of: OrderedDict[Path, set[str | None]] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, path: str | Path, actor: Actor | None = None) -> None:
        """This file, or everything in this folder, is the actor's."""
        with self._lock:
            self._of.setdefault(Path(path).resolve(), set()).add((actor or acting()).name)
            while len(self._of) > KEPT:
                self._of.popitem(last=False)

    def may(self, path: str | Path, actor: Actor | None = None) -> bool:
        """Whether the actor uploaded the file or was handed it; whoever owns the machine may have any."""
        actor = actor or acting()
        whole = Path(path).resolve()
        return actor == LOCAL or any(actor.name in self._of.get(one, ()) for one in (whole, *whole.parents))


class Tabs:
    """Open pages by the name that Gradio gives each; the first who uses one has it."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, str | None] = OrderedDict()
        self._lock = threading.Lock()

    def theirs(self, tab: str, actor: Actor) -> bool:
        """Whether a tab is the actor's, who has it from now on if nobody had; nobody has one without a name."""
        if actor == LOCAL or not tab:
            return actor == LOCAL
        with self._lock:
            owner = self._of.setdefault(tab, actor.name)
            self._of.move_to_end(tab)
            while len(self._of) > KEPT:
                self._of.popitem(last=False)
        return owner == actor.name


FILES = Files()
TABS = Tabs()
