"""How fast the inference worker answers on this machine: ``python -m benchmarks.inference``.

Bundled base, four MoSLD adapters, greedy answers; times are as a page sees them, over the socket.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from core.chat.client import Question, batched
from core.chat.settings import Sampling
from core.home import BUNDLED_BASE_FOLDER
from core.schema import MethodSpec, ModelSpec
from core.studio import Studio

PROMPT = [{"role": "user", "content": "Which material conducts electricity best? Choose: copper, glass, wood, rubber."}]
ADAPTERS = 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each answer")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:<n>")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        studio = Studio(home)
        folders = adapters(Path(home) / "adapters")
        inference = studio.chats.inference
        try:
            found = measure(
                lambda: inference.connect(ModelSpec(), arguments.device), folders, arguments.tokens, arguments.repeats
            )
            worker = inference.workers()[0]
        finally:
            inference.stop()
            studio.close()
    print(json.dumps(found | {"device": worker["device"], "adapters in memory": len(worker["adapters"])}, indent=1))
    return 0


def adapters(root: Path) -> dict[str, Path]:
    """Fresh adapters: what they say does not matter here."""
    from transformers import AutoModelForCausalLM

    from core.adapters.attach import attach, save

    model = AutoModelForCausalLM.from_pretrained(BUNDLED_BASE_FOLDER)
    method = MethodSpec(name="mosld")
    for number in range(ADAPTERS):
        model = attach(model, method, tasks=["a"], name=f"a-{number}", seed=number)
    return {f"a-{n}": save(model, root / str(n), f"a-{n}") for n in range(ADAPTERS)}


def measure(connect, folders: dict[str, Path], tokens: int, repeats: int) -> dict[str, float]:
    names = list(folders)
    found = {"start and first token, s": run(connect, folders, [[names[0]]], 1)[0]}
    run(connect, folders, [names], 1)  # every adapter is loaded once
    firsts = [run(connect, folders, [[names[0]]], 1)[0] for _ in range(repeats)]
    found["first token, median ms"] = round(1000 * statistics.median(firsts), 1)
    found["first token, slowest ms"] = round(1000 * max(firsts), 1)
    kinds = {
        "base alone": [[None]],
        "one adapter": [[names[0]]],
        "four adapters, one batch": [names],
        "four adapters, each by itself": [[name] for name in names],
    }
    seconds = {kind: [] for kind in kinds}
    for _ in range(max(3, repeats // 3)):  # in turns, so that a busy moment hits all alike
        for kind, groups in kinds.items():
            seconds[kind].append(run(connect, folders, groups, tokens)[1])
    for kind, times in seconds.items():
        found[f"{kind}, s"] = round(statistics.median(times), 3)
    one = found["one adapter, s"]
    found["four in one batch / one"] = round(found["four adapters, one batch, s"] / one, 2)
    found["four by themselves / one"] = round(found["four adapters, each by itself, s"] / one, 2)
    return found


def run(connect, folders: dict[str, Path], groups: list[list[str | None]], tokens: int) -> tuple[float, float]:
    """Seconds to the first token and to the last one; every answer has the same length."""
    from core.chat.client import Answering

    settings = Sampling(max_new_tokens=tokens, temperature=5, top_p=1.0, seed=1)  # so hot that no answer ends early
    asked = [[Question(name, folders.get(name), PROMPT) for name in group] for group in groups]
    start, first = time.perf_counter(), None
    one_each = [question for group in asked for question in group]
    stream = batched(connect, asked[0], settings) if len(asked) == 1 else Answering(connect, one_each, settings)
    for _ in stream:
        first = first or time.perf_counter() - start
    return round(first, 4), time.perf_counter() - start


if __name__ == "__main__":
    raise SystemExit(main())
