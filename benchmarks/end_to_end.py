"""Training on real short samples from rows to steps: TRL's SFTTrainer with PEFT's LoRA against Tessera.

    python -m benchmarks.end_to_end [--data DIR] [--shape 1b] [--rows 16 64] [--steps 100] [--out FOLDER]
    python benchmarks/end_to_end.py --device cpu --shape tiny --rows 8 --steps 40

``DIR`` holds ``<task>/train.jsonl`` with input, output and perhaps choices; without it demo data are made. A base of
random weights is saved once, and every variant loads it and trains a rank-8 adapter on all projections: TRL unpacked,
with ``packing`` and with ``padding_free``, Tessera's lora and mosld (dropout on A, balance loss and curves as by
default) through ``core.training.run.train_adapter`` as a job runs it: with its defaults (packed, and on CUDA with steps
recorded as graphs), padded, and with ``train.compile`` off and on.

Fair: one tokenizer made the ids of all variants, with the loss on answer tokens alone; batches hold the same samples in
the same order (TRL's packing alone sorts samples anew; a step of it has as many tokens, in one row, the layout that
suits the attention it is given); same base type (bfloat16 under autocast on CUDA), SDPA attention, fused AdamW,
clipping, learning rate, and a point of the curves every ten steps; no activation checkpointing, no saving while it is
timed. What counts is tokens that are no padding, between the points of the curves (where both trainers wait for the
device) after the warm-up: the median over these stretches and the total. ``ready`` is what passes before the first
step: loading, tokens, preparing. TRL begins with token ids, Tessera with texts.

Writes ``end_to_end.jsonl`` and ``end_to_end.md``. Needs torch, transformers, peft and trl.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import itertools
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainerCallback
from transformers.trainer_callback import PrinterCallback

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bases import SHAPES
from core.data.batches import TaskDataset
from core.data.sampling import MixtureSampler
from core.data.store import DatasetInfo, DatasetStore
from core.data.tasks import load_tasks
from core.data.templates import TextEncoder
from core.demo_data import generate
from core.home import ASSETS, RunFolder
from core.jobs.sinks import ListSink
from core.schema import RunSpec
from core.training.plan import RunOrder
from core.training.run import train_adapter
from core.units import GIB

SHORT = "clinc_domain,snips_intent,rt_polarity,sms_spam,query_wellformed,svamp"
EVERY = 10  # steps between points of the curves
WARM = 20  # steps that are not counted
RATE = 1e-4
METHODS = {
    "lora": {"rank": 8, "alpha": 16, "modules": "all-linear"},
    "mosld": {"rank": 8, "alpha": 16, "modules": "all-linear", "experts": 8},
}
Marks = list[tuple[int, float]]  # steps done and the time, the device having caught up


@dataclass(frozen=True)
class Setting:
    """One size of batch, with the samples of the whole run in order."""

    base: Path
    store: DatasetStore
    rows: int
    steps: int
    device: str

    def spec(self, method: str = "lora", **train: Any) -> RunSpec:
        never = {"evaluate_every": self.steps, "checkpoint_every": self.steps, "routing_moments": 0}
        train = {**never, "validation_rows": 1, "log_every": EVERY, "learning_rate": RATE, "warmup": 0, **train}
        options = METHODS[method]
        return RunSpec.parse(
            {
                "model": {"base": str(self.base)},
                "tasks": [{"dataset": info.id} for info in self.store.list()],
                "method": {"name": method, "options": options},
                "train": {"steps": self.steps, "batch_size": self.rows, "schedule": "constant", **train},
            }
        )

    @cached_property
    def items(self) -> list[dict[str, Any]]:
        """The samples as ids, in the order in which Tessera trains on them."""
        spec = self.spec()
        dataset = TaskDataset(load_tasks(self.store, spec.tasks, 0), TextEncoder(self.base), "train", 512)
        order = RunOrder(MixtureSampler(dataset.sizes, "proportional", 1.0, spec.seed), self.steps * self.rows)
        return [dataset[index] for index in order]

    @cached_property
    def tokens(self) -> list[int]:
        """Of each step."""
        lengths = [len(item["input_ids"]) for item in self.items]
        return [sum(lengths[i : i + self.rows]) for i in range(0, len(lengths), self.rows)]

    @cached_property
    def padded(self) -> float:
        """Positions of padded batches for each token."""
        lengths = [len(item["input_ids"]) for item in self.items]
        longest = [max(lengths[i : i + self.rows]) for i in range(0, len(lengths), self.rows)]
        return sum(longest) * self.rows / sum(lengths)


class Points(ListSink):
    """Notes when the points of the curves come."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: Marks = []
        self.started = 0.0

    def emit(self, kind: str, **fields: Any) -> None:
        super().emit(kind, **fields)
        if kind == "started":
            self.started = time.perf_counter()
        if kind == "metrics" and "loss" in fields["values"]:
            self.marks.append((fields["step"], time.perf_counter()))


