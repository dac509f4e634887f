"""What a fusion method is: options, a function that combines task vectors, and a description. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from core.errors import ConfigurationError
from core.schema import Spec

if TYPE_CHECKING:
    from core.data.tasks import Task
    from core.fusion.setting import Fused, Setting


@dataclass(frozen=True)
class FusionMethod:
    """A method of the literature. ``fuse`` imports torch when it is called.

    ``learns``: it fits something to unlabelled prompts of the tasks. ``badge`` stands beside the method wherever it is
    reported, and ``note`` where it is described: what of the paper had to be interpreted. ``check`` refuses options
    that do not go with the names of the fused runs and with the tasks, before anything is queued. ``whole``: how many
    updates of all projections lie in memory as whole matrices at one time, from the options and the number of runs: on
    the device where the method learns, else in the machine's memory.
    """

    name: str
    title: str
    summary: str
    source: str
    options: type[FusionOptions]
    fuse: Callable[[Setting, Any], Fused]
    learns: bool = False
    badge: str = ""
    note: str = ""
    check: Callable[[Any, Sequence[str], Sequence[Task]], None] | None = None
    whole: Callable[[Any, int], int] = lambda options, runs: int(options.form == "dense")

    def apply(self, setting: Setting, options: Any) -> Fused:
        """``fuse``, after the same check as before the job was queued: rows and runs may have changed since."""
        if self.check is not None:
            self.check(options, setting.names, setting.tasks)
        return self.fuse(setting, options)


class FusionOptions(Spec):
    """What every fusion method lets its user choose."""

    form: Literal["auto", "concatenated", "svd", "dense"] = Field(
        "auto",
        description="What is saved: factors side by side (exact for weighted sums of adapters), a truncated SVD with "
        "its error, or whole matrices (exact). auto: factors where exact, whole matrices where a run is a full "
        "fine-tune, else the SVD.",
    )
    rank: int | None = Field(None, ge=1, le=1024, description="Rank of the SVD; empty: the ranks of the runs together.")


def fused_whole(options: FusionOptions, runs: int) -> int:
    """Of methods that change single entries: what they have fused is whole matrices."""
    return 1


def refuse_factors(options: FusionOptions) -> None:
    """For methods that change single entries. Raises ConfigurationError where factors are asked for."""
    if options.form == "concatenated":
        raise ConfigurationError(
            "method.options.form is concatenated, but a method that changes single entries gives no sum of the runs' "
            "factors.",
            "Choose svd or dense, or leave it at auto.",
        )
