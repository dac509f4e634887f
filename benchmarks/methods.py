"""Every method on a 1B-shaped model in bfloat16: step times and memory peaks on a CUDA machine.

    python benchmarks/methods.py [--out FOLDER] [--steps 8] [--only mosld,lora]

Random weights serve: what is timed does not depend on their values. Each method adapts every projection of a
Llama-shaped base (2048 wide, 16 blocks) with its own defaults and trains on rows of random tokens under bfloat16
autocast with AdamW and activation checkpointing, once as it is and once with attention and feed-forward of each block
under torch.compile. Times are medians of steps after three that are not counted, with nothing else at work on the GPU;
the peak is what PyTorch allocated in these steps, weights included. Needs torch,
transformers and peft. Writes ``methods.jsonl`` and ``methods.md``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.adapters.attach import attach
from core.adapters.methods import presets
from core.schema import MethodSpec

ROWS, TOKENS, PROMPT = 8, 512, 256
TASKS = ["one", "two", "three", "four"]
SHAPE = {
    "hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 16, "num_attention_heads": 16,
    "num_key_value_heads": 16, "vocab_size": 32000, "max_position_embeddings": 2048,
}  # fmt: skip
WARM = 3


def base() -> LlamaForCausalLM:
    """A billion random weights, made on the device."""
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        try:
            return LlamaForCausalLM(LlamaConfig(**SHAPE, attn_implementation="sdpa"))
        finally:
            torch.set_default_dtype(torch.float32)


def batch(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(seed)
    ids = torch.randint(0, SHAPE["vocab_size"], (ROWS, TOKENS), generator=generator, device="cuda")
    role = torch.where(torch.arange(TOKENS, device="cuda") < PROMPT, 1, 2).to(torch.int8).expand(ROWS, -1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": ids.masked_fill(role != 2, -100),
        "token_role": role,
        "task_index": torch.arange(ROWS, device="cuda") % len(TASKS),
        "use_cache": False,
    }


def spec(name: str) -> MethodSpec:
    if name == "split":
        cell = {"modules": "all-linear", "experts": 4, "down": "shared", "gate": "sequence"}
        return MethodSpec(name=name, cells=[cell])
    options = {"modules": "all-linear"} if "modules" in presets()[name].options.model_fields else {}
    return MethodSpec(name=name, options=options)


def worker(name: str, steps: int, parent: Connection) -> None:
    """One method in a process of its own: prepares each kind of run, then measures it when the parent says so."""
    for compiled in (False, True):
        found: dict[str, Any] = {"method": name, "compiled": compiled}
        try:
            if not compiled:
                model = attach(base(), spec(name), tasks=TASKS).train()
                model.enable_input_require_grads()
                model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
            else:
                for block in model.get_base_model().model.layers:  # inside what is checkpointed
                    block.self_attn.compile()
                    block.mlp.compile()
            trainer = Steps(model)
            trainer.run(WARM)
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        parent.send(None)
        parent.recv()
        if "error" not in found:
            torch.cuda.reset_peak_memory_stats()
            found |= trainer.timed(steps)
        parent.send(found)


class Steps:
    """Training steps on random rows."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(self.trained, lr=1e-4)
        self.tape = getattr(model.base_model, "tape", None)

    def run(self, steps: int) -> tuple[list[float], float]:
        """Seconds of each step, and the last loss."""
        times, loss = [], torch.zeros(())
        for step in range(steps):
            data = batch(step)
            torch.cuda.synchronize()
            began = time.perf_counter()
            with torch.autocast("cuda", torch.bfloat16):
                loss = self.model(**data).loss
                extra = None if self.tape is None else self.tape.auxiliary_loss()
                loss = loss if extra is None else loss + extra
            loss.backward()
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return times, loss.item()

    def timed(self, steps: int) -> dict[str, Any]:
        times, loss = self.run(steps)
        median = statistics.median(times)
        return {
            "trainable": sum(parameter.numel() for parameter in self.trained),
            "milliseconds": round(1000 * median, 1),
            "tokens_per_second": round(ROWS * TOKENS / median),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            "loss": round(loss, 3),
        }


def together(names: list[str], steps: int) -> Iterator[dict[str, Any]]:
    """Methods that load and compile side by side, and are measured one after the other while the rest wait."""
    context = multiprocessing.get_context("spawn")
    started = []
    for name in names:
        mine, theirs = context.Pipe()
        process = context.Process(target=worker, args=(name, steps, theirs), daemon=True)
        process.start()
        theirs.close()
        started.append((process, mine))
    for _ in range(2):
        for _, pipe in started:
            pipe.recv()  # ready, all of them
        for _, pipe in started:
            pipe.send(None)
            yield pipe.recv()
    for process, _ in started:
        process.join(10)
        process.kill()


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; ratios to plain LoRA of the same kind of run."""
    by = {(row["method"], row["compiled"]): row for row in rows}
    lines = [
        "| method | trainable | ms a step | to lora | compiled, ms | to lora | peak, GiB | compiled, GiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(row["method"] for row in rows):
        eager, compiled = by.get((name, False), {}), by.get((name, True), {})
        count = eager.get("trainable") or compiled.get("trainable")
        cells = [f"{count:,}" if count else "-"]
        for row, lora in ((eager, by.get(("lora", False))), (compiled, by.get(("lora", True)))):
            time_ = row.get("milliseconds")
            cells.append(f"{time_:.1f}" if time_ else "-")
            cells.append(f"{time_ / lora['milliseconds']:.2f}" if time_ and lora and "milliseconds" in lora else "-")
        cells += [str(row.get("peak_gib", "-")) for row in (eager, compiled)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", default="", help="methods, separated by commas")
    parser.add_argument("--together", type=int, default=6, help="methods that are prepared side by side")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    names = [name for name in arguments.only.split(",") if name] or list(presets())
    rows = []
    with (arguments.out / "methods.jsonl").open("w", encoding="utf-8") as file:
        for start in range(0, len(names), arguments.together):
            for row in together(names[start : start + arguments.together], arguments.steps):
                rows.append(row)
                print(json.dumps(row), flush=True)
                file.write(json.dumps(row) + "\n")
                file.flush()
                (arguments.out / "methods.md").write_text(table(rows) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
