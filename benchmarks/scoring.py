"""Option log-likelihoods against lm-evaluation-harness: samples a second, and whether the scores are equal.

    python -m benchmarks.scoring --shape 1b|7b|base|tiny [--data FOLDER] [--rows 500] [--out FOLDER]

Both sides score the same token ids on the same weights, in the same type, on the same device. Prompts and options are
tokenised beforehand; lm-evaluation-harness gets them as requests ``(context ids, continuation ids)`` of
``HFLM._loglikelihood_tokens``, every continuation ending in the end-of-sequence token, as in the studio. Its batch
size is ``auto``, found beforehand for the longest request and not counted: with at most 64 requests, its default, and
with at most 512 (on the CPU, where small batches are quicker, 8); the quicker one counts. As in its evaluator one call
holds the requests of all tasks; the studio scores one task after the other, as a run does. Models: the base, a PEFT
LoRA of rank 8 on all projections (there a PeftModel, here loaded from the same folder), and MoSLD, which
lm-evaluation-harness cannot compute and which is compared with its LoRA. Over a bfloat16 base PEFT computes a LoRA in
float32, the studio under autocast, as it trains. After a warm-up the sides take turns; the
median counts. On the CPU seconds are those of the processor.

Differences are those of all options' log-likelihoods. lm-evaluation-harness takes its softmax in float32 for them (its
default is the type of the logits, which rounds). Beside them: on a few rows of each task how far it differs from
itself when every request is a batch of its own, and, where the type is not float32, both sides in float32.

``--data`` holds ``TASK/test.jsonl`` (``input``, ``choices``) and may hold ``tasks.json`` with an instruction for each
task; without it rows are made up. Needs torch, transformers, peft and lm_eval. Writes ``scoring-SHAPE.json`` after each
step.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import logging
import sys
import tempfile
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bases import PROJECTIONS, SHAPES, random_base, sharing_weights
from benchmarks.scorers import Harness, Studio, differences, timed
from benchmarks.timing import machine, release
from core.adapters.attach import adapter_tensors, attach, load
from core.data.templates import PromptTemplate, TextEncoder, fit
from core.evaluation.trees import OptionSample
from core.home import BUNDLED_BASE_FOLDER, write_json
from core.schema import MethodSpec

TASKS = "arc_easy,boolq,commonsense_qa,openbookqa,piqa,rt_polarity"
LIMIT = 512  # tokens of a sample
FEW = 12
WORDS = ("red", "green", "the", "of", "stone", "river", "walks", "because", "seven", "under", "bright", "morning")
Row = dict[str, Any]
Samples = dict[str, list[OptionSample]]


def read_samples(folder: Path | None, tasks: list[str], rows: int, encoder: TextEncoder) -> Samples:
    """Token ids by task, made as a run makes them."""
    if folder is None:
        return {"made up": [_encoded(row, "", encoder) for row in made_up(rows)]}
    described = folder / "tasks.json"
    known = {task["name"]: task for task in json.loads(described.read_text("utf-8"))} if described.is_file() else {}
    found = {}
    for name in tasks:
        lines = (folder / name / "test.jsonl").read_text("utf-8").splitlines()[:rows]
        instruction = known.get(name, {}).get("instruction", "")
        found[name] = [_encoded(json.loads(line), instruction, encoder) for line in lines]
    return found


def _encoded(row: Row, instruction: str, encoder: TextEncoder) -> OptionSample:
    options = [encoder.answer_ids(choice) for choice in row["choices"]]
    prompt = encoder.prompt_ids({**row, "instruction": instruction}, PromptTemplate())
    return OptionSample(fit(prompt, max(options, key=len), LIMIT).prompt, options)


def made_up(count: int) -> list[Row]:
    """Questions of five to forty words with two to five answers of one to eight."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    def text(low: int, high: int) -> str:
        return " ".join(WORDS[draw(0, len(WORDS))] for _ in range(draw(low, high)))

    return [{"input": text(5, 40), "choices": [text(1, 9) for _ in range(draw(2, 6))]} for _ in range(count)]


class Bench:
    """The models of one shape, and what was measured of them."""

    def __init__(self, shape: str, device: str, samples: Samples, repeats: int) -> None:
        self.device, self.samples, self.repeats = device, samples, repeats
        self.encoder = TextEncoder(BUNDLED_BASE_FOLDER)
        self.base = bundled(device) if shape == "base" else random_base(shape, device)
        self.folder = tempfile.TemporaryDirectory()
        self.lora = self._lora(Path(self.folder.name))

    def _lora(self, folder: Path) -> Path:
        """A PEFT LoRA whose weights have moved."""
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=8, lora_alpha=16, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM")
        model = get_peft_model(sharing_weights(self.base), config)
        moved([tensor for name, tensor in model.named_parameters() if "lora_B" in name])
        model.save_pretrained(folder)
        return folder

    def pair(self, name: str) -> tuple[nn.Module | None, nn.Module]:
        """The same model for the harness and for the studio."""
        if name == "base":
            return self.base.eval(), self.base
        bare = sharing_weights(self.base)
        if name == "lora":
            from peft import PeftModel

            return PeftModel.from_pretrained(sharing_weights(self.base), self.lora), load(
                bare, self.lora, name="default"
            )
        model = attach(bare, MethodSpec(name=name, options={"modules": "all-linear"}), tasks=["a", "b"])
        moved(list(adapter_tensors(model, "default").values()))
        return None, model

    def measured(self, name: str) -> list[Row]:
        theirs, ours = self.pair(name)
        sides: dict[str, Any] = {}
        if theirs is not None:
            for most in (64, 512 if self.device == "cuda" else 8):
                sides[f"lm-eval, at most {most}"] = Harness(theirs, self.samples, most)
        sides["studio"] = Studio(ours, self.encoder, self.samples, LIMIT)
        return [{"model": name, **row} for row in timed(sides, self.repeats, self.device)]

    def equal(self, name: str) -> list[Row]:
        """How far the two are apart, and the harness from itself."""
        theirs, ours = self.pair(name)
        few = {task: rows[:FEW] for task, rows in self.samples.items()}
        studio = Studio(ours, self.encoder, self.samples, LIMIT).scores()
        found = differences(Harness(theirs, self.samples, 64, softmax="float32").scores(), studio)
        batched, single = (Harness(theirs, few, 64, softmax="float32", batch=batch).scores() for batch in ("auto", 1))
        row = {"model": name, **found, "harness to itself": differences(batched, single)}
        if self.base.dtype != torch.float32 and name == "base":
            exact = copy.deepcopy(self.base).float()
            row["float32"] = differences(
                Harness(exact, few, 64).scores(), Studio(exact, self.encoder, few, LIMIT).scores()
            )
        return [row]


