"""Pre-train the base model of ``assets/base``: a small Llama from scratch, on one GPU, in under 30 minutes.

    python -m recipes.pretrain_base tokens --corpus DIR --tasks DIR --out build/tokens
    python -m recipes.pretrain_base train  --tokens build/tokens --out build/run --minutes 9
    python -m recipes.pretrain_base export --tokens build/tokens --run build/run --out assets/base
    python -m recipes.pretrain_base report --base assets/base --corpus DIR
    python -m recipes.pretrain_base --smoke --out DIR

``tokens`` and ``report`` want a CPU, ``train`` a GPU. ``--steps N`` in place of ``--minutes`` repeats a run whose
number of steps is known (``training.json`` holds it). ``--smoke`` runs all of it on a text of its own, on the CPU, in
under a minute.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM

from recipes.base_model import Shape, build_model, half, rotary, stream_loss, window_loss
from recipes.base_report import held_out, report
from recipes.muon import Muon

CHAT_TEMPLATE = Path(__file__).parent.parent / "assets" / "base" / "chat_template.jinja"
SHARD = "10MB"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Settings:
    """What a training run needs besides its tokens and the model's shape."""

    batch: int = 64  # windows a step
    muon_rate: float = 0.015  # hidden matrices
    adam_rate: float = 0.006  # embedding and norms
    weight_decay: float = 0.1
    warmup: int = 200  # steps
    decay: float = 0.4  # the last share of the run, in which the rate falls to zero
    instructions: float = 0.03  # share of instruction windows
    decay_instructions: float = 0.09  # the same while the rate falls: the prompt's form is learnt late and kept
    steps: int = 0  # 0: as many as fit into ``minutes``
    minutes: float = 0.0
    evaluate_every: float = 30.0  # seconds
    checkpoint_every: float = 120.0  # seconds
    seed: int = 0


