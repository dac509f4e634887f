"""Which parameters a hostile channel cannot reach: by their group in the architecture, by layer, or by task."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.errors import ConfigurationError
from core.fusion.candidate import Candidate
from core.fusion.delta import TaskVector
from core.fusion.methods.r_mtllmf import check_protected

EMBEDDINGS = "embeddings"
RANKED = ("layer_aware", "layer_random", "embeddings_first")  # choose layer groups within a budget
PARTS = {"attention": re.compile("attn|attention", re.I), "MLP": re.compile("mlp|ffn|feed_forward|fc", re.I)}


@dataclass(frozen=True)
class Shield:
    """``dropped`` paths are not sent: the base's own values stay. ``clean`` ones and all of ``users`` have no noise."""

    dropped: frozenset[str] = frozenset()
    clean: frozenset[str] = frozenset()
    users: frozenset[int] = frozenset()

    def covers(self, user: int, path: str) -> bool:
        return user in self.users or path in self.clean


def embedding_paths(candidate: Candidate) -> frozenset[str]:
    """The paths that are tables of tokens or the output head."""
    head = candidate.model.get_output_embeddings()
    modules = dict(candidate.model.named_modules())
    return frozenset([*candidate.embeddings, *(path for path in candidate.paths if modules[path] is head)])


def layer_groups(paths: Sequence[str], embeddings: frozenset[str]) -> dict[str, list[str]]:
    """Paths by group: the embeddings, and attention and MLP of every block."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(group_of(path, embeddings), []).append(path)
    return groups


def group_of(path: str, embeddings: frozenset[str]) -> str:
    if path in embeddings:
        return EMBEDDINGS
    block = next((part for part in path.split(".") if part.isdecimal()), None)
    kind = next((name for name, pattern in PARTS.items() if pattern.search(path)), "other")
    return kind if block is None else f"block {block} {kind}"


def within_budget(order: Sequence[str], sizes: Mapping[str, int], budget: float) -> list[str]:
    """The first groups of ``order`` that fit, whatever does not is passed over; ``budget``: a share of all entries."""
    chosen, room = [], budget * sum(sizes.values())
    for name in order:
        if sizes[name] <= room:
            chosen.append(name)
            room -= sizes[name]
    return chosen


@dataclass(frozen=True)
class Protector:
    """Makes the shield of an arm. ``sensitivity``: the groups at an SNR, the one that noise hurts most first."""

    vectors: Sequence[TaskVector]
    embeddings: frozenset[str]
    groups: Mapping[str, list[str]]
    sizes: Mapping[str, int]  # entries sent of each path
    budget: float
    protected_tasks: Sequence[str]
    sensitivity: Callable[[float], Sequence[str]]

    def shield(self, protection: str, snr: float | None, seed: int) -> Shield:
        """The shield of a protection; ``seed`` draws a random choice.

        Without noise (``snr`` None) only what is not sent at all counts.
        Raises ConfigurationError where embeddings were to be frozen in training and were not.
        """
        if protection == "freeze_embed" and self.embeddings:
            trained = [v.name for v in self.vectors if self.embeddings & v.deltas.keys()]
            raise ConfigurationError(
                f"freeze_embed has to be chosen before training, but {', '.join(trained)} trained the embeddings.",
                "Set method.options.protection to drop_embed, or fuse runs that left them frozen.",
            )
        if protection == "drop_embed":
            return Shield(dropped=self.embeddings)
        if snr is None or protection in ("none", "freeze_embed"):
            return Shield()
        if protection == "error_protected":
            return Shield(clean=self.embeddings)
        if protection == "task_protect":
            return Shield(users=frozenset(users_of(self.protected_tasks, self.vectors)))
        sizes = {name: sum(self.sizes[path] for path in paths) for name, paths in self.groups.items()}
        chosen = within_budget(self._order(protection, snr, seed), sizes, self.budget)
        return Shield(clean=frozenset(path for name in chosen for path in self.groups[name]))

    def _order(self, protection: str, snr: float, seed: int) -> list[str]:
        names = list(self.groups)
        if protection == "layer_aware":
            return list(self.sensitivity(snr))
        if protection == "layer_random":
            return [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
        return sorted(names, key=lambda name: name != EMBEDDINGS)


def without_effect(protection: str, embeddings: frozenset[str]) -> bool:
    """Whether an arm that protects embeddings protects nothing, because no vector has any."""
    return not embeddings and protection in ("drop_embed", "freeze_embed", "error_protected")


def users_of(names: Sequence[str], vectors: Sequence[TaskVector]) -> list[int]:
    """The places of runs by name; raises ConfigurationError for a name that is not fused."""
    known = [vector.name for vector in vectors]
    check_protected(names, known)
    return [known.index(name) for name in names]
