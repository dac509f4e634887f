"""The estimate of training memory against the measured peak, on a CUDA machine.

    python benchmarks/memory.py [--out FOLDER] [--steps 3] [--only 1B] [--rows 8] [--tokens 512]

Random weights serve: memory does not depend on their values. Each case builds a Llama-shaped base in bfloat16 on the
device, trains it with the studio's own trainer on rows of random tokens (of different lengths, so attention has a mask,
as with real data), and compares the highest memory that PyTorch allocated with ``core.memory``. Needs torch,
transformers and peft. Writes ``memory.jsonl`` and ``memory.md``; constants to set again stand at the head of
``core/memory.py``. Exit code 1 when a case is off by more than the bound that is promised.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core import catalog
from core.adapters.attach import attach
from core.data.batches import as_item
from core.data.sampling import MixtureSampler
from core.data.templates import Encoded
from core.home import RunFolder
from core.jobs.sinks import ListSink
from core.memory import Batch
from core.schema import ModelSpec, RunSpec
from core.training.alarms import Alarms
from core.training.loss import AnswerCollator
from core.training.plan import Plan, RunOrder
from core.training.probe import Probe
from core.training.routing import Routing
from core.training.settings import checkpoint_activations, training_arguments
from core.training.trainer import TaskTrainer
from core.units import GIB

SHAPES: dict[str, dict[str, Any]] = {
    "1B": {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "7B": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32,
    },
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 8, "modules": "all-linear"},
    "mosld": {"rank": 8, "modules": "all-linear", "experts": 8},
}
TASKS = ["one", "two"]
ANSWER = 8  # tokens of each answer
PROMISED = 0.15


@dataclass(frozen=True)
class Case:
    shape: str
    method: str
    rows: int
    tokens: int
    checkpointing: bool


class RandomRows(Dataset):
    """Rows of random tokens; each has between half and all of ``tokens``, one of every batch has them all."""

    def __init__(self, count: int, case: Case, vocabulary: int) -> None:
        draw = random.Random(0)
        lengths = [
            case.tokens if i % case.rows == 0 else draw.randint(case.tokens // 2, case.tokens) for i in range(count)
        ]
        self.items = [
            as_item(Encoded(draw.choices(range(3, vocabulary), k=n - ANSWER), [3] * ANSWER), i % len(TASKS))
            for i, n in enumerate(lengths)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.items[index]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for memory.jsonl and memory.md")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", choices=list(SHAPES), help="one of the shapes")
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 8], help="rows of a batch")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512], help="tokens of the longest row")
    parser.add_argument("--device", default="cuda:0")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device: nothing to measure.", file=sys.stderr)
        return 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = []
    with (arguments.out / "memory.jsonl").open("w", encoding="utf-8") as lines:
        for case in cases(arguments):
            found.append(measure(case, arguments.steps, arguments.device))
            lines.write(json.dumps(found[-1]) + "\n")
            lines.flush()
            print(json.dumps(found[-1]), flush=True)
    (arguments.out / "memory.md").write_text(markdown(found), encoding="utf-8")
    print(markdown(found))
    return int(any(one.get("error") or abs(one["off"]) > PROMISED for one in found))


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    shapes = [arguments.only] if arguments.only else list(SHAPES)
    for shape, method, rows, tokens, checkpointing in product(
        shapes, METHODS, arguments.rows, arguments.tokens, (False, True)
    ):
        yield Case(shape, method, rows, tokens, checkpointing)


def measure(case: Case, steps: int, device: str) -> dict[str, Any]:
    """Estimate and peak of one case in GiB, or why it did not run."""
    config = LlamaConfig(**SHAPES[case.shape], max_position_embeddings=4096, pad_token_id=0)
    spec = spec_of(case, steps)
    found: dict[str, Any] = vars(case) | {"gpu": torch.cuda.get_device_name(device), "torch": torch.__version__}
    estimate = estimated(spec, config, case)
    try:
        peak = trained(spec, config, case, device)
    except torch.OutOfMemoryError as error:
        return found | {"error": str(error).splitlines()[0]}
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    parts = {name: round(number / GIB, 3) for name, number in estimate.parts().items()}
    return found | {
        "estimate_gib": round(estimate.total / GIB, 3),
        "peak_gib": round(peak / GIB, 3),
        "off": round(estimate.total / peak - 1, 4),
        "parts_gib": parts,
    }


def spec_of(case: Case, steps: int) -> RunSpec:
    train = {"steps": steps, "batch_size": case.rows, "max_length": case.tokens, "log_every": 1}
    return RunSpec.parse(
        {
            "tasks": [{"dataset": "random"}],
            "model": {"dtype": "bfloat16"},
            "method": {"name": case.method, "options": METHODS[case.method]},
            "train": train | {"activation_checkpointing": case.checkpointing},
        }
    )


def estimated(spec: RunSpec, config: LlamaConfig, case: Case) -> Any:
    """As the studio estimates it before launch, from the config alone."""
    base = shapes(config.to_json_string())
    batch = Batch.of(spec.train, base.positions, case.tokens, ANSWER)
    return catalog.memory(spec.method, spec.model, base, spec.train, len(TASKS), True, batch)


@cache
def shapes(config: str) -> catalog.BaseShapes:
    """The layer shapes of a config, read by a child process as for any base."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(config, encoding="utf-8")
        return catalog.shapes(ModelSpec(base=folder), Path(folder))