def tessera(method: str, **train: Any) -> Callable[[Setting], dict[str, Any]]:
    def run(setting: Setting) -> dict[str, Any]:
        sink, began = Points(), time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            spec = setting.spec(method, **train)
            run_folder = RunFolder(Path(folder)).create()
            train_adapter(spec, run_folder, setting.store, sink, device=setting.device, resume=False)
        loss = next(event["values"]["loss"] for event in reversed(sink.of("metrics")) if "loss" in event["values"])
        said = [event["message"] for event in sink.of("log") if "packed" in event["message"]]
        return {
            "ready_s": sink.started - began,
            "loss": loss,
            **rates(sink.marks, setting.tokens),
            **({"said": said} if said else {}),
        }

    return run


class Marker(TrainerCallback):
    """Notes when TRL logs; Trainer has read the loss by then."""

    def __init__(self) -> None:
        self.marks: Marks = []
        self.started = 0.0
        self.losses: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" in logs:
            self.marks.append((state.global_step, time.perf_counter()))
            self.losses.append(float(logs["loss"]))


def trl(packing: bool = False, padding_free: bool = False, **more: Any) -> Callable[[Setting], dict[str, Any]]:
    def run(setting: Setting) -> dict[str, Any]:
        from datasets import Dataset
        from peft import LoraConfig
        from trl import SFTConfig, SFTTrainer

        rows = Dataset.from_list([{name: item[name] for name in ("input_ids", "labels")} for item in setting.items])
        cuda, marker, began = setting.device != "cpu", Marker(), time.perf_counter()
        each = round(sum(setting.tokens) / setting.steps)
        layout = {"per_device_train_batch_size": 1, "max_length": each} if packing else {"max_length": None}
        with tempfile.TemporaryDirectory() as folder:
            settings = {
                "output_dir": folder, "max_steps": setting.steps, "per_device_train_batch_size": setting.rows,
                "learning_rate": RATE, "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0,
                "optim": "adamw_torch_fused", "bf16": cuda, "use_cpu": not cuda, "gradient_checkpointing": False,
                "logging_steps": EVERY, "save_strategy": "no", "report_to": [], "disable_tqdm": True,
                "train_sampling_strategy": "sequential", "packing": packing, "padding_free": padding_free,
                "completion_only_loss": False, "dataset_num_proc": None, **layout, **more,
                "model_init_kwargs": {"dtype": "bfloat16" if cuda else "float32", "attn_implementation": "sdpa"},
            }  # fmt: skip
            trainer = SFTTrainer(
                model=str(setting.base),
                args=SFTConfig(**settings),
                train_dataset=rows,
                processing_class=AutoTokenizer.from_pretrained(setting.base),
                peft_config=LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear"),
                callbacks=[marker],
            )
            trainer.remove_callback(PrinterCallback)
            packed = [len(row["input_ids"]) for row in trainer.train_dataset] if packing else None
            trainer.train()
        tokens = setting.tokens if packed is None else list(itertools.islice(itertools.cycle(packed), setting.steps))
        return {"ready_s": marker.started - began, "loss": marker.losses[-1], **rates(marker.marks, tokens)}

    return run


def rates(marks: Marks, tokens: Sequence[int]) -> dict[str, Any]:
    """Tokens per second between the points of the curves after the warm-up."""
    marks = [mark for mark in marks if mark[0] >= WARM]
    stretches = [(sum(tokens[a:b]), end - start, b - a) for (a, start), (b, end) in itertools.pairwise(marks)]
    seconds = sum(time_ for _, time_, _ in stretches)
    return {
        "tokens_per_second": statistics.median(count / time_ for count, time_, _ in stretches),
        "overall": sum(count for count, _, _ in stretches) / seconds,
        "ms_per_step": 1000 * statistics.median(time_ / steps for _, time_, steps in stretches),
    }


def variants(compiled: bool) -> Iterator[tuple[str, Callable[[Setting], dict[str, Any]]]]:
    """The most telling ones first."""
    yield "trl lora", trl()
    yield "trl lora, packing", trl(packing=True)
    yield "tessera lora", tessera("lora")
    yield "tessera mosld", tessera("mosld")
    yield "tessera lora, padded", tessera("lora", packing=False)
    yield "tessera mosld, padded", tessera("mosld", packing=False)
    yield "trl lora, padding_free", trl(padding_free=True)
    if compiled:
        yield "tessera lora, compile off", tessera("lora", compile="off")
        yield "tessera mosld, compile off", tessera("mosld", compile="off")
        yield "tessera lora, compile on", tessera("lora", compile="on")
        yield "tessera mosld, compile on", tessera("mosld", compile="on")
        yield "trl lora, packing, torch_compile", trl(packing=True, torch_compile=True)


