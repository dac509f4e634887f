"""A down word with a small matrix for each task behind the shared one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from .base import word
from .down import LowRankDown

if TYPE_CHECKING:
    from ..cells import Site
    from ..modules.base import DownModule


@word
class TaskTransformDown(LowRankDown):
    """One down matrix for all experts, then a matrix of the task's own; every sample must say its task."""

    formula: ClassVar[str] = "r * in + tasks * r * (1 if diagonal else r)"
    word: Literal["task_transform"] = "task_transform"
    shared: ClassVar[bool] = True
    diagonal: bool = Field(False, description="Only scale each rank by task, in place of mixing the ranks.")

    @property
    def needs_task(self) -> bool:
        return True

    @property
    def expression(self) -> str:
        own = "tasks * r" if self.diagonal else "tasks * r * r"
        return f"r * in + {own}" if self.trained else own

    def parameters(self, site: Site) -> int:
        shared = site.rank * site.in_features if self.trained else 0
        return shared + site.tasks * site.rank * (1 if self.diagonal else site.rank)

    def build(self, site: Site) -> DownModule:
        from ..modules.task_transform import TaskTransformDownModule

        return TaskTransformDownModule(self, site)
