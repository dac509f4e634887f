"""A studio elsewhere, with the methods of ``Studio`` and the same kinds of answers.

What it cannot do is refused in a sentence: whatever needs the files or the processes of the other machine.
"""

from __future__ import annotations

import inspect
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import follow, overrides
from core.calls import CALLS, Call
from core.errors import ConfigurationError, NotFoundError
from core.overrides import Changes
from core.remote_files import Sending, unpacked
from core.remote_line import Line, Say, to_stderr
from core.room import explained
from core.schema import RunSpec
from core.studio import Sources, Studio
from core.wire import decode, dumps

if TYPE_CHECKING:
    from core.data.preview import Preview
    from core.planning import Plan
    from core.preflight import Preflight
    from core.routing.snapshot import RoutingSnapshot

FOLLOWING = 900.0  # seconds that a follower waits for a studio that went away


class RemoteStudio:
    """The studio at ``url``, asked as the user of ``token``."""

    def __init__(self, url: str, token: str | None = None, *, insecure: bool = False, say: Say = to_stderr) -> None:
        self._line = Line(url, token, insecure=insecure, say=say)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Studio, name):
            raise AttributeError(name)
        if name not in CALLS or CALLS[name].file:
            raise ConfigurationError(
                f"A studio elsewhere does not do this ({name}).", "Do it on the machine of the studio."
            )
        return partial(self._call, name)

    def _call(self, name: str, /, *values: Any, **given: Any) -> Any:
        """Ask for a call of the table; arguments as the method of ``Studio`` takes them."""
        bound = inspect.signature(getattr(Studio, name)).bind(self, *values, **given)
        arguments = {key: value for key, value in bound.arguments.items() if key != "self"}
        for rest in [key for key in ("options", "chosen") if key in arguments]:
            arguments |= arguments.pop(rest)
        return self._ask(CALLS[name], {key: value for key, value in arguments.items() if value is not None})

    def _ask(self, call: Call, arguments: dict[str, Any], again: bool = False) -> Any:
        sent = {"params": arguments} if call.verb == "GET" else {"content": dumps(arguments)}
        answer = self._line.ask(call.verb, call.name, again=again or call.kind != "change", slow=call.slow, **sent)
        return answer if call.returns is None or answer is None else decode(call.returns, answer)

    # Data sets

    def upload(self, source: Sources, **options: Any) -> dict[str, Any]:
        """Send files of this machine and store them there; or have a Hub data set stored."""
        with Sending(self._line, source) as sent:
            return self._call("upload", sent, **_by_name(options))

    def preview(self, source: Sources, **options: Any) -> Preview:
        with Sending(self._line, source) as sent:
            return self._call("preview", sent, **_by_name(options))

    # Runs

    def read_spec(self, source: str | Path, *, changes: Changes = None, seeds: str | None = None) -> list[RunSpec]:
        """A file of this machine, or YAML text."""
        from core import planning

        return planning.read_spec(source, overrides.given(changes), seeds)

    def check(self, spec: RunSpec) -> Plan:
        return self._call("check", self._stored(spec))

    def preflight(self, spec: RunSpec | str) -> Preflight:
        return self._call("preflight", self._stored(spec))

    def submit(
        self, spec: RunSpec | str, *, request_id: str | None = None, priority: int = 0, parent: str | None = None
    ) -> str:
        """Queue a run; files of this machine that it names are stored first. Asked twice it is queued once."""
        given = {"spec": self._stored(spec), "priority": priority, "parent": parent}
        return self._ask(CALLS["submit"], given | {"request_id": request_id or uuid.uuid4().hex}, again=True)

    def fuse(self, runs: list[str], *, request_id: str | None = None, **options: Any) -> str:
        """As ``Studio.fuse``; asked twice it is queued once."""
        changes = {"changes": overrides.given(options.pop("changes", None))}
        given = {"runs": list(runs), **changes, **options, "request_id": request_id or uuid.uuid4().hex}
        return self._ask(CALLS["fuse"], given, again=True)

    def train_here(self, *_: Any, **__: Any) -> Path:
        raise ConfigurationError(
            "--here trains in this process, which is not the studio elsewhere.", "Leave out --here, or --url."
        )

    def follow(self, run: str, *, job: str | None = None) -> Iterator[str]:
        """Lines as the run says them; goes on where it was when the studio comes back after a restart."""
        with self._line.patient(FOLLOWING):
            yield from follow.lines(self, self.run(run)["id"], job, tend=False)

    def dispatcher(self, action: str = "status") -> dict[str, Any]:
        if action != "status":
            raise ConfigurationError(
                "The dispatcher is started and stopped on the machine of the studio.", "It starts with the next run."
            )
        return self._call("dispatcher")

    # What is taken along

    def routing(self, run: str, moment: str = "end") -> RoutingSnapshot:
        from core.routing.snapshot import RoutingSnapshot

        with tempfile.TemporaryDirectory() as room:
            target = Path(room) / "routing.npz"
            return RoutingSnapshot.load(self._line.fetch("routing", target, params={"run": run, "moment": moment}))

    def routing_files(self, run: str, moment: str = "end", **wanted: Any) -> list[Path]:
        """Written on this machine."""
        from core import results

        wanted = {name: value for name, value in wanted.items() if value is not None}
        if not {"html", "png", "csv"} & set(wanted):
            return []
        return results.write_routing(self.routing(run, moment), self.run(run)["name"], **wanted)

    def export(self, run: str, target: str | Path) -> Path:
        """The adapter's folder, written on this machine."""
        target = Path(target).expanduser()
        if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
            raise ConfigurationError(f"{target} exists and is not empty.", "Name a folder that does not exist yet.")
        with explained(), tempfile.TemporaryDirectory() as room:
            return unpacked(self._line.fetch("export", Path(room) / "adapter.zip", params={"run": run}), target)

    def close(self) -> None:
        self._line.close()

    def _stored(self, spec: RunSpec | str) -> RunSpec:
        """The run with files of this machine stored there, where no data set there has that name."""
        spec = RunSpec.from_yaml(spec) if isinstance(spec, str) else spec
        tasks = []
        for task in spec.tasks:
            path = Path(task.dataset).expanduser()
            if path.exists():
                with suppress(NotFoundError):
                    tasks.append(task.model_copy(update={"dataset": self.dataset(task.dataset)["id"]}))
                    continue
                task = task.model_copy(update={"dataset": self.upload(path)["id"]})
            tasks.append(task)
        return spec.model_copy(update={"tasks": tasks})


def _by_name(options: dict[str, Any]) -> dict[str, Any]:
    """Splits of files by the names of these, since their folders stay here."""
    splits = options.get("splits")
    return options | ({"splits": {Path(name).name: split for name, split in splits.items()}} if splits else {})
