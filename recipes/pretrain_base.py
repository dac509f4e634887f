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
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

CHAT_TEMPLATE = Path(__file__).parent.parent / "assets" / "base" / "chat_template.jinja"
SHARD = "10MB"


@dataclass(frozen=True)
class Settings:
    """What a training run needs besides its tokens."""

    layers: int = 8
    hidden: int = 256
    heads: int = 4
    feed_forward: int = 768
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


# -- model ------------------------------------------------------------------------------------------------------------


def build_model(settings: Settings, vocabulary: int, length: int, pad: int, begin: int, end: int) -> LlamaForCausalLM:
    """A fresh Llama with tied embeddings; what writes into the residual stream starts smaller the deeper the model."""
    torch.manual_seed(settings.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=settings.hidden,
            intermediate_size=settings.feed_forward,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            max_position_embeddings=length,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            pad_token_id=pad,
            bos_token_id=begin,
            eos_token_id=end,
        )
    )
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.div_(math.sqrt(2 * settings.layers))
            layer.mlp.down_proj.weight.div_(math.sqrt(2 * settings.layers))
    return model


def rotary(model: LlamaForCausalLM, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the positions, of shape (1, 1, length, head)."""
    device = model.device
    positions = torch.arange(length, device=device)[None]
    cos, sin = model.model.rotary_emb(torch.zeros(1, device=device), positions)
    return cos[:, None], sin[:, None]


def norm(x: Tensor, layer: nn.Module) -> Tensor:
    return F.rms_norm(x.float(), x.shape[-1:], layer.weight.float(), layer.variance_epsilon).to(x.dtype)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head by the position's angles."""
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)


def logits(model: LlamaForCausalLM, ids: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The model's forward pass over full windows: no mask, no cache, so that it compiles to few kernels."""
    head = model.config.head_dim
    x = model.model.embed_tokens(ids)
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))  # the residual stream in half the bytes
    for layer in model.model.layers:
        attention, y = layer.self_attn, norm(x, layer.input_layernorm)
        q, k, v = (
            project(y).unflatten(-1, (-1, head)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = F.scaled_dot_product_attention(turn(q, cos, sin), turn(k, cos, sin), v, is_causal=True)
        x = x + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        y = norm(x, layer.post_attention_layernorm)
        x = x + layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(y)) * layer.mlp.up_proj(y))
    return F.linear(norm(x, model.model.norm), model.lm_head.weight)


