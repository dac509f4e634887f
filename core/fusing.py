"""What the studio does with several finished runs: fuse them, and say where they conflict. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from core import overrides, views
from core.overrides import Changes
from core.paths import is_name, real
from core.schema import RunSpec

if TYPE_CHECKING:
    import pandas as pd

    from core.fusion_results import Conflicts, Fusion
    from core.home import Home
    from core.records import Records


class Fusing:
    """The part of ``Studio`` that fuses runs."""

    home: Home
    records: Records
    submit: Callable[..., str]

    def fusion_methods(self) -> list[dict[str, Any]]:
        """Every fusion method with summary, source, badge and options, as forms need them."""
        from core import fusion_plan

        return fusion_plan.methods()

    def fusable(
        self, *, search: str | None = None, like: str | None = None, limit: int = 50, offset: int = 0
    ) -> list[dict[str, Any]]:
        """Finished runs, newest first, each with ``reason``: why it cannot be fused (with ``like``), or nothing."""
        from core import fusion_plan
        from storage.queries import runs

        model = None if like is None else RunSpec.parse(self.records.find(like).spec).model
        with self.records.read() as session:
            page = runs.page(session, state="done", text=search, limit=limit, offset=offset)
        return [views.run(row) | {"reason": fusion_plan.reason(row.id, self.home, model)} for row in page.rows]

    def fusion_spec(self, runs: Sequence[str], *, method: str = "task_arithmetic", changes: Changes = None) -> RunSpec:
        """The settings of a fused run: the base of its sources and all of their tasks, with changes."""
        from core import fusion_plan

        return fusion_plan.draft(self._named(runs), method, self.home, overrides.given(changes))

    def fuse(
        self,
        runs: Sequence[str],
        *,
        method: str = "task_arithmetic",
        changes: Changes = None,
        priority: int = 0,
        request_id: str | None = None,
    ) -> str:
        """Queue the fusion of finished runs (``run-3``, or ``run-3:TASK``) of one base; returns the fused run's id.

        ``changes`` are settings by dotted names, such as ``method.options.coefficient``, ``seed`` or ``device``.
        """
        spec = self.fusion_spec(runs, method=method, changes=changes)
        return self.submit(spec, priority=priority, request_id=request_id)

    def fused(self, *, search: str | None = None, limit: int = 20, offset: int = 0) -> list[dict[str, Any]]:
        """Fused runs, newest first."""
        from core.fusion.methods import fusion_methods
        from storage.queries import runs

        with self.records.read() as session:
            page = runs.page(session, method=list(fusion_methods()), text=search, limit=limit, offset=offset)
        return [views.run(row) for row in page.rows]

    def conflicts(self, runs: Sequence[str]) -> Conflicts:
        """Cosine, sign disagreement and norms of the runs' task vectors by projection; kept once computed."""
        from core import fusion_results

        return fusion_results.conflicts(self._named(runs), self.home)

    def fusion(self, run: str) -> Fusion:
        """A fused run's sources, and each task's score before and after."""
        from core import fusion_results

        return fusion_results.fusion(self.records, self.home, self.records.find(run))

    def tables(self, run: str, name: str) -> list[tuple[int, pd.DataFrame]]:
        """The tables that a run's job said by a name (``coefficients``, ``mask_density``, ``form``, ``sweep``)."""
        from core import fusion_results

        return fusion_results.tables(self.records, self.records.find(run).id, name)

    def _named(self, runs: Sequence[str]) -> list[str]:
        """Runs by their ids, whatever they were called; folders, and a task behind a colon, stay."""
        found = []
        for name in runs:
            head, colon, task = name.partition(":")
            known = is_name(head) and self.home.run(head).adapter.is_dir() or real(head).is_dir()
            found.append(name if known else f"{self.records.find(head).id}{colon}{task}")
        return found
