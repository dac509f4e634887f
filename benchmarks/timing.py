"""Training steps of one model on random tokens, and how long they take."""

from __future__ import annotations

import gc
import platform
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from benchmarks.cases import TASKS, Case, compiled
from core.adapters.attach import tape_of
from core.errors import StudioError
from core.routing.recorder import RoutingRecorder
from core.training.graphs import StepGraphs
from core.training.masks import causal_alone
from core.units import GIB

GRAPHS = ("captured", "graphs")  # kinds of runs whose steps are CUDA graphs
WARM = 3  # steps after the first that are not counted
PRODUCT = 8192  # rows and columns of the product that the card's rate is measured with


class Timed(NamedTuple):
    """One step in seconds: until it was done, until its last kernel was issued, and of the processor's time."""

    seconds: float
    issued: float
    processor: float
    loss: float


class Steps:
    """A model with its optimiser; each call is one training step on tokens made anew.

    Gradients reach the input embeddings in every case, so that the backward of a frozen base is computed too.
    """

    def __init__(self, case: Case, model: nn.Module, device: str, vocabulary: int) -> None:
        self.case, self.model, self.device, self.vocabulary = case, model, device, vocabulary
        self.forward = compiled(model, case.mode)
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.embed = inner.get_input_embeddings()
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(self.trained, lr=1e-4, fused=device == "cuda") if self.trained else None
        self.generator = torch.Generator(device).manual_seed(1)
        try:
            self.tape = tape_of(model)
        except StudioError:
            self.tape = None
        self.recorder = RoutingRecorder(self.tape, TASKS) if self.tape is not None and case.recorder else None
        self.failures: list[str] = []
        self.graphs = self._graphs() if case.mode in GRAPHS else None

    def _graphs(self) -> StepGraphs:
        """Forward and backward as one CUDA graph, into whose own leaf the input embeddings are copied."""
        width = self.embed.weight.shape[1]
        self.leaf = torch.empty(
            self.case.rows, self.case.tokens, width, device=self.device, dtype=self.embed.weight.dtype
        ).requires_grad_()

        def work(batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            with torch.no_grad():
                self.leaf.copy_(batch["inputs_embeds"])
            loss = self.loss({**batch, "inputs_embeds": self.leaf})
            return loss, {"loss": loss}

        return StepGraphs(work, [*self.trained, self.leaf], ragged={}, told=self.failures.append)

    def batch(self) -> dict[str, Tensor]:
        """Input embeddings and labels; for mixtures also each row's task and each token's role, half prompt."""
        rows, tokens, device = self.case.rows, self.case.tokens, self.device
        ids = torch.randint(0, self.vocabulary, (rows, tokens), generator=self.generator, device=device)
        batch = {"inputs_embeds": self.embed(ids).detach().requires_grad_(), "labels": ids}
        if self.tape is not None:
            role = torch.where(torch.arange(tokens, device=device) < tokens // 2, 1, 2).to(torch.int8)
            batch["task_index"] = torch.arange(rows, device=device) % len(TASKS)
            batch["token_role"] = role.repeat(rows, 1)  # laid out as in a run: a graph copies it
        return batch

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            with causal_alone():
                loss = self.forward(**batch).loss
            auxiliary = None if self.tape is None else self.tape.auxiliary_loss()
            loss = loss if auxiliary is None else loss + auxiliary
        if self.recorder is not None:
            self.recorder.update()
        return loss

    def step(self, batch: dict[str, Tensor]) -> Tensor:
        if self.graphs is not None:
            loss = self.graphs(batch)["loss"]
        else:
            loss = self.loss(batch)
            loss.backward()
        if self.optimiser is not None:
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        return loss

    def timed(self) -> Timed:
        """One step; its batch is made before."""
        batch = self.batch()
        self.wait()
        spent, began = time.process_time(), time.perf_counter()
        loss = self.step(batch)
        issued = time.perf_counter() - began
        self.wait()
        return Timed(time.perf_counter() - began, issued, time.process_time() - spent, loss.item())

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def prepare(self) -> float:
        """Seconds of the first step, where compilation happens; then the other steps that do not count."""
        first = self.timed().seconds
        for _ in range(WARM):
            self.timed()
        if self.failures:
            raise RuntimeError(f"no CUDA graph: {self.failures[0]}")
        return first

    def waits(self) -> int:
        """How often one step waits for the device."""
        batch = self.batch()
        self.wait()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                self.step(batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in said)


def row(steps: Steps, first: float, timed: Sequence[Timed], weights: int, rate: float | None) -> dict[str, Any]:
    """What is written of a case. ``weights``: of the base, with which every token is multiplied; counted once forward
    and once for the gradient of the input, two operations each. ``rate``: TFLOP/s that the device reaches."""
    case, seconds = steps.case, [step.seconds for step in timed]
    median = statistics.median(seconds)
    tokens = case.rows * case.tokens
    teraflops = 4 * weights * tokens / median / 1e12
    found = case.facts() | {
        "ms": round(1e3 * median, 2),
        "ms_least": round(1e3 * min(seconds), 2),
        "ms_most": round(1e3 * max(seconds), 2),
        "ms_issued": round(1e3 * statistics.median(step.issued for step in timed), 2),
        "tokens_per_s": round(tokens / median),
        "trainable": sum(parameter.numel() for parameter in steps.trained),
        "first_step_s": round(first, 2),
        "tflops": round(teraflops, 2),
        "share": None if rate is None else round(teraflops / rate, 4),
        "loss": round(timed[-1].loss, 3),
    }
    if case.mode not in ("eager", "captured"):
        found |= {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}
    if steps.device == "cuda":
        return found | {"peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2), "waits": steps.waits()}
    return found | {"ms_processor": round(1e3 * statistics.median(step.processor for step in timed), 2)}


def matrix_rate(device: str, times: int = 10) -> float | None:
    """TFLOP/s of a bfloat16 product of random square matrices on this device: the median of some."""
    if device != "cuda":
        return None
    left, right = (torch.randn(PRODUCT, PRODUCT, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(WARM + times):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        left @ right
        end.record()
        torch.cuda.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    return 2 * PRODUCT**3 / statistics.median(seconds[WARM:]) / 1e12


def release(device: str) -> None:
    """Give back what the last model held, its compiled code included."""
    torch._dynamo.reset()
    counters.clear()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def machine(device: str) -> dict[str, str]:
    import peft
    import transformers

    name = (
        torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    return {
        "device": name, "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__, "peft": peft.__version__,
    }  # fmt: skip


def profiled(steps: Steps, count: int = 2, rows: int = 25) -> str:
    """Kernels by their time on the device over some steps, and the time that the host took to issue them."""
    from torch.profiler import ProfilerActivity, profile

    cuda = steps.device == "cuda"
    steps.prepare()
    batches = [steps.batch() for _ in range(count)]
    steps.wait()
    began = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        for batch in batches:
            steps.step(batch)
        issued = time.perf_counter() - began
        steps.wait()
    seconds = time.perf_counter() - began
    averages = profiler.key_averages()
    table = averages.table(
        sort_by="self_device_time_total" if cuda else "self_cpu_time_total", row_limit=rows, max_name_column_width=90
    )
    kernels = sum(event.self_device_time_total for event in averages) / 1e3
    return (
        f"{table}\n{count} steps: {1e3 * seconds:.1f} ms with the profiler, kernels {kernels:.1f} ms, "
        f"issued after {1e3 * issued:.1f} ms"
    )