def window_loss(model: LlamaForCausalLM, window: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Mean nats per token of windows of length + 1 tokens; -100 marks places that do not count."""
    scores = logits(model, window[:, :-1].clamp_min(0), cos, sin)
    return F.cross_entropy(scores.flatten(0, 1).float(), window[:, 1:].flatten(), ignore_index=-100)


# -- optimiser --------------------------------------------------------------------------------------------------------


def orthogonal(update: Tensor, steps: int = 5) -> Tensor:
    """The nearest orthogonal matrix to each of a stack, roughly, by the Newton-Schulz iteration of Muon.

    Jordan et al., Muon (2024): https://kellerjordan.github.io/posts/muon/
    """
    x = update.bfloat16()
    if tall := x.size(-2) > x.size(-1):
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal; matrices of one shape are stepped as one stack, which spares small kernels."""

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for matrix in matrices:
            shapes.setdefault(matrix.shape, []).append(matrix)
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__([{"params": alike} for alike in shapes.values()], defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            matrices = group["params"]
            gradient = torch.stack([matrix.grad for matrix in matrices])
            state = self.state[matrices[0]]
            momentum = state.setdefault("momentum", torch.zeros_like(gradient))
            momentum.lerp_(gradient, 1 - group["momentum"])
            update = orthogonal(gradient.lerp(momentum, group["momentum"])).float()
            rows, columns = matrices[0].shape
            size = group["lr"] * max(1.0, rows / columns) ** 0.5
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(matrices, list(update.unbind()), alpha=-size)


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


# -- data -------------------------------------------------------------------------------------------------------------


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


def batches(corpus: Windows, instructions: Windows, settings: Settings, progress: Callable[[], float]) -> Iterator[Tensor]:
    """Batches of one shape, with more instruction windows once the rate falls."""
    while True:
        late = progress() > 1 - settings.decay
        share = settings.decay_instructions if late else settings.instructions
        taught = max(1, round(share * settings.batch))
        yield torch.cat((corpus.take(settings.batch - taught), instructions.take(taught)))


# -- measuring --------------------------------------------------------------------------------------------------------


def half(device: torch.device):
    """bf16 arithmetic over float32 weights on a GPU; plain float32 on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


@torch.no_grad()
def stream_loss(model: LlamaForCausalLM, tokens: Tensor, length: int, batch: int = 64) -> float:
    """Nats per token over the stream, cut into windows that may begin inside a document: the quick measure."""
    count = (len(tokens) - 1) // length
    windows = tokens.unfold(0, length + 1, length)[:count].long()
    cos, sin = rotary(model, length)
    with half(model.device):
        sums = [window_loss(model, part, cos, sin).double() * len(part) for part in windows.split(batch)]
    return float(torch.stack(sums).sum() / len(windows))


@torch.no_grad()
def document_loss(model: LlamaForCausalLM, tokens: np.ndarray, length: int, batch: int = 16) -> tuple[float, int]:
    """Summed nats and number of predicted tokens, document by document, end tokens counted, begin tokens given.

    Documents over ``length`` tokens are cut into windows that do not overlap.
    """
    bounds = [*np.flatnonzero(tokens == model.config.bos_token_id), len(tokens)]
    pieces = [
        tokens[start : min(start + length + 1, stop)].astype(np.int64)
        for begin, stop in zip(bounds, bounds[1:], strict=False)
        for start in range(begin, stop - 1, length)
    ]
    pieces.sort(key=len)
    nats, count = 0.0, 0
    for first in range(0, len(pieces), batch):
        part = pieces[first : first + batch]
        window = torch.full((len(part), len(part[-1])), -100)
        for row, piece in zip(window, part, strict=True):
            row[: len(piece)] = torch.from_numpy(piece)
        window = window.to(model.device)
        predicted = int((window[:, 1:] >= 0).sum())
        with half(model.device):
            nats += float(window_loss(model, window, *rotary(model, window.shape[1] - 1))) * predicted
        count += predicted
    return nats, count


# -- commands ---------------------------------------------------------------------------------------------------------


def load_streams(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The counts and the three token streams that ``tokens`` wrote."""
    counts = json.loads((folder / "tokens.json").read_text("utf-8"))
    return counts, {name: np.load(folder / f"{name}.npy") for name in ("corpus", "instructions", "valid")}


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

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def progress(self) -> float:
        if self.settings.steps:
            return self.step / self.settings.steps
        return self.seconds / (60 * self.settings.minutes)


def train(tokens: Path, out: Path, settings: Settings, device: torch.device) -> dict[str, Any]:
    """Train on the streams of ``tokens``; write weights, ``training.jsonl`` and ``training.json`` to ``out``."""
    clock = Clock(settings)
    counts, streams = load_streams(tokens)
    length = counts["length"]
    model = build_model(settings, counts["vocabulary"], length, **counts["special"]).to(device)
    valid = torch.from_numpy(streams["valid"].astype(np.int16)).to(device)
    corpus = Windows(streams["corpus"], length, device, settings.seed)
    instructions = Windows(streams["instructions"], length, device, settings.seed + 1)
    optimizers, (cos, sin) = build_optimizers(model, settings), rotary(model, length)
    loss_of = torch.compile(window_loss, dynamic=False) if device.type == "cuda" else window_loss
    out.mkdir(parents=True, exist_ok=True)
    log, due, saved = (out / "training.jsonl").open("w", encoding="utf-8"), 0.0, clock.seconds
    for batch in batches(corpus, instructions, settings, clock.progress):
        progress = clock.progress()
        if progress >= 1:
            break
        if clock.seconds >= due:
            due = clock.seconds + settings.evaluate_every
            note(log, clock, progress, held_out=round(stream_loss(model, valid, length), 4))
        if clock.seconds - saved >= settings.checkpoint_every:
            save_weights(model, out)
            saved = clock.seconds
        with half(device):
            loss = loss_of(model, batch, cos, sin)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = rate(settings, clock.step, progress)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if clock.step % 200 == 0:
            note(log, clock, progress, loss=round(float(loss.detach()), 4))
        clock.step += 1
    seconds = clock.seconds
    note(log, clock, 1.0, held_out=round(stream_loss(model, valid, length), 4))
    save_weights(model, out)
    return summary(model, counts, streams["valid"], settings, clock.step, seconds, out)


def note(log: Any, clock: Clock, progress: float, **values: float) -> None:
    """One line of the log, in the file and on the screen."""
    line = json.dumps({"step": clock.step, "seconds": round(clock.seconds, 1), "progress": round(progress, 4), **values})
    print(line, file=log, flush=True)
    print(line, flush=True)


def held_out(model: LlamaForCausalLM, tokens: np.ndarray, text_bytes: int, length: int) -> dict[str, float]:
    """Held-out loss over whole documents in both units."""
    nats, count = document_loss(model.eval(), tokens, length)
    return {
        "nats_per_token": round(nats / count, 4),
        "bits_per_byte": round(nats / math.log(2) / text_bytes, 4),
        "tokens": count,
        "bytes": text_bytes,
    }


def summary(
    model: LlamaForCausalLM,
    counts: dict[str, Any],
    valid: np.ndarray,
    settings: Settings,
    steps: int,
    seconds: float,
    out: Path,
) -> dict[str, Any]:
    """``training.json``: what was trained, how long, on how much, and how well it predicts unseen text."""
    length = counts["length"]
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "tokens_seen": steps * settings.batch * length,
        "seconds": round(seconds, 1),
        "hardware": torch.cuda.get_device_name() if model.device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "held_out": held_out(model, valid, counts["valid"]["bytes"], length),
        "data": counts,
        "settings": asdict(settings),
    }
    (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    return facts


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


PROMPTS = (
    "Once upon a time there was a little girl who lived",
    "User: Hello, can you help me find a restaurant?\nAssistant:",
    "The old man looked at the sea and",
)
REQUESTS = (
    "Is this text message spam or not spam?\n\nYou have won a free prize! Call now to claim.",
    "Which intent does this request to a voice assistant have?\n\nWill it rain in Paris tomorrow?",
    "Answer the question.\n\nWhere do people keep their books?",
)


def samples(base: Path, temperature: float = 0.7) -> Iterator[tuple[str, str]]:
    """Prompts and what the model writes: stories and dialogue drawn at ``temperature``, requests answered greedily."""
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base).float()
    torch.manual_seed(0)
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        ids = model.generate(**given, max_new_tokens=80, do_sample=True, temperature=temperature, top_p=0.95)
        yield prompt, tokenizer.decode(ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    for request in REQUESTS:
        conversation = [{"role": "user", "content": request}]
        text = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        given = tokenizer(text, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
        ids = model.generate(**given, max_new_tokens=40, do_sample=False)
        yield request, tokenizer.decode(ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True)


def report(base: Path, corpus: Path) -> dict[str, float]:
    """Held-out loss of a finished folder over the corpus's ``valid.jsonl.xz``, then samples, on the screen."""
    from recipes.corpus import document_tokens, read_texts

    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base).float()
    tokens, counts = document_tokens(read_texts(corpus, "valid.jsonl.xz"), tokenizer.backend_tokenizer)
    measured = held_out(model, tokens, counts["bytes"], model.config.max_position_embeddings)
    print(json.dumps(measured))
    for prompt, answer in samples(base):
        print(f"\n> {prompt}\n{answer}")
    return measured


def smoke(out: Path) -> dict[str, Any]:
    """Every command in little, on a text made here; returns the record of the run in ``out``."""
    from recipes.smoke_text import write_corpus, write_tasks

    torch.set_num_threads(min(2, os.cpu_count() or 1))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_corpus(work / "corpus")
        write_tasks(work / "tasks")
        make_tokens(work / "corpus", work / "tasks", work / "tokens", vocabulary=512, length=64, passes=1)
        settings = Settings(
            layers=2, hidden=64, heads=2, feed_forward=128, batch=8, steps=60, warmup=5, evaluate_every=2.0
        )
        facts = train(work / "tokens", work / "run", settings, torch.device("cpu"))
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
            for option, value in asdict(Settings()).items():
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
        settings = Settings(**{name: getattr(arguments, name) for name in asdict(Settings())})
        if not settings.steps and not settings.minutes:
            raise SystemExit("Say how long: --minutes 9, or --steps N.")
        torch.set_float32_matmul_precision("high")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        print(json.dumps(train(arguments.tokens, arguments.out, settings, device), indent=2))
    elif arguments.command == "export":
        export(arguments.tokens, arguments.run, arguments.out)
    else:
        report(arguments.base, arguments.corpus)


if __name__ == "__main__":
    main()
