"""What the studio answers while a run is being designed: methods, sizes, preflight, equal budgets. Starts nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from core.schema import MethodSpec, ModelSpec, RunSpec

if TYPE_CHECKING:
    from core.budget import Share
    from core.data.store import DatasetStore
    from core.drafts import Drafts
    from core.home import Home
    from core.method_counts import OnBase, Published
    from core.method_pages import Page
    from core.preflight import Preflight, Speed
    from core.records import Records


class Designing:
    """The part of ``Studio`` that designs runs."""

    home: Home
    records: Records
    store: DatasetStore
    upload: Callable[..., dict[str, Any]]

    @cached_property
    def drafts(self) -> Drafts:
        """What forms ask while a person fills them in: settings, columns of files, sizes of a run."""
        from core.drafts import Drafts

        return Drafts(self.home, self.store)

    def methods(self) -> list[dict[str, Any]]:
        """Every method with summary, source and options, as forms need them."""
        from core import catalog

        return catalog.methods()

    def method(self, name: str) -> dict[str, Any]:
        """One method; NotFoundError with the nearest name otherwise."""
        from core import planning

        return planning.method(name)

    def method_page(self, name: str) -> Page:
        """What docs/methods says of a method, by sections; NotFoundError with the nearest name otherwise."""
        from core import method_pages

        return method_pages.page(self.method(name)["name"])

    def method_on(self, name: str, base: str, tasks: int = 1) -> OnBase:
        """A method with its defaults on a base: one of ``known_bases``, a folder or a Hub id."""
        from core import method_counts

        return method_counts.on_base(self.method(name)["name"], base, tasks, self.home.cache)

    def published_counts(self, name: str) -> list[Published]:
        """Settings of a method's papers with their counts."""
        from core import method_counts

        return [one for one in method_counts.PUBLISHED if one.method == name]

    def known_bases(self) -> list[str]:
        """Bases whose shapes are known without a file, the bundled one first."""
        from core import method_counts

        return [method_counts.BUNDLED, *method_counts.KNOWN]

    def preflight(self, spec: RunSpec | str) -> Preflight:
        """Parameters by component and cell, memory against the device, and the speed that earlier runs suggest.

        Raises the StudioError that says which cell cannot be trained.
        """
        from core import planning, preflight

        given = RunSpec.from_yaml(spec) if isinstance(spec, str) else spec
        planning.check_trains(given)
        stored = planning.with_stored_tasks(given, self.store, lambda path: self.upload(path)["id"])
        return preflight.examine(stored, self.drafts, self.records)

    def expected_speed(self, spec: RunSpec) -> Speed | None:
        """Training tokens per second as earlier runs on this base and such a device had them; None without any."""
        from core import capacity, preflight

        device = capacity.device_for(spec.device)
        return preflight.speed(self.records, spec.model.base, spec.method.name, spec.train, device)

    def equal_budget(
        self,
        methods: Sequence[MethodSpec | str],
        *,
        parameters: int | None = None,
        like: MethodSpec | str | None = None,
        over: Literal["rank", "experts"] = "rank",
        base: ModelSpec | str | None = None,
        tasks: int = 1,
    ) -> list[Share]:
        """Set rank or experts so that every method has as many trainable parameters as asked, or as ``like`` has.

        ``tasks``: how many there are, for gates and matrices that have one row or one matrix for each.
        """
        from core import budget, catalog
        from core.errors import ConfigurationError

        if (parameters is None) == (like is None):
            raise ConfigurationError(
                "A budget is a number of parameters or that of a method.", "Give one of parameters and like."
            )
        model = ModelSpec(base=base) if isinstance(base, str) else base or ModelSpec()
        target = parameters if parameters is not None else _method(like)
        shapes = catalog.shapes(model, self.home.cache)
        return budget.equal([_method(one) for one in methods], shapes, target, tasks, over)


def _method(given: MethodSpec | str | None) -> MethodSpec:
    return given if isinstance(given, MethodSpec) else MethodSpec(name=str(given))
