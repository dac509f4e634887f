"""What a mixture is: cells of words over the linear layers of a base. Imports no torch.

``plan`` is the one place that decides which projection gets which words and how many experts; the parameter estimate
and the tuner both call it, so they cannot disagree.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import regex
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from ..errors import ConfigurationError
from .words import Down, Gate, Up, parse_word

ALL_LINEAR = "all-linear"
TOKEN_EMBEDDING = "token-embedding"
LONGEST_PATTERN, PATTERN_SECONDS = 1000, 0.1  # of processor time for one path: usual patterns take microseconds
MOST_LAYERS = 10_000  # so that no range is written out that no base has
Kind = Literal["linear", "transposed", "expert", "fused", "embedding"]


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer of a base: its path below the model, and its widths. ``head``: the output embedding.

    ``kind``: ``transposed`` for a Conv1D, ``expert`` in a mixture-of-experts block of the base (its experts and what
    routes to them), ``fused`` for experts that are one parameter of three axes and no linear layer, ``embedding`` for
    the token embedding, a linear map of one-hot inputs: as wide as the vocabulary on the side of the inputs.
    """

    name: str
    in_features: int
    out_features: int
    head: bool = False
    kind: Kind = "linear"

    @property
    def usual(self) -> bool:
        """Whether ``all-linear`` takes it."""
        return not self.head and self.kind in ("linear", "transposed")

    @property
    def layer(self) -> int | None:
        """The number of the block that holds it: the first number in its path."""
        return next((int(part) for part in self.name.split(".") if part.isdecimal()), None)

    @property
    def projection(self) -> str:
        return self.name.rpartition(".")[2]


def layer_numbers(layers: Iterable[int | str] | None) -> frozenset[int]:
    """``[0, "4-6"]`` to ``{0, 4, 5, 6}``."""
    numbers: set[int] = set()
    for item in layers or ():
        match = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", str(item))
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise ValueError(f"{str(item)[:40]!r} is neither a layer nor a range of layers such as '0-3'")
        if last >= MOST_LAYERS:
            raise ValueError(f"{str(item)[:40]!r} lies beyond {MOST_LAYERS:,} layers, and no base has so many")
        numbers.update(range(first, last + 1))
    return frozenset(numbers)


def _check_modules(value: list[str] | str) -> list[str] | str:
    if not value or (isinstance(value, list) and not all(value)):
        raise ValueError("name at least one projection, or write all-linear")
    if isinstance(value, str) and value not in (ALL_LINEAR, TOKEN_EMBEDDING):
        if len(value) > LONGEST_PATTERN:
            raise ValueError(f"the regular expression has {len(value):,} characters; {LONGEST_PATTERN:,} are read")
        try:
            regex.compile(value)
        except regex.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
    return value


def _matches(pattern: str, path: str) -> bool:
    """Whether a regular expression is a whole path; one that tries endlessly is refused, and holds up nobody else."""
    try:
        return regex.fullmatch(pattern, path, timeout=PATTERN_SECONDS, concurrent=True) is not None
    except TimeoutError:
        raise ConfigurationError(
            f"The regular expression {pattern[:60]!r} takes too long on {path}.",
            "Write it without repetitions inside repetitions, such as (a+)+.",
        ) from None


def _check_layers(value: list[int | str] | None) -> list[int | str] | None:
    if value is not None and not layer_numbers(value):
        raise ValueError("name at least one layer, or leave it empty for all")
    return value


def _check_experts(value: int | list[int]) -> int | list[int]:
    counts = value if isinstance(value, list) else [value]
    if not counts or min(counts) < 1 or max(counts) > 256:
        raise ValueError("every number of experts lies in 1..256")
    return value


# Types of the fields that presets take over as options: checked wherever they are written.
Modules = Annotated[list[str] | str, AfterValidator(_check_modules)]
Layers = Annotated[list[int | str] | None, AfterValidator(_check_layers)]
Experts = Annotated[int | list[int], AfterValidator(_check_experts)]


def _word(part: str) -> BeforeValidator:
    return BeforeValidator(lambda value: parse_word(part, value))


