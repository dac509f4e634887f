"""The routing figures in words, for forms, legends and captions; ``snapshot`` computes them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Definition:
    """``values`` says what stands in a cell; ``even`` is the middle of a scale with two ends, where there is one."""

    name: str
    title: str
    values: str
    text: str
    per_expert: bool = True
    even: float | None = None


class Definitions(NamedTuple):
    figures: tuple[Definition, ...]
    counted: str
    distance: str

    def of(self, name: str) -> Definition:
        return next(figure for figure in self.figures if figure.name == name)


FIGURES = (
    Definition(
        "mean_gate",
        "Mean gate",
        "mean applied weight",
        "How much an expert contributed: the weight with which it was applied, averaged over all decisions. "
        "Over the experts of a layer the gates sum to 1, so a layer with fewer experts has larger ones. They do not "
        "where a method applies the weights of its top-k as they are, or weights that are no shares at all.",
    ),
    Definition(
        "relative_gate",
        "Gate against even",
        "mean gate / mean over the layer's experts",
        "The mean gate over that of the average expert of its layer: 1 is an even share, 2 twice as much. "
        "Layers with different numbers of experts can be compared. Weights that can be negative have no such figure.",
        even=1.0,
    ),
    Definition(
        "selection_share",
        "Selection share",
        "share of decisions that selected the expert",
        "How often an expert was among the k selected. Over the experts it sums to k; "
        "with a dense gate every expert is always selected and all shares are 1.",
    ),
    Definition(
        "top1_share",
        "Top-1 share",
        "share of decisions with this expert first",
        "How often an expert had the largest probability before any cut. Over the experts it sums to 1.",
    ),
    Definition(
        "entropy",
        "Normalised entropy",
        "entropy before the cut / log E",
        "How undecided the router was: the entropy of its probabilities over the E experts before any cut, divided "
        "by log E and averaged over decisions. 0 is certain, 1 is undecided.",
        per_expert=False,
    ),
    Definition(
        "load_cv",
        "Load CV",
        "standard deviation / mean of the gates",
        "How unevenly the experts are used: the standard deviation of the mean gates over the experts, divided by "
        "their mean size. 0 is balanced; the square root of E − 1 means that one expert does everything.",
        per_expert=False,
    ),
)
COUNTED = (
    "Padding is no decision. Where the gate looks at each token, decisions are tokens; where it looks at the whole "
    "prompt or at the task, they are samples, which stand under prompt and answer alike. A method that decides for "
    "parts of a projection, such as blocks of its ranks, has a row for each part."
)
DISTANCE = (
    "Jensen–Shannon distance between two tasks: the square root of the Jensen–Shannon divergence (base 2) of their "
    "mean gates as distributions over the experts of one adapted projection. 0: routed alike; 1: no expert in common. "
    "Weights that can be negative are no distribution: for them it is √((1 − cosine) / 2), 1 for opposite weights."
)
DEFINITIONS = Definitions(FIGURES, COUNTED, DISTANCE)
