"""Resilient fusion: task arithmetic whose task vectors cross a noisy or hostile channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from core.errors import ConfigurationError, DataError

from .base import FusionMethod
from .task_arithmetic import TaskArithmeticOptions, check_weights

if TYPE_CHECKING:
    from core.data.tasks import Task
    from core.fusion.setting import Fused, Setting

Attack = Literal["ideal", "awgn", "worst_sum", "worst_strongest"]
Protection = Literal[
    "none",
    "drop_embed",
    "freeze_embed",
    "error_protected",
    "layer_aware",
    "layer_random",
    "embeddings_first",
    "task_protect",
]
REALIGN = "realign"
MOST_POINTS = 10_000  # of a sweep: each is scored on all tasks
ABLATION = ["none", "freeze_embed", "realign", "freeze_embed+realign", "error_protected", "layer_aware"]


def split_arm(arm: str) -> tuple[str, bool]:
    """Protection and whether it is realigned, of an arm such as ``freeze_embed+realign``."""
    parts = [part.strip() for part in arm.split("+")]
    protections = [part for part in parts if part != REALIGN] or ["none"]
    if len(protections) > 1 or protections[0] not in get_args(Protection):
        raise ValueError(f"{arm!r} is none of {', '.join(get_args(Protection))}, with or without +{REALIGN}")
    return protections[0], REALIGN in parts


class RMtllmfOptions(TaskArithmeticOptions):
    snr: float | None = Field(
        10.0,
        ge=-60,
        le=100,
        description="Signal-to-noise ratio of what each run sends; empty: an ideal channel.",
        json_schema_extra={"unit": "dB"},
    )
    attack: Attack = Field(
        "awgn",
        description="Noise of one power for each run (awgn), or the same energy where it lowers the sum rate most "
        "(worst_sum) or all on the strongest run (worst_strongest); ideal: no noise.",
    )
    transmission: Literal["delta", "factors"] = Field(
        "delta",
        description="What is sent: every entry of the updates, or the two factors of adapters, each at this SNR. "
        "Different experiments: do not compare their curves.",
    )
    common_noise: bool = Field(False, description="One noise power for all runs, from their mean power.")
    shrinkage: bool = Field(
        False, description="The receiver scales to the least mean squared error, knowing the SNR and no attack."
    )
    protection: Protection = Field(
        "freeze_embed",
        description="What noise cannot reach: embeddings frozen in training (freeze_embed), zeroed before sending "
        "(drop_embed) or sent without error (error_protected); the most sensitive layer groups within the budget "
        "(layer_aware; layer_random and embeddings_first to compare); whole runs (task_protect).",
    )
    protected_tasks: list[str] = Field(default_factory=list, description="Runs that task_protect sends without noise.")
    budget: float = Field(0.1, gt=0, le=1, description="Share of the sent entries that layer groups may protect.")
    realign: bool = Field(True, description="Train the fused model on a few labelled training rows of every task.")
    realign_form: Literal["auto", "adapter", "whole"] = Field(
        "auto",
        description="What realigning trains: a fresh low-rank adapter on top, or the whole updates. "
        "auto: whole where a run is a full fine-tune.",
    )
    realign_rank: int = Field(8, ge=1, le=1024, description="Rank of the fresh adapter.")
    shots: int = Field(16, ge=1, le=1_000_000, description="Labelled training rows of each task that realigning sees.")
    steps: int = Field(
        50, ge=1, le=1_000_000, description="Most steps of realigning; it stops when held-out shots no longer gain."
    )
    batch_size: int = Field(4, ge=1, le=1_000_000, description="Rows of each task in a step of realigning.")
    learning_rate: float | None = Field(
        None, gt=0, le=1, description="Of realigning; empty: 1e-4 for an adapter on top, 1e-5 for whole updates."
    )
    sweep_snr: list[float] = Field(
        default_factory=list,
        description="Before fusing, score these SNRs in dB, such as 30, 20, 10, 5, 0, -5; empty: no sweep.",
        json_schema_extra={"unit": "dB"},
    )
    sweep_protections: list[str] = Field(
        default_factory=lambda: list(ABLATION),
        description="Arms of the sweep: protections, each alone or as protection+realign; realign is none+realign.",
    )
    sweep_attacks: list[str] = Field(
        default_factory=lambda: ["awgn", "worst_sum", "worst_strongest"],
        description="Attacks of the sweep; the ideal channel is always scored once.",
    )
    sweep_seeds: int = Field(5, ge=1, le=100, description="Draws of the noise at each point of the sweep.")
    sweep_rows: int = Field(
        64, ge=1, le=1_000_000, description="Test rows of each task that a point of the sweep scores."
    )

    @property
    def noisy(self) -> bool:
        """Whether the model that is saved crosses a channel with noise."""
        return self.snr is not None and self.attack != "ideal"

    @field_validator("sweep_protections")
    @classmethod
    def _known_arms(cls, arms: list[str]) -> list[str]:
        for arm in arms:
            split_arm(arm)
        return list(dict.fromkeys(arms))

    @field_validator("sweep_attacks")
    @classmethod
    def _known_attacks(cls, attacks: list[str]) -> list[str]:
        for attack in attacks:
            if attack not in get_args(Attack):
                raise ValueError(f"{attack!r} is none of {', '.join(get_args(Attack))}")
        return list(dict.fromkeys(attacks))

    @field_validator("sweep_snr")
    @classmethod
    def _each_once(cls, values: list[float]) -> list[float]:
        if any(not -60 <= value <= 100 for value in values):
            raise ValueError("an SNR lies between -60 and 100 dB")
        return list(dict.fromkeys(values))

    @model_validator(mode="before")
    @classmethod
    def _noise_has_full_rank(cls, data: Any) -> Any:
        """Noise on whole updates has full rank: an SVD of what is saved would filter it out."""
        if not isinstance(data, dict) or data.get("form", "auto") != "auto":
            return data
        noisy = data.get("attack") != "ideal" and data.get("snr", 10.0) is not None
        return data | {"form": "dense"} if noisy and data.get("transmission", "delta") == "delta" else data

    @model_validator(mode="after")
    def _tasks_are_named(self) -> Self:
        arms = [self.protection, *(split_arm(arm)[0] for arm in self.sweep_protections if self.sweep_snr)]
        if "task_protect" in arms and not self.protected_tasks:
            raise ValueError("protected_tasks must name a run where task_protect is chosen")
        if self.sweep_snr and not (self.sweep_protections and self.sweep_attacks):
            raise ValueError("a sweep needs sweep_protections and sweep_attacks")
        return self

    @model_validator(mode="after")
    def _sweep_ends(self) -> Self:
        noisy = len([attack for attack in self.sweep_attacks if attack != "ideal"])
        points = len(self.sweep_protections) * (1 + noisy * len(self.sweep_snr) * self.sweep_seeds)
        if points > MOST_POINTS:
            raise ValueError(f"the sweep has {points:,} points, each scored on all tasks; at most {MOST_POINTS:,}")
        return self


def check(options: RMtllmfOptions, names: Sequence[str], tasks: Sequence[Task]) -> None:
    """Refuse names that are not fused, tasks without the rows that are needed, and a form that noise cannot have."""
    check_weights(options, names)
    check_protected(options.protected_tasks, names)
    if options.form == "concatenated" and options.noisy and options.transmission == "delta":
        raise ConfigurationError(
            "method.options.form is concatenated, but noise on whole updates is no sum of the runs' factors.",
            "Leave it at auto, or set method.options.transmission to factors.",
        )
    arms = [split_arm(arm) for arm in options.sweep_protections if options.sweep_snr]
    realigned = options.realign or any(again for _, again in arms)
    ranked = "layer_aware" in (options.protection, *(protection for protection, _ in arms))
    for task in tasks if realigned or ranked else ():
        if not task.size("train"):
            what = "realigning" if realigned else "layer_aware"
            raise DataError(
                f"{task.name} has no training rows, and {what} needs a few with their answers.",
                "Upload some, leave the task out, or choose another protection without realigning.",
            )


def check_protected(protected: Sequence[str], names: Sequence[str]) -> None:
    """Raises ConfigurationError where a run that task_protect names is not fused."""
    for name in protected:
        if name not in names:
            raise ConfigurationError(
                f"method.options.protected_tasks names {name}, which is not fused here.",
                f"The runs are {', '.join(names)}.",
            )


def fuse(setting: Setting, options: RMtllmfOptions) -> Fused:
    from ..resilient.resilience import resilient

    return resilient(setting, options)


METHODS = (
    FusionMethod(
        name="r_mtllmf",
        title="Resilient fusion (R-MTLLMF)",
        summary="Task arithmetic over a noisy or hostile channel: embeddings frozen, then a few-shot realignment.",
        source="Djuhera et al. 2024, arXiv:2411.18220 (abstract alone; formulas and settings are the studio's)",
        options=RMtllmfOptions,
        fuse=fuse,
        badge="R-MTLLMF-inspired, studio specification",
        note="Of the paper the abstract and summaries were read, not the body: channel, attacks and protections follow "
        "its description, every formula and setting is the studio's, and no number of the paper is claimed.",
        check=check,
    ),
)