def trained(spec: RunSpec, config: LlamaConfig, case: Case, device: str) -> int:
    """Train some steps with the studio's trainer; the highest memory that was allocated, in bytes."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            base = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.cuda.reset_peak_memory_stats(device)
    model = attach(base, spec.method, tasks=TASKS)
    if case.checkpointing:
        checkpoint_activations(model)
    with tempfile.TemporaryDirectory() as root:
        trainer = trainer_of(spec, model, case, config.vocab_size, RunFolder(Path(root)).create(), device)
        trainer.train()
    return torch.cuda.max_memory_allocated(device)


def trainer_of(
    spec: RunSpec, model: torch.nn.Module, case: Case, vocabulary: int, folder: RunFolder, device: str
) -> TaskTrainer:
    """The trainer of a run without validation rows."""
    rows = RandomRows(case.rows * spec.train.steps, case, vocabulary)
    mixture = MixtureSampler([len(rows)], "proportional", 1.0, spec.seed)
    plan, sink = Plan.of(spec.train, len(mixture)), ListSink()
    nothing = Probe([], SimpleNamespace(pad_id=0), "validation", rows=0, batch_size=1, max_length=case.tokens)
    return TaskTrainer(
        model,
        training_arguments(spec, plan, folder.checkpoints, device, bf16=True),
        plan=plan,
        order=InOrder(len(rows), mixture),
        dataset=rows,
        collator=AnswerCollator(0),
        tasks=TASKS,
        sink=sink,
        probe=nothing,
        routing=Routing(model, TASKS, folder, sink),
        alarms=Alarms(vocabulary, spec.train.max_grad_norm),
        checkpoint_root=folder.checkpoints,
        checkpoints_kept=1,
        checkpoint_facts={},
        patience=None,
    )


class InOrder(RunOrder):
    """Rows as they stand, so that every batch has one of full length."""

    def __init__(self, samples: int, mixture: MixtureSampler) -> None:
        super().__init__(mixture, samples)

    def __iter__(self) -> Iterator[int]:
        yield from range(self.samples)


def markdown(found: list[dict[str, Any]]) -> str:
    lines = [
        "| base | method | batch | checkpointing | estimate, GiB | measured, GiB | estimate off by |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    for one in found:
        head = f"| {one['shape']} | {one['method']} | {one['rows']} x {one['tokens']} | "
        head += "on" if one["checkpointing"] else "off"
        end = one.get("error") or f"{one['estimate_gib']:.2f} | {one['peak_gib']:.2f} | {one['off']:+.1%}"
        lines.append(f"{head} | {end} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