def build_optimizers(model: LlamaForCausalLM, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the embedding and the norms."""
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    fused = model.device.type == "cuda"
    adam = torch.optim.AdamW(rest, lr=settings.adam_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=fused)
    optimizers = [Muon(hidden, settings.muon_rate, settings.weight_decay), adam]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def rate(settings: Settings, step: int, progress: float) -> float:
    """The factor of the learning rates: warm-up, constant, then straight down to zero."""
    return min(1.0, (step + 1) / settings.warmup, max(0.0, (1 - progress) / settings.decay))


class Windows:
    """Windows of one token stream: all of them once an epoch, in a new order and cut at a new offset each epoch."""

    def __init__(self, tokens: np.ndarray, length: int, device: torch.device, seed: int) -> None:
        self.tokens = torch.from_numpy(tokens.astype(np.int16)).to(device)
        self.length, self.generator = length, torch.Generator().manual_seed(seed)
        self.reach = torch.arange(length + 1, device=device)
        self.starts, self.place = self._epoch(), 0

    def _epoch(self) -> Tensor:
        room = len(self.tokens) - self.length - 1
        offset = int(torch.randint(min(self.length, room) + 1, (), generator=self.generator))
        starts = torch.arange(offset, room + 1, self.length)
        return starts[torch.randperm(len(starts), generator=self.generator)].to(self.tokens.device)

    def take(self, count: int) -> Tensor:
        """The next ``count`` windows, of shape (count, length + 1)."""
        while self.place + count > len(self.starts):
            self.starts, self.place = torch.cat((self.starts[self.place :], self._epoch())), 0
        starts = self.starts[self.place : self.place + count]
        self.place += count
        return self.tokens[starts[:, None] + self.reach].long()


def batches(
    corpus: Windows, instructions: Windows, settings: Settings, progress: Callable[[], float]
) -> Iterator[Tensor]:
    """Batches of one shape, with more instruction windows once the rate falls."""
    while True:
        late = progress() > 1 - settings.decay
        share = settings.decay_instructions if late else settings.instructions
        taught = max(1, round(share * settings.batch))
        yield torch.cat((corpus.take(settings.batch - taught), instructions.take(taught)))


def load_streams(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The counts and the three token streams that ``tokens`` wrote."""
    counts = json.loads((folder / "tokens.json").read_text("utf-8"))
    names = ("corpus", "instructions", "valid")
    return counts, {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in names}


def save_weights(model: LlamaForCausalLM, out: Path) -> None:
    """bf16 safetensors in shards small enough for any host."""
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    copy.to(torch.bfloat16).save_pretrained(out, max_shard_size=SHARD)


class Clock:
    """How far a run is: by its steps where their number is given, else by its time."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.step, self.start = settings, 0, time.perf_counter()
        self.last = {"checkpoint": 0.0}  # the first loss is worth a look before any training, the first weights are not

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def progress(self) -> float:
        if self.settings.steps:
            return self.step / self.settings.steps
        return self.seconds / (60 * self.settings.minutes)

    def due(self, what: str, every: float) -> bool:
        """Whether ``every`` seconds went by since this was last true for ``what``."""
        if what in self.last and self.seconds - self.last[what] < every:
            return False
        self.last[what] = self.seconds
        return True


def take_step(model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], loss: Tensor, factor: float) -> None:
    """One update at ``factor`` of the peak learning rates."""
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def train(
    tokens: Path, out: Path, settings: Settings, shape: Shape = Shape(), device: torch.device = CPU
) -> dict[str, Any]:
    """Train on the streams of ``tokens``; write weights, ``training.jsonl`` and ``training.json`` to ``out``."""
    clock = Clock(settings)
    counts, streams = load_streams(tokens)
    length = counts["length"]
    model = build_model(shape, counts["vocabulary"], length, **counts["special"], seed=settings.seed).to(device)
    valid = torch.from_numpy(streams["valid"].astype(np.int16)).to(device)
    corpus = Windows(streams["corpus"], length, device, settings.seed)
    instructions = Windows(streams["instructions"], length, device, settings.seed + 1)
    optimizers, (cos, sin) = build_optimizers(model, settings), rotary(model, length)
    loss_of = torch.compile(window_loss, dynamic=False) if device.type == "cuda" else window_loss
    out.mkdir(parents=True, exist_ok=True)
    with (out / "training.jsonl").open("w", encoding="utf-8") as log:
        for batch in batches(corpus, instructions, settings, clock.progress):
            progress = clock.progress()
            if progress >= 1:
                break
            if clock.due("evaluate", settings.evaluate_every):
                note(log, clock, progress, held_out=stream_loss(model, valid, length))
            if clock.due("checkpoint", settings.checkpoint_every):
                save_weights(model, out)
            with half(device):
                loss = loss_of(model, batch, cos, sin)
            take_step(model, optimizers, loss, rate(settings, clock.step, progress))
            if clock.step % 200 == 0:
                note(log, clock, progress, loss=float(loss.detach()))
            clock.step += 1
        seconds = clock.seconds
        note(log, clock, 1.0, held_out=stream_loss(model, valid, length))
    save_weights(model, out)
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": clock.step,
        "tokens_seen": clock.step * settings.batch * length,
        "seconds": round(seconds, 1),
        "hardware": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "held_out": held_out(model, streams["valid"], counts["valid"]["bytes"], length),
        "data": counts,
        "settings": asdict(shape) | asdict(settings),
    }
    (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    return facts


def note(log: TextIO, clock: Clock, progress: float, **values: float) -> None:
    """One line of the log, in the file and on the screen."""
    numbers = {name: round(value, 4) for name, value in values.items()}
    times = {"step": clock.step, "seconds": round(clock.seconds, 1), "progress": round(progress, 4)}
    line = json.dumps(times | numbers)
    print(line, file=log, flush=True)
    print(line, flush=True)


def make_tokens(corpus: Path, tasks: Path, out: Path, **options: Any) -> dict[str, Any]:
    """The ``tokens`` command."""
    from recipes.corpus import write_tokens  # training alone needs none of what this imports

    return write_tokens(corpus, tasks, CHAT_TEMPLATE, out, **options)


def export(tokens: Path, run: Path, out: Path) -> None:
    """Put weights, tokenizer and the run's record into ``out``; a card and a licence already there stay."""
    out.mkdir(parents=True, exist_ok=True)
    save_weights(AutoModelForCausalLM.from_pretrained(run), out)
    for path in (tokens / "tokenizer").iterdir():
        shutil.copyfile(path, out / path.name)
    shutil.copyfile(run / "training.json", out / "training.json")


def smoke(out: Path) -> dict[str, Any]:
    """Every command in little, on a text made here; returns the record of the run in ``out``."""
    from recipes.smoke_text import write_corpus, write_tasks

    torch.set_num_threads(1)  # matrices this small gain nothing from a second thread, and suffer on a busy machine
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_corpus(work / "corpus")
        write_tasks(work / "tasks")
        make_tokens(work / "corpus", work / "tasks", work / "tokens", vocabulary=512, length=64, passes=1)
        settings = Settings(batch=8, steps=60, warmup=5)
        shape = Shape(layers=2, hidden=64, heads=2, feed_forward=128)
        facts = train(work / "tokens", work / "run", settings, shape)
        export(work / "tokens", work / "run", out)
        shutil.copyfile(work / "run" / "training.jsonl", out / "training.jsonl")
        report(out, work / "corpus")
    return facts


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="run everything in little on the CPU")
    parser.add_argument("--out", type=Path, default=Path("build/smoke"), help="folder that --smoke fills")
    commands = parser.add_subparsers(dest="command")
    for name, folders in {
        "tokens": ("corpus", "tasks", "out"),
        "train": ("tokens", "out"),
        "export": ("tokens", "run", "out"),
        "report": ("base", "corpus"),
    }.items():
        command = commands.add_parser(name)
        for folder in folders:
            command.add_argument(f"--{folder}", type=Path, required=True, dest=folder, default=argparse.SUPPRESS)
        if name == "train":
            for option, value in (asdict(Shape()) | asdict(Settings())).items():
                command.add_argument(f"--{option.replace('_', '-')}", type=type(value), default=value)
    arguments = parser.parse_args()
    if not arguments.smoke and arguments.command is None:
        parser.error("name a command or give --smoke")
    return arguments


def main() -> None:
    arguments = parse()
    if arguments.smoke:
        smoke(arguments.out)
    elif arguments.command == "tokens":
        print(json.dumps(make_tokens(arguments.corpus, arguments.tasks, arguments.out), indent=2))
    elif arguments.command == "train":
        shape, settings = (
            kind(**{name: getattr(arguments, name) for name in asdict(kind())}) for kind in (Shape, Settings)
        )
        if not settings.steps and not settings.minutes:
            raise SystemExit("Say how long: --minutes 9, or --steps N.")
        torch.set_float32_matmul_precision("high")
        device = torch.device("cuda") if torch.cuda.is_available() else CPU
        print(json.dumps(train(arguments.tokens, arguments.out, settings, shape, device), indent=2))
    elif arguments.command == "export":
        export(arguments.tokens, arguments.run, arguments.out)
    else:
        report(arguments.base, arguments.corpus)


if __name__ == "__main__":
    main()
