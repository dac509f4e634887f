"""Two ways to score the same token ids: lm-evaluation-harness's HF backend and the studio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from core.data.templates import TextEncoder
from core.evaluation.options import score_options
from core.evaluation.trees import OptionSample
from core.evaluation.view import ModelView
from core.home import BUNDLED_BASE_FOLDER
from core.units import GIB

Samples = dict[str, list[OptionSample]]
Scores = list[list[float]]  # of every sample, its options


class Harness:
    """``HFLM`` around a model in memory. ``batch`` auto: the number found for the longest request, at most ``most``."""

    def __init__(
        self, model: nn.Module, samples: Samples, most: int, *, softmax: str | None = None, batch: Any = "auto"
    ) -> None:
        from lm_eval.models.huggingface import HFLM

        tokenizer = AutoTokenizer.from_pretrained(BUNDLED_BASE_FOLDER)
        self.samples = [sample for rows in samples.values() for sample in rows]
        self.requests = [(("", ""), s.prompt, option) for s in self.samples for option in s.options]
        self.model = HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=batch, max_batch_size=most, softmax_dtype=softmax
        )
        if batch == "auto":
            by_length = sorted(self.requests, key=lambda request: -len(request[1] + request[2]))
            self.model.batch_size_per_gpu = self.model._detect_batch_size(by_length, 0)
        self.batch = str(self.model.batch_size_per_gpu)

    def warm_up(self) -> None:
        self.model._loglikelihood_tokens(self.requests[:: max(1, len(self.requests) // 64)], disable_tqdm=True)

    def scores(self) -> Scores:
        found = iter(self.model._loglikelihood_tokens(self.requests, disable_tqdm=True))
        return [[next(found)[0] for _ in sample.options] for sample in self.samples]


class Studio:
    def __init__(self, model: nn.Module, encoder: TextEncoder, samples: Samples, limit: int, way: str = "tree") -> None:
        self.view = ModelView(model, encoder, max_length=limit)
        self.samples, self.way, self.batch = samples, way, "tokens"

    def warm_up(self) -> None:
        for rows in self.samples.values():
            score_options(self.view, rows[:: max(1, len(rows) // 16)], way=self.way)

    def scores(self) -> Scores:
        return [
            list(one.sums) for rows in self.samples.values() for one in score_options(self.view, rows, way=self.way)
        ]


def timed(sides: dict[str, Harness | Studio], repeats: int, device: str) -> Iterable[dict[str, Any]]:
    """A row for each side; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, int] = {}
    for side in sides.values():
        side.warm_up()
    for _ in range(repeats):
        for name, side in sides.items():
            if device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            clock = time.perf_counter if device == "cuda" else time.process_time
            start = clock()
            scores = side.scores()
            seconds[name].append(clock() - start)
            peaks[name] = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    count, options = len(scores), sum(map(len, scores))
    for name, side in sides.items():
        middle = statistics.median(seconds[name])
        yield {
            "who": name,
            "batch": side.batch,
            "seconds": round(middle, 4),
            "all_seconds": [round(value, 4) for value in seconds[name]],
            "samples_per_s": round(count / middle, 1),
            "options_per_s": round(options / middle, 1),
            "peak_gib": round(peaks[name] / GIB, 2),
        }


def differences(ones: Scores, others: Scores) -> dict[str, float]:
    """Of all options' log-likelihoods, and the share of samples in which the same option is the likeliest."""
    apart = [abs(a - b) for one, other in zip(ones, others, strict=True) for a, b in zip(one, other, strict=True)]
    same = [max(one) == one[other.index(max(other))] for one, other in zip(ones, others, strict=True)]
    return {"largest": max(apart), "mean": sum(apart) / len(apart), "same": sum(same) / len(same)}