def measured(name: str, run: Callable[[Setting], dict[str, Any]], setting: Setting) -> dict[str, Any]:
    """One variant; what goes wrong is written down, and the next one has the memory."""
    cuda = setting.device != "cpu"
    found: dict[str, Any] = {"variant": name, "rows": setting.rows, "steps": setting.steps}
    found["tokens_per_step"] = round(statistics.mean(setting.tokens), 1)
    found["padded"] = round(setting.padded, 2)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    try:
        found |= {key: round(value, 4) if isinstance(value, float) else value for key, value in run(setting).items()}
        if cuda:
            found["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {str(error).strip()[:300]}"
        traceback.print_exc()
    found["seconds"] = round(time.perf_counter() - began, 1)
    torch._dynamo.reset()
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    return found


def save_base(shape: str, folder: Path, device: str) -> Path:
    """Random weights with the bundled tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "base")
    if shape == "base":
        config = AutoConfig.from_pretrained(ASSETS / "base")
    else:
        sizes = {**SHAPES[shape], "vocab_size": max(SHAPES[shape]["vocab_size"], len(tokenizer))}
        config = LlamaConfig(**sizes, max_position_embeddings=16384)
    config.pad_token_id, config.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
    try:
        with torch.device(device):
            LlamaForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(usual)
    tokenizer.save_pretrained(folder)
    return folder


def store_of(data: Path | None, names: Sequence[str], folder: Path) -> DatasetStore:
    store, tasks = DatasetStore(folder), {}
    if data is None:
        tasks = {name: splits["train"] for name, splits in generate().items()}
    for name in names if data is not None else ():
        with (data / name / "train.jsonl").open(encoding="utf-8") as lines:
            tasks[name] = [json.loads(line) for line in lines]
    store.add(DatasetInfo(name="short"), {"train": tasks})
    return store


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown: tokens per second, and how many times those of TRL unpacked and packed in the same call."""
    lines = [
        "| rows a step | variant | tokens/s | to TRL | to TRL packed | overall | ms a step | ready, s | peak, GiB |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    rate = {(one["rows"], one["variant"]): one.get("tokens_per_second") for one in found}
    for one in found:
        head = f"| {one['rows']} | {one['variant']} |"
        if "error" in one:
            lines.append(f"{head} {one['error'].splitlines()[0][:90]} | | | | | | |")
            continue
        anchors = [rate.get((one["rows"], name)) for name in ("trl lora", "trl lora, packing")]
        ratios = " | ".join(f"{one['tokens_per_second'] / anchor:.2f}" if anchor else "-" for anchor in anchors)
        rest = f"{one['overall']:,.0f} | {one['ms_per_step']:.1f} | {one['ready_s']:.1f} | {one.get('peak_gib', '-')}"
        lines.append(f"{head} {one['tokens_per_second']:,.0f} | {ratios} | {rest} |")
    return "\n".join(lines) + "\n"


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "torch": torch.__version__}
    for name in ("transformers", "peft", "trl", "accelerate"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_device_name()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of <task>/train.jsonl; none: demo data")
    parser.add_argument("--tasks", default=SHORT, help="folders of --data, separated by commas")
    parser.add_argument("--shape", choices=list(SHAPES), default="1b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64], help="samples a step")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--only", default="", help="variants by name, separated by semicolons")
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, help="compiled variants too")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    arguments = parser.parse_args()
    compiled = arguments.device == "cuda" if arguments.compiled is None else arguments.compiled
    arguments.out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        (arguments.out / "end_to_end.jsonl").open("w", encoding="utf-8") as file,
    ):
        base = save_base(arguments.shape, Path(folder) / "base", arguments.device)
        store = store_of(arguments.data, arguments.tasks.split(","), Path(folder) / "datasets")
        file.write(json.dumps({"shape": arguments.shape, **versions()}) + "\n")
        for rows in arguments.rows:
            setting = Setting(base, store, rows, arguments.steps, arguments.device)
            for name, run in variants(compiled):
                if not arguments.only or name in arguments.only.split(";"):
                    found.append(measured(name, run, setting))
                    file.write(json.dumps(found[-1]) + "\n")
                    file.flush()
                    print(json.dumps(found[-1]), flush=True)
                    (arguments.out / "end_to_end.md").write_text(table(found), "utf-8")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