class Cell(BaseModel):
    """One pattern of projections and the words for them.

    ``experts`` as a list gives the number for each layer of the cell, or for each of that many equal blocks of
    layers, bottom to top. Where both down and up are shared, the experts are one and the same: such a cell counts
    as one expert without a gate.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    modules: Modules = Field(
        ALL_LINEAR,
        description="Names of projections, a regular expression for whole paths, all-linear, or token-embedding.",
    )
    layers: Layers = Field(None, description='Layers of the base as numbers or ranges such as "0-3"; empty: all.')
    frozen: bool = Field(False, description="Leave these projections as the base has them; nothing else counts then.")
    experts: Experts = Field(1, description="Experts per projection: a number, or one per block of layers.")
    rank: int = Field(8, ge=1, le=1024, description="Rank of each expert.")
    alpha: float = Field(16.0, gt=0, description="The update is scaled by alpha / rank.")
    down: Annotated[SerializeAsAny[Down], _word("down")] = Field(
        "unique", validate_default=True, description="Down word: the matrices from the input to the rank."
    )
    gate: Annotated[SerializeAsAny[Gate], _word("gate")] = Field(
        "none", validate_default=True, description="Gate word: who decides how much each expert contributes."
    )
    up: Annotated[SerializeAsAny[Up], _word("up")] = Field(
        "unique", validate_default=True, description="Up word: the matrices from the rank to the output."
    )

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    @property
    def single(self) -> bool:
        """Whether all experts are one and the same pair of matrices."""
        return self.down.shared and self.up.shared

    @property
    def needs_task(self) -> bool:
        """Whether every sample must say its task."""
        words = (self.down, self.up) if self.single else (self.down, self.gate, self.up)
        return not self.frozen and any(word.needs_task for word in words)

    def matches(self, linear: Linear) -> bool:
        return linear.kind != "fused" and self.names(linear)

    def names(self, linear: Linear) -> bool:
        """Whether modules and layers speak of it, also where no adapter can stand on it.

        Patterns speak of projections: the token embedding is named, or written as token-embedding.
        """
        if self.layers is not None and linear.layer not in layer_numbers(self.layers):
            return False
        embedding = linear.kind == "embedding"
        if self.modules == ALL_LINEAR:
            return linear.usual
        if self.modules == TOKEN_EMBEDDING:
            return embedding
        if isinstance(self.modules, str):
            return not embedding and _matches(self.modules, linear.name)
        return any(linear.name == name or linear.name.endswith(f".{name}") for name in self.modules)

    def experts_at(self, layer: int | None, layers: Sequence[int]) -> int:
        """Experts in ``layer``, where ``layers`` are all that this cell covers."""
        if self.single:
            return 1
        if isinstance(self.experts, int):
            return self.experts
        if layer is None:
            raise ConfigurationError(
                "A list of experts counts layers, but a projection outside the layers matches the cell.",
                "Give one number of experts, or name only projections inside layers.",
            )
        return self.experts[list(layers).index(layer) * len(self.experts) // len(layers)]


@dataclass(frozen=True, slots=True)
class Site:
    """One adapted projection: where it is, its widths, and what the cell says about it."""

    name: str
    layer: int | None
    projection: str
    in_features: int
    out_features: int
    experts: int
    rank: int
    scaling: float
    tasks: int
    down: Down
    gate: Gate
    up: Up
    leader: str  # the site whose gate holds what this one's gate shares; itself where it shares nothing
    kind: Kind = "linear"

    @property
    def needs_task(self) -> bool:
        return any(word.needs_task for word in (self.down, self.gate, self.up))

    @property
    def by_sample(self) -> bool:
        """Whether its words must know which tokens are of one sample."""
        return self.gate.unit == "sample" or self.gate.guided or self.needs_task

    @property
    def leads(self) -> bool:
        return self.leader == self.name

    def parameters(self) -> int:
        return sum(word.parameters(self) for word in (self.down, self.gate, self.up))

    @property
    def selected(self) -> int:
        return self.gate.selected_at(self)


def plan(cells: Sequence[Cell], linears: Sequence[Linear], tasks: int = 0) -> list[Site]:
    """What becomes of every linear layer; the first cell that matches one has it.

    Raises:
        ConfigurationError: a cell matches nothing, names a layer that is not there, or needs tasks.
    """
    owner: list[tuple[Linear, int]] = []
    fused = [linear for linear in linears if linear.kind == "fused"]
    linears = [linear for linear in linears if linear.kind != "fused"]
    for linear in linears:
        index = next((i for i, cell in enumerate(cells) if cell.matches(linear)), None)
        if index is not None:
            owner.append((linear, index))
    covered = []
    for index, cell in enumerate(cells):
        _check_fused(index, cell, linears, fused)
        _check(index, cell, linears, [linear for linear, i in owner if i == index], tasks)
        covered.append(sorted({linear.layer for linear in linears if cell.matches(linear)} - {None}))
    sites: list[Site] = []
    leaders: dict[Any, str] = {}
    for linear, index in owner:
        cell = cells[index]
        if cell.frozen:
            continue
        gate = parse_word("gate", "none") if cell.single else cell.gate
        experts = tasks if gate.per_task else cell.experts_at(linear.layer, covered[index])
        shared_by = {"projection": linear.name, "block": (index, linear.layer), "model": (index, None)}[gate.scope]
        site = Site(
            linear.name, linear.layer, linear.projection, linear.in_features, linear.out_features, experts,
            cell.down.rank(cell.rank, linear.in_features), cell.scaling, tasks, cell.down, gate, cell.up,
            leaders.setdefault(shared_by, linear.name), linear.kind,
        )  # fmt: skip
        _check_words(index, site)
        sites.append(site)
    if not sites:
        raise ConfigurationError("Every cell is frozen, so nothing would train.", "Leave at least one cell unfrozen.")
    return sites


def _check_fused(index: int, cell: Cell, linears: Sequence[Linear], fused: Sequence[Linear]) -> None:
    """Say where a cell names experts of the base that are no linear layers."""
    named = next((linear for linear in fused if cell.names(linear)), None)
    if named is None or any(cell.matches(linear) for linear in linears):
        return
    raise ConfigurationError(
        f"Cell {index + 1}: {named.name} holds all experts of the base in one parameter of three axes. It is no linear "
        "layer, so no adapter can stand on it.",
        f"Leave the experts as they are; the base has {_names(linears)}.",
    )


def _names(linears: Sequence[Linear]) -> str:
    return ", ".join(sorted({linear.projection for linear in linears if linear.usual}))


def _check_words(index: int, site: Site) -> None:
    if site.kind == "expert" and (site.gate.unit == "sample" or site.needs_task):
        raise ConfigurationError(
            f"Cell {index + 1}: {site.name} is an expert of the base, which sees tokens without their samples, but the "
            "cell decides by sample or task.",
            "Give it a cell of its own with a token gate or none.",
        )
    if site.kind == "embedding" and (site.down.word, site.gate.word, site.experts) != ("identity", "none", 1):
        raise ConfigurationError(
            f"Cell {index + 1}: {site.name} is the token embedding, which trains as a whole or not at all, but the "
            f"cell says down {site.down.word}, gate {site.gate.word}, experts {site.experts}.",
            "Give it a cell of its own with down identity, gate none and experts 1, or leave it out.",
        )
    for word in (site.down, site.gate, site.up):
        try:
            word.check(site)
        except ValueError as error:
            raise ConfigurationError(
                f"Cell {index + 1}, {site.name}: {error}.",
                f"Change the cell's {word.part}, or leave this projection out.",
            ) from None


def _check(index: int, cell: Cell, linears: Sequence[Linear], mine: list[Linear], tasks: int) -> None:
    place = f"Cell {index + 1}"
    names = sorted({linear.projection for linear in linears if not linear.head})
    if not mine and not any(linear.usual for linear in linears):
        raise ConfigurationError("The base has no linear layers that an adapter could stand on.", "Choose another.")
    if cell.modules == TOKEN_EMBEDDING and not any(cell.matches(linear) for linear in linears):
        raise ConfigurationError(
            f"{place} asks for the token embedding, but "
            + ("it lies in no layer." if cell.layers else "the base has none that all its texts enter by."),
            "Leave layers empty." if cell.layers else "Leave it out: only projections can be trained here.",
        )
    last = max((linear.layer for linear in linears if linear.layer is not None), default=-1)
    if cell.layers and max(layer_numbers(cell.layers)) > last:
        raise ConfigurationError(
            f"{place} names layer {max(layer_numbers(cell.layers))}, but the last layer of the base is {last}.",
            f"Layers are counted from 0 to {last}.",
        )
    if not mine:
        taken = any(cell.matches(linear) for linear in linears)
        raise ConfigurationError(
            f"{place} {'comes after cells that take all it matches' if taken else 'matches no projection of the base'}"
            f" (modules: {cell.modules}, layers: {cell.layers or 'all'}).",
            "Remove it or move it up." if taken else f"The base has {_names(linears)}; all-linear takes them all.",
        )
    if isinstance(cell.modules, list):
        for name in cell.modules:
            if not any(linear.name == name or linear.name.endswith(f".{name}") for linear in linears):
                near = difflib.get_close_matches(name, names, n=1)
                raise ConfigurationError(
                    f"{place}: the base has no projection {name!r}.",
                    f"Did you mean {near[0]}?" if near else f"It has {', '.join(names)}.",
                )
    if tasks == 0 and (cell.needs_task or (cell.gate.per_task and not cell.frozen)):
        raise ConfigurationError(f"{place} has words that depend on the task, but no tasks are named.", "Name tasks.")
