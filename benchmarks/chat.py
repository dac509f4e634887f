"""Answers: one against transformers' ``generate``, and several of different methods side by side against one.

    python -m benchmarks.chat --shape 1b|base|tiny [--device cuda|cpu] [--tokens 128] [--out FOLDER]

One base of random weights (``base``: the bundled one) with adapters of rank 8 on all seven projections, bfloat16 on
CUDA and float32 on the CPU; the most likely token each time, the same prompt of random tokens, the same number of
tokens for all, nothing ends early. Everything is computed in this process by the classes of the inference worker, from
token ids to text; the rivals are ``generate`` of the same weights with its own cache, on the base and with PEFT LoRA,
whose folder the studio loads as ``lora``. ``recorded`` are answers as the worker gives them on CUDA, with CUDA graphs
(the recording of each answer's steps counts in its time), ``launched`` the same without.

Each round runs every case once, so that a busy moment hits all alike; reported are medians. Seconds are those of the
clock, on the CPU of the processor with one thread. ``--worker`` adds what a page sees over the worker's socket, with
the bundled base alone. Needs torch, transformers and peft; ``--worker`` the studio's packages. Writes
``chat-SHAPE.json`` after each group, the most important figures first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bases import SHAPES, random_base, sharing_weights
from benchmarks.timing import machine
from core.adapters.attach import adapter_tensors, attach, load
from core.chat.answers import Answers, Asked
from core.chat.engine import ChatEngine
from core.chat.settings import Sampling
from core.data.templates import TextEncoder
from core.evaluation import graphs
from core.home import BUNDLED_BASE_FOLDER, write_json
from core.schema import MethodSpec

METHODS = ("mosld", "lora", "hydralora", "mola")  # side by side; the first is the one that several are compared with
Timed = tuple[float, float]  # seconds to the first token and to the last


class Bench:
    """The weights once: as they are, under PEFT LoRA, and in the studio's engine with an adapter of every method."""

    def __init__(self, shape: str, device: str, prompt: int, tokens: int, folder: Path) -> None:
        self.device, self.tokens = device, tokens
        self.plain = random_base(shape, device).eval()
        self.plain.config.use_cache = True
        self.plain.generation_config.eos_token_id = None
        vocabulary = self.plain.config.vocab_size
        self.prompt = torch.randint(3, vocabulary, (prompt,), generator=torch.Generator().manual_seed(1)).tolist()
        self.peft = _peft_lora(self.plain, folder)
        encoder = TextEncoder(BUNDLED_BASE_FOLDER)
        encoder.eos_id = -1  # no token ends an answer
        model = load(sharing_weights(self.plain), folder, name="m-lora")
        for number, name in enumerate(METHODS):
            if name != "lora":
                options = {"rank": 8, "modules": "all-linear"}
                model = attach(
                    model, MethodSpec(name=name, options=options), tasks=["a"], name=f"m-{name}", seed=number
                )
                _fill(adapter_tensors(model, f"m-{name}").values(), number)
        self.engine = ChatEngine.over(model, encoder)
        self.engine.prompt = lambda messages, new_tokens: self.prompt
        self.bare = ChatEngine.over(sharing_weights(self.plain), encoder)
        self.bare.prompt = self.engine.prompt

    def studio(self, names: list[str | None], recorded: bool = True) -> Timed:
        """As many answers as names, all at once; ``recorded`` False: kernel by kernel."""
        engine = self.bare if names == [None] else self.engine
        answers, sampling = Answers(engine), Sampling(max_new_tokens=self.tokens, temperature=0)
        base = engine.model.get_base_model() if engine is self.engine else engine.model
        with graphs.launched(base, not recorded):
            start = self.clock()
            pieces = answers.begin([Asked(name, [], sampling) for name in names])
            first = self.clock() - start
            while pieces:
                last, pieces = pieces, answers.step()
            seconds = self.clock() - start
        assert all(piece.tokens == self.tokens for _, piece in last), "an answer ended early"
        return first, seconds

    def generate(self, model: Any) -> Timed:
        """transformers' own loop; its first token is that of a call for one."""
        ids = torch.tensor([self.prompt], device=self.device)
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False, "use_cache": True}
        given["pad_token_id"] = 0
        with torch.no_grad():
            start = self.clock()
            model.generate(**given, max_new_tokens=1)
            first = self.clock() - start
            start = self.clock()
            out = model.generate(**given, max_new_tokens=self.tokens, min_new_tokens=self.tokens)
            seconds = self.clock() - start
        assert out.shape[1] == len(self.prompt) + self.tokens, "generate ended early"
        return first, seconds

    def clock(self) -> float:
        if self.device != "cuda":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def _peft_lora(plain: Any, folder: Path) -> Any:
    """PEFT LoRA on the weights, with moved tensors, also saved into ``folder``."""
    from benchmarks.rivals import peft_lora

    model = peft_lora(sharing_weights(plain), 1, 8).eval()
    _fill([tensor for name, tensor in model.named_parameters() if "lora_" in name], 7)
    model.save_pretrained(folder)
    return model


