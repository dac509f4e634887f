"""Routing figures as plain arrays; the one place that defines them. Imports no torch.

For one task, one role of token (prompt or answer) and one site (what one gate decides: for most methods an adapted
projection, else a part of one, such as a block of its ranks), over n decisions with probabilities ``p`` before any cut
and weights ``w`` as applied, E experts, k of them selected per decision:

mean gate            mean of ``w_e``: how much expert e contributed; over the experts it sums to 1 where
                     ``SiteInfo.sums_to_one`` says so, and can be negative where ``SiteInfo.signed`` does
selection share      decisions that selected e, over n; over the experts it sums to k
top-1 share          decisions whose largest probability was e's, over n; sums to 1
normalised entropy   mean entropy of ``p``, divided by log E: 0 certain, 1 undecided; 0 where E = 1
load CV              standard deviation of the mean gate across the experts, over the mean of its magnitude:
                     0 balanced, sqrt(E - 1) all on one
count                n

Padding is no decision. The unit says what one decision covers: a token, or a sample where the gate looks at the whole
sequence or at the task. A sample's decision holds for its prompt and its answer alike, so sample sites stand under both
roles with the same figures, counted in samples.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from core.home import whole

from ..errors import DataError, NotFoundError
from ..units import GIB, MIB

if TYPE_CHECKING:
    import pandas

ROLES = ("prompt", "answer")
PER_EXPERT = ("mean_gate", "selection_share", "top1_share")
PER_SITE = ("entropy", "load_cv", "count")
MOST_BYTES = GIB  # unpacked
VERSION = 2  # of the file: 1 knew neither parts of projections nor weights that are no shares
ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class SiteInfo:
    """What one gate decides about: an adapted projection, or a ``part`` of one, such as ``rank 0-1``.

    ``sums_to_one``: the weights of a decision are shares of a whole; ``signed``: they can be negative.
    """

    name: str
    layer: int
    projection: str
    experts: int
    selected: int
    gate: str
    unit: Literal["token", "sample"]
    part: str = ""
    sums_to_one: bool = True
    signed: bool = False

    @property
    def place(self) -> str:
        """Its name within a layer: ``q_proj``, or ``q_proj rank 0-1``."""
        return f"{self.projection} {self.part}".rstrip()

    def within(self, name: str | None) -> bool:
        """Whether ``name`` is its place, its whole projection, or nothing in particular."""
        return name in (None, self.place, self.projection)


def places(sites: Iterable[SiteInfo]) -> list[str]:
    """The places of sites that route anything: attention before feed-forward, parts by their numbers."""

    def order(site: SiteInfo) -> tuple:
        known = ORDER.index(site.projection) if site.projection in ORDER else len(ORDER)
        part = [(int(text) if text.isdigit() else 0, text) for text in re.split(r"(\d+)", site.part)]
        return known, site.projection, part

    return list(dict.fromkeys(site.place for site in sorted((s for s in sites if s.experts > 1), key=order)))


@dataclass
class RoutingSnapshot:
    """Axes role x task x site (x expert); NaN past a site's experts and where nothing was counted."""

    tasks: list[str]
    sites: list[SiteInfo]
    mean_gate: np.ndarray
    selection_share: np.ndarray
    top1_share: np.ndarray
    entropy: np.ndarray
    load_cv: np.ndarray
    count: np.ndarray
    roles: tuple[str, ...] = ROLES

    @classmethod
    def from_sums(cls, tasks: list[str], sites: list[SiteInfo], sums: list[np.ndarray]) -> RoutingSnapshot:
        """``sums``: one array per site, (roles, tasks, 3 * experts + 2): weights, selections, top-1 decisions (each
        per expert), entropy in nats, and decisions."""
        widest = max((site.experts for site in sites), default=0)
        shape = (len(ROLES), len(tasks), len(sites))
        experts = {name: np.full((*shape, widest), np.nan, np.float32) for name in PER_EXPERT}
        entropy, load_cv = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
        count = np.zeros(shape, np.float64)
        for index, (site, total) in enumerate(zip(sites, sums, strict=True)):
            n = total[..., -1]
            with np.errstate(invalid="ignore", divide="ignore"):
                mean = np.where(n[..., None] > 0, total[..., :-1] / n[..., None], np.nan)
                for position, name in enumerate(PER_EXPERT):
                    part = slice(position * site.experts, (position + 1) * site.experts)
                    experts[name][:, :, index, : site.experts] = mean[..., part]
                gates = mean[..., : site.experts]
                load_cv[:, :, index] = gates.std(-1) / np.abs(gates).mean(-1)
            scale = np.log(site.experts) if site.experts > 1 else 1.0
            entropy[:, :, index] = mean[..., -1] / scale
            count[:, :, index] = n
        return cls(list(tasks), list(sites), **experts, entropy=entropy, load_cv=load_cv, count=count)

    def save(self, path: str | Path) -> Path:
        """Write a whole ``.npz`` or nothing."""
        path = Path(path)
        sites = [asdict(site) for site in self.sites]
        head = {"version": VERSION, "tasks": self.tasks, "roles": list(self.roles), "sites": sites}
        arrays = {name: getattr(self, name) for name in (*PER_EXPERT, *PER_SITE)}
        with whole(path) as file:
            np.savez_compressed(file, head=np.array(json.dumps(head)), **arrays)
        return path

    @classmethod
    def load(cls, path: str | Path) -> RoutingSnapshot:
        path = Path(path)
        if not path.is_file():
            raise NotFoundError(f"There is no routing snapshot {path}.", "The run may not have reached that moment.")
        try:
            with zipfile.ZipFile(path) as packed:
                if (size := sum(entry.file_size for entry in packed.infolist())) > MOST_BYTES:
                    raise DataError(f"{path} would unpack to {size / MIB:,.0f} MiB.", "No run writes so much.")
            with np.load(path, allow_pickle=False) as file:
                head = json.loads(str(file["head"]))
                if head.get("version", 1) > VERSION:
                    raise DataError(f"{path} was written by a newer version of Tessera.", "Update this installation.")
                arrays = {name: file[name] for name in (*PER_EXPERT, *PER_SITE)}
            sites = [SiteInfo(**site) for site in head["sites"]]
        except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is no routing snapshot: {error}.", "Copy the run again.") from error
        return cls(head["tasks"], sites, **arrays, roles=tuple(head["roles"]))

    def to_frame(self) -> pandas.DataFrame:
        """One row for each role, task, site and expert; the per-site figures repeat for every expert."""
        import pandas

        records = []
        for r, role in enumerate(self.roles):
            for t, task in enumerate(self.tasks):
                for s, site in enumerate(self.sites):
                    shared = {
                        "role": role, "task": task, "layer": site.layer, "projection": site.projection,
                        "part": site.part, "site": site.name, "gate": site.gate, "unit": site.unit,
                        "shares": site.sums_to_one, "experts": site.experts,
                        **{name: float(getattr(self, name)[r, t, s]) for name in PER_SITE},
                    }  # fmt: skip
                    for expert in range(site.experts):
                        figures = {name: float(getattr(self, name)[r, t, s, expert]) for name in PER_EXPERT}
                        records.append({**shared, "expert": expert, **figures})
        named = ["role", "task", "layer", "projection", "part", "site", "gate", "unit", "shares", "experts", "expert"]
        return pandas.DataFrame.from_records(records, columns=[*named, *PER_EXPERT, *PER_SITE])
