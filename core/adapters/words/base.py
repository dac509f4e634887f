"""What every word is: options, a closed-form parameter count, and a factory for its tensors. Imports no torch."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

if TYPE_CHECKING:
    from ..cells import Site
    from ..modules.base import DownModule, GateModule, UpModule

Part = Literal["down", "gate", "up"]
W = TypeVar("W", bound="type[Word]")

WORDS: dict[str, dict[str, type[Word]]] = {"down": {}, "gate": {}, "up": {}}


class Word(BaseModel):
    """One choice for the down, gate or up part of a cell; its fields are the word's options."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    part: ClassVar[Part]
    # parameters(site) in words: E experts, r rank, in and out widths, tasks, and options; empty: it is not said
    formula: ClassVar[str] = ""
    word: str

    @property
    def expression(self) -> str:
        """``formula`` as these options have it: arithmetic with its symbols and names of options, "0" for nothing."""
        return self.formula

    @property
    def needs_task(self) -> bool:
        """Whether every sample must say its task."""
        return False

    def parameters(self, site: Site) -> int:
        """Trainable parameters that this word brings to one projection."""
        raise NotImplementedError(f"{type(self).__name__} does not say how many parameters it has")

    def check(self, site: Site) -> None:
        """Refuse a projection, or other words beside this one, that it cannot work with.

        Raises:
            ValueError: in one sentence; what plans the cells says at which cell and projection.
        """


class Down(Word):
    """``D_e``: from the projection's input to the rank."""

    part: ClassVar[Part] = "down"
    shared: ClassVar[bool] = False  # one matrix for all experts
    width: ClassVar[str] = "r"  # what rank() gives, as formulas write it

    def rank(self, rank: int, in_features: int) -> int:
        """Width of what enters the up matrix of one expert, where the cell's rank is ``rank``."""
        return rank

    def columns(self, site: Site) -> int:
        """Values for each token that its product with the input gives."""
        return site.rank * (1 if self.shared else site.experts)

    def build(self, site: Site) -> DownModule:
        raise NotImplementedError(f"{type(self).__name__} builds no tensors")


class Gate(Word):
    """``g_e``: how much each expert contributes."""

    part: ClassVar[Part] = "gate"
    unit: ClassVar[Literal["token", "sample"] | None] = None  # what one decision covers; None: nothing is decided
    scope: ClassVar[Literal["projection", "block", "model"]] = "projection"  # what shares what the first one there has
    per_task: ClassVar[bool] = False  # there are as many experts as tasks, whatever the cell says
    pairs_factors: ClassVar[bool] = False  # chooses from two pools of factors and says which of them meet
    signed: ClassVar[bool] = False  # weights can be negative

    def selected(self, experts: int) -> int:
        """Experts that one decision uses."""
        return experts

    def selected_at(self, site: Site) -> int:
        """As ``selected``, for gates whose number hangs on more than the experts."""
        return self.selected(site.experts)

    @property
    def guided(self) -> bool:
        """Whether it wants a vector for each sample that is made before the pass (``Slot.prior``)."""
        return False

    @property
    def sums_to_one(self) -> bool:
        """Whether the weights of one decision are shares of a whole."""
        return True

    def groups(self, site: Site) -> int:
        """Decisions that are taken beside each other for each token or sample, each over all experts."""
        return 1

    def parts(self, site: Site) -> list[str]:
        """What each of several decisions beside each other is about; empty where there is one."""
        groups = self.groups(site)
        return [f"part {index}" for index in range(groups)] if groups > 1 else []

    def build(self, site: Site) -> GateModule | None:
        raise NotImplementedError(f"{type(self).__name__} builds no tensors")


class Up(Word):
    """``U_e``: from the rank to the projection's output."""

    part: ClassVar[Part] = "up"
    shared: ClassVar[bool] = False

    def kept(self, site: Site, tokens: int) -> int:
        """Bytes that it keeps for the backward pass of one projection besides its matrices and hidden states."""
        return 0

    def columns(self, site: Site) -> int:
        """Values for each token that enter the product with the up matrices."""
        return site.rank * (1 if self.shared else site.experts)

    def build(self, site: Site) -> UpModule:
        raise NotImplementedError(f"{type(self).__name__} builds no tensors")


def word(cls: W) -> W:
    """Class decorator: make a word known under the default of its ``word`` field."""
    name = cls.model_fields["word"].default
    known = WORDS[cls.part].setdefault(name, cls)
    if known.__qualname__ != cls.__qualname__ or known.__module__ != cls.__module__:
        raise ValueError(f"{cls.part} already has a word {name!r}: {known.__module__}.{known.__qualname__}")
    WORDS[cls.part][name] = cls
    return cls


def parse_word(part: Part, value: Any) -> Word:
    """A word from its name or from ``{"word": name, **options}``.

    Raises:
        ValueError: in one line, for pydantic to place.
    """
    if isinstance(value, Word):
        if value.part != part:
            raise ValueError(f"{value.word!r} is a word for {value.part}, not for {part}")
        return value
    data = {"word": value} if isinstance(value, str) else value
    if not isinstance(data, dict) or not isinstance(data.get("word"), str):
        raise ValueError(f"{part} is a word or a mapping with the key word, not {value!r}")
    known = WORDS[part]
    if data["word"] not in known:
        near = difflib.get_close_matches(data["word"], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the words are {', '.join(known)}"
        raise ValueError(f"{data['word']!r} is not a word for {part}; {hint}")
    try:
        return known[data["word"]].model_validate(data)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, item['loc'])) or part}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        ]
        raise ValueError(f"{part} word {data['word']!r}: {'; '.join(problems)}") from None