def _fill(tensors: Any, seed: int) -> None:
    """Nothing stays zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(torch.randn(tensor.shape, generator=generator).to(tensor) * 0.01)


def cases(bench: Bench) -> dict[str, dict[str, Callable[[], Timed]]]:
    """By group, the most important first."""
    several = {
        f"{count} answers: {', '.join(METHODS[:count])}": [f"m-{name}" for name in METHODS[:count]]
        for count in (4, 3, 2)
    }
    singles = {name: [f"m-{name}"] for name in METHODS} | {"base": [None]}
    first = {"one answer: mosld": lambda: bench.studio(["m-mosld"])}
    first |= {"one answer: lora": lambda: bench.studio(["m-lora"]), "one answer: base": lambda: bench.studio([None])}
    first |= {case: lambda names=names: bench.studio(names) for case, names in list(several.items())[:1]}
    first |= {"generate: PEFT LoRA": lambda: bench.generate(bench.peft)}
    first |= {"generate: base": lambda: bench.generate(bench.plain)}
    rest = {f"one answer: {name}": lambda names=singles[name]: bench.studio(names) for name in ("hydralora", "mola")}
    rest |= {case: lambda names=names: bench.studio(names) for case, names in list(several.items())[1:]}
    rest |= {"4 answers: mosld": lambda: bench.studio(["m-mosld"] * 4)}
    groups = {"first": first, "rest": rest}
    if bench.device == "cuda":
        four = next(iter(several.values()))
        groups["launched"] = {
            "one answer: mosld, launched": lambda: bench.studio(["m-mosld"], False),
            "4 answers, launched": lambda: bench.studio(four, False),
        }
    return groups


def measure(group: dict[str, Callable[[], Timed]], rounds: int, tokens: int) -> dict[str, dict[str, Any]]:
    """Medians of every case that works, and the error of one that does not."""
    times: dict[str, list[Timed]] = {name: [] for name in group}
    errors: dict[str, str] = {}
    for turn in range(rounds + 1):
        for name, case in group.items():
            if name in errors:
                continue
            try:
                timed = case()
            except Exception as error:  # one case must not end the others
                errors[name] = f"{type(error).__name__}: {str(error).strip()[:300]}"
                continue
            if turn > 0:  # the first round warms up
                times[name].append(timed)
    found: dict[str, dict[str, Any]] = {name: {"error": error} for name, error in errors.items()}
    for name in (name for name in group if name not in errors):
        first, seconds = (statistics.median(each) for each in zip(*times[name], strict=True))
        rate = (tokens - 1) / (seconds - first) if seconds > first else None
        found[name] = {"first_ms": 1000 * first, "seconds": seconds, "tokens_per_s": tokens / seconds, "later": rate}
        found[name]["least_to_most"] = [min(s for _, s in times[name]), max(s for _, s in times[name])]
    return found


def table(found: dict[str, dict[str, Any]], one: str = "one answer: mosld") -> str:
    """Markdown; ``tokens/s`` is of each answer, its first token's time counted in."""
    lines = [
        "| case | first token, ms | seconds | tokens/s of each answer | tokens/s after the first | to one mosld |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in found.items():
        if "error" in row:
            lines.append(f"| {name} | {row['error'].replace('|', '/')} |")
            continue
        share = f"{row['seconds'] / found[one]['seconds']:.2f}" if "seconds" in found.get(one, {}) else ""
        rate = "" if row["later"] is None else f"{row['later']:.0f}"
        figures = (f"{row['first_ms']:.1f}", f"{row['seconds']:.3f}", f"{row['tokens_per_s']:.0f}", rate, share)
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return "\n".join(lines)


def over_the_socket(tokens: int, repeats: int) -> dict[str, float]:
    """What a page sees of the bundled base's worker: four panes that ask one by one, and one that asks alone."""
    from core.chat.client import Answering, Question
    from core.schema import ModelSpec
    from core.studio import Studio

    asked = [{"role": "user", "content": "Which material conducts electricity best: copper, glass, wood or rubber?"}]
    with tempfile.TemporaryDirectory() as home:
        studio, folders = Studio(home), _saved(Path(home) / "adapters")
        inference = studio.chats.inference

        def run(names: list[str | None], count: int) -> Timed:
            settings = Sampling(max_new_tokens=count, temperature=5, top_p=1.0, seed=1)  # so hot that none ends early
            questions = [Question(name, folders.get(name), asked) for name in names]
            start, first = time.perf_counter(), None
            for _ in Answering(lambda: inference.connect(ModelSpec()), questions, settings):
                first = first or time.perf_counter() - start
            return first, time.perf_counter() - start

        try:
            names = list(folders)
            found = {"start and first token, s": run(names[:1], 1)[0]}
            run(names, 1)  # every adapter is loaded
            times = {"one": [], "four": []}
            for _ in range(repeats):
                times["one"].append(run(names[:1], tokens))
                times["four"].append(run(names, tokens))
        finally:
            inference.stop()
            studio.close()
    medians = {kind: [statistics.median(each) for each in zip(*rows, strict=True)] for kind, rows in times.items()}
    found |= {f"{kind}, first token, ms": 1000 * first for kind, (first, _) in medians.items()}
    found |= {f"{kind}, tokens/s of each": tokens / seconds for kind, (_, seconds) in medians.items()}
    return found | {"four / one": medians["four"][1] / medians["one"][1]}


def _saved(root: Path) -> dict[str, Path]:
    from transformers import AutoModelForCausalLM

    from core.adapters.attach import save

    model = AutoModelForCausalLM.from_pretrained(BUNDLED_BASE_FOLDER)
    for number, name in enumerate(METHODS):
        model = attach(model, MethodSpec(name=name), tasks=["a"], name=f"m-{name}", seed=number)
    return {f"m-{name}": save(model, root / name, f"m-{name}") for name in METHODS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1b")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", action="store_true", help="also over the worker's socket, with the bundled base")
    parser.add_argument("--out", type=Path, default=Path("benchmarks-out"))
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    if given.device == "cpu":
        torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    facts = machine(given.device) | {"shape": given.shape, "prompt": given.prompt, "tokens": given.tokens}
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given.shape, given.device, given.prompt, given.tokens, Path(folder))
        for group in cases(bench).values():
            found |= measure(group, given.rounds, given.tokens)
            write_json(given.out / f"chat-{given.shape}.json", facts | {"cases": found})
        facts["recorded"] = graphs.possible(bench.engine.model.get_base_model())
    if given.worker:
        facts["worker"] = over_the_socket(given.tokens, given.rounds)
    write_json(given.out / f"chat-{given.shape}.json", facts | {"cases": found})
    print(json.dumps(facts), table(found), sep="\n\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
