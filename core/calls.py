"""What a studio does for callers elsewhere: a table of methods of ``Studio``, read by the server and by the client.

A call has the name and the parameters of its method. What is named in a call is stored here already or was sent
before: a caller from elsewhere names no file of this machine (``core.named``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, StringConstraints, create_model

from core import named
from core.schema import Spec
from core.wire import Frame, Row

if TYPE_CHECKING:
    from core.studio import Studio

Kind = Literal["read", "ask", "change"]
Name = Annotated[str, StringConstraints(min_length=1, max_length=300)]
Text = Annotated[str, StringConstraints(max_length=20_000)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Names = Annotated[list[Name], Field(min_length=1, max_length=200)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Bytes = Annotated[int, Field(ge=0, lt=2**53)]
Some = Annotated[int, Field(ge=1, le=1000)]
Points = Annotated[int, Field(ge=2, le=100_000)]
Length = Annotated[int, Field(ge=8, le=2**20)]
Share = Annotated[float, Field(ge=0, le=0.9)]
Priority = Annotated[int, Field(gt=-(2**31), lt=2**31)]
Words = dict[Name, Text | None]
Changes = dict[Name, Any] | list[Text]
Method = Name | dict[str, Any]


@dataclass(frozen=True)
class Checked:
    """A parameter whose value is looked up in the studio that is called: ``check(studio, value, arguments)``."""

    type: Any
    check: Callable[[Studio, Any, Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Call:
    """One method of ``Studio``.

    ``kind``: a *read* looks something up (GET, open to viewers), an *ask* works something out and a *change* changes
    something (both POST, for researchers). ``returns``: what the answer is, where it is not plain data; ``file`` the
    suffix of the file that is sent instead. ``slow``: it may take minutes.
    """

    name: str
    kind: Kind
    types: dict[str, Any] = field(default_factory=dict)
    returns: Any = None
    file: str = ""
    slow: bool = False

    @property
    def verb(self) -> str:
        return "GET" if self.kind == "read" else "POST"

    @cached_property
    def parameters(self) -> type[Spec]:
        """Their model: required where the method has no default."""
        from core.studio import Studio

        known = inspect.signature(getattr(Studio, self.name)).parameters
        needed = [name for name in self.types if name in known and known[name].default is inspect.Parameter.empty]
        kinds = {name: given.type if isinstance(given, Checked) else given for name, given in self.types.items()}
        return create_model(
            self.name, __base__=Spec, **{name: (kind, ... if name in needed else None) for name, kind in kinds.items()}
        )

    def arguments(self, studio: Studio, data: Any) -> dict[str, Any]:
        """Keywords for the method, checked; only those that were given, and null is as good as not given.

        Raises:
            StudioError: with the nearest known name of a parameter that does not exist, or what is wrong with a value.
        """
        if isinstance(data, dict):
            data = {name: value for name, value in data.items() if value is not None}
        found = self.parameters.parse(data).model_dump(exclude_unset=True)
        for name, given in self.types.items():
            if isinstance(given, Checked) and name in found:
                found[name] = given.check(studio, found[name], found)
        return found


def _read(name: str, returns: Any = None, /, *, file: str = "", slow: bool = False, **types: Any) -> Call:
    return Call(name, "read", types, returns, file, slow)


def _ask(name: str, returns: Any = None, /, **types: Any) -> Call:
    return Call(name, "ask", types, returns, slow=True)


def _change(name: str, returns: Any = None, /, *, slow: bool = False, **types: Any) -> Call:
    return Call(name, "change", types, returns, slow=slow)


SPEC = Checked(dict[str, Any] | Text, named.spec)
BASE = Checked(Name, named.base)
MODEL = Checked(Name | dict[str, Any], named.model)
METHOD = Checked(Method, named.method)
METHODS = Checked(Annotated[list[Method], Field(min_length=1, max_length=100)], named.methods)
SOURCES = Checked(Names, named.sources)
SENT = Checked(Names | Name, named.sent)
EXPERT = Checked(Name, named.expert)
CHANGES = Checked(Changes, named.changes)
OPTIONS = {
    "name": Name, "mapping": Words, "task": Name, "instruction": Text, "kind": Name, "metric": Name,
    "splits": dict[Name, Name], "validation": Share, "test": Share, "seed": Count, "drop_overlap": bool, "header": bool,
}  # fmt: skip

CALLS: dict[str, Call] = {
    call.name: call
    for call in (
        # Data sets
        _read("datasets"),
        _read("dataset", name=Name),
        _read("rows", dataset=Name, task=Name, split=Name, start=Count, limit=Some),
        _ask("preview", "core.data.preview:Preview", source=SENT, base=BASE, max_length=Length, rows=Some, **OPTIONS),
        _ask("preview_stored", "core.data.preview:Preview", dataset=Name, base=BASE, max_length=Length, rows=Some),
        _change("upload", slow=True, source=SENT, **OPTIONS),
        _change("delete_dataset", name=Name),
        # Before a run
        _read("methods"),
        _read("method", name=Name),
        _read("fusion_methods"),
        _ask("check", "core.planning:Plan", spec=SPEC),
        _ask("preflight", "core.preflight:Preflight", spec=SPEC),
        _ask(
            "equal_budget", ["core.budget:Share"],
            methods=METHODS, parameters=Bytes, like=METHOD, over=Literal["rank", "experts"], base=MODEL, tasks=Some
        ),
        _ask("cloned_spec", "core.schema:RunSpec", run=Name, changes=CHANGES),
        _ask("fusion_spec", "core.schema:RunSpec", runs=SOURCES, method=Name, changes=CHANGES),
        # Starting and steering
        _change("submit", slow=True, spec=SPEC, request_id=Key, priority=Priority, parent=Name),
        _change("clone", slow=True, run=Name, changes=CHANGES, priority=Priority, request_id=Key),
        _change("fuse", slow=True, runs=SOURCES, method=Name, changes=CHANGES, priority=Priority, request_id=Key),
        _change("score", run=Name, datasets=Names, split=Name, base=bool, priority=Priority, request_id=Key),
        _change("change_experts", Row, slow=True, run=Name, add=EXPERT, replace=EXPERT, remove=Name, name=Key),
        _change("cancel", Row, run=Name),
        _change("move_to_front", Row, run=Name),
        _change("resume", Row, run=Name),
        _change("go_on", Row, run=Name),
        _change("delete", run=Name),
        _change("annotate", Row, run=Name, name=Key, notes=Text, tags=Annotated[list[Key], Field(max_length=50)]),
        # Runs
        _read("runs", [Row], state=Name, search=Name, tag=Name, dataset=Name, limit=Some, offset=Count),
        _read("run", Row, run=Name),
        _read("job", Row, run=Name, name=Name),
        _read("logs", run=Name, tail=Some),
        _read("alarms", [Row], run=Name),
        _read("said", run=Name, job=Name, after=Bytes),
        # What runs found
        _read("curves", Frame, run=Name, names=Names, after_step=Count, max_points=Points),
        _read("scores", Frame, run=Name, primary=bool),
        _read("moments", run=Name),
        _read("routing", run=Name, moment=Name, file=".npz"),
        _read("routing_table", Frame, run=Name, moment=Name, figure=Name, role=Name, task=Name),
        _read(
            "compare", "core.compare:Comparison",
            runs=Names, baseline=Name, group_seeds=bool, metric=Name, every_setting=bool,
        ),
        _ask("conflicts", "core.fusion_results:Conflicts", runs=SOURCES),
        _read("fusion", "core.fusion_results:Fusion", run=Name),
        _read("fused", [Row], search=Name, limit=Some, offset=Count),
        _read("tables", [(int, Frame)], run=Name, name=Name),
        _read("export", run=Name, file=".zip", slow=True),
        # The studio itself
        _read("dispatcher", action=Literal["status"]),
        _read("health"),
    )
}  # fmt: skip
