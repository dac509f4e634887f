"""Every use case of the studio is one method here: the API of pages, command line and notebooks. Imports no torch.

What is heavier than a look-up is imported by the method that needs it, so that ``import core.studio`` is quick and
``train_here`` runs without the database's packages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core import access, overrides, paths, views
from core.changing import Changing
from core.designing import Designing
from core.errors import NotFoundError
from core.fusing import Fusing
from core.home import Home
from core.overrides import Changes
from core.records import Records
from core.schema import BUNDLED_BASE, ModelSpec, RunSpec

if TYPE_CHECKING:
    import pandas as pd

    from core.chat.conversation import Conversation
    from core.chat.trace import Trace
    from core.chats import Chats
    from core.compare import Comparison
    from core.data.preview import Preview
    from core.data.prompts import Prompt
    from core.data.store import DatasetStore
    from core.data.templates import TextEncoder
    from core.demo import Demo
    from core.doctor import Finding
    from core.machine import Machine
    from core.planning import Plan
    from core.routing.atlas import Atlas
    from core.routing.snapshot import RoutingSnapshot
    from core.watching import Watch

Sources = str | Path | Sequence[str | Path]
Told = Callable[[str], None]


class Studio(Designing, Fusing, Changing):
    """The studio over one home folder; cheap to make, safe to use from several threads."""

    def __init__(self, home: str | Path | None = None) -> None:
        self.home = Home.open(home)
        self.records = Records(self.home)

    @cached_property
    def store(self) -> DatasetStore:
        from core.data.store import DatasetStore

        return DatasetStore(self.home.datasets)

    # Data sets

    def upload(self, source: Sources, *, told: Told | None = None, **options: Any) -> dict[str, Any]:
        """Store files, a folder or a Hub data set; ``options`` are the fields of ``core.data.prepare.Options``.

        Large files are read by a process of their own; ``told`` hears how far it is.
        """
        from core.data import apart, upload

        if apart.large(source):
            return views.dataset(apart.upload_apart(self.store, source, told, **options))
        return views.dataset(upload.upload(self.store, source, **options))

    def preview(
        self, source: Sources, *, base: str = BUNDLED_BASE, told: Told | None = None, **options: Any
    ) -> Preview:
        """What ``upload`` would store, and each prompt as the model sees it; also ``template`` and ``max_length``."""
        from core.data import apart, upload

        access.need("researcher")
        if apart.large(source):
            return apart.preview_apart(self.store, source, told, base=base, **options)
        return upload.preview(source, encoder=self.encoder(base), room=self.store.root, **options)

    def preview_stored(self, dataset: str, *, base: str = BUNDLED_BASE, **options: Any) -> Preview:
        """As ``preview``, for a data set that is stored."""
        from core.data.upload import preview_stored

        return preview_stored(self.store, dataset, encoder=self.encoder(base), **options)

    def encoder(self, base: str = BUNDLED_BASE) -> TextEncoder:
        """A base's tokenizer and chat template."""
        from core.data.templates import TextEncoder
        from core.models import resolve_base

        return TextEncoder(resolve_base(ModelSpec(base=base)))

    def datasets(self) -> list[dict[str, Any]]:
        return [views.dataset(info) for info in self.store.list()]

    def dataset(self, name: str) -> dict[str, Any]:
        return views.dataset(self.store.find(name))

    def rows(self, dataset: str, task: str, split: str, start: int = 0, limit: int = 50) -> list[dict[str, Any]]:
        return self.store.rows(self.store.find(dataset).id, task, split, start, limit)

    def prompts(self, run: str, task: str, start: int = 0, limit: int = 20, split: str = "test") -> list[Prompt]:
        """Rows of one of a run's tasks as the run asks them."""
        from core.data import prompts

        return prompts.prompts(self.store, RunSpec.parse(self.records.find(run).spec), task, start, limit, split)

    # Starting runs

    def read_spec(self, source: str | Path, *, changes: Changes = None, seeds: str | None = None) -> list[RunSpec]:
        """YAML text, or a file of it, with changes applied; one spec for each seed."""
        from core import planning

        return planning.read_spec(source, overrides.given(changes), seeds)

    def check(self, spec: RunSpec) -> Plan:
        """Validate a run as ``submit`` does and count its parameters; queues nothing."""
        from core import fusion_plan, pipelines, planning

        if spec.sources:
            return fusion_plan.plan(spec, self.home, self.store)
        plan = planning.plan(spec, self.home, self.store, upload=lambda path: self.upload(path)["id"])
        pipelines.check(plan.spec, plan.tasks, self.home.runs)
        return plan

    def submit(
        self, spec: RunSpec | str, *, request_id: str | None = None, priority: int = 0, parent: str | None = None
    ) -> str:
        """Queue a run that was checked as a whole; returns its id. The same ``request_id`` never queues twice."""
        from core import pipelines

        plan = self.check(RunSpec.from_yaml(spec) if isinstance(spec, str) else spec)
        first = [self.check(one) for one in pipelines.alone(plan.spec, plan.tasks)]
        options = {"request_id": request_id, "priority": priority, "parent": parent}
        run = pipelines.submit(plan, first, self.home, self.records, **options)
        self.dispatcher("start")
        return run

    def train_here(self, spec: RunSpec, *, out: Path | None = None) -> Path:
        """Train in this process, without dispatcher and database; returns the run folder."""
        from core import headless, pipelines

        plan = self.check(spec)
        first = [self.check(one) for one in pipelines.alone(plan.spec, plan.tasks)]
        return headless.train(plan, self.home, out, first)

    def cloned_spec(self, run: str, *, changes: Changes = None) -> RunSpec:
        """What a run was asked to do, with changes; its name is made anew unless given."""
        from core import demo, fusion_plan

        spec, given = demo.cloned(self.records.find(run).spec), overrides.given(changes)
        return fusion_plan.changed(spec, given, self.home) if spec.sources else overrides.apply(spec, given)

    def clone(self, run: str, *, changes: Changes = None, priority: int = 0, request_id: str | None = None) -> str:
        parent = self.records.find(run).id
        spec = self.cloned_spec(parent, changes=changes)
        return self.submit(spec, priority=priority, parent=parent, request_id=request_id)

    # Runs

    def runs(
        self,
        *,
        state: str | None = None,
        search: str | None = None,
        tag: str | None = None,
        dataset: str | None = None,
        limit: int = 50,
        offset: int = 0,
    ) -> list[dict[str, Any]]:
        """Newest first."""
        from storage.queries import runs

        with self.records.read() as session:
            page = runs.page(session, state=state, text=search, tag=tag, dataset=dataset, limit=limit, offset=offset)
        return [views.run(row) for row in page.rows]

    def run(self, run: str) -> dict[str, Any]:
        """One run with its spec and its jobs."""
        from storage.queries import jobs

        row = self.records.find(run)
        with self.records.read() as session:
            steps = jobs.of_run(session, run=row.id)
        return views.run(row) | {"spec": row.spec, "jobs": [views.job(job) for job in steps]}

    def job(self, run: str, name: str) -> dict[str, Any]:
        for job in self.run(run)["jobs"]:
            if job["name"] == name:
                return job
        raise NotFoundError(f"{run} has no job {name!r}.")

    @cached_property
    def watch(self) -> Watch:
        """What pages of runs look at every second."""
        from core.watching import Watch

        return Watch(self.home, self.records)

    # What runs say and found

    def alarms(self, run: str) -> list[dict[str, Any]]:
        """The alarms of a run, oldest first: at, name, step, message. ``go_on`` and ``cancel`` answer them."""
        return self.watch.messages(self.records.find(run).id)["alarms"]

    def logs(self, run: str, *, tail: int = 40) -> dict[str, list[str]]:
        """``events``: one line for each thing worth reading; ``output``: the end of what the newest worker printed."""
        from core import follow

        state = self.run(run)
        return follow.logs(self.home.run(state["id"]), tail, state)

    def said(self, run: str, *, job: str | None = None, after: int = 0) -> dict[str, Any]:
        """What a run (or one of its jobs) said behind byte ``after`` of its events, and where to go on."""
        from core import follow

        state = self.run(run)
        told = state if job is None else self.job(state["id"], job)
        return follow.said(self.home.run(state["id"]), told, job, after)

    def follow(self, run: str, *, job: str | None = None) -> Iterator[str]:
        """Lines as the run says them, until it (or one of its jobs) ends."""
        from core import follow

        return follow.lines(self, self.records.find(run).id, job)

    def curves(self, run: str, **chosen: Any) -> pd.DataFrame:
        """Columns name, step, value; ``names``, ``after_step`` and ``max_points`` (thinned, spikes kept) narrow it."""
        from core import results

        return results.curves(self.records, self.records.find(run).id, **chosen)

    def scores(self, run: str, *, primary: bool = True) -> pd.DataFrame:
        from core import results

        return results.scores(self.records, [self.records.find(run).id], primary)

    def moments(self, run: str) -> list[dict[str, Any]]:
        """When routing was recorded: moment, step, split."""
        from core import results

        return results.moments(self.records, self.records.find(run).id)

    def routing(self, run: str, moment: str = "end") -> RoutingSnapshot:
        from core import results

        return results.routing(self.records, self.home, self.records.find(run).id, moment)

    def routing_atlas(self, run: str) -> Atlas:
        """All moments of a run with one scale, and distances between its tasks."""
        from core import results

        return results.atlas(self.records, self.home, self.records.find(run).id)

    def routed(self, runs: Sequence[str]) -> set[str]:
        """Those of the runs that recorded routing."""
        from core import results

        return results.routed(self.records, runs)

    def routing_table(self, run: str, moment: str = "end", **chosen: Any) -> pd.DataFrame:
        """One row for each task, layer and projection, one column for each expert."""
        from core import results

        return results.routing_table(self.routing(run, moment), **chosen) if self.moments(run) else results.no_routing()

    def routing_files(self, run: str, moment: str = "end", **wanted: Any) -> list[Path]:
        """Write the heatmap or the figures: ``html=``, ``png=``, ``csv=`` name files; returns those written."""
        from core import results

        wanted = {name: value for name, value in wanted.items() if value is not None}
        if not {"html", "png", "csv"} & set(wanted):
            return []
        row = self.records.find(run)
        return results.write_routing(self.routing(row.id, moment), row.name, **wanted)

    def compare(self, runs: Sequence[str], *, baseline: str | None = None, **chosen: Any) -> Comparison:
        """``chosen``: group_seeds, metric, every_setting as ``core.comparisons.compare`` takes them."""
        from core import comparisons

        rows = [self.records.find(run) for run in runs]
        if baseline is not None and baseline != "base":
            baseline = self.records.find(baseline).id
        return comparisons.compare(self.records, self.home, rows, baseline=baseline, **chosen)

    # Adapters

    def chat(self, runs: Sequence[str], *, device: str = "auto") -> Conversation:
        """One base in memory and up to four adapters on it, in a process of its own; ``base`` is the base alone."""
        return self.chats.open(runs, device)

    @cached_property
    def chats(self) -> Chats:
        """Asking models, conversations that are kept, and the process that answers."""
        from core.chats import Chats

        return Chats(self.home, self.records)

    def trace(self, run: str, text: str, **chosen: Any) -> Trace:
        """Every gate's decision for every token of a prompt; also ``answer``, ``generate``, ``task`` and ``raw``."""
        return self.chats.trace(run, text, **chosen)

    def export(self, run: str, target: str | Path) -> Path:
        """A PEFT adapter folder with its own small loader, for use without the studio."""
        from core import transfer

        return transfer.export(self.home.run(self.records.find(run).id), Path(target))

    def import_(
        self, source: str | Path, *, base: str | None = None, name: str | None = None, revision: str | None = None
    ) -> dict[str, Any]:
        """A run folder, a PEFT adapter folder or the Hub id of an adapter, whichever ``source`` is."""
        folder = paths.real(source)
        if (folder / "spec.json").is_file() or (folder / "events.jsonl").is_file():
            return self.import_run(folder, name=name)
        return self.import_adapter(str(source), base=base, name=name, revision=revision)

    def import_run(self, source: str | Path, *, name: str | None = None) -> dict[str, Any]:
        from core import transfer

        return self.run(transfer.import_run(Path(source), self.home, self.records, self.store, name))

    def import_adapter(self, source: str, **options: Any) -> dict[str, Any]:
        from core import transfer

        return self.run(transfer.import_adapter(source, self.home, self.records, **options))

    def change_experts(
        self,
        run: str,
        *,
        add: str | None = None,
        replace: str | None = None,
        remove: str | None = None,
        name: str | None = None,
    ) -> dict[str, Any]:
        """A run's mixture with one expert more, exchanged (``TASK=EXPERT``) or taken out (``TASK``), as a new run."""
        from core import expert_changes

        changes = {"add": add, "replace": replace, "remove": remove, "name": name}
        return self.run(expert_changes.change(run, self.home, self.records, **changes))

    # The studio itself

    def demo(self, **options: Any) -> Demo:
        """Train three methods on the studio's own tasks and compare them; options as ``core.demo.run_demo``."""
        from core.demo import run_demo

        return run_demo(self, **options)

    def dispatcher(self, action: Literal["status", "start", "stop", "run"] = "status") -> dict[str, Any]:
        from core import service

        return service.dispatcher(self.home, self.records, action)

    def web_presence(self) -> AbstractContextManager[None]:
        """While entered, the dispatcher does not go away when idle."""
        from core import service

        return service.web_presence(self.home, self.records)

    @cached_property
    def machine(self) -> Machine:
        """What the machine does, who holds its devices, what the home takes on disk, and cleaning up."""
        from core.machine import Machine

        return Machine(self.home, self.records)

    def health(self) -> dict[str, str]:
        from core import service

        return service.health(self.records)

    def overview(self, *, recent: int = 12) -> dict[str, Any]:
        """Counts, recent runs, what to do next, the newest demo and the newest run whose routing can be seen."""
        from core import service

        return service.overview(self, recent)

    def doctor(self) -> list[Finding]:
        from core import doctor, service

        return doctor.examine(self.home, self.records.describe, lambda: service.describe(self.home, self.records))

    def close(self) -> None:
        self.records.close()
