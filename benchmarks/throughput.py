"""Training throughput of every method beside the frozen base, PEFT and the public loops, on random tokens.

    python -m benchmarks.throughput --shape 1b|7b|base|tiny [--grid core,methods] [--only frozen,peft-lora,mosld]

Random weights serve: what is timed does not depend on their values. All models of a call stand in turn on one
Llama-shaped base, bfloat16 on CUDA and float32 on the CPU, with all seven projections adapted: rank 8, 8 experts, top-2
where a method has these options (MixLoRA and MoR1E have pools instead and keep what is published), its own dropout and
balance loss, and routing recorded in every step. A step is forward, loss over all tokens, backward down to the input
embeddings (of the frozen base too) and fused AdamW, under bfloat16 autocast on CUDA; its tokens are drawn before.
Reported is the median of ``--steps`` steps after four that do not count; both ends of each wait for the device. Ratios
are taken within a call, so every call has its anchors. The peak is what PyTorch allocated in these steps, weights
included. TFLOP/s count the products of the base alone: two operations for each weight of a linear layer, the head
included, and each token, forward and for the gradient of the input. The share is that of the rate of a bfloat16
product of two random matrices of 8192 x 8192 in the same call. *First step* includes compilation with empty caches
(with ``--together`` cases compile side by side, and it is not reported).

On the CPU, eager cases take steps in turn, so that other work of the machine meets all of them alike. Needs torch,
transformers and peft. Writes ``throughput-SHAPE-GRID.json`` after each case; ``benchmarks/speed_page.py`` makes
tables and figures of these files.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bases import BATCHES, SHAPES, multiplied, random_base
from benchmarks.cases import GRIDS, MODES, Case, build, cases
from benchmarks.tables import table
from benchmarks.timing import GRAPHS, Steps, Timed, machine, matrix_rate, profiled, release, row
from core.home import write_json

Row = dict[str, Any]
UNCOMPILED = ("eager", "captured")


class Bench:
    """One base on one device, and the cases that are measured on it."""

    def __init__(self, shape: str, device: str, count: int, cold: bool = True, rate: float | None = None) -> None:
        self.device, self.count, self.cold = device, count, cold
        self.base = random_base(shape, device)
        self.weights, self.vocabulary = multiplied(self.base), self.base.config.vocab_size
        self.rate = rate or matrix_rate(device)

    def steps(self, case: Case) -> Steps:
        return Steps(case, build(case, self.base), self.device, self.vocabulary)

    def measured(self, case: Case) -> Row:
        """A case by itself; an error becomes its row."""
        began = time.monotonic()
        with ExitStack() as stack:
            stack.callback(release, self.device)
            if self.cold and case.mode not in UNCOMPILED:
                from torch._inductor.utils import fresh_cache

                stack.enter_context(fresh_cache())
            try:
                found = self._measure(case)
            except Exception as error:
                found = failed(case, error)
        return found | {"took_s": round(time.monotonic() - began, 1)}

    def _measure(self, case: Case) -> Row:
        steps = self.steps(case)
        first = steps.prepare()
        if self.device == "cuda" and case.mode not in GRAPHS:  # a graph takes its memory when it is made
            torch.cuda.reset_peak_memory_stats()
        timed = [steps.timed() for _ in range(self.count)]
        return row(steps, first, timed, self.weights, self.rate)

    def in_turn(self, chosen: Iterable[Case]) -> Iterator[Row]:
        """Eager cases whose steps alternate."""
        ready: list[tuple[Steps, float, list[Timed]]] = []
        for case in chosen:
            try:
                steps = self.steps(case)
                ready.append((steps, steps.prepare(), []))
            except Exception as error:
                yield failed(case, error)
        for _ in range(self.count):
            for steps, _, timed in ready:
                timed.append(steps.timed())
        for steps, first, timed in ready:
            yield row(steps, first, timed, self.weights, self.rate)


def failed(case: Case, error: Exception) -> Row:
    said = str(error).strip().splitlines() or [""]
    return case.facts() | {"error": f"{type(error).__name__}: {said[0][:200]}"}


def rows_of(bench: Bench, chosen: Sequence[Case], within: float, together: int, shape: str) -> Iterator[Row]:
    """Rows as they are measured; nothing is begun after ``within`` (a time of the monotonic clock)."""
    eager = [case for case in chosen if case.mode in UNCOMPILED]
    if bench.device == "cpu":
        yield from bench.in_turn(case for case in eager if case.mode == "eager")
        chosen = [case for case in chosen if case.mode not in UNCOMPILED]
    elif together > 1:
        chosen = eager + [case for case in chosen if case.mode not in UNCOMPILED]
    for number, case in enumerate(chosen):
        if time.monotonic() > within:
            print(f"The budget is spent: {case.label} and what follows is left out.", flush=True)
            return
        if together > 1 and case.mode not in UNCOMPILED:
            from benchmarks.together import side_by_side

            yield from side_by_side(shape, chosen[number:], bench.count, together, within, bench.rate)
            return
        yield bench.measured(case)


def said(found: Row) -> str:
    head = f"{found['label']} ({found['mode']}, {found['rows']} x {found['tokens']})"
    if "error" in found:
        return f"{head}: {found['error']}"
    return f"{head}: {found['ms']} ms, {found['tokens_per_s']:,} tokens/s, first step {found['first_step_s']} s"


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny")
    parser.add_argument("--grid", default="core", help=f"of {', '.join(GRIDS)}, separated by commas; or all")
    parser.add_argument("--only", default="", help="methods, separated by commas")
    parser.add_argument("--mode", choices=MODES, help="only cases of this kind")
    parser.add_argument("--batch", default="", help="rows x tokens, such as 8x1024; else what suits the shape")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no case is begun")
    parser.add_argument("--together", type=int, default=1, help="compiled cases that are prepared side by side")
    parser.add_argument("--warm-caches", action="store_true", help="let compilation use what earlier ones left")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--profile", default="", help="a method whose kernels are listed; nothing else is measured")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    chosen = parser.parse_args(arguments)
    grids = GRIDS if chosen.grid == "all" else tuple(chosen.grid.split(","))
    if unknown := [grid for grid in grids if grid not in GRIDS]:
        parser.error(f"there is no grid {unknown[0]!r}; there are {', '.join(GRIDS)}")
    chosen.grids = grids
    chosen.rows, chosen.tokens = map(int, chosen.batch.split("x")) if chosen.batch else BATCHES[chosen.shape]
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    began, told = time.monotonic(), parsed(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)
    bench = Bench(told.shape, told.device, told.steps, cold=not told.warm_caches)
    if told.profile:
        case = Case(told.profile, told.mode or "eager", told.rows, told.tokens)
        print(profiled(bench.steps(case)))
        return 0
    told.out.mkdir(parents=True, exist_ok=True)
    shown = []
    for grid in told.grids:
        chosen = cases(grid, told.rows, told.tokens)
        chosen = [case for case in chosen if not told.only or case.method in told.only.split(",")]
        chosen = [case for case in chosen if told.mode in (None, case.mode)]
        command = " ".join(["python -m benchmarks.throughput", *(sys.argv[1:] if arguments is None else arguments)])
        head = machine(told.device) | {"shape": told.shape, "grid": grid, "command": command, "steps": told.steps}
        report: Row = head | {"matrix_tflops": bench.rate and round(bench.rate, 1), "rows": []}
        for found in rows_of(bench, chosen, began + told.budget, told.together, told.shape):
            report["rows"].append(found)
            print(said(found), flush=True)
            write_json(told.out / f"throughput-{told.shape}-{grid}.json", report)
        shown.append(f"{told.shape}, {grid}: {head['device']}, torch {head['torch']}, ")
        shown[-1] += f"bf16 product {report['matrix_tflops']} TFLOP/s\n{table(report['rows'])}"
    print(json.dumps({"seconds": round(time.monotonic() - began, 1)}))
    print("\n\n".join(shown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