def bundled(device: str) -> nn.Module:
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return AutoModelForCausalLM.from_pretrained(BUNDLED_BASE_FOLDER, dtype=dtype).to(device).requires_grad_(False)


@torch.no_grad()
def moved(tensors: list[torch.Tensor]) -> None:
    """Away from where they start, as training moves them."""
    generator = torch.Generator().manual_seed(3)
    for tensor in tensors:
        tensor.add_((torch.randn(tensor.shape, generator=generator) * 0.02).to(tensor))


def table(rows: list[Row], equal: list[Row]) -> str:
    lines = [
        "| model | who | batch | seconds | samples/s | options/s | peak, GiB | studio is |",
        "|---|---|---|" + "---:|" * 5,
    ]
    rivals = [row for row in rows if row.get("who", "").startswith("lm-eval") and "seconds" in row]
    for row in rows:
        if "seconds" not in row:
            lines.append(f"| {row['model']} | {row.get('who', '')} | {row['error'].replace('|', '/')} |")
            continue
        mine = [other for other in rivals if other["model"] == ("lora" if row["model"] == "mosld" else row["model"])]
        least = min((other["seconds"] for other in mine), default=None)
        times = f"{least / row['seconds']:.2f}x" if least and row["who"] == "studio" else ""
        lines.append(
            f"| {row['model']} | {row['who']} | {row['batch']} | {row['seconds']:.3f} | {row['samples_per_s']:,.1f} "
            f"| {row['options_per_s']:,.1f} | {row['peak_gib']} | {times} |"
        )
    lines += ["", "| log-likelihoods | largest difference | mean | same choice |", "|---|---:|---:|---:|"]
    for row in equal:
        if "error" in row:
            lines.append(f"| {row['model']} | {row['error'].replace('|', '/')} |")
            continue
        kinds = {"": row, ", float32": row.get("float32"), ", lm-eval to itself": row["harness to itself"]}
        for kind, found in kinds.items():
            if found:
                lines.append(
                    f"| {row['model']}{kind} | {found['largest']:.2g} | {found['mean']:.2g} | {found['same']:.4f} |"
                )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="base")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", type=Path, help="a folder with TASK/test.jsonl; left out: rows are made up")
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--rows", type=int, default=500, help="samples of each task at most")
    parser.add_argument("--models", default="base,lora,mosld")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    encoder = TextEncoder(BUNDLED_BASE_FOLDER)
    samples = read_samples(arguments.data, arguments.tasks.split(","), arguments.rows, encoder)
    if arguments.shape == "tiny":  # fewer tokens than the tokenizer has
        samples = {
            task: [folded(sample, SHAPES["tiny"]["vocab_size"]) for sample in rows] for task, rows in samples.items()
        }
    bench = Bench(arguments.shape, arguments.device, samples, arguments.repeats)
    counts = {task: [len(rows), sum(len(sample.options) for sample in rows)] for task, rows in samples.items()}
    result: dict[str, Any] = {"machine": versions(arguments.device), "command": sys.argv, "samples": counts}
    result |= {"rows": [], "equal": []}
    path = arguments.out / f"scoring-{arguments.shape}.json"
    names = arguments.models.split(",")
    steps = [("rows", bench.measured, name) for name in names]
    steps += [("equal", bench.equal, name) for name in names if name in ("base", "lora")]
    steps.sort(key=lambda step: step[2] != "base")  # the base first, its differences too
    for kind, measure, name in steps:
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # lm_eval talks
                found = measure(name)
        except Exception as error:
            found = [
                {"model": name, "error": f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:200]}"}
            ]
        result[kind] += found
        release(arguments.device)
        print(*(json.dumps(row) for row in found), sep="\n", flush=True)
        write_json(path, result)
    print(table(result["rows"], result["equal"]))
    return 0


def versions(device: str) -> dict[str, str]:
    return machine(device) | {"lm_eval": metadata.version("lm_eval")}


def folded(sample: OptionSample, vocabulary: int) -> OptionSample:
    return OptionSample([t % vocabulary for t in sample.prompt], [[t % vocabulary for t in o] for o in sample.options])


if __name__ == "__main__":
    sys.exit(main())
